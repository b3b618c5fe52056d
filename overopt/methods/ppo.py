"""PPO against a proxy, in the form of Ziegler et al. 2019: gold-blind by construction.

A separate value model, per-token KL penalty in the reward (weight 0 by default), GAE, clipped
policy and value losses, whitened advantages. One call of `ppo_step` is one rollout batch:

1. sample responses from the policy                      4. advantages by GAE, whitened
2. score them with the proxy, log-probs of reference     5. minibatch updates of policy and value
3. shape the score; per-token rewards                    6. adapt the KL penalty, if it has a target

Random numbers of step k come from (seed, name, k), so a resumed run needs no generator state: the
policy, the value model, both Adam states, the KL penalty's weight and the step number are the whole
state.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from overopt.base.config import check_types, require
from overopt.base.datatypes import Prompts, Responses, Scorer, Sequences
from overopt.base.errors import DivergenceError
from overopt.base.seeding import derive_seed, torch_generator
from overopt.methods.losses import gae, ppo_policy_loss, ppo_value_loss, rewards_from_scores, whiten
from overopt.nets.compute import Compute, clear_gradients, tokens_at_once
from overopt.nets.heads import ScalarHeadModel
from overopt.nets.llama import Llama
from overopt.nets.sampling import (
    entropy,
    response_hidden,
    response_view,
    sample,
    score_logprobs,
    sequence_batches,
    token_logprobs,
)

_FORWARD_TOKENS = 8192  # padded tokens of one forward pass without gradient


Shape = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Reward (R,) from the proxy's score (R,), response tokens (R,) and the numbers (R,) of the prompts."""


@dataclass
class PpoState:
    """Everything that changes during PPO."""

    policy: Llama
    value: ScalarHeadModel
    policy_opt: torch.optim.Adam
    value_opt: torch.optim.Adam
    kl_coef: float = 0.0
    step: int = 0
    grad_steps: int = 0


def new_state(policy: Llama, value: ScalarHeadModel, cfg: Any) -> PpoState:
    """Fresh optimizers around a policy and a value model. ``cfg``: `settings.PpoConfig`."""
    return PpoState(
        policy,
        value,
        torch.optim.Adam(policy.parameters(), lr=cfg.lr, eps=1e-5, fused=True),
        torch.optim.Adam(value.parameters(), lr=cfg.value_lr, eps=1e-5, fused=True),
        kl_coef=cfg.kl_coef,
    )


def state_tensors(state: PpoState) -> dict[str, Tensor]:
    """The state as named tensors, for a checkpoint."""
    out = {
        "counters": torch.tensor([state.step, state.grad_steps]),
        "kl_coef": torch.tensor(state.kl_coef, dtype=torch.float64),
    }
    for name, module, opt in _parts(state):
        for key, p in module.named_parameters():
            out[f"{name}.{key}"] = p.detach()
            for moment, x in opt.state.get(p, {}).items():
                out[f"{name}_adam.{moment}.{key}"] = x.detach()
    return out


def load_state_tensors(state: PpoState, tensors: dict[str, Tensor]) -> None:
    """Restore what `state_tensors` saved, in place, whatever device it was saved from."""
    state.step, state.grad_steps = (int(x) for x in tensors["counters"])
    state.kl_coef = float(tensors["kl_coef"])
    with torch.no_grad():
        for name, module, opt in _parts(state):
            for key, p in module.named_parameters():
                p.copy_(tensors[f"{name}.{key}"])
                opt.state[p] = {
                    moment: tensors[f"{name}_adam.{moment}.{key}"].to(p.device, copy=True)
                    for moment in ("step", "exp_avg", "exp_avg_sq")
                    if f"{name}_adam.{moment}.{key}" in tensors
                }


def _parts(state: PpoState) -> list[tuple[str, nn.Module, torch.optim.Adam]]:
    return [
        ("policy", state.policy, state.policy_opt),
        ("value", state.value, state.value_opt),
    ]


def _values(model: ScalarHeadModel, seq: Sequences) -> Tensor:
    """Value estimates (R, T) at the state before each response token."""
    view = response_view(seq)
    return model.head(response_hidden(model.backbone, seq, view))[..., 0] * view.mask


def _rollout_values(model: ScalarHeadModel, responses: Responses) -> Tensor:
    """Value estimates (R, T) before each response token, 0 where masked; no gradient."""
    out = torch.zeros(responses.ids.shape)
    device = model.head.weight.device
    at_once = tokens_at_once(device, _FORWARD_TOKENS)
    for rows, seq in sequence_batches(responses, at_once, device):
        values = _values(model, seq).float().cpu()
        out[rows, : values.shape[1]] = values
    return out


