"""overopt: a sandbox for reward-model overoptimization.

The names below need numpy and scipy only; everything that trains or samples lives in submodules.
"""

from typing import Any

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

_HOME = {
    "best_of_n": "overopt.pools.best_of_n",
    "kl_bon": "overopt.pools.best_of_n",
    "fit_curve": "overopt.fits.fit",
    "fit_records": "overopt.records.series",
    "fit_replicates": "overopt.fits.replicates",
    "load_curves": "overopt.records.curves",
    "load_records": "overopt.records.curves",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'overopt' has no attribute {name!r}")
