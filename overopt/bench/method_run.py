"""Steps of the methods at the same number of responses: what each costs in time and in memory.

    python -m overopt.bench.method_run KIND

makes three steps of one method on the task of the PPO benchmarks and prints the peak memory of the
process in MB.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from functools import partial

import torch

from overopt.base.datatypes import PreferenceSet
from overopt.base.kinds import Kind, find
from overopt.base.seeding import derive_seed
from overopt.bench.harness import BenchError
from overopt.bench.ppo_task import PpoTask, story_task
from overopt.methods.method import NEEDS, Problem
from overopt.nets.compute import Compute
from overopt.nets.sampling import sample
from overopt.rewards.labels.pairs import label_pairs

BATCH = 128
STEPS = 3


def stepper(kind: str, task: PpoTask, *, batch: int = BATCH, seed: int = 0) -> Callable[[], None]:
    """A function that makes one step of a method with its defaults and ``batch`` responses."""
    method = find(Kind("overopt.methods", "", needs=NEEDS), kind)
    known = {f.name for f in fields(method.Settings)}
    pairs = batch // 2  # two responses each
    sizes = {"batch": pairs if kind == "dpo" else batch, "steps": 1000, "warmup_steps": 0}
    settings = method.Settings(**{name: x for name, x in sizes.items() if name in known})
    problem = Problem(
        ref_policy=task.policy(),
        proxy=task.proxy,
        prompts=task.prompts,
        n_tokens=task.n_tokens,
        seed=seed,
        compute=Compute(),
        preferences=partial(comparisons, task, n=max(pairs, 2), seed=seed),
    )
    state = method.start(task.policy(), settings, problem)

    def step() -> None:
        """One step; all responses have the length of the task."""
        made = method.step(state, settings, problem)["train_response_tokens"]
        if made != task.n_tokens:
            raise BenchError(
                f"{kind}: responses have {made} tokens on average, not {task.n_tokens}"
            )

    return step


def comparisons(task: PpoTask, *, n: int, seed: int) -> PreferenceSet:
    """``n`` pairs of the initial policy's responses, labelled by the proxy."""
    prompts = task.prompts.select(torch.arange(n) % len(task.prompts))
    made_seed = derive_seed(seed, "comparisons")
    made = sample(task.policy(), prompts, n_tokens=task.n_tokens, seed=made_seed, copies=2)
    return label_pairs(
        made,
        task.proxy.score(made),
        copies=2,
        n_pairs=n,
        rule="argmax",
        flip_rate=0.0,
        seed=made_seed,
    )


def peak_mb(kind: str) -> float:
    """Peak memory in MB of a process that makes `STEPS` steps of the method.

    Raises
    ------
    BenchError
        The process failed; ends with its last line.
    """
    command = [sys.executable, "-m", "overopt.bench.method_run", kind]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise BenchError(f"{kind}: its process ended with {done.returncode}: {last}")
    return float(json.loads(done.stdout)["peak_mb"])


def main() -> None:
    """Steps of the method ``sys.argv[1]``, then the peak."""
    step = stepper(sys.argv[1], story_task())
    for _ in range(STEPS):
        step()
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stdout.write(json.dumps({"peak_mb": kib / 1024}) + "\n")


if __name__ == "__main__":
    main()