def _shared(compute: Compute, table: Callable[[Responses], Tensor], responses: Responses) -> Tensor:
    """``table(responses)`` (R, …), each process computing its share of the rows."""
    if compute.n_ranks == 1:
        return table(responses)
    mine = compute.share(torch.arange(len(responses)))
    return compute.gather(table(responses.select(mine)), mine, len(responses))


class _Update(NamedTuple):
    """Loss of one optimizer step and its statistics, over all its tokens."""

    loss: float
    value_loss: float
    clip_fraction: float
    kl_token_nats: float
    entropy_token_nats: float


def prompts_of_step(n_prompts: int, *, batch: int, seed: int, step: int) -> Tensor:
    """Which prompts step ``step`` rolls out, (batch,) int64 with repetitions."""
    return torch.randint(n_prompts, (batch,), generator=torch_generator(seed, "prompts", step))


@torch.no_grad()
def reference_scores(
    ref_policy: Llama, proxy: Scorer, prompts: Prompts, cfg: Any, *, n_tokens: int, seed: int
) -> Tensor:
    """Proxy score (P,) of one response of the reference policy to each prompt this run rolls out.

    nan for prompts that no step draws. The cost is one more response for each prompt drawn, once.
    """
    steps = (
        prompts_of_step(len(prompts), batch=cfg.batch, seed=seed, step=step)
        for step in range(cfg.steps)
    )
    drawn = torch.cat(list(steps)).unique()
    responses = sample(
        ref_policy, prompts.select(drawn), n_tokens=n_tokens, seed=derive_seed(seed, "reference")
    )
    scores = torch.full((len(prompts),), torch.nan)
    scores[drawn] = proxy.score(responses).float()
    return scores


def adapted_kl_coef(kl_coef: float, kl_seq_nats: float, *, target: float, gain: float) -> float:
    """Next weight of the KL penalty: β·(1 + K_β·clip((KL − target)/target, −0.2, 0.2)).

    Ziegler et al. 2019, sec. 2.2, with KL(π‖π_ref) per response in nats. Implementations that speak
    of a horizon (in responses) have K_β = batch / horizon.
    """
    error = (kl_seq_nats - target) / target
    return kl_coef * (1 + gain * min(max(error, -0.2), 0.2))


