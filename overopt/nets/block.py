"""One block of a Llama: configuration, rotary tables, attention and MLP, with fused projections."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overopt.base.errors import ConfigError
from overopt.nets.fused import Normalise, RotateHeads, SwiGlu


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Shape of a Llama; field names as in transformers' ``config.json``.

    num_key_value_heads : heads of keys and values, each shared by a group of query heads; None: one
        per query head.
    attention_bias : queries, keys and values have a bias, the output projection none: transformers
        calls that model Qwen2.
    tie_word_embeddings : the output matrix is the embedding; False: an own ``lm_head``.
    masked_ids : tokens that are given no mass, since the tokenizer lacks them; not part of the file.
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
    masked_ids: Sequence[int] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "masked_ids", tuple(self.masked_ids))  # a list in files
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
        del shape["masked_ids"]
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


def rope_tables(cfg: LlamaConfig) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angles, each (S, D_head), halves repeated (NeoX order)."""
    half = torch.arange(0, cfg.head_dim, 2, dtype=torch.float32) / cfg.head_dim
    angles = torch.outer(torch.arange(cfg.max_position_embeddings).float(), cfg.rope_theta**-half)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def paired_order(cfg: LlamaConfig) -> Tensor:
    """Rows of the qkv projection with the two coordinates that rotate together adjacent.

    The checkpoint layout keeps them half a head apart. Queries and keys may be reordered alike, as
    only their products count; in this order a rotation is one product of complex numbers.
    """
    n_qk, n_kv = cfg.num_attention_heads + cfg.n_kv_heads, cfg.n_kv_heads
    rows = torch.arange((n_qk + n_kv) * cfg.head_dim).view(-1, 2, cfg.head_dim // 2)
    return torch.cat([rows[:n_qk].transpose(1, 2).flatten(), rows[n_qk:].flatten()])


class Maps(NamedTuple):
    """Linear maps of a block as they are multiplied with: each norm's weight in the map behind it.

    qkv, qkv_bias : outputs in the order of `paired_order`.
    """

    qkv: Tensor
    qkv_bias: Tensor | None
    gate_up: Tensor


class Prefix(NamedTuple):
    """What each of R rows continues: tokens that were computed before, such as a shared prompt.

    layers: of each layer, keys and values (R, H_kv, L, D_head), keys in the order of
    `paired_order`; length (R,): real ones of the L, the first.
    """

    layers: list[tuple[Tensor, Tensor]]
    length: Tensor

    def select(self, row: Tensor) -> "Prefix":
        """Row i continues what row ``row[i]`` did; differentiable."""
        layers = [(k.index_select(0, row), v.index_select(0, row)) for k, v in self.layers]
        return Prefix(layers, self.length[row])

    @staticmethod
    def joined(parts: Sequence["Prefix"]) -> "Prefix":
        """The rows of all parts, whose tokens are padded to the same number."""
        if len(parts) == 1:
            return parts[0]
        pairs = zip(*(part.layers for part in parts), strict=True)
        layers = [
            (torch.cat([k for k, _ in each]), torch.cat([v for _, v in each])) for each in pairs
        ]
        return Prefix(layers, torch.cat([part.length for part in parts]))

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


class Layer(nn.Module):
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

        self.register_buffer("paired", paired_order(cfg), persistent=False)

    def maps(self) -> Maps:
        """The maps that multiply what a norm returns."""
        bias = cast(Tensor | None, self.qkv.bias)
        return Maps(
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
        keys in the order of `paired_order`, are appended to ``cached``. Those of ``before`` come
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
        return self.rest(x, y, maps)

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
        return self.rest(x[rows, at], y, maps)

    def keys_values(self, y: Tensor, turn: Tensor, maps: Maps) -> tuple[Tensor, Tensor]:
        """Keys and values (R, H_kv, L, D_head) of normalised positions ``y`` (R, L, D)."""
        d, n_kv = y.shape[-1], self.n_kv_heads
        bias = None if maps.qkv_bias is None else maps.qkv_bias[d:]
        kv = F.linear(y, maps.qkv[d:], bias).view(*y.shape[:2], 2 * n_kv, -1)
        return RotateHeads.apply(kv, turn[..., self.n_heads :, :], (n_kv, n_kv))

    def rest(self, x: Tensor, y: Tensor, maps: Maps) -> Tensor:
        """What follows attention, on its input ``x`` and output ``y`` (…, D)."""
        x = x + self.out(y)
        return x + self.down(SwiGlu.apply(F.linear(Normalise.apply(x, self.eps), maps.gate_up)))


def at_positions(x: Tensor, at: Tensor) -> Tensor:
    """Entries (R, T, D) of ``x`` (R, L, D) at positions ``at`` (R, T)."""
    return x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))
