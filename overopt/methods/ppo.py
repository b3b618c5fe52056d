"""PPO against a proxy, in the form of Ziegler et al. 2019: gold-blind by construction.

A separate value model, per-token KL penalty in the reward (weight 0 by default), GAE, clipped
policy and value losses, whitened advantages. One call of `ppo_step` is one rollout batch:

1. sample responses from the policy                      4. advantages by GAE, whitened
2. score them with the proxy, log-probs of reference     5. minibatch updates of policy and value
3. per-token rewards

Random numbers of step k come from (seed, name, k), so a resumed run needs no generator state: the
policy, the value model, both Adam states and the step number are the whole state.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from overopt.datatypes import Prompts, Responses, Scorer, Sequences
from overopt.errors import DivergenceError
from overopt.functional import (
    entropy,
    gae,
    masked_mean,
    ppo_policy_loss,
    ppo_value_loss,
    rewards_from_scores,
    token_logprobs,
    whiten,
)
from overopt.nets import Llama, ScalarHeadModel
from overopt.sampling import response_hidden, response_view, sample, score_logprobs
from overopt.seeding import derive_seed, torch_generator


@dataclass
class PpoState:
    """Everything that changes during PPO."""

    policy: Llama
    value: ScalarHeadModel
    policy_opt: torch.optim.Adam
    value_opt: torch.optim.Adam
    step: int = 0
    grad_steps: int = 0


def new_state(policy: Llama, value: ScalarHeadModel, cfg: Any) -> PpoState:
    """Fresh optimizers around a policy and a value model. ``cfg``: `settings.PpoConfig`."""
    return PpoState(
        policy,
        value,
        torch.optim.Adam(policy.parameters(), lr=cfg.lr, eps=1e-5),
        torch.optim.Adam(value.parameters(), lr=cfg.value_lr, eps=1e-5),
    )


def state_tensors(state: PpoState) -> dict[str, Tensor]:
    """The state as named tensors, for a checkpoint."""
    out = {"counters": torch.tensor([state.step, state.grad_steps])}
    for name, module, opt in _parts(state):
        for key, p in module.named_parameters():
            out[f"{name}.{key}"] = p.detach()
            for moment, x in opt.state.get(p, {}).items():
                out[f"{name}_adam.{moment}.{key}"] = x.detach()
    return out


def load_state_tensors(state: PpoState, tensors: dict[str, Tensor]) -> None:
    """Restore what `state_tensors` saved, in place."""
    state.step, state.grad_steps = (int(x) for x in tensors["counters"])
    with torch.no_grad():
        for name, module, opt in _parts(state):
            for key, p in module.named_parameters():
                p.copy_(tensors[f"{name}.{key}"])
                opt.state[p] = {
                    moment: tensors[f"{name}_adam.{moment}.{key}"].clone()
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


def ppo_step(
    state: PpoState,
    ref_policy: Llama,
    proxy: Scorer,
    prompts: Prompts,
    cfg: Any,
    *,
    n_tokens: int,
    seed: int,
) -> dict[str, float]:
    """One PPO step in place; returns its diagnostics (see docs/metrics.md).

    Raises
    ------
    DivergenceError
        A loss is not finite; names the step.
    """
    # 1. Rollout: a fresh draw of prompts, one response each.
    draw = torch.randint(
        len(prompts), (cfg.batch,), generator=torch_generator(seed, "prompts", state.step)
    )
    rollout = sample(
        state.policy,
        prompts.select(draw),
        n_tokens=n_tokens,
        seed=derive_seed(seed, "rollout", state.step),
    )
    # 2. Scores and log-probabilities; the old ones are recomputed by the model that is trained, so
    # that the ratio is exactly 1 at the first minibatch.
    score = proxy.score(rollout)
    seq = rollout.sequences()
    view = response_view(seq)
    width = view.mask.shape[1]
    mask = view.mask
    with torch.no_grad():
        old_logp = score_logprobs(state.policy, rollout)[:, :width]
        values = _values(state.value, seq)
        ref_logp = score_logprobs(ref_policy, rollout)[:, :width] if cfg.kl_coef > 0 else old_logp
    # 3. and 4. Rewards and advantages over the whole batch.
    rewards = rewards_from_scores(score, old_logp - ref_logp, mask, kl_coef=cfg.kl_coef)
    estimate = gae(rewards, values, mask, gamma=cfg.gamma, lam=cfg.lam)
    advantages = whiten(estimate.advantages, mask)
    # 5. Updates.
    decay = 1 - 0.9 * state.step / cfg.steps
    for opt, lr in ((state.policy_opt, cfg.lr), (state.value_opt, cfg.value_lr)):
        for group in opt.param_groups:
            group["lr"] = lr * decay
    stats: dict[str, list[float]] = {
        k: [] for k in ("clip_fraction", "update_kl", "entropy", "value_loss")
    }
    stopped = False
    for epoch in range(cfg.ppo_epochs):
        order = torch.randperm(
            cfg.batch, generator=torch_generator(seed, "minibatches", state.step, epoch)
        )
        for rows in order.chunk(cfg.minibatches):
            if stopped:
                break
            part = Sequences(
                seq.ids[rows, : int(seq.length[rows].max())], seq.length[rows], seq.n_prompt[rows]
            )
            sub = response_view(part)
            w = sub.mask.shape[1]
            n = int(sub.mask.sum())
            logits = state.policy.logits(response_hidden(state.policy, part, sub))
            policy_loss = ppo_policy_loss(
                token_logprobs(logits, sub.tokens),
                old_logp[rows, :w],
                advantages[rows, :w],
                sub.mask,
                clip=cfg.clip,
                n_tokens=n,
            )
            value_loss = ppo_value_loss(
                _values(state.value, part),
                values[rows, :w],
                estimate.returns[rows, :w],
                sub.mask,
                clip=cfg.value_clip,
                n_tokens=n,
            )
            if not math.isfinite(policy_loss.loss.item() + value_loss.item()):
                raise DivergenceError(
                    f"PPO loss is not finite at step {state.step} (policy {policy_loss.loss.item()},"
                    f" value {value_loss.item()}): lower ppo.lr = {cfg.lr}"
                )
            stats["entropy"].append(float(masked_mean(entropy(logits.detach()), sub.mask)))
            stats["clip_fraction"].append(float(policy_loss.clip_fraction))
            stats["update_kl"].append(float(policy_loss.update_kl_token_nats))
            stats["value_loss"].append(value_loss.item())
            if stats["update_kl"][-1] > cfg.max_update_kl_token_nats:
                stopped = True
                break
            (policy_loss.loss + value_loss).backward()
            for _, module, opt in _parts(state):
                torch.nn.utils.clip_grad_norm_(module.parameters(), cfg.grad_clip)
                opt.step()
                opt.zero_grad(set_to_none=True)
            state.grad_steps += 1
    state.step += 1
    return {
        "train_proxy_score": float(score.mean()),
        "train_response_tokens": float(mask.sum(1).float().mean()),
        "entropy_token_nats": stats["entropy"][0],
        "update_kl_token_nats": max(stats["update_kl"]),
        "clip_fraction": max(stats["clip_fraction"]),
        "value_loss": stats["value_loss"][0],
        "updates_stopped": float(stopped),
    }


def evaluate_policy(
    policy: Llama, prompts: Prompts, *, copies: int, n_tokens: int, seed: int
) -> Responses:
    """Responses to fixed evaluation prompts with random numbers of their own."""
    return sample(policy, prompts, n_tokens=n_tokens, seed=seed, copies=copies)
