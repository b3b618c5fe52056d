"""The groups of benchmarks, in the order in which they are measured.

Here and nowhere else; without torch, because the command line lists them. The rows of group
``ppo-defaults`` are those of the file ``groups/ppo_defaults.py``, see `overopt.bench.setting.Group`.
"""

GROUPS = (
    "estimators",
    "sampling",
    "scoring",
    "pairs",
    "reward",
    "ppo",
    "ppo-defaults",
    "methods",
    "peer-methods",
    "stacked",
    "mfu",
    "pool",
    "quick",
)
ON_REQUEST = ("quick",)
"""Not measured unless asked for: it runs a whole preset."""

DEFAULT_GROUPS = tuple(group for group in GROUPS if group not in ON_REQUEST)


def module_of(group: str) -> str:
    """Name of the module with the rows of ``group``."""
    return f"overopt.bench.groups.{group.replace('-', '_')}"
