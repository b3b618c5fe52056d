"""What each stage computes, from what, into which files; in pipe order.

A stage function reads its inputs, calls pure code, writes its artefact. Its config holds the settings
it depends on and no more. How stages hang together is `overopt.pipeline`.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from overopt import checkpoints, store
from overopt.artefacts import (
    backbone_state,
    load_backbone,
    load_responses,
    load_rubric,
    load_scorer,
    load_world,
    response_arrays,
    save_responses,
    save_scorer,
)
from overopt.config import to_dict
from overopt.datatypes import Prompts, Responses, concat_responses
from overopt.distributed import compute_of
from overopt.errors import DivergenceError
from overopt.estimators import best_of_n, exponential_tilt, kl_bon, kl_bon_ties
from overopt.gold.learned import sample_tilted, soft_pairs
from overopt.gold.pretrained import ClassifierScorer
from overopt.gold.rubric import RubricConfig, calibrate
from overopt.graph import StageContext
from overopt.kl import sqrt_kl
from overopt.labels import label_pairs
from overopt.measure.evaluate import distinct_share, measure_kl
from overopt.measure.win_rate import paired_win_rate, pool_win_share
from overopt.methods import ppo as ppo_method
from overopt.mitigations.shaping import LOG_SIGMOID_QUANTILE
from overopt.nets import Llama, ScalarHeadModel
from overopt.proxy.train import train_reward_model
from overopt.records import CURVE_ARRAYS
from overopt.sampling import sample
from overopt.scorers import (
    EnsembleScorer,
    MultiHeadScorer,
    RewardModelScorer,
    RubricScorer,
    normalisation,
)
from overopt.seeding import derive_seed, torch_generator
from overopt.settings import (
    BonConfig,
    GoldConfig,
    LabelsConfig,
    PpoConfig,
    ProxyConfig,
    WorldConfig,
)
from overopt.world.hf import World, in_own_tokens
from overopt.world.stories import split_bounds

CALIBRATION_PROMPTS, CALIBRATION_COPIES = 256, 4
CHECKPOINT_BYTES_PER_S = 1e8
"""A checkpoint of so many bytes is worth a second of work: larger ones are written less often."""
LABEL_ARRAYS = ("chosen", "rejected", "gold_margin", "flipped")
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
    """A trained, normalised proxy; ``bootstrap``: number of the resample of its prompts, 0 for none."""

    world: WorldConfig
    proxy: ProxyConfig
    root_seed: int
    bootstrap: int = 0


@dataclass(frozen=True, kw_only=True)
class PoolStage:
    """N gold-scored responses to each of some evaluation prompts; shared by all proxies."""

    world: WorldConfig
    n_prompts: int
    pool_size: int
    root_seed: int
    eval_offset: int = 0


@dataclass(frozen=True, kw_only=True)
class ScoresStage:
    """One proxy's scores of the pool; ``precision``: of matrix products."""

    world: WorldConfig
    root_seed: int
    precision: Literal["fp32", "tf32"] = "fp32"


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


def _policy(ctx: StageContext) -> Llama:
    """A fresh copy of the initial policy, on the device."""
    return checkpoints.load_lm(ctx.config.world.policy).to(ctx.runtime.device)


def scorer_of(ctx: StageContext, role: str, world: World) -> Any:
    """The scorer of an input, on the device."""
    return load_scorer(
        ctx.inputs[role].path, ctx.inputs["calibration"].path, world, ctx.runtime.device
    )


def run_calibration(ctx: StageContext) -> None:
    """Sample the initial policy on validation prompts and standardise the rubric there."""
    cfg: CalibrationStage = ctx.config
    world = load_world(cfg.world)
    n = min(CALIBRATION_PROMPTS, len(world.texts) // 15)
    responses = sample(
        _policy(ctx),
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
            "constant_features": list(rubric.constant_features),
        },
    )


