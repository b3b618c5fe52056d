"""Documents say what is true: links, paths, commands, settings, imports, the tree and its rules."""

import ast
import contextlib
import dataclasses
import importlib
import importlib.util
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_architecture import MAY_IMPORT, PACKAGE

from overopt.base import kinds
from overopt.cli.main import _parse
from overopt.cli.settings import describe_settings
from overopt.control.settings import ControlRun
from overopt.methods import ppo
from overopt.stages.settings import RunConfig
from overopt.study.presets import load_experiment

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/*.md")]
)
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
LIVE = [name for name in NAMES if name != "CHANGELOG.md"]  # which names what has gone, too
FOLDERS = ("docs", "experiments", "figures", "notebooks", "overopt", "tests")
PRESETS = ("smoke", "quick", "desk", "gpu", "smollm", "control")


KINDS = {
    "method": "overopt.methods",
    "world": "overopt.worlds",
    "proxy": "overopt.rewards.kinds",
    "gold": "overopt.rewards.kinds",
}


def known_settings() -> set[str]:
    """Dotted names of all settings of a run, those of every kind included."""
    runs = (RunConfig(), ControlRun())
    known = {setting.name for run in runs for setting in describe_settings(run)}
    for part, folder in KINDS.items():
        for kind in kinds.names(folder):
            for field in dataclasses.fields(importlib.import_module(f"{folder}.{kind}").Settings):
                known.add(f"{part}.{field.name}")
                if dataclasses.is_dataclass(field.default_factory):
                    inner = dataclasses.fields(field.default_factory)
                    known |= {f"{part}.{field.name}.{f.name}" for f in inner}
    return known


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of a language; "" for those that name none."""
    found: list[str] = []
    inside: str | None = None
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            inside = line.strip().removeprefix("```") if inside is None else None
            found += [""] * (inside == language)
        elif inside == language:
            found[-1] += line + "\n"
    return found


def anchor(heading: str) -> str:
    """The name under which a heading can be linked, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def broken_links(text: str, folder: Path) -> list[str]:
    """Relative links that lead nowhere, with their headings."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, heading = link.partition("#")
        path = folder / target
        if not path.exists():
            broken.append(link)
        elif heading:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            if heading not in map(anchor, headings):
                broken.append(link)
    return broken


def missing_paths(text: str) -> list[str]:
    """Paths of the repository that a text names and that do not exist."""
    found = re.findall(rf"(?<![\w./-])((?:{'|'.join(FOLDERS)})/[\w./-]*[\w/])", text)
    found += [p for p in re.findall(r"`([\w.-]+\.(?:md|toml))`", text) if p[0].isupper()]
    return [path for path in found if "NAME" not in path and not (ROOT / path).exists()]


def commands(text: str) -> Iterator[str]:
    """Every shown `overopt …` command, comments removed and continued lines joined."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.startswith("    ")]
    lines += [line for block in blocks(text, "") for line in block.splitlines()]
    for line in lines:
        if found := re.match(r" *(?:(?:torchrun|accelerate) .* -m )?overopt ([a-z].*)$", line):
            yield found[1]
    yield from re.findall(r"`overopt ([a-z][^`]*)`", text)


COMMANDS = [(name, command) for name in LIVE for command in commands(text_of(name))]


def dotted_names(text: str) -> list[str]:
    """Names such as `overopt.fits.fit.FitResult` in backticks."""
    return re.findall(r"`(overopt(?:\.\w+)+)[`(]", text)


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            if not hasattr(thing, part):
                return False
            thing = getattr(thing, part)
        return True
    return False


@pytest.mark.parametrize("name", NAMES)
def test_relative_links_lead_somewhere(name):
    assert broken_links(text_of(name), (ROOT / name).parent) == []


@pytest.mark.parametrize("name", LIVE)
def test_paths_of_the_repository_exist(name):
    assert missing_paths(text_of(name)) == []


def test_source_names_only_documents_that_exist():
    for folder in ("overopt", "experiments", "notebooks"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".sh", ".ipynb"):
                named = re.findall(r"docs/[\w-]+\.md", path.read_text(encoding="utf-8"))
                assert [d for d in named if not (ROOT / d).exists()] == [], path


@pytest.mark.parametrize("name", LIVE)
def test_dotted_names_resolve(name):
    assert [n for n in dotted_names(text_of(name)) if not resolves(n)] == []


@pytest.mark.parametrize(("name", "command"), COMMANDS)
def test_commands_parse_and_their_overrides_are_settings(name, command):
    words = shlex.split(command, comments=True)
    if len(words) == 1 and words != ["bench"]:
        words = [*words, "--help"]  # a command that is only spoken of
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as said,
    ):
        try:
            args = _parse(words)
        except SystemExit as stop:
            assert stop.code == 0, f"{name}: overopt {command}: {said.getvalue()}"
            return
    what = getattr(args, "experiment", None)
    overrides = list(getattr(args, "overrides", []))
    if args.name in ("run", "plan", "status") and what in PRESETS:
        load_experiment(what, overrides)


@pytest.mark.parametrize("name", LIVE)
def test_settings_that_are_named_exist(name):
    parts = ["labels", "reward", "bon", "rounds", *KINDS]
    known = known_settings()
    pattern = rf"`((?:{'|'.join(parts)})(?:\.[a-z_]+)+)(?:=[^`]*)?`"
    named = re.findall(pattern, text_of(name))
    assert [s for s in named if s not in known and not s.endswith(".kind")] == []


NEED_A_JUDGE = ("outcome", "process", "regression", "rule", "mixture", "two_models", "judge")


def test_kinds_in_the_readme_can_be_run():
    for part, kind in re.findall(r"`(\w+)\.kind=(\w+)`", text_of("README.md")):
        override = f"{part}.kind={kind}"
        source = ["gold.source=org/name"] * (kind == "pretrained")
        source += ["world.kind=sums"] * (kind in NEED_A_JUDGE)
        source += ["world.intent=rubric"] * (kind == "hf")
        load_experiment("quick", [override, *source])


def test_defaults_in_the_table_of_ppo_are_those_of_its_settings():
    table = text_of("docs/methods.md").split("| setting | default | meaning |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (`method\.[^|]*) \| ([^|]*) \|", table, re.MULTILINE)
    defaults = {field.name: field.default for field in dataclasses.fields(ppo.Settings)}
    shown = {}
    for names, values in rows:
        of_row = re.findall(r"`method\.(\w+)`", names)
        shown |= dict(zip(of_row, values.replace("`", "").split(", "), strict=True))
    assert len(shown) == 10
    for name, value in shown.items():
        default = defaults[name]
        assert type(default)(value) == default, name


@pytest.mark.parametrize("name", LIVE)
def test_python_in_documents_imports_what_exists(name):
    for block in blocks(text_of(name), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                assert all(importlib.util.find_spec(alias.name) for alias in node.names)
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    assert hasattr(module, alias.name) or importlib.util.find_spec(
                        f"{node.module}.{alias.name}"
                    ), f"{name}: {alias.name} of {node.module}"


@pytest.mark.parametrize(
    ("name", "block"),
    [
        pytest.param(name, block, id=f"{name}-{i}")
        for name in ("README.md", "docs/usage.md", "docs/architecture.md")
        for i, block in enumerate(blocks(text_of(name), "python"))
    ],
)
def test_python_in_documents_runs(name, block, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    exec(compile(block, name, "exec"), {})
    # A comment behind a print says what it prints, to the digits shown.
    printed = [float(x) for x in re.findall(r"-?\d+\.\d+", capsys.readouterr().out)]
    for shown in re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE):
        for number in re.findall(r"-?\d+\.\d+", shown):
            digits = len(number.split(".")[1])
            assert float(number) in [round(x, digits) for x in printed], number


def test_the_readme_fits_a_screen_or_two():
    assert len(text_of("README.md").splitlines()) <= 80


def test_the_tree_of_the_architecture_is_that_of_the_package():
    (tree,) = blocks(text_of("docs/architecture.md"), "")
    shown = re.findall(r"[├└]── (\w+)/", tree)
    real = sorted(p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__")
    assert sorted(shown) == real


def test_the_rules_of_the_architecture_are_those_of_the_test():
    text = text_of("docs/architecture.md").split("## Who may import whom")[1].split("\n## ")[0]
    shown: dict[str, set[str]] = {}
    for folder, cell in re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE):
        everything = {"base", *shown}
        shown[folder] = everything if cell.startswith("all rows above") else set(cell.split(", "))
    assert shown == {k: v - {""} for k, v in MAY_IMPORT.items() if k not in ("", "base")}


def test_the_walk_of_a_number_finds_its_functions():
    text = text_of("docs/architecture.md")
    steps = re.findall(r"^\| \d\. [^|]*\| `([^`]*)` \| `(\w+)` \|", text, re.MULTILINE)
    assert len(steps) == 6
    for file, function in steps:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        names = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
        assert function in names, f"{file} has no {function}"


def test_the_checks_find_what_is_wrong(tmp_path):
    """The test of the test: one wrong line of each kind."""
    (tmp_path / "a.md").write_text("# Two words, and more\n")
    assert broken_links("[x](a.md#two-words-and-more) [y](https://z)", tmp_path) == []
    assert broken_links("[x](b.md) [y](a.md#three)", tmp_path) == ["b.md", "a.md#three"]
    assert missing_paths("`overopt/nets` and tests/unit/test_docs.py::test_x, `LOG.md`") == []
    assert missing_paths("`overopt/net`, see docs/none.md.") == ["overopt/net", "docs/none.md"]
    text = (
        "    overopt run a \\\n  b.c=1\noveropt no\n```\noveropt plan a\n```\n`overopt fit a` x\n"
    )
    assert list(commands(text)) == ["run a    b.c=1", "plan a", "fit a"]
    assert blocks("```python\n1\n```\nno\n```\n2\n```\n", "") == ["2\n"]
    assert resolves("overopt.fits.fit.fit_curve") and not resolves("overopt.fits.fit.fit_curv")
    assert not resolves("overopt.fit")
