"""Whether a checkpoint can be what it is meant for: told from its files, before anything is loaded.

Headers, configurations and tokenizer files are read, and samples of the weights; torch is not needed.
What cannot be told without loading is still checked when it is loaded (`overopt.nets.checkpoints`).
"""

import importlib.util
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from overopt.base.errors import CheckpointError
from overopt.nets import adapters, sources
from overopt.nets.headers import FLOATS, Weight, not_finite, read_headers

Role = Literal["policy", "trunk", "classifier"]
"""What a checkpoint is to be: a language model; what a head is put on; a model with a trained score."""

VALUE_HEADS = ("score", "v_head.summary", "v_head", "value_head", "reward_head", "regression_head")
"""Where reward models that are language models with a head keep its weights (TRL, OpenRLHF, others)."""
SCORE_HEADS = ("score", "classifier", "classification_head", "logits_proj", "sequence_summary")
"""Where transformers' sequence classifiers keep the weights of their labels, by architecture."""
_EMBEDDINGS = (
    *("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight"),
    *("tok_embeddings.weight", "shared.weight"),
)
_POSITIONS = ("wpe.weight", "embed_positions.weight", "position_embeddings.weight")
# Architectures that have an output matrix unless their config.json says otherwise.
_UNTIED = ("llama", "qwen2", "mistral", "gpt_neox")


def examine(field: str, source: str, role: Role) -> None:
    """Raise CheckpointError where ``source``, the value of setting ``field``, cannot be a ``role``."""
    try:
        _examine(source, role)
    except CheckpointError as e:
        raise CheckpointError(f"{field} = {source!r}: {e}") from e


@lru_cache(maxsize=256)
def _examine(source: str, role: Role) -> None:
    if source.startswith(("ladder:", "wheel:")):
        sources.source_dir(source)  # ours, and pinned by its checksum
        return
    path = sources.source_dir(source)
    spec = sources.read_config(path)
    nested = spec.get("text_config")
    text = nested if isinstance(nested, dict) else spec
    weights = read_headers(sources.weight_files(path))
    if adapters.is_adapter(path):
        weights = adapters.merged_headers(path, weights)
    _check_code(spec)
    _check_architecture(spec, role, value_head(weights))
    _check_types(spec, weights)
    rows = _embedding_rows(spec, text, weights)
    if role == "policy":
        _check_output(text, weights, rows)
    if role == "classifier":
        _check_score(spec, weights)
    _check_tokenizer(source, spec, rows)
    bad = next((name for name, weight in weights.items() if not_finite(weight)), None)
    if bad is not None:
        raise CheckpointError(
            f"weights {bad} are not finite: training diverged or the file is damaged; use another"
            " checkpoint"
        )


@lru_cache(maxsize=16)
def policy_params(source: str) -> int:
    """Parameters of a language model without its embedding and output tables, from its headers."""
    path = sources.checkpoint_dir(source)
    weights = read_headers(sources.weight_files(path))
    if adapters.is_adapter(path):
        weights = adapters.merged_headers(path, weights)
    table = next((w for name, w in weights.items() if name.endswith(_EMBEDDINGS)), None)
    rows = table.shape[0] if table else None
    counted = [
        weight.shape
        for name, weight in weights.items()
        if not name.endswith(_POSITIONS)
        and not (len(weight.shape) == 2 and weight.shape[0] == rows)
    ]
    return sum(map(math.prod, counted))


def _check_code(spec: Mapping[str, Any]) -> None:
    """Code that a checkpoint brings along never runs: its architecture must be one of transformers."""
    name = str(spec.get("model_type", "")).replace("-", "_").replace(".", "_")
    is_known = name.isidentifier() and importlib.util.find_spec(f"transformers.models.{name}")
    if "auto_map" in spec and not is_known:
        raise CheckpointError(
            f"model_type = {spec.get('model_type')!r} is code that comes with the checkpoint (auto_map"
            " in config.json), and such code is never run here: use a checkpoint of an architecture"
            " that transformers has itself"
        )


class Head(NamedTuple):
    """A linear head on the last hidden state: name in front of ``.weight``, number of labels."""

    name: str
    labels: int


def value_head(weights: Mapping[str, Weight]) -> Head | None:
    """The head of a reward model that is a language model beneath; None where there is none."""
    for name in VALUE_HEADS:
        weight = weights.get(f"{name}.weight")
        if weight is not None and len(weight.shape) == 2:
            return Head(name, weight.shape[0])
    return None


def read_value_head(path: Path) -> Head | None:
    """`value_head` of a checkpoint's folder."""
    weights = read_headers(sources.weight_files(path))
    return value_head(
        adapters.merged_headers(path, weights) if adapters.is_adapter(path) else weights
    )


def is_classifier(spec: Mapping[str, Any]) -> bool:
    """Whether config.json names a classifier of transformers."""
    kinds = spec.get("architectures") or []
    return any(str(kind).endswith("Classification") for kind in kinds)


def _check_architecture(spec: Mapping[str, Any], role: Role, head: Head | None) -> None:
    kinds = spec.get("architectures") or []
    if role == "policy" and is_classifier(spec):
        raise CheckpointError(
            f"is a {kinds[0]}, which writes nothing: a policy is a causal language model; a classifier"
            " can be gold (gold.kind=pretrained)"
        )
    if role == "classifier" and kinds and not is_classifier(spec) and head is None:
        raise CheckpointError(
            f"is a {kinds[0]}: kind=pretrained needs a sequence classifier; kind=learned and"
            " kind=bradley_terry put a score on a language model"
        )