def run_gold(ctx: StageContext) -> None:
    """Load or fit gold, then fix its zero and unit on the calibration responses."""
    cfg: GoldStage = ctx.config
    calibration = ctx.inputs["calibration"].path
    world = load_world(cfg.world)
    base = load_responses(calibration / "responses.npz")
    rubric = RubricScorer(load_rubric(calibration), world)
    scorer: RewardModelScorer | ClassifierScorer
    match cfg.gold.kind:
        case "rubric":
            save_scorer(ctx.out, None, {"kind": "rubric"})
            return
        case "pretrained":
            classifier, tokenizer = checkpoints.load_classifier(cfg.gold.source)
            classifier.to(ctx.runtime.device)
            scorer = ClassifierScorer(classifier, tokenizer, cfg.gold.source, world)
            raw = scorer.raw(base)
        case "frozen":
            model, _, _ = checkpoints.load_reward_model(cfg.gold.source)
            scorer = RewardModelScorer(model.to(ctx.runtime.device), 0.0, 1.0)
            raw = scorer.score(base)
        case "learned":
            scorer = RewardModelScorer(_fit_gold(cfg, world, rubric, ctx), 0.0, 1.0)
            raw = scorer.score(base)
    with weights_kept(ctx, scorer.model):
        unit = normalisation(raw)
    human = rubric.score(base)
    is_flat = unit.is_constant or bool(human.max() == human.min())
    info = {
        "kind": "reward_model",
        "rubric_correlation": None
        if is_flat
        else float(np.corrcoef(raw.numpy(), human.numpy())[0, 1]),
        "is_constant": unit.is_constant,
    }
    save_scorer(ctx.out, replace(scorer, mean=unit.mean, std=unit.std), info)


def _fit_gold(
    cfg: GoldStage, world: World, rubric: RubricScorer, ctx: StageContext
) -> ScalarHeadModel:
    gold, seed = cfg.gold, derive_seed(cfg.root_seed, "gold")
    responses = sample_tilted(
        _policy(ctx),
        world.prompts("gold", gold.n_prompts),
        world.tokenizer,
        copies=gold.copies,
        n_tokens=cfg.world.max_response_tokens,
        seed=seed,
    )
    model = ScalarHeadModel(load_backbone(gold.source, world, layers=gold.layers))
    model.init_head(torch_generator(seed, "head"))
    model.to(ctx.runtime.device)
    pairs = soft_pairs(
        in_own_tokens(model.backbone, responses),
        rubric.score(responses),
        copies=gold.copies,
        pairs_per_prompt=30,
        seed=seed,
    )
    with weights_kept(ctx, model):
        train_reward_model(
            model,
            pairs,
            epochs=gold.epochs,
            lr=gold.lr,
            batch_prompts=8,
            weight_decay=0.01,
            seed=seed,
            validate=dict,
            progress=ctx.progress,
            compute=compute_of(ctx.runtime, gold.precision),
        )
    return model.eval()


def run_comparisons(ctx: StageContext) -> None:
    """Sample K responses to each training and validation prompt and score them with gold."""
    cfg: ComparisonsStage = ctx.config
    world = load_world(cfg.world)
    policy = _policy(ctx)
    gold = scorer_of(ctx, "gold", world)
    for split, n in (("train", cfg.n_prompts), ("validation", cfg.n_validation_prompts)):
        responses = sample(
            policy,
            comparison_prompts(world, split, n, seeds=(cfg.root_seed, cfg.data_seed)),
            n_tokens=cfg.world.max_response_tokens,
            seed=derive_seed(cfg.root_seed, "comparisons", split, cfg.data_seed),
            copies=cfg.copies,
        )
        save_responses(ctx.out / f"{split}.npz", responses, cfg.copies)
        store.save_arrays(ctx.out / f"{split}_gold.npz", {"gold": gold.score(responses).numpy()})


def comparison_prompts(world: World, split: str, n: int, *, seeds: tuple[int, int]) -> Prompts:
    """The first ``n`` prompts of a split in the order of ``seeds``: root seed, data seed."""
    root_seed, data_seed = seeds
    everyone = world.prompts(split, len_split(world, split))
    if n > len(everyone):
        world.prompts(split, n)  # raises with the numbers
    generator = torch_generator(root_seed, "prompts", split, data_seed)
    return everyone.select(torch.randperm(len(everyone), generator=generator)[:n])


