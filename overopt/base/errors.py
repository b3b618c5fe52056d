"""Every error the package raises on purpose.

Each class is also a standard exception, so that callers may catch either. A message names the
field, the value and the remedy. Add a class only where a caller would want to tell it apart.
"""


class OveroptError(Exception):
    """Base of all errors raised on purpose by overopt."""


class ConfigError(OveroptError, ValueError):
    """A configuration value or command-line override that cannot be used."""


class DataError(OveroptError, ValueError):
    """Input data (prompts, scores, records, tables) that cannot be used; names row and column."""


class CheckpointError(OveroptError, ValueError):
    """A model checkpoint that is absent, incomplete, or of the wrong architecture."""


class StoreError(OveroptError, RuntimeError):
    """A store that is full, read-only, made by another version, or damaged."""


class DivergenceError(OveroptError, ArithmeticError):
    """Training produced a non-finite loss; names the step and the checkpoint that was saved."""


class MemoryLimitError(OveroptError, MemoryError):
    """A single sequence does not fit the device's memory; names the remedies."""


class FitError(OveroptError, RuntimeError):
    """A fit that could not be made; carries the best estimate so far as ``best``."""

    def __init__(self, message: str, best: object = None) -> None:
        super().__init__(message)
        self.best = best

    def __reduce__(self) -> tuple:
        return (type(self), (self.args[0], self.best))
