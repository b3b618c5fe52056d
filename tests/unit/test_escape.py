"""Texts from files do no harm where they are shown: terminal, matplotlib, Markdown, HTML."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from overopt.base import escape, pictures
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
