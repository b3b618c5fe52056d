"""Runs two steps of every method as one of several processes; rank 0 prints what they log."""

import importlib
import json
import sys

import torch
from method_toy import CASES, NAMES, problem, settings_of, started, steps

from overopt.base.config import RuntimeConfig
from overopt.engine import launched
from overopt.nets.compute import compute_of


def logs() -> dict[str, list[dict[str, float]]]:
    """By method, what two steps log."""
    compute = compute_of(RuntimeConfig(micro_batch=3))
    found = {}
    for name, (kind, more) in zip(NAMES, CASES, strict=True):
        module = importlib.import_module(f"overopt.methods.{kind}")
        # A small rate: Adam turns the rounding of a tiny gradient into a step of full size.
        settings = settings_of(module, **({"lr": 1e-4} | more))
        task = problem(compute=compute)
        found[name] = steps(module, started(module, settings, task), settings, task, 2)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    launched.connect(RuntimeConfig())
    result = logs()
    if launched.rank() == 0:
        json.dump(result, sys.stdout)
    launched.disconnect()
