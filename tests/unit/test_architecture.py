"""The levels, the gold barrier, and the rule that files are touched in level 3 only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "overopt"
MODULES = {
    ".".join(("overopt", *p.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): p
    for p in PACKAGE.rglob("*.py")
}
LEVEL_0 = {"overopt.errors", "overopt.seeding", "overopt.config"}
LEVEL_3 = {  # may touch files, clocks and processes
    "overopt.store", "overopt.pipeline", "overopt.stages",
    "overopt.artefacts", "overopt.executors", "overopt.cli", "overopt.graph",
    "overopt.progress", "overopt.checkpoints", "overopt.presets", "overopt.analysis",
    "overopt.comparison", "overopt.comparison_report", "overopt.distributed", "overopt.sft_files",
    "overopt.replay", "overopt.records", "overopt.forecasts",
}  # fmt: skip
IO_CALLS = {
    "open",
    "write_text",
    "write_bytes",
    "read_text",
    "read_bytes",
    "mkdir",
    "unlink",
    "savefig",
}


def imports(path: Path, *, typing_too: bool = False) -> set[str]:
    """Modules a file imports, those for type checking left out."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if (
            isinstance(node, ast.If)
            and "TYPE_CHECKING" in ast.unparse(node.test)
            and not typing_too
        ):
            return
        if isinstance(node, ast.Import):
            found.update(a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{a.name}" for a in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


@pytest.mark.parametrize("name", sorted(MODULES))
def test_methods_cannot_see_gold(name):
    if name.startswith("overopt.methods"):
        seen = [m for m in imports(MODULES[name], typing_too=True) if m.startswith("overopt.gold")]
        allowed = {"overopt.scorers", "overopt.pipeline", "overopt.measure", "overopt.store"}
        assert not seen and not imports(MODULES[name]) & allowed


def test_ppo_stage_has_no_gold_upstream():
    from overopt.pipeline import build_graph
    from overopt.presets import load_experiment

    for end in build_graph(load_experiment("smoke")):
        if end.name == "ppo_gold":
            stack = [end.upstream["ppo"]]
            assert "gold" not in stack[0].upstream
            assert "gold" not in end.upstream["proxy"].upstream  # gold reaches it as labels only


@pytest.mark.parametrize("name", sorted(MODULES))
def test_level_0_imports_only_itself(name):
    if name in LEVEL_0:
        ours = {m for m in imports(MODULES[name]) if m.startswith("overopt")}
        assert all(any(m.startswith(ok) for ok in LEVEL_0) for m in ours)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_files_are_touched_in_level_3_only(name):
    if name in LEVEL_3 or name.startswith("overopt.benchmarks"):
        return
    calls = {
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    }
    assert not calls & IO_CALLS
    assert not imports(MODULES[name]) & {"time", "subprocess", "multiprocessing", "shutil", "os"}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_global_random_state(name):
    if name == "overopt.seeding" or name.startswith("overopt.benchmarks"):
        return
    text = MODULES[name].read_text(encoding="utf-8")
    for banned in ("torch.manual_seed", "np.random.seed", "random.seed(", "np.random.rand"):
        assert banned not in text


@pytest.mark.parametrize(
    "module",
    [
        "overopt",
        "overopt.fits",
        "overopt.records",
        "overopt.analysis",
        "overopt.estimators",
        "overopt.replay",
        "overopt.replay_report",
        "overopt.forecasts",
    ],
)
def test_analysis_needs_no_torch(module):
    code = (
        f"import sys, {module}; from overopt import best_of_n, fit_curve, kl_bon, load_records;"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
