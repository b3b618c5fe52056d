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
from torch import Tensor

from overopt.datatypes import Prompts, Responses, Sequences, concat_responses, length_sorted
from overopt.functional import token_logprobs
from overopt.nets import KVCache, Llama
from overopt.seeding import torch_generator

SAMPLE_BLOCK = 256  # rows sampled together; semantic: it defines the random streams
_CHUNK = 64  # vocabulary entries per first-level bin of the inverse CDF
_COMPACT_EVERY = 6  # steps between looks at whether finished rows should leave


def sample(
    policy: Llama,
    prompts: Prompts,
    *,
    n_tokens: int,
    seed: int,
    copies: int = 1,
    temperature: float = 1.0,
    logit_bias: Tensor | None = None,
) -> Responses:
    """Sample ``copies`` responses to each prompt, copies of one prompt adjacent.

    Parameters
    ----------
    prompts : P rows, left-padded.
    n_tokens : longest response T, end token included.
    seed : of this use (`derive_seed`); the same seed gives the same responses.
    temperature : divides the logits; log-probabilities are those at this temperature.
    logit_bias : (V,) added to the logits, or None.

    Returns
    -------
    Responses
        P·copies rows; ``logprobs`` under the full softmax sampled from.
    """
    n_rows = len(prompts) * copies
    prompt_of_row = torch.arange(len(prompts)).repeat_interleave(copies)
    parts = []
    for block, start in enumerate(range(0, n_rows, SAMPLE_BLOCK)):
        rows = prompt_of_row[start : start + SAMPLE_BLOCK]
        uniform = torch.rand(
            (SAMPLE_BLOCK, n_tokens),
            generator=torch_generator(seed, "uniform", block),
            dtype=torch.float64,
        )[: len(rows)]
        parts.append(_sample_block(policy, prompts, rows, uniform, temperature, logit_bias))
    return concat_responses(parts)


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
    # 1. Prefill the distinct prompts, cut to the longest of them.
    distinct, inverse = torch.unique_consecutive(rows, return_inverse=True)
    few = prompts.select(distinct)
    width = int(few.mask.sum(1).max())
    prompt_ids, prompt_mask = few.ids[:, -width:].to(device), few.mask[:, -width:].to(device)
    position = (prompt_mask.cumsum(1) - 1).clamp_min(0)
    padded = not bool(prompt_mask.all())
    hidden_pad = None  # additive mask over prompt slots, only if some row is padded
    prefill_mask = None
    if padded:
        blocked = torch.zeros(prompt_mask.shape, device=device).masked_fill(~prompt_mask, -1e9)
        causal = torch.full((width, width), -1e9, device=device).triu(1)
        prefill_mask = (blocked[:, None, None, :] + causal).clamp_min(-1e9)
        hidden_pad = torch.zeros((len(distinct), 1, 1, width + n_tokens), device=device)
        hidden_pad[..., :width] = blocked[:, None, None, :]
    cache = policy.new_cache(len(distinct), width + n_tokens)
    hidden = policy.extend(prompt_ids, position, cache, 0, prefill_mask)[:, -1]
    inverse = inverse.to(device)
    cache = KVCache([k[inverse] for k in cache.keys], [v[inverse] for v in cache.values])
    hidden, next_position = hidden[inverse], prompt_mask.sum(1)[inverse]
    if hidden_pad is not None:
        hidden_pad = hidden_pad[inverse]

    # 2. Decode; `alive` maps batch rows to rows of the result.
    ids = torch.full((n_rows, n_tokens), cfg.pad_token_id, dtype=torch.int64)
    logprobs = torch.zeros((n_rows, n_tokens))
    length = torch.full((n_rows,), n_tokens, dtype=torch.int64)
    ended = torch.zeros(n_rows, dtype=torch.bool)
    alive, uniform = torch.arange(n_rows), uniform.to(device)
    u = uniform
    for t in range(n_tokens):
        logits = policy.logits(hidden)
        if logit_bias is not None:
            logits = logits + logit_bias
        if temperature != 1.0:
            logits = logits / temperature
        token, logp = _inverse_cdf(logits, u[:, t])
        on_cpu, running = token.cpu(), ~ended[alive]
        ids[alive, t] = torch.where(running, on_cpu, ids[alive, t])
        logprobs[alive, t] = torch.where(running, logp.float().cpu(), 0.0)
        stops = running & (on_cpu == cfg.eos_token_id)
        length[alive[stops]] = t + 1
        ended[alive[stops]] = True
        if t + 1 == n_tokens or bool(ended.all()):
            break
        if (t + 1) % _COMPACT_EVERY == 0:
            keep = torch.nonzero(~ended[alive])[:, 0]
            if len(keep) < 0.8 * len(alive):
                on = keep.to(device)
                slot = width + t
                cache = KVCache(
                    [_keep_rows(k, on, slot) for k in cache.keys],
                    [_keep_rows(v, on, slot) for v in cache.values],
                )
                alive, token, u, next_position = alive[keep], token[on], u[on], next_position[on]
                hidden_pad = None if hidden_pad is None else hidden_pad[on]
        mask = None if hidden_pad is None else hidden_pad[..., : width + t + 1]
        hidden = policy.extend(
            token[:, None], (next_position + t)[:, None], cache, width + t, mask
        )[:, 0]
    mask = torch.arange(n_tokens) < length[:, None]
    return Responses(prompts.select(rows), ids, mask, logprobs, ended)


