"""Sampling responses from a policy, and log-probabilities of given responses.

transformers' ``generate`` takes no generator and returns scores after its own processing, so the
sampler is ours: explicit seeds, no truncation (no top-k, no top-p), and the log-probability under
the distribution that was really sampled from.

Row r, token t always uses the same uniform number, whatever the batch: uniforms are drawn a block
of rows at a time from a seed derived for that block. A compute batch is also exactly one block, so
that `sample` of the same prompts is bit-identical however the caller splits its work in blocks.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from overopt.datatypes import Prompts, Responses, Sequences, concat_responses, length_sorted
from overopt.errors import DataError
from overopt.functional import token_logprobs
from overopt.nets import KVCache, Llama
from overopt.seeding import torch_generator

SAMPLE_BLOCK = 256  # rows sampled together; semantic: it defines the random streams
_BIN = 64  # vocabulary entries per first-level bin of the inverse CDF
_COMPACT_BELOW = 0.8  # finished rows leave the batch when fewer than this share of it still runs


def sample(
    policy: Llama,
    prompts: Prompts,
    *,
    n_tokens: int,
    seed: int,
    copies: int = 1,
    temperature: float = 1.0,
    logit_bias: Tensor | None = None,
    first_block: int = 0,
) -> Responses:
    """Sample ``copies`` responses to each prompt, copies of one prompt adjacent.

    Parameters
    ----------
    prompts : P rows, left-padded, at least one real token each.
    n_tokens : longest response T, end token included.
    seed : of this use (`derive_seed`); the same seed gives the same responses.
    temperature : divides the logits; log-probabilities are those at this temperature.
    logit_bias : (V,) added to the logits before the temperature, or None.
    first_block : number of the first block of SAMPLE_BLOCK rows, for a caller that samples a large
        table in pieces of whole blocks and wants the same responses as from one call.

    Returns
    -------
    Responses
        P·copies rows; ``logprobs`` under the full softmax sampled from.

    Raises
    ------
    DataError
        No prompts, a prompt without tokens, or more tokens than the policy's context holds.
    """
    _check(policy, prompts, n_tokens, copies, temperature)
    prompt_of_row = torch.arange(len(prompts)).repeat_interleave(copies)
    parts = []
    for i, rows in enumerate(prompt_of_row.split(SAMPLE_BLOCK)):
        generator = torch_generator(seed, "uniform", first_block + i)
        # The whole block's table, also where fewer rows are left: a row's numbers never depend on
        # how many rows follow it.
        uniform = torch.rand((SAMPLE_BLOCK, n_tokens), generator=generator, dtype=torch.float64)[
            : len(rows)
        ]
        parts.append(_sample_block(policy, prompts, rows, uniform, temperature, logit_bias))
    return concat_responses(parts)


def _check(policy: Llama, prompts: Prompts, n_tokens: int, copies: int, temperature: float) -> None:
    """Raise DataError where `sample` cannot do what it is asked."""
    for name, value in (("n_tokens", n_tokens), ("copies", copies), ("temperature", temperature)):
        if not value > 0:
            raise DataError(f"{name} = {value}: it must be above 0")
    if len(prompts) == 0:
        raise DataError("prompts has 0 rows: pass at least one prompt")
    length = prompts.mask.sum(1)
    if int(length.min()) == 0:
        raise DataError(
            f"prompts row {int(length.argmin())} has no tokens: start it with the policy's "
            f"bos_token_id, {policy.cfg.bos_token_id}"
        )
    longest, context = int(length.max()) + n_tokens, policy.cfg.max_position_embeddings
    if longest > context:
        raise DataError(
            f"prompts row {int(length.argmax())} and n_tokens make {longest} tokens; the policy's "
            f"context is {context}: use shorter prompts or fewer response tokens"
        )


class _Prefill(NamedTuple):
    """State after the prompts, R rows: last hidden state (R, D), cache of width + T slots, prompt
    lengths (R,), width, and the attention bias (1 or R·H, 1, width + T), −inf where hidden."""

    hidden: Tensor
    cache: KVCache
    n_prompt: Tensor
    width: int
    bias: Tensor


def _prefill(policy: Llama, prompts: Prompts, rows: Tensor, n_tokens: int) -> _Prefill:
    """Forward each distinct prompt once and spread the result over the rows of a block."""
    device = policy.embed.weight.device
    distinct, inverse = (t.to(device) for t in rows.unique_consecutive(return_inverse=True))
    few = prompts.select(distinct.cpu())
    n_prompt = few.mask.sum(1).to(device)
    width = int(n_prompt.max())
    ids, real = few.ids[:, -width:].to(device), few.mask[:, -width:].to(device)
    mask = None
    hidden_slots = torch.zeros((1, 1, width), device=device)
    if not bool(real.all()):
        hidden_slots = torch.zeros((len(few), 1, width), device=device)
        hidden_slots = hidden_slots.masked_fill(~real[:, None], -torch.inf)
        causal = torch.full((width, width), -torch.inf, device=device).triu(1)
        # Finite, because the row of a padding slot may see nothing at all.
        mask = (hidden_slots[:, None] + causal).clamp_min(-1e9)
    small = policy.new_cache(len(few), width)
    position = (real.cumsum(1) - 1).clamp_min(0)
    hidden = policy.extend(ids, position, small, 0, mask)[:, -1]

    cache = policy.new_cache(len(rows), width + n_tokens)
    for to, of in zip(cache.keys + cache.values, small.keys + small.values, strict=True):
        to[:, :, :width] = of[inverse]
    bias = torch.full((1, 1, width + n_tokens), -torch.inf, device=device)
    if mask is None:
        bias[..., :width] = 0
    else:
        bias = bias.repeat(len(rows), 1, 1)
        bias[..., :width] = hidden_slots[inverse]
        bias = bias.repeat_interleave(policy.cfg.num_attention_heads, 0)
    return _Prefill(hidden[inverse], cache, n_prompt[inverse], width, bias)


@torch.no_grad()
def _sample_block(
    policy: Llama,
    prompts: Prompts,
    rows: Tensor,
    uniform: Tensor,
    temperature: float,
    logit_bias: Tensor | None,
) -> Responses:
    """One block: prefill each distinct prompt once, then decode all rows together."""
    cfg, device = policy.cfg, policy.embed.weight.device
    n_rows, n_tokens = uniform.shape
    hidden, cache, n_prompt, width, bias = _prefill(policy, prompts, rows, n_tokens)
    uniform = uniform.to(device)
    # 1. Sample on past an end token where the row has not left yet; what follows it is cut below.
    ids = torch.full((n_rows, n_tokens), cfg.eos_token_id, device=device)
    logprobs = torch.zeros((n_rows, n_tokens), device=device)
    alive = torch.arange(n_rows, device=device)  # the row of the block that each batch row is
    running = torch.ones(n_rows, dtype=torch.bool, device=device)
    for t in range(n_tokens):
        logits = policy.logits(hidden)
        if logit_bias is not None:
            logits += logit_bias
        if temperature != 1.0:
            logits /= temperature
        token, logp = _inverse_cdf(logits, uniform[:, t])
        ids[alive, t], logprobs[alive, t] = token, logp.float()
        running &= token != cfg.eos_token_id
        n_running = int(running.sum())
        if t + 1 == n_tokens or n_running == 0:
            break
        if n_running < _COMPACT_BELOW * len(alive):
            keep = running.nonzero()[:, 0]
            cache = KVCache([k[keep] for k in cache.keys], [v[keep] for v in cache.values])
            alive, running, uniform, token = alive[keep], running[keep], uniform[keep], token[keep]
            n_prompt = n_prompt[keep]
            if bias.shape[0] > 1:
                bias = bias.view(-1, cfg.num_attention_heads, *bias.shape[1:])[keep].flatten(0, 1)
        slot = width + t
        bias[..., slot] = 0
        hidden = policy.step(token, n_prompt + t, cache, slot, bias)
    # 2. A token is real if no end token comes before it.
    is_end = (ids == cfg.eos_token_id).cpu()
    mask = (is_end.cumsum(1) - is_end.long()) == 0
    return Responses(
        prompts.select(rows),
        ids.cpu().masked_fill(~mask, cfg.pad_token_id),
        mask,
        logprobs.cpu().masked_fill(~mask, 0),
        is_end.any(1),
    )


def _inverse_cdf(logits: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids (R,) at quantile ``u`` (R,) of the softmax of (R, V), and their log-probabilities.

    Two levels: sums of 64 entries locate the bin, a cumulative sum inside it the token. Both are
    accumulated in float64 and renormalized by their total, so that what is left is the rounding of
    single probabilities and bins, about 1e-7 of each.
    """
    n_rows, vocab = logits.shape
    p = logits.softmax(1)
    if vocab % _BIN:
        p = F.pad(p, (0, -vocab % _BIN))
    bins = p.view(n_rows, -1, _BIN)
    upper = bins.sum(-1).double().cumsum(1)
    total = upper[:, -1:]
    target = u[:, None] * total
    which = (upper <= target).sum(1, keepdim=True).clamp_max(upper.shape[1] - 1)
    below = F.pad(upper, (1, 0)).gather(1, which)
    inner = bins.gather(1, which[..., None].expand(-1, 1, _BIN))[:, 0].double().cumsum(1)
    # The two levels round differently: keep the target inside the bin, so that the entry it falls
    # in always has mass.
    target = torch.minimum(target - below, inner[:, -1:] * (1 - 1e-12))
    token = which * _BIN + (inner <= target).sum(1, keepdim=True)
    logp = p.gather(1, token).double().log() - total.log()
    return token[:, 0], logp[:, 0]


