"""One step of a policy gradient without a value model: what GRPO, RLOO and REINFORCE share.

All tokens of a response have one advantage, made from rewards of whole responses. What sets a method
apart is said in a `How`: what an advantage is, how tokens are weighed, whether ratios are clipped.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from overopt.base.datatypes import Responses, Sequences
from overopt.base.seeding import torch_generator
from overopt.methods import losses, rollouts
from overopt.methods.method import Problem
from overopt.methods.on_policy import OnPolicy
from overopt.methods.pace import KL_LOGGED
from overopt.methods.rollouts import PolicyState
from overopt.methods.targets import next_multiplier
from overopt.nets import sampling
from overopt.nets.backbone import Backbone
from overopt.nets.compute import Compute, clear_gradients

Weights = Literal["grpo", "bnpo", "dr_grpo", "sequence"]
_CHI2_LOG_RATIO = (
    10.0  # where log π/π_ref is cut in the χ² penalty: e^10 is a dead response already
)


class How(NamedTuple):
    """What a method of policy gradients does in its own way.

    name : for messages.
    group : responses a prompt.
    epochs : passes over a batch.
    advantages : reward (R,), responses to one prompt adjacent -> advantage (R,).
    weights : of tokens, see `token_weights`.
    clip : of ratios to the policy that was sampled from; None: no ratio, each response is used once.
    """

    name: str
    group: int
    epochs: int
    advantages: Callable[[Tensor], Tensor]
    weights: Weights
    clip: float | None


# --- pure functions -------------------------------------------------------------------------------


def group_advantages(reward: Tensor, *, group: int, divide_by_sd: bool) -> Tensor:
    """Reward (R,) minus the mean of its group of adjacent rows, over sd + 1e-4 if asked (ddof 1).

    Shao et al. 2024, sec. 4.1.2; without the division Liu et al. 2025 (Dr. GRPO).
    """
    r = reward.view(-1, group)
    centered = r - r.mean(1, keepdim=True)
    if divide_by_sd:
        centered = centered / (r.std(1, keepdim=True) + 1e-4)
    return centered.flatten()


def leave_one_out(reward: Tensor, *, group: int) -> Tensor:
    """Reward (R,) minus the mean of the others in its group of adjacent rows (Ahmadian et al. 2024)."""
    r = reward.view(-1, group)
    others = (r.sum(1, keepdim=True) - r) / (group - 1)
    return (r - others).flatten()


def token_weights(length: Tensor, how: Weights, *, longest: int) -> Tensor:
    """Weight (R,) of each token of a response in the loss of one optimizer step of R responses.

    length (R,) tokens. grpo: 1/(R·length), the mean over a response and then over responses;
    bnpo: 1/Σ length; dr_grpo: 1/(R·longest); sequence: 1/R, so that a response counts by its whole
    log-probability.
    """
    n_rows = len(length)
    match how:
        case "grpo":
            return 1 / (n_rows * length.double())
        case "bnpo":
            return torch.full((n_rows,), 1 / int(length.sum()), dtype=torch.float64)
        case "dr_grpo":
            return torch.full((n_rows,), 1 / (n_rows * longest), dtype=torch.float64)
        case "sequence":
            return torch.full((n_rows,), 1 / n_rows, dtype=torch.float64)


def penalty_in_reward(log_ratio: Tensor, kl_in: str) -> Tensor:
    """What is subtracted from a reward, times kl_coef (R,), from Σ_t log π/π_ref (R,).

    k1_reward: log π/π_ref; E_π[∇log π · k1] = ∇KL(π‖π_ref). chi2_reward: 2π/π_ref, for
    E_π[∇log π · 2π/π_ref] = ∇χ²(π‖π_ref), with log π/π_ref cut at 10. Zero for what is in the loss.
    """
    match kl_in:
        case "k1_reward":
            return log_ratio
        case "chi2_reward":
            return 2 * log_ratio.clamp_max(_CHI2_LOG_RATIO).exp()
    return torch.zeros_like(log_ratio)


# --- one step -------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """A rollout with all that updates need, R rows of at most T response tokens.

    On the policy's device: seq; old_logp, ref_logp (R, T), 0 where masked. On the CPU: responses;
    score, reward, advantage (R,); length, total (R,), tokens of a response, and with its prompt.
    """

    responses: Responses
    seq: Sequences
    score: Tensor
    reward: Tensor
    advantage: Tensor
    old_logp: Tensor
    ref_logp: Tensor
    length: Tensor
    total: Tensor

    @property
    def kl_seq_nats(self) -> float:
        """Mean of log π/π_ref over responses: k1."""
        return float((self.old_logp - self.ref_logp).sum(1).mean())


def step(state: PolicyState, settings: OnPolicy, problem: Problem, how: How) -> dict[str, float]:
    """One rollout batch and its updates in place; returns diagnostics (see docs/metrics.md).

    1. Sample a group of responses to each prompt.
    2. Score them with the proxy, shape the score; log-probs of reference, if there is a penalty.
    3. Penalties in the reward, then advantages.
    4. Minibatch updates of the policy, and the next step's learning rate if it follows the KL.

    Raises
    ------
    DivergenceError
        A loss is not finite; names the step.
    MemoryLimitError
        A single response does not fit the memory.
    """
    batch = _roll_out(state, settings, problem, how)
    updates = _update(state, batch, settings, problem, how)
    score, weight = float(batch.score.mean()), state.multiplier
    state.multiplier = next_multiplier(weight, score, settings)
    pace = rollouts.adapt_rate(state, settings, batch.responses, batch.old_logp, problem.compute)
    state.step += 1
    return {
        "train_proxy_score": score,
        "train_reward": float(batch.reward.mean()),
        "kl_coef": settings.kl_coef,
        **({KL_LOGGED: batch.kl_seq_nats} if _reads_ref(settings) else {}),
        **({"multiplier": weight} if settings.proxy_target > 0 else {}),
        **pace,
        "train_response_tokens": float(batch.length.float().mean()),
        "entropy_token_nats": updates[0].entropy_token_nats,
        "update_kl_token_nats": max(u.kl_token_nats for u in updates),
        "clip_fraction": max(u.clip_fraction for u in updates),
        "penalty": updates[0].penalty,
        "updates_stopped": float(_is_too_far(updates[-1], settings)),
    }


def _roll_out(state: PolicyState, settings: OnPolicy, problem: Problem, how: How) -> Batch:
    """Steps 1 to 3."""
    draw = rollouts.prompts_of_step(
        len(problem.prompts),
        batch=settings.batch // how.group,
        seed=problem.seed,
        step=state.step,
    )
    responses = rollouts.rollout(state.policy, problem, draw, step=state.step, copies=how.group)
    return judged(state, responses, draw, settings, problem, how)


def judged(
    state: PolicyState,
    responses: Responses,
    draw: Tensor,
    settings: OnPolicy,
    problem: Problem,
    how: How,
) -> Batch:
    """Steps 2 and 3: ``responses`` (R,) to the prompts ``draw``, one group after another."""
    # 2.
    ways, shared, logprobs = problem.compute, rollouts.shared, sampling.score_logprobs
    score = shared(ways, problem.proxy.score, responses)
    length = responses.length
    shaped = rollouts.shaped(problem, score, length, draw.repeat_interleave(how.group))
    width, has_penalty = int(length.max()), settings.kl_coef > 0
    in_reward = has_penalty and settings.kl_in.endswith("_reward")
    old_logp = responses.logprobs[:, :width]
    with torch.no_grad(), ways.autocast(state.policy.device):
        # As in PPO: below float32 as training computes them, and beside the reference as its are.
        if ways.precision != "fp32" or in_reward:
            old_logp = shared(ways, partial(logprobs, state.policy), responses)[:, :width]
        ref_logp = old_logp
        if _reads_ref(settings):
            ref_logp = shared(ways, partial(logprobs, problem.ref_policy), responses)[:, :width]
    # 3.
    penalty = penalty_in_reward((old_logp - ref_logp).sum(1), settings.kl_in)
    reward = state.multiplier * shaped - settings.kl_coef * penalty
    device = state.policy.device
    seq = Sequences(*(t.to(device) for t in responses.sequences()))
    return Batch(
        responses,
        seq,
        score,
        reward,
        how.advantages(reward),
        old_logp.to(device),
        ref_logp.to(device),
        length,
        length + responses.prompts.mask.sum(1),
    )


def _reads_ref(settings: OnPolicy) -> bool:
    """Whether the rollouts' log-probabilities under π_ref are needed."""
    in_penalty = settings.kl_coef > 0 and settings.kl_in != "exact_loss"
    return in_penalty or settings.measures_kl


