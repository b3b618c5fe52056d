"""A generative judge: a language model writes a verdict behind a response, perhaps after a critique.

Zhang et al. 2025 (generative verifiers). The score is the log-odds of the verdict,

    log P(yes) − log P(no),

of the token behind prompt and response; or, with a critique, behind prompt, response and what the
model has written about it. Critiques are sampled, K of them; the verdict's probability is their mean,

    P(yes) = (1/K) Σ_k P(yes | critique k),        P(yes | ·) = σ(log-odds),

which estimates the sum over all critiques. Random numbers of a critique follow from the response and
the seed, so a response always has the same score.

There are two ways to make one. In a world with a judge the model learns to write what the judge would:
the critique of `World.critiques`, and the verdict. With ``template`` any language model is asked in
words, in any world, and nothing is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from overopt.base import files
from overopt.base.config import require
from overopt.base.errors import CheckpointError
from overopt.base.lazy import lazy
from overopt.base.seeding import torch_generator
from overopt.rewards.judged import Judged
from overopt.rewards.kind import Job, Place, Scorer, Standardised, Trained
from overopt.worlds.world import World

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor

    from overopt.base import datatypes
    from overopt.base.datatypes import Responses
    from overopt.nets import checkpoints, sampling
    from overopt.nets.backbone import Backbone
    from overopt.rewards.kinds import outcome, reward_model
    from overopt.rewards.training import verdicts
    from overopt.worlds import codecs, rows, tokenizers
else:
    torch, F = lazy("torch"), lazy("torch.nn.functional")
    datatypes, checkpoints = lazy("overopt.base.datatypes"), lazy("overopt.nets.checkpoints")
    sampling, codecs = lazy("overopt.nets.sampling"), lazy("overopt.worlds.codecs")
    outcome = lazy("overopt.rewards.kinds.outcome")
    reward_model = lazy("overopt.rewards.kinds.reward_model")
    verdicts, rows = lazy("overopt.rewards.training.verdicts"), lazy("overopt.worlds.rows")
    tokenizers = lazy("overopt.worlds.tokenizers")


@dataclass(frozen=True, kw_only=True)
class Settings(Judged):
    """A language model that writes a verdict, with or without a critique before it.

    Backbone, training and seed are those of `Fitted`; a backbone that is asked by ``template`` is not
    trained.

    Attributes
    ----------
    critique : bool
        Whether it writes a critique before its verdict.
    samples : int
        K critiques of each response; without a critique 1.
    temperature : float
        At which critiques are sampled.
    label : "right" or "right_and_valid"
        What it learns to say yes to: the right answer, or the answer by right steps.
    flip_rate : float
        Probability in [0, 0.5) that a verdict it learns from is inverted.
    batch_responses : int
        Responses a step.
    template : str
        Text that asks a language model about {prompt} and {response}; empty: it is trained.
    critique_tokens : int
        Longest critique of a model that is asked by ``template``.
    verdict, yes, no : str
        Line that a model which is asked ends with one of both words; the first tokens by which they
        differ are the verdict.
    """

    lr: float = 2e-3
    epochs: int = 4
    critique: bool = False
    samples: int = 1
    temperature: float = 1.0
    label: Literal["right", "right_and_valid"] = "right"
    flip_rate: float = 0.0
    batch_responses: int = 32
    template: str = ""
    critique_tokens: int = 128
    verdict: str = "Verdict:"
    yes: str = "yes"
    no: str = "no"

    def __post_init__(self) -> None:
        Judged.__post_init__(self)
        for name in ("samples", "batch_responses", "critique_tokens"):
            value = getattr(self, name)
            require(value >= 1, f"proxy.{name}", value, "must be at least 1")
        require(self.temperature > 0, "proxy.temperature", self.temperature, "must be positive")
        require(
            self.samples == 1 or self.critique,
            "proxy.samples",
            self.samples,
            "has no effect without a critique: a verdict alone is no sample; set proxy.critique=true",
        )
        require(
            0 <= self.flip_rate < 0.5,
            "proxy.flip_rate",
            self.flip_rate,
            "must be in [0, 0.5): at 0.5 labels carry nothing, above it they are inverted",
        )
        require(
            self.template == "" or _fields(self.template) == {"prompt", "response"},
            "proxy.template",
            self.template,
            "must have {prompt} and {response} in it, and no other braces",
        )
        require(
            self.yes != self.no, "proxy.yes", self.yes, "is the same as proxy.no: give two words"
        )

    @property
    def is_trained(self) -> bool:
        """Whether it learns from the world's judge, not asked by a template."""
        return self.template == ""

    @property
    def serves(self) -> tuple[str, ...]:
        """A proxy; a model that is only asked can be gold too."""
        return ("proxy",) if self.is_trained else ("gold", "proxy")

    @property
    def needs_judge(self) -> bool:
        """To learn from."""
        return self.is_trained

    @property
    def reads_tokens(self) -> bool:
        """Of the policy's, where it is trained; a model that is asked reads text."""
        return self.is_trained

    @property
    def seed(self) -> int | None:
        """Data order, and critiques; None: there is no training."""
        return self.rm_seed if self.is_trained else None

    @property
    def title(self) -> str:
        """Kind, size, critique, and what is not the default."""
        parts = ["judge", self.size]
        if self.critique:
            plural = "s" if self.samples > 1 else ""
            parts.append(f"{self.samples} critique{plural}")
            parts += [f"temperature {self.temperature:g}"] if self.temperature != 1 else []
        parts += ["right and valid"] if self.label == "right_and_valid" else []
        parts += [f"flips {self.flip_rate:g}"] if self.flip_rate else []
        parts += [] if self.is_trained else ["asked"]
        return " ".join(parts)

    @property
    def rate(self) -> float:
        """CPU seconds to score 2,000 pairs on the default backbone."""
        return 6.0 + (12.0 * self.samples if self.critique else 0.0)

    def cost_s(self, n_pairs: int) -> float:
        """Estimated CPU seconds of training on the default backbone."""
        return 4 + 0.005 * self.epochs * n_pairs if self.is_trained else 4.0


