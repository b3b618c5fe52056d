"""Preferences from people: pairs files in the layouts that are in use, as prompts, responses and pairs.

Told apart by the fields of each row (fields are those of the data sets' cards):

- ``prompt``, ``chosen``, ``rejected``: text or lists of messages (TRL's explicit prompt, RewardBench);
  UltraFeedback binarized repeats the prompt in both lists, RewardBench 2 gives lists of texts.
- ``chosen``, ``rejected`` alone: two dialogues with the same beginning (TRL's implicit prompt); as text
  they are transcripts, split at the last ``\\n\\nAssistant:`` (HH-RLHF).
- ``prompt``, ``answers`` with ``answer`` and ``rank``, 1 the best (Nectar).
- ``prompt`` or ``instruction``, ``completions`` with ``response`` and ``overall_score`` (UltraFeedback).
- ``prompt``, ``response``, ``helpfulness``: rows of one prompt are compared by it (HelpSteer2).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from overopt.base.errors import DataError
from overopt.worlds.prompts import as_prompt, read_rows

_ANSWER = "\n\nAssistant:"
_TURN = re.compile(r"\n\n(Human|Assistant): ?")


class Preferences(NamedTuple):
    """Pairs of responses to prompts.

    Attributes
    ----------
    prompts : each distinct prompt.
    responses, prompt, lines : text of each of R responses, number of its prompt, line of its pair.
    chosen, rejected : of each of C pairs, the preferred and the other response.
    notes : what is to be said of the reading.
    """

    prompts: tuple[str, ...]
    responses: tuple[str, ...]
    prompt: tuple[int, ...]
    lines: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    notes: tuple[str, ...] = ()


class _Rated(NamedTuple):
    """A response with a number that says how good it is."""

    text: str
    rating: float


@dataclass
class _Table:
    """Preferences as they grow; a response that occurs again to the same prompt is one row."""

    prompts: dict[str, int] = field(default_factory=dict)
    responses: dict[tuple[int, str], int] = field(default_factory=dict)
    lines: list[int] = field(default_factory=list)
    pairs: dict[tuple[int, int], int] = field(default_factory=dict)  # -> line
    ties: int = 0
    repeated: int = 0

    def response(self, prompt: str, text: str, line: int) -> int:
        """Row of a response."""
        key = (self.prompts.setdefault(prompt, len(self.prompts)), text)
        if key not in self.responses:
            self.responses[key] = len(self.responses)
            self.lines.append(line)
        return self.responses[key]

    def add(self, prompt: str, better: str, worse: str, line: int) -> None:
        """One pair, unless both are the same or it is there already."""
        if better == worse:
            self.ties += 1
            return
        pair = (self.response(prompt, better, line), self.response(prompt, worse, line))
        if self.pairs.setdefault(pair, line) != line:
            self.repeated += 1

    def compare(self, prompt: str, rated: Sequence[_Rated], line: int) -> None:
        """All pairs of rated responses; those with the same rating are ties."""
        for i, a in enumerate(rated):
            for b in rated[i + 1 :]:
                if a.rating == b.rating:
                    self.ties += 1
                else:
                    better, worse = (a, b) if a.rating > b.rating else (b, a)
                    self.add(prompt, better.text, worse.text, line)


def read_pairs(name: str) -> Preferences:
    """Preferences of a JSONL file, or of ``datasets:NAME[:SPLIT]``, in one of the layouts above.

    Raises
    ------
    DataError
        The file cannot be read, or a row is in no layout that is known; names the line.
    """
    where = f"pairs file {name!r}"
    table, rated = _Table(), dict[str, tuple[int, list[_Rated]]]()
    strangers = 0
    for line, row in read_rows(name, "pairs file"):
        try:
            if not isinstance(row, dict):
                raise DataError("no object: give one with 'prompt', 'chosen' and 'rejected'")
            if "helpfulness" in row and "response" in row:
                prompt = _prompt(row)
                rating = _number(row, "helpfulness")
                one = _Rated(_text(row["response"]), rating)
                rated.setdefault(prompt, (line, []))[1].append(one)
            elif "chosen" in row and "rejected" in row:
                strangers += not _add_pair(table, row, line)
            else:
                several = _ratings(row)  # says what layout there is none of
                table.compare(_prompt(row), several, line)
        except DataError as e:
            raise DataError(f"{where}, line {line}: {e}") from e
    for prompt, (line, of_prompt) in rated.items():
        table.compare(prompt, of_prompt, line)
    if not table.pairs:
        raise DataError(f"{where} holds no pair of different responses")
    left_out = {
        "ties": table.ties,
        "repeated pairs": table.repeated,
        "pairs whose two sides answer different prompts": strangers,
    }
    said = [f"{n} {what}" for what, n in left_out.items() if n]
    notes = (f"{where}: {len(table.pairs)} pairs; left out: {', '.join(said)}",) if said else ()
    return Preferences(
        tuple(table.prompts),
        tuple(text for _, text in table.responses),
        tuple(prompt for prompt, _ in table.responses),
        tuple(table.lines),
        tuple(better for better, _ in table.pairs),
        tuple(worse for _, worse in table.pairs),
        notes,
    )


def _add_pair(table: _Table, row: Mapping[str, Any], line: int) -> bool:
    """Add the pairs of a row with ``chosen`` and ``rejected``; False: they answer different prompts."""
    chosen, rejected = row["chosen"], row["rejected"]
    tied = row.get("score_chosen") is not None and row["score_chosen"] == row.get("score_rejected")
    if tied:
        table.ties += 1
        return True
    if "prompt" in row:
        prompt = _prompt(row)
        for better in _answers(chosen, row["prompt"]):
            for worse in _answers(rejected, row["prompt"]):
                table.add(prompt, better, worse, line)
        return True
    if isinstance(chosen, str) and isinstance(rejected, str):
        if _ANSWER not in chosen or _ANSWER not in rejected:
            table.add(*_common_beginning(chosen, rejected), line)
            return True
        (prompt, better), (other, worse) = map(_transcript, (chosen, rejected))
    else:
        (prompt, better), (other, worse) = map(_dialogue, (chosen, rejected))
    if prompt != other:
        return False
    table.add(prompt, better, worse, line)
    return True


def _answers(value: object, prompt: object) -> list[str]:
    """Responses of a row with a prompt: text, texts, or messages that may repeat the prompt."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
        return list(value)
    said, answer = _dialogue(value, may_start=True)
    if said and said != (as_prompt(prompt) if isinstance(prompt, list) else prompt):
        raise DataError("the messages in front of the response are not those of 'prompt'")
    return [answer]


