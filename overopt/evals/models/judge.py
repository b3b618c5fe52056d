r"""A language model that is asked for its judgement, through a template of the user's.

What a template asks for, its placeholders say:

    {prompt} {answer_a} {answer_b} ...   which is the best: it says [[A]], [[B]] and so on
    {prompt} {response}                  a rating from 1 to 10, the last thing that it says
    {problem} {tagged_response}          the first wrong paragraph, in \boxed{}

Words and parsing are those of allenai/reward-bench (commit 05a9005, rewardbench/generative_v2.py) and
QwenLM/ProcessBench (e802463, code/run_eval.py). Where the right response stands is drawn from a seed
for each question. In place of its words, ``read=logits`` takes the log-probabilities of the letters, or
of the digits, right behind the template: one forward pass, and always a verdict.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from overopt.base import files
from overopt.base.config import check_types, require
from overopt.base.errors import ConfigError, DataError
from overopt.base.lazy import lazy
from overopt.base.seeding import derive_seed, numpy_rng
from overopt.evals.model import Answers, Model, ModelSettings, flat, grouped
from overopt.evals.models.policy import check_rows
from overopt.evals.question import Outcome, Question

if TYPE_CHECKING:
    import torch

    from overopt.base import datatypes
    from overopt.nets import checkpoints, sampling
    from overopt.worlds import codecs, rows
    from overopt.worlds.codecs import TextCodec
else:
    torch, datatypes = lazy("torch"), lazy("overopt.base.datatypes")
    checkpoints, sampling = lazy("overopt.nets.checkpoints"), lazy("overopt.nets.sampling")
    codecs, rows = lazy("overopt.worlds.codecs"), lazy("overopt.worlds.rows")

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_RATINGS = [str(i) for i in range(1, 10)]
_GREEDY = 1e-3  # a temperature at which sampling takes the likeliest token


@dataclass(frozen=True, kw_only=True)
class Settings(ModelSettings):
    """A judge.

    Attributes
    ----------
    template : str
        File with the template.
    read : "words" or "logits"
        What it writes, or the log-probabilities of its verdicts right behind the template.
    max_new_tokens : int
        Longest judgement.
    temperature : float
        Of its words; 0: the likeliest token each time.
    order_seed : int
        Decides where in the template the right response stands.
    """

    template: str = ""
    read: Literal["words", "logits"] = "words"
    max_new_tokens: int = 256
    temperature: float = 0.0
    order_seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        require(self.max_new_tokens >= 1, "model.max_new_tokens", self.max_new_tokens, "at least 1")
        require(self.temperature >= 0, "model.temperature", self.temperature, "must be at least 0")


def read_template(settings: Settings) -> tuple[str, str]:
    """The template, and what it asks for: "choice", "rating" or "step".

    Raises
    ------
    ConfigError
        There is none, or its placeholders fit no question.
    """
    require(
        settings.template != "", "model.template", settings.template, "give the template's file"
    )
    try:
        text = files.read_bytes(Path(settings.template)).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{settings.template}: is not UTF-8 ({error}); save it as UTF-8") from error
    found = set(re.findall(r"\{(\w+)\}", text))
    asks = {
        "choice": {"prompt", "answer_a", "answer_b"},
        "rating": {"prompt", "response"},
        "step": {"problem", "tagged_response"},
    }
    for kind, needed in asks.items():
        if needed <= found:
            return text, kind
    raise ConfigError(
        f"model.template = {settings.template!r}: has the placeholders {sorted(found)}: needs {{prompt}}"
        " with {answer_a} and {answer_b}, or with {response}, or {problem} with {tagged_response}"
    )


def load(settings: Settings, device: str) -> Model:
    """The judge on the device."""
    template, asks = read_template(settings)
    if asks == "step" and settings.read == "logits":
        raise ConfigError("model.read = 'logits': a step has no letter: use model.read=words")
    policy, codec = checkpoints.load_lm(settings.source), codecs.load_codec(settings.source)
    return Judge(settings, template, asks, policy.to(device), codec)


@dataclass(frozen=True)
class Judge(Model):
    """A judge ready to be asked; ``asks``: for a "choice", a "rating" or a "step"."""

    settings: Settings
    template: str
    asks: str
    policy: Any
    codec: TextCodec

    @property
    def sizes(self) -> dict[str, int]:
        """Parameters of the language model."""
        return checkpoints.n_params(self.policy)

    def answer(self, questions: Sequence[Question]) -> Answers:
        """A rating of each response, or a choice among those of each question.

        Raises
        ------
        ConfigError
            The template asks for steps, or has another number of answers than a question.
        """
        if self.asks == "step":
            raise ConfigError(
                "model.template asks for a wrong step, and this benchmark for better and worse: use"
                " {answer_a} and {answer_b}, or {response}"
            )
        if self.asks == "rating":
            said, n_tokens = self._verdicts(
                flat(questions, lambda q, r: fill(self.template, prompt=q.prompt, response=r)),
                _RATINGS,
            )
            ratings = grouped([_number(text, parse_rating) for text in said], questions)
            return Answers(Outcome(scores=ratings, is_judge=True), n_tokens)
        return self._choices(questions)

    def _choices(self, questions: Sequence[Question]) -> Answers:
        places = len(set(re.findall(r"\{answer_([a-z])\}", self.template)))
        asked, orders = [], []
        for i, q in enumerate(questions):
            if len(q.responses) != places:
                raise ConfigError(
                    f"model.template has {places} answers, question {i} has {len(q.responses)}: use a"
                    " template with {response}, which rates them one by one"
                )
            # As published: the right one changes places with one of all, itself among them.
            order = list(range(places))
            other = int(numpy_rng(self.settings.order_seed, "order", i).integers(places))
            order[0], order[other] = order[other], order[0]
            orders.append(order)
            answers = {f"answer_{LETTERS[k].lower()}": q.responses[r] for k, r in enumerate(order)}
            asked.append(fill(self.template, prompt=q.prompt, **answers))
        said, n_tokens = self._verdicts(asked, list(LETTERS[:places]))
        chosen = [_number(text, lambda t: parse_letter(t, places)) for text in said]
        found = [order[k] if k >= 0 else -1 for order, k in zip(orders, chosen, strict=True)]
        return Answers(Outcome(choices=found, places=chosen), n_tokens)

    def first_errors(self, questions: Sequence[Question], threshold: float) -> Answers:
        """The paragraph that it names, -2 where it names none; by ratings where it rates."""
        if self.asks != "step":
            return super().first_errors(questions, threshold)
        asked = [
            fill(self.template, problem=q.prompt, tagged_response=tagged(q.steps[0]))
            for q in questions
        ]
        said, n_tokens = self._verdicts(asked, [])
        return Answers(Outcome(first_errors=[parse_boxed(str(text)) for text in said]), n_tokens)

    def _verdicts(self, asked: list[str], verdicts: list[str]) -> tuple[list[str | int], int]:
        """What it says to each text, or the number of the likeliest of ``verdicts``; and tokens."""
        prompts = self.codec.encode_prompts(asked)
        if self.settings.read == "logits":
            return self._likeliest(prompts, verdicts), sum(map(len, prompts))
        check_rows([(p, [0] * self.settings.max_new_tokens) for p in prompts], self.settings.source)
        responses = sampling.sample(
            self.policy,
            rows.as_prompts(prompts, pad=self.codec.pad, start=0),
            n_tokens=self.settings.max_new_tokens,
            seed=derive_seed(self.settings.order_seed, "judge"),
            temperature=self.settings.temperature or _GREEDY,
        )
        said = self.codec.decode(codecs.real(responses.ids, responses.mask))
        return list(said), sum(map(len, prompts)) + int(responses.length.sum())

    def _likeliest(self, prompts: list[list[int]], verdicts: list[str]) -> list[str | int]:
        ids = codecs.encode_pieces(self.codec.tokenizer, [[codecs.Piece(v)] for v in verdicts])
        if any(len(row) != 1 for row in ids):
            raise ConfigError(
                f"model.read = 'logits': {self.settings.source!r} has no single token for each of"
                f" {', '.join(verdicts)}: use model.read=words"
            )
        wanted = torch.tensor([row[0] for row in ids])
        check_rows([(p, []) for p in prompts], self.settings.source)
        table, mask = rows.padded(prompts, self.codec.pad, left=False)
        length = mask.sum(1)
        out: list[str | int] = [0] * len(prompts)
        with torch.no_grad():
            for at in datatypes.length_sorted(length, 4096):
                some = table[at, : int(length[at].max())].to(self.policy.device)
                hidden = self.policy.at_last_token(some, length[at].to(self.policy.device))
                best = self.policy.logits(hidden)[:, wanted].argmax(1)
                for i, k in zip(at.tolist(), best.tolist(), strict=True):
                    out[i] = k
        return out


def fill(template: str, **values: str) -> str:
    """``template`` with its placeholders filled; other braces stay, and texts may hold any."""
    return re.sub(r"\{(\w+)\}", lambda m: values.get(m[1], m[0]), template)


def tagged(steps: Sequence[str]) -> str:
    """Steps as paragraphs with numbered tags, as ProcessBench gives them to a critic."""
    return "\n\n".join(f"<paragraph_{i}>\n{s}\n</paragraph_{i}>" for i, s in enumerate(steps))


def _number(said: str | int, parse: Any) -> int:
    """A verdict that was read from logits as it is (a rating counts from 1), words parsed."""
    if isinstance(said, str):
        return parse(said)
    return said + 1 if parse is parse_rating else said


def parse_letter(said: str, n: int) -> int:
    """The place of the first letter, in alphabetical order, that stands as [[A]]; -1 for none."""
    return next((i for i in range(n) if f"[[{LETTERS[i]}]]" in said), -1)


def parse_rating(said: str) -> int:
    """A whole number from 1 to 10 at the very end, or -1."""
    match = re.search(r"\b([1-9]|10)\b\s*$", said.strip())
    return int(match[1]) if match else -1


def parse_boxed(said: str) -> int:
    r"""The whole number in the last ``\boxed{}``, or -2."""
    found = re.findall(r"\\boxed\{([^}]*)\}", said)
    try:
        value = int(found[-1].strip())
    except (IndexError, ValueError):
        return -2
    return value if value >= -1 else -2
