"""Which prompts serve what: five disjoint splits, once and for all."""

SPLITS = ("gold", "train", "validation", "rl", "eval")
_SHARES = {"gold": 1600, "train": 2400, "validation": 400, "rl": 1200, "eval": 400}


def split_bounds(n_prompts: int) -> dict[str, tuple[int, int]]:
    """First and last-plus-one prompt of each split, in the proportions of the embedded world."""
    total, start, bounds = sum(_SHARES.values()), 0, {}
    for name, share in _SHARES.items():
        stop = start + share * n_prompts // total
        bounds[name] = (start, stop)
        start = stop
    return bounds
