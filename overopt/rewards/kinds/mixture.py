"""A mixture over attributes: ridge on a frozen trunk, a gate that weighs attributes by the prompt.

Wang et al. 2024 (ArmoRM). Three steps, behind a trunk that was fitted to comparisons like any reward
model's and is frozen then:

1. each attribute r_i is a linear function of the features at the last token, fitted to ratings by
   ridge regression without intercept;
2. it is debiased: r_i − λ_i·r_tokens, with the smallest λ_i at which its rank correlation with
   r_tokens is at most ``max_correlation``;
3. a gate reads the features at the last token of the prompt and gives positive weights; it is fitted
   to the comparisons by the Bradley-Terry loss, everything else fixed.

As published, the gate is fitted to attributes that are not debiased and applied to those that are
(``order=gate_first``). ``debias_first`` fits it to what it is applied to.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from overopt.base import files
from overopt.base.config import require
from overopt.base.errors import CheckpointError
from overopt.base.lazy import lazy
from overopt.base.seeding import torch_generator
from overopt.rewards.kind import Job, Place, Standardised, Trained
from overopt.rewards.rated import Rated

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from overopt.base.datatypes import Responses
    from overopt.nets import checkpoints, heads
    from overopt.nets.heads import ScalarHeadModel
    from overopt.rewards import scorer
    from overopt.rewards.kinds import reward_model
    from overopt.rewards.labels import ratings
    from overopt.rewards.training import mixture as parts
    from overopt.rewards.training import steps
    from overopt.rewards.training import train as training
    from overopt.rewards.training.mixture import Gate
    from overopt.rewards.training.pairs import TrainingPairs
else:
    torch, heads = lazy("torch"), lazy("overopt.nets.heads")
    checkpoints, scorer = lazy("overopt.nets.checkpoints"), lazy("overopt.rewards.scorer")
    reward_model = lazy("overopt.rewards.kinds.reward_model")
    ratings = lazy("overopt.rewards.labels.ratings")
    parts, steps = lazy("overopt.rewards.training.mixture"), lazy("overopt.rewards.training.steps")
    training = lazy("overopt.rewards.training.train")

VERBOSITY = "tokens"


@dataclass(frozen=True, kw_only=True)
class Settings(Rated):
    """Ridge regression an attribute on a frozen trunk, debiased, and a gate over the prompt.

    Backbone, training and seed are those of `Fitted`, attributes and noise those of `Rated`.

    Attributes
    ----------
    trunk : "bradley_terry" or "pretrained"
        The trunk is first fitted to the comparisons like a reward model's; or left as it is.
    order : "gate_first", "debias_first" or "no_debiasing"
        The gate learns from attributes as they are and weighs debiased ones, as published; learns from
        debiased ones; or there is no debiasing.
    max_correlation : float
        Largest rank correlation of a debiased attribute with the predicted number of tokens.
    gate : "prompt" or "constant"
        Weights depend on the prompt; or all attributes weigh the same, and no comparison is read.
    gate_width, gate_layers : int
        Size of the gate's hidden layers, and how many.
    gate_steps, gate_batch, gate_lr : int, int, float
        Its AdamW steps, comparisons a step, peak learning rate.
    """

    trunk: Literal["bradley_terry", "pretrained"] = "bradley_terry"
    order: Literal["gate_first", "debias_first", "no_debiasing"] = "gate_first"
    max_correlation: float = 0.03
    gate: Literal["prompt", "constant"] = "prompt"
    gate_width: int = 128
    gate_layers: int = 3
    gate_steps: int = 500
    gate_batch: int = 256
    gate_lr: float = 1e-3

    def __post_init__(self) -> None:
        Rated.__post_init__(self)
        for name in ("gate_width", "gate_layers", "gate_steps", "gate_batch"):
            value = getattr(self, name)
            require(value >= 1, f"proxy.{name}", value, "must be at least 1")
        require(self.gate_lr > 0, "proxy.gate_lr", self.gate_lr, "must be positive")
        require(
            -1 < self.max_correlation < 1,
            "proxy.max_correlation",
            self.max_correlation,
            "must be between -1 and 1",
        )
        require(
            VERBOSITY in self.attributes or self.order == "no_debiasing",
            "proxy.attributes",
            self.attributes,
            f"debiasing needs {VERBOSITY!r} among them: add it, or set proxy.order=no_debiasing",
        )

    @property
    def reads_comparisons(self) -> bool:
        """The gate does, and a trunk that is fitted to them."""
        return self.gate == "prompt" or self.trunk == "bradley_terry"

    @property
    def title(self) -> str:
        """Kind, order, gate, attributes, trunk and size."""
        parts = ["mixture", self.order.replace("_", " "), *self.attributes, self.size]
        parts += ["constant gate"] if self.gate == "constant" else []
        parts += ["pretrained trunk"] if self.trunk == "pretrained" else []
        parts += [f"noise {self.noise:g}"] if self.noise else []
        return " ".join(parts)

    def cost_s(self, n_pairs: int) -> float:
        """Estimated CPU seconds of training on the default backbone."""
        trunk = 0.003 * self.epochs * n_pairs if self.trunk == "bradley_terry" else 0.0
        return 6 + trunk + 0.004 * self.gate_steps


def train(settings: Settings, job: Job) -> Trained:
    """Fit trunk, attributes and gate, one after the other; a job's start gives its trunk."""
    model = _trunk(settings, job)
    assert job.responses is not None and job.pairs is not None and job.validate is not None
    responses, labelled = job.responses(), job.pairs(model)
    # 1.
    rated = ratings.ratings(
        job.world, responses, settings.attributes, noise=settings.noise, seed=job.seed
    )
    _, x = features(model, responses)
    weights, alphas = parts.fit_attributes(x, rated, responses.prompts.prompt_id, seed=job.seed)
    # 2.
    taken = debiased(settings, weights, x)
    # 3.
    gate = parts.Gate(
        x.shape[1], len(weights), width=settings.gate_width, layers=settings.gate_layers
    )
    gate.init_weights(torch_generator(job.seed, "gate"))
    learned_from = taken if settings.order == "debias_first" else weights
    losses = (
        _fit_gate(settings, gate, model, labelled, learned_from, job.seed)
        if settings.gate == "prompt"
        else []
    )
    made = MixtureScorer(_with_heads(model, taken), gate.eval())
    with torch.no_grad():
        mean_weight = gate(features(model, job.base)[0]).mean(0)
    named = dict.fromkeys(settings.attributes)
    history = {
        "train_loss": losses,
        "validation": [job.validate(made.raw)],
        "responses": len(responses),
        "alpha": dict(zip(named, alphas, strict=True)),
        "debiasing": dict(zip(named, _strengths(settings, weights, x), strict=True)),
        "gate": dict(zip(named, mean_weight.tolist(), strict=True)),
    }
    return Trained(made, history)


