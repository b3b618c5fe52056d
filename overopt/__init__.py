"""overopt: a sandbox for reward-model overoptimization.

The names below need numpy and scipy only; everything that trains or samples lives in submodules.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "best_of_n",
    "fit_curve",
    "fit_records",
    "fit_replicates",
    "kl_bon",
    "load_curves",
    "load_records",
]

if TYPE_CHECKING:
    from overopt.analysis import fit_records
    from overopt.estimators import best_of_n, kl_bon
    from overopt.fits.fit import fit_curve
    from overopt.fits.replicates import fit_replicates
    from overopt.records import load_curves, load_records

_HOME = {
    "best_of_n": "overopt.estimators",
    "kl_bon": "overopt.estimators",
    "fit_curve": "overopt.fits.fit",
    "fit_records": "overopt.analysis",
    "fit_replicates": "overopt.fits.replicates",
    "load_curves": "overopt.records",
    "load_records": "overopt.records",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'overopt' has no attribute {name!r}")
