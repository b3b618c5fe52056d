"""Networks: a compact Llama, and a reward model that puts a scalar head on any backbone.

Every model of the ladder is a Llama in the transformers checkpoint layout; `Llama` computes the
same function as ``transformers.LlamaForCausalLM`` (tested with copied weights) but with fused
projections, a preallocated key-value cache and no per-call bookkeeping, because sampling from small
models is dominated by overhead.

What differs on purpose: inputs are right-padded and need no mask (causality hides what comes
later), except in the sampler, which passes the number of left-pad slots of each row. Dropout does
not exist. Reward heads start at N(0, 1/(D+1)) as in Stiennon et al. 2020; value heads start at 0.
"""

import math
from dataclasses import asdict, dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Shape of a Llama; field names as in transformers' ``config.json``."""

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

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def to_transformers(self) -> dict:
        """The content of a transformers ``config.json`` for this shape (tied embeddings)."""
        shape = asdict(self)
        theta = shape.pop("rope_theta")
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **shape,
            "num_key_value_heads": self.num_attention_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
        }


class KVCache(NamedTuple):
    """Preallocated keys and values, one pair per layer, each (R, H, S, D_head)."""

    keys: list[Tensor]
    values: list[Tensor]


def _rope_tables(cfg: LlamaConfig) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angles, each (S, D_head), halves repeated (NeoX order)."""
    half = torch.arange(0, cfg.head_dim, 2, dtype=torch.float32) / cfg.head_dim
    angles = torch.outer(torch.arange(cfg.max_position_embeddings).float(), cfg.rope_theta**-half)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary position embedding to the last axis of ``x``."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


class _Layer(nn.Module):
    """One pre-norm transformer block with fused qkv and gate-up projections."""

    def __init__(self, cfg: LlamaConfig) -> None:
        super().__init__()
        d, h = cfg.hidden_size, cfg.intermediate_size
        self.n_heads, self.eps = cfg.num_attention_heads, cfg.rms_norm_eps
        self.norm1, self.norm2 = nn.Parameter(torch.ones(d)), nn.Parameter(torch.ones(d))
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.out = nn.Linear(d, d, bias=False)
        self.gate_up = nn.Linear(d, 2 * h, bias=False)
        self.down = nn.Linear(h, d, bias=False)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        cache: tuple[Tensor, Tensor] | None,
        slot: int,
        mask: Tensor | None,
    ) -> Tensor:
        """One block on (R, L, D); with a cache, keys and values go to slots ``slot:slot+L``."""
        n_rows, length, d = x.shape
        y = F.rms_norm(x, (d,), self.norm1, self.eps)
        qkv = self.qkv(y).view(n_rows, length, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        qk = _rotate(qkv[:2], *rope)
        q, k, v = qk[0], qk[1], qkv[2]
        if cache is not None:
            keys, values = cache
            keys[:, :, slot : slot + length] = k
            values[:, :, slot : slot + length] = v
            k, v = keys[:, :, : slot + length], values[:, :, : slot + length]
        # A single new token sees every cached one; is_causal would align it with the first.
        causal = mask is None and length > 1
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        x = x + self.out(y.transpose(1, 2).reshape(n_rows, length, d))
        gate, up = self.gate_up(F.rms_norm(x, (d,), self.norm2, self.eps)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)

    def step(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        keys: Tensor,
        values: Tensor,
        slot: int,
        bias: Tensor,
    ) -> Tensor:
        """One block on one new token a row, (R, D); see `Llama.step`."""
        n_rows, d = x.shape
        y = F.rms_norm(x, (d,), self.norm1, self.eps)
        qkv = self.qkv(y).view(n_rows, 3, self.n_heads, -1)
        qk = _rotate(qkv[:, :2], *rope)
        keys[:, :, slot], values[:, :, slot] = qk[:, 1], qkv[:, 2]
        # All slots are multiplied and those ahead hidden by the bias: products with a slice of the
        # cache, which is not contiguous, take longer.
        q = qk[:, 0].reshape(n_rows * self.n_heads, 1, -1)
        scale = q.shape[-1] ** -0.5
        scores = torch.baddbmm(bias, q, keys.flatten(0, 1).transpose(1, 2), alpha=scale)
        y = torch.bmm(scores.softmax(-1), values.flatten(0, 1))
        x = torch.addmm(x, y.view(n_rows, d), self.out.weight.T)
        gate, up = self.gate_up(F.rms_norm(x, (d,), self.norm2, self.eps)).chunk(2, dim=-1)
        return torch.addmm(x, F.silu(gate).mul_(up), self.down.weight.T)


class Llama(nn.Module):
    """Llama trunk with tied input and output embeddings.

    Call it for hidden states; `logits` maps hidden states to the vocabulary.
    """

    def __init__(self, cfg: LlamaConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Embedding(cfg.vocab_size, cfg.hidden_size)
        self.layers = nn.ModuleList(_Layer(cfg) for _ in range(cfg.num_hidden_layers))
        self.norm = nn.Parameter(torch.ones(cfg.hidden_size))
        cos, sin = _rope_tables(cfg)
        self.rope_cos: Tensor
        self.rope_sin: Tensor
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)

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

    def forward(self, input_ids: Tensor) -> Tensor:
        """Final hidden states (R, L, D) of right-padded token ids (R, L)."""
        length = input_ids.shape[1]
        if length > self.cfg.max_position_embeddings:
            raise ValueError(
                f"input_ids has {length} tokens a row; the model's context is "
                f"{self.cfg.max_position_embeddings}: use shorter prompts or responses"
            )
        rope = (self.rope_cos[:length], self.rope_sin[:length])
        x = self.embed(input_ids)
        for layer in self.blocks:
            x = layer(x, rope, None, 0, None)
        return F.rms_norm(x, (x.shape[-1],), self.norm, self.cfg.rms_norm_eps)

    def new_cache(self, n_rows: int, n_slots: int) -> KVCache:
        """An empty cache for ``n_rows`` sequences of at most ``n_slots`` tokens."""
        cfg, w = self.cfg, self.embed.weight
        shape = (n_rows, cfg.num_attention_heads, n_slots, cfg.head_dim)
        make = [w.new_zeros(shape) for _ in range(2 * cfg.num_hidden_layers)]
        return KVCache(make[::2], make[1::2])

    def extend(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        cache: KVCache,
        slot: int,
        mask: Tensor | None,
    ) -> Tensor:
        """Hidden states of new tokens given cached ones.

        ``input_ids`` and ``position_ids`` (R, L) are written to cache slots ``slot:slot+L``;
        ``mask`` (R, 1, L, slot+L) is additive and hides left padding. None means that no row is
        padded; then L must be 1, or ``slot`` 0 (a fresh causal block).
        """
        if mask is None and slot > 0 and input_ids.shape[1] > 1:
            raise ValueError("several new tokens behind cached ones need an explicit mask")
        rope = (self.rope_cos[position_ids][:, None], self.rope_sin[position_ids][:, None])
        x = self.embed(input_ids)
        for i, layer in enumerate(self.blocks):
            x = layer(x, rope, (cache.keys[i], cache.values[i]), slot, mask)
        return F.rms_norm(x, (x.shape[-1],), self.norm, self.cfg.rms_norm_eps)

    @torch.no_grad()
    def step(
        self, input_ids: Tensor, position_ids: Tensor, cache: KVCache, slot: int, bias: Tensor
    ) -> Tensor:
        """Hidden states (R, D) of one new token a row, (R,), given cached ones.

        The token goes to cache slot ``slot``. ``bias`` (1 or R·H, 1, S) is added to the attention
        scores: −inf at every slot that is padding or not filled yet. A slot's content must be
        finite even there.
        """
        cos, sin = (t[position_ids][:, None, None] for t in (self.rope_cos, self.rope_sin))
        x = self.embed(input_ids)
        for i, layer in enumerate(self.blocks):
            x = layer.step(x, (cos, sin), cache.keys[i], cache.values[i], slot, bias)
        return F.rms_norm(x, (x.shape[-1],), self.norm, self.cfg.rms_norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """Unnormalised log-probabilities (…, V) of the next token."""
        return hidden @ self.embed.weight.T


def to_transformers_state(model: Llama) -> dict[str, Tensor]:
    """State dict under transformers' names (projections split again)."""
    state = {"model.embed_tokens.weight": model.embed.weight, "model.norm.weight": model.norm}
    for i, layer in enumerate(model.blocks):
        p = f"model.layers.{i}."
        q, k, v = layer.qkv.weight.chunk(3)
        gate, up = layer.gate_up.weight.chunk(2)
        state |= {
            p + "self_attn.q_proj.weight": q,
            p + "self_attn.k_proj.weight": k,
            p + "self_attn.v_proj.weight": v,
            p + "self_attn.o_proj.weight": layer.out.weight,
            p + "mlp.gate_proj.weight": gate,
            p + "mlp.up_proj.weight": up,
            p + "mlp.down_proj.weight": layer.down.weight,
            p + "input_layernorm.weight": layer.norm1,
            p + "post_attention_layernorm.weight": layer.norm2,
        }
    return {name: t.detach().clone().contiguous() for name, t in state.items()}


