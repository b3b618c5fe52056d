"""`overopt bench`: measure, and leave a table, a JSON and a picture."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from overopt.base import files, pictures
from overopt.base.files import plain
from overopt.bench.harness import table
from overopt.bench.suite import run_suite
from overopt.reports.figures import speed


def bench(
    *,
    threads: int,
    device: str,
    groups: Sequence[str],
    peers: Path | None,
    constraints: Path | None,
    out: Path,
    say: Callable[[str], None],
    wheels: Path | None = None,
    budget_s: float | None = None,
) -> str:
    """Measure, write ``bench.json`` and ``bench.png`` to ``out``, and return the table.

    See `overopt.bench.suite.run_suite`.
    """
    out.mkdir(parents=True, exist_ok=True)

    def save(report: dict[str, Any]) -> None:
        files.save_json(out / "bench.json", plain(report))
        pictures.save_figure(out / "bench.png", speed.speed_ratios(report["rows"]))

    report = run_suite(
        threads=threads,
        device=device,
        peers=peers,
        constraints=constraints,
        wheels=wheels,
        budget_s=budget_s,
        groups=groups,
        say=say,
        save=save,
    )
    machine = f"{report['device_name']}, {threads} thread(s), {report['clock']}"
    return "\n".join([machine, table(report["rows"]), f"{out}/bench.json", f"{out}/bench.png"])