def _dialogue(value: object, *, may_start: bool = False) -> tuple[str, str]:
    """Prompt and response of a list of messages; ``may_start``: it may be the response alone."""
    last = value[-1] if isinstance(value, list) and value else None
    if not isinstance(last, dict) or last.get("role") != "assistant":
        raise DataError(
            "'chosen' and 'rejected' must be text or messages that end in an assistant's"
        )
    assert isinstance(value, list)
    if len(value) == 1 and may_start:
        return "", _text(last.get("content"))
    return as_prompt(value[:-1]), _text(last.get("content"))


def _transcript(text: str) -> tuple[str, str]:
    """Prompt and response of a transcript, whose last turn is the assistant's."""
    front, _, answer = text.rpartition(_ANSWER)
    return _transcript_prompt(front), answer.strip()


def _common_beginning(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Prompt, chosen and rejected response of two texts: whole words at their beginning are shared."""
    both = enumerate(zip(chosen, rejected, strict=False))
    n = next((i for i, (a, b) in both if a != b), min(len(chosen), len(rejected)))
    seam = max(chosen.rfind(" ", 0, n), chosen.rfind("\n", 0, n))
    if not chosen[: max(seam, 0)].strip():
        raise DataError(
            "has no 'prompt', and 'chosen' and 'rejected' begin differently: add the prompt"
        )
    return chosen[:seam], chosen[seam:], rejected[seam:]


def _transcript_prompt(text: str) -> str:
    """The prompt of a transcript ``\\n\\nHuman: …\\n\\nAssistant: …`` up to its last response."""
    parts = _TURN.split("\n\n" + text.strip())
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [
        {"role": roles[who], "content": said.strip()}
        for who, said in zip(parts[1::2], parts[2::2], strict=True)
        if said.strip()
    ]
    return as_prompt(turns) if turns else text.strip()


def _ratings(row: Mapping[str, Any]) -> list[_Rated]:
    """Rated responses of one row: ranks (Nectar) or scores (UltraFeedback)."""
    if isinstance(row.get("answers"), list):
        entries, text, number, sign = row["answers"], "answer", "rank", -1.0
    elif isinstance(row.get("completions"), list):
        entries, text, number, sign = row["completions"], "response", "overall_score", 1.0
    else:
        raise DataError(
            f"fields {', '.join(sorted(row))[:80]}: no layout that is known; give 'prompt', 'chosen' and"
            " 'rejected'"
        )
    return [_Rated(_text(e.get(text)), sign * _number(e, number)) for e in _objects(entries)]


def _objects(entries: Iterable[Any]) -> list[Mapping[str, Any]]:
    found = list(entries)
    if not all(isinstance(entry, dict) for entry in found):
        raise DataError("'answers' and 'completions' must be lists of objects")
    return found


def _prompt(row: Mapping[str, Any]) -> str:
    value = row.get("prompt", row.get("instruction"))
    if isinstance(value, list):
        return as_prompt(value)
    text = _text(value, "'prompt'")
    if text.startswith("\n\nHuman:"):  # Nectar keeps the transcript's marks
        return _transcript_prompt(text.removesuffix("Assistant:").rstrip())
    return text


def _text(value: object, name: str = "a response") -> str:
    if not isinstance(value, str) or (name == "'prompt'" and not value.strip()):
        raise DataError(f"{name} is {str(value)[:40]!r}, which is no text")
    return value


def _number(row: Mapping[str, Any], name: str) -> float:
    value = row.get(name)
    try:
        if value is None or isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError) as e:
        raise DataError(f"{name!r} is {str(value)[:40]!r}, which is no number") from e
