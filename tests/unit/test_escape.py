"""Texts from files do no harm where they are shown: terminal, matplotlib, Markdown, HTML."""

import io
import json

import fuzz
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from report_results import HOSTILE, write_results

from overopt.base import escape, files, pictures
from overopt.cli.main import main
from overopt.engine.progress import TextReporter


@given(st.text())
def test_nothing_that_a_terminal_obeys_is_left(text):
    shown = escape.terminal(text)
    assert all(c in "\n\t" or (ord(c) >= 32 and not 0x7F <= ord(c) < 0xA0) for c in shown)
    assert "\n" not in escape.line(text) and "\u202e" not in shown
    shown.encode("utf-8")


def test_plain_text_stays_as_it_is():
    assert escape.terminal("√KL ± 0.1, naïve 名\n") == "√KL ± 0.1, naïve 名\n"
    assert escape.terminal("a\x1b[2Jb\x07\u202e\udcff") == "a\\x1b[2Jb\\x07\\u202e\\udcff"


@pytest.mark.parametrize("text", ["$x", "a $\\frac{1}$ b", "$\\nope$", "50 $ and 60 $", "\x1b$"])
def test_a_label_is_drawn_as_it_reads(text):
    fig = Figure()
    fig.subplots().set_title(escape.figure(text))
    fig.savefig(io.BytesIO())


def test_a_saved_figure_draws_names_as_they_read_and_formulas_as_formulas(tmp_path):
    fig = Figure()
    ax = fig.subplots()
    ax.set_title("a$ \x1b[2J")
    ax.set_xlabel("$\\frac{1}{2}$")
    ax.set_xscale("log")
    pictures.save_figure(tmp_path / "a.png", fig, formulas=("$\\frac{1}{2}$",))
    assert ax.title.get_text() == "a$ \\x1b[2J" and not ax.title.get_parse_math()
    assert ax.xaxis.label.get_parse_math()
    assert all(tick.get_parse_math() for tick in ax.get_xticklabels())
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_markup_is_text():
    assert escape.markdown("a|b\n# c [x](y) <b>") == r"a\|b\\n# c \[x\](y) \<b\>"
    assert escape.markdown("worst_case of 2, length 0.05") == "worst_case of 2, length 0.05"
    assert escape.html("<b>\"'&") == "&lt;b&gt;&quot;&#x27;&amp;"


def test_progress_goes_on_in_silence_when_nobody_can_read_it():
    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    reporter = TextReporter(Broken())
    reporter._line("a")
    reporter._line("b")
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    TextReporter(ascii_only)._line("√KL \x1b[2J")
    ascii_only.seek(0)
    assert ascii_only.read() == "?KL \\x1b[2J\n"


def test_hostile_results_and_evaluations_are_shown_as_text(tmp_path, monkeypatch, capsys):
    evil = f"../../$x$ =1+1 {HOSTILE}"
    folder = write_results(tmp_path / "r")
    for name, old in (("records", '"experiment": "smollm"'), ("runs", '"commit": "0123abcd"')):
        table = folder / f"{name}.jsonl"
        key = old.partition(":")[0]
        table.write_text(table.read_text().replace(old, f"{key}: {json.dumps(evil)}"))
    fuzz._evaluation(tmp_path / "e.json")
    files.save_json(
        tmp_path / "e.json",
        files.load_json(tmp_path / "e.json") | {"model": evil, "benchmark": evil},
    )
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for command in (
        "show r", "samples r --at end", "table r", "table r --format md", "diff r r",
        "table r --out new/t.md --format md", "report r --out new/r.html",
        "eval table e.json", "eval table e.json --out new/b.html", "figures r --out new/f",
    ):  # fmt: skip
        assert main(command.split()) == 0, command
        said = capsys.readouterr()
        assert "\x1b" not in said.out + said.err and "\u202e" not in said.out + said.err, command
    made = [p for p in sorted(tmp_path.rglob("*")) if p not in before]
    assert all(tmp_path / "new" in (p, *p.parents) for p in made)
    for page in (tmp_path / "new" / "r.html", tmp_path / "new" / "b.html"):
        assert "<img" not in page.read_text() and "\x1b" not in page.read_text()
    assert "<img" not in (tmp_path / "new" / "t.md").read_text().replace("\\<img", "")