class ResponseView(NamedTuple):
    """Positions of response tokens inside joined sequences.

    position (R, T): where the hidden state that predicts response token t is; tokens (R, T): the token
    ids, 0 where masked; mask (R, T).
    """

    position: Tensor
    tokens: Tensor
    mask: Tensor


def response_view(seq: Sequences) -> ResponseView:
    """Where the response tokens of ``seq`` are, right-padded to the longest response."""
    n_response = seq.length - seq.n_prompt
    t = torch.arange(int(n_response.max()), device=seq.ids.device)
    mask = t < n_response[:, None]
    at = torch.where(mask, seq.n_prompt[:, None] + t, 0)
    return ResponseView((at - 1).clamp_min(0), seq.ids.gather(1, at) * mask, mask)


def response_hidden(model: Llama, seq: Sequences, view: ResponseView) -> Tensor:
    """Hidden states (R, T, D) that predict each response token; differentiable."""
    hidden = model(seq.ids)
    return hidden.gather(1, view.position[..., None].expand(-1, -1, hidden.shape[-1]))


def sequence_batches(responses: Responses, batch_tokens: int) -> Iterator[tuple[Tensor, Sequences]]:
    """Rows of ``responses`` and their joined sequences, in batches of similar length."""
    seq = responses.sequences()
    for rows in length_sorted(seq.length, batch_tokens):
        width = int(seq.length[rows].max())
        yield rows, Sequences(seq.ids[rows, :width], seq.length[rows], seq.n_prompt[rows])


@torch.no_grad()
def score_logprobs(policy: Llama, responses: Responses, *, batch_tokens: int = 8192) -> Tensor:
    """Log-probabilities (R, T) in nats of given tokens under ``policy``; 0 where masked."""
    out = torch.zeros(responses.ids.shape)
    for rows, seq in sequence_batches(responses, batch_tokens):
        view = response_view(seq)
        logp = token_logprobs(policy.logits(response_hidden(policy, seq, view)), view.tokens)
        out[rows, : view.tokens.shape[1]] = logp * view.mask
    return out
