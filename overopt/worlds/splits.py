"""Which prompts serve what: five disjoint splits, once and for all."""

SPLITS = ("gold", "train", "validation", "rl", "eval")
_SHARES = {"gold": 1600, "train": 2400, "validation": 400, "rl": 1200, "eval": 400}


def split_bounds(n_prompts: int, *, more_train: int = 0) -> dict[str, tuple[int, int]]:
    """First and last-plus-one prompt of each split of ``n_prompts + more_train``.

    ``n_prompts`` are divided in fixed proportions, ``more_train`` all go to the train split.
    """
    total, start, bounds = sum(_SHARES.values()), 0, {}
    for name, share in _SHARES.items():
        stop = start + share * n_prompts // total + (more_train if name == "train" else 0)
        bounds[name] = (start, stop)
        start = stop
    return bounds
