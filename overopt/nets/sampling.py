"""Sampling responses from a policy, and log-probabilities of given responses.

transformers' ``generate`` takes no generator and returns scores after its own processing, so the
sampler is ours: explicit seeds, no truncation (no top-k, no top-p), and the log-probability under
the distribution that was really sampled from.

Any causal model can be sampled from that provides a `Decoder`, its state while it generates.

Row r, token t always uses the same uniform number, whatever the batch: uniforms are drawn a block
of rows at a time from a seed derived for that block. On a CPU, in float32, a compute batch is also
exactly one block, so that `sample` of the same prompts is bit-identical however the caller splits its
work in blocks. On an accelerator, and in bfloat16, all blocks of a call are decoded together
(`overopt.lanes`), and results agree up to the rounding of products: a token differs where its uniform
number falls between two roundings.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from overopt.base.datatypes import (
    Prompts,
    Responses,
    Sequences,
    concat_responses,
    join,
    length_sorted,
    shared_prompts,
)
from overopt.base.errors import DataError
from overopt.base.seeding import torch_generator
from overopt.nets import lanes
from overopt.nets.backbone import Backbone, Decoder, PolicyShape
from overopt.nets.block import Prefix
from overopt.nets.compute import Compute, Precision, tokens_at_once
from overopt.nets.llama import Llama

SAMPLE_BLOCK = 256  # rows sampled together; semantic: it defines the random streams
_TABLE_IDS = 1 << 26  # token ids of a table that goes to another device at once
_BIN = 64  # vocabulary entries per first-level bin of the inverse CDF
_COMPACT_BELOW = 0.8  # finished rows leave the batch when fewer than this share of it still runs


class Policy(Protocol):
    """A causal language model that can be sampled from."""

    @property
    def cfg(self) -> PolicyShape:
        """Its context and special tokens."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        ...

    def decoder(self, ids: Tensor, mask: Tensor, row: Tensor, n_tokens: int) -> Decoder:
        """Compute P distinct prompts and continue each in any number of rows.

        ids, mask (P, L), left-padded, at least one real token each; row (R,) the prompt of each
        row, ascending; n_tokens: steps that will follow at most. All on the model's device.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Unnormalized log-probabilities (…, V) of hidden states (…, D), a new tensor."""
        ...


