"""PPO against a proxy, in the form of Ziegler et al. 2019: gold-blind by construction.

A separate value model, per-token KL penalty in the reward (weight 0 by default), GAE, clipped
policy and value losses, whitened advantages. One call of `step` is one rollout batch:

1. sample responses from the policy                      4. advantages by GAE, whitened
2. score them with the proxy, log-probs of reference     5. minibatch updates of policy and value
3. shape the score; per-token rewards                    6. adapt penalty and multiplier to targets

Random numbers of step k come from (seed, name, k), so a resumed run needs no generator state: the
policy, the value model, both Adam states, the KL penalty's weight and the step number are the whole
state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from overopt.base.config import require
from overopt.base.errors import DivergenceError
from overopt.base.lazy import lazy
from overopt.base.seeding import torch_generator
from overopt.base.shown import Shown
from overopt.methods.method import Problem, shaping_name
from overopt.methods.pace import KL_LOGGED
from overopt.methods.targets import (
    Targeted,
    adapted_kl_coef,
    constraint_name,
    next_multiplier,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from overopt.base import datatypes
    from overopt.base.datatypes import Responses, Sequences
    from overopt.methods import losses, rollouts, values
    from overopt.nets import checkpoints, compute, heads, sampling
    from overopt.nets.backbone import Backbone
    from overopt.nets.heads import ScalarHeadModel
else:
    torch = lazy("torch")
    datatypes = lazy("overopt.base.datatypes")
    losses, rollouts = lazy("overopt.methods.losses"), lazy("overopt.methods.rollouts")
    values = lazy("overopt.methods.values")
    checkpoints, compute = lazy("overopt.nets.checkpoints"), lazy("overopt.nets.compute")
    heads, sampling = lazy("overopt.nets.heads"), lazy("overopt.nets.sampling")

SHOWN = Shown(
    label="PPO",
    coord="ppo_step",
    axis="PPO step",
    form="rl",
    marker="s",
    treatments={"kl_coef": "kl_coef ", "step_kl": "step KL ", "adv_scale": "advantages by "},
)


@dataclass(frozen=True, kw_only=True)
class Settings(Targeted):
    """PPO against the proxy, in the form of Ziegler et al. 2019.

    Attributes
    ----------
    batch : int
        Responses a step, which is one rollout batch.
    ppo_epochs, minibatches : int
        Passes over a batch and optimizer steps a pass.
    value_lr : float
        Peak learning rate of the value model, as ``lr`` of the policy. Both rise over
        ``warmup_steps``: gold turns over within the first nats, and a full-size first step would
        jump across its peak.
    kl_coef : float
        Weight of the per-token KL penalty in the reward; 0 as in Gao et al. 2022.
    kl_target, kl_gain : float
        Target of the sequence KL in nats for an adaptive ``kl_coef`` (Ziegler et al. 2019), and the
        controller's gain K_β per step; a target of 0 keeps ``kl_coef`` fixed.
    value_backbone : str
        Pretrained trunk of the value model; a small one costs a third of a step less.
    gamma, lam, clip, value_clip, grad_clip : float
        Discount, GAE λ, ratio clip, value clip (units of the normalised score), gradient norm.
    adv_scale : "batch" or "fixed"
        What advantages, less their mean, are divided by: their sd in this batch (whitening), which
        keeps gradients large when all responses score alike, or their sd in the first batch.
    max_update_kl_token_nats : float
        A pass stops for this step once the k3 estimate of KL(π_old‖π_new) per token exceeds it.
    ppo_seed : int
        Rollouts and data order.
    """

    batch: int = 128
    ppo_epochs: int = 1
    minibatches: int = 4
    value_lr: float = 1e-3
    kl_coef: float = 0.0
    kl_target: float = 0.0
    kl_gain: float = 0.1
    value_backbone: str = "ladder:0.2m"
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    value_clip: float = 0.2
    grad_clip: float = 1.0
    adv_scale: Literal["batch", "fixed"] = "batch"
    max_update_kl_token_nats: float = 0.05
    ppo_seed: int = 0

    def __post_init__(self) -> None:
        Targeted.__post_init__(self)
        for name in ("batch", "ppo_epochs", "minibatches"):
            require(getattr(self, name) >= 1, f"method.{name}", getattr(self, name), "at least 1")
        require(
            self.batch % self.minibatches == 0,
            "method.batch",
            self.batch,
            "a multiple of minibatches",
        )
        require(self.kl_coef >= 0, "method.kl_coef", self.kl_coef, "must be at least 0")
        require(self.kl_target >= 0, "method.kl_target", self.kl_target, "must be at least 0 nats")
        require(
            self.kl_target == 0 or self.kl_coef > 0,
            "method.kl_coef",
            self.kl_coef,
            "must be above 0 with method.kl_target: the controller multiplies it",
        )
        require(
            self.kl_gain > 0 and (self.kl_target > 0 or self.kl_gain == 0.1),
            "method.kl_gain",
            self.kl_gain,
            "must be above 0, and needs method.kl_target",
        )

    @property
    def seed(self) -> int:
        """Of rollouts and data order."""
        return self.ppo_seed

    def with_seed(self, seed: int) -> Settings:
        """The same as another replicate."""
        return replace(self, ppo_seed=seed)

    @property
    def responses_per_step(self) -> int:
        """Responses that the proxy scores in one step."""
        return self.batch

    @property
    def sources(self) -> dict[str, str]:
        """The value model's trunk; values are per token, so it must share the policy's tokenizer."""
        return {"value_backbone": self.value_backbone}

    @property
    def cost_s(self) -> float:
        """Estimated CPU seconds of a run on the default policy."""
        return 5 + self.steps * self.batch * 0.025 * self.ppo_epochs

    @property
    def version(self) -> int:
        """Of the stage."""
        return 3 if self.precision == "bf16" else 2

    @property
    def treatment(self) -> str:
        """Shaping and adaptive KL penalty."""
        parts = [shaping_name(self), constraint_name(self)]
        if self.kl_target > 0:
            gain = "" if self.kl_gain == Settings.kl_gain else f" gain {self.kl_gain:g}"
            parts.append(f"KL target {self.kl_target:g}{gain}")
        return ", ".join(filter(None, parts))

    @property
    def title(self) -> str:
        """KL penalty and seed."""
        return f"kl {self.kl_coef} seed {self.ppo_seed}"


def columns(settings: Settings) -> dict[str, Any]:
    """Record columns of a PPO run."""
    shapes = settings.shaping != "none"
    return {
        "shaping": settings.shaping,
        "shaping_scale": settings.shaping_scale if shapes else None,
        "kl_target": settings.kl_target,
        "ppo_seed": settings.ppo_seed,
        "kl_coef": settings.kl_coef,
        "ppo_lr": settings.lr,
        "step_kl": settings.step_kl,
        "adv_scale": settings.adv_scale,
    }


# --- state ----------------------------------------------------------------------------------------


@dataclass
class PpoState:
    """Everything that changes during PPO.

    ``lr``: the policy's in the next step where it is adapted; ``adv_scale``: what advantages are divided
    by where it is fixed; both 0 before the first step. ``multiplier``: of the proxy.
    """

    policy: Backbone
    value: ScalarHeadModel
    policy_opt: torch.optim.Adam
    value_opt: torch.optim.Adam
    kl_coef: float = 0.0
    lr: float = 0.0
    adv_scale: float = 0.0
    multiplier: float = 1.0
    step: int = 0
    grad_steps: int = 0

    @property
    def parts(self) -> list[rollouts.Trained]:
        """Both networks with their optimizers."""
        return [
            rollouts.Trained("policy", self.policy, self.policy_opt),
            rollouts.Trained("value", self.value, self.value_opt),
        ]


def start(policy: Backbone, settings: Settings, problem: Problem) -> PpoState:
    """Fresh optimizers around the policy and a value model that starts at 0."""
    trunk = checkpoints.load_trunk(settings.value_backbone)
    return new_state(policy, heads.ScalarHeadModel(trunk).to(policy.device), settings)


def new_state(policy: Backbone, value: ScalarHeadModel, settings: Settings) -> PpoState:
    """Fresh optimizers around a policy and a value model."""
    return PpoState(
        policy,
        value,
        rollouts.adam(policy, settings.lr),
        rollouts.adam(value, settings.value_lr),
        kl_coef=settings.kl_coef,
    )


def state_tensors(state: PpoState) -> dict[str, Tensor]:
    """The state as named tensors, for a checkpoint."""
    return {
        "counters": torch.tensor([state.step, state.grad_steps]),
        "kl_coef": torch.tensor(state.kl_coef, dtype=torch.float64),
        **rollouts.saved_numbers(state),
    } | rollouts.saved(state.parts)


def load_state_tensors(state: PpoState, tensors: dict[str, Tensor]) -> None:
    """Restore what `state_tensors` saved, in place, whatever device it was saved from."""
    state.step, state.grad_steps = (int(x) for x in tensors["counters"])
    state.kl_coef = float(tensors["kl_coef"])
    rollouts.restore_numbers(state, tensors)
    rollouts.restore(state.parts, tensors)


# --- one step -------------------------------------------------------------------------------------


class _Batch(NamedTuple):
    """A rollout with all that updates need, R rows of at most T tokens.

    score, reward (R,); old_logp, values, log_ratio (R, T), 0 where masked; mask (R, T) bool.
    """

    responses: Responses
    seq: Sequences
    mask: Tensor
    score: Tensor
    reward: Tensor
    old_logp: Tensor
    values: Tensor
    log_ratio: Tensor


class _Targets(NamedTuple):
    """What the losses compare with, (R, T) each, on the device of the policy."""

    old_logp: Tensor
    advantages: Tensor
    values: Tensor
    returns: Tensor
    seq: Sequences


class _Update(NamedTuple):
    """Loss of one optimizer step and its statistics, over all its tokens."""

    loss: float
    value_loss: float
    clip_fraction: float
    kl_token_nats: float
    entropy_token_nats: float


def step(state: PpoState, settings: Settings, problem: Problem) -> dict[str, float]:
    """One PPO step in place; returns its diagnostics (see docs/metrics.md).

    Raises
    ------
    DivergenceError
        A loss is not finite; names the step.
    MemoryLimitError
        A single response does not fit the memory.
    """
    kl_coef = state.kl_coef
    batch = _roll_out(state, settings, problem)
    targets = _advantages(state, batch, settings)
    updates = _update(state, batch, targets, settings, problem)
    pace = rollouts.adapt_rate(state, settings, batch.responses, batch.old_logp, problem.compute)
    # 6. The k1 estimate on the rollout is unbiased for the KL of the policy that was sampled from; below
    # float32, where the log-probabilities are those of training, up to the rounding between the two.
    kl_seq_nats = float(batch.log_ratio.sum(1).mean())
    if settings.kl_target > 0:
        state.kl_coef = adapted_kl_coef(
            kl_coef, kl_seq_nats, target=settings.kl_target, gain=settings.kl_gain
        )
    score, weight = float(batch.score.mean()), state.multiplier
    state.multiplier = next_multiplier(weight, score, settings)
    state.step += 1
    return {
        "train_proxy_score": score,
        "train_reward": float(batch.reward.mean()),
        "kl_coef": kl_coef,
        **({KL_LOGGED: kl_seq_nats} if kl_coef > 0 or settings.measures_kl else {}),
        **({"multiplier": weight} if settings.proxy_target > 0 else {}),
        **pace,
        "train_response_tokens": float(batch.mask.sum(1).float().mean()),
        "entropy_token_nats": updates[0].entropy_token_nats,
        "update_kl_token_nats": max(u.kl_token_nats for u in updates),
        "clip_fraction": max(u.clip_fraction for u in updates),
        "value_loss": updates[0].value_loss,
        "updates_stopped": float(_is_too_far(updates[-1], settings)),
    }


def _roll_out(state: PpoState, settings: Settings, problem: Problem) -> _Batch:
    """Responses to a fresh draw of prompts, their scores, log-probabilities and values.

    The old log-probabilities are those sampled with. At lower precision they are recomputed as
    training computes them, so that the ratio starts at 1, and with a KL penalty as the reference's
    are, so that equal weights give a penalty of exactly 0.
    """
    # 1. One response to each prompt.
    draw = rollouts.prompts_of_step(
        len(problem.prompts), batch=settings.batch, seed=problem.seed, step=state.step
    )
    responses = rollouts.rollout(state.policy, problem, draw, step=state.step)
    # 2. Scores and log-probabilities.
    ways, shared = problem.compute, rollouts.shared
    score = shared(ways, problem.proxy.score, responses)
    seq = responses.sequences()
    mask = sampling.response_view(seq).mask
    width = mask.shape[1]
    has_penalty = state.kl_coef > 0
    logprobs = sampling.score_logprobs
    with torch.no_grad(), ways.autocast(state.policy.device):
        old_logp = responses.logprobs[:, :width]
        if ways.precision != "fp32" or has_penalty:
            old_logp = shared(ways, partial(logprobs, state.policy), responses)[:, :width]
        value = shared(ways, partial(values.rollout_values, state.value), responses)[:, :width]
        ref_logp = old_logp
        if has_penalty or settings.measures_kl:
            ref_logp = shared(ways, partial(logprobs, problem.ref_policy), responses)[:, :width]
    reward = rollouts.shaped(problem, score, responses.length, draw) * state.multiplier
    log_ratio = (old_logp - ref_logp) * mask
    return _Batch(responses, seq, mask, score, reward, old_logp, value, log_ratio)


def _advantages(state: PpoState, batch: _Batch, settings: Settings) -> _Targets:
    """Rewards and advantages over the whole batch, as tables on the device (steps 3 and 4)."""
    device, mask = state.policy.device, batch.mask
    rewards = losses.rewards_from_scores(batch.reward, batch.log_ratio, mask, kl_coef=state.kl_coef)
    estimate = losses.gae(rewards, batch.values, mask, gamma=settings.gamma, lam=settings.lam)
    white = losses.whiten(estimate.advantages, mask)
    if settings.adv_scale == "fixed":
        now = float(losses.spread(estimate.advantages, mask))
        state.adv_scale = state.adv_scale or now
        white = white * (now / state.adv_scale)
    tables = (batch.old_logp, white, batch.values, estimate.returns)
    seq = datatypes.Sequences(*(t.to(device) for t in batch.seq))
    old_logp, advantages, values, returns = (t.to(device) for t in tables)
    return _Targets(old_logp, advantages, values, returns, seq)


def _update(
    state: PpoState, batch: _Batch, targets: _Targets, settings: Settings, problem: Problem
) -> list[_Update]:
    """Minibatch updates of policy and value (step 5), until one has moved the policy too far."""
    value_rate = settings.value_lr * settings.warmed(state.step)
    rollouts.set_rates(state.parts, [rollouts.rate(state, settings), value_rate])
    parameters = [p for part in state.parts for p in part.module.parameters()]
    updates: list[_Update] = []
    for epoch in range(settings.ppo_epochs):
        if updates and _is_too_far(updates[-1], settings):
            break
        generator = torch_generator(problem.seed, "minibatches", state.step, epoch)
        order = torch.randperm(settings.batch, generator=generator)
        for rows in order.chunk(settings.minibatches):
            loss = partial(
                _losses,
                state=state,
                batch=batch,
                targets=targets,
                settings=settings,
                ways=problem.compute,
                n_tokens=int(batch.mask[rows].sum()),
                is_first=not updates,
            )
            update = _Update(*problem.compute.accumulate(rows, parameters, loss).tolist())
            _check_finite(update, state, settings)
            updates.append(update)
            if _is_too_far(update, settings):
                break
            for _, module, opt in state.parts:
                torch.nn.utils.clip_grad_norm_(module.parameters(), settings.grad_clip)
                opt.step()
            state.grad_steps += 1
    compute.clear_gradients(parameters)
    return updates


def _losses(
    rows: Tensor,
    *,
    state: PpoState,
    batch: _Batch,
    targets: _Targets,
    settings: Settings,
    ways: compute.Compute,
    n_tokens: int,
    is_first: bool,
) -> Tensor:
    """Loss and statistics (5,) of some rows, as parts of sums over ``n_tokens`` tokens.

    Rows are chosen on the device, from lengths that are known here. ``is_first``: entropy is
    recorded, of the first update only.
    """
    device = state.policy.device
    at, width = rows.to(device, non_blocking=True), int(batch.seq.length[rows].max())
    w = int((batch.seq.length - batch.seq.n_prompt)[rows].max())
    seq = targets.seq
    part = datatypes.Sequences(seq.ids[at, :width], seq.length[at], seq.n_prompt[at])
    sub = sampling.response_view(part, w)
    with ways.autocast(device):
        hidden = sampling.response_hidden(state.policy, part, sub)
        logits = state.policy.logits(hidden).float()
        new_values = values.token_values(state.value, part).float()
    policy_loss = losses.clipped_policy_loss(
        sampling.token_logprobs(logits, sub.tokens),
        targets.old_logp[at, :w],
        targets.advantages[at, :w],
        sub.mask,
        clip=settings.clip,
        n_tokens=n_tokens,
    )
    value_loss = losses.clipped_value_loss(
        new_values,
        targets.values[at, :w],
        targets.returns[at, :w],
        sub.mask,
        clip=settings.value_clip,
        n_tokens=n_tokens,
    )
    nats = value_loss.detach() * 0
    if is_first:
        nats = (sampling.entropy(logits.detach()) * sub.mask).sum() / n_tokens
    return torch.stack(
        [
            policy_loss.loss + value_loss,
            value_loss,
            policy_loss.clip_fraction,
            policy_loss.update_kl_token_nats,
            nats,
        ]
    )


def _is_too_far(update: _Update, settings: Settings) -> bool:
    return update.kl_token_nats > settings.max_update_kl_token_nats


def _check_finite(update: _Update, state: PpoState, settings: Settings) -> None:
    if not math.isfinite(update.loss):
        rate = "lr" if math.isfinite(update.value_loss) else "value_lr"
        raise DivergenceError(
            f"PPO loss is {update.loss} at step {state.step} (value {update.value_loss}):"
            f" lower method.{rate} = {getattr(settings, rate)}"
        )
