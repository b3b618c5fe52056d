"""Tokenizers without a model: the ladder's, and whether a checkpoint shares one."""

from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from overopt.base.errors import CheckpointError
from overopt.nets.sources import auto_tokenizer, ladder_dir, read_config, source_dir, tokenizer_dir


def load_tokenizer() -> Tokenizer:
    """The ladder's tokenizer. It places no special tokens: callers put <s> in front."""
    return read_tokenizer(ladder_dir() / "tokenizer")


@lru_cache(maxsize=4)
def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder of shipped models."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def shares_vocabulary(source: str, tokenizer: Tokenizer) -> bool:
    """Whether token ids mean the same pieces to ``source`` as to ``tokenizer``.

    A checkpoint without tokenizer files is taken to be one trained on the ladder's.

    Raises
    ------
    CheckpointError
        Such a checkpoint has not the ladder's number of pieces.
    """
    folder = tokenizer_dir(source)
    if source.startswith("ladder:") or folder is None:
        ladder = load_tokenizer() if folder is None else read_tokenizer(folder)
        size = read_config(source_dir(source)).get("vocab_size")
        if size != ladder.get_vocab_size():
            raise CheckpointError(
                f"checkpoint {source!r} has vocab_size {size} and no tokenizer, the ladder's tokenizer"
                f" has {ladder.get_vocab_size()} pieces: put its own tokenizer.json beside it"
            )
        return ladder.get_vocab() == tokenizer.get_vocab()
    return auto_tokenizer(source, folder).get_vocab() == tokenizer.get_vocab()
