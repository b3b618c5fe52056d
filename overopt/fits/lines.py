"""Least-squares lines over proxies whose prompts are common to all: a two-way table about a line.

The arithmetic behind `scaling`: what `crossed` does about a mean, here about a line for α and one for β.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from overopt.fits.crossed import CrossedMean, subtract_floored
from overopt.fits.forms import Array
from overopt.fits.linear import linear_operator


def through(mean: CrossedMean, rows: Array, more: Array) -> CrossedMean:
    """Linear combinations ``rows @`` estimate, with ``more`` variance of a unit of its own."""
    unit, prompt, rest = (rows @ ms @ rows.T for ms in (mean.unit_ms, mean.prompt_ms, mean.rest_ms))
    return mean._replace(
        estimate=rows @ mean.estimate,
        covar=subtract_floored(unit + prompt, rest) + more,
        unit_ms=unit + more,
        prompt_ms=prompt,
        rest_ms=rest,
        by_prompt=mean.by_prompt @ rows.T,
    )


def least_squares(
    designs: Sequence[Array], table: Array, dofs: Sequence[int], by_prompt_PJC: Array | None
) -> tuple[CrossedMean, Array]:
    """Lines through ``table``, and the mean squares and products (2, 2) of residuals.

    Parameters
    ----------
    designs
        Of α and of β, (J, coefficients) each.
    table
        (2, J) α and β of each proxy.
    dofs
        J less the coefficients of each line.
    by_prompt_PJC
        (P, J, 2) the same by prompt; None where prompts have nothing in common.
    """
    operators = [linear_operator(x) for x in designs]
    of = np.repeat([0, 1], [len(a) for a in operators])
    stacked = np.concatenate(operators)
    gram = stacked @ stacked.T
    weight = 1.0 / np.sqrt(np.outer(dofs, dofs))

    def fitted(values: Array) -> tuple[Array, Array]:
        """Coefficients (..., n) and residuals (..., 2, J) of values (..., 2, J)."""
        coef = [values[..., i, :] @ a.T for i, a in enumerate(operators)]
        rest = [values[..., i, :] - coef[i] @ x.T for i, x in enumerate(designs)]
        return np.concatenate(coef, axis=-1), np.stack(rest, axis=-2)

    theta, residual = fitted(table)
    mean_square = residual @ residual.T * weight
    unit_ms = gram * mean_square[np.ix_(of, of)]
    prompt_ms = rest_ms = np.zeros_like(gram)
    coef_P, n_prompts = theta[None], 1
    if by_prompt_PJC is not None:
        n_prompts = len(by_prompt_PJC)
        coef_P, rest_P = fitted(np.swapaxes(by_prompt_PJC, 1, 2))
        rest_P = rest_P - rest_P.mean(axis=0)
        scale = 1.0 / (n_prompts * (n_prompts - 1))
        centred = coef_P - coef_P.mean(axis=0)
        prompt_ms = scale * centred.T @ centred
        about = scale * np.einsum("paj,pbj->ab", rest_P, rest_P) * weight
        rest_ms = gram * about[np.ix_(of, of)]
    mean = CrossedMean(
        estimate=theta,
        covar=subtract_floored(unit_ms + prompt_ms, rest_ms),
        unit_ms=unit_ms,
        prompt_ms=prompt_ms,
        rest_ms=rest_ms,
        n_units=table.shape[1],
        n_prompts=n_prompts,
        unit_dof=float(min(dofs)),
        by_prompt=coef_P,
    )
    return mean, mean_square


def in_common(tables: Sequence[Array | None]) -> Array | None:
    """(P, J, 2) parameters by prompt, if all J fits have them (P, 2) for equally many prompts."""
    known = [t for t in tables if t is not None]
    if len(known) < len(tables) or len({t.shape for t in known}) > 1:
        return None
    return np.stack(known, axis=1)


def squares(
    designs: Sequence[Array],
    table: Array,
    covars: Sequence[Array],
    by_prompt_PJC: Array | None,
) -> float:
    """Squares of the residuals in units of what the fits' errors put there on average.

    That is the mean of the fits' covariances without what prompts do to all proxies alike, which
    moves the line and leaves no residual.
    """
    residual = np.stack(
        [y - x @ (linear_operator(x) @ y) for x, y in zip(designs, table, strict=True)]
    )
    errors = np.mean(covars, axis=0)
    if by_prompt_PJC is not None:
        n_prompts, n_points, _ = by_prompt_PJC.shape
        centred = by_prompt_PJC - by_prompt_PJC.mean(axis=0)
        total = centred.sum(axis=1)
        within = np.einsum("pja,pjb->ab", centred, centred)
        pairs = n_prompts * (n_prompts - 1) * n_points * (n_points - 1)
        shared = (total.T @ total - within) / pairs
        if np.linalg.eigvalsh(errors - shared)[0] > 0:
            errors = errors - shared
    return float(np.sum(residual * np.linalg.solve(errors, residual)))
