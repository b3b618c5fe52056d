"""Loading models and the tokenizer: the one place that turns a source into weights.

A source is ``ladder:NAME`` (shipped with the package) or the path of a directory in the
transformers layout with a Llama inside. Nothing here touches the network.
"""

import json
import lzma
from functools import lru_cache
from importlib import resources
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from overopt.errors import CheckpointError, DataError
from overopt.nets import Llama, LlamaConfig, ScalarHeadModel, from_transformers_state

_SHAPE_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
_FIXED_FIELDS = {
    "rms_norm_eps": 1e-5,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
}


def ladder_dir() -> Path:
    """Directory of the shipped models."""
    return Path(str(resources.files("overopt") / "ladder"))


def checkpoint_dir(source: str) -> Path:
    """The directory behind ``source``, checked to hold a Llama checkpoint.

    Raises
    ------
    CheckpointError
        It does not exist, lacks a file, or is of another architecture.
    """
    shipped = sorted(p.parent.name for p in ladder_dir().glob("*/config.json"))
    if source.startswith("ladder:"):
        path = ladder_dir() / source.removeprefix("ladder:")
        if not path.is_dir():
            raise CheckpointError(f"checkpoint {source!r} is not shipped: use one of {shipped}")
    else:
        path = Path(source)
        if not path.is_dir():
            raise CheckpointError(
                f"checkpoint {source!r} does not exist: give the path of a directory with config.json"
                f" and model.safetensors, or ladder:NAME with one of {shipped}"
            )
    for name in ("config.json", "model.safetensors"):
        if not (path / name).is_file():
            raise CheckpointError(f"checkpoint {source!r} has no {name}")
    kind = _read_config(path).get("model_type")
    if kind != "llama":
        raise CheckpointError(
            f"checkpoint {source!r} has model_type {kind!r}: only 'llama' can be loaded here"
        )
    return path


def _read_config(path: Path) -> dict:
    try:
        return json.loads((path / "config.json").read_text(encoding="utf-8"))
    except ValueError as e:
        raise CheckpointError(f"{path / 'config.json'} is not valid JSON: {e}") from e


def _read(source: str) -> tuple[LlamaConfig, dict[str, Tensor], dict]:
    path = checkpoint_dir(source)
    spec = _read_config(path)
    missing = [name for name in _SHAPE_FIELDS if name not in spec]
    if missing:
        raise CheckpointError(f"{path / 'config.json'} lacks {missing[0]!r}")
    if spec.get("num_key_value_heads", spec["num_attention_heads"]) != spec["num_attention_heads"]:
        raise CheckpointError(f"checkpoint {source!r} uses grouped key-value heads: not supported")
    for name, value in _FIXED_FIELDS.items():
        if spec.get(name, value) != value:
            raise CheckpointError(
                f"checkpoint {source!r} has {name} = {spec[name]!r}: this Llama computes {value!r} only"
            )
    rope = spec.get("rope_parameters") or {}
    if (
        spec.get("rope_theta", rope.get("rope_theta", 1e4)) != 1e4
        or rope.get("rope_type", "default") != "default"
    ):
        raise CheckpointError(f"checkpoint {source!r} has other rotary settings: {rope or spec}")
    if spec["vocab_size"] != load_tokenizer().get_vocab_size():
        raise CheckpointError(
            f"checkpoint {source!r} has vocab_size {spec['vocab_size']}, the ladder's tokenizer has"
            f" {load_tokenizer().get_vocab_size()} pieces: train it on the ladder's tokenizer"
        )
    try:
        state = load_file(path / "model.safetensors")
    except (SafetensorError, OSError) as e:
        raise CheckpointError(f"{path / 'model.safetensors'} cannot be read: {e}") from e
    return LlamaConfig(**{name: spec[name] for name in _SHAPE_FIELDS}), state, spec


def load_lm(source: str) -> Llama:
    """The causal language model of ``source``, float32, in evaluation mode."""
    cfg, state, _ = _read(source)
    try:
        return from_transformers_state(state, cfg).eval()
    except (KeyError, RuntimeError) as e:
        raise CheckpointError(f"checkpoint {source!r} does not match its config.json: {e}") from e


def load_reward_model(source: str) -> tuple[ScalarHeadModel, float, float]:
    """A frozen reward model: the network, and mean and std of its raw score.

    The checkpoint is a Llama with ``score.weight`` (1, D) and ``score.bias`` (1,) beside it; the
    statistics, taken under the initial policy, stand in config.json as ``overopt_score``.
    """
    cfg, state, spec = _read(source)
    if "score.weight" not in state or "overopt_score" not in spec:
        raise CheckpointError(
            f"checkpoint {source!r} is no reward model: score.weight or overopt_score is missing"
        )
    model = ScalarHeadModel(from_transformers_state(state, cfg))
    model.head.load_state_dict(
        {"weight": state["score.weight"].float(), "bias": state["score.bias"].float()}
    )
    return model.eval(), float(spec["overopt_score"]["mean"]), float(spec["overopt_score"]["std"])


@lru_cache(maxsize=1)
def load_tokenizer() -> Tokenizer:
    """The ladder's tokenizer. It places no special tokens: callers put <s> in front."""
    return Tokenizer.from_file(str(ladder_dir() / "tokenizer" / "tokenizer.json"))


def load_openings() -> list[str]:
    """The shipped prompts, in their fixed random order."""
    with lzma.open(ladder_dir() / "openings.json.xz", "rt", encoding="utf-8") as f:
        return json.load(f)


def read_prompts_file(path: str) -> list[str]:
    """Prompts of a JSONL file: strings, or objects with a text field "prompt".

    Raises
    ------
    DataError
        The file is absent, empty, not UTF-8, or has an empty, repeated or malformed line; the
        message names the line.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as e:
        raise DataError(f"prompts file {path!r} cannot be read: {e.strerror}") from e
    prompts: dict[str, int] = {}
    for number, line in enumerate(raw.splitlines(), start=1):
        where = f"prompts file {path!r}, line {number}"
        try:
            item = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as e:
            raise DataError(f"{where}: byte {e.start} is not valid UTF-8: save it as UTF-8") from e
        except ValueError as e:
            raise DataError(f"{where}: not valid JSON ({e}): one JSON string a line") from e
        text = item.get("prompt") if isinstance(item, dict) else item
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: no text: give a JSON string or an object with 'prompt'")
        if text in prompts:
            raise DataError(f"{where}: repeats line {prompts[text]}: splits must be disjoint")
        prompts[text] = number
    if not prompts:
        raise DataError(f"prompts file {path!r} is empty")
    return list(prompts)
