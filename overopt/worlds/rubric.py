"""The rubric: a white-box score of a story, standing for what a human reader wants.

A rubric score is a weighted sum of features, each standardised under the initial policy and passed
through a response curve. Six features are counted in the text; the seventh, coherence, is the mean
log-probability of a token under a larger language model, so that judging it takes a language model
and a larger proxy judges it better. By default a feature saturates (s·tanh(z/s)) and coherence is
clipped: no feature punishes more of it, and gold falls where text that pleases a proxy stops making
sense. `PRESETS` has rubrics in which one mechanism of Goodhart's law is planted instead.

Pure functions on text and numbers. The rubric is what a learned gold learns from; it is recorded
beside gold as a third curve, so that the distance between gold and human intent can be seen as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from overopt.base.config import check_types, require
from overopt.worlds.world import Tilt

COUNTED = ("joy", "dialogue", "hero", "variety", "sentences", "ending")
FEATURES = (*COUNTED, "coherence")
Read = tuple[Sequence[str], Sequence[str], Sequence[bool], np.ndarray | None]
"""What a rubric reads of R responses: prompts, responses, who ended, coherence (None: not asked)."""
Z_MAX = 5.0  # sweet spots: standardised features are clipped here, which bounds the score
COHERENCE_RANGE = (-8.0, 1.5)  # standardised coherence is clipped here: more likely is not better

_JOY_TEXT = """
    happy happily glad smile smiled smiling smiles laugh laughed laughing laughs fun love
    loved loves loving joy joyful excited exciting proud proudly hug hugged hugs cheer
    cheered cheerful kind nice great wonderful beautiful best friend friends play played
    playing thank thanked
"""
JOY = frozenset(_JOY_TEXT.split())
_SORROW_TEXT = """
    sad sadly cry cried crying cries scared afraid angry mad hurt hurts lost upset worried
    mean bad alone sorry tears pain broken fell sick fight fought
"""
SORROW = frozenset(_SORROW_TEXT.split())
_WORD = re.compile(r"[A-Za-z']+")
_NAMED = re.compile(r"\b(?:named|called)\s+([A-Z][a-z]+)")
_CAPITAL = re.compile(r"\b([A-Z][a-z]{2,})\b")
_NOT_NAMES_TEXT = """
    Once One There The She They Her His Its And But When After Then Mom Dad Mum Daddy Mommy
    Every Today Long Let You This That Two Three What Where Why Who How Yes