def from_transformers_state(state: dict[str, Tensor], cfg: LlamaConfig) -> Llama:
    """A `Llama` with the weights of a transformers state dict; the first layers if it has more."""
    model = Llama(cfg)
    new = {"embed.weight": state["model.embed_tokens.weight"], "norm": state["model.norm.weight"]}
    for i in range(cfg.num_hidden_layers):
        p, q = f"model.layers.{i}.", f"layers.{i}."
        new |= {
            q + "qkv.weight": torch.cat([state[p + f"self_attn.{n}_proj.weight"] for n in "qkv"]),
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
    """A backbone with one scalar per position: a reward model or a value function."""

    def __init__(self, backbone: Llama) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.cfg.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @torch.no_grad()
    def init_head(self, generator: torch.Generator) -> None:
        """Draw the head from N(0, 1/(D+1)), the reward head of Stiennon et al. 2020."""
        d = self.head.in_features
        self.head.weight.normal_(0.0, (d + 1) ** -0.5, generator=generator)

    def at_last_token(self, ids: Tensor, length: Tensor) -> Tensor:
        """Scalar (R,) at the last real token of right-padded ids (R, S)."""
        hidden = self.backbone(ids)
        last = (length - 1)[:, None, None].expand(-1, 1, hidden.shape[-1])
        return self.head(hidden.gather(1, last)[:, 0])[:, 0]
