"""A results directory in Python: `overopt.Results`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from overopt.analysis.degenerate import remark_lines
from overopt.analysis.peaks import peak_of_mean, peaks_of
from overopt.base import escape
from overopt.fits.fit import POOR_FIT_P, FitResult
from overopt.fits.pvalues import p_text
from overopt.fits.scaling import ScalingPoint
from overopt.records import series
from overopt.records.curves import BON, load_records, results_dir
from overopt.records.view import ResultsView
from overopt.reports.draw import drawn, figure_of
from overopt.reports.text import with_error

if TYPE_CHECKING:
    import pandas as pd


class Results(ResultsView):
    """The records of an experiment: curves, fits, figures; each is computed when it is asked for.

    Parameters
    ----------
    records
        A directory with records.jsonl, or the name of a preset whose records are in ``results``
        or ``experiments/results``.

    Raises
    ------
    DataError
        There are no records.

    Notes
    -----
    Needs no torch and no store: records can be read anywhere. In a notebook the object shows
    itself as a table, a line for each proxy and method.
    """

    def __init__(self, records: str | Path) -> None:
        super().__init__(folder=results_dir(records))

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row for each measured point; ``overopt.FIELDS`` has the columns' units and meanings."""
        return load_records(self.folder)

    @cached_property
    def peaks(self) -> pd.DataFrame:
        """A row for each curve: where gold peaks, where it ends, and the fall between the two.

        Gains in standard deviations of gold. Height and fall are cross-fitted: the peak is chosen on
        one half of the prompts and read on the other.
        """
        import pandas as pd

        return pd.DataFrame(peaks_of(self.curves))

    def fit(self, form: str | None = None) -> dict[str, dict[str, FitResult]]:
        """Gold against √KL fitted to each series: method -> series -> result.

        Parameters
        ----------
        form
            Name of a form for all of them, such as "bon" or "power"; by default each method's own.

        Raises
        ------
        ConfigError
            There is no such form.

        Notes
        -----
        Values by prompt enter, so that standard errors hold for points that share prompts and
        pool. A series that cannot be fitted is absent.
        """
        return self.fits if form is None else series.fit_groups(self.groups, form)

    def scaling(self, method: str = BON) -> list[ScalingPoint]:
        """A fit for each proxy size of ``method``, sizes increasing, for `overopt.fit_scaling`."""
        return series.scaling_points(self.curves, method)

    def plot(self, figure: str | Path = "overoptimization") -> Figure:
        """Draw a figure: the name of a built-in one, or the path of a file with ``draw(results)``.

        Raises
        ------
        ConfigError
            There is no such figure.
        DataError
            The records do not hold what it shows.
        """
        return drawn(figure_of(figure), self)

    def _repr_html_(self) -> str:
        """The table that notebooks show."""
        rows = [
            [method, name, len(same), *_ends(same), _fitted(self.fits[method].get(name))]
            for method, of_method in self.groups.items()
            for name, same in of_method.items()
        ]
        head = ("method", "proxy", "curves", "peak of gold", "end", "√KL at the end", "fit")
        cells = "".join(_row("td", row) for row in rows)
        said = "".join(f"<p>{escape.html(line)}</p>" for line in remark_lines(self.curves))
        return (
            f"<p><b>{escape.html(self.experiment)}</b>: {len(self.curves)} curves in"
            f" {escape.html(str(self.folder))}; gold in standard deviations, gained over the"
            f" initial policy</p><table><thead>{_row('th', head)}</thead>"
            f"<tbody>{cells}</tbody></table>{said}"
        )

    def __repr__(self) -> str:
        return f"Results({str(self.folder)!r})"


def _row(tag: str, cells: Sequence[object]) -> str:
    inside = "".join(f"<{tag}>{escape.html(str(cell))}</{tag}>" for cell in cells)
    return f"<tr>{inside}</tr>"


def _ends(curves: Sequence[series.Curve]) -> tuple[str, str, str]:
    """Cross-fitted peak and end of the mean over replicates, and √KL at the end."""
    replicates = series.as_replicates(curves)
    mean, peak = series.average(curves, replicates), peak_of_mean(replicates)
    return (
        f"{with_error(peak.estimate, peak.stderr)} at √KL {mean.d[mean.gold.argmax()]:.2f}",
        with_error(mean.gold[-1], mean.gold_stderr[-1]),
        f"{mean.d[-1]:.2f}",
    )


def _fitted(fit: FitResult | None) -> str:
    if fit is None:
        return "none"
    if fit.p_value < POOR_FIT_P:
        return f"{fit.form} does not describe the curve ({p_text(fit.p_value)})"
    params = (f"{k} {with_error(v, fit.stderr[k])}" for k, v in fit.params.items())
    return f"{fit.form}: {', '.join(params)}"
