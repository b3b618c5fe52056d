"""Functional forms of gold and proxy against √KL: fits, intervals, comparison and forecasts.

Pure functions of numpy arrays. With per-prompt values start at `fit_replicates`; with points and
standard errors only, at `fit_curve`.
"""

from overopt.fits.bootstrap import BootstrapFit, CurveDraws, bootstrap_curve, bootstrap_fit
from overopt.fits.compare import (
    ExtrapolationScore,
    FormScore,
    compare_forms,
    extrapolate,
    fit_baseline,
)
from overopt.fits.fit import FitResult, fit_curve, jsonable
from overopt.fits.forms import (
    BASELINES,
    FORMS,
    GOLD_FORMS,
    PEAKED_FORMS,
    PROXY_FORMS,
    Form,
    Peak,
    bon,
    get_form,
    peak,
    rl,
)
from overopt.fits.peaks import Interval, PeakEstimate
from overopt.fits.profile import profile_ci
from overopt.fits.replicates import (
    MeanCurve,
    PairedDifference,
    ReplicateCurve,
    fit_replicates,
    holm,
    mean_curve,
    paired_difference,
)
from overopt.fits.scaling import (
    Forecast,
    ForecastScore,
    ScalingFit,
    ScalingPoint,
    fit_scaling,
    forecast,
    score_forecast,
)
from overopt.fits.shared_alpha import CurvePoints, SharedAlphaFit, fit_shared_alpha

__all__ = [
    "BASELINES",
    "FORMS",
    "GOLD_FORMS",
    "PEAKED_FORMS",
    "PROXY_FORMS",
    "BootstrapFit",
    "CurveDraws",
    "CurvePoints",
    "ExtrapolationScore",
    "FitResult",
    "Forecast",
    "ForecastScore",
    "Form",
    "FormScore",
    "Interval",
    "MeanCurve",
    "PairedDifference",
    "Peak",
    "PeakEstimate",
    "ReplicateCurve",
    "ScalingFit",
    "ScalingPoint",
    "SharedAlphaFit",
    "bon",
    "bootstrap_curve",
    "bootstrap_fit",
    "compare_forms",
    "extrapolate",
    "fit_baseline",
    "fit_curve",
    "fit_replicates",
    "fit_scaling",
    "fit_shared_alpha",
    "forecast",
    "get_form",
    "holm",
    "jsonable",
    "mean_curve",
    "paired_difference",
    "peak",
    "profile_ci",
    "rl",
    "score_forecast",
]