class Update(NamedTuple):
    """Loss of one optimizer step and its statistics, over all its tokens."""

    loss: float
    penalty: float
    clip_fraction: float
    kl_token_nats: float
    entropy_token_nats: float


def _update(
    state: PolicyState, batch: Batch, settings: OnPolicy, problem: Problem, how: How
) -> list[Update]:
    """Minibatch updates (step 4), until one has moved the policy too far."""
    updates: list[Update] = []
    for epoch in range(how.epochs):
        if updates and _is_too_far(updates[-1], settings):
            break
        generator = torch_generator(problem.seed, "minibatches", state.step, epoch)
        order = torch.randperm(settings.batch, generator=generator)
        for rows in order.chunk(settings.minibatches):
            update = gradient(state, batch, rows, settings, problem, how, with_entropy=not updates)
            updates.append(update)
            if _is_too_far(update, settings):
                clear_gradients(state.policy.parameters())
                break
            rate = rollouts.rate(state, settings)
            rollouts.descend(state, lr=rate, grad_clip=settings.grad_clip)
    return updates


def gradient(
    state: PolicyState,
    batch: Batch,
    rows: Tensor,
    settings: OnPolicy,
    problem: Problem,
    how: How,
    *,
    with_entropy: bool,
) -> Update:
    """Loss of one optimizer step over ``rows`` of ``batch``; its gradient is left in the policy.

    Raises
    ------
    DivergenceError
        The loss is not finite; names the step.
    """
    weights = torch.zeros(len(batch.length), dtype=torch.float64)
    weights[rows] = token_weights(batch.length[rows], how.weights, longest=problem.n_tokens)
    loss = partial(
        _losses,
        policy=state.policy,
        ref_policy=problem.ref_policy,
        batch=batch,
        weights=weights,
        settings=settings,
        clip=how.clip,
        ways=problem.compute,
        n_tokens=int(batch.length[rows].sum()),
        with_entropy=with_entropy,
    )
    return Update(
        *rollouts.gradient(state, rows, loss, problem.compute, name=how.name, lr=settings.lr)
    )


