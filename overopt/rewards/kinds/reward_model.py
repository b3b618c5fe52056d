"""Scalar heads on a language model's trunk: one reward model, or several heads that share a trunk."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from overopt.base import files
from overopt.base.datatypes import Responses
from overopt.base.errors import CheckpointError, StoreError
from overopt.base.seeding import torch_generator
from overopt.nets.backbone import Backbone
from overopt.nets.block import LlamaConfig
from overopt.nets.checkpoints import backbone_state, n_params
from overopt.nets.heads import ScalarHeadModel
from overopt.nets.layout import from_transformers_state
from overopt.nets.llama import Llama
from overopt.rewards.kind import Job, Place, Scorer, Standardised, Unit
from overopt.rewards.scorer import raw_scores
from overopt.rewards.training.pairs import load_backbone
from overopt.worlds import codecs
from overopt.worlds.codecs import TextReader

if TYPE_CHECKING:
    from overopt.nets.hf import HFBackbone


@dataclass(frozen=True)
class RewardModelScorer(Standardised):
    """A reward model with the mean and std of its raw score under the initial policy."""

    model: ScalarHeadModel
    mean: float
    std: float

    @property
    def sizes(self) -> dict[str, int]:
        """Parameters of the network."""
        return n_params(self.model)

    @property
    def trained(self) -> ScalarHeadModel:
        """The network."""
        return self.model

    def raw(self, responses: Responses) -> Tensor:
        """Head output (R,)."""
        return raw_scores(self.model, responses)

    def save(self, folder: Path, info: dict[str, Any]) -> None:
        """Weights, shape and unit."""
        save_network(self.model, folder, info | {"mean": self.mean, "std": self.std})


@dataclass(frozen=True)
class MultiHeadScorer(Scorer):
    """A model with k heads on one trunk: k members for the price of one forward pass.

    means, stds: of each head's raw score under the initial policy.
    """

    model: ScalarHeadModel
    means: tuple[float, ...]
    stds: tuple[float, ...]

    @property
    def unit(self) -> Unit:
        """Average zero and unit of the heads."""
        k = self.n_members
        return Unit(sum(self.means) / k, sum(self.stds) / k)

    @property
    def units(self) -> tuple[Unit, ...]:
        """Zero and unit of each head."""
        return tuple(Unit(*pair) for pair in zip(self.means, self.stds, strict=True))

    @property
    def n_members(self) -> int:
        """Number of heads."""
        return len(self.means)

    @property
    def sizes(self) -> dict[str, int]:
        """Parameters of the network."""
        return n_params(self.model)

    @property
    def trained(self) -> ScalarHeadModel:
        """The network."""
        return self.model

    def member_scores(self, responses: Responses) -> Tensor:
        """Normalised scores (k, R) float32 of each head."""
        raw = raw_scores(self.model, responses)
        return ((raw - torch.tensor(self.means)) / torch.tensor(self.stds)).T

    def combine(self, member_scores: Tensor, n_tokens: Tensor) -> Tensor:
        """Mean of the heads, (R,)."""
        return member_scores.mean(0)

    def score(self, responses: Responses) -> Tensor:
        """Mean of the normalised scores, (R,) float32."""
        return self.member_scores(responses).mean(0)

    def save(self, folder: Path, info: dict[str, Any]) -> None:
        """Weights, shape and units."""
        save_network(self.model, folder, info | {"mean": list(self.means), "std": list(self.stds)})


def save_network(model: ScalarHeadModel, folder: Path, info: dict[str, Any]) -> None:
    """Write weights, and ``scorer.json`` with the shape and ``info``."""
    backbone = model.backbone
    state = backbone_state(backbone)
    state |= {f"score.{k}": v.detach().clone() for k, v in model.head.state_dict().items()}
    files.save_tensors(folder / "model.safetensors", state)
    info = {"kind": "reward_model"} | info | {"scored_by": "tokens"} | shape_of(backbone)
    if isinstance(backbone.reader, TextReader):
        info |= {"scored_by": "text", "tokenizer": backbone.reader.source}
    files.save_json(folder / "scorer.json", info)


def shape_of(backbone: Backbone) -> dict[str, Any]:
    """What `backbone_of` must know beside the weights, as JSON."""
    if isinstance(backbone, Llama):
        return {"shape": vars(backbone.cfg)}
    return {"transformers": cast("HFBackbone", backbone).spec()}


def backbone_of(info: dict[str, Any], weights: dict[str, Tensor], file: Path) -> Backbone:
    """The network with these weights, under transformers' names, of the shape that ``info`` has.

    file: where ``info`` stands. A config that asks for code which is not transformers' own is refused.
    """
    if "transformers" in info:
        from overopt.nets.hf import from_spec  # transformers takes seconds to import

        check_plain(info["transformers"], file)
        return from_spec(info["transformers"], weights)
    return from_transformers_state(weights, LlamaConfig(**info["shape"]))


def load(folder: Path, info: dict[str, Any], place: Place) -> RewardModelScorer | MultiHeadScorer:
    """What `RewardModelScorer.save` or `MultiHeadScorer.save` wrote."""
    model = load_network(folder, info, place)
    if isinstance(info["mean"], list):
        return MultiHeadScorer(model, tuple(info["mean"]), tuple(info["std"]))
    return RewardModelScorer(model, info["mean"], info["std"])


def load_network(folder: Path, info: dict[str, Any], place: Place) -> ScalarHeadModel:
    """What `save_network` wrote, on the device."""
    heads = ("score.weight", "score.bias")
    state = files.load_tensors(folder / "model.safetensors", names=heads)
    weights = {k: v for k, v in state.items() if not k.startswith("score.")}
    backbone = backbone_of(info, weights, folder / "scorer.json")
    if info.get("scored_by") == "text":
        source = info["tokenizer"]
        place.check_source(folder, source)
        backbone.reader = TextReader(source, place.world, codecs.load_codec(source))
    model = ScalarHeadModel(backbone, len(state["score.bias"]))
    model.head.load_state_dict({"weight": state["score.weight"], "bias": state["score.bias"]})
    return model.to(place.device).eval()


def fresh(source: str, job: Job, *, layers: int = 0) -> ScalarHeadModel:
    """A backbone under an untrained head on the job's device."""
    model = ScalarHeadModel(load_backbone(source, job.world, layers=layers))
    model.init_head(torch_generator(job.seed, "head"))
    return model.to(job.device)