def len_split(world: World, split: str) -> int:
    """Number of prompts in a split."""
    start, stop = split_bounds(len(world.texts))[split]
    return stop - start


def eval_prompts(world: World, n: int, offset: int) -> Prompts:
    """``n`` prompts of the eval split, from number ``offset`` on."""
    return world.prompts("eval", offset + n).select(slice(offset, None))


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
        arrays = {k: getattr(pairs, k) for k in LABEL_ARRAYS}
        store.save_arrays(ctx.out / f"{split}.npz", {k: v.numpy() for k, v in arrays.items()})


@contextlib.contextmanager
def weights_kept(ctx: StageContext, model: torch.nn.Module) -> Iterator[None]:
    """Keep the weights of ``model`` if what happens inside diverges."""
    try:
        yield
    except DivergenceError as e:
        raise _saved(e, ctx, dict(model.state_dict())) from e


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
    policy = _policy(ctx)
    gold = scorer_of(ctx, "gold", world)
    rubric = RubricScorer(load_rubric(ctx.inputs["calibration"].path), world)
    prompts = eval_prompts(world, cfg.n_prompts, cfg.eval_offset)
    parts = []
    for i in range(cfg.n_prompts):
        part = sample(
            policy,
            prompts.select(slice(i, i + 1)),
            n_tokens=cfg.world.max_response_tokens,
            seed=derive_seed(cfg.root_seed, "pool", cfg.eval_offset + i),
            copies=cfg.pool_size,
        )
        scores = {"gold": gold.score(part), "rubric": rubric.score(part), "length": part.length}
        parts.append((part, scores))
        ctx.progress(i + 1, cfg.n_prompts)
    responses = concat_responses([p for p, _ in parts])
    save_responses(ctx.out / "responses.npz", responses, cfg.pool_size)
    table = {k: torch.stack([s[k] for _, s in parts]).numpy() for k in ("gold", "rubric", "length")}
    store.save_arrays(ctx.out / "scores.npz", table)


def _pools(ctx: StageContext) -> list[Path]:
    """Folders of the pool: one, or those of its pieces in the order of their prompts."""
    return [ctx.inputs[r].path for r in sorted(ctx.inputs) if r == "pool" or r.startswith("pool_")]


def run_scores(ctx: StageContext) -> None:
    """Score the pool with one proxy; every ensemble that has it as a member reads the result."""
    cfg: ScoresStage = ctx.config
    proxy = scorer_of(ctx, "proxy", load_world(cfg.world))
    many = isinstance(proxy, MultiHeadScorer | EnsembleScorer)
    tables, pools = [], _pools(ctx)
    for done, folder in enumerate(pools):
        responses = load_responses(folder / "responses.npz")
        n_prompts = len(store.load_arrays(folder / "scores.npz", ("gold",))["gold"])
        # Prompt by prompt, as gold was scored: a proxy that is gold gets bit-identical scores.
        for i, rows in enumerate(torch.arange(len(responses)).chunk(n_prompts), start=1):
            part = responses.select(rows)
            with matmul_precision(cfg.precision):
                tables.append(proxy.member_scores(part) if many else proxy.score(part)[None])
            ctx.progress(done * n_prompts + i, len(pools) * n_prompts)
    store.save_arrays(ctx.out / "scores.npz", {"members": torch.stack(tables, 1).numpy()})


