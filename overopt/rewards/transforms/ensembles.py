"""Combinations of ensemble members into one score: the mean and its pessimistic relatives.

All are unchanged by the order of members, add a constant to the result where it is added to every
member, and return the members' score where they agree. Spread over members is the population
variance (ddof 0), in best-of-n and PPO alike; strength 0 of a penalty is exactly the mean.
"""

from collections.abc import Mapping

from torch import Tensor

from overopt.rewards.transforms.inputs import Reward, RewardInputs, mean_score


def mean(inputs: RewardInputs, *, strength: float = 0.0) -> Tensor:
    """Mean over members, (R,). ``strength`` is not used."""
    return mean_score(inputs)


def worst_case(inputs: RewardInputs, *, strength: float = 0.0) -> Tensor:
    """Lowest score of any member, (R,): worst-case optimisation (Coste et al. 2024).

    ``strength`` is not used.
    """
    return inputs.scores.amin(0)


def median(inputs: RewardInputs, *, strength: float = 0.0) -> Tensor:
    """Median over members, (R,); the mean of the middle two where their number is even.

    ``strength`` is not used. Eisenstein et al. 2024 compare it with the mean.
    """
    ordered, n = inputs.scores.sort(0).values, len(inputs.scores)
    low, high = ordered[(n - 1) // 2], ordered[n // 2]
    return low + (high - low) / 2


def mean_minus_variance(inputs: RewardInputs, *, strength: float) -> Tensor:
    """Mean − λ·variance over members, (R,): uncertainty-weighted optimisation (Coste et al. 2024).

    ``strength`` is λ >= 0, per sd of a score; they use 0.5 for best-of-n.
    """
    return mean_score(inputs) - strength * _variance(inputs)


def mean_minus_std(inputs: RewardInputs, *, strength: float) -> Tensor:
    """Mean − λ·standard deviation over members, (R,): a lower confidence bound.

    ``strength`` is λ >= 0, without a unit (Eisenstein et al. 2024; Zhai et al. 2024).
    """
    return mean_score(inputs) - strength * _variance(inputs).sqrt()


def log_mean_exp(inputs: RewardInputs, *, strength: float) -> Tensor:
    """−β·log mean exp(−r/β) over members, (R,): a soft minimum.

    Parameters
    ----------
    strength : β > 0, in sd of a score. β → ∞ is the mean, β → 0 the worst case, and for large β
        mean − variance/(2β).

    Notes
    -----
    The certainty equivalent of an exponential utility over the members. Computed around the lowest
    member with expm1 and log1p: neither limit loses digits in float32.
    """
    lowest = inputs.scores.amin(0)
    above = (inputs.scores - lowest).sort(0).values
    return lowest - strength * (-above / strength).expm1().mean(0).log1p()


def _variance(inputs: RewardInputs) -> Tensor:
    ordered = inputs.scores.sort(0).values
    above = ordered - ordered[0]
    return ((above - above.mean(0)) ** 2).mean(0)


ENSEMBLES: Mapping[str, Reward] = {
    "mean": mean,
    "worst_case": worst_case,
    "median": median,
    "mean_minus_variance": mean_minus_variance,
    "mean_minus_std": mean_minus_std,
    "log_mean_exp": log_mean_exp,
    # Averaging happens in weight space, before anything is scored: one member is left.
    "weight_average": mean,
}