def ppo_step(
    state: PpoState,
    ref_policy: Llama,
    proxy: Scorer,
    prompts: Prompts,
    cfg: Any,
    *,
    n_tokens: int,
    seed: int,
    shape: Shape | None = None,
    compute: Compute | None = None,
) -> dict[str, float]:
    """One PPO step in place; returns its diagnostics (see docs/metrics.md).

    ``shape``: what is maximised in place of the score, see `Shape`; None: the score.

    Raises
    ------
    DivergenceError
        A loss is not finite; names the step.
    MemoryLimitError
        A single response does not fit the memory.
    """
    compute = compute or Compute()
    # 1. Rollout: a fresh draw of prompts, one response each.
    draw = prompts_of_step(len(prompts), batch=cfg.batch, seed=seed, step=state.step)
    rollout = sample(
        state.policy,
        prompts.select(draw),
        n_tokens=n_tokens,
        seed=derive_seed(seed, "rollout", state.step),
        compute=compute,
        precision=compute.precision,
    )
    # 2. Scores and log-probabilities. The old ones are those sampled with. At lower precision they are
    # recomputed as training computes them, so that the ratio starts at 1, and with a KL penalty as
    # the reference's are, so that equal weights give a penalty of exactly 0.
    score = _shared(compute, proxy.score, rollout)
    seq = rollout.sequences()
    view = response_view(seq)
    width = view.mask.shape[1]
    mask, kl_coef = view.mask, state.kl_coef
    device = state.policy.device
    with torch.no_grad(), compute.autocast(device):
        old_logp = rollout.logprobs[:, :width]
        if compute.precision != "fp32" or kl_coef > 0:
            old_logp = _shared(compute, partial(score_logprobs, state.policy), rollout)[:, :width]
        values = _shared(compute, partial(_rollout_values, state.value), rollout)[:, :width]
        ref_logp = old_logp
        if kl_coef > 0:
            ref_logp = _shared(compute, partial(score_logprobs, ref_policy), rollout)[:, :width]
    # 3. and 4. Rewards and advantages over the whole batch.
    log_ratio = (old_logp - ref_logp) * mask
    reward = score
    if shape is not None:
        reward = shape(score, rollout.length, draw)
    rewards = rewards_from_scores(reward, log_ratio, mask, kl_coef=kl_coef)
    estimate = gae(rewards, values, mask, gamma=cfg.gamma, lam=cfg.lam)
    advantages = whiten(estimate.advantages, mask)
    # 5. Updates.
    warm = min(1.0, (state.step + 1) / max(1, cfg.warmup_steps))
    decay = warm * (1 - 0.9 * state.step / cfg.steps)
    for opt, lr in ((state.policy_opt, cfg.lr), (state.value_opt, cfg.value_lr)):
        for group in opt.param_groups:
            group["lr"] = lr * decay
    parameters = [p for _, module, _ in _parts(state) for p in module.parameters()]
    # Tables go to the device once; rows are chosen there, from lengths that are known here.
    tables = (old_logp, advantages, values, estimate.returns)
    old_there, advantages_there, values_there, returns_there = (t.to(device) for t in tables)
    seq_there = Sequences(*(t.to(device) for t in seq))
    updates: list[_Update] = []
    stopped = False
    for epoch in range(cfg.ppo_epochs):
        order = torch.randperm(
            cfg.batch, generator=torch_generator(seed, "minibatches", state.step, epoch)
        )
        for rows in order.chunk(cfg.minibatches):
            if stopped:
                break
            n = int(mask[rows].sum())

            def losses(rows: Tensor, n: int = n, first: bool = not updates) -> Tensor:
                at, width = rows.to(device, non_blocking=True), int(seq.length[rows].max())
                w = int((seq.length - seq.n_prompt)[rows].max())
                part = Sequences(
                    seq_there.ids[at, :width], seq_there.length[at], seq_there.n_prompt[at]
                )
                sub = response_view(part, w)
                with compute.autocast(device):
                    logits = state.policy.logits(response_hidden(state.policy, part, sub)).float()
                    new_values = _values(state.value, part).float()
                policy_loss = ppo_policy_loss(
                    token_logprobs(logits, sub.tokens),
                    old_there[at, :w],
                    advantages_there[at, :w],
                    sub.mask,
                    clip=cfg.clip,
                    n_tokens=n,
                )
                value_loss = ppo_value_loss(
                    new_values,
                    values_there[at, :w],
                    returns_there[at, :w],
                    sub.mask,
                    clip=cfg.value_clip,
                    n_tokens=n,
                )
                nats = value_loss.detach() * 0
                if first:  # the only one that is recorded
                    nats = (entropy(logits.detach()) * sub.mask).sum() / n
                return torch.stack(
                    [
                        policy_loss.loss + value_loss,
                        value_loss,
                        policy_loss.clip_fraction,
                        policy_loss.update_kl_token_nats,
                        nats,
                    ]
                )

            update = _Update(*compute.accumulate(rows, parameters, losses).tolist())
            if not math.isfinite(update.loss):
                rate = "lr" if math.isfinite(update.value_loss) else "value_lr"
                raise DivergenceError(
                    f"PPO loss is {update.loss} at step {state.step} (value {update.value_loss}):"
                    f" lower ppo.{rate} = {getattr(cfg, rate)}"
                )
            updates.append(update)
            if update.kl_token_nats > cfg.max_update_kl_token_nats:
                stopped = True
                break
            for _, module, opt in _parts(state):
                torch.nn.utils.clip_grad_norm_(module.parameters(), cfg.grad_clip)
                opt.step()
            state.grad_steps += 1
    clear_gradients(parameters)
    # 6. The k1 estimate on the rollout is unbiased for the KL of the policy that was sampled from; below
    # float32, where the log-probabilities are those of training, up to the rounding between the two.
    kl_seq_nats = float(log_ratio.sum(1).mean())
    if cfg.kl_target > 0:
        state.kl_coef = adapted_kl_coef(
            kl_coef, kl_seq_nats, target=cfg.kl_target, gain=cfg.kl_gain
        )
    state.step += 1
    return {
        "train_proxy_score": float(score.mean()),
        "train_reward": float(reward.mean()),
        "kl_coef": kl_coef,
        **({"train_kl_seq_nats": kl_seq_nats} if kl_coef > 0 else {}),
        "train_response_tokens": float(mask.sum(1).float().mean()),
        "entropy_token_nats": updates[0].entropy_token_nats,
        "update_kl_token_nats": max(u.kl_token_nats for u in updates),
        "clip_fraction": max(u.clip_fraction for u in updates),
        "value_loss": updates[0].value_loss,
        "updates_stopped": float(stopped),
    }


def evaluate_policy(
    policy: Llama, prompts: Prompts, *, copies: int, n_tokens: int, seed: int
) -> Responses:
    """Responses to fixed evaluation prompts with random numbers of their own."""
    return sample(policy, prompts, n_tokens=n_tokens, seed=seed, copies=copies)


