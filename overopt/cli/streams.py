"""The two streams of a command: what it was asked to print, and what it says while it works.

Standard output carries the result of a command, so output that is lost is an error, unless it is a
pipe whose reader went away (``overopt plan desk | head``). Standard error carries progress and
messages: what cannot be written there is dropped, and the work goes on. Neither stops a command
because a character has no place in its encoding: such a character is replaced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any

from overopt.base import escape

OUTPUT_LOST = 1
"""Exit status where the work is done and its output is not written."""


class Output:
    """Standard output: never raises, remembers whether something was lost.

    Control characters in what is printed, which can only come from files, are shown as text.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.lost: str | None = None

    @property
    def encoding(self) -> str:
        """Of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write, or take note that it was lost."""
        if self._stream is None:
            self.lost = self.lost or ("it is closed" if text else None)
            return len(text)
        with self._noting():
            self._stream.write(_encodable(escape.terminal(text), self.encoding))
        return len(text)

    def flush(self) -> None:
        """Hand over what was written."""
        if self._stream is not None:
            with self._noting():
                self._stream.flush()

    def isatty(self) -> bool:
        """Whether someone looks at it."""
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        """Of the stream."""
        return self._stream.fileno()

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self._drop()
        except (OSError, ValueError) as error:  # ValueError: somebody closed it
            self.lost = self.lost or getattr(error, "strerror", None) or str(error)
            self._drop()

    def _drop(self) -> None:
        """Send what is still in the buffer, and all that follows, nowhere."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            _redirect(self._stream.fileno())


class Messages:
    """Standard error: never raises; what cannot be written is dropped."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:
        """Of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write if possible."""
        with self._dropping():
            self._stream.write(_encodable(text, self.encoding))
        return len(text)

    def flush(self) -> None:
        """Hand over what was written, if possible."""
        with self._dropping():
            self._stream.flush()

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, AttributeError):  # AttributeError: there is no stream
            # What is left in its buffer would otherwise end the interpreter with an error.
            with contextlib.suppress(OSError, ValueError, AttributeError):
                _redirect(self._stream.fileno())

    def isatty(self) -> bool:
        """Whether someone looks at it."""
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        """Of the stream."""
        if self._stream is None:
            raise OSError(errno.EBADF, "standard error is closed")
        return self._stream.fileno()


@contextlib.contextmanager
def guarded() -> Iterator[Output]:
    """`Output` and `Messages` in the places of the two streams."""
    # A file that is opened later must not get the number of a closed stream: what some library
    # writes to number 2 would end up in it.
    while _is_closed(0) or _is_closed(1) or _is_closed(2):
        os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    before = sys.stdout, sys.stderr
    output = Output(sys.stdout)
    sys.stdout, sys.stderr = output, Messages(sys.stderr)
    try:
        yield output
    finally:
        output.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def mention(text: str) -> None:
    """Print a line that nobody asked for (where the result is a file): lost, it is no error."""
    lost = getattr(sys.stdout, "lost", None)
    print(text, flush=True)
    if isinstance(sys.stdout, Output):
        sys.stdout.lost = lost


def _encodable(text: str, encoding: str) -> str:
    return text.encode(encoding, "replace").decode(encoding, "replace")


def _is_closed(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return True
    return False


def _redirect(fd: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, fd)
    os.close(nowhere)