def _fields(template: str) -> set[str | None]:
    """The names in braces in a template; a set that no template has where it is none."""
    try:
        return {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError:
        return {None}


class Form(NamedTuple):
    """What a judge reads and writes, in its own tokens.

    fronts : rows of tokens (R) up to where it begins to write; behind : tokens between a critique and
    the verdict; yes, no : the verdict's tokens.
    """

    fronts: list[list[int]]
    behind: list[int]
    yes: int
    no: int


def trained_form(world: World, responses: Responses, end: int, *, critique: bool) -> Form:
    """Prompt, response and an end token; a critique, if there is one, ends likewise."""
    asked = codecs.real(responses.prompts.ids, responses.prompts.mask)
    answers = codecs.real(responses.ids, responses.mask)
    fronts = []
    for prompt, answer, ended in zip(asked, answers, responses.ended.tolist(), strict=True):
        fronts.append([*prompt, *(answer if ended else [*answer, end])])
    return Form(fronts, [end] if critique else [], *world.verdict_tokens)


def asked_form(settings: Settings, world: World, responses: Responses, codec: Any) -> Form:
    """The template with prompt and response in it, as a user's turn where the model chats."""
    texts = zip(world.prompt_texts(responses), world.response_texts(responses), strict=True)
    filled = [settings.template.format(prompt=p, response=r) for p, r in texts]
    fronts = codec.encode_prompts(filled)
    behind, yes, no = _verdict(settings, codec)
    if not settings.critique:
        fronts = [[*front, *behind] for front in fronts]
    return Form(fronts, behind, yes, no)


def _verdict(settings: Settings, codec: Any) -> tuple[list[int], int, int]:
    """Tokens of the line of the verdict up to where yes and no part, and the next of each."""
    lines = [f"\n{settings.verdict} {word}" for word in (settings.yes, settings.no)]
    yes, no = codecs.encode_pieces(codec.tokenizer, [[codecs.Piece(line)] for line in lines])
    parts = [i for i, (a, b) in enumerate(zip(yes, no, strict=False)) if a != b]
    if not parts:
        raise CheckpointError(
            f"proxy.yes = {settings.yes!r}: begins with the same tokens as proxy.no ="
            f" {settings.no!r} in the tokenizer of {settings.backbone!r}: give other words"
        )
    return yes[: parts[0]], yes[parts[0]], no[parts[0]]


def check(settings: Settings) -> None:
    """Raise CheckpointError where a model that is to be asked does not tell yes from no."""
    if not settings.is_trained:
        _verdict(settings, codecs.load_codec(settings.backbone))


def train(settings: Settings, job: Job) -> Trained:
    """Fit to what the judge says of the comparisons' responses; or take the model as it is.

    Raises
    ------
    CheckpointError
        A model that is to be trained has another tokenizer than the policy; or the job's start is no
        judge.
    """
    if job.start is not None and not isinstance(job.start, JudgeScorer):
        raise CheckpointError(f"a {type(job.start).__name__} writes no verdicts: it cannot go on")
    if not settings.is_trained:
        return Trained(
            JudgeScorer(_asked_model(settings).to(job.device), settings, job.world, job.seed)
        )
    if isinstance(job.start, JudgeScorer):
        model = job.start.policy.to(job.device)
    else:
        model = _fresh(settings, job)
    assert job.responses is not None and job.validate is not None
    responses, validate = job.responses(), job.validate
    is_strict = settings.label == "right_and_valid"
    target = outcome.outcomes(
        settings, job, responses, lambda v: v.right and (v.valid or not is_strict)
    )
    made = JudgeScorer(model, settings, job.world, job.seed)
    form = made.form(responses)
    said = [[form.yes if y else form.no] for y in target.tolist()]
    if settings.critique:
        longest = made.critique_tokens(responses) - 1
        critiques = [said[:longest] for said in job.world.critiques(responses)]
        said = [[*c, *form.behind, *v] for c, v in zip(critiques, said, strict=True)]
    with job.keep(model):
        log = verdicts.train_to_write(
            model,
            verdicts.written_behind(form.fronts, said),
            epochs=settings.epochs,
            lr=settings.lr,
            batch=settings.batch_responses,
            weight_decay=settings.weight_decay,
            seed=job.seed,
            validate=lambda: validate(made.raw),
            progress=job.progress,
            compute=job.compute,
        )
    model.eval()
    history = {
        "train_loss": log.loss,
        "validation": log.validation,
        "responses": len(responses),
        "share_right": float(target.mean()),
    }
    return Trained(made, history)


def _fresh(settings: Settings, job: Job) -> Backbone:
    """The pretrained model on the device, with room for what it reads and writes."""
    if not tokenizers.shares_vocabulary(settings.backbone, job.world.tokenizer):
        raise CheckpointError(
            f"proxy.backbone = {settings.backbone!r}: has another tokenizer than the policy, and learns"
            " to write in its tokens: use a model that shares it, or ask this one by proxy.template"
        )
    model = checkpoints.load_lm(settings.backbone, layers=settings.layers)
    longest = job.world.longest_prompt + 2 * job.n_tokens + 3
    return reward_model.with_room(model, longest, settings.backbone).to(job.device)


def _asked_model(settings: Settings) -> Backbone:
    return checkpoints.load_lm(settings.backbone, layers=settings.layers)


@dataclass(frozen=True)
class JudgeScorer(Standardised):
    """A language model as a judge, with the mean and std of its log-odds under the initial policy.

    policy : writes; settings : how it is asked; world : gives texts; seed : of critiques.
    """

    policy: Backbone
    settings: Settings
    world: World
    seed: int
    mean: float = 0.0
    std: float = 1.0

    @property
    def sizes(self) -> dict[str, int]:
        """Parameters of the network."""
        return checkpoints.n_params(self.policy)

    def form(self, responses: Responses) -> Form:
        """What it reads."""
        settings = self.settings
        if settings.is_trained:
            end = self.policy.cfg.eos_token_id
            return trained_form(self.world, responses, end, critique=settings.critique)
        codec = codecs.load_codec(settings.backbone)
        return asked_form(settings, self.world, responses, codec)

    def raw(self, responses: Responses) -> Tensor:
        """log P(yes) − log P(no), (R,) float32; with critiques, of their mean probability."""
        form = self.form(responses)
        if not self.settings.critique:
            return verdicts.verdict_log_odds(self.policy, form.fronts, form.yes, form.no)
        k = self.settings.samples
        fronts = [front for front in form.fronts for _ in range(k)]
        behind = [[*c, *form.behind] for c in self.critiques(form.fronts, responses)]
        read = [[*front, *more] for front, more in zip(fronts, behind, strict=True)]
        return mean_log_odds(
            verdicts.verdict_log_odds(self.policy, read, form.yes, form.no).view(-1, k)
        )

    def critiques(self, fronts: Sequence[Sequence[int]], responses: Responses) -> list[list[int]]:
        """K sampled critiques of each response, (R·K) rows of tokens without an end token."""
        k, end = self.settings.samples, self.policy.cfg.eos_token_id
        most = self.critique_tokens(responses)
        asked = codecs.real(responses.ids, responses.mask)
        numbers = responses.prompts.prompt_id.tolist()
        drawn = [
            torch.rand(
                (k, most),
                generator=torch_generator(self.seed, "critique", number, *tokens),
                dtype=torch.float64,
            )
            for number, tokens in zip(numbers, asked, strict=True)
        ]
        ids, mask = rows.padded(fronts, 0, left=True)
        found = sampling.sample(
            self.policy,
            datatypes.Prompts(ids, mask, torch.arange(len(ids))),
            n_tokens=most,
            seed=self.seed,
            copies=k,
            temperature=self.settings.temperature,
            uniform=torch.cat(drawn),
        )
        written = codecs.real(found.ids, found.mask)
        return [[token for token in row if token != end] for row in written]

    def critique_tokens(self, responses: Responses) -> int:
        """Longest critique, its end token included; what it learned to write has 3 tokens a step."""
        if not self.settings.is_trained:
            return self.settings.critique_tokens
        return responses.ids.shape[1] // 2 + 4

    def save(self, folder: Path, info: dict[str, Any]) -> None:
        """Weights and shape; of a model that was not trained its name alone."""
        here: dict[str, Any] = {"kind": "judge", "mean": self.mean, "std": self.std}
        here |= {"settings": _kept(self.settings), "seed": self.seed}
        if self.settings.is_trained:
            state = checkpoints.backbone_state(self.policy)
            files.save_tensors(folder / "model.safetensors", state)
            here |= reward_model.shape_of(self.policy)
        files.save_json(folder / "scorer.json", info | here)


_KEPT = (
    *("backbone", "layers", "critique", "samples", "temperature", "template", "critique_tokens"),
    *("verdict", "yes", "no"),
)


def _kept(settings: Settings) -> dict[str, Any]:
    """The settings that scoring reads, as JSON."""
    return {name: getattr(settings, name) for name in _KEPT}


def mean_log_odds(odds: Tensor) -> Tensor:
    """Log-odds (R,) of the mean over K of the probabilities σ(odds), odds (R, K)."""
    yes, no = (F.logsigmoid(x).logsumexp(1) for x in (odds, -odds))
    return yes - no


def load(folder: Path, info: dict[str, Any], place: Place) -> Scorer:
    """What `JudgeScorer.save` wrote; a model that was not trained is read from its source."""
    settings = Settings(**{name: info["settings"][name] for name in _KEPT})
    if settings.is_trained:
        weights = files.load_tensors(folder / "model.safetensors")
        policy = reward_model.backbone_of(info, weights, folder / "scorer.json")
    else:
        place.check_source(folder, settings.backbone)
        policy = _asked_model(settings)
    unit = (info["mean"], info["std"])
    return JudgeScorer(policy.to(place.device).eval(), settings, place.world, info["seed"], *unit)