def with_room(backbone: Backbone, longest: int, source: str) -> Backbone:
    """The same network with a context of at least ``longest`` tokens.

    Positions are rotations, so that a compact Llama has no weights for them; what lies beyond the
    context of its pretraining, it learns here.
    """
    if backbone.cfg.max_position_embeddings >= longest:
        return backbone
    if not isinstance(backbone, Llama):
        if backbone.reader is not None:
            return backbone  # its texts may well fit
        raise CheckpointError(
            f"proxy.backbone = {source!r}: has a context of {backbone.cfg.max_position_embeddings}"
            f" tokens; what it is to read makes {longest}: lower"
            " world.max_response_tokens"
        )
    longer = Llama(replace(backbone.cfg, max_position_embeddings=longest))
    longer.load_state_dict(backbone.state_dict())
    longer.reader = backbone.reader
    return longer.to(backbone.device)


def check_plain(spec: dict[str, Any], file: Path) -> None:
    """Raise StoreError where a transformers config asks for code that is not transformers' own."""
    config = files.need(spec.get("config"), f"{file}: transformers.config")
    for key in ("auto_map", "quantization_config"):
        if config.get(key):
            raise StoreError(f"{file}: {key} is set: such a model is not loaded from a store")
    for key, value in config.items():
        if "attn_implementation" in key and value not in (None, "eager", "sdpa"):
            raise StoreError(f"{file}: {key} = {value!r}: is not loaded from a store")


def network(scorer: Scorer) -> ScalarHeadModel:
    """The network of a reward model that is trained further.

    Raises
    ------
    CheckpointError
        The scorer is no reward model of this package.
    """
    if not isinstance(scorer.trained, ScalarHeadModel):
        raise CheckpointError(
            f"a {type(scorer).__name__} has no network with a scalar head: it can be neither trained"
            " further nor averaged"
        )
    return scorer.trained
