"""Curves with a known truth: gold d(α − βd) with effects of seeds and prompts, and measured KL."""

import numpy as np

from overopt.records.curves import Curve
from overopt.records.schema import FIELDS, SCHEMA_VERSION

N_POINTS = 19
SEED_SD, PROMPT_SD, REST_SD, POINT_SD = 0.06, 0.25, 0.2, 0.4


def simulate(
    arms,
    *,
    rng,
    method="ppo",
    n_seeds=5,
    n_prompts=64,
    reach=6.0,
    seed_sd=SEED_SD,
    kl_sd=0.4,
    full=False,
):
    """Curves (one a seed) of each arm: name -> (alpha, beta) or (alpha, beta, reach).

    A prompt's slope at 0 has a part common to all arms and seeds, and one of its own in each run; a
    seed's has a part common to all arms and one of its own in each. Points carry independent noise.
    """
    common_P = rng.normal(0, PROMPT_SD, n_prompts)
    common_S = rng.normal(0, seed_sd, n_seeds)
    out = {}
    for name, (alpha, beta, *rest) in arms.items():
        curves = []
        arm_P = rng.normal(0, PROMPT_SD / 2, n_prompts)
        for s in range(n_seeds):
            slope_P = alpha + common_P + arm_P + common_S[s]
            slope_P = slope_P + rng.normal(0, seed_sd) + rng.normal(0, REST_SD, n_prompts)
            d = (rest or [reach])[0] * np.linspace(0, 1, N_POINTS) ** 0.7
            gold = d[:, None] * (slope_P - beta * d[:, None])
            noise = rng.normal(0, POINT_SD, gold.shape) * (d > 0)[:, None]
            kl = np.square(d)[:, None] * np.exp(rng.normal(-(kl_sd**2) / 2, kl_sd, n_prompts))
            if method == "bon":
                kl = np.repeat(np.square(d)[:, None], n_prompts, axis=1)
            proxy = np.repeat((0.9 * d)[:, None], n_prompts, axis=1)
            arrays = {
                "gold": gold + noise,
                "proxy": proxy,
                "intent": 0.5 * gold + noise,
                "kl": kl,
                "length": np.full_like(gold, 30.0),
            }
            curves.append(Curve(rows(arrays, name, method, s, full=full), arrays))
        out[name] = curves
    return out


def rows(arrays, name, method, seed, *, full=False):
    """Rows of the schema; unless ``full``, only what an analysis looks at."""
    blank = {"str": "x", "int": 1, "float": 1.0}
    base = {n: blank[f.type.__name__] for n, f in FIELDS.items()} if full else {}
    base |= {
        "schema_version": SCHEMA_VERSION,
        "run_id": f"{name}-{method}-{seed}",
        "method": method,
        "coord": "n" if method == "bon" else "ppo_step",
        "kl_estimator": "bon_bound" if method == "bon" else "exact",
        "n_prompts": arrays["gold"].shape[1],
        "data_seed": seed,
        "rm_seed": seed,
        "ppo_seed": None if method == "bon" else seed,
    }
    kl = arrays["kl"].mean(axis=1)
    return tuple(
        base
        | {"value": k, "kl_seq_nats": float(kl[k]), "sqrt_kl": float(kl[k] ** 0.5)}
        | {"win_rate": 0.5 + 0.01 * k, "gold_labels": 8000, "rm_calls": 128 * k}
        for k in range(len(kl))
    )
