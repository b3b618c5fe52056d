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
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overopt.nets import cuda
from overopt.nets.backbone import Backbone
from overopt.nets.block import (
    Layer,
    LlamaConfig,
    Prefix,
    rope_tables,
)
from overopt.nets.fused import Normalise


class Llama(Backbone):
    """Llama trunk and output matrix.

    Call it for hidden states; `logits` maps hidden states to the vocabulary; `decoder` generates.
    """

    cfg: LlamaConfig

    def __init__(self, cfg: LlamaConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Embedding(cfg.vocab_size, cfg.hidden_size)
        self.layers = nn.ModuleList(Layer(cfg) for _ in range(cfg.num_hidden_layers))
        self.norm = nn.Parameter(torch.ones(cfg.hidden_size))
        if not cfg.tie_word_embeddings:
            self.lm_head = nn.Linear(cfg.hidden_size, cfg.vocab_size, bias=False)
        cos, sin = rope_tables(cfg)
        self.rope_cos: Tensor
        self.rope_sin: Tensor
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)
        self.mask(cfg.masked_ids, cfg.vocab_size)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed.weight.device

    @property
    def blocks(self) -> list[Layer]:
        """The layers with their own type."""
        return cast(list[Layer], list(self.layers))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Normal(0, 0.02), output projections scaled by 1/sqrt(2·layers) as in GPT-2."""
        for name, p in self.named_parameters():
            if p.ndim == 2:
                residual = name.endswith(("out.weight", "down.weight"))
                std = 0.02 / math.sqrt(2 * len(self.layers)) if residual else 0.02
                p.normal_(0.0, std, generator=generator)

    def forward(
        self, input_ids: Tensor, at: Tensor | None = None, before: Prefix | None = None
    ) -> Tensor:
        """Final hidden states (R, L, D) of right-padded token ids (R, L).

        With positions ``at`` (R, T) those alone, (R, T, D): most of the last block is left out
        elsewhere. The tokens continue those of ``before``, if given, which `prefix` has computed.
        """
        if before is not None:
            x = self.embed(input_ids)
            turn, hidden = self._behind(before, input_ids.shape[1])
            for layer, keys_values in zip(self.blocks[:-1], before.layers, strict=False):
                x = layer(x, turn, before=keys_values, hidden=hidden)
            last = self.blocks[-1](x, turn, at=at, before=before.layers[-1], hidden=hidden)
            return self.normed(last)
        if input_ids.is_cuda:
            self.check_length(input_ids.shape[1])
            return cuda.hidden_states(self, input_ids, at)
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
        self.check_length(int((before.length + at).max()) + 1)
        turn, hidden = self._behind(before, n_tokens)
        for layer, keys_values in zip(self.blocks[:-1], before.layers, strict=False):
            x = layer(x, turn, cached, before=keys_values, hidden=hidden)
        return self.normed(last.last(x, turn, at, cached, before.layers[-1], before.hidden))

    def _behind(self, before: Prefix, n_tokens: int) -> tuple[Tensor, Tensor]:
        """Rotations of ``n_tokens`` positions behind a prefix, and what they do not see of it and of
        themselves. One row stands for all where all continue equally many tokens.
        """
        padding, length = before.hidden, before.length
        some = slice(None if bool(padding.any()) else 1)
        position = length[some, None] + torch.arange(n_tokens, device=length.device)
        # Padding behind a long prefix has no place in the context, and needs none.
        within = min(int(length.max()) + n_tokens, self.cfg.max_position_embeddings)
        turn = self.turn(within)[position.clamp_max(within - 1)]
        later = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=length.device).triu(1)
        hidden = torch.cat(
            [t.expand(len(turn), n_tokens, -1) for t in (padding[some, None], later[None])], 2
        )
        return turn, hidden

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
        """Unnormalized log-probabilities (…, V) of the next token, `masked`."""
        tied = self.cfg.tie_word_embeddings
        return self.masked(hidden @ (self.embed if tied else self.lm_head).weight.T)

    def decoder(self, ids: Tensor, mask: Tensor, row: Tensor, n_tokens: int) -> "LlamaDecoder":
        """Decoding state after the prompts ``ids[row]``; see `overopt.nets.backbone.Decoder`."""
        return LlamaDecoder(self, ids, mask, row, n_tokens)


class _StepLayer:
    """One layer's weights and cache, as `LlamaDecoder` multiplies with them.

    keys and values (R, H_kv, S, D_head); queries and keys are in the order of `paired_order`.
    """

    def __init__(self, layer: Layer, keys: Tensor, values: Tensor) -> None:
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
