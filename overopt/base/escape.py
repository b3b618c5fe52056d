"""Text that came from elsewhere (files, names, settings), made harmless where it is shown.

A terminal obeys control characters, matplotlib takes ``$`` for mathematics, Markdown and HTML have
markup. Whoever puts such text there passes it through the function of that place.
"""

from __future__ import annotations

import hashlib
import html as _html
import re
import unicodedata

_KEPT = "\n\t"
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_CONTROL = ("Cc", "Cs", "Zl", "Zp")
_MARKDOWN = "\\`*[]<>|"


def terminal(text: str) -> str:
    r"""``text`` without control characters, which become ``\x1b`` and the like; lines stay lines.

    What turns the direction of text, separates lines or is a lone surrogate (of a file name that is
    not UTF-8) counts as a control character.
    """
    return "".join(
        _code(c) if c in _TURNING or (c not in _KEPT and unicodedata.category(c) in _CONTROL) else c
        for c in text
    )


def line(text: str) -> str:
    r"""`terminal`, in one line: line breaks and tabs become ``\n`` and ``\t``."""
    return terminal(text.replace("\n", "\\n").replace("\t", "\\t"))


def figure(text: str) -> str:
    r"""``text`` as matplotlib should draw it: no mathematics, no control characters, one line."""
    return line(text).replace("$", r"\$")


def markdown(text: str) -> str:
    """``text`` as it should be read in Markdown, in a table too: no markup, one line."""
    return "".join(f"\\{c}" if c in _MARKDOWN else c for c in line(text))


def html(text: str) -> str:
    """``text`` as it should be read in HTML, in attributes too."""
    return _html.escape(line(text), quote=True)


def file_name(text: str) -> str:
    """``text`` as a part of a path: letters, digits and ``_.=,+-``, no dot in front, 120 bytes at most.

    A longer one is cut, and ends in a part of its SHA-256.
    """
    name = re.sub(r"[^\w.=,+-]+", "_", text).lstrip(".") or "_"
    if len(name.encode()) > 120:
        short = name.encode()[:100].decode(errors="ignore")
        name = f"{short}_{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:8]}"
    return name


def _code(c: str) -> str:
    code = ord(c)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
