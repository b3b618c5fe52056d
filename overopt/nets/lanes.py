"""Sampling a table of responses on an accelerator: a fixed number of lanes, refilled as rows end.

On a CPU small batches suit the caches; a GPU wants thousands of
rows at once and no work on the host between tokens. So a fixed number of lanes each decode one row
of the table; a lane whose row has ended takes the next row (continuous batching). One token of all
lanes is one fixed sequence of kernels on fixed addresses, captured once as a CUDA graph and replayed.

Row r, token t uses the uniform number ``uniform[r, t]`` whichever lane it is in, so the table is what
the CPU's sampler gives, up to the rounding of products.

Keys and values of a row lie in the slots of its tokens, without padding, in the halves order of the
checkpoint layout (`overopt.nets` pairs coordinates instead). Single-token attention is a Triton kernel
that reads the slots in use and no others; where there is no Triton or no GPU, the same step runs in
plain torch.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from overopt.nets.cuda import explicit_precision
from overopt.nets.llama import Llama

try:
    import triton

    from overopt.nets import lane_kernels
except ImportError:
    triton = None

LANES = 8192  # rows decoded at once, at most
CACHE_BYTES = 24e9  # of keys and values, at most
PREFILL_TOKENS = 1 << 17  # of prompts that are read at once, padding included
REFILL = 8  # tokens between looks at which lanes are free
_KEPT = 4  # captured graphs kept for a model, as long as their caches stay below CACHE_BYTES

Draw = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Drawn(NamedTuple):
    """What was sampled for N rows: ids (N, T) int64 and logprobs (N, T) float32, on the device.

    Entries behind a row's end token are undefined.
    """

    ids: Tensor
    logprobs: Tensor


@torch.no_grad()
def sample_rows(
    model: Llama,
    ids: Tensor,
    mask: Tensor,
    row: Tensor,
    uniform: Tensor,
    draw: Draw,
    *,
    temperature: float = 1.0,
    logit_bias: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    n_lanes: int | None = None,
) -> Drawn:
    """Continue prompts ``ids[row]`` by tokens at the quantiles ``uniform`` of the model's softmax.

    Parameters
    ----------
    ids, mask : (P, L) distinct prompts, left-padded
    row : (N,) int64 prompt of each row of the table
    uniform : (N, T) float64 in [0, 1)
    draw : logits (R, V) float32 and quantiles (R,) -> tokens (R,) and their log-probabilities (R,)
    temperature, logit_bias : the bias (V,) is added to the logits, then they are divided
    dtype : of weights, cache and products; softmax and attention weights are float32
    n_lanes : rows decoded at once; None: as many as memory and `LANES` allow
    """
    device = model.device
    n_prompt = mask.sum(1).to(device)
    width = int(n_prompt.max())
    n_slots = -(-(width + uniform.shape[1]) // 16) * 16
    cfg = model.cfg
    per_lane = 2 * cfg.num_hidden_layers * cfg.n_kv_heads * cfg.head_dim * n_slots * dtype.itemsize
    runners = _RUNNERS.setdefault(model, {})
    if n_lanes is None:
        kept = sum(2 * r.keys.nbytes for r in runners.values())
        most = max(1, int(_cache_bytes(device, kept) // per_lane))
        # A power of two, so that a little more or less memory is the same number of lanes.
        n_lanes = min(LANES, 1 << (most.bit_length() - 1))
    n_lanes = max(1, min(n_lanes, len(row)))
    shape, biased = tuple(uniform.shape), logit_bias is not None
    key = (device, n_lanes, n_slots, shape, dtype, temperature, biased)
    runner = runners.pop(key, None)
    # Streams, graphs and Triton use the current device, which need not be the model's.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        if runner is None:
            room = CACHE_BYTES - n_lanes * per_lane
            while runners and (
                len(runners) >= _KEPT or sum(2 * r.keys.nbytes for r in runners.values()) > room
            ):
                runners.pop(next(iter(runners)))
            runner = _Runner(model, n_lanes, n_slots, uniform.shape, dtype, temperature, logit_bias)
        runners[key] = runner
        runner.weights.refresh(model)
        return runner.run(ids.to(device), mask.to(device), row, uniform, draw, logit_bias)


def _cache_bytes(device: torch.device, kept: int) -> float:
    """Bytes that a cache may take: of a GPU, which processes share, at most a quarter of what is free.

    ``kept``: bytes of caches that would be given up for it.
    """
    if device.type != "cuda":
        return CACHE_BYTES
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(CACHE_BYTES, (torch.cuda.mem_get_info(device)[0] + idle + kept) / 4)


_RUNNERS: "WeakKeyDictionary[Llama, dict[Any, _Runner]]" = WeakKeyDictionary()


class _Weights:
    """A model's weights in the decoder's precision, each norm's weight in the map behind it."""

    def __init__(self, model: Llama, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._tensors = [t.to(dtype).clone() for t in self._folded(model)]
        self.embed, self.output, self.norm, *rest = self._tensors
        n = 5 if model.cfg.attention_bias else 4
        self.layers = [rest[i : i + n] for i in range(0, len(rest), n)]

    @staticmethod
    def _folded(model: Llama) -> list[Tensor]:
        """Embedding, output matrix, last norm; then of each layer qkv, out, gate and up, down."""
        embed = model.embed.weight
        tensors = [
            embed,
            embed if model.cfg.tie_word_embeddings else model.lm_head.weight,
            model.norm,
        ]
        for layer in model.blocks:
            tensors += [
                layer.qkv.weight * layer.norm1,
                layer.out.weight,
                layer.gate_up.weight * layer.norm2,
                layer.down.weight,
            ]
            if model.cfg.attention_bias:
                tensors.append(layer.qkv.bias)
        return tensors

    def refresh(self, model: Llama) -> None:
        """Follow the model's weights, in place: a captured graph reads from the same addresses."""
        torch._foreach_copy_(self._tensors, self._folded(model))


class _Runner:
    """Lanes of one shape: their state, the step that advances it, and its graph."""

    def __init__(
        self,
        model: Llama,
        n_lanes: int,
        n_slots: int,
        shape: torch.Size,
        dtype: torch.dtype,
        temperature: float,
        logit_bias: Tensor | None,
    ) -> None:
        cfg, device = model.cfg, model.device
        self.cfg, self.temperature = cfg, temperature
        self.n_lanes, self.n_slots = n_lanes, n_slots
        # Slots are rounded up; a free lane must not run past the context's rotary angles.
        self.last_slot = min(n_slots, cfg.max_position_embeddings) - 1
        self.n_rows, self.n_tokens = shape
        self.weights = _Weights(model, dtype)
        self.uses_kernels = triton is not None and device.type == "cuda"
        cache = (cfg.num_hidden_layers, n_lanes, cfg.n_kv_heads, n_slots, cfg.head_dim)
        self.keys = torch.zeros(cache, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        half = cfg.head_dim // 2
        self.cos = model.rope_cos[:, :half].contiguous()
        self.sin = model.rope_sin[:, :half].contiguous()
        # The table has one more row, for lanes that are free.
        self.uniform = torch.zeros(
            self.n_rows + 1, self.n_tokens, dtype=torch.float64, device=device
        )
        self.ids = torch.zeros(self.n_rows + 1, self.n_tokens, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(self.n_rows + 1, self.n_tokens, device=device)
        self.bias = None if logit_bias is None else logit_bias.to(device).float().clone()
        # Of each lane: row of the table, next token there, slot of that token, state before it.
        self.row = torch.full((n_lanes,), self.n_rows, dtype=torch.int64, device=device)
        self.token = torch.zeros(n_lanes, dtype=torch.int64, device=device)
        self.slot = torch.zeros(n_lanes, dtype=torch.int64, device=device)
        self.hidden = torch.zeros(n_lanes, cfg.hidden_size, dtype=dtype, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def run(
        self,
        ids: Tensor,
        mask: Tensor,
        row: Tensor,
        uniform: Tensor,
        draw: Draw,
        logit_bias: Tensor | None,
    ) -> Drawn:
        """Fill the table. Graph and buffers stay for the next call."""
        device = self.keys.device
        self.uniform[:-1].copy_(uniform)
        if self.bias is not None and logit_bias is not None:
            self.bias.copy_(logit_bias)
        self.row.fill_(self.n_rows)
        prompts = self._prefill(ids, mask)
        prompt_of_row = row.to(device)
        if self.graph is None and device.type == "cuda":
            self.graph = self._capture(draw)
        next_row, free = 0, torch.arange(self.n_lanes, device=device)
        while True:
            n_new = min(len(free), self.n_rows - next_row)
            if n_new > 0:
                rows = torch.arange(next_row, next_row + n_new, device=device)
                self._fill(free[:n_new], rows, prompt_of_row[rows], prompts)
                next_row += n_new
            for _ in range(REFILL):
                if self.graph is None:
                    self._step(draw)
                else:
                    self.graph.replay()
            free = (self.row == self.n_rows).nonzero()[:, 0]
            if next_row == self.n_rows and len(free) == self.n_lanes:
                break
        return Drawn(self.ids[:-1].clone(), self.logprobs[:-1].clone())

    def _prefill(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Keys and values (layers, P, H_kv, L, D), hidden (P, D) and tokens (P,) of the prompts."""
        n_prompt = mask.sum(1)
        width = int(n_prompt.max())
        shift = torch.arange(width, device=ids.device) + (ids.shape[1] - n_prompt)[:, None]
        ids = ids.gather(1, shift.clamp_max(ids.shape[1] - 1))
        # A bounded number of prompts at once: what a block writes is several times what it keeps.
        some = max(1, PREFILL_TOKENS // width)
        with explicit_precision(ids.device):
            states = [
                self._read(*part)
                for part in zip(ids.split(some), n_prompt.split(some), strict=True)
            ]
        keys, values = (torch.cat([s[j] for s in states], 1) for j in (0, 1))
        return keys, values, torch.cat([s[2] for s in states]), n_prompt

    def _read(self, ids: Tensor, length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values (layers, R, H_kv, L, D) and last hidden state (R, D) of right-padded rows."""
        w, cfg, (n_rows, width) = self.weights, self.cfg, ids.shape
        heads = cfg.num_attention_heads, cfg.n_kv_heads, cfg.n_kv_heads
        group = heads[0] // heads[1]
        half = (
            w.dtype == torch.bfloat16
        )  # of whose kernels a key serves a group of queries as it is
        keys, values = [], []
        x = F.embedding(ids.flatten(), w.embed)
        for qkv_map, out_map, up_map, down_map, *bias in w.layers:
            qkv = self._turned(F.linear(self._normed(x), qkv_map, *bias), width)
            q, k, v = qkv.view(n_rows, width, -1, cfg.head_dim).transpose(1, 2).split(heads, 1)
            keys.append(k.contiguous())
            values.append(v.contiguous())
            if not half:
                k, v = (t.repeat_interleave(group, 1) for t in (k, v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=half)
            x.addmm_(y.transpose(1, 2).reshape(len(x), -1), out_map.T)
            x.addmm_(self._gated(F.linear(self._normed(x), up_map)), down_map.T)
        last = x[torch.arange(n_rows, device=x.device) * width + length - 1]
        return torch.stack(keys), torch.stack(values), self._last_norm(last)

    def _fill(
        self, lanes: Tensor, rows: Tensor, prompt: Tensor, prompts: tuple[Tensor, ...]
    ) -> None:
        """Start ``rows`` of the table in free ``lanes``, each behind its ``prompt``."""
        keys, values, hidden, n_prompt = prompts
        width = keys.shape[3]
        for layer in range(len(keys)):
            self.keys[layer, :, :, :width][lanes] = keys[layer][prompt]
            self.values[layer, :, :, :width][lanes] = values[layer][prompt]
        self.row[lanes], self.token[lanes] = rows, 0
        self.slot[lanes], self.hidden[lanes] = n_prompt[prompt], hidden[prompt]

    def _capture(self, draw: Draw) -> "torch.cuda.CUDAGraph":
        """The step as a graph. All lanes are free meanwhile, so that nothing of the table changes."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._step(draw)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            self._step(draw)
        return graph

    def _step(self, draw: Draw) -> None:
        """One token in every lane, in place; nothing here waits for the device."""
        w = self.weights
        # 1. Draw it, and write it down.
        logits = _product(self.hidden, w.output)
        at = self.row, self.token
        token, logp = self._drawn(logits, self.uniform[at], draw)
        self.ids.index_put_(at, token)
        self.logprobs.index_put_(at, logp.float())
        # 2. The state behind it.
        x = F.embedding(token, w.embed)
        for i, (qkv_map, out_map, up_map, down_map, *bias) in enumerate(w.layers):
            qkv = F.linear(self._normed(x), qkv_map, *bias)
            x.addmm_(self._attention(qkv, i), out_map.T)
            x.addmm_(self._gated(F.linear(self._normed(x), up_map)), down_map.T)
        self.hidden.copy_(self._last_norm(x))
        # 3. A lane is free behind an end token or the last one. Free lanes go on, in the spare row.
        self.token.add_(1)
        ended = (token == self.cfg.eos_token_id) | (self.token >= self.n_tokens)
        self.row.masked_fill_(ended, self.n_rows)
        self.token.masked_fill_(ended, 0)
        self.slot.add_(1).clamp_(max=self.last_slot)

    def _drawn(self, logits: Tensor, uniform: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        if self.uses_kernels:
            return lane_kernels.draw(logits, self.bias, uniform, self.temperature)
        if self.bias is not None:
            logits = logits + self.bias
        if self.temperature != 1.0:
            logits = logits / self.temperature
        return draw(logits, uniform)

    def _normed(self, x: Tensor) -> Tensor:
        if self.uses_kernels:
            return lane_kernels.normalise(x, self.cfg.rms_norm_eps)
        return F.rms_norm(x, (x.shape[1],), None, self.cfg.rms_norm_eps)

    def _last_norm(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[1],), self.weights.norm, self.cfg.rms_norm_eps)

    def _gated(self, gate_up: Tensor) -> Tensor:
        if self.uses_kernels:
            return lane_kernels.swiglu(gate_up)
        gate, up = gate_up.chunk(2, 1)
        return F.silu(gate) * up

    def _turned(self, qkv: Tensor, width: int) -> Tensor:
        """Projections (R·L, (H + 2 H_kv)·D) of whole rows of ``width`` tokens, q and k rotated."""
        n_heads = self.cfg.num_attention_heads + self.cfg.n_kv_heads
        if self.uses_kernels:
            return lane_kernels.rotate(qkv, self.cos, self.sin, width, n_heads)
        heads = qkv.view(-1, width, qkv.shape[1] // self.cfg.head_dim, self.cfg.head_dim)
        turned = rotated(heads[:, :, :n_heads], self.cos[:width, None], self.sin[:width, None])
        return torch.cat([turned, heads[:, :, n_heads:]], 2).view_as(qkv)

    def _attention(self, qkv: Tensor, layer: int) -> Tensor:
        """Heads (R, H·D) of single tokens over their rows' slots; their keys and values are stored."""
        keys, values = self.keys[layer], self.values[layer]
        if self.uses_kernels:
            return lane_kernels.attend(qkv, keys, values, self.cos, self.sin, self.slot)
        return attend(qkv, keys, values, self.cos, self.sin, self.slot)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Vectors (…, D) turned by the angles of each half's coordinates, in float32; halves order."""
    left, right = x.float().chunk(2, -1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1).to(x.dtype)


def attend(
    qkv: Tensor, keys: Tensor, values: Tensor, cos: Tensor, sin: Tensor, slot: Tensor
) -> Tensor:
    """Attention of one new token a row, (R, H·D), over the slots up to its own, where it is stored.

    Parameters
    ----------
    qkv : (R, (H + 2 H_kv)·D) projections before rotation, halves order
    keys, values : (R, H_kv, S, D), changed at ``slot``
    cos, sin : (positions, D/2) of the rotary angles
    slot : (R,) int64 position of the new token
    """
    n_rows, n_kv, n_slots, dim = keys.shape
    heads = qkv.view(n_rows, -1, dim)
    n_heads = heads.shape[1] - 2 * n_kv
    turned = rotated(heads[:, : n_heads + n_kv], cos[slot][:, None], sin[slot][:, None])
    lanes = torch.arange(n_rows, device=qkv.device)
    keys[lanes, :, slot] = turned[:, n_heads:]
    values[lanes, :, slot] = heads[:, n_heads + n_kv :]
    q = turned[:, :n_heads].view(n_rows, n_kv, -1, dim).float()
    scores = (q @ keys.float().transpose(2, 3)) * dim**-0.5
    ahead = torch.arange(n_slots, device=qkv.device) > slot[:, None]
    weights = scores.masked_fill(ahead[:, None, None], -torch.inf).softmax(-1)
    return (weights @ values.float()).view(n_rows, -1).to(qkv.dtype)


def _product(x: Tensor, matrix: Tensor) -> Tensor:
    """x Wᵀ in float32, accumulated there too; on a CPU products of bfloat16 come rounded to it."""
    if x.dtype == torch.float32:
        return x @ matrix.T
    if x.device.type == "cuda":
        return torch.mm(x, matrix.T, out_dtype=torch.float32)
    return (x @ matrix.T).float()
