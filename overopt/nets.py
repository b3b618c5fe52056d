"""Networks: a compact Llama, and a reward model that puts a scalar head on any backbone.

Every model of the ladder is a Llama in the transformers checkpoint layout; `Llama` computes the
same function as ``transformers.LlamaForCausalLM`` or, with biases, ``Qwen2ForCausalLM`` (tested with
copied weights), but with fused projections. `LlamaDecoder` generates with few operations a token,
because sampling from small models is dominated by overhead.

What differs on purpose: inputs are right-padded and need no mask (causality hides what comes
later), except prompts to continue, which are left-padded. Dropout does not exist. Reward heads
start at N(0, 1/(D+1)) as in Stiennon et al. 2020; value heads start at 0.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overopt import cuda_nets
from overopt.datatypes import Responses
from overopt.errors import CheckpointError, ConfigError
from overopt.fused import Normalise, RotateHeads, SwiGlu


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Shape of a Llama; field names as in transformers' ``config.json``.

    num_key_value_heads : heads of keys and values, each shared by a group of query heads; None: one
        per query head.
    attention_bias : queries, keys and values have a bias, the output projection none: transformers
        calls that model Qwen2.
    tie_word_embeddings : the output matrix is the embedding; False: an own ``lm_head``.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int = 256
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    pad_token_id: int = 0
    bos_token_id: int = 1
    eos_token_id: int = 1
    num_key_value_heads: int | None = None
    attention_bias: bool = False
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ConfigError(
                f"hidden_size = {self.hidden_size}: rotary embedding needs an even width for each of "
                f"the num_attention_heads = {self.num_attention_heads}"
            )
        if self.n_kv_heads < 1 or self.num_attention_heads % self.n_kv_heads:
            raise ConfigError(
                f"num_key_value_heads = {self.n_kv_heads}: it must divide num_attention_heads = "
                f"{self.num_attention_heads}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def n_kv_heads(self) -> int:
        """Heads of keys and values."""
        n = self.num_key_value_heads
        return self.num_attention_heads if n is None else n

    def to_transformers(self) -> dict:
        """The content of a transformers ``config.json`` for this shape."""
        shape = asdict(self)
        theta = shape.pop("rope_theta")
        kind, name = ("qwen2", "Qwen2") if self.attention_bias else ("llama", "Llama")
        return {
            "architectures": [f"{name}ForCausalLM"],
            "model_type": kind,
            **shape,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
            "mlp_bias": False,
        }


def _rope_tables(cfg: LlamaConfig) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angles, each (S, D_head), halves repeated (NeoX order)."""
    half = torch.arange(0, cfg.head_dim, 2, dtype=torch.float32) / cfg.head_dim
    angles = torch.outer(torch.arange(cfg.max_position_embeddings).float(), cfg.rope_theta**-half)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def _paired_order(cfg: LlamaConfig) -> Tensor:
    """Rows of the qkv projection with the two coordinates that rotate together adjacent.

    The checkpoint layout keeps them half a head apart. Queries and keys may be reordered alike, as
    only their products count; in this order a rotation is one product of complex numbers.
    """
    n_qk, n_kv = cfg.num_attention_heads + cfg.n_kv_heads, cfg.n_kv_heads
    rows = torch.arange((n_qk + n_kv) * cfg.head_dim).view(-1, 2, cfg.head_dim // 2)
    return torch.cat([rows[:n_qk].transpose(1, 2).flatten(), rows[n_qk:].flatten()])


class _Maps(NamedTuple):
    """Linear maps of a block as they are multiplied with: each norm's weight in the map behind it.

    qkv, qkv_bias : outputs in the order of `_paired_order`.
    """

    qkv: Tensor
    qkv_bias: Tensor | None
    gate_up: Tensor


class Prefix(NamedTuple):
    """What each of R rows continues: tokens that were computed before, such as a shared prompt.

    layers: of each layer, keys and values (R, H_kv, L, D_head), keys in the order of
    `_paired_order`; length (R,): real ones of the L, the first.
    """

    layers: list[tuple[Tensor, Tensor]]
    length: Tensor

    def select(self, row: Tensor) -> "Prefix":
        """Row i continues what row ``row[i]`` did; differentiable."""
        layers = [(k.index_select(0, row), v.index_select(0, row)) for k, v in self.layers]
        return Prefix(layers, self.length[row])

    def split(self, sizes: list[int]) -> list["Prefix"]:
        """Consecutive rows."""
        lengths = self.length.split(sizes)
        pairs = [zip(k.split(sizes), v.split(sizes), strict=True) for k, v in self.layers]
        parts = zip(*pairs, strict=True)
        return [Prefix(list(p), n) for p, n in zip(parts, lengths, strict=True)]

    @property
    def hidden(self) -> Tensor:
        """Padding, (R, L) bool."""
        slot = torch.arange(self.layers[0][0].shape[2], device=self.length.device)
        return slot >= self.length[:, None]


class _Layer(nn.Module):
    """One pre-norm transformer block with fused qkv and gate-up projections."""

    paired: Tensor

    def __init__(self, cfg: LlamaConfig) -> None:
        super().__init__()
        d, h = cfg.hidden_size, cfg.intermediate_size
        self.n_heads, self.n_kv_heads = cfg.num_attention_heads, cfg.n_kv_heads
        self.eps = cfg.rms_norm_eps
        self.norm1, self.norm2 = nn.Parameter(torch.ones(d)), nn.Parameter(torch.ones(d))
        n_qkv = (self.n_heads + 2 * self.n_kv_heads) * cfg.head_dim
        self.qkv = nn.Linear(d, n_qkv, bias=cfg.attention_bias)
        if cfg.attention_bias:
            nn.init.zeros_(self.qkv.bias)
        self.out = nn.Linear(d, d, bias=False)
        self.gate_up = nn.Linear(d, 2 * h, bias=False)
        self.down = nn.Linear(h, d, bias=False)

        self.register_buffer("paired", _paired_order(cfg), persistent=False)

    def maps(self) -> _Maps:
        """The maps that multiply what a norm returns."""
        bias = cast(Tensor | None, self.qkv.bias)
        return _Maps(
            (self.qkv.weight * self.norm1)[self.paired],
            None if bias is None else bias[self.paired],
            self.gate_up.weight * self.norm2,
        )

    def forward(
        self,
        x: Tensor,
        turn: Tensor,
        cached: list[tuple[Tensor, Tensor]] | None = None,
        at: Tensor | None = None,
        before: tuple[Tensor, Tensor] | None = None,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """One block on (R, L, D), its output at all positions or at those of ``at`` (R, T) alone.

        turn (L or R × L, H + H_kv, D_head/2): of `Llama.turn`. Keys and values (R, H_kv, L, D_head),
        keys in the order of `_paired_order`, are appended to ``cached``. Those of ``before`` come
        first; ``hidden`` (1 or R, L, S) bool then says which of all a position does not see.
        """
        n_rows, length, d = x.shape
        maps = self.maps()
        qkv = F.linear(Normalise.apply(x, self.eps), maps.qkv, maps.qkv_bias)
        sizes = (self.n_heads, self.n_kv_heads, self.n_kv_heads)
        q, k, v = RotateHeads.apply(qkv.view(n_rows, length, sum(sizes), -1), turn, sizes)
        if cached is not None:
            cached.append((k, v))
        if before is not None:
            k, v = (torch.cat(both, 2) for both in zip(before, (k, v), strict=True))
        mask = None if hidden is None else ~hidden[:, None]
        grouped = self.n_kv_heads < self.n_heads
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped
        )
        y = y.transpose(1, 2).reshape(n_rows, length, d)
        if at is not None:
            x, y = at_positions(x, at), at_positions(y, at)
        return self._rest(x, y, maps)

    def last(
        self,
        x: Tensor,
        turn: Tensor,
        at: Tensor,
        cached: list[tuple[Tensor, Tensor]] | None = None,
        before: tuple[Tensor, Tensor] | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """One block on (R, L, D), its output (R, D) at positions ``at`` (R,) alone.

        Every position gives its key and value; query, attention and MLP are computed once a row.
        Keys and values of ``before`` come first, without those at ``padding`` (R, …) bool.
        """
        n_rows, length, d = x.shape
        rows = torch.arange(n_rows, device=x.device)
        y, maps = Normalise.apply(x, self.eps), self.maps()
        k, v = self.keys_values(y, turn, maps)
        if cached is not None:
            cached.append((k, v))
        b_q = None if maps.qkv_bias is None else maps.qkv_bias[:d]
        q = F.linear(y[rows, at], maps.qkv[:d], b_q).view(n_rows, 1, self.n_heads, -1)
        turn = turn.expand(n_rows, -1, -1, -1)[rows, at, None, : self.n_heads]
        (q,) = RotateHeads.apply(q, turn, (self.n_heads,))
        q = q.reshape(n_rows, self.n_kv_heads, -1, k.shape[-1])
        ahead = torch.arange(length, device=x.device) > at[:, None]
        if before is not None and padding is not None:
            k, v = (torch.cat(both, 2) for both in zip(before, (k, v), strict=True))
            ahead = torch.cat([padding, ahead], 1)
        scores = (q @ k.transpose(2, 3)) * q.shape[-1] ** -0.5
        scores = scores.masked_fill(ahead[:, None, None], -torch.inf)
        y = (scores.softmax(-1).to(v.dtype) @ v).view(n_rows, d)
        return self._rest(x[rows, at], y, maps)

    def keys_values(self, y: Tensor, turn: Tensor, maps: _Maps) -> tuple[Tensor, Tensor]:
        """Keys and values (R, H_kv, L, D_head) of normalised positions ``y`` (R, L, D)."""
        d, n_kv = y.shape[-1], self.n_kv_heads
        bias = None if maps.qkv_bias is None else maps.qkv_bias[d:]
        kv = F.linear(y, maps.qkv[d:], bias).view(*y.shape[:2], 2 * n_kv, -1)
        return RotateHeads.apply(kv, turn[..., self.n_heads :, :], (n_kv, n_kv))

    def _rest(self, x: Tensor, y: Tensor, maps: _Maps) -> Tensor:
        """What follows attention, on its input ``x`` and output ``y`` (…, D)."""
        x = x + self.out(y)
        return x + self.down(SwiGlu.apply(F.linear(Normalise.apply(x, self.eps), maps.gate_up)))


def at_positions(x: Tensor, at: Tensor) -> Tensor:
    """Entries (R, T, D) of ``x`` (R, L, D) at positions ``at`` (R, T)."""
    return x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))


