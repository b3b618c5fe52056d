"""A probe: Bradley-Terry on pooled states of a frozen language model, a convex problem without a rate.

The trunk is not trained, so a size differs from the next by what it has read alone: no learning rate,
no epochs and no seed decide how well it was fitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from overopt.base.config import check_types, require
from overopt.base.lazy import lazy
from overopt.rewards.kind import Job, Place, RewardSettings, Standardised, Trained

if TYPE_CHECKING:
    import torch
    from scipy import optimize, special
    from torch import Tensor

    from overopt.base.datatypes import Responses
    from overopt.nets import checkpoints, heads, sampling
    from overopt.nets.heads import ScalarHeadModel
    from overopt.rewards.kinds import reward_model
    from overopt.rewards.training import pairs
    from overopt.worlds import codecs
else:
    torch, optimize, special = lazy("torch"), lazy("scipy.optimize"), lazy("scipy.special")
    checkpoints, heads = lazy("overopt.nets.checkpoints"), lazy("overopt.nets.heads")
    sampling, codecs = lazy("overopt.nets.sampling"), lazy("overopt.worlds.codecs")
    reward_model = lazy("overopt.rewards.kinds.reward_model")
    pairs = lazy("overopt.rewards.training.pairs")

_BATCH_TOKENS = 2048


@dataclass(frozen=True, kw_only=True)
class Settings(RewardSettings):
    """A linear head on pooled states of a frozen language model, fitted to the comparisons.

    Attributes
    ----------
    backbone : str
        Language model under the head: any source that ``world.policy`` takes.
    layers : int
        How many of the backbone's first layers to keep; 0 for all.
    ridge : float
        Weight of ½|w|² beside the sum of Bradley-Terry losses, w in standard deviations of the states.
    """

    backbone: str = "ladder:0.2m"
    layers: int = 0
    ridge: float = 10.0

    def __post_init__(self) -> None:
        check_types(self)
        require(self.layers >= 0, "proxy.layers", self.layers, "must be at least 0 (0: all)")
        require(self.ridge > 0, "proxy.ridge", self.ridge, "must be positive: the fit is unbounded")

    @property
    def serves(self) -> tuple[str, ...]:
        """A proxy: it is fitted to labels, and labels are gold's."""
        return ("proxy",)

    @property
    def sources(self) -> dict[str, str]:
        """The backbone."""
        return {"backbone": self.backbone}

    @property
    def reads_comparisons(self) -> bool:
        """The comparisons decide it, and nothing is random besides."""
        return True

    @property
    def title(self) -> str:
        """Kind and size."""
        kept = f" {self.layers} layers" if self.layers else ""
        return f"probe {self.backbone.removeprefix('ladder:')}{kept}"

    @property
    def columns(self) -> dict[str, Any]:
        """Record columns; ``[:k]`` behind the backbone where only its first k layers are used."""
        kept = f"[:{self.layers}]" if self.layers else ""
        return {"backbone": f"probe {self.backbone}{kept}", "rm_seed": 0}

    def cost_s(self, n_pairs: int) -> float:
        """Estimated CPU seconds: one pass over the responses."""
        return 4 + 0.002 * n_pairs


def train(settings: Settings, job: Job) -> Trained:
    """Read the states of the compared responses once, then solve for the head."""
    trunk = pairs.load_backbone(settings.backbone, job.world, layers=settings.layers).to(job.device)
    model = heads.ScalarHeadModel(trunk.eval())
    assert job.pairs is not None and job.validate is not None
    labelled = job.pairs(model)
    states = pooled_states(model, labelled.responses)
    fit = fit_head(
        states.double().numpy(), labelled.first.numpy(), labelled.second.numpy(), settings.ridge
    )
    model.head.weight.data = torch.from_numpy(fit.weight).float()[None].to(job.device)
    scorer = ProbeScorer(model)
    job.progress(1, 1)
    history = {
        "train_loss": [fit.loss],
        "validation": [job.validate(scorer.raw)],
        "pairs_seen": len(labelled.first),
    }
    return Trained(scorer, history)


@dataclass(frozen=True)
class HeadFit:
    """Weights (D,) of the head on raw states, and the mean Bradley-Terry loss of the pairs in nats."""

    weight: np.ndarray
    loss: float


def fit_head(states: np.ndarray, chosen: np.ndarray, rejected: np.ndarray, ridge: float) -> HeadFit:
    """Minimise Σ log(1 + exp(−w·(x_chosen − x_rejected))) + ridge/2·|w|², x standardised states.

    states: (R, D); chosen, rejected: (C,) rows of them. Strictly convex, so the minimum is the only
    one; found by L-BFGS.
    """
    spread = states.std(0)
    scale = np.where(spread > 0, spread, 1.0)
    margin = (states[chosen] - states[rejected]) / scale

    def objective(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = margin @ w
        loss = np.logaddexp(0, -z).sum() + ridge / 2 * (w @ w)
        return loss, ridge * w - margin.T @ special.expit(-z)

    start = np.zeros(states.shape[1])
    found = optimize.minimize(
        objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-13}
    )
    return HeadFit(found.x / scale, float(np.logaddexp(0, -margin @ found.x).mean()))


def pooled_states(model: ScalarHeadModel, responses: Responses) -> Tensor:
    """Final hidden states (R, D) of a response's tokens: their sum over the root of their number."""
    responses = codecs.in_own_tokens(model.backbone, responses)
    out = torch.zeros(len(responses), model.head.in_features)
    with torch.no_grad():
        parts = sampling.continuations(model.backbone, responses, _BATCH_TOKENS)
        if parts is not None:
            for part in parts:
                mask = torch.arange(part.ids.shape[1]) < part.length[:, None]
                hidden = model.backbone(part.ids, before=part.before)
                out[part.rows] = _pooled(hidden, mask)
            return out
        device = model.head.weight.device
        for rows, seq in sampling.sequence_batches(responses, _BATCH_TOKENS, device):
            view = sampling.response_view(seq)
            # A view is of the states that predict a token; those behind it are one further.
            hidden = model.backbone(seq.ids, torch.where(view.mask, view.position + 1, 0))
            out[rows] = _pooled(hidden, view.mask).cpu()
    return out


def _pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    total = (hidden.float() * mask[..., None]).sum(1)
    return total / mask.sum(1, keepdim=True).clamp_min(1).sqrt()


@dataclass(frozen=True)
class ProbeScorer(Standardised):
    """A head on pooled states, with the mean and std of its raw score under the initial policy."""

    model: ScalarHeadModel
    mean: float = 0.0
    std: float = 1.0

    @property
    def sizes(self) -> dict[str, int]:
        """Parameters of trunk and head."""
        return checkpoints.n_params(self.model)

    def raw(self, responses: Responses) -> Tensor:
        """Log-odds (R,), up to a constant."""
        weight = self.model.head.weight[0].detach().cpu()
        return pooled_states(self.model, responses) @ weight

    def save(self, folder: Path, info: dict[str, Any]) -> None:
        """Weights, shape and unit."""
        info = info | {"kind": "probe", "mean": self.mean, "std": self.std}
        reward_model.save_network(self.model, folder, info)


def load(folder: Path, info: dict[str, Any], place: Place) -> ProbeScorer:
    """What `ProbeScorer.save` wrote."""
    return ProbeScorer(
        reward_model.load_network(folder, info, place), float(info["mean"]), float(info["std"])
    )
