"""The record schema: one row per measured point, validated when written, readable without torch.

`FIELDS` is the dictionary of every column, with unit and meaning; docs/metrics.md says the same at
length and a test holds the two together. An unavailable value is null with a ``missing_reason``,
never 0 and never NaN. Per-prompt values stand beside the rows in ``curves.npz``.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from overopt.base.errors import DataError

SCHEMA_VERSION = 1


class Field(NamedTuple):
    """Type, unit and meaning of one column; required columns are never null."""

    type: type
    unit: str
    meaning: str
    required: bool = True


FIELDS: dict[str, Field] = {
    "schema_version": Field(int, "", "version of this schema"),
    "experiment": Field(str, "", "name of the experiment"),
    "run_id": Field(str, "", "fingerprint of the artefact that holds the curve"),
    "method": Field(str, "", "bon, or the method that optimised the policy"),
    "coord": Field(str, "", "name of the coordinate: n, or the method's step"),
    "value": Field(int, "", "value of the coordinate"),
    "backbone": Field(str, "", "pretrained model under the proxy's head"),
    "n_params": Field(int, "parameters", "non-embedding parameters of the proxy, one member's"),
    "n_params_total": Field(int, "parameters", "all parameters of the proxy"),
    "n_pairs": Field(int, "pairs", "unique comparisons the proxy was trained on"),
    "label_rule": Field(str, "", "argmax or bradley_terry"),
    "label_flip_rate": Field(float, "probability", "labels inverted after the rule"),
    "label_agreement": Field(
        float, "share", "validation pairs of people that gold ranks alike", False
    ),
    "data_seed": Field(int, "", "replicate of the comparisons"),
    "rm_seed": Field(int, "", "replicate of the proxy's training"),
    "mitigation": Field(str, "", "short name of the mitigations, or none", False),
    "start_policy": Field(str, "", "policy that was optimised, none for the world's own", False),
    "policy_params": Field(int, "parameters", "non-embedding parameters of that policy", False),
    "reward_members": Field(int, "", "reward models behind the proxy score", False),
    "members_by": Field(str, "", "what sets ensemble members apart", False),
    "reward_combine": Field(str, "", "how members become one score, or a user's file", False),
    "reward_strength": Field(float, "", "lambda or beta of the combination", False),
    "length_control": Field(float, "", "lambda_L of a length-controlled proxy", False),
    "length_penalty": Field(str, "", "none, linear or hinge", False),
    "length_coef": Field(float, "sd of a member/token", "price of a token", False),
    "length_budget": Field(
        float, "mean responses of the initial policy", "free tokens of a hinge", False
    ),
    "shaping": Field(str, "", "function of the proxy score in the reward that is optimised", False),
    "shaping_scale": Field(float, "", "its bound (sd) or slope (1/sd)", False),
    "rounds": Field(int, "", "rounds of labelling, proxy training and optimisation", False),
    "round": Field(int, "", "round of this point, from 1", False),
    "method_seed": Field(int, "", "replicate of the method's optimisation", False),
    "ppo_seed": Field(int, "", "the same in records of PPO", False),
    "kl_coef": Field(float, "score/nat", "weight of the KL penalty in the reward", False),
    "proxy_lr": Field(float, "", "peak learning rate of the proxy's training", False),
    "method_lr": Field(float, "", "peak learning rate of the method's policy", False),
    "ppo_lr": Field(float, "", "the same in records of PPO", False),
    "step_kl": Field(
        float, "nats", "KL per response that each step is to move, 0 if not set", False
    ),
    "adv_scale": Field(str, "", "what PPO's advantages are divided by: batch or fixed", False),
    "search_expansions": Field(int, "", "steps that a search tries behind each beginning", False),
    "search_lookahead": Field(int, "", "further steps behind which it scores a beginning", False),
    "kl_target": Field(float, "nats", "target of an adaptive KL penalty, 0 if fixed", False),
    "proxy_accuracy": Field(float, "share", "validation pairs the proxy ranks as gold does"),
    "proxy_val_loss": Field(float, "nats", "Bradley-Terry loss on validation pairs"),
    "n_prompts": Field(int, "prompts", "prompts behind every mean of this row"),
    "n_responses": Field(int, "responses", "responses behind every mean of this row"),
    "kl_seq_nats": Field(float, "nats", "KL(pi||pi_ref) per response; the x-axis squared"),
    "kl_seq_nats_stderr": Field(float, "nats", "its standard error over prompts", False),
    "kl_estimator": Field(
        str, "", "estimator of kl_seq_nats: exact, sampled, bon_bound or search_bound"
    ),
    "sqrt_kl": Field(float, "sqrt(nats)", "square root of kl_seq_nats"),
    "kl_k1": Field(float, "nats", "mean of the k1 estimator", False),
    "kl_k1_stderr": Field(float, "nats", "its standard error over prompts", False),
    "kl_k2": Field(float, "nats", "mean of the k2 estimator (biased)", False),
    "kl_k3": Field(float, "nats", "mean of the k3 estimator", False),
    "kl_bon_ties": Field(float, "nats", "best-of-n KL that respects ties", False),
    "proxy_score": Field(float, "sd of the proxy", "mean score of the proxy"),
    "proxy_score_stderr": Field(float, "sd of the proxy", "its standard error over prompts"),
    "proxy_gain": Field(float, "sd of the proxy", "proxy score minus that at the start, paired"),
    "proxy_gain_stderr": Field(float, "sd of the proxy", "its standard error over prompts"),
    "proxy_raw": Field(float, "logit", "mean proxy score times the (mean) member unit, plus zero"),
    "proxy_recalibration": Field(float, "", "factor from raw margins to soft gold labels", False),
    "proxy_gold_slope": Field(float, "sd of gold", "gold that a unit of raw score is worth", False),
    "gold_score": Field(float, "sd of gold", "mean score of the gold model"),
    "gold_score_stderr": Field(float, "sd of gold", "its standard error over prompts"),
    "gold_gain": Field(float, "sd of gold", "gold score minus that at the start, paired"),
    "gold_gain_stderr": Field(float, "sd of gold", "its standard error over prompts"),
    "intent_score": Field(float, "sd of the intent", "score of the world's own intent", False),
    "intent_score_stderr": Field(
        float, "sd of the intent", "its standard error over prompts", False
    ),
    "rubric_score": Field(float, "sd of the rubric", "older name of intent_score", False),
    "rubric_score_stderr": Field(
        float, "sd of the rubric", "older name of intent_score_stderr", False
    ),
    "gap": Field(float, "sd", "proxy_gain minus gold_gain"),
    "win_rate": Field(float, "share", "gold beats a response of the initial policy", False),
    "win_rate_stderr": Field(float, "share", "its standard error over prompts", False),
    "proxy_gold_correlation": Field(
        float, "", "correlation of proxy and gold over this point's responses", False
    ),
    "proxy_std": Field(float, "sd of the proxy", "spread of proxy scores within prompts", False),
    "member_disagreement": Field(
        float, "sd of the proxy", "spread of an ensemble's members on a response", False
    ),
    "response_tokens": Field(float, "tokens", "mean response length, end token included"),
    "ended_share": Field(float, "share", "responses that ended before the limit"),
    "drawn_tokens": Field(float, "tokens", "drawn by a search for one response", False),
    "distinct_share": Field(float, "share", "distinct among the responses", False),
    "entropy_token_nats": Field(float, "nats", "policy entropy per token in training", False),
    "update_kl_token_nats": Field(float, "nats", "largest KL(old||new) of the last step", False),
    "clip_fraction": Field(float, "share", "largest share of clipped ratios, last step", False),
    "gold_labels": Field(int, "responses", "scored by gold to train the proxy", False),
    "rm_calls": Field(int, "responses", "scored by proxies to reach this point", False),
    "missing_reason": Field(str, "", "why nulls of this row are null", False),
}

OLDER_NAMES = {"intent_score": "rubric_score", "intent_score_stderr": "rubric_score_stderr"}
"""Column -> its name in records whose world has the rubric of stories for its intent."""

CURVE_ARRAYS = ("gold", "proxy", "rubric", "kl", "length")
"""Per-prompt arrays that stages write; ``rubric`` is the older name of ``intent``."""

NEEDED_ARRAYS = ("gold", "proxy", "kl", "length")
"""Per-prompt arrays that every curve has; ``intent`` only where its world has one."""


def is_said_otherwise(row: Mapping[str, Any], name: str) -> bool:
    """Whether the row has the column ``name`` under its older name, or the newer instead of it."""
    other = OLDER_NAMES | {old: new for new, old in OLDER_NAMES.items()}
    return row.get(other.get(name, "")) is not None


def validate_record(row: Mapping[str, Any]) -> None:
    """Raise DataError unless ``row`` has the schema's columns, types, and finite numbers."""
    where = f"record of run {row.get('run_id')} at {row.get('coord')} = {row.get('value')}"
    unknown = sorted(set(row) - set(FIELDS))
    if unknown:
        raise DataError(f"{where}: unknown column {unknown[0]!r}")
    if row.get("schema_version") != SCHEMA_VERSION:
        raise DataError(
            f"{where}: schema_version {row.get('schema_version')!r}, this package reads"
            f" {SCHEMA_VERSION}: use the version that wrote it, or run again"
        )
    for name, field in FIELDS.items():
        value = row.get(name)
        if value is None:
            if field.required:
                raise DataError(f"{where}: column {name!r} is missing")
            if name == "missing_reason" or is_said_otherwise(row, name):
                continue
            if not row.get("missing_reason"):
                raise DataError(f"{where}: column {name!r} is null without a missing_reason")
            continue
        right = isinstance(value, int | float) if field.type is float else type(value) is field.type
        if not right or isinstance(value, bool):
            raise DataError(f"{where}: column {name!r} is {value!r}, not {field.type.__name__}")
        if field.type is float and not _is_finite(value):
            raise DataError(f"{where}: column {name!r} is {value!r}, not finite")
    if row["kl_seq_nats"] < 0:
        raise DataError(f"{where}: kl_seq_nats = {row['kl_seq_nats']} is negative")


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def validate_records(rows: Sequence[Mapping[str, Any]]) -> None:
    """Validate each row, and that no (run, coordinate) occurs twice."""
    seen: set[tuple] = set()
    for row in rows:
        validate_record(row)
        key = (row["run_id"], row["coord"], row["value"])
        if key in seen:
            raise DataError(f"two records of run {key[0]} at {key[1]} = {key[2]}")
        seen.add(key)
