"""A scalar head on a backbone: the shape of reward models and value models."""

import torch
from torch import Tensor, nn

from overopt.nets.backbone import Backbone
from overopt.nets.block import Prefix
from overopt.nets.llama import Llama


class ScalarHeadModel(nn.Module):
    """A backbone with a scalar per position: a reward model or a value function.

    With ``n_heads`` = k > 1 it has k scalars, the members of an ensemble on one trunk.
    """

    def __init__(self, backbone: Backbone, n_heads: int = 1) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.cfg.hidden_size, n_heads)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def compact(self) -> Llama:
        """The backbone as a compact `Llama`, for code that can take no other."""
        assert isinstance(self.backbone, Llama), type(self.backbone)
        return self.backbone

    @torch.no_grad()
    def init_head(self, generator: torch.Generator) -> None:
        """Draw the heads from N(0, 1/(D+1)), the reward head of Stiennon et al. 2020."""
        d = self.head.in_features
        self.head.weight.normal_(0.0, (d + 1) ** -0.5, generator=generator)

    def at_last_token(self, ids: Tensor, length: Tensor, before: Prefix | None = None) -> Tensor:
        """Scalar (R,) at the last real token of right-padded ids (R, S); (R, k) with k > 1 heads.

        The tokens continue those of ``before``, if given; a compact `Llama` alone can.
        """
        if before is None:
            hidden = self.backbone.at_last_token(ids, length)
        else:
            hidden = self.compact.at_last_token(ids, length, before=before)
        return self.head(hidden).squeeze(-1)
