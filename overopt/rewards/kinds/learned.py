"""A reward model fitted to comparisons and then frozen: a learned gold.

The world's own intent labels responses of the initial policy and of tilted copies of it, see
`overopt.rewards.training.tilted`; or people have labelled pairs of responses in a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from overopt.base.config import check_types, require
from overopt.base.lazy import lazy
from overopt.base.seeding import torch_generator
from overopt.rewards.kind import Job, RewardSettings, Trained
from overopt.rewards.labels import people
from overopt.worlds.world import World, with_prompts

if TYPE_CHECKING:
    import torch

    from overopt.nets import heads
    from overopt.nets.heads import ScalarHeadModel
    from overopt.rewards.kinds import reward_model
    from overopt.rewards.labels import encoded
    from overopt.rewards.training import pairs, tilted
    from overopt.rewards.training import train as training
    from overopt.rewards.training.pairs import TrainingPairs
    from overopt.worlds import codecs
else:
    torch, encoded = lazy("torch"), lazy("overopt.rewards.labels.encoded")
    heads, codecs = lazy("overopt.nets.heads"), lazy("overopt.worlds.codecs")
    reward_model = lazy("overopt.rewards.kinds.reward_model")
    pairs, tilted = lazy("overopt.rewards.training.pairs"), lazy("overopt.rewards.training.tilted")
    training = lazy("overopt.rewards.training.train")


WRITES = ("reward_model",)


@dataclass(frozen=True, kw_only=True)
class Settings(RewardSettings):
    """A reward model fitted here to pairs that the world's own intent or people label, then frozen.

    Attributes
    ----------
    source : str
        The backbone: any source that ``world.policy`` takes.
    layers : int
        How many of the backbone's first layers to keep; 0 for all.
    n_prompts, copies, epochs, lr : int, int, int, float
        Prompts, responses a prompt, passes, peak learning rate.
    precision : "fp32" or "bf16"
        Of matrix products in training; scores are fp32.
    pairs_file : str
        Preferences from people to learn from in place of the world's intent, as for
        ``labels.pairs_file``; at most ``n_prompts`` of its prompts are taken.
    """

    source: str = "ladder:gold-3m"
    layers: int = 0
    n_prompts: int = 1500
    copies: int = 12
    epochs: int = 2
    lr: float = 5e-4
    precision: Literal["fp32", "bf16"] = "fp32"
    pairs_file: str = ""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.layers >= 0, "gold.layers", self.layers, "must be at least 0 (0: all)")
        require(self.n_prompts >= 2, "gold.n_prompts", self.n_prompts, "must be at least 2")
        require(
            self.copies >= 2, "gold.copies", self.copies, "must be at least 2: pairs are needed"
        )

    @property
    def serves(self) -> tuple[str, ...]:
        """Gold: as a proxy it would learn from the intent instead of from gold."""
        return ("gold",)

    @property
    def needs_intent(self) -> bool:
        """The teacher, unless it is people."""
        return self.pairs_file == ""

    @property
    def files(self) -> tuple[Path, ...]:
        """The pairs of people."""
        is_file = self.pairs_file and not self.pairs_file.startswith("datasets:")
        return (Path(self.pairs_file),) if is_file else ()

    @property
    def sources(self) -> dict[str, str]:
        """The backbone."""
        return {"source": self.source}

    @property
    def prompts(self) -> int:
        """Prompts of the gold split that training takes."""
        return 0 if self.pairs_file else self.n_prompts

    def cost_s(self, n_pairs: int) -> float:
        """Estimated CPU seconds."""
        return 0.025 * self.n_prompts * self.copies


def train(settings: Settings, job: Job) -> Trained:
    """Fit to pairs of people, or sample, label by intent, fit; the stage fixes zero and unit."""
    if settings.pairs_file:
        return _from_people(settings, job)
    responses = tilted.sample_tilted(
        job.policy(),
        job.world.prompts("gold", settings.n_prompts),
        job.world,
        copies=settings.copies,
        n_tokens=job.n_tokens,
        seed=job.seed,
    )
    model = _fresh(settings, job, job.world)
    labelled = tilted.soft_pairs(
        codecs.in_own_tokens(model.backbone, responses),
        job.intent(responses),
        copies=settings.copies,
        pairs_per_prompt=30,
        seed=job.seed,
    )
    return _fitted(settings, job, model, labelled)


def _from_people(settings: Settings, job: Job) -> Trained:
    """Fit to the pairs of a file."""
    where = f"pairs file {settings.pairs_file!r}"
    read = people.read_pairs(settings.pairs_file)
    encoder = encoded.PairEncoder(read, job.world_settings, where)
    order = torch.randperm(len(read.prompts), generator=torch_generator(job.seed, "pairs"))
    drawn = encoder.draw(order.tolist(), n_prompts=settings.n_prompts, n_pairs=None)
    found = encoder.encoded(drawn, first_id=len(job.world.texts))
    model = _fresh(settings, job, with_prompts(job.world, found.prompts))
    labelled = pairs.TrainingPairs(
        codecs.in_own_tokens(model.backbone, found.responses),
        found.chosen,
        found.rejected,
        torch.ones(len(found.chosen)),
    )
    return _fitted(settings, job, model, labelled)


def _fresh(settings: Settings, job: Job, world: World) -> ScalarHeadModel:
    """The untrained model on the device."""
    backbone = pairs.load_backbone(settings.source, world, layers=settings.layers)
    model = heads.ScalarHeadModel(backbone)
    model.init_head(torch_generator(job.seed, "head"))
    return model.to(job.device)


def _fitted(
    settings: Settings, job: Job, model: ScalarHeadModel, labelled: TrainingPairs
) -> Trained:
    with job.keep(model):
        training.train_reward_model(
            model,
            labelled,
            epochs=settings.epochs,
            lr=settings.lr,
            batch_prompts=8,
            weight_decay=0.01,
            seed=job.seed,
            validate=dict,
            progress=job.progress,
            compute=job.compute,
        )
    return Trained(reward_model.RewardModelScorer(model.eval(), 0.0, 1.0))
