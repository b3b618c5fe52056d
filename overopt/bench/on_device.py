"""What the device itself tells of a run: its kernels and its memory."""

from collections.abc import Callable

import torch


def kernel_ms(run: Callable[[], None], device: str, *, most: int = 20) -> dict[str, float]:
    """Milliseconds of the kernels of ``run`` that take longest, by name; empty without a profiler."""
    if not device.startswith("cuda"):
        return {}
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    try:
        with torch.profiler.profile(activities=kinds) as profile:
            run()
            torch.cuda.synchronize(device)
        events = [e for e in profile.key_averages() if "CUDA" in str(e.device_type)]
        events.sort(key=lambda e: e.self_device_time_total, reverse=True)
        return {e.key[:160]: e.self_device_time_total / 1e3 for e in events[:most]}
    except (RuntimeError, AttributeError):
        return {}


def peak_gb(device: str) -> float | None:
    """Largest memory in use so far on a CUDA device, GB; None elsewhere."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.startswith("cuda") else None
