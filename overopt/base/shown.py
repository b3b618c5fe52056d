"""How a method shows itself: what figures, fits and tables need to know, said in the method's file.

A method's file defines ``SHOWN``; whoever collects records writes it beside them (``shown.json``),
and whoever reads records finds it there. So the reading wing knows no method by name.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Shown(NamedTuple):
    """The description of one method.

    label : what a reader calls it ("PPO").
    coord : name of the coordinate in records ("n", or the method's step).
    axis : the coordinate in words, for axes and tables ("PPO step").
    form : functional form of gold against √KL that describes it, see `overopt.fits.forms`.
    marker : matplotlib marker of its points.
    treatments : record columns that set runs of this method apart -> what a legend calls them.
    moves_policy : whether its points are steps of one policy, which may stop at any of them.
    """

    label: str
    coord: str
    axis: str
    form: str = "rl"
    marker: str = "^"
    treatments: dict[str, str] = {}
    moves_policy: bool = True

    @classmethod
    def unknown(cls, method: str) -> "Shown":
        """Of a method whose description is not at hand, as in records older than this."""
        name = method.upper()
        return cls(label=name, coord=f"{method}_step", axis=f"{name} step", marker="s")


def from_json(data: dict[str, Any]) -> Shown:
    """What ``Shown._asdict`` gave."""
    return Shown(**data)


BEST_OF_N = Shown(
    label="best-of-n", coord="n", axis="n", form="bon", marker="o", moves_policy=False
)
"""Best-of-n has no file among the methods: it moves no policy, and is estimated from a pool."""


def shown_of(method: str, descriptions: Mapping[str, Shown]) -> Shown:
    """The description of ``method`` (as records call it) among ``descriptions``, or the best guess."""
    if method in descriptions:
        return descriptions[method]
    return BEST_OF_N if method == "bon" else Shown.unknown(method)
