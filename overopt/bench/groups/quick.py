"""Wall time of the whole preset quick, against its budget."""

import os
import subprocess
import sys
import tempfile
import time

from overopt.bench.harness import Row, make_row, not_measured
from overopt.bench.setting import Group, Setting

NAMES = ("quick_preset",)
BUDGET_S = 600.0


def group(setting: Setting) -> Group:
    """One run in a process of its own, the same in every setting."""
    return Group(NAMES, lambda: [quick_row()])


def quick_row() -> Row:
    """Wall seconds of the whole quick preset in an empty store, against its budget."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "overopt", "run", "quick", "--quiet"]
        command += ["--store", f"{folder}/runs", "--results", f"{folder}/results"]
        before = os.times()
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wall = time.perf_counter() - start
        after = os.times()
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        return not_measured(NAMES[0], f"exit status {done.returncode}: {last[0]}")
    cpu = sum(
        getattr(after, name) - getattr(before, name)
        for name in ("children_user", "children_system")
    )
    return make_row(
        NAMES[0],
        [wall],
        [BUDGET_S],
        against="budget",
        target=1.0,
        note=f"wall seconds on {os.cpu_count()} cores with default workers; {cpu:.0f} CPU seconds;"
        f" reference: its budget of {BUDGET_S:.0f} s",
        details={"cpu_s": cpu},
    )