def _trunk(settings: Settings, job: Job) -> ScalarHeadModel:
    """The trunk on the device, fitted to the comparisons where it is to be, and frozen."""
    if job.start is None:
        model = reward_model.fresh(settings.backbone, job, layers=settings.layers)
    elif isinstance(job.start, MixtureScorer):
        model = heads.ScalarHeadModel(job.start.network.backbone)
        model.init_head(torch_generator(job.seed, "head"))
        model.to(job.device)
    else:
        raise CheckpointError(f"a {type(job.start).__name__} is no mixture: it cannot go on")
    if settings.trunk == "bradley_terry":
        assert job.pairs is not None and job.validate is not None
        validate = job.validate
        with job.keep(model):
            training.train_reward_model(
                model,
                job.pairs(model),
                epochs=settings.epochs,
                lr=settings.lr,
                batch_prompts=settings.batch_prompts,
                weight_decay=settings.weight_decay,
                seed=job.seed,
                validate=lambda: validate(lambda some: scorer.raw_scores(model, some)),
                progress=job.progress,
                compute=job.compute,
            )
    return model.requires_grad_(False).eval()


def features(model: ScalarHeadModel, responses: Responses) -> tuple[Tensor, Tensor]:
    """The trunk's last hidden states (R, D) at the last token of each prompt, and of each response."""
    both = steps.hidden_at_ends(model.backbone, responses)
    return both[:, 0], both[:, 1]


