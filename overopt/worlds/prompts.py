"""Prompts from the package, a file or a data set."""

import codecs
import importlib.util
import lzma
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

from overopt.base import files
from overopt.base.errors import DataError
from overopt.nets.sources import ladder_dir

ROLES = ("system", "user", "assistant")
TooLong = Literal["refuse", "drop", "truncate"]


class PromptSet(NamedTuple):
    """Prompts in their order, the line of each (from 1), and what is to be said of the reading."""

    texts: tuple[str, ...]
    lines: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


@lru_cache(maxsize=1)
def load_openings() -> tuple[str, ...]:
    """The shipped story openings, in their fixed random order."""
    return _read_openings("openings.json.xz")


@lru_cache(maxsize=1)
def load_train_openings() -> tuple[str, ...]:
    """More openings, written by the 6m rung, for the train split alone."""
    return _read_openings("openings_train.json.xz")


def _read_openings(name: str) -> tuple[str, ...]:
    file = ladder_dir() / name
    with lzma.open(file) as packed:
        return tuple(files.parse_json(packed.read(), f"{file}:"))


def load_instructions() -> list[str]:
    """The shipped instructions, prompts for models that follow them."""
    return list(read_prompts_file(str(instructions_file())).texts)


def instructions_file() -> Path:
    """Where the shipped instructions are."""
    return Path(str(resources.files("overopt") / "worlds" / "instructions.jsonl"))


def read_prompts(name: str) -> PromptSet:
    """Prompts of a JSONL file, or of ``datasets:NAME[:SPLIT[:COLUMN]]``."""
    if not name.startswith("datasets:"):
        return read_prompts_file(name)
    column = (name.split(":")[3:] or ["prompt"])[0]
    found = []
    for number, row in read_rows(name, "prompts"):
        if column not in row:
            raise DataError(
                f"prompts {name!r}: no column {column!r}, there are {sorted(row)}: name one as "
                "datasets:NAME:SPLIT:COLUMN"
            )
        text = as_prompt(row[column]) if isinstance(row[column], list) else row[column]
        if isinstance(text, str) and text.strip():
            found.append((number, text))
    if not found:
        raise DataError(f"prompts {name!r}: column {column!r} holds no text")
    return distinct(found, f"prompts {name!r}")


def read_rows(name: str, what: str) -> Iterator[tuple[int, Any]]:
    """Number (from 1) and value of each row of a JSONL file, or of ``datasets:NAME[:SPLIT[:…]]``."""
    if not name.startswith("datasets:"):
        yield from read_lines(name, what)
        return
    if importlib.util.find_spec("datasets") is None:
        raise DataError(
            f"{what} {name!r} need the package datasets: pip install 'overopt[datasets]', or give a "
            "JSONL file"
        )
    import datasets

    dataset, split = (*name.split(":")[1:3], "")[:2]
    try:
        table = datasets.load_dataset(dataset, split=split or "train")
    except (OSError, ValueError) as e:
        reason = str(e).strip().splitlines()[0][:200]
        raise DataError(f"{what} {name!r} cannot be loaded ({reason})") from e
    yield from enumerate(table, start=1)


class Dialogue(str):
    """A prompt of several messages: its text as below, and the messages in ``turns``.

    The text, for models without a chat template and for whatever reads plain text, has a line
    ``Role: content`` for each message, blank lines between them, and ends in ``Assistant:``. One message
    of a user is no dialogue but plain text.
    """

    turns: tuple[tuple[str, str], ...]

    def __new__(cls, turns: Sequence[tuple[str, str]]) -> "Dialogue":
        said = [f"{role.capitalize()}: {content}" for role, content in turns]
        made = super().__new__(cls, "\n\n".join([*said, "Assistant:"]))
        made.turns = tuple(turns)
        return made

    def __reduce__(self) -> tuple:
        return (type(self), (self.turns,))


def turns_of(prompt: str) -> list[dict[str, str]]:
    """The messages of a prompt, as chat templates take them; plain text is one of a user."""
    turns = prompt.turns if isinstance(prompt, Dialogue) else (("user", prompt),)
    return [{"role": role, "content": content} for role, content in turns]


def as_prompt(messages: object) -> str:
    """A list of messages, each with ``role`` and ``content``, as a prompt.

    Raises
    ------
    DataError
        It is not such a list, or does not end in a user's message.
    """
    turns: list[tuple[str, str]] = []
    for message in messages if isinstance(messages, list) else [None]:
        role, content = (
            (message.get("role"), message.get("content")) if isinstance(message, dict) else ("", "")
        )
        if isinstance(content, list):  # parts, as models that also see pictures take them
            parts = [part.get("text") if isinstance(part, dict) else part for part in content]
            said = [part for part in parts if isinstance(part, str)]
            content = "".join(said) if len(said) == len(parts) else None
        if role not in ROLES or not isinstance(content, str):
            raise DataError(
                f"{str(message)[:60]!r} is no message: give objects with 'role' (one of"
                f" {', '.join(ROLES)}) and 'content' (text)"
            )
        turns.append((role, content))
    if not turns:
        raise DataError("an empty list of messages is no prompt: give at least the user's")
    if turns[-1][0] != "user" or not turns[-1][1].strip():
        raise DataError(
            f"the last message is {turns[-1][0]}'s: end with what the user says, the response follows it"
        )
    return turns[0][1] if len(turns) == 1 else Dialogue(turns)