@contextlib.contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Float32 matrix products in fp32, or in tf32 where the device has it, inside the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def run_bon(ctx: StageContext) -> None:
    """Combine the members' scores of the pool and estimate every best-of-n."""
    cfg: BonStage = ctx.config
    proxy = scorer_of(ctx, "proxy", load_world(cfg.world))
    pieces = [
        store.load_arrays(folder / "scores.npz")
        | store.load_arrays(folder / "responses.npz", ("ended",))
        for folder in _pools(ctx)
    ]
    table = {k: np.concatenate([p[k] for p in pieces]) for k in pieces[0]}
    shape = table["gold"].shape
    roles = sorted(role for role in ctx.inputs if role.startswith("scores_"))
    members_MPN = np.concatenate(
        [store.load_arrays(ctx.inputs[role].path / "scores.npz")["members"] for role in roles]
    )
    proxy_PN, spread_PN = members_MPN[0].astype(float), None
    if isinstance(proxy, EnsembleScorer):
        members = torch.from_numpy(members_MPN.reshape(len(members_MPN), -1))
        proxy_PN = (
            proxy.combine(members, torch.from_numpy(table["length"].reshape(-1)))
            .numpy()
            .astype(float)
            .reshape(shape)
        )
        if len(members_MPN) > 1:
            spread_PN = members_MPN.std(0)
    columns = {k: table[k].astype(np.float64) for k in ("gold", "rubric", "length")}
    columns |= {"proxy": proxy_PN, "ended": table["ended"].astype(float).reshape(shape)}
    columns["win_rate"] = pool_win_share(table["gold"])
    if spread_PN is not None:
        columns["member_std"] = spread_PN.astype(float)
    result = best_of_n(proxy_PN, columns, cfg.bon.ns)
    ties = kl_bon_ties(proxy_PN, cfg.bon.ns)
    bound = kl_bon(cfg.bon.ns)
    arrays = {k: result[k].per_prompt for k in (*CURVE_ARRAYS, "win_rate") if k != "kl"}
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
                "member_disagreement": (
                    None if spread_PN is None else float(result["member_std"].mean[k])
                ),
                "missing_reason": "best-of-n: no policy, its KL is known by formula;"
                " member_disagreement: a single proxy has none",
            }
        )
    _save_curve(ctx.out, rows, arrays, [proxy] * len(rows))
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
    optimise(ctx, ctx.config.ppo.evaluation_steps)


def optimise(ctx: StageContext, evaluation_steps: tuple[int, ...]) -> ppo_method.PpoState:
    """PPO up to the last of ``evaluation_steps``, written as an artefact; returns its state.

    From the initial policy, or from where the input ``start`` ended, everything but the proxy
    carried on. The schedule is that of all ``ppo.steps``. Checkpoints are written at evaluations,
    ``runtime.checkpoint_s`` apart or less where they are small.
    """
    cfg = ctx.config
    world, ppo, last = load_world(cfg.world), cfg.ppo, evaluation_steps[-1]
    proxy = scorer_of(ctx, "proxy", world)
    ref_policy = _policy(ctx)
    value = ScalarHeadModel(checkpoints.load_trunk(ppo.value_backbone)).to(ctx.runtime.device)
    state = ppo_method.new_state(_policy(ctx), value, ppo)
    prompts = world.prompts("rl", len_split(world, "rl"))
    held = eval_prompts(world, ppo.eval_prompts, ppo.eval_offset)
    seed = derive_seed(cfg.root_seed, "ppo", ppo.ppo_seed)
    ref_scores = _shaping_reference(ctx, ref_policy, proxy, prompts, seed)
    compute = compute_of(ctx.runtime, ppo.precision)
    log: list[dict[str, float]] = []
    saved = ctx.checkpoint / "state.safetensors"
    _discard_foreign_checkpoint(ctx)
    if saved.exists():
        ppo_method.load_state_tensors(state, store.load_tensors(saved))
        log = store.load_json(ctx.checkpoint / f"log-{state.step}.json")
    elif "start" in ctx.inputs:
        start = ctx.inputs["start"].path
        ppo_method.load_state_tensors(state, store.load_tensors(start / "state.safetensors"))
        log = store.load_json(start / "log.json")
    for file in ctx.checkpoint.glob("eval-*.npz"):
        if int(file.stem.removeprefix("eval-")) > state.step:
            file.unlink()  # of steps that are done again, on a GPU not to the last bit
    weights = [*state.policy.parameters(), *state.value.parameters()]
    n_bytes = 3 * sum(p.nbytes for p in weights)  # with Adam's two moments
    pause_s = min(ctx.runtime.checkpoint_s, n_bytes / CHECKPOINT_BYTES_PER_S)
    saved_at = time.monotonic()
    while True:
        k = state.step
        if k in evaluation_steps:
            file = ctx.checkpoint / f"eval-{k:05d}.npz"
            if not file.exists():
                _evaluate(file, state.policy, ref_policy, proxy, held, cfg)
        if k >= last:
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
                    ref_scores=ref_scores,
                    compute=compute,
                )
            )
        except DivergenceError as e:
            raise _saved(e, ctx, ppo_method.state_tensors(state)) from e
        ctx.progress(state.step, last)
        if state.step in evaluation_steps and time.monotonic() - saved_at >= pause_s:
            # The log is written before the state that refers to it, so that a kill between the
            # two leaves the older, consistent pair in force.
            store.save_json(ctx.checkpoint / f"log-{state.step}.json", log)
            store.save_tensors(saved, ppo_method.state_tensors(state))
            saved_at = time.monotonic()
    for k in evaluation_steps:
        name = f"eval-{k:05d}.npz"
        (ctx.out / name).write_bytes((ctx.checkpoint / name).read_bytes())
    store.save_json(ctx.out / "log.json", log)
    store.save_tensors(ctx.out / "policy.safetensors", backbone_state(state.policy))
    return state


