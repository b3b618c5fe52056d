"""overopt: a sandbox for reward-model overoptimization."""

__version__ = "0.1.0"