def _is_too_far(update: Update, settings: OnPolicy) -> bool:
    return update.kl_token_nats > settings.max_update_kl_token_nats


def _losses(
    rows: Tensor,
    *,
    policy: Backbone,
    ref_policy: Backbone,
    batch: Batch,
    weights: Tensor,
    settings: OnPolicy,
    clip: float | None,
    ways: Compute,
    n_tokens: int,
    with_entropy: bool,
) -> Tensor:
    """Loss and statistics (5,) of some rows, as parts of sums over the optimizer step.

    Real tokens only, as one list: most of the work is the vocabulary.
    """
    device = policy.device
    at, w = rows.to(device, non_blocking=True), int(batch.length[rows].max())
    seq, width = batch.seq, int(batch.total[rows].max())
    part = Sequences(seq.ids[at, :width], seq.length[at], seq.n_prompt[at])
    view = sampling.response_view(part, w)
    of_token = view.mask.nonzero()[:, 0]
    with ways.autocast(device):
        logits = policy.logits(sampling.response_hidden(policy, part, view)[view.mask]).float()
    logp = sampling.token_logprobs(logits, view.tokens[view.mask])
    weight = weights[rows].float().to(device)[of_token]
    old_logp = batch.old_logp[at, :w][view.mask]
    surrogate = losses.surrogate(
        logp,
        old_logp,
        batch.advantage[rows].float().to(device)[of_token],
        clip=clip,
    )
    penalty = torch.zeros((), device=device)
    if settings.kl_coef > 0 and settings.kl_in.endswith("k3_loss"):
        k3 = losses.k3(logp, batch.ref_logp[at, :w][view.mask])
        if settings.kl_in == "weighted_k3_loss":
            k3 = (logp - old_logp).exp() * k3
        penalty = (weight * k3).sum()
    if settings.kl_coef > 0 and settings.kl_in == "exact_loss":
        with torch.no_grad(), ways.autocast(device):
            hidden = sampling.response_hidden(ref_policy, part, view)[view.mask]
            ref_logits = ref_policy.logits(hidden).float()
        penalty = (weight * losses.vocabulary_kl(logits, ref_logits)).sum()
    nats = torch.zeros((), device=device)
    if with_entropy:
        nats = sampling.entropy(logits.detach()).sum() / n_tokens
    return torch.stack(
        [
            settings.kl_coef * penalty - (weight * surrogate.value).sum(),
            penalty.detach(),
            surrogate.clipped.sum() / n_tokens,
            surrogate.update_kl_nats.sum() / n_tokens,
            nats,
        ]
    )
