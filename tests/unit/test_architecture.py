"""Who may import whom, by folder; the gold barrier; and where files, clocks and seeds are touched."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[2] / "overopt"

# Folder -> folders it may import beside itself. A folder that is not here may import nothing: a new
# one needs a line.
MAY_IMPORT = {
    "base": set(),
    "fits": {"base"},
    "pools": {"base"},
    "engine": {"base"},
    "nets": {"base"},
    "records": {"base", "fits"},
    "worlds": {"base", "nets"},
    "methods": {"base", "nets"},
    "measure": {"base", "nets"},
    "rewards": {"base", "nets", "worlds", "measure"},
    "evals": {"base", "fits", "pools", "engine", "nets", "worlds", "rewards"},
    "analysis": {"base", "records", "fits", "pools"},
    "reports": {"base", "records", "fits", "pools", "analysis"},
    "stages": {
        *("base", "records", "pools", "engine", "nets", "worlds", "rewards", "methods", "measure"),
    },
    "control": {"base", "engine", "rewards", "stages"},
    "study": {
        *("base", "records", "pools", "engine", "nets", "worlds", "rewards", "methods", "measure"),
        *("fits", "analysis", "reports", "stages", "control"),
    },
    "bench": {
        *(
            "",
            "base",
            "records",
            "pools",
            "engine",
            "nets",
            "worlds",
            "rewards",
            "methods",
            "measure",
        ),
        *("fits", "analysis", "reports", "stages", "study", "control", "evals"),
    },
    "cli": {
        *("", "base", "records", "pools", "engine", "nets", "worlds", "rewards", "methods"),
        *("measure", "fits", "analysis", "reports", "stages", "study", "control", "evals", "bench"),
    },
    "": {  # overopt itself: the names outsiders use
        *("base", "fits", "pools", "records", "analysis", "reports", "stages", "study", "cli"),
    },
}
READING_WING = ("fits", "pools", "records", "analysis", "reports")
MAY_TOUCH_FILES = {"base", "engine", "records", "cli", "bench", "study", "stages"}
FILES_TOO = {  # and why
    "overopt.nets.sources",  # finds, hashes and converts checkpoints
    "overopt.nets.headers",  # reads what stands in front of weights
    "overopt.nets.checkpoints",  # reads them
    "overopt.worlds.prompts",  # reads prompts
    "overopt.evals.model",  # measures what scoring takes
    "overopt.evals.models.judge",  # reads the user's template
    "overopt.evals.models.reward",  # opens an artefact
    "overopt.evals.converters.hh",  # reads a compressed file
    "overopt.evals.converters.imdb",  # reads a folder of texts
    "overopt.pools.replay",  # keeps tables of the user's
    "overopt.pools.replay_source",  # reads them
    "overopt.reports.draw",  # writes pictures
    "overopt.reports.comparison",  # the same, and the leaderboard
    "overopt.reports.forecast",  # writes and reads forecasts
    "overopt.rewards.kinds.ensemble",  # makes the folders of members
    "overopt.rewards.kinds.two_models",  # makes the folders of its models
    "overopt.rewards.transforms.own",  # compares a user's file with the copy in an artefact
}
IO_CALLS = {
    *("open", "write_text", "write_bytes", "read_text", "read_bytes", "mkdir", "unlink", "savefig"),
}


class Arrow(NamedTuple):
    """One import: from module to module, and where it stands."""

    source: str
    target: str
    line: int
    inside: str  # function it stands in, or ""


def module_name(path: Path, package: Path = PACKAGE) -> str:
    parts = ("overopt", *path.relative_to(package).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    return {module_name(p, package): p for p in sorted(package.rglob("*.py"))}


MODULES = modules()


def arrows(package: Path = PACKAGE) -> Iterator[Arrow]:
    """Every import within the package, for type checking or inside functions too."""
    known = modules(package)

    def visit(name: str, node: ast.AST, inside: str) -> Iterator[Arrow]:
        if isinstance(node, ast.FunctionDef):
            inside = node.name
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("overopt"):
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                yield Arrow(name, deeper if deeper in known else node.module, node.lineno, inside)
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "overopt":
                    yield Arrow(name, alias.name, node.lineno, inside)
        for child in ast.iter_child_nodes(node):
            yield from visit(name, child, inside)

    for name, path in known.items():
        yield from visit(name, ast.parse(path.read_text(encoding="utf-8")), "")


def folder(module: str) -> str:
    """``nets`` of overopt.nets.llama; "" of overopt and overopt.__main__."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 or (PACKAGE / parts[-1]).is_dir() else ""


