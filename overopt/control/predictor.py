"""The reward that is learned from comparisons of segments: an ensemble of small networks.

As in Christiano et al. 2017, a network gives each step a reward from observation and action; of two
segments the first is preferred with probability (1 − a)·σ(difference of sums) + a/2, where a is the
share of answers taken for random. Each member is trained on its own bootstrap of the comparisons.

What differs: a member's return is normalised on trajectories of the initial policy, not its reward by
step; there is no penalty chosen on held-out comparisons, only a small weight decay.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overopt.base import files
from overopt.base.errors import DivergenceError
from overopt.base.seeding import derive_seed, numpy_rng, scoped_torch_seed, torch_generator
from overopt.control.human import Comparisons
from overopt.control.settings import ProxySettings
from overopt.control.trajectories import Trajectories
from overopt.rewards.kind import Unit


class Predictors(NamedTuple):
    """Members with their units, and how they become one score of mean 0 and spread 1."""

    members: tuple[nn.Sequential, ...]
    units: tuple[Unit, ...]
    combine: str
    combined: Unit = Unit(0.0, 1.0)

    @property
    def unit(self) -> Unit:
        """Zero and unit of the score: as if all members had their average ones."""
        mean, std = (float(np.mean(column)) for column in zip(*self.units, strict=True))
        return Unit(mean + std * self.combined.mean, std * self.combined.std)

    @property
    def n_params(self) -> int:
        """Parameters of one member."""
        return sum(p.numel() for p in self.members[0].parameters())

    def member_scores(self, trajectories: Trajectories) -> np.ndarray:
        """Normalised returns (M, R) by each member."""
        x, mask = (torch.from_numpy(a) for a in (trajectories.features, trajectories.mask))
        with torch.no_grad():
            raw = np.stack([returns(m, x, mask).double().numpy() for m in self.members])
        mean, std = np.array(self.units).T[..., None]
        return (raw - mean) / std

    def score(self, trajectories: Trajectories) -> np.ndarray:
        """Proxy score (R,): mean 0, standard deviation 1 under the initial policy."""
        scores = self.member_scores(trajectories)
        one = scores.min(0) if self.combine == "worst_case" else scores.mean(0)
        return (one - self.combined.mean) / self.combined.std

    def save(self, folder: Path) -> None:
        """Write weights, shape and units."""
        weights = {
            f"{i}.{name}": value
            for i, member in enumerate(self.members)
            for name, value in member.state_dict().items()
        }
        files.save_tensors(folder / "predictors.safetensors", weights)
        hidden, n_inputs = weights["0.0.weight"].shape
        shape = {"inputs": n_inputs, "hidden": hidden}
        info = {"units": self.units, "combined": self.combined, "combine": self.combine}
        files.save_json(folder / "predictors.json", shape | info)


def load(folder: Path) -> Predictors:
    """What `Predictors.save` wrote."""
    info = files.load_object(folder / "predictors.json")
    weights = files.load_tensors(folder / "predictors.safetensors")
    members = []
    for i in range(len(info["units"])):
        member = network(info["inputs"], info["hidden"], seed=0)
        mine = {k.partition(".")[2]: v for k, v in weights.items() if k.startswith(f"{i}.")}
        member.load_state_dict(mine)
        members.append(member)
    units = tuple(Unit(*unit) for unit in info["units"])
    return Predictors(tuple(members), units, info["combine"], Unit(*info["combined"]))


def network(n_inputs: int, hidden: int, *, seed: int) -> nn.Sequential:
    """Two hidden layers with tanh, and one output: the reward of a step."""
    with scoped_torch_seed(seed):
        return nn.Sequential(
            nn.Linear(n_inputs, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(),
            nn.Linear(hidden, 1),
        )  # fmt: skip


def returns(member: nn.Module, features: Tensor, mask: Tensor) -> Tensor:
    """Sum of rewards (N,) over the steps in ``mask`` (N, S) of ``features`` (N, S, F)."""
    return (member(features)[..., 0] * mask).sum(1)


def train(cfg: ProxySettings, data: Comparisons, *, seed: int) -> tuple[nn.Sequential, ...]:
    """The members of an ensemble, fitted to the comparisons.

    Raises
    ------
    DivergenceError
        A loss is not finite.
    """
    n = len(data.margin)
    tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in data[:5]]
    members = []
    for i in range(cfg.members):
        member = network(data.first.shape[2], cfg.hidden, seed=derive_seed(seed, "weights", i))
        optimizer = torch.optim.AdamW(member.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay)
        drawn = (
            numpy_rng(seed, "bootstrap", i).integers(0, n, n) if cfg.members > 1 else np.arange(n)
        )
        own = torch.from_numpy(drawn)
        generator = torch_generator(seed, "batches", i)
        for step in range(cfg.steps):
            rows = own[torch.randint(n, (min(n, cfg.batch_pairs),), generator=generator)]
            first, second, first_mask, second_mask, answer = (t[rows] for t in tensors)
            margin = returns(member, first, first_mask) - returns(member, second, second_mask)
            loss = answer_loss(margin, answer, cfg.assumed_random)
            if not bool(loss.isfinite()):
                raise DivergenceError(
                    f"predictor {i}: loss {float(loss)} at step {step}: lower proxy.lr = {cfg.lr}"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        members.append(member.eval())
    return tuple(members)


def answer_loss(margin: Tensor, answer: Tensor, assumed_random: float) -> Tensor:
    """Mean cross-entropy in nats of answers (N,) given differences of returns (N,)."""
    p = (1 - assumed_random) * margin.sigmoid() + assumed_random / 2
    if assumed_random == 0:
        return F.binary_cross_entropy_with_logits(margin, answer)
    return F.binary_cross_entropy(p, answer)


def normalised(members: tuple[nn.Sequential, ...], combine: str, base: Trajectories) -> Predictors:
    """Members with zero and unit on trajectories of the initial policy.

    Raises
    ------
    DivergenceError
        A member gives all of them the same return, or one that is not finite.
    """
    unscaled = Predictors(members, tuple(Unit(0.0, 1.0) for _ in members), combine)
    units = tuple(Unit(float(raw.mean()), float(raw.std())) for raw in unscaled.member_scores(base))
    for i, unit in enumerate(units):
        if not unit.std > 0:
            raise DivergenceError(
                f"predictor {i}: returns under the initial policy have spread {unit.std}: more"
                " comparisons (labels.n_pairs) or a lower proxy.lr are needed"
            )
    scaled = unscaled._replace(units=units)
    one = scaled.score(base)
    return scaled._replace(combined=Unit(float(one.mean()), float(one.std())))


def measured(members: tuple[nn.Sequential, ...], held: Comparisons) -> dict[str, Any]:
    """Share of pairs that the mean of the members ranks as gold does, and its loss, in nats."""
    first, second, first_mask, second_mask = (torch.from_numpy(a) for a in held[:4])
    with torch.no_grad():
        margin = torch.stack(
            [returns(m, first, first_mask) - returns(m, second, second_mask) for m in members]
        ).mean(0)
    truth = torch.from_numpy((held.margin > 0).astype(np.float32))
    return {
        "accuracy": float(((margin > 0) == (truth > 0.5)).double().mean()),
        "loss": float(F.binary_cross_entropy_with_logits(margin, truth)),
    }