def read_lines(path: str, what: str) -> Iterator[tuple[int, Any]]:
    """Line number (from 1) and JSON value of each line of a file that is not blank.

    A byte-order mark, Windows line ends and gzip are taken for what they are.

    Raises
    ------
    DataError
        The file cannot be read, or a line is not UTF-8 or not JSON; names the line.
    """
    try:
        raw = files.read_bytes(Path(path))
    except DataError as e:
        reason = getattr(e.__cause__, "strerror", None) or "is not a regular file"
        raise DataError(f"{what} {path!r} cannot be read: {reason}") from e
    raw = files.gunzip(raw, f"{what} {path!r}")
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{what} {path!r} is UTF-16: save it as UTF-8")
    for number, line in enumerate(raw.removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{what} {path!r}, line {number}"
        try:
            value = files.parse_json(line, where, finite=False)  # what is not: by its field
        except DataError as e:
            if isinstance(e.__cause__, UnicodeDecodeError):
                at = e.__cause__.start
                raise DataError(f"{where}: byte {at} is not valid UTF-8: save it as UTF-8") from e
            raise DataError(
                f"{where}: not valid JSON ({e.__cause__}): one JSON value a line"
            ) from e
        yield number, value


def read_prompts_file(path: str) -> PromptSet:
    """Prompts of a JSONL file, each once: strings, lists of messages, or objects with "prompt".

    Raises
    ------
    DataError
        The file is absent, empty, not UTF-8, or has a malformed line; the message names the line.
    """
    found = []
    for number, item in read_lines(path, "prompts file"):
        where = f"prompts file {path!r}, line {number}"
        value = item
        if isinstance(item, dict):
            value = item.get("prompt", item.get("messages"))
        if isinstance(value, list):
            try:
                value = as_prompt(value)
            except DataError as e:
                raise DataError(f"{where}: {e}") from e
        if not isinstance(value, str) or not value.strip():
            raise DataError(
                f"{where}: no text: give a JSON string, a list of messages, or an object with 'prompt'"
            )
        found.append((number, value))
    if not found:
        raise DataError(f"prompts file {path!r} is empty")
    return distinct(found, f"prompts file {path!r}")


def distinct(found: Sequence[tuple[int, str]], where: str) -> PromptSet:
    """Each prompt once, from (line, prompt): splits must be disjoint."""
    first: dict[str, int] = {}
    repeated = [(n, text) for n, text in found if first.setdefault(text, n) != n]
    notes: tuple[str, ...] = ()
    if repeated:
        number, text = repeated[0]
        notes = (
            f"{where}: {len(repeated)} of {len(found)} lines repeat another and are left out (line"
            f" {number} repeats line {first[text]})",
        )
    return PromptSet(tuple(first), tuple(first.values()), notes)


def without_first(text: str, n: int, places: Sequence[tuple[int, int]]) -> str:
    """A text without its first ``n`` tokens, which lie at ``places``; a character goes at least."""
    at = places[n][0] if n < len(places) else len(text)
    return text[max(at, 1) :].lstrip()


def fitted(
    prompts: PromptSet,
    sizes: Callable[[Sequence[str]], Sequence[int]],
    most: int,
    too_long: TooLong,
    shorten: Callable[[str, int], str],
) -> PromptSet:
    """Prompts without those of more than ``most`` tokens, or with these shortened, as ``too_long`` says.

    Parameters
    ----------
    sizes : tokens of each prompt, whatever is put around it included.
    shorten : ``shorten(prompt, n)``, the prompt without its first ``n`` tokens.
    """
    if too_long == "refuse":
        return prompts
    size = list(sizes(prompts.texts))
    over = [i for i, n in enumerate(size) if n > most]
    if not over:
        return prompts
    note = (
        f"world.too_long={too_long}: {len(over)} of {len(size)} prompts have more than {most} tokens,"
        f" which is what fits beside the response, and are"
        f" {'left out' if too_long == 'drop' else 'cut at their beginning'} (first: line"
        f" {prompts.lines[over[0]]}, {size[over[0]]} tokens)"
    )
    texts = dict(enumerate(prompts.texts))
    for i in over:
        if too_long == "drop":
            del texts[i]
            continue
        while size[i] > most and texts[i]:
            texts[i] = shorten(texts[i], size[i] - most)
            (size[i],) = sizes([texts[i]])
        if not texts[i].strip():
            raise DataError(
                f"line {prompts.lines[i]}: nothing is left of the prompt beside what the chat template"
                f" adds, {most} tokens fit: lower world.max_response_tokens"
            )
    kept = distinct([(prompts.lines[i], text) for i, text in texts.items()], "shortened prompts")
    return kept._replace(notes=(*prompts.notes, note, *kept.notes))
