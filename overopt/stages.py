"""What each stage computes, from what, into which files; in pipe order.

A stage function reads its inputs, calls pure code, writes its artefact. Its config holds the settings
it depends on and no more. How stages hang together is `overopt.pipeline`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from overopt import checkpoints, store
from overopt.artefacts import (
    load_responses,
    load_rubric,
    load_scorer,
    load_world,
    response_arrays,
    save_responses,
    save_scorer,
)
from overopt.config import to_dict
from overopt.datatypes import Prompts, concat_responses
from overopt.errors import DivergenceError
from overopt.estimators import best_of_n, exponential_tilt, kl_bon, kl_bon_ties
from overopt.gold.learned import sample_tilted, soft_pairs
from overopt.gold.rubric import RubricConfig, calibrate
from overopt.graph import StageContext
from overopt.kl import sqrt_kl
from overopt.labels import label_pairs
from overopt.measure.evaluate import distinct_share, measure_kl
from overopt.methods import ppo as ppo_method
from overopt.nets import (
    ScalarHeadModel,
    to_transformers_state,
)
from overopt.proxy.normalize import pair_metrics, recalibration
from overopt.proxy.train import TrainingPairs, train_reward_model
from overopt.records import CURVE_ARRAYS
from overopt.sampling import sample
from overopt.scorers import RewardModelScorer, RubricScorer, mean_std, raw_scores
from overopt.seeding import derive_seed, torch_generator
from overopt.settings import (
    BonConfig,
    GoldConfig,
    LabelsConfig,
    PpoConfig,
    ProxyConfig,
    WorldConfig,
)
from overopt.world.stories import StoriesWorld

CALIBRATION_PROMPTS, CALIBRATION_COPIES = 256, 4
TILT_BETAS = tuple(float(b) for b in np.geomspace(8.0, 0.05, 16))  # sd of the proxy


# --- configs of stages: the settings a stage depends on, no more ----------------------------------


@dataclass(frozen=True, kw_only=True)
class CalibrationStage:
    """Responses of the initial policy that define zero and unit of every score.

    ``sources``: checksums of the user's own prompts and checkpoints. Every other stage is downstream
    of this one, so a file that changes under the same path makes everything new.
    """

    world: WorldConfig
    rubric: RubricConfig
    root_seed: int
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GoldStage:
    """The gold model."""

    world: WorldConfig
    gold: GoldConfig
    root_seed: int


@dataclass(frozen=True, kw_only=True)
class ComparisonsStage:
    """Gold-scored responses to training and validation prompts; shared by all data sizes."""

    world: WorldConfig
    n_prompts: int
    n_validation_prompts: int
    copies: int
    data_seed: int
    root_seed: int


@dataclass(frozen=True, kw_only=True)
class LabelsStage:
    """Labelled pairs among the responses."""

    labels: LabelsConfig
    root_seed: int


@dataclass(frozen=True, kw_only=True)
class ProxyStage:
    """A trained, normalised proxy."""

    world: WorldConfig
    proxy: ProxyConfig
    root_seed: int


@dataclass(frozen=True, kw_only=True)
class PoolStage:
    """N gold-scored responses to each evaluation prompt; shared by all proxies."""

    world: WorldConfig
    n_prompts: int
    pool_size: int
    root_seed: int


@dataclass(frozen=True, kw_only=True)
class BonStage:
    """Best-of-n curve of one proxy over the pool."""

    world: WorldConfig
    bon: BonConfig
    root_seed: int


@dataclass(frozen=True, kw_only=True)
class PpoStage:
    """PPO against one proxy, with evaluation responses along the way."""

    world: WorldConfig
    ppo: PpoConfig
    root_seed: int


@dataclass(frozen=True, kw_only=True)
class PpoGoldStage:
    """Gold and rubric scores of PPO's evaluation responses."""

    world: WorldConfig
    root_seed: int


# --- stage functions ------------------------------------------------------------------------------


