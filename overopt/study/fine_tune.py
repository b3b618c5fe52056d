"""What ``overopt sft`` reads and writes: examples in, a checkpoint directory out.

Around `overopt.methods.sft`. The directory has the transformers layout and carries the tokenizer of
the model it started from, so that ``world.policy=DIR`` takes it like any other checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from overopt.base import files
from overopt.base.config import RuntimeConfig, require
from overopt.base.errors import ConfigError, DataError
from overopt.engine import launched
from overopt.methods import filtered_sft
from overopt.methods.sft import Examples, SftConfig, SftLog, fine_tune
from overopt.nets import checkpoints, compute, sources
from overopt.worlds import codecs

if TYPE_CHECKING:
    from overopt.worlds.codecs import TextCodec


def read_examples(path: Path) -> list[tuple[str, str]]:
    """Pairs of prompt and response from a JSONL file of objects with these two text fields.

    Raises
    ------
    DataError
        The file is absent, empty or not UTF-8 JSONL, or a field is missing or empty; names the line.
    """
    pairs = []
    for where, item in files.load_lines(path):
        if not isinstance(item, dict):
            raise DataError(f"{where}: {item!r}: must be an object with prompt and response")
        texts = []
        for name in ("prompt", "response"):
            text = item.get(name)
            if not isinstance(text, str) or not text:
                raise DataError(f"{where}: {name} = {text!r}: must be a text that is not empty")
            texts.append(text)
        pairs.append((texts[0], texts[1]))
    if not pairs:
        raise DataError(f"examples file {str(path)!r} is empty")
    return pairs


def encode_examples(pairs: list[tuple[str, str]], codec: TextCodec) -> Examples:
    """Token ids of examples; each response continues its prompt as it stands, and ends.

    A prompt is what the policy will be given (a chat model's as a user's turn). Where the tokenizer
    would merge the end of the prompt with the beginning of the response, the two stay apart.
    """
    fronts = [codec.dress(prompt) for prompt, _ in pairs]
    encoded = codec.continued(fronts, [response for _, response in pairs])
    return Examples([front for front, _ in encoded], [answer for _, answer in encoded])


class Filter(NamedTuple):
    """A reward model that decides which examples are learned.

    score : examples -> their scores, higher is better; percent : q, the top share that is kept, above 0
    and at most 100; of : "all" examples together, or those of each "prompt"; name : of the model.
    """

    score: Callable[[list[tuple[str, str]]], Sequence[float]]
    percent: float
    of: Literal["all", "prompt"] = "all"
    name: str = ""

    def kept(self, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """The examples that pass, in their order."""
        number = {prompt: i for i, (prompt, _) in enumerate(pairs)}
        group = [number[prompt] if self.of == "prompt" else 0 for prompt, _ in pairs]
        scores = torch.tensor(list(self.score(pairs)), dtype=torch.float64)
        rows = filtered_sft.top(scores, self.percent, torch.tensor(group))
        return [pairs[i] for i in rows.tolist()]


def run(
    source: str,
    data: Path,
    out: Path,
    *,
    cfg: SftConfig,
    runtime: RuntimeConfig,
    progress: Callable[[int, int], None],
    only: Filter | None = None,
) -> SftLog:
    """Fine-tune ``source`` on ``data`` and write the directory ``out``, whole or not at all.

    ``only``: what passes this filter is learned; None for everything.

    Raises
    ------
    ConfigError
        ``out`` exists, or the filter's percentage is out of range.
    """
    if only is not None:
        require(
            0 < only.percent <= 100,
            "--keep",
            only.percent,
            "is a percentage: must be above 0 and at most 100 (100: plain SFT)",
        )
    if out.exists():
        raise ConfigError(f"--out {str(out)!r} exists: give a new directory, or remove this one")
    pairs = everything = read_examples(data)
    if only is not None:
        pairs = only.kept(everything)
    if launched.launched():
        runtime = launched.connect(runtime)
    policy = checkpoints.load_lm(source).to(runtime.device)
    log = fine_tune(
        policy,
        encode_examples(pairs, codecs.load_codec(source)),
        cfg,
        progress=progress,
        compute=compute.compute_of(runtime, cfg.precision),
    )
    if launched.rank() == 0:
        told = {"source": source, "data": str(data), **_told(cfg, log)}
        if only is not None:
            told["filter"] = {"reward": only.name, "percent": only.percent, "of": only.of}
            told["filter"] |= {"kept": len(pairs), "examples": len(everything)}
        _save(policy.cpu(), source, out, told)
    return log


def _told(cfg: SftConfig, log: SftLog) -> dict[str, Any]:
    """Settings and losses of a training."""
    # Not a number has no JSON form: null where nothing was held out.
    losses = {k: v if v == v else None for k, v in asdict(log).items()}
    return {"config": asdict(cfg), **losses}


def _begin_with(codec: TextCodec, file: Path) -> None:
    """Let a copied tokenizer place the begin token itself, where its source had to be told."""
    if not codec.bos or codec.tokenizer("a").input_ids[:1] == list(codec.bos):
        return
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    token = codec.tokenizer.convert_ids_to_tokens(codec.bos[0])
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.post_processor = TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, codec.bos[0])]
    )
    tokenizer.save(str(file))


def _save(policy: Any, source: str, out: Path, training: dict[str, Any]) -> None:
    """Write config.json, weights, tokenizer and training.json, then rename once."""
    from overopt.nets.checkpoints import backbone_state

    with contextlib.ExitStack() as stack:
        stack.enter_context(files.os_errors(out))
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        config = sources.read_config(sources.checkpoint_dir(source))
        files.save_json(scratch / "config.json", {**config, "torch_dtype": "float32"})
        files.save_tensors(scratch / "model.safetensors", backbone_state(policy), {"format": "pt"})
        for file in sources.tokenizer_files(source):
            shutil.copyfile(file, scratch / file.name)
        _begin_with(codecs.load_codec(source), scratch / "tokenizer.json")
        files.save_json(scratch / "training.json", training)
        os.chmod(scratch, 0o755)
        scratch.rename(out)
