"""overopt: a sandbox for reward-model overoptimization.

The names below are the public interface. `run` computes and imports torch; all others read and
need none. Each is imported when it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from overopt.analysis.equivalence import equivalence as equivalence
    from overopt.base.config import RuntimeConfig as RuntimeConfig
    from overopt.base.errors import OveroptError as OveroptError
    from overopt.base.seeding import numpy_rng as numpy_rng
    from overopt.fits.compare import compare_forms as compare_forms
    from overopt.fits.compare import extrapolate as extrapolate
    from overopt.fits.fit import FitResult as FitResult
    from overopt.fits.fit import fit_curve as fit_curve
    from overopt.fits.replicates import ReplicateCurve as ReplicateCurve
    from overopt.fits.replicates import fit_replicates as fit_replicates
    from overopt.fits.replicates import mean_curve as mean_curve
    from overopt.fits.scaling import fit_scaling as fit_scaling
    from overopt.fits.scaling import forecast as forecast
    from overopt.fits.scaling import score_forecast as score_forecast
    from overopt.pools.best_of_n import best_of_n as best_of_n
    from overopt.pools.best_of_n import kl_bon as kl_bon
    from overopt.pools.quantile import HumpWorld as HumpWorld
    from overopt.pools.quantile import exact_curve as exact_curve
    from overopt.pools.replay import read_replay as read_replay
    from overopt.pools.tilt import exponential_tilt as exponential_tilt
    from overopt.records.curves import Curve as Curve
    from overopt.records.curves import load_curves as load_curves
    from overopt.records.curves import load_records as load_records
    from overopt.records.schema import FIELDS as FIELDS
    from overopt.records.series import fit_records as fit_records
    from overopt.reports.results import Results as Results
    from overopt.stages.settings import Experiment as Experiment
    from overopt.stages.settings import RunConfig as RunConfig
    from overopt.study.presets import load_experiment as load_experiment
    from overopt.study.run import run as run

__version__ = "0.1.0"

_HOME = {
    "analysis.equivalence": ("equivalence",),
    "base.config": ("RuntimeConfig",),
    "base.errors": ("OveroptError",),
    "base.seeding": ("numpy_rng",),
    "fits.compare": ("compare_forms", "extrapolate"),
    "fits.fit": ("FitResult", "fit_curve"),
    "fits.replicates": ("ReplicateCurve", "fit_replicates", "mean_curve"),
    "fits.scaling": ("fit_scaling", "forecast", "score_forecast"),
    "pools.best_of_n": ("best_of_n", "kl_bon"),
    "pools.quantile": ("HumpWorld", "exact_curve"),
    "pools.replay": ("read_replay",),
    "pools.tilt": ("exponential_tilt",),
    "records.curves": ("Curve", "load_curves", "load_records"),
    "records.schema": ("FIELDS",),
    "records.series": ("fit_records",),
    "reports.results": ("Results",),
    "stages.settings": ("Experiment", "RunConfig"),
    "study.presets": ("load_experiment",),
    "study.run": ("run",),
}
"""Module -> public names, as type checkers see them above."""

__all__ = sorted(name for names in _HOME.values() for name in names)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    for module, names in _HOME.items():
        if name in names:
            from importlib import import_module

            return getattr(import_module(f"overopt.{module}"), name)
    raise AttributeError(f"module 'overopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