@dataclass(frozen=True, kw_only=True)
class PpoConfig:
    """PPO against the proxy, in the form of Ziegler et al. 2019.

    Attributes
    ----------
    steps, batch : int
        PPO steps (one rollout batch each) and responses a batch.
    ppo_epochs, minibatches : int
        Passes over a batch and optimizer steps a pass.
    lr, value_lr : float
        Peak Adam learning rates (eps 1e-5), decayed linearly to a tenth.
    warmup_steps : int
        Steps over which both rates rise linearly to their peak: gold turns over within the first
        nats, and a full-size first step would jump across its peak.
    kl_coef : float
        Weight of the per-token KL penalty in the reward; 0 as in Gao et al. 2022.
    kl_target, kl_gain : float
        Target of the sequence KL in nats for an adaptive ``kl_coef`` (Ziegler et al. 2019), and the
        controller's gain K_β per step; a target of 0 keeps ``kl_coef`` fixed.
    shaping : "none", "clip", "par" or "log_sigmoid"
        Monotone function of the proxy score that PPO maximises instead of the score.
    shaping_scale : float
        Bound of ``clip`` in sd of the score; slope of the others per sd.
    value_backbone : str
        Pretrained trunk of the value model; a small one costs a third of a step less.
    gamma, lam, clip, value_clip, grad_clip : float
        Discount, GAE λ, ratio clip, value clip (units of the normalised score), gradient norm.
    max_update_kl_token_nats : float
        A pass stops for this step once the k3 estimate of KL(π_old‖π_new) per token exceeds it.
    eval_every, eval_early_every, eval_prompts, eval_copies : int
        Evaluation on fixed prompts with random numbers of its own: every ``eval_early_every`` steps
        during warm-up, every ``eval_every`` after it.
    eval_offset : int
        First prompt of the eval split that is used; keeps tuning and test prompts apart.
    precision : "fp32" or "bf16"
        Of matrix products in training and in rollouts; evaluation is float32.
    ppo_seed : int
        Rollouts and data order.
    """

    steps: int = 50
    batch: int = 128
    ppo_epochs: int = 1
    minibatches: int = 4
    lr: float = 8e-4
    value_lr: float = 1e-3
    warmup_steps: int = 10
    kl_coef: float = 0.0
    kl_target: float = 0.0
    kl_gain: float = 0.1
    shaping: Literal["none", "clip", "par", "log_sigmoid"] = "none"
    shaping_scale: float = 1.0
    value_backbone: str = "ladder:0.2m"
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    value_clip: float = 0.2
    grad_clip: float = 1.0
    max_update_kl_token_nats: float = 0.05
    eval_every: int = 5
    eval_early_every: int = 2
    eval_prompts: int = 96
    eval_copies: int = 2
    eval_offset: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    ppo_seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        counts = ("steps", "batch", "ppo_epochs", "minibatches")
        for name in (*counts, "eval_every", "eval_early_every", "eval_copies"):
            require(getattr(self, name) >= 1, f"ppo.{name}", getattr(self, name), "at least 1")
        require(self.warmup_steps >= 0, "ppo.warmup_steps", self.warmup_steps, "at least 0")
        require(
            self.batch % self.minibatches == 0, "ppo.batch", self.batch, "a multiple of minibatches"
        )
        require(self.kl_coef >= 0, "ppo.kl_coef", self.kl_coef, "must be at least 0")
        require(self.kl_target >= 0, "ppo.kl_target", self.kl_target, "must be at least 0 nats")
        require(
            self.kl_target == 0 or self.kl_coef > 0,
            "ppo.kl_coef",
            self.kl_coef,
            "must be above 0 with ppo.kl_target: the controller multiplies it",
        )
        require(
            self.kl_gain > 0 and (self.kl_target > 0 or self.kl_gain == 0.1),
            "ppo.kl_gain",
            self.kl_gain,
            "must be above 0, and needs ppo.kl_target",
        )
        require(
            self.shaping_scale > 0 and (self.shaping != "none" or self.shaping_scale == 1),
            "ppo.shaping_scale",
            self.shaping_scale,
            "must be above 0, and needs ppo.shaping",
        )
        require(
            2 <= self.eval_prompts <= 400,
            "ppo.eval_prompts",
            self.eval_prompts,
            "2 to 400 (eval split)",
        )
        require(self.eval_offset >= 0, "ppo.eval_offset", self.eval_offset, "must be at least 0")

    @property
    def evaluation_steps(self) -> tuple[int, ...]:
        """Steps after which the policy is evaluated, 0 and the last included."""
        early = range(0, min(self.warmup_steps, self.steps) + 1, self.eval_early_every)
        late = (k for k in range(0, self.steps, self.eval_every) if k > self.warmup_steps)
        return tuple(sorted({*early, *late, self.steps}))
