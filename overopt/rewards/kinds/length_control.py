"""Length-controlled reward models (ODIN, Chen et al. 2024): a second head that takes up length.

Both heads read one trunk and predict preferences together; the loss pulls the length head's score
towards correlation with length and the quality head's towards none. After training the length head
is dropped. What is different here: ODIN penalises |W_Q W_Lᵀ|, here the length head is projected, so
that the heads are exactly orthogonal (the limit of a large penalty) and one weight less is needed.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from overopt.nets.backbone import Backbone
from overopt.nets.heads import ScalarHeadModel
from overopt.rewards.training.pairs import PairBatch
from overopt.rewards.training.train import PairLoss, bradley_terry_loss

QUALITY, LENGTH = 0, 1


class _Orthogonal(nn.Module):
    """Row LENGTH of a (2, D) weight without its component along row QUALITY."""

    def forward(self, weight: Tensor) -> Tensor:
        quality, length = weight[QUALITY], weight[LENGTH]
        along = (length @ quality) / (quality @ quality).clamp_min(1e-12)
        return torch.stack([quality, length - along * quality])


def two_headed(backbone: Backbone, *, generator: torch.Generator) -> ScalarHeadModel:
    """A model with a quality and a length head, orthogonal throughout training."""
    model = ScalarHeadModel(backbone, n_heads=2)
    model.init_head(generator)
    parametrize.register_parametrization(model.head, "weight", _Orthogonal())
    return model


def quality_model(model: ScalarHeadModel) -> ScalarHeadModel:
    """What remains of a two-headed model when the length head is dropped; shares its backbone."""
    kept = ScalarHeadModel(model.backbone)
    with torch.no_grad():
        kept.head.weight.copy_(model.head.weight[QUALITY : QUALITY + 1])
        kept.head.bias.copy_(model.head.bias[QUALITY : QUALITY + 1])
    return kept.to(model.head.bias.device)


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson correlation of two tables (R,); 0, with gradient 0, where one is constant."""
    x, y = x - x.mean(), y - y.mean()
    spread = (x * x).sum() * (y * y).sum()
    # The root of 0 has an infinite slope, which would turn every gradient into nan.
    is_constant = spread == 0
    return torch.where(is_constant, 0.0, (x * y).sum() / spread.where(~is_constant, 1.0).sqrt())


def length_controlled_loss(strength: float) -> PairLoss:
    """BT(r_Q + r_L) + λ(|ρ(r_Q, length)| − ρ(r_L, length)), eq. 3 to 5 of Chen et al. 2024.

    BT: mean Bradley-Terry loss in nats. ρ: correlation with response tokens over the responses of
    the batch. λ = ``strength``.
    """

    def loss(scores: Tensor, batch: PairBatch) -> Tensor:
        total = scores.sum(1)
        first, second, target, n_tokens = (
            t.to(scores.device)
            for t in (
                batch.first,
                batch.second,
                batch.target,
                (batch.seq.length - batch.seq.n_prompt).float(),
            )
        )
        quality = correlation(scores[:, QUALITY], n_tokens).abs()
        length = correlation(scores[:, LENGTH], n_tokens)
        preference = bradley_terry_loss(total[first], total[second], target)
        return preference + strength * (quality - length)

    return loss