def run_calibration(ctx: StageContext) -> None:
    """Sample the initial policy on validation prompts and standardise the rubric there."""
    cfg: CalibrationStage = ctx.config
    world = load_world(cfg.world)
    n = min(CALIBRATION_PROMPTS, len(world.texts) // 15)
    responses = sample(
        checkpoints.load_lm(cfg.world.policy),
        world.prompts("validation", n),
        n_tokens=cfg.world.max_response_tokens,
        seed=derive_seed(cfg.root_seed, "calibration"),
        copies=CALIBRATION_COPIES,
    )
    rubric = calibrate(
        cfg.rubric,
        world.prompt_texts(responses),
        world.response_texts(responses),
        responses.ended.tolist(),
    )
    save_responses(ctx.out / "responses.npz", responses, CALIBRATION_COPIES)
    store.save_json(
        ctx.out / "rubric.json",
        {
            "cfg": vars(rubric.cfg),
            "feature_mean": list(rubric.feature_mean),
            "feature_std": list(rubric.feature_std),
            "score_mean": rubric.score_mean,
            "score_std": rubric.score_std,
        },
    )


def run_gold(ctx: StageContext) -> None:
    """Load or fit gold, then fix its zero and unit on the calibration responses."""
    cfg: GoldStage = ctx.config
    calibration = ctx.inputs["calibration"].path
    world = load_world(cfg.world)
    base = load_responses(calibration / "responses.npz")
    rubric = RubricScorer(load_rubric(calibration), world)
    match cfg.gold.kind:
        case "rubric":
            save_scorer(ctx.out, None, {"kind": "rubric"})
            return
        case "frozen":
            model, _, _ = checkpoints.load_reward_model(cfg.gold.source)
        case "learned":
            model = _fit_gold(cfg, world, rubric, ctx)
    raw = raw_scores(model, base)
    mean, std = mean_std(raw)
    agreement = float(np.corrcoef(raw.numpy(), rubric.score(base).numpy())[0, 1])
    info = {"kind": "reward_model", "rubric_correlation": agreement}
    save_scorer(ctx.out, RewardModelScorer(model, mean, std), info)


def _fit_gold(
    cfg: GoldStage, world: StoriesWorld, rubric: RubricScorer, ctx: StageContext
) -> ScalarHeadModel:
    gold, seed = cfg.gold, derive_seed(cfg.root_seed, "gold")
    responses = sample_tilted(
        checkpoints.load_lm(cfg.world.policy),
        world.prompts("gold", gold.n_prompts),
        world.tokenizer,
        copies=gold.copies,
        n_tokens=cfg.world.max_response_tokens,
        seed=seed,
    )
    model = ScalarHeadModel(checkpoints.load_lm(gold.source))
    model.init_head(torch_generator(seed, "head"))
    train_reward_model(
        model,
        soft_pairs(
            responses, rubric.score(responses), copies=gold.copies, pairs_per_prompt=30, seed=seed
        ),
        epochs=gold.epochs,
        lr=gold.lr,
        batch_prompts=8,
        weight_decay=0.01,
        seed=seed,
        validate=dict,
        progress=ctx.progress,
    )
    return model.eval()


def run_comparisons(ctx: StageContext) -> None:
    """Sample K responses to each training and validation prompt and score them with gold."""
    cfg: ComparisonsStage = ctx.config
    world = load_world(cfg.world)
    policy = checkpoints.load_lm(cfg.world.policy)
    gold = load_scorer(ctx.inputs["gold"].path, ctx.inputs["calibration"].path, world)
    for split, n in (("train", cfg.n_prompts), ("validation", cfg.n_validation_prompts)):
        everyone = world.prompts(split, len_split(world, split))
        order = torch.randperm(
            len(everyone), generator=torch_generator(cfg.root_seed, "prompts", split, cfg.data_seed)
        )
        if n > len(order):
            world.prompts(split, n)  # raises with the numbers
        responses = sample(
            policy,
            everyone.select(order[:n]),
            n_tokens=cfg.world.max_response_tokens,
            seed=derive_seed(cfg.root_seed, "comparisons", split, cfg.data_seed),
            copies=cfg.copies,
        )
        save_responses(ctx.out / f"{split}.npz", responses, cfg.copies)
        store.save_arrays(ctx.out / f"{split}_gold.npz", {"gold": gold.score(responses).numpy()})


def len_split(world: StoriesWorld, split: str) -> int:
    """Number of prompts in a split."""
    from overopt.world.stories import split_bounds

    start, stop = split_bounds(len(world.texts))[split]
    return stop - start


def run_labels(ctx: StageContext) -> None:
    """Turn gold scores into labelled pairs."""
    cfg: LabelsStage = ctx.config
    folder = ctx.inputs["comparisons"].path
    labels = cfg.labels
    for split, n_pairs, flip in (
        ("train", labels.n_pairs, labels.label_flip_rate),
        ("validation", labels.n_validation_prompts * labels.pairs_per_prompt, 0.0),
    ):
        pairs = label_pairs(
            load_responses(folder / f"{split}.npz"),
            torch.from_numpy(store.load_arrays(folder / f"{split}_gold.npz")["gold"]),
            copies=labels.responses_per_prompt,
            n_pairs=n_pairs,
            rule=labels.label_rule if split == "train" else "argmax",
            flip_rate=flip,
            seed=derive_seed(cfg.root_seed, "labels", split, labels.data_seed),
        )
        arrays = {k: getattr(pairs, k) for k in ("chosen", "rejected", "gold_margin", "flipped")}
        store.save_arrays(ctx.out / f"{split}.npz", {k: v.numpy() for k, v in arrays.items()})


def run_proxy(ctx: StageContext) -> None:
    """Train a proxy on the labels and normalise it on the calibration responses."""
    cfg: ProxyStage = ctx.config
    calibration, comparisons = ctx.inputs["calibration"].path, ctx.inputs["comparisons"].path
    world = load_world(cfg.world)
    base = load_responses(calibration / "responses.npz")
    held_out = load_responses(comparisons / "validation.npz")
    held_pairs = store.load_arrays(ctx.inputs["labels"].path / "validation.npz")
    history: dict[str, Any] = {}
    if cfg.proxy.kind == "gold":
        gold = load_scorer(ctx.inputs["gold"].path, calibration, world)
        if isinstance(gold, RubricScorer):
            held_raw = gold.score(held_out).numpy()
            margin = held_raw[held_pairs["chosen"]] - held_raw[held_pairs["rejected"]]
            save_scorer(ctx.out, None, {"kind": "rubric", "n_params": 0, "n_params_total": 0})
            store.save_json(
                ctx.out / "training.json", pair_metrics(margin) | {"recalibration": 1.0}
            )
            return
        scorer = gold
    else:
        seed = derive_seed(cfg.root_seed, "proxy", cfg.proxy.rm_seed)
        labels = store.load_arrays(ctx.inputs["labels"].path / "train.npz")
        model = ScalarHeadModel(checkpoints.load_lm(cfg.proxy.backbone))
        model.init_head(torch_generator(seed, "head"))

        def validate() -> dict[str, float]:
            raw = raw_scores(model, held_out).numpy()
            return pair_metrics(raw[held_pairs["chosen"]] - raw[held_pairs["rejected"]])

        chosen = torch.from_numpy(labels["chosen"])
        try:
            log = train_reward_model(
                model,
                TrainingPairs(
                    load_responses(comparisons / "train.npz"),
                    chosen,
                    torch.from_numpy(labels["rejected"]),
                    torch.ones(len(chosen)),
                ),
                epochs=cfg.proxy.epochs,
                lr=cfg.proxy.lr,
                batch_prompts=cfg.proxy.batch_prompts,
                weight_decay=cfg.proxy.weight_decay,
                seed=seed,
                validate=validate,
                progress=ctx.progress,
            )
        except DivergenceError as e:
            raise _saved(e, ctx, dict(model.state_dict())) from e
        history = {
            "train_loss": log.loss,
            "validation": log.validation,
            "pairs_seen": log.pairs_seen,
        }
        mean, std = mean_std(raw_scores(model.eval(), base))
        scorer = RewardModelScorer(model, mean, std)
    raw = raw_scores(scorer.model, held_out).numpy()
    margin = raw[held_pairs["chosen"]] - raw[held_pairs["rejected"]]
    backbone = scorer.model.backbone
    total = sum(p.numel() for p in scorer.model.parameters())
    info = {
        "kind": "reward_model",
        "n_params": total - backbone.embed.weight.numel(),
        "n_params_total": total,
    }
    save_scorer(ctx.out, scorer, info)
    soft = recalibration(margin, held_pairs["gold_margin"])
    store.save_json(
        ctx.out / "training.json", pair_metrics(margin) | {"recalibration": soft} | history
    )


def _saved(error: DivergenceError, ctx: StageContext, tensors: dict) -> DivergenceError:
    """Keep the weights of a diverged model for inspection and say where they are."""
    path = ctx.checkpoint / "diverged.safetensors"
    store.save_tensors(path, {k: v.contiguous() for k, v in tensors.items()})
    store.save_json(
        ctx.checkpoint / "diverged.json", {"error": str(error), "config": repr(ctx.config)}
    )
    return DivergenceError(f"{error}; weights saved at {path}; config {ctx.config}")


def run_pool(ctx: StageContext) -> None:
    """Sample N responses to each evaluation prompt and score them with gold and rubric."""
    cfg: PoolStage = ctx.config
    world = load_world(cfg.world)
    policy = checkpoints.load_lm(cfg.world.policy)
    gold = load_scorer(ctx.inputs["gold"].path, ctx.inputs["calibration"].path, world)
    rubric = RubricScorer(load_rubric(ctx.inputs["calibration"].path), world)
    prompts = world.prompts("eval", cfg.n_prompts)
    parts = []
    for i in range(cfg.n_prompts):
        part = sample(
            policy,
            prompts.select(slice(i, i + 1)),
            n_tokens=cfg.world.max_response_tokens,
            seed=derive_seed(cfg.root_seed, "pool", i),
            copies=cfg.pool_size,
        )
        scores = {"gold": gold.score(part), "rubric": rubric.score(part), "length": part.length}
        parts.append((part, scores))
        ctx.progress(i + 1, cfg.n_prompts)
    responses = concat_responses([p for p, _ in parts])
    save_responses(ctx.out / "responses.npz", responses, cfg.pool_size)
    table = {k: torch.stack([s[k] for _, s in parts]).numpy() for k in ("gold", "rubric", "length")}
    store.save_arrays(ctx.out / "scores.npz", table)


def run_bon(ctx: StageContext) -> None:
    """Score the pool with the proxy and estimate every best-of-n."""
    cfg: BonStage = ctx.config
    world = load_world(cfg.world)
    pool = ctx.inputs["pool"].path
    proxy = load_scorer(ctx.inputs["proxy"].path, ctx.inputs["calibration"].path, world)
    responses = load_responses(pool / "responses.npz")
    table = store.load_arrays(pool / "scores.npz")
    shape = table["gold"].shape
    # Prompt by prompt, as gold was scored: a proxy that is gold gets bit-identical scores.
    prompts = torch.arange(len(responses)).split(shape[1])
    proxy_PN = np.stack([proxy.score(responses.select(p)).numpy() for p in prompts]).astype(float)
    columns = {k: table[k].astype(np.float64) for k in ("gold", "rubric", "length")}
    columns |= {"proxy": proxy_PN, "ended": responses.ended.numpy().astype(float).reshape(shape)}
    result = best_of_n(proxy_PN, columns, cfg.bon.ns)
    ties = kl_bon_ties(proxy_PN, cfg.bon.ns)
    bound = kl_bon(cfg.bon.ns)
    arrays = {k: result[k].per_prompt for k in ("gold", "proxy", "rubric", "length")}
    arrays["kl"] = np.repeat(np.asarray(bound)[:, None], shape[0], axis=1)
    rows = []
    for k, n in enumerate(cfg.bon.ns):
        rows.append(
            {
                "coord": "n",
                "value": int(n),
                "kl_seq_nats": float(bound[k]),
                "kl_seq_nats_stderr": None,
                "kl_estimator": "bon_bound",
                "kl_bon_ties": float(ties.mean[k]),
                "n_responses": int(np.prod(shape)),
                "ended_share": float(result["ended"].mean[k]),
                "missing_reason": "best-of-n: no policy, its KL is known by formula",
            }
        )
    _save_curve(ctx.out, rows, arrays, proxy)
    store.save_json(ctx.out / "tilt.json", _tilt_rows(proxy_PN, columns["gold"]))


def _tilt_rows(proxy_PN: np.ndarray, gold_PN: np.ndarray) -> list[dict[str, Any]]:
    """The exponential tilt of the pool: gold gain at each β, with KL and effective sample size."""
    columns = {"gold": gold_PN, "proxy": proxy_PN}
    tilt = exponential_tilt(proxy_PN, columns, TILT_BETAS)
    rows = []
    for k, beta in enumerate(TILT_BETAS):
        gain = {n: tilt[n].per_prompt[k] - x.mean(1) for n, x in columns.items()}
        rows.append(
            {
                "beta": beta,
                "kl_seq_nats": float(tilt["gold"].kl_seq_nats[k]),
                "sqrt_kl": sqrt_kl(float(tilt["gold"].kl_seq_nats[k])),
                "gold_gain": float(gain["gold"].mean()),
                "gold_gain_stderr": _stderr(gain["gold"]),
                "proxy_gain": float(gain["proxy"].mean()),
                "ess_median": float(np.median(tilt["gold"].ess[k])),
                "reliable": bool(tilt["gold"].reliable[k]),
            }
        )
    return rows


def run_ppo(ctx: StageContext) -> None:
    """Optimise the policy against the proxy; keep evaluation responses and KL along the way."""
    cfg: PpoStage = ctx.config
    world, ppo = load_world(cfg.world), cfg.ppo
    proxy = load_scorer(ctx.inputs["proxy"].path, ctx.inputs["calibration"].path, world)
    ref_policy = checkpoints.load_lm(cfg.world.policy)
    value = ScalarHeadModel(checkpoints.load_lm(ppo.value_backbone))
    state = ppo_method.new_state(checkpoints.load_lm(cfg.world.policy), value, ppo)
    prompts = world.prompts("rl", len_split(world, "rl"))
    held = world.prompts("eval", ppo.eval_prompts)
    seed = derive_seed(cfg.root_seed, "ppo", ppo.ppo_seed)
    log: list[dict[str, float]] = []
    saved = ctx.checkpoint / "state.safetensors"
    _discard_foreign_checkpoint(ctx)
    if saved.exists():
        ppo_method.load_state_tensors(state, store.load_tensors(saved))
        log = store.load_json(ctx.checkpoint / f"log-{state.step}.json")
    while True:
        k = state.step
        if k % ppo.eval_every == 0 or k == ppo.steps:
            file = ctx.checkpoint / f"eval-{k:05d}.npz"
            if not file.exists():
                _evaluate(file, state.policy, ref_policy, proxy, held, cfg)
        if k >= ppo.steps:
            break
        try:
            log.append(
                ppo_method.ppo_step(
                    state,
                    ref_policy,
                    proxy,
                    prompts,
                    ppo,
                    n_tokens=cfg.world.max_response_tokens,
                    seed=seed,
                )
            )
        except DivergenceError as e:
            raise _saved(e, ctx, ppo_method.state_tensors(state)) from e
        ctx.progress(state.step, ppo.steps)
        if state.step % ppo.eval_every == 0:
            # The log is written before the state that refers to it, so that a kill between the
            # two leaves the older, consistent pair in force.
            store.save_json(ctx.checkpoint / f"log-{state.step}.json", log)
            store.save_tensors(saved, ppo_method.state_tensors(state))
    for k in sorted({*range(0, ppo.steps, ppo.eval_every), ppo.steps}):
        name = f"eval-{k:05d}.npz"
        (ctx.out / name).write_bytes((ctx.checkpoint / name).read_bytes())
    store.save_json(ctx.out / "log.json", log)
    store.save_tensors(ctx.out / "policy.safetensors", to_transformers_state(state.policy))


def _discard_foreign_checkpoint(ctx: StageContext) -> None:
    """Start afresh where the checkpoint was written under another full configuration.

    A fingerprint leaves defaults out; a default that was edited without raising the stage's version
    must not splice two schedules into one curve.
    """
    marker, mine = ctx.checkpoint / "config.json", to_dict(ctx.config)
    if marker.exists() and store.load_json(marker) == mine:
        return
    for file in ctx.checkpoint.iterdir():
        file.unlink()
    store.save_json(marker, mine)


def _evaluate(
    file: Path, policy: Any, ref_policy: Any, proxy: Any, prompts: Prompts, cfg: PpoStage
) -> None:
    responses = ppo_method.evaluate_policy(
        policy,
        prompts,
        copies=cfg.ppo.eval_copies,
        n_tokens=cfg.world.max_response_tokens,
        seed=derive_seed(cfg.root_seed, "ppo-eval"),
    )
    kl = measure_kl(policy, ref_policy, responses)
    table = {k: v.numpy() for k, v in kl._asdict().items()}
    table["proxy"] = proxy.score(responses).numpy()
    store.save_arrays(file, response_arrays(responses, cfg.ppo.eval_copies) | table)


def run_ppo_gold(ctx: StageContext) -> None:
    """Score PPO's evaluation responses with gold and rubric, and write its curve."""
    cfg: PpoGoldStage = ctx.config
    world = load_world(cfg.world)
    folder, calibration = ctx.inputs["ppo"].path, ctx.inputs["calibration"].path
    gold = load_scorer(ctx.inputs["gold"].path, calibration, world)
    proxy = load_scorer(ctx.inputs["proxy"].path, calibration, world)
    rubric = RubricScorer(load_rubric(calibration), world)
    log = store.load_json(folder / "log.json")
    rows, columns = [], {name: [] for name in CURVE_ARRAYS}  # type: ignore[var-annotated]
    files = sorted(folder.glob("eval-*.npz"))
    for done, file in enumerate(files, start=1):
        step = int(file.stem.removeprefix("eval-"))
        responses, a = load_responses(file), store.load_arrays(file)
        n_prompts = len(a["prompt_ids"])
        per = {
            "gold": gold.score(responses).numpy(),
            "rubric": rubric.score(responses).numpy(),
            "proxy": a["proxy"],
            "kl": a["exact"],
            "length": responses.length.numpy(),
            "k1": a["k1"],
        }
        means = {k: v.reshape(n_prompts, -1).astype(float).mean(1) for k, v in per.items()}
        for name in CURVE_ARRAYS:
            columns[name].append(means[name])
        stats = log[step - 1] if step > 0 else {}
        rows.append(
            {
                "coord": "ppo_step",
                "value": step,
                "kl_seq_nats": float(means["kl"].mean()),
                "kl_seq_nats_stderr": _stderr(means["kl"]),
                "kl_estimator": "exact",
                "kl_k1": float(means["k1"].mean()),
                "kl_k1_stderr": _stderr(means["k1"]),
                "kl_k2": float(a["k2"].mean()),
                "kl_k3": float(a["k3"].mean()),
                "n_responses": len(responses),
                "ended_share": float(responses.ended.float().mean()),
                "distinct_share": distinct_share(responses),
                **{
                    k: stats.get(k)
                    for k in ("entropy_token_nats", "update_kl_token_nats", "clip_fraction")
                },
                "missing_reason": "PPO: no best-of-n KL; step 0 has no update",
            }
        )
        ctx.progress(done, len(files))
    _save_curve(ctx.out, rows, {k: np.stack(v) for k, v in columns.items()}, proxy)


def _stderr(x: np.ndarray) -> float:
    return float(x.std(ddof=1) / len(x) ** 0.5)


def _save_curve(out: Path, rows: list[dict], arrays: dict[str, np.ndarray], proxy: Any) -> None:
    """Add the means of per-prompt arrays (K, P) to the rows and write both."""
    mean, std = (proxy.mean, proxy.std) if isinstance(proxy, RewardModelScorer) else (0.0, 1.0)
    for k, row in enumerate(rows):
        row["sqrt_kl"] = sqrt_kl(row["kl_seq_nats"])
        row["n_prompts"] = arrays["gold"].shape[1]
        row["response_tokens"] = float(arrays["length"][k].mean())
        for name in ("gold", "proxy", "rubric"):
            row[f"{name}_score"] = float(arrays[name][k].mean())
            row[f"{name}_score_stderr"] = _stderr(arrays[name][k])
        for name in ("gold", "proxy"):
            gain = arrays[name][k] - arrays[name][0]
            row[f"{name}_gain"] = float(gain.mean())
            row[f"{name}_gain_stderr"] = _stderr(gain)
        row["gap"] = row["proxy_gain"] - row["gold_gain"]
        row["proxy_raw"] = row["proxy_score"] * std + mean
    store.save_json(out / "rows.json", rows)
    store.save_arrays(out / "curve.npz", {k: arrays[k].astype(np.float32) for k in CURVE_ARRAYS})