def _strengths(settings: Settings, weights: Tensor, x: Tensor) -> list[float]:
    """λ of each attribute, on the responses with features x (R, D)."""
    if settings.order == "no_debiasing":
        return [0.0] * len(weights)
    rewards = (x.double() @ weights.T).numpy()
    verbosity = rewards[:, settings.attributes.index(VERBOSITY)]
    return [parts.debiasing(r, verbosity, settings.max_correlation) for r in rewards.T]


def debiased(settings: Settings, weights: Tensor, x: Tensor) -> Tensor:
    """Weights (K, D) of the debiased attributes, from those of the attributes (K, D)."""
    strengths = torch.tensor(_strengths(settings, weights, x), dtype=weights.dtype)
    if settings.order == "no_debiasing":
        return weights
    return weights - strengths[:, None] * weights[settings.attributes.index(VERBOSITY)]


def _fit_gate(
    settings: Settings,
    gate: Gate,
    model: ScalarHeadModel,
    labelled: TrainingPairs,
    weights: Tensor,
    seed: int,
) -> list[float]:
    """Fit the gate to the comparisons, with attributes by ``weights`` (K, D); loss of each step."""
    prompts, x = features(model, labelled.responses)
    rewards = x @ weights.T.float()
    losses = parts.train_gate(
        gate,
        prompts[labelled.first],
        rewards[labelled.first] - rewards[labelled.second],
        labelled.target,
        steps=settings.gate_steps,
        lr=settings.gate_lr,
        batch=settings.gate_batch,
        seed=seed,
    )
    return list(losses)


def _with_heads(model: ScalarHeadModel, weights: Tensor) -> ScalarHeadModel:
    """The same trunk under heads with these weights (K, D), without intercept."""
    made = heads.ScalarHeadModel(model.backbone, len(weights))
    state = {"weight": weights.float(), "bias": torch.zeros(len(weights))}
    made.head.load_state_dict(state)
    return made.to(model.head.weight.device).eval()


@dataclass(frozen=True)
class MixtureScorer(Standardised):
    """Attributes and their gate, with the mean and std of the score under the initial policy.

    network : a head an attribute, K; gate : their weights, on the CPU.
    """

    network: ScalarHeadModel
    gate: Gate
    mean: float = 0.0
    std: float = 1.0

    @property
    def sizes(self) -> dict[str, int]:
        """Parameters of the network, without the gate's."""
        return checkpoints.n_params(self.network)

    def raw(self, responses: Responses) -> Tensor:
        """Σ_i gate_i(prompt) · attribute_i(prompt, response), (R,) float32."""
        prompts, x = features(self.network, responses)
        head = self.network.head.weight.cpu()
        with torch.no_grad():
            return (self.gate(prompts) * (x @ head.T)).sum(1)

    def save(self, folder: Path, info: dict[str, Any]) -> None:
        """Weights, shapes and unit."""
        maps = [part for part in self.gate.net if hasattr(part, "in_features")]
        files.save_tensors(folder / "gate.safetensors", self.gate.state_dict())
        shape = {"width": maps[0].out_features, "layers": len(maps) - 1}
        here = {"kind": "mixture", "gate": shape, "mean": self.mean, "std": self.std}
        reward_model.save_network(self.network, folder, info | here)


def load(folder: Path, info: dict[str, Any], place: Place) -> MixtureScorer:
    """What `MixtureScorer.save` wrote."""
    network = reward_model.load_network(folder, info, place)
    head = network.head
    gate = parts.Gate(head.in_features, head.out_features, **info["gate"])
    gate.load_state_dict(files.load_tensors(folder / "gate.safetensors"))
    return MixtureScorer(network, gate.eval(), info["mean"], info["std"])