class Llama(nn.Module):
    """Llama trunk and output matrix.

    Call it for hidden states; `logits` maps hidden states to the vocabulary; `decoder` generates.
    """

    def __init__(self, cfg: LlamaConfig) -> None:
        super().__init__()
        self.cfg = cfg
        # Of a scorer whose tokenizer is not the policy's: responses in its own tokens.
        self.reader: Callable[[Responses], Responses] | None = None
        self.embed = nn.Embedding(cfg.vocab_size, cfg.hidden_size)
        self.layers = nn.ModuleList(_Layer(cfg) for _ in range(cfg.num_hidden_layers))
        self.norm = nn.Parameter(torch.ones(cfg.hidden_size))
        if not cfg.tie_word_embeddings:
            self.lm_head = nn.Linear(cfg.hidden_size, cfg.vocab_size, bias=False)
        cos, sin = _rope_tables(cfg)
        self.rope_cos: Tensor
        self.rope_sin: Tensor
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed.weight.device

    @property
    def blocks(self) -> list[_Layer]:
        """The layers with their own type."""
        return cast(list[_Layer], list(self.layers))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Normal(0, 0.02), output projections scaled by 1/sqrt(2·layers) as in GPT-2."""
        for name, p in self.named_parameters():
            if p.ndim == 2:
                residual = name.endswith(("out.weight", "down.weight"))
                std = 0.02 / math.sqrt(2 * len(self.layers)) if residual else 0.02
                p.normal_(0.0, std, generator=generator)

    def forward(self, input_ids: Tensor, at: Tensor | None = None) -> Tensor:
        """Final hidden states (R, L, D) of right-padded token ids (R, L).

        With positions ``at`` (R, T) those alone, (R, T, D): most of the last block is left out
        elsewhere.
        """
        if input_ids.is_cuda:
            self.check_length(input_ids.shape[1])
            return cuda_nets.hidden_states(self, input_ids, at)
        turn = self.turn(input_ids.shape[1])
        x = self.embed(input_ids)
        for layer in self.blocks[:-1]:
            x = layer(x, turn)
        return self.normed(self.blocks[-1](x, turn, at=at))

    def at_last_token(
        self,
        input_ids: Tensor,
        length: Tensor,
        cached: list[tuple[Tensor, Tensor]] | None = None,
        before: Prefix | None = None,
    ) -> Tensor:
        """Final hidden states (R, D) at the last real token; ``length`` (R,) real tokens a row.

        Each layer's keys and values (R, H_kv, L, D_head) are appended to ``cached``. The tokens
        continue those of ``before``, if given, which `prefix` has computed.

        The same as `forward` read there, without what the last block computes for other positions:
        about half of a 2-layer model, a fifth of a 4-layer one.
        """
        if input_ids.is_cuda and cached is None and before is None:
            return self(input_ids, length[:, None] - 1)[:, 0]
        n_tokens, at = input_ids.shape[1], length - 1
        x, last = self.embed(input_ids), self.blocks[-1]
        if before is None:
            turn = self.turn(n_tokens)
            for layer in self.blocks[:-1]:
                x = layer(x, turn, cached)
            return self.normed(last.last(x, turn, at, cached))
        # One row stands for all where all continue equally many tokens.
        padding, length = before.hidden, before.length
        some = slice(None if bool(padding.any()) else 1)
        position = length[some, None] + torch.arange(n_tokens, device=x.device)
        self.check_length(int((before.length + at).max()) + 1)
        # Padding behind a long prefix has no place in the context, and needs none.
        within = min(int(length.max()) + n_tokens, self.cfg.max_position_embeddings)
        turn = self.turn(within)[position.clamp_max(within - 1)]
        later = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=x.device).triu(1)
        hidden = torch.cat(
            [t.expand(len(turn), n_tokens, -1) for t in (padding[some, None], later[None])], 2
        )
        for layer, keys_values in zip(self.blocks[:-1], before.layers, strict=False):
            x = layer(x, turn, cached, before=keys_values, hidden=hidden)
        return self.normed(last.last(x, turn, at, cached, before.layers[-1], padding))

    def prefix(self, input_ids: Tensor, length: Tensor) -> Prefix:
        """What rows of right-padded tokens (R, L), ``length`` (R,) of them real, are continued from."""
        turn, last = self.turn(input_ids.shape[1]), self.blocks[-1]
        layers: list[tuple[Tensor, Tensor]] = []
        x = self.embed(input_ids)
        for layer in self.blocks[:-1]:
            x = layer(x, turn, layers)
        layers.append(last.keys_values(Normalise.apply(x, last.eps), turn, last.maps()))
        return Prefix(layers, length)

    def check_length(self, length: int) -> None:
        """Raise ValueError where rows of ``length`` tokens do not fit the context."""
        if length > self.cfg.max_position_embeddings:
            raise ValueError(
                f"input_ids has {length} tokens a row; the model's context is "
                f"{self.cfg.max_position_embeddings}: use shorter prompts or responses"
            )

    def turn(self, length: int) -> Tensor:
        """Rotations (L, H + H_kv, D_head/2), complex, of the first ``length`` positions."""
        self.check_length(length)
        cos, sin = (t[:length, None, : t.shape[1] // 2] for t in (self.rope_cos, self.rope_sin))
        n_turned = self.cfg.num_attention_heads + self.cfg.n_kv_heads
        # Written out for all heads: a factor that is broadcast over them takes twice as long.
        return torch.complex(cos, sin).expand(-1, n_turned, -1).contiguous()

    def normed(self, x: Tensor) -> Tensor:
        """Final hidden states of what the last block returns."""
        return F.rms_norm(x, (x.shape[-1],), self.norm, self.cfg.rms_norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """Unnormalized log-probabilities (…, V) of the next token."""
        tied = self.cfg.tie_word_embeddings
        return hidden @ (self.embed if tied else self.lm_head).weight.T

    def decoder(self, ids: Tensor, mask: Tensor, row: Tensor, n_tokens: int) -> "LlamaDecoder":
        """Decoding state after the prompts ``ids[row]``; see `overopt.sampling.Decoder`."""
        return LlamaDecoder(self, ids, mask, row, n_tokens)


class _StepLayer:
    """One layer's weights and cache, as `LlamaDecoder` multiplies with them.

    keys and values (R, H_kv, S, D_head); queries and keys are in the order of `_paired_order`.
    """

    def __init__(self, layer: _Layer, keys: Tensor, values: Tensor) -> None:
        maps = layer.maps()
        self.qkv, self.qkv_bias, self.gate_up = maps.qkv.T, maps.qkv_bias, maps.gate_up.T
        self.out, self.down = layer.out.weight.T, layer.down.weight.T
        self.keep(keys, values)

    def keep(self, keys: Tensor, values: Tensor) -> None:
        """Set the cache, and the views of it that every step uses."""
        self.keys, self.values = keys, values
        self.keys_to_write = torch.view_as_complex(keys.unflatten(3, (-1, 2)))
        self.keys_to_read = keys.flatten(0, 1).transpose(1, 2)
        self.values_to_read = values.flatten(0, 1)


def _with_room(cache: Tensor, room: int) -> Tensor:
    """A contiguous copy of keys or values (R, H, S, D) with ``room`` more slots.

    They are zeros, not whatever memory holds: a hidden slot has weight 0, and 0 times NaN is NaN.
    """
    n_rows, n_heads, n_slots, dim = cache.shape
    wide = cache.new_empty(n_rows, n_heads, n_slots + room, dim)
    wide[:, :, :n_slots] = cache
    wide[:, :, n_slots:] = 0
    return wide


class _StepBuffers:
    """Where the layers of one step, one after the other, put what they compute for R rows."""

    def __init__(self, cfg: LlamaConfig, like: Tensor, n_rows: int, n_slots: int) -> None:
        n, n_kv, dim = cfg.num_attention_heads, cfg.n_kv_heads, cfg.head_dim
        self.eps = like.new_full((1, 1), cfg.rms_norm_eps)
        self.size, self.normed = like.new_empty(n_rows, 1), like.new_empty(n_rows, cfg.hidden_size)
        self.qkv = like.new_empty(n_rows, (n + 2 * n_kv) * dim)
        heads = self.qkv.view(n_rows, -1, dim)
        qk = torch.view_as_complex(heads[:, : n + n_kv].unflatten(2, (-1, 2)))
        self.q, self.k, self.v = qk[:, :n], qk[:, n:], heads[:, n + n_kv :]
        self.turned_q = torch.empty_like(self.q, memory_format=torch.contiguous_format)
        self.queries = torch.view_as_real(self.turned_q).view(n_rows * n_kv, -1, dim)
        self.scores = like.new_empty(n_rows * n_kv, n // n_kv, n_slots)
        self.mixed = like.new_empty(n_rows * n_kv, n // n_kv, dim)
        self.mixed_rows = self.mixed.view(n_rows, -1)
        self.gate_up = like.new_empty(n_rows, 2 * cfg.intermediate_size)
        self.gate, self.up = self.gate_up.chunk(2, 1)

    def norm(self, x: Tensor) -> Tensor:
        """``x`` (R, D) over its root mean square, without weights."""
        torch.linalg.vector_norm(x, dim=1, keepdim=True, out=self.size)
        torch.addcmul(self.eps, self.size, self.size, value=1 / x.shape[1], out=self.size).rsqrt_()
        return torch.mul(x, self.size, out=self.normed)


class LlamaDecoder:
    """Keys and values of a batch of R rows while one token a row is appended at a time.

    Each distinct prompt is computed once, whatever number of rows continue it. A step writes into
    buffers, with views of them made beforehand: with small models, making tensors costs as much as
    filling them.

    Parameters
    ----------
    model : of floating type float32 or float64; its weights must not change meanwhile
    ids, mask : (P, L) distinct prompts, left-padded
    row : (R,) prompt that each row continues
    n_tokens : steps that will follow at most; bounds what is allocated
    """

    # Slots by which the cache grows. All of its slots are multiplied, those ahead hidden by a mask:
    # products with a slice of it, which is not contiguous, take twice as long.
    GROWTH = 16

    hidden: Tensor

    @torch.no_grad()
    def __init__(self, model: Llama, ids: Tensor, mask: Tensor, row: Tensor, n_tokens: int) -> None:
        cfg = model.cfg
        self._model = model
        self._used, self._n_slots = ids.shape[1], ids.shape[1] + n_tokens
        n_prompt = mask.sum(1)
        self._position = n_prompt[row]
        self._turn = model.turn(cfg.max_position_embeddings)[:, 0]

        # 1. Prompts, pushed to the left: causality then hides their padding.
        shift = torch.arange(self._used, device=ids.device) + (self._used - n_prompt)[:, None]
        ids = ids.gather(1, shift.clamp_max(self._used - 1))
        cached: list[tuple[Tensor, Tensor]] = []
        self.hidden = model.at_last_token(ids, n_prompt, cached)[row]

        # 2. The cache of each row, its padding hidden by an attention bias (1 or R·H_kv, 1, S).
        room = min(self.GROWTH, n_tokens)
        each_once = len(row) == len(ids) and bool((row.diff() > 0).all())
        self._layers = [
            _StepLayer(layer, *(_with_room(t if each_once else t[row], room) for t in keys_values))
            for layer, keys_values in zip(model.blocks, cached, strict=True)
        ]
        self._bias = self.hidden.new_zeros(1, 1, self._used)
        if not bool(mask.all()):
            padding = torch.arange(self._used, device=ids.device) >= self._position[:, None]
            self._bias = self._bias.masked_fill(padding[:, None], -torch.inf)
            self._bias = self._bias.repeat_interleave(cfg.n_kv_heads, 0)
        self._hide(room)

    def _grow(self) -> None:
        """Make room for more tokens."""
        room = min(self.GROWTH, self._n_slots - self._used)
        for part in self._layers:
            part.keep(_with_room(part.keys, room), _with_room(part.values, room))
        self._hide(room)

    def _hide(self, room: int) -> None:
        """Hide ``room`` new slots until they are filled."""
        self._bias = F.pad(self._bias, (0, room), value=-torch.inf)
        self._make_buffers()

    def _make_buffers(self) -> None:
        n_rows, n_slots = len(self._position), self._bias.shape[-1]
        self._buffers = _StepBuffers(self._model.cfg, self.hidden, n_rows, n_slots)

    @torch.no_grad()
    def step(self, token: Tensor) -> Tensor:
        """Append one token a row, (R,); returns the last hidden states (R, D).

        Raises
        ------
        ValueError
            More steps than the decoder was made for.
        """
        if self._used == self._n_slots:
            raise ValueError(f"step beyond slot {self._n_slots}: make the decoder for more tokens")
        if self._used == self._bias.shape[-1]:
            self._grow()
        self._bias[..., self._used] = 0
        turn = self._turn[self._position][:, None]
        x = self._model.embed(token)
        for part in self._layers:
            self._layer_step(part, x, turn)
        self._used += 1
        self._position += 1
        self.hidden = self._model.normed(x)
        return self.hidden

    def _layer_step(self, part: _StepLayer, x: Tensor, turn: Tensor) -> None:
        """One block on (R, D), in place; the new key and value enter the cache."""
        to, slot = self._buffers, self._used
        y = to.norm(x)
        if part.qkv_bias is None:
            torch.mm(y, part.qkv, out=to.qkv)
        else:
            torch.addmm(part.qkv_bias, y, part.qkv, out=to.qkv)
        torch.mul(to.q, turn, out=to.turned_q)
        torch.mul(to.k, turn, out=part.keys_to_write[:, :, slot])
        part.values[:, :, slot] = to.v
        scale = to.queries.shape[-1] ** -0.5
        torch.baddbmm(self._bias, to.queries, part.keys_to_read, alpha=scale, out=to.scores)
        torch.bmm(to.scores.softmax(-1), part.values_to_read, out=to.mixed)
        x.addmm_(to.mixed_rows, part.out)
        torch.mm(to.norm(x), part.gate_up, out=to.gate_up)
        x.addmm_(F.silu(to.gate).mul_(to.up), part.down)

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows; row i becomes what row ``rows[i]`` was."""
        if self._bias.shape[0] > 1:
            n_kv = self._model.cfg.n_kv_heads
            self._bias = self._bias.unflatten(0, (-1, n_kv))[rows].flatten(0, 1)
        for part in self._layers:
            part.keep(part.keys[rows], part.values[rows])
        self._position, self.hidden = self._position[rows], self.hidden[rows]
        self._make_buffers()