def broken_rules(package: Path = PACKAGE) -> list[str]:
    return [
        f"{a.source}:{a.line} imports {a.target}"
        for a in arrows(package)
        if folder(a.target) not in MAY_IMPORT.get(folder(a.source), set()) | {folder(a.source)}
    ]


def circles(package: Path = PACKAGE) -> list[list[str]]:
    """Groups of modules that import each other, wherever the imports stand."""
    targets: dict[str, set[str]] = {}
    for arrow in arrows(package):
        targets.setdefault(arrow.source, set()).add(arrow.target)
    names = modules(package)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for target in targets.get(todo.pop(), set()) & names.keys():
                if target not in seen:
                    seen.add(target)
                    todo.append(target)
        return seen

    from_here = {name: reached(name) for name in names}
    groups = {
        tuple(sorted({name, *(o for o in from_here[name] if name in from_here[o])}))
        for name in names
        if name in from_here[name]
    }
    return [list(group) for group in sorted(groups)]


def test_imports_keep_to_the_rules():
    assert broken_rules() == []


def test_there_is_no_circle():
    assert circles() == []


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("methods/planted.py", "from overopt.rewards.load import load_scorer", "overopt.rewards"),
        ("engine/planted.py", "def f():\n    from overopt.worlds import stories", "overopt.worlds"),
        ("reports/planted.py", "from overopt.nets import sampling", "overopt.nets"),
        ("shed/planted.py", "from overopt.base import errors", "overopt.base"),
    ],
)
def test_a_planted_import_is_found(tmp_path, file, line, message):
    """The test of the test: a package with one wrong line."""
    for name in ("methods", "engine", "reports", "shed"):
        (tmp_path / name).mkdir()
    (tmp_path / file).write_text(f"{line}\n")
    found = broken_rules(tmp_path)
    assert len(found) == 1 and message in found[0]


def test_a_planted_circle_is_found(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "a.py").write_text("from overopt.base import b\n")
    (tmp_path / "base" / "b.py").write_text("def f():\n    from overopt.base import a\n")
    assert circles(tmp_path) == [["overopt.base.a", "overopt.base.b"]]


def test_gold_is_out_of_reach_of_a_method():
    """By folder, and in the graph: no stage of a method has gold upstream but through labels."""
    from overopt.study.chain import build_graph
    from overopt.study.presets import load_experiment

    assert not {"rewards", "stages", "engine", "worlds"} & MAY_IMPORT["methods"]
    for end in build_graph(load_experiment("smoke")):
        if end.name == "ppo_gold":
            assert "gold" not in end.upstream["ppo"].upstream
            assert "gold" not in end.upstream["proxy"].upstream


@pytest.mark.parametrize("name", sorted(MODULES))
def test_files_are_touched_where_it_is_said(name):
    if folder(name) in MAY_TOUCH_FILES or name in FILES_TOO:
        return
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    calls = {
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    }
    assert not calls & IO_CALLS
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert not imported & {"time", "subprocess", "multiprocessing", "shutil", "os"}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_global_random_state(name):
    if name == "overopt.base.seeding" or folder(name) == "bench":
        return
    text = MODULES[name].read_text(encoding="utf-8")
    for banned in ("torch.manual_seed", "np.random.seed", "random.seed(", "np.random.rand"):
        assert banned not in text


def test_the_reading_wing_needs_no_torch():
    names = [name for name in MODULES if folder(name) in READING_WING]
    code = (
        f"import sys, {', '.join(names)};"
        "from overopt import best_of_n, fit_curve, kl_bon, load_records;"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


PARSERS = (
    *("json.load", "np.load", "load_file", "safe_open", "torch.load", "pickle.load"),
    *("csv.reader", "ParquetFile", "read_table", "read_csv", "ZipFile(", "toml", "yaml"),
)
"""What turns bytes of files into values."""
OTHER_READERS = {
    "overopt.base.files": "JSON, JSON lines, npz, npy, safetensors",
    "overopt.pools.replay_source": "CSV and Parquet",
    "overopt.engine.archive": "exported files",
    "overopt.nets.sources": "one wheel, from a package index",
    "overopt.nets.hf": "what transformers says of a model, in memory",
    "overopt.engine.pool": "messages between a run and its own workers",
    "overopt.engine.on_ray": "the same, through a Ray cluster",
    "overopt.engine.task": "whether an error can be sent to another process",
}


def test_each_format_has_one_reader():
    found = [
        f"{name}: {line.strip()}"
        for name in sorted(MODULES.keys() - OTHER_READERS.keys())
        if folder(name) != "bench"
        for line in MODULES[name].read_text(encoding="utf-8").splitlines()
        if any(parser in line for parser in PARSERS)
    ]
    assert found == []