def sample(
    policy: Policy,
    prompts: Prompts,
    *,
    n_tokens: int,
    seed: int,
    copies: int = 1,
    temperature: float = 1.0,
    logit_bias: Tensor | None = None,
    first_block: int = 0,
    uniform: Tensor | None = None,
    compute: Compute | None = None,
    precision: Precision = "fp32",
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
    uniform : (P·copies, n_tokens) float64 in [0, 1): the random numbers of each row, in place of
        those of ``seed``, for a caller whose rows are to have the same ones in any batch.
    compute : shares the batches over its processes; each gets all responses, on a CPU in float32
        bit-identical to those of one process. None: this process samples alone.
    precision : of matrix products and of the cache; the softmax is float32 or better. ``logprobs``
        are those of the distribution sampled from, which at bf16 is not quite the policy's. Models
        that transformers computes are sampled from in their own precision.

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
    batches: list[tuple[Tensor, Tensor]] = []
    for i, rows in enumerate(prompt_of_row.split(SAMPLE_BLOCK)):
        if uniform is not None:
            batches.append((rows, uniform[i * SAMPLE_BLOCK :][: len(rows)]))
            continue
        generator = torch_generator(seed, "uniform", first_block + i)
        # The whole block's table, also where fewer rows are left: a row's numbers never depend on
        # how many rows follow it.
        drawn = torch.rand((SAMPLE_BLOCK, n_tokens), generator=generator, dtype=torch.float64)
        batches.append((rows, drawn[: len(rows)]))

    in_lanes = isinstance(policy, Llama) and (policy.device.type == "cuda" or precision != "fp32")

    def run(share: list[tuple[Tensor, Tensor]]) -> list[Responses]:
        if in_lanes and share:
            rows, drawn = (torch.cat(parts) for parts in zip(*share, strict=True))
            assert isinstance(policy, Llama)
            return [
                _sample_in_lanes(policy, prompts, rows, drawn, temperature, logit_bias, precision)
            ]
        return [_sample_batch(policy, prompts, *b, temperature, logit_bias) for b in share]

    if compute is None or compute.n_ranks == 1:
        return concat_responses(run(batches))
    return _gather(run(batches[compute.rank :: compute.n_ranks]), batches, prompts, compute)


def _gather(
    own: list[Responses],
    batches: list[tuple[Tensor, Tensor]],
    prompts: Prompts,
    compute: Compute,
) -> Responses:
    """All batches' responses, of which this process sampled every n_ranks-th."""
    counts = [len(rows) for rows, _ in batches]
    places = torch.arange(sum(counts)).split(counts)[compute.rank :: compute.n_ranks]
    where = torch.cat([torch.zeros(0, dtype=torch.int64), *places])
    shape = (0, batches[0][1].shape[1])
    empty = {
        "ids": torch.zeros(shape, dtype=torch.int64),
        "mask": torch.zeros(shape, dtype=torch.bool),
        "logprobs": torch.zeros(shape),
        "ended": torch.zeros(0, dtype=torch.bool),
    }
    tables = {
        name: compute.gather(torch.cat([e, *(getattr(r, name) for r in own)]), where, sum(counts))
        for name, e in empty.items()
    }
    return Responses(prompts.select(torch.cat([rows for rows, _ in batches])), **tables)


def _check(
    policy: Policy, prompts: Prompts, n_tokens: int, copies: int, temperature: float
) -> None:
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


@torch.no_grad()
def _sample_batch(
    policy: Policy,
    prompts: Prompts,
    rows: Tensor,
    uniform: Tensor,
    temperature: float,
    logit_bias: Tensor | None,
) -> Responses:
    """One batch: each distinct prompt is computed once, then all rows are decoded together."""
    cfg, device = policy.cfg, policy.device
    n_rows, n_tokens = uniform.shape
    distinct, prompt_of_row = rows.unique_consecutive(return_inverse=True)
    few = prompts.select(distinct)
    width = int(few.mask.sum(1).max())
    # The last token sampled is not appended.
    decoder = policy.decoder(
        few.ids[:, -width:].to(device),
        few.mask[:, -width:].to(device),
        prompt_of_row.to(device),
        n_tokens - 1,
    )
    uniform = uniform.to(device)
    # 1. Sample on past an end token where the row has not left yet; what follows it is cut below.
    ids = torch.full((n_rows, n_tokens), cfg.eos_token_id, device=device)
    logprobs = torch.zeros((n_rows, n_tokens), device=device)
    alive = torch.arange(n_rows, device=device)  # the row of ids that each row of the decoder is
    running = torch.ones(n_rows, dtype=torch.bool, device=device)
    for t in range(n_tokens):
        logits = policy.logits(decoder.hidden)
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
            decoder.keep(keep)
            alive, running, uniform, token = alive[keep], running[keep], uniform[keep], token[keep]
        decoder.step(token)
    # 2. Cut what follows it.
    return _cut(cfg, prompts.select(rows), ids, logprobs)


def _sample_in_lanes(
    policy: Llama,
    prompts: Prompts,
    rows: Tensor,
    uniform: Tensor,
    temperature: float,
    logit_bias: Tensor | None,
    precision: Precision,
) -> Responses:
    """All blocks at once, on an accelerator."""
    biases = [b.to(policy.device) for b in (logit_bias, policy.logit_mask) if b is not None]
    distinct, prompt_of_row = rows.unique(return_inverse=True)
    few = prompts.select(distinct)
    drawn = lanes.sample_rows(
        policy,
        few.ids,
        few.mask,
        prompt_of_row,
        uniform,
        _inverse_cdf,
        temperature=temperature,
        logit_bias=sum(biases[1:], biases[0]) if biases else None,
        dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
    )
    return _cut(policy.cfg, prompts.select(rows), drawn.ids, drawn.logprobs)


def _cut(cfg: PolicyShape, prompts: Prompts, ids: Tensor, logprobs: Tensor) -> Responses:
    """Responses that end behind their first end token; a token is real if none comes before it."""
    is_end = ids == cfg.eos_token_id
    mask = (is_end.cumsum(1) - is_end.long()) == 0
    ids, logprobs = ids.masked_fill(~mask, cfg.pad_token_id), logprobs.masked_fill(~mask, 0)
    ended = is_end.any(1)
    return Responses(prompts, ids.cpu(), mask.cpu(), logprobs.cpu(), ended.cpu())


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
    # The largest u round to the total, behind which there is nothing.
    target = torch.minimum(target, total * (1 - 1e-15))
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


def response_view(seq: Sequences, width: int | None = None) -> ResponseView:
    """Where the response tokens of ``seq`` are, right-padded to the longest response.

    ``width``: its tokens, where the caller knows them: a GPU need not be asked.
    """
    n_response = seq.length - seq.n_prompt
    t = torch.arange(int(n_response.max()) if width is None else width, device=seq.ids.device)
    mask = t < n_response[:, None]
    at = torch.where(mask, seq.n_prompt[:, None] + t, 0)
    return ResponseView((at - 1).clamp_min(0), seq.ids.gather(1, at) * mask, mask)


def response_hidden(model: Backbone, seq: Sequences, view: ResponseView) -> Tensor:
    """Hidden states (R, T, D) that predict each response token; differentiable."""
    return model(seq.ids, view.position)


def sequence_batches(
    responses: Responses, batch_tokens: int, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensor, Sequences]]:
    """Rows of ``responses`` and their joined sequences on ``device``, in batches of similar length.

    The table goes to another device as a whole, or in few pieces, and is joined and cut there.
    """
    prompts, device = responses.prompts, torch.device(device)
    n_rows, n_ids = len(responses), responses.ids.shape[1] + prompts.ids.shape[1]
    at_once = max(1, n_rows if device.type == "cpu" else _TABLE_IDS // n_ids)
    for start in range(0, n_rows, at_once):
        part = responses if at_once >= n_rows else responses.select(slice(start, start + at_once))
        asked = Prompts(*(t.to(device) for t in vars(part.prompts).values()))
        seq = join(asked, part.ids.to(device), part.mask.to(device))
        length = seq.length.cpu()
        for rows in length_sorted(length, batch_tokens):
            width, at = int(length[rows[-1]]), rows.to(device, non_blocking=True)
            batch = Sequences(seq.ids[at, :width], seq.length[at], seq.n_prompt[at])
            yield (rows + start if start else rows), batch


class Continuations(NamedTuple):
    """Some rows of responses behind prompts that were computed once.

    rows (R,): which; ids (R, T), length (R,): their tokens, right-padded; before: what they continue.
    """

    rows: Tensor
    ids: Tensor
    length: Tensor
    before: Prefix


def continuations(
    model: Backbone,
    responses: Responses,
    batch_tokens: int,
    *,
    with_last: bool = False,
    by_length: bool = False,
) -> Iterator[Continuations] | None:
    """Responses in batches of similar length, each distinct prompt computed once for all of them.

    None where that cannot be, or is no gain: prompts that are not shared, an accelerator, for which
    fewer and larger calls count more, or a network that is no compact `Llama`. ``with_last``: the
    last token of the prompt belongs to the rows, as its hidden state predicts the first of a response.
    ``by_length``: prompts of like length are computed together too, at the width of the longest of
    them and not of all; a gain where lengths differ much, and the last bits of scores differ.
    """
    if not isinstance(model, Llama) or model.device.type != "cpu" or len(responses) == 0:
        return None
    seq = join(responses.prompts, responses.ids, responses.mask)
    shared = shared_prompts(Sequences(seq.ids, seq.length, seq.n_prompt - int(with_last)))
    if shared is None:
        return None
    if by_length:
        prompts = _prefix_by_length(model, shared.prompt_ids, shared.n_prompt, batch_tokens)
    else:
        at_once = max(1, batch_tokens // shared.prompt_ids.shape[1])
        pieces = zip(shared.prompt_ids.split(at_once), shared.n_prompt.split(at_once), strict=True)
        prompts = Prefix.joined([model.prefix(ids, length) for ids, length in pieces])
    return (
        Continuations(
            rows,
            shared.ids[rows, : int(shared.length[rows[-1]])],
            shared.length[rows],
            prompts.select(shared.prompt[rows]),
        )
        for rows in length_sorted(shared.length, batch_tokens)
    )


def _prefix_by_length(model: Llama, ids: Tensor, length: Tensor, batch_tokens: int) -> Prefix:
    """`Llama.prefix` of right-padded prompts (P, L), those of like length at once."""
    parts, order = [], []
    for rows in length_sorted(length, batch_tokens):
        width = int(length[rows[-1]])
        part = model.prefix(ids[rows, :width], length[rows])
        more = (0, 0, 0, ids.shape[1] - width)  # behind the real tokens, where nothing looks
        layers = [(F.pad(keys, more), F.pad(values, more)) for keys, values in part.layers]
        parts.append(Prefix(layers, part.length))
        order.append(rows)
    return Prefix.joined(parts).select(torch.cat(order).argsort())


@torch.no_grad()
def score_logprobs(
    policy: Backbone,
    responses: Responses,
    *,
    batch_tokens: int | None = None,
    by_length: bool = False,
) -> Tensor:
    """Log-probabilities (R, T) in nats of given tokens under ``policy``; 0 where masked.

    ``batch_tokens``: padded tokens of one call; None: what suits the device. ``by_length``: as for
    `continuations`.
    """
    if batch_tokens is None:
        batch_tokens = tokens_at_once(policy.device, 2048, n_logits=policy.cfg.vocab_size)
    out = torch.zeros(responses.ids.shape)
    parts = continuations(policy, responses, batch_tokens, with_last=True, by_length=by_length)
    if parts is not None:
        for part in parts:
            width = part.ids.shape[1] - 1
            hidden = policy(part.ids[:, :-1], before=part.before)
            logp = token_logprobs(policy.logits(hidden).float(), part.ids[:, 1:])
            out[part.rows, :width] = logp * (torch.arange(width) < part.length[:, None] - 1)
        return out
    for rows, seq in sequence_batches(responses, batch_tokens, policy.device):
        view = response_view(seq)
        logp = token_logprobs(
            policy.logits(response_hidden(policy, seq, view)).float(), view.tokens
        )
        out[rows, : view.tokens.shape[1]] = (logp * view.mask).cpu()
    return out


def token_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probability in nats of ``ids`` (…) under the full softmax of ``logits`` (…, V)."""
    # The fused kernel passes over the vocabulary half as often as a gather and a logsumexp.
    losses = F.cross_entropy(logits.flatten(0, -2), ids.flatten(), reduction="none")
    return -losses.view(ids.shape)


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of the softmax of ``logits`` (…, V), shape (…)."""
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)
