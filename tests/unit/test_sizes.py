"""No file and no function is longer than one can read, and what is public says what it is for.

The lines of a function are counted without its docstring: a long explanation is no fault. A name in
an exception that no longer needs it fails too, so that the lists only shrink.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[2] / "overopt"
FILE_LINES = 500
FUNCTION_LINES = 60


# Name -> why it may break the rule, such as "loop with numbered steps".
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS = {
    "overopt.nets.lane_kernels._attend": "one kernel of Triton",
    "overopt.nets.lane_kernels._attend_half": "one kernel of Triton",
}
UNDOCUMENTED = {
    **dict.fromkeys(
        (
            f"overopt.engine.progress.Silent.{name}"
            for name in (
                *("apart", "begin", "end", "failed", "finished", "left", "lost", "progress"),
                *("started", "waiting"),
            )
        ),
        "what Reporter asks for, done by doing nothing",
    ),
    **dict.fromkeys(
        (
            f"overopt.nets.fused.{name}.{way}"
            for name in ("Normalise", "RotateHeads", "SwiGlu")
            for way in ("forward", "backward")
        ),
        "what torch.autograd.Function asks for",
    ),
}


class Definition(NamedTuple):
    """A class or function of the package, by its dotted name."""

    name: str
    node: ast.ClassDef | ast.FunctionDef
    is_public: bool  # and so is everything around it


def module_name(path: Path, package: Path) -> str:
    parts = ("overopt", *path.relative_to(package).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


def definitions(package: Path = PACKAGE) -> Iterator[Definition]:
    """Everything defined in ``package``, what is nested in functions too."""

    def visit(node: ast.AST, inside: str, is_public: bool) -> Iterator[Definition]:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.ClassDef | ast.FunctionDef):
                yield from visit(child, inside, is_public)
                continue
            name = f"{inside}.{child.name}"
            public = is_public and not child.name.startswith("_")
            yield Definition(name, child, public)
            # What is defined inside a function is nobody's to call.
            inner = public and isinstance(child, ast.ClassDef)
            yield from visit(child, name, inner)

    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        yield from visit(tree, module_name(path, package), True)


def function_lines(node: ast.FunctionDef) -> int:
    """Lines from ``def`` to the end, without the docstring."""
    assert node.end_lineno is not None
    first = node.body[0]
    docstring = 0
    if ast.get_docstring(node) is not None:
        assert first.end_lineno is not None
        docstring = first.end_lineno - first.lineno + 1
    return node.end_lineno - node.lineno + 1 - docstring


def long_files(package: Path = PACKAGE) -> set[str]:
    return {
        module_name(path, package)
        for path in package.rglob("*.py")
        if len(path.read_text(encoding="utf-8").splitlines()) > FILE_LINES
    }


def long_functions(package: Path = PACKAGE) -> set[str]:
    return {
        d.name
        for d in definitions(package)
        if isinstance(d.node, ast.FunctionDef) and function_lines(d.node) > FUNCTION_LINES
    }


def undocumented(package: Path = PACKAGE) -> set[str]:
    return {
        d.name
        for d in definitions(package)
        if d.is_public and ast.get_docstring(d.node) is None and not is_overload(d.node)
    }


def is_overload(node: ast.AST) -> bool:
    """Whether it is one of several signatures of a function that is documented once."""
    return any(ast.unparse(d) == "overload" for d in getattr(node, "decorator_list", ()))


@pytest.mark.parametrize(
    ("found", "excepted", "remedy"),
    [
        (long_files, LONG_FILES, f"past {FILE_LINES} lines: split the file by subject"),
        (long_functions, LONG_FUNCTIONS, f"past {FUNCTION_LINES} lines: take steps out of it"),
        (undocumented, UNDOCUMENTED, "public without a docstring: say what it is for"),
    ],
    ids=["files", "functions", "docstrings"],
)
def test_only_what_is_excepted_breaks_the_rule(found, excepted, remedy):
    names = found()
    assert sorted(names - excepted.keys()) == [], remedy
    assert sorted(excepted.keys() - names) == [], "no longer needed: take it out of the list"


def test_planted_offenders_are_found(tmp_path):
    """The test of the test."""
    (tmp_path / "room").mkdir()
    lines = "\n".join(f"    x = {i}" for i in range(FUNCTION_LINES))
    explained = "\n".join("    word" for _ in range(FUNCTION_LINES))
    (tmp_path / "room" / "planted.py").write_text(
        f"def long():\n{lines}\n\n\n"
        f'def explained():\n    """Long to explain.\n{explained}\n    """\n\n\n'
        'class Known:\n    """Said."""\n\n    def method(self):\n        pass\n\n\n'
        "def _private():\n    def inner():\n        pass\n"
    )
    (tmp_path / "room" / "__init__.py").write_text("\n" * (FILE_LINES + 1))
    assert long_files(tmp_path) == {"overopt.room"}
    assert long_functions(tmp_path) == {"overopt.room.planted.long"}
    assert undocumented(tmp_path) == {
        "overopt.room.planted.long",
        "overopt.room.planted.Known.method",
    }