def _keep_rows(table: Tensor, rows: Tensor, n_used: int) -> Tensor:
    """Rows of a cache table, copying only the slots in use."""
    kept = table.new_empty((len(rows), *table.shape[1:]))
    kept[:, :, :n_used] = table[:, :, :n_used].index_select(0, rows)
    return kept


def _inverse_cdf(logits: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids (R,) at quantile ``u`` (R,) of the softmax of (R, V), and their log-probabilities.

    Two levels: sums of 64 entries locate the bin, a cumulative sum inside it the token. Sums are
    accumulated in float64, so the only rounding is that of each single probability.
    """
    n_rows, vocab = logits.shape
    top = logits.amax(1, keepdim=True)
    weight = (logits - top).exp()
    spill = -vocab % _CHUNK
    padded = torch.nn.functional.pad(weight, (0, spill)) if spill else weight
    bins = padded.view(n_rows, -1, _CHUNK)
    upper = bins.sum(-1).double().cumsum(1)
    total = upper[:, -1]
    target = u * total
    which = (upper <= target[:, None]).sum(1).clamp_max(upper.shape[1] - 1)
    below = torch.where(which > 0, upper.gather(1, (which - 1).clamp_min(0)[:, None])[:, 0], 0.0)
    inside = bins[torch.arange(n_rows, device=logits.device), which].double()
    inner = inside.cumsum(1)
    at = (inner <= (target - below)[:, None]).sum(1)
    # Rounding can push the target past the bin's last entry with mass: step back to that entry.
    last = (inside > 0).long().mul(torch.arange(1, _CHUNK + 1, device=logits.device)).amax(1) - 1
    token = which * _CHUNK + torch.minimum(at, last)
    logp = (logits.gather(1, token[:, None]) - top)[:, 0].double() - total.log()
    return token, logp


class ResponseView(NamedTuple):
    """Positions of response tokens inside joined sequences.

    index (R, T): position whose hidden state predicts response token t; tokens (R, T): the token
    ids, 0 where masked; mask (R, T).
    """

    index: Tensor
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
    return hidden.gather(1, view.index[..., None].expand(-1, -1, hidden.shape[-1]))


def sequence_batches(responses: Responses, batch_tokens: int) -> Iterator[tuple[Tensor, Sequences]]:
    """Rows of ``responses`` and their joined sequences, in batches of similar length."""
    seq = responses.sequences()
    for rows in length_sorted(seq.length, batch_tokens):
        width = int(seq.length[rows].max())
        yield rows, Sequences(seq.ids[rows, :width], seq.length[rows], seq.n_prompt[rows])


@torch.no_grad()
def score_logprobs(policy: Llama, responses: Responses, *, batch_tokens: int = 8192) -> Tensor:
    """Log-probabilities (R, T) in nats of given response tokens under ``policy``; 0 where masked."""
    out = torch.zeros(responses.ids.shape)
    for rows, seq in sequence_batches(responses, batch_tokens):
        view = response_view(seq)
        logp = token_logprobs(policy.logits(response_hidden(policy, seq, view)), view.tokens)
        out[rows, : view.tokens.shape[1]] = logp * view.mask
    return out