def _shaping_reference(
    ctx: StageContext, ref_policy: Any, proxy: Any, prompts: Prompts, seed: int
) -> torch.Tensor | None:
    """The score (P,) that PPO's shaping is relative to, for each prompt; None where it needs none."""
    cfg: PpoStage = ctx.config
    match cfg.ppo.shaping:
        case "par":
            return ppo_method.reference_scores(
                ref_policy,
                proxy,
                prompts,
                cfg.ppo,
                n_tokens=cfg.world.max_response_tokens,
                seed=seed,
            )
        case "log_sigmoid":
            base = load_responses(ctx.inputs["calibration"].path / "responses.npz")
            quantile = proxy.score(base).quantile(LOG_SIGMOID_QUANTILE)
            return quantile.expand(len(prompts))
    return None


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
    # Other prompts get other random numbers: tuning and test share none.
    offset = [cfg.ppo.eval_offset] if cfg.ppo.eval_offset else []
    responses = ppo_method.evaluate_policy(
        policy,
        prompts,
        copies=cfg.ppo.eval_copies,
        n_tokens=cfg.world.max_response_tokens,
        seed=derive_seed(cfg.root_seed, "ppo-eval", *offset),
    )
    kl = measure_kl(policy, ref_policy, responses)
    table = {k: v.numpy() for k, v in kl._asdict().items()}
    table["proxy"] = proxy.score(responses).numpy()
    store.save_arrays(file, response_arrays(responses, cfg.ppo.eval_copies) | table)


