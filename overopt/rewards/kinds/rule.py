"""A rule that checks a response, with no model in it: a verifiable reward.

What a rule does not check, a policy need not do. A lenient rule that looks for the right answer among
those given rewards the listing of answers; one that looks for an answer at all rewards any.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from overopt.base import files
from overopt.base.config import check_types, require
from overopt.base.errors import DataError, StoreError
from overopt.base.lazy import lazy
from overopt.base.userfile import by_checksum, checksum_of, load_module
from overopt.rewards.kind import Job, Place, RewardSettings, Standardised, Trained
from overopt.worlds.world import World

if TYPE_CHECKING:
    from types import ModuleType

    import torch
    from torch import Tensor

    from overopt.base.datatypes import Responses
else:
    torch = lazy("torch")

Rule = Literal["strict", "strict_and_valid", "lenient", "format"]


@dataclass(frozen=True, kw_only=True)
class Settings(RewardSettings):
    """A rule that checks responses: the world's judge, or a function of the user's.

    Attributes
    ----------
    rule : "strict", "strict_and_valid", "lenient" or "format"
        1 for exactly one answer, which is right; the same, by right steps; the right answer among
        those given; any answer. 0 otherwise.
    checker : str
        Path of a Python file with ``check(prompt, response)``, which gives a finite number for the
        texts of a prompt and a response. It takes the place of ``rule``, in any world.
    """

    rule: Rule = "strict"
    checker: str = ""

    def __post_init__(self) -> None:
        check_types(self)
        require(
            self.checker == "" or self.rule == "strict",
            "rule",
            self.rule,
            f"has no effect: checker = {self.checker!r} takes its place; leave it out",
        )
        if self.checker:
            load_checker(self.checker)

    @property
    def needs_judge(self) -> bool:
        """A rule does, a checker of the user's does not."""
        return self.checker == ""

    @property
    def files(self) -> tuple[Path, ...]:
        """The user's checker."""
        return (Path(self.checker),) if self.checker else ()

    @property
    def title(self) -> str:
        """The rule, or the file."""
        return f"rule {Path(self.checker).stem if self.checker else self.rule}"

    def cost_s(self, n_pairs: int) -> float:
        """Estimated CPU seconds: nothing is trained."""
        return 2.0


def load_checker(path: str) -> ModuleType:
    """The user's file, which defines ``check(prompt, response)``."""
    return load_module(Path(path), needs=("check",), where=f"checker = {path!r}")


def train(settings: Settings, job: Job) -> Trained:
    """The rule; nothing is trained."""
    checker = load_checker(settings.checker) if settings.checker else None
    return Trained(RuleScorer(settings.rule, job.world, checker))


@dataclass(frozen=True)
class RuleScorer(Standardised):
    """A rule with the mean and std of what it gives under the initial policy.

    world : judges, or gives texts to ``checker``, the user's file.
    """

    rule: Rule
    world: World
    checker: ModuleType | None = None
    mean: float = 0.0
    std: float = 1.0

    def raw(self, responses: Responses) -> Tensor:
        """What the rule gives (R,) float32.

        Raises
        ------
        DataError
            The user's checker gave something else than a finite number.
        """
        if self.checker is not None:
            return torch.tensor(checked(self.checker, self.world, responses))
        values = {
            "strict": lambda v: v.right,
            "strict_and_valid": lambda v: v.right and v.valid,
            "lenient": lambda v: v.listed,
            "format": lambda v: v.formatted,
        }
        value = values[self.rule]
        return torch.tensor([float(value(v)) for v in self.world.verdicts(responses)])

    def save(self, folder: Path, info: dict[str, Any]) -> None:
        """The rule and its unit; of a user's file the checksum, never the code."""
        checksum = checksum_of(self.checker) if self.checker is not None else ""
        here = {"kind": "rule", "rule": self.rule, "checker": checksum}
        info = info | here | {"mean": self.mean, "std": self.std}
        files.save_json(folder / "scorer.json", info)


def checked(checker: ModuleType, world: World, responses: Responses) -> list[float]:
    """What the user's ``check`` gives for each response."""
    texts = zip(world.prompt_texts(responses), world.response_texts(responses), strict=True)
    found = []
    for prompt, response in texts:
        value = checker.check(prompt, response)
        if not isinstance(value, bool | int | float) or not math.isfinite(value):
            raise DataError(
                f"{checker.__file__}: check gave {value!r} for {response[:60]!r}: it must return a"
                " finite number"
            )
        found.append(float(value))
    return found


def load(folder: Path, info: dict[str, Any], place: Place) -> RuleScorer:
    """What `RuleScorer.save` wrote.

    Raises
    ------
    StoreError
        It checks by a user's file, and the settings of this process name no file with its content.
    """
    checker = by_checksum(info["checker"]) if info["checker"] else None
    if info["checker"] and checker is None:
        raise StoreError(
            f"{folder / 'scorer.json'}: checks by a file of the user's (SHA-256"
            f" {info['checker'][:16]}…), which runs only where the settings name it: give"
            " proxy.checker or gold.checker, or use another --store"
        )
    return RuleScorer(info["rule"], place.world, checker, info["mean"], info["std"])
