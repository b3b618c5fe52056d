"""The parts of a mixture over attributes (Wang et al. 2024, ArmoRM): ridge, debiasing, gate.

D features, K attributes, R responses, C comparisons.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor, nn

from overopt.base.seeding import torch_generator
from overopt.rewards.training.train import bradley_terry_loss, learning_rate, reward_optimizer

ALPHAS = tuple(10.0**k for k in range(-4, 5))
GATE_TEMPERATURE = 10.0
_BISECTIONS = 60


def ridge(x: Tensor, y: Tensor, alpha: float) -> Tensor:
    """Weights (K, D) float64 that minimise |x wᵀ − y|² + α|w|², without an intercept.

    x (R, D) features; y (R, K) ratings.
    """
    x, y = x.double(), y.double()
    gram = x.T @ x + alpha * torch.eye(x.shape[1], dtype=torch.float64)
    return torch.linalg.solve(gram, x.T @ y).T


def fit_attributes(
    x: Tensor, y: Tensor, prompt: Tensor, *, seed: int
) -> tuple[Tensor, list[float]]:
    """Ridge weights (K, D) on all rows, and α of each attribute.

    α is the one of `ALPHAS` with the least squared error on a fifth of the prompts, drawn at random,
    from weights that were fitted to the others. prompt (R,): number of each row's prompt.
    """
    numbers = prompt.unique()
    order = torch.randperm(len(numbers), generator=torch_generator(seed, "held out"))
    is_held = torch.isin(prompt, numbers[order[: max(1, len(numbers) // 5)]])
    if bool(is_held.all()):  # a single prompt: nothing to choose by
        is_held = torch.zeros_like(is_held)
    rest = ~is_held
    loss = torch.stack(
        [
            (x[is_held].double() @ ridge(x[rest], y[rest], a).T - y[is_held]).square().sum(0)
            for a in ALPHAS
        ]
    )
    chosen = [ALPHAS[i] for i in loss.argmin(0).tolist()]
    weights = [ridge(x, y[:, k : k + 1], alpha)[0] for k, alpha in enumerate(chosen)]
    return torch.stack(weights), chosen


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Rank correlation of two arrays (R,), ties by mid-ranks; 0 where one of them is constant."""
    ranks = [rankdata(x) for x in (a, b)]
    if any(r.std() == 0 for r in ranks):
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def debiasing(rewards: NDArray[np.float64], verbosity: NDArray[np.float64], limit: float) -> float:
    """The smallest λ ≥ 0 at which rewards − λ·verbosity has a rank correlation ≤ ``limit`` with it.

    Both (R,). More of λ never makes a pair agree that did not, so the correlation falls in λ and
    bisection finds the place. The reward that is verbosity itself has λ = 1 and is nothing then.
    """
    if np.array_equal(rewards, verbosity):
        return 1.0

    def is_enough(strength: float) -> bool:
        return spearman(rewards - strength * verbosity, verbosity) <= limit

    if is_enough(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while not is_enough(high):
        low, high = high, 2 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


class Gate(nn.Module):
    """Weights (R, K) of K attributes from features (R, D) of the prompt: scale · softmax(net(x)/10).

    The scale, one learned number, sets log-odds and changes no ranking.
    """

    def __init__(self, n_features: int, n_attributes: int, *, width: int, layers: int) -> None:
        super().__init__()
        sizes = [n_features, *[width] * layers, n_attributes]
        maps = [nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True)]
        inner = [part for linear in maps[:-1] for part in (linear, nn.ReLU())]
        self.net = nn.Sequential(*inner, maps[-1])
        self.log_scale = nn.Parameter(torch.zeros(()))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """He's normal initialisation; the last map is 0, so that all attributes weigh the same."""
        maps = [part for part in self.net if isinstance(part, nn.Linear)]
        for linear in maps:
            std = 0.0 if linear is maps[-1] else (2 / linear.in_features) ** 0.5
            linear.weight.normal_(0.0, std, generator=generator)
            linear.bias.zero_()

    def forward(self, prompts: Tensor) -> Tensor:
        """Weights (R, K), positive, each row with the same sum."""
        return self.log_scale.exp() * (self.net(prompts) / GATE_TEMPERATURE).softmax(-1)


def train_gate(
    gate: Gate,
    prompts: Tensor,
    margin: Tensor,
    target: Tensor,
    *,
    steps: int,
    lr: float,
    batch: int,
    seed: int,
) -> Sequence[float]:
    """Fit the gate in place by Bradley-Terry; the loss in nats of each step.

    Parameters
    ----------
    prompts : (C, D) features of the prompt of each comparison.
    margin : (C, K) attributes of the first response minus the second's.
    target : (C,) P(first preferred).
    steps, lr, batch : AdamW steps, peak learning rate (linear decay), comparisons a step.
    """
    optimizer = reward_optimizer(gate.parameters(), lr=lr, weight_decay=0.0)
    losses = []
    for step in range(steps):
        generator = torch_generator(seed, "gate", step)
        rows = torch.randint(len(margin), (min(batch, len(margin)),), generator=generator)
        score = (gate(prompts[rows]) * margin[rows]).sum(1)
        loss = bradley_terry_loss(score, torch.zeros_like(score), target[rows])
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = lr * learning_rate(step, steps)
        optimizer.step()
    return losses
