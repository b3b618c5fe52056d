"""A step of each policy gradient against a step of PPO, at the same number of responses.

PPO is the reference: it has a value model to run and to train. Weights, proxy, prompts and lengths are
the same; steps alternate. Peak memory is that of a process of its own for each method.
"""

from collections.abc import Sequence

from overopt.base.kinds import names
from overopt.bench.harness import Row, clock, make_row
from overopt.bench.method_run import BATCH, peak_mb, stepper
from overopt.bench.opponent import WARM_STEPS, timed
from overopt.bench.ppo_task import PpoTask, story_task
from overopt.bench.setting import Group, Setting

KINDS = ("grpo", "rloo", "reinforce")
NAMES = tuple(f"{kind}_step_vs_ppo" for kind in KINDS)
TARGET = 1.0


def group(setting: Setting) -> Group | None:
    """The ladder's models, on the CPU only."""
    if setting.device != "cpu":
        return None

    def measure() -> Sequence[Row]:
        task = story_task(root_seed=setting.root_seed)
        memory = {kind: round(peak_mb(kind)) for kind in names("overopt.methods")}
        return method_rows(task, memory)

    return Group(NAMES, measure)


def method_rows(
    task: PpoTask, memory: dict[str, int], *, batch: int = BATCH, repeats: int = 5
) -> list[Row]:
    """A row a method; ``memory``: peak MB by method, which every row carries."""
    now = clock("cpu")
    steps = {kind: stepper(kind, task, batch=batch) for kind in (*KINDS, "ppo")}
    seconds: dict[str, list[float]] = {kind: [] for kind in steps}
    for _ in range(repeats + WARM_STEPS):
        for kind, step in steps.items():
            seconds[kind].append(timed(step, now))
    return [
        make_row(
            name,
            seconds[kind][WARM_STEPS:],
            seconds["ppo"][WARM_STEPS:],
            target=TARGET,
            note=f"{batch} responses x {task.n_tokens} tokens, defaults; reference: a step of PPO",
            details={"peak_mb": memory},
        )
        for name, kind in zip(NAMES, KINDS, strict=True)
    ]
