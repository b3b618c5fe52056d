"""Named experiments, and loading one by name or from a Python file."""

import dataclasses
import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from overopt.config import apply_overrides
from overopt.errors import ConfigError
from overopt.settings import (
    BonConfig,
    Experiment,
    GoldConfig,
    LabelsConfig,
    PpoConfig,
    ProxyConfig,
    RunConfig,
)

# Backbones with the learning rate that gave the lowest validation loss in the search in LOG.md.
SIZES = {"ladder:0.05m": 3e-3, "ladder:0.2m": 3e-3, "ladder:0.8m": 2e-3, "ladder:3m": 1e-3}


def proxy(backbone: str, rm_seed: int = 0) -> ProxyConfig:
    """The default proxy on a rung of the ladder."""
    return ProxyConfig(backbone=backbone, lr=SIZES[backbone], rm_seed=rm_seed)


def smoke() -> Experiment:
    """Every stage once, tiny: a learned gold, two proxies, best-of-n and PPO. Under a minute."""
    base = RunConfig(
        gold=GoldConfig(kind="learned", source="ladder:0.05m", n_prompts=16, copies=12, epochs=1),
        labels=LabelsConfig(n_pairs=120, n_validation_prompts=10),
        proxy=ProxyConfig(epochs=1),
        bon=BonConfig(n_prompts=4, pool_size=64, ns=(1, 2, 4, 8, 16, 32, 64)),
        ppo=PpoConfig(steps=3, batch=16, minibatches=2, eval_every=1, eval_prompts=8),
    )
    runs = tuple(replace(base, proxy=replace(base.proxy, backbone=b)) for b in list(SIZES)[:2])
    return Experiment(name="smoke", runs=runs, description="every stage once")


def quick() -> Experiment:
    """Figure 1: three proxy sizes, best-of-n to 512 and PPO."""
    runs = tuple(RunConfig(proxy=proxy(b)) for b in list(SIZES)[:3])
    return Experiment(name="quick", runs=runs, description="Figure 1a and 1b")


def desk() -> Experiment:
    """Four proxy sizes × three RM seeds, both methods; data sizes by best-of-n."""
    runs = [RunConfig(proxy=proxy(b, s)) for s in range(3) for b in SIZES]
    runs += [
        RunConfig(labels=LabelsConfig(n_pairs=n), proxy=proxy(b, s), ppo=None)
        for s in range(3)
        for n in (300, 1500)
        for b in list(SIZES)[:3]
    ]
    return Experiment(name="desk", runs=tuple(runs), description="sizes, data sizes and seeds")


PRESETS = {"smoke": smoke, "quick": quick, "desk": desk}


def load_experiment(name_or_path: str, overrides: Sequence[str] = ()) -> Experiment:
    """A preset by name, or the ``build()`` of an experiment file, with overrides on every run.

    Raises
    ------
    ConfigError
        Unknown name, a file that does not define ``build``, or an override that does not fit.
    """
    if name_or_path in PRESETS:
        experiment = PRESETS[name_or_path]()
    elif name_or_path.endswith(".py"):
        experiment = _from_file(Path(name_or_path))
    else:
        raise ConfigError(
            f"experiment {name_or_path!r} is unknown: use one of {', '.join(PRESETS)} or the path of"
            " a Python file with build()"
        )
    if not overrides:
        return experiment
    runs = []
    for run in experiment.runs:
        new = apply_overrides(run, overrides)
        if new not in runs:
            runs.append(new)
    return dataclasses.replace(experiment, runs=tuple(runs))


def _from_file(path: Path) -> Experiment:
    if not path.is_file():
        raise ConfigError(f"experiment file {str(path)!r} does not exist")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"experiment file {str(path)!r} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "build"):
        raise ConfigError(f"experiment file {str(path)!r} has no build(): define one")
    experiment = module.build()
    if not isinstance(experiment, Experiment):
        raise ConfigError(
            f"build() of {str(path)!r} returned {type(experiment).__name__}, not Experiment"
        )
    return experiment
