"""Scorers: what turns whole responses into numbers. Gold, proxies and the rubric share one shape.

A reward model reads the hidden state of the last real token of prompt plus response, the end token
included where there is one; the same convention everywhere. Scores are normalised to mean 0 and
standard deviation 1 under the initial policy.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from overopt.base.datatypes import Responses
from overopt.base.errors import DivergenceError, StoreError
from overopt.nets.compute import fit_memory, tokens_at_once
from overopt.nets.heads import ScalarHeadModel
from overopt.nets.sampling import sequence_batches
from overopt.worlds.codecs import in_own_tokens
from overopt.worlds.world import World


class Unit(NamedTuple):
    """Zero and unit of a score: mean and standard deviation of the raw score, initial policy."""

    mean: float
    std: float


class Scorer(Protocol):
    """Gold, a proxy, an ensemble, an intent: whatever scores whole responses. R responses, M members.

    No caller asks for the class of one; what a kind can do beyond ``score`` it says here.
    """

    @property
    def unit(self) -> Unit:
        """Zero and unit: ``raw = score · std + mean``."""
        ...

    @property
    def units(self) -> tuple[Unit, ...]:
        """Zero and unit of each member."""
        return (self.unit,)

    @property
    def n_members(self) -> int:
        """M, how many models have a say; 1 for a single one."""
        return 1

    @property
    def sizes(self) -> dict[str, int]:
        """``n_params`` (non-embedding) and ``n_params_total``; 0 where nothing was trained."""
        return {"n_params": 0, "n_params_total": 0}

    def score(self, responses: Responses) -> Tensor:
        """Scores (R,) float32: mean 0, standard deviation 1 under the initial policy."""
        ...

    def raw(self, responses: Responses) -> Tensor:
        """Scores (R,) before normalisation; of a Bradley-Terry model, differences are log-odds."""
        return self.score(responses) * self.unit.std + self.unit.mean

    def member_scores(self, responses: Responses) -> Tensor:
        """Scores (M, R) float32 of each member, normalised one by one."""
        return self.score(responses)[None]

    def combine(self, member_scores: Tensor, n_tokens: Tensor) -> Tensor:
        """Score (R,) from member scores (M, R) and response tokens (R,)."""
        return member_scores[0]

    def save(self, folder: Path, info: dict[str, Any]) -> None:
        """Write ``scorer.json`` and whatever ``load`` of the same file needs; ``info`` is added."""
        ...


class Place(NamedTuple):
    """Where a scorer is brought back to life: what it may need beside its own folder.

    calibration: folder of the calibration artefact; world: decodes responses; device: of networks.
    sources: the checkpoints and tokenizers that the run's settings name, the only ones that are
    loaded; transform_sha256: of the user's file that they name, the only one that is run.
    """

    calibration: Path
    world: World
    device: str
    sources: frozenset[str] = frozenset()
    transform_sha256: str = ""

    def check_source(self, folder: Path, source: object) -> None:
        """Raise StoreError unless the settings name ``source``, which a file in ``folder`` names."""
        if source not in self.sources:
            raise StoreError(
                f"{folder / 'scorer.json'}: names {source!r}, which the settings of this run do not:"
                " it is not loaded; delete the artefact to have it computed again"
            )


# Padded tokens of one call. On a CPU few, so that what one layer writes is in the cache of the next.
_BATCH_TOKENS, _BATCH_TOKENS_CPU = 8192, 2048


@torch.no_grad()
def raw_scores(
    model: ScalarHeadModel, responses: Responses, *, batch_tokens: int | None = None
) -> Tensor:
    """Head output (R,) at the last real token of each response, before normalisation.

    (R, k) of a model with k > 1 heads. A model of another tokenizer reads the responses' text.
    ``batch_tokens``: padded tokens of one call; None: what suits the device.
    """
    responses = in_own_tokens(model.backbone, responses)
    n_heads = model.head.out_features
    out = torch.zeros(len(responses), n_heads).squeeze(-1)
    device = model.head.weight.device
    if batch_tokens is None:
        elsewhere = _BATCH_TOKENS_CPU if device.type == "cpu" else _BATCH_TOKENS
        batch_tokens = tokens_at_once(device, elsewhere)

    def fill(batch_tokens: int) -> None:
        done = [
            (rows, model.at_last_token(seq.ids, seq.length).float())
            for rows, seq in sequence_batches(responses, batch_tokens, device)
        ]
        # Fetched together: a GPU does not wait between batches.
        if done:
            rows, scores = (torch.cat(column) for column in zip(*done, strict=True))
            out[rows] = scores.cpu()

    fit_memory(fill, batch_tokens, "padded tokens")
    return out


class Normalisation(NamedTuple):
    """Zero and unit of a score; ``is_constant``: it had no spread, and the unit is 1."""

    mean: float
    std: float
    is_constant: bool


def normalisation(scores: Tensor) -> Normalisation:
    """Mean and standard deviation of scores (R,) under the initial policy, safe to divide by.

    Raises
    ------
    DivergenceError
        A score is not finite.
    """
    n_bad = int((~torch.isfinite(scores)).sum())
    if n_bad > 0:
        raise DivergenceError(
            f"{n_bad} of {scores.numel()} scores under the initial policy are not finite: the reward"
            " model diverged after its last loss; lower its learning rate (proxy.lr or gold.lr)"
        )
    mean, std = mean_std(scores)
    is_constant = bool(scores.max() == scores.min())
    return Normalisation(mean, 1.0 if is_constant else std, is_constant)


def mean_std(scores: Tensor | Sequence[float]) -> tuple[float, float]:
    """Mean and population standard deviation (ddof 0) of scores under the initial policy."""
    x = torch.as_tensor(scores, dtype=torch.float64)
    return float(x.mean()), float(x.std(correction=0))
