"""What reward models have in common that put heads on a language model and fit them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from overopt.base.config import check_types, require
from overopt.rewards.kind import RewardSettings


@dataclass(frozen=True, kw_only=True)
class Fitted(RewardSettings):
    """Heads on a pretrained backbone, and how they are fitted.

    Attributes
    ----------
    backbone : str
        Pretrained causal LM under the heads: any source that ``world.policy`` takes.
    layers : int
        How many of the backbone's first layers to keep, a size axis from one checkpoint; 0 for all.
    epochs, lr, weight_decay : int, float, float
        Passes over the data, peak AdamW learning rate (linear decay), its weight decay.
    precision : "fp32" or "bf16"
        Of matrix products in training.
    rm_seed : int
        Head initialisation, data order, and what is random in the labels.
    """

    backbone: str = "ladder:0.2m"
    layers: int = 0
    epochs: int = 2
    lr: float = 3e-3
    weight_decay: float = 0.01
    precision: Literal["fp32", "bf16"] = "fp32"
    rm_seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        require(self.layers >= 0, "proxy.layers", self.layers, "must be at least 0 (0: all)")
        require(self.epochs >= 1, "proxy.epochs", self.epochs, "must be at least 1")
        require(self.lr > 0, "proxy.lr", self.lr, "must be positive")

    @property
    def serves(self) -> tuple[str, ...]:
        """A proxy: it is fitted to labels."""
        return ("proxy",)

    @property
    def sources(self) -> dict[str, str]:
        """The backbone."""
        return {"backbone": self.backbone}

    @property
    def seed(self) -> int | None:
        """Head initialisation, data order, and what is random in the labels."""
        return self.rm_seed

    @property
    def size(self) -> str:
        """The backbone's short name, and layers where not all are kept."""
        kept = f" {self.layers} layers" if self.layers else ""
        return self.backbone.removeprefix("ladder:") + kept

    @property
    def columns(self) -> dict[str, Any]:
        """Record columns; the kind stands before the backbone, so that kinds are told apart."""
        return {"backbone": self.title, "rm_seed": self.rm_seed, "proxy_lr": self.lr}
