"""Share of the device's matrix rate that a reward model's training step reaches."""

import statistics

from overopt.bench.harness import Row, clock, make_row, matrix_rate, training_products
from overopt.bench.on_device import kernel_ms, peak_gb
from overopt.bench.random_inputs import random_pairs, random_reward_model
from overopt.bench.setting import Group, Setting
from overopt.bench.sizes import Sizes
from overopt.bench.training import train_once
from overopt.nets.block import LlamaConfig
from overopt.nets.compute import Compute

NAMES = ("reward_mfu",)
TARGET = 0.4


def group(setting: Setting) -> Group | None:
    """Only at the shape of a checkpoint: the ladder's models would time the launching of kernels."""
    sizes = setting.sizes
    return None if sizes is None else Group(NAMES, lambda: mfu_rows(sizes, **setting.where))


def attention_flops(cfg: LlamaConfig, n_rows: int, length: int) -> float:
    """Operations of causal attention's two products, forward and backward, in all layers."""
    return 3 * 2 * n_rows * length**2 * cfg.hidden_size * cfg.num_hidden_layers


def mfu_rows(
    sizes: Sizes, *, repeats: int = 5, warm_steps: int = 3, root_seed: int = 0, device: str = "cuda"
) -> list[Row]:
    """Share of the measured bfloat16 matrix rate that a training step reaches.

    Counted: linear maps forward and backward where the loss needs them (`training_products`), and
    causal attention. Not counted: embedding, norms, optimizer, anything computed twice.
    """
    now, n_steps = clock(device), repeats + warm_steps
    cfg, n_tokens = sizes.model, sizes.n_tokens
    model = random_reward_model(cfg, seed=root_seed).to(device)
    rate = matrix_rate(device, size=sizes.matrix)
    n_rows = 2 * sizes.mfu_pairs
    products = training_products(cfg, n_rows * n_tokens, n_read=n_rows)
    flops = sum(p.flops for p in products) + attention_flops(cfg, n_rows, n_tokens)
    seconds: list[float] = []
    start = now()

    def turn(done: int, total: int) -> None:
        nonlocal start
        seconds.append(now() - start)
        start = now()

    train_once(
        model,
        random_pairs(cfg.vocab_size, sizes.mfu_pairs * n_steps, n_tokens, root_seed=root_seed),
        batch=sizes.mfu_pairs,
        compute=Compute(precision=sizes.precision),
        progress=turn,
    )
    timed = seconds[warm_steps:]
    one_step = random_pairs(cfg.vocab_size, sizes.mfu_pairs, n_tokens, root_seed=root_seed)
    by_kernel = kernel_ms(
        lambda: train_once(
            model, one_step, batch=sizes.mfu_pairs, compute=Compute(precision=sizes.precision)
        ),
        device,
    )
    per_s = n_rows * n_tokens / statistics.median(timed)
    return [
        make_row(
            NAMES[0],
            timed,
            [flops / rate],
            against="limit",
            target=TARGET,
            note=f"{sizes.mfu_pairs} pairs x {n_tokens} tokens, {sizes.precision}, {per_s:,.0f} "
            f"tokens/s; reference: the step's {flops / 1e12:.1f} TFLOP at the measured matrix rate, "
            f"{rate / 1e12:.0f} TFLOP/s",
            details={
                "matrix_tflops": rate / 1e12,
                "tflop": flops / 1e12,
                "first_step_s": seconds[0],
                "peak_memory_gb": peak_gb(device),
                "kernel_ms": by_kernel,
            },
        )
    ]
