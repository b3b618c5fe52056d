"""Names of weights: from this package's layout to that of transformers and back."""

import torch
from torch import Tensor

from overopt.base.errors import CheckpointError
from overopt.nets.block import LlamaConfig
from overopt.nets.llama import Llama


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