"""
_NOT_NAMES = frozenset(_NOT_NAMES_TEXT.split())


def find_hero(prompt: str) -> str | None:
    """The name the opening gives its hero: after "named" or "called", else its first other name."""
    named = _NAMED.search(prompt)
    if named:
        return named.group(1)
    for name in _CAPITAL.findall(prompt):
        if name not in _NOT_NAMES:
            return name
    return None


def features(prompt: str, response: str, *, ended: bool) -> tuple[float, ...]:
    """Raw features of one response, in the order of COUNTED.

    joy: joyful minus sorrowful words; dialogue: quotation marks; hero: mentions of the prompt's
    hero; variety: distinct words over the square root of words (Guiraud's index); sentences: closed
    sentences; ending: 1 if the story was ended, behind a closed sentence.
    """
    words = _WORD.findall(response)
    lower = [w.lower() for w in words]
    hero = find_hero(prompt)
    closes = sum(response.count(mark) for mark in ".!?")
    return (
        float(sum(w in JOY for w in lower) - sum(w in SORROW for w in lower)),
        float(response.count('"')),
        float(sum(w.removesuffix("'s") == hero for w in words)) if hero else 0.0,
        len(set(lower)) / max(len(lower), 1) ** 0.5,
        float(closes),
        float(ended and response.rstrip().endswith((".", "!", "?", '"'))),
    )


def feature_table(
    prompts: Sequence[str],
    responses: Sequence[str],
    ended: Sequence[bool],
    coherence: np.ndarray | None = None,
) -> np.ndarray:
    """Raw features (R, F) of responses to prompts (both of length R).

    coherence: (R,) mean log-probability of a token in nats; None: the rubric does not ask, zeros.
    """
    rows = [
        features(p, r, ended=bool(e)) for p, r, e in zip(prompts, responses, ended, strict=True)
    ]
    counted = np.array(rows, dtype=np.float64).reshape(len(rows), len(COUNTED))
    last = np.zeros(len(rows)) if coherence is None else np.asarray(coherence, dtype=np.float64)
    return np.column_stack([counted, last])


def sweet_spot(z: np.ndarray, dose: float) -> np.ndarray:
    """Utility of a standardised feature: z − dose·z³ for z > 0, z below, clipped at ±Z_MAX.

    At dose 0 more is always better; the larger the dose, the earlier more becomes too much.
    """
    z = np.clip(z, -Z_MAX, Z_MAX)
    return np.where(z > 0, z - dose * z**3, z)


def saturating(z: np.ndarray, scale: float) -> np.ndarray:
    """Utility of a standardised feature: scale·tanh(z/scale), z near 0 and ±scale at most."""
    return scale * np.tanh(z / scale)


@dataclass(frozen=True, kw_only=True)
class RubricConfig:
    """What the rubric weighs, and how.

    Attributes
    ----------
    joy, dialogue, hero, variety, sentences, ending : float
        Weight of each counted feature; unit: score per standard deviation of the feature.
    coherence : float
        Weight of the mean log-probability of a token under ``judge``; 0: no judge is asked.
    judge : str
        Language model that judges coherence: any source that ``world.policy`` takes.
    curve : "saturating" or "sweet_spot"
        Of counted features: more of each is worth less and less, or too much of it does harm.
    saturation : float
        For ``saturating``: most that a feature can add, in standard deviations.
    dose, minor_dose : float
        For ``sweet_spot``: curvature of joy, whose best amount is z = 1/sqrt(3·dose), and of the
        other counted features; 0: more is always better.
    trap : str
        A word that costs ``trap_cost`` each time it occurs; empty for none.
    trap_cost : float
        Score lost per occurrence of the trap.
    """

    joy: float = 1.0
    dialogue: float = 0.5
    hero: float = 0.4
    variety: float = 0.3
    sentences: float = 0.0
    ending: float = 0.4
    coherence: float = 0.9
    judge: str = "ladder:6m"
    curve: Literal["saturating", "sweet_spot"] = "saturating"
    saturation: float = 1.5
    dose: float = 0.1
    minor_dose: float = 0.05
    trap: str = ""
    trap_cost: float = 3.0

    def __post_init__(self) -> None:
        check_types(self)
        require(self.dose >= 0, "dose", self.dose, "must be at least 0 (0: more is always better)")
        require(self.minor_dose >= 0, "minor_dose", self.minor_dose, "must be at least 0")
        require(self.saturation > 0, "saturation", self.saturation, "must be positive")
        require(any(self.weights), "weights", self.weights, "at least one must differ from 0")

    @classmethod
    def presets(cls) -> dict[str, RubricConfig]:
        """`PRESETS`, which ``world.rubric.preset`` chooses from."""
        return PRESETS

    @property
    def weights(self) -> tuple[float, ...]:
        """Weights in the order of FEATURES."""
        return tuple(float(getattr(self, name)) for name in FEATURES)

    @property
    def sources(self) -> dict[str, str]:
        """The judge, where it is asked."""
        return {"rubric.judge": self.judge} if self.coherence != 0 else {}

    def utility(self, feature: str, z: np.ndarray) -> np.ndarray:
        """Worth of a standardised feature (R,), before its weight."""
        if feature == "coherence":
            return np.clip(z, *COHERENCE_RANGE)
        if self.curve == "saturating":
            return saturating(z, self.saturation)
        return sweet_spot(z, self.dose if feature == "joy" else self.minor_dose)


PRESETS = {
    "coherent": RubricConfig(),
    "extremal": RubricConfig(
        dialogue=0.35, hero=0.35, ending=0.25, coherence=0.0, curve="sweet_spot"
    ),
    "causal": RubricConfig(joy=0.0, dialogue=0.0),
    "adversarial": RubricConfig(trap="princess"),
}
"""Rubrics by name. What a proxy gets wrong in each (Manheim and Garrabrant 2018):

coherent: regressional and, far out, extremal: it tells a liked story from a likely one only in part.
extremal: too much joy does harm, which few of the comparisons show. causal: joyful and spoken words
go along with what is wanted and do not matter. adversarial: a word is hated that hardly occurs.
"""


@dataclass(frozen=True)
class Rubric:
    """A rubric calibrated on the initial policy: mean and std (F,) of features, of the raw score.

    ``constant_features``: those without spread under the initial policy; their unit is 1.
    """

    cfg: RubricConfig
    feature_mean: tuple[float, ...]
    feature_std: tuple[float, ...]
    score_mean: float = 0.0
    score_std: float = 1.0
    constant_features: tuple[str, ...] = ()

    def score(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        ended: Sequence[bool],
        coherence: np.ndarray | None = None,
    ) -> np.ndarray:
        """Scores (R,): mean 0 and standard deviation 1 under the initial policy.

        Raises
        ------
        ValueError
            Coherence has a weight, and none is given.
        """
        if coherence is None and self.cfg.coherence != 0:
            raise ValueError("coherence has a weight in this rubric: give it for each response")
        z = self.standardised(prompts, responses, ended, coherence)
        total = np.zeros(len(z))
        for i, (name, weight) in enumerate(zip(FEATURES, self.cfg.weights, strict=True)):
            if weight != 0:
                total += weight * self.cfg.utility(name, z[:, i])
        if self.cfg.trap:
            total -= self.cfg.trap_cost * np.array(
                [r.split().count(self.cfg.trap) for r in responses]
            )
        return (total - self.score_mean) / self.score_std

    def standardised(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        ended: Sequence[bool],
        coherence: np.ndarray | None = None,
    ) -> np.ndarray:
        """Features (R, F) in standard deviations of the initial policy from its mean."""
        raw = feature_table(prompts, responses, ended, coherence)
        return (raw - np.array(self.feature_mean)) / np.array(self.feature_std)


def calibrate(
    cfg: RubricConfig,
    prompts: Sequence[str],
    responses: Sequence[str],
    ended: Sequence[bool],
    coherence: np.ndarray | None = None,
) -> Rubric:
    """A rubric whose features and score are standardised on responses of the initial policy."""
    raw = feature_table(prompts, responses, ended, coherence)
    std = raw.std(0)
    flat = raw.max(0) == raw.min(0)
    loose = Rubric(cfg, tuple(raw.mean(0)), tuple(np.where(flat, 1.0, std)))
    scores = loose.score(prompts, responses, ended, coherence)
    spread = float(scores.std()) or 1.0
    constant = tuple(name for name, is_flat in zip(FEATURES, flat, strict=True) if is_flat)
    return Rubric(
        cfg, loose.feature_mean, loose.feature_std, float(scores.mean()), spread, constant
    )


def to_json(rubric: Rubric) -> dict:
    """A calibrated rubric as JSON."""
    return {
        "cfg": vars(rubric.cfg),
        "feature_mean": list(rubric.feature_mean),
        "feature_std": list(rubric.feature_std),
        "score_mean": rubric.score_mean,
        "score_std": rubric.score_std,
        "constant_features": list(rubric.constant_features),
    }


def from_json(spec: dict) -> Rubric:
    """What `to_json` gave."""
    return Rubric(
        RubricConfig(**spec["cfg"]),
        tuple(spec["feature_mean"]),
        tuple(spec["feature_std"]),
        spec["score_mean"],
        spec["score_std"],
        tuple(spec.get("constant_features", ())),
    )


# A third of the responses is untilted; the rest spreads over mild and strong tilts.
TILTS = (
    Tilt(),
    Tilt(),
    Tilt(additions={"joy": 1.5}),
    Tilt(additions={"joy": 3.0}),
    Tilt(additions={"joy": 4.5}),
    Tilt(1.3, {"joy": 6.5}),
    Tilt(additions={"joy": 2.0, "quote": 2.0}),
    Tilt(additions={"quote": 3.5}),
    Tilt(additions={"sorrow": 2.5}),
    Tilt(0.7, {"joy": 3.0, "sorrow": -3.0}),
    Tilt(1.6),
    Tilt(0.8, {"joy": 5.0, "quote": 1.0}),
)


def word_class(word: str) -> str | None:
    """joy, sorrow or quote; None for any other word."""
    if word in JOY:
        return "joy"
    if word in SORROW:
        return "sorrow"
    return "quote" if '"' in word else None