def _check_types(spec: Mapping[str, Any], weights: Mapping[str, Weight]) -> None:
    method = spec.get("quantization_config")
    if method is not None:
        name = method.get("quant_method", "unknown") if isinstance(method, dict) else method
        raise CheckpointError(
            f"its weights are quantized (quantization_config: {name}), which is not read here: use the"
            " original, or save it dequantized"
        )
    for name, weight in weights.items():
        if name.endswith(".weight") and weight.dtype not in (*FLOATS, "BF16"):
            raise CheckpointError(
                f"weights {name} are stored as {weight.dtype}: only F16, BF16, F32 and F64 are read;"
                " use the original, or save it dequantized"
            )


def _embedding_rows(
    spec: Mapping[str, Any], text: Mapping[str, Any], weights: Mapping[str, Weight]
) -> int | None:
    """Rows of the input embedding; None where it goes by a name that is not known here."""
    name = next((n for n in weights if n.endswith(_EMBEDDINGS)), None)
    if name is None:
        return None
    rows, size = weights[name].shape[0], text.get("vocab_size", spec.get("vocab_size"))
    if size is not None and rows != size:
        raise CheckpointError(
            f"vocab_size in config.json is {size}, but {name} has {rows} rows: they do not belong"
            " together"
        )
    return rows


def _check_output(text: Mapping[str, Any], weights: Mapping[str, Weight], rows: int | None) -> None:
    is_tied = text.get("tie_word_embeddings", text.get("model_type") not in _UNTIED)
    tables = [w for w in weights.values() if len(w.shape) == 2 and w.shape[0] == rows]
    if rows is not None and not is_tied and len(tables) < 2:
        raise CheckpointError(
            "has no output matrix, and tie_word_embeddings in config.json is false: it is no complete"
            " language model"
        )


def _check_score(spec: Mapping[str, Any], weights: Mapping[str, Weight]) -> None:
    if not is_classifier(spec) and value_head(weights) is not None:
        return
    labels = n_labels(spec)
    heads = [n for n in weights if n.split(".")[0] in SCORE_HEADS and n.endswith("weight")]
    if not heads:
        found = ", ".join(sorted({n.split(".")[0] for n in weights})[:6])
        raise CheckpointError(
            f"score.weight is missing (its weights: {found}): nothing was trained to score; use a"
            " checkpoint that was saved with its head"
        )
    shapes = {weights[name].shape for name in heads if len(weights[name].shape) == 2}
    if shapes and not any(shape[0] == labels for shape in shapes):
        raise CheckpointError(
            f"config.json has {labels} labels, but {heads[-1]} has shape"
            f" {list(weights[heads[-1]].shape)}: correct id2label in config.json"
        )


def n_labels(spec: Mapping[str, Any]) -> int:
    """Labels of a classifier by its config.json, which leaves out transformers' default of two."""
    return len(spec["id2label"]) if "id2label" in spec else int(spec.get("num_labels", 2))


def _check_tokenizer(source: str, spec: Mapping[str, Any], rows: int | None) -> None:
    folder = sources.tokenizer_dir(source)
    size = rows if rows is not None else spec.get("vocab_size")
    pad = spec.get("pad_token_id")
    if size is not None and pad is not None and not -size <= pad < size:
        raise CheckpointError(
            f"pad_token_id = {pad} in config.json: the embedding has {size} rows; set it to an id"
            " below, or remove it"
        )
    tokenizer = quick_tokenizer(folder) if folder is not None else None
    if tokenizer is not None and size is not None and len(tokenizer) > size:
        raise CheckpointError(
            f"its tokenizer has {len(tokenizer)} pieces, its embedding only {size}: they do not belong"
            f" together (piece {tokenizer.convert_ids_to_tokens(size)!r} has no row)"
        )


@lru_cache(maxsize=16)
def quick_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder by its tokenizer.json, without torch; None if it has none.

    transformers' class for an architecture may add pieces of its own (`sources.auto_tokenizer`).
    """
    if not (folder / "tokenizer.json").is_file():
        return None
    from transformers import PreTrainedTokenizerFast

    try:
        with sources.quiet_transformers():
            return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as e:  # the tokenizers library raises no narrower class
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
        raise CheckpointError(
            f"its tokenizer.json cannot be read ({reason}): fetch it again"
        ) from e


def render(field: str, source: str, turns: list[dict[str, str]], *, answer: bool) -> str | None:
    """A dialogue in the chat template of ``source``; None where it has none.

    Parameters
    ----------
    field : the setting that names ``source``.
    turns : messages with ``role`` and ``content``.
    answer : whether the beginning of the assistant's turn is put behind.

    Raises
    ------
    CheckpointError
        The template raises, or gives nothing of what was said.
    """
    folder = sources.tokenizer_dir(source)
    tokenizer = quick_tokenizer(folder) if folder is not None else None
    if tokenizer is None or not tokenizer.chat_template:
        return None
    roles = ", ".join(turn["role"] for turn in turns)
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer)
    except Exception as e:  # a template may raise whatever its author thought of
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
        raise CheckpointError(
            f"{field} = {source!r}: its chat template does not take the turns {roles} ({reason}):"
            " change the template (chat_template.jinja, or chat_template in tokenizer_config.json)"
        ) from e
    said = turns[-1]["content"].split()
    if said and said[0] not in text:
        raise CheckpointError(
            f"{field} = {source!r}: its chat template leaves out what the {turns[-1]['role']} says"
            f" ({text[:60]!r}): change the template"
        )
    return str(text)
