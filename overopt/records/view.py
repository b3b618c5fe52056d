"""One results directory as its readers want it: everything a figure may ask for, computed once."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from overopt.fits.fit import FitResult
from overopt.fits.replicates import ReplicateCurve
from overopt.records import series
from overopt.records.curves import Curve, cost_rows, load_curves, results_dir
from overopt.records.results import read_runs
from overopt.records.samples import Sample, read_samples


@dataclass(frozen=True, kw_only=True)
class ResultsView:
    """A results directory; each attribute is read or computed when it is first asked for.

    folder : the directory, for whatever else it holds.
    """

    folder: Path

    @cached_property
    def curves(self) -> list[Curve]:
        """Every curve, in the order of the records."""
        return load_curves(self.folder)

    @property
    def experiment(self) -> str:
        """Name of the experiment."""
        return self.curves[0].meta["experiment"]

    @cached_property
    def methods(self) -> list[str]:
        """Methods of the curves as records call them, best-of-n first."""
        return series.methods_of(self.curves)

    @cached_property
    def groups(self) -> series.Groups:
        """Method -> series -> replicate curves of the shared data size, proxy sizes increasing."""
        return series.group_curves(self.curves)

    @cached_property
    def replicates(self) -> dict[str, dict[str, list[ReplicateCurve]]]:
        """The same keys -> the same curves as the statistics take them."""
        return {
            method: {name: series.as_replicates(same) for name, same in named.items()}
            for method, named in self.groups.items()
        }

    @cached_property
    def fits(self) -> dict[str, dict[str, FitResult]]:
        """The same keys -> the method's form fitted to gold; without what cannot be fitted."""
        return series.fit_groups(self.groups)

    @cached_property
    def tilts(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Series -> √KL and gold gain (K,) of the exponential tilt of the pool, where trusted."""
        return series.load_tilts(self.folder, self.groups)

    @cached_property
    def data_sweeps(self) -> dict[str, dict[int, list[Curve]]]:
        """Series -> comparisons -> best-of-n curves, where there are three data sizes."""
        return series.data_sweeps(self.curves)

    @cached_property
    def costs(self) -> list[dict[str, Any]]:
        """Rows of costs.jsonl, one for each run and stage; empty without the file."""
        return cost_rows(self.folder)

    @cached_property
    def runs(self) -> dict[str, dict[str, Any]]:
        """Settings that differ from the defaults, and provenance, by run_id; empty in older ones."""
        return read_runs(self.folder)

    @cached_property
    def samples(self) -> dict[str, list[Sample]]:
        """Responses by run_id, those of each point of its curve; empty in older results."""
        return read_samples(self.folder)


def view(records: str | Path) -> ResultsView:
    """The results directory ``records``: a path, or a preset's name."""
    return ResultsView(folder=results_dir(records))