def to_transformers_state(model: Llama) -> dict[str, Tensor]:
    """State dict under transformers' names (projections split again)."""
    cfg = model.cfg
    state = {"model.embed_tokens.weight": model.embed.weight, "model.norm.weight": model.norm}
    if not cfg.tie_word_embeddings:
        state["lm_head.weight"] = model.lm_head.weight
    sizes = [n * cfg.head_dim for n in (cfg.num_attention_heads, cfg.n_kv_heads, cfg.n_kv_heads)]
    for i, layer in enumerate(model.blocks):
        p = f"model.layers.{i}."
        for name, fused in layer.qkv.named_parameters():
            for n, part in zip("qkv", fused.split(sizes), strict=True):
                state[p + f"self_attn.{n}_proj.{name}"] = part
        gate, up = layer.gate_up.weight.chunk(2)
        state |= {
            p + "self_attn.o_proj.weight": layer.out.weight,
            p + "mlp.gate_proj.weight": gate,
            p + "mlp.up_proj.weight": up,
            p + "mlp.down_proj.weight": layer.down.weight,
            p + "input_layernorm.weight": layer.norm1,
            p + "post_attention_layernorm.weight": layer.norm2,
        }
    return {name: t.detach().clone().contiguous() for name, t in state.items()}


def from_transformers_state(state: dict[str, Tensor], cfg: LlamaConfig) -> Llama:
    """A `Llama` with the weights of a transformers state dict; the first layers if it has more.

    Raises
    ------
    CheckpointError
        A layer has a bias that ``cfg`` has no place for.
    KeyError, RuntimeError
        A weight is missing, or of another shape.
    """
    model = Llama(cfg)
    new = {"embed.weight": state["model.embed_tokens.weight"], "norm": state["model.norm.weight"]}
    if not cfg.tie_word_embeddings:
        new["lm_head.weight"] = state["lm_head.weight"]
    biased = ("q", "k", "v") if cfg.attention_bias else ()
    for i in range(cfg.num_hidden_layers):
        p, q = f"model.layers.{i}.", f"layers.{i}."
        known = {p + f"self_attn.{n}_proj.bias" for n in biased}
        stray = [n for n in state if n.startswith(p) and n.endswith(".bias") and n not in known]
        if stray:
            raise CheckpointError(
                f"{stray[0]} has no place in this model, attention_bias = {cfg.attention_bias}: "
                "queries, keys and values have a bias together or not at all, other layers none"
            )
        for kind in ("weight", "bias") if biased else ("weight",):
            new[q + f"qkv.{kind}"] = torch.cat(
                [state[p + f"self_attn.{n}_proj.{kind}"] for n in "qkv"]
            )
        new |= {
            q + "out.weight": state[p + "self_attn.o_proj.weight"],
            q + "gate_up.weight": torch.cat(
                [state[p + f"mlp.{n}_proj.weight"] for n in ("gate", "up")]
            ),
            q + "down.weight": state[p + "mlp.down_proj.weight"],
            q + "norm1": state[p + "input_layernorm.weight"],
            q + "norm2": state[p + "post_attention_layernorm.weight"],
        }
    model.load_state_dict({name: t.float() for name, t in new.items()})
    return model


class ScalarHeadModel(nn.Module):
    """A backbone with a scalar per position: a reward model or a value function.

    With ``n_heads`` = k > 1 it has k scalars, the members of an ensemble on one trunk.
    """

    def __init__(self, backbone: Llama, n_heads: int = 1) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.cfg.hidden_size, n_heads)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @torch.no_grad()
    def init_head(self, generator: torch.Generator) -> None:
        """Draw the heads from N(0, 1/(D+1)), the reward head of Stiennon et al. 2020."""
        d = self.head.in_features
        self.head.weight.normal_(0.0, (d + 1) ** -0.5, generator=generator)

    def at_last_token(self, ids: Tensor, length: Tensor, before: Prefix | None = None) -> Tensor:
        """Scalar (R,) at the last real token of right-padded ids (R, S); (R, k) with k > 1 heads.

        The tokens continue those of ``before``, if given; a compact `Llama` alone can.
        """
        if before is None:
            hidden = self.backbone.at_last_token(ids, length)
        else:
            hidden = self.backbone.at_last_token(ids, length, before=before)
        return self.head(hidden).squeeze(-1)