def run_ppo_gold(ctx: StageContext) -> None:
    """Score PPO's evaluation responses with gold and rubric, and write its curve.

    A policy that was carried on through rounds has inputs ``proxy_01``, ``ppo_01``, … before the
    last round's; each point belongs to the round that trained up to it, and is measured with that
    round's proxy.
    """
    cfg: PpoGoldStage = ctx.config
    world = load_world(cfg.world)
    earlier = sorted(role.removeprefix("ppo") for role in ctx.inputs if role.startswith("ppo_"))
    parts = [*earlier, ""]
    proxies = [scorer_of(ctx, f"proxy{part}", world) for part in parts]
    folders = [ctx.inputs[f"ppo{part}"].path for part in parts]
    gold = scorer_of(ctx, "gold", world)
    rubric = RubricScorer(load_rubric(ctx.inputs["calibration"].path), world)
    log = store.load_json(folders[-1] / "log.json")
    rows, columns = [], {name: [] for name in (*CURVE_ARRAYS, "proxy_start", "win_rate")}  # type: ignore[var-annotated]
    gold_start = None
    files = [(i, file) for i, f in enumerate(folders) for file in sorted(f.glob("eval-*.npz"))]
    first, score_first = files[0][1], store.load_arrays(files[0][1])["proxy"]
    starts = [score_first, *(proxy.score(load_responses(first)).numpy() for proxy in proxies[1:])]
    for done, (i, file) in enumerate(files, start=1):
        proxy, step = proxies[i], int(file.stem.removeprefix("eval-"))
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
        if earlier:
            start_PC = starts[i].reshape(n_prompts, -1)
            columns["proxy_start"].append(start_PC.astype(float).mean(1))
        gold_PC = per["gold"].reshape(n_prompts, -1)
        gold_start = gold_PC if gold_start is None else gold_start
        has_spread = gold_PC.shape[1] > 1
        if has_spread:
            columns["win_rate"].append(paired_win_rate(gold_PC, gold_start))
        member_std = _member_std(proxy, responses)
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
                "proxy_std": _within_std(a["proxy"].reshape(n_prompts, -1)) if has_spread else None,
                "member_disagreement": None if member_std is None else float(member_std.mean()),
                **({"round": i + 1} if earlier else {}),
                **{
                    k: stats.get(k)
                    for k in ("entropy_token_nats", "update_kl_token_nats", "clip_fraction")
                },
                "missing_reason": "PPO: no best-of-n KL; step 0 has no update; member_disagreement:"
                " a single proxy has none; proxy_std, win_rate: need two responses a prompt",
            }
        )
        ctx.progress(done, len(files))
    of_rows = [proxies[i] for i, _ in files]
    _save_curve(ctx.out, rows, {k: np.stack(v) for k, v in columns.items() if v}, of_rows)


def _member_std(proxy: Any, responses: Responses) -> np.ndarray | None:
    """Standard deviation (R,) over an ensemble's members; None for one proxy."""
    if not isinstance(proxy, EnsembleScorer):
        return None
    scores_MR = proxy.member_scores(responses).numpy().astype(float)
    return scores_MR.std(0) if len(scores_MR) > 1 else None


def _within_std(scores_PC: np.ndarray) -> float:
    """Root of the mean over prompts of the variance of a prompt's scores (ddof 1)."""
    return float(np.sqrt(scores_PC.astype(float).var(1, ddof=1).mean()))


def _stderr(x: np.ndarray) -> float:
    return float(x.std(ddof=1) / len(x) ** 0.5)


def _save_curve(
    out: Path, rows: list[dict], arrays: dict[str, np.ndarray], proxies: Sequence[Any]
) -> None:
    """Add the means of per-prompt arrays (K, P) to the rows and write both.

    ``proxies``: each row's. A gain is over the first row, or over ``proxy_start`` (K, P): what the
    row's proxy says of the first row's responses.
    """
    for k, (row, proxy) in enumerate(zip(rows, proxies, strict=True)):
        mean, std = (0.0, 1.0) if isinstance(proxy, RubricScorer) else (proxy.mean, proxy.std)
        row["sqrt_kl"] = sqrt_kl(row["kl_seq_nats"])
        row["n_prompts"] = arrays["gold"].shape[1]
        row["response_tokens"] = float(arrays["length"][k].mean())
        for name in ("gold", "proxy", "rubric"):
            row[f"{name}_score"] = float(arrays[name][k].mean())
            row[f"{name}_score_stderr"] = _stderr(arrays[name][k])
        for name in ("gold", "proxy"):
            start = arrays.get(f"{name}_start")
            gain = arrays[name][k] - (arrays[name][0] if start is None else start[k])
            row[f"{name}_gain"] = float(gain.mean())
            row[f"{name}_gain_stderr"] = _stderr(gain)
        row["gap"] = row["proxy_gain"] - row["gold_gain"]
        if "win_rate" in arrays:
            row["win_rate"] = float(arrays["win_rate"][k].mean())
            row["win_rate_stderr"] = _stderr(arrays["win_rate"][k])
        row["proxy_raw"] = row["proxy_score"] * std + mean
    store.save_json(out / "rows.json", rows)
    store.save_arrays(out / "curve.npz", {k: arrays[k].astype(np.float32) for k in CURVE_ARRAYS})
