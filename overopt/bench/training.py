"""Speed of reward-model and PPO training, against TRL and against bare matrix products.

Both sides start from the same weights and do the same work: same tokens of fixed lengths, same
batch, epochs and precision. Our step and the peer's alternate, so that a drift of the machine hits
both alike. Without a peer our side and the limit are measured alone, and the row says why.
"""

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from overopt.base.datatypes import Prompts
from overopt.base.seeding import derive_seed, torch_generator
from overopt.bench.harness import (
    BenchError,
    Product,
    Row,
    clock,
    forward_products,
    make_row,
    product_runner,
    training_products,
)
from overopt.bench.models import write_lm, write_reward_model
from overopt.bench.peers import Peer
from overopt.bench.scoring import random_responses
from overopt.methods.ppo import PpoConfig, new_state, ppo_step
from overopt.nets.block import LlamaConfig
from overopt.nets.checkpoints import load_lm, load_reward_model
from overopt.nets.compute import Compute, Precision
from overopt.nets.heads import ScalarHeadModel
from overopt.nets.layout import from_transformers_state
from overopt.nets.llama import Llama
from overopt.nets.sampling import sample
from overopt.nets.sources import ladder_dir
from overopt.rewards.kinds.reward_model import RewardModelScorer
from overopt.rewards.labels.pairs import label_pairs
from overopt.rewards.scorer import mean_std, raw_scores
from overopt.rewards.training.pairs import TrainingPairs
from overopt.rewards.training.train import bradley_terry_loss, train_reward_model
from overopt.worlds.load import load_world
from overopt.worlds.world import WorldConfig

REWARD_NAMES = ("reward_step_vs_trl", "reward_step_vs_products")
PPO_NAMES = ("ppo_step_vs_trl", "ppo_step_vs_products")
DEFAULT_PPO_NAMES = ("ppo_defaults_vs_trl", "ppo_fast_vs_trl")
# As many samples as the peer takes, to the peer's score: the defaults take gentler steps on purpose,
# because gold peaks within the first nats.
FAST_PPO: dict[str, Any] = {"lr": 3e-3, "warmup_steps": 0}
TARGETS = {
    "reward_step_vs_trl": 1.5,
    "ppo_step_vs_trl": 1.5,
    "ppo_defaults_vs_trl": 3.0,
    "ppo_fast_vs_trl": 3.0,
}
GPU_PPO_TARGET = 3.0
WARM_STEPS = 2  # untimed: allocators, thread pools and lazy imports settle in them
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LOSS_AGREES = {"fp32": 1e-4, "bf16": 2e-2}  # largest difference of the sides' first losses, nats
NO_END = -1  # a token id that is never sampled: no response ends early


class PeerSource(NamedTuple):
    """The interpreter of a peer's environment, or None and why there is none.

    site: directory of packages that the interpreter does not have by itself, or None.
    """

    python: Path | None
    reason: str = ""
    site: Path | None = None


class Opponent:
    """The peer's side of a comparison: its seconds a step, or why there are none.

    A peer that fails leaves its reason here and our side running.
    """

    def __init__(self, source: PeerSource, job: dict[str, Any], *, device: str) -> None:
        self.reason = source.reason
        self.seconds: list[float] = []
        self.first: dict[str, Any] = {}
        self.done: dict[str, Any] = {}
        self._field = "cpu_s" if device == "cpu" else "wall_s"
        self._peer: Peer | None = None
        if source.python is not None:
            python = source.python
            if source.site is not None:
                job = job | {"site": str(source.site)}
            self._peer = self._attempt(lambda: Peer(python, job))
        self.versions = {} if self._peer is None else self._peer.versions

    def step(self) -> None:
        """One step of the peer, if it is there."""
        if self._peer is None:
            return
        got = self._attempt(self._peer.step)
        if got is not None:
            self.first = self.first or got
            self.seconds.append(got[self._field])

    def close(self) -> None:
        """End the peer after its last step."""
        if self._peer is not None:
            self.done = self._attempt(self._peer.finish) or {}
        if self._peer is not None:
            self._peer.close()

    @property
    def timed(self) -> list[float] | None:
        """Seconds of the steps behind the warm-up, or None if the run is not whole."""
        return None if self.reason else self.seconds[WARM_STEPS:]

    def _attempt(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except BenchError as error:
            self.reason = str(error)
            if self._peer is not None:
                self._peer.close()
            self._peer = None
            return None


def _timed(run: Callable[[], None], now: Callable[[], float]) -> float:
    start = now()
    run()
    return now() - start


# --- reward model ---------------------------------------------------------------------------------


def reward_rows(
    backbone: Llama,
    peer: PeerSource,
    *,
    n_pairs: int = 64,
    n_tokens: int = 64,
    repeats: int = 6,
    root_seed: int = 0,
    device: str = "cpu",
    precision: Precision = "fp32",
) -> list[Row]:
    """A training step of a reward model on ``n_pairs`` pairs of ``n_tokens`` tokens, AdamW.

    ``precision`` of the products, on both sides; weights are float32.

    Raises
    ------
    BenchError
        The peer's loss on the first batch is not ours: the sides do different work.
    """
    now, steps = clock(device), repeats + WARM_STEPS
    compute = Compute(precision=precision)
    model = ScalarHeadModel(backbone)
    model.init_head(torch_generator(root_seed, "head"))
    model = model.to(device)
    training = random_pairs(backbone.cfg.vocab_size, n_pairs * steps, n_tokens, root_seed=root_seed)
    whole, first, second = training.responses, training.first, training.second
    n_prompt = n_tokens // 4
    ids = whole.sequences().ids
    with torch.no_grad(), compute.autocast(torch.device(device)):
        length = torch.full((2 * n_pairs,), n_tokens, device=device)
        both = torch.cat([first[:n_pairs], second[:n_pairs]])
        scores = model.at_last_token(ids[both].to(device), length)
        first_loss = float(bradley_terry_loss(*scores.float().chunk(2)))

    products = product_runner(
        training_products(backbone.cfg, n_pairs * (2 * n_tokens - n_prompt), n_read=2 * n_pairs),
        torch_generator(root_seed, "products"),
        device=device,
        dtype=DTYPES[precision],
    )
    ours: list[float] = []
    bare: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        write_reward_model(model, Path(folder, "model"))
        pairs = {"chosen_ids": ids[first].tolist(), "rejected_ids": ids[second].tolist()}
        Path(folder, "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
        job = {
            "kind": "reward",
            "model": str(Path(folder, "model")),
            "tokenizer": str(ladder_dir() / "tokenizer"),
            "pairs": str(Path(folder, "pairs.json")),
            "batch": n_pairs,
            "steps": steps,
            "lr": 1e-4,
            "precision": precision,
            "threads": torch.get_num_threads(),
            "device": device,
            "out": str(Path(folder, "out")),
        }
        opponent = Opponent(peer, job, device=device)
        start = now()

        def turn(done: int, total: int) -> None:
            nonlocal start
            ours.append(now() - start)
            opponent.step()
            bare.append(_timed(products, now))
            start = now()

        train_reward_model(
            model,
            training,
            epochs=1,
            lr=1e-4,
            batch_prompts=n_pairs,
            weight_decay=0.0,
            seed=root_seed,
            validate=dict,
            progress=turn,
            compute=compute,
        )
        opponent.close()
    _check_loss(opponent, first_loss, LOSS_AGREES[precision])
    work = f"{n_pairs} pairs x {n_tokens} tokens, {n_prompt} of them the pair's prompt, {precision}"
    return [
        make_row(
            REWARD_NAMES[0],
            ours[WARM_STEPS:],
            opponent.timed,
            target=TARGETS[REWARD_NAMES[0]],
            reason=opponent.reason,
            note=f"{work}; reference: TRL RewardTrainer, same weights, pairs and precision",
            details={
                "first_loss": first_loss,
                "peer_first_loss": opponent.first.get("loss"),
                "peer_versions": opponent.versions,
            },
        ),
        make_row(
            REWARD_NAMES[1],
            ours[WARM_STEPS:],
            bare[WARM_STEPS:],
            against="limit",
            note="reference: the linear maps forward and backward alone, of each prompt once; "
            "ratio at most 1",
        ),
    ]


def random_pairs(
    vocab_size: int, n_pairs: int, n_tokens: int, *, root_seed: int = 0
) -> TrainingPairs:
    """``n_pairs`` prompts with a pair each; a quarter of the ``n_tokens`` of a row are the prompt's."""
    n_prompt = n_tokens // 4
    rows = random_responses(
        vocab_size, 2 * n_pairs, n_prompt, n_tokens - n_prompt, root_seed=root_seed
    )
    pair = torch.arange(len(rows)) // 2
    whole = replace(
        rows,
        # Both responses of a pair answer one prompt, as in any table of preferences.
        prompts=replace(rows.prompts, ids=rows.prompts.ids[2 * pair], prompt_id=pair),
        ids=torch.randint(
            2, vocab_size, rows.ids.shape, generator=torch_generator(root_seed, "ids")
        ),
        mask=torch.ones_like(rows.mask),
    )
    first, second = torch.arange(0, len(whole), 2), torch.arange(1, len(whole), 2)
    return TrainingPairs(whole, first, second, torch.ones(n_pairs))


def _check_loss(opponent: Opponent, ours: float, tolerance: float) -> None:
    theirs = opponent.first.get("loss")
    if theirs is not None and not math.isclose(ours, theirs, abs_tol=tolerance):
        raise BenchError(
            f"loss of the first batch is {ours:.6f} here and {theirs:.6f} with the peer: the two "
            "sides do different work, so their speeds cannot be compared"
        )


# --- PPO ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PpoTask:
    """What both sides optimise: a policy whose responses never end early, prompts, a proxy.

    policy: π_init; proxy: normalised under it; prompts, held: training and evaluation prompts of
    ``n_prompt_tokens`` tokens each; n_tokens: of every response; value: backbone of the value model,
    None: the one that the settings name.
    """

    policy: Callable[[], Llama]
    proxy: RewardModelScorer
    prompts: Prompts
    held: Prompts
    n_tokens: int
    value: Callable[[], Llama] | None = None

    def value_model(self, name: str) -> ScalarHeadModel:
        """A fresh value model, on backbone ``name`` where the task has none of its own."""
        return ScalarHeadModel(load_lm(name) if self.value is None else self.value())


def story_task(
    *,
    n_prompt_tokens: int = 16,
    n_tokens: int = 32,
    n_pair_prompts: int = 250,
    n_held: int = 200,
    root_seed: int = 0,
) -> PpoTask:
    """The embedded world with responses of fixed length, and a proxy trained on labels of gold."""
    world = load_world(WorldConfig())

    def policy() -> Llama:
        return endless(load_lm("ladder:policy-0.8m"))

    def prompts(split: str, n: int) -> Prompts:
        return cut_prompts(world.prompts(split, n), n_prompt_tokens)

    copies, seed = 4, derive_seed(root_seed, "proxy")
    gold, mean, std = load_reward_model("ladder:gold-3m")
    labelled = prompts("train", 2 * n_pair_prompts).select(slice(0, n_pair_prompts))
    responses = sample(policy(), labelled, n_tokens=n_tokens, seed=seed, copies=copies)
    pairs = label_pairs(
        responses,
        (raw_scores(gold, responses) - mean) / std,
        copies=copies,
        n_pairs=len(labelled) * copies * (copies - 1) // 2,
        rule="argmax",
        flip_rate=0.0,
        seed=seed,
    )
    model = ScalarHeadModel(load_lm("ladder:0.2m"))
    model.init_head(torch_generator(seed, "head"))
    train_reward_model(
        model,
        TrainingPairs(responses, pairs.chosen, pairs.rejected, torch.ones(len(pairs))),
        epochs=2,
        lr=3e-3,
        batch_prompts=4,
        weight_decay=0.01,
        seed=seed,
        validate=dict,
        progress=lambda done, total: None,
    )
    proxy = RewardModelScorer(model.eval(), *mean_std(raw_scores(model, responses)))
    held = prompts("eval", 400).select(slice(0, n_held))
    return PpoTask(policy, proxy, prompts("rl", 1200), held, n_tokens)


def endless(policy: Llama) -> Llama:
    """``policy`` with no end token: its end piece is a piece like any other."""
    policy.cfg = replace(policy.cfg, eos_token_id=NO_END)
    return policy


def cut_prompts(prompts: Prompts, n_tokens: int) -> Prompts:
    """The prompts with at least ``n_tokens`` tokens, cut to their first ``n_tokens``."""
    length = prompts.mask.sum(1)
    long = prompts.select(torch.nonzero(length >= n_tokens)[:, 0])
    start = long.ids.shape[1] - long.mask.sum(1)
    ids = long.ids.gather(1, start[:, None] + torch.arange(n_tokens))
    return Prompts(ids, torch.ones_like(ids, dtype=torch.bool), long.prompt_id)


def same_algorithm(n_steps: int, batch: int) -> PpoConfig:
    """The settings that both sides share in the comparison of the same algorithm."""
    return PpoConfig(
        steps=n_steps,
        batch=batch,
        ppo_epochs=4,
        minibatches=1,
        lr=1e-5,
        value_lr=1e-5,
        kl_coef=0.05,
        value_backbone="ladder:policy-0.8m",
        max_update_kl_token_nats=1e9,
    )


def ppo_rows(
    task: PpoTask,
    peer: PeerSource,
    *,
    batch: int = 64,
    repeats: int = 5,
    root_seed: int = 0,
    device: str = "cpu",
    precision: Precision = "fp32",
) -> list[Row]:
    """A PPO step with the peer's algorithm: 4 epochs, separate value model, KL penalty.

    ``precision`` of the products in training, on both sides.
    """
    steps = repeats + WARM_STEPS
    cfg = same_algorithm(steps, batch)
    value = task.value_model(cfg.value_backbone)
    shapes = (task.policy().cfg, value.backbone.cfg, task.proxy.model.backbone.cfg)
    products = product_runner(
        ppo_products(*shapes, cfg, n_prompt=task.prompts.ids.shape[1], n_tokens=task.n_tokens),
        torch_generator(root_seed, "products"),
        device=device,
        dtype=DTYPES[precision],
    )
    run = ppo_run(
        task,
        cfg,
        peer,
        peer_lr=cfg.lr,
        between=products,
        seed=root_seed,
        device=device,
        precision=precision,
    )
    work = (
        f"{batch} responses x ({task.prompts.ids.shape[1]} + {task.n_tokens}) tokens, 4 epochs, "
        f"1 minibatch, separate value model, KL penalty, {precision}"
    )
    return [
        make_row(
            PPO_NAMES[0],
            run.ours,
            run.opponent.timed,
            target=TARGETS[PPO_NAMES[0]] if device == "cpu" else GPU_PPO_TARGET,
            reason=run.opponent.reason,
            note=f"{work}; reference: TRL PPOTrainer, same weights, proxy, prompts and precision",
            details={"peer_versions": run.opponent.versions, "peer_log": run.opponent.done},
        ),
        make_row(
            PPO_NAMES[1],
            run.ours,
            run.between,
            against="limit",
            note="reference: the linear maps of rollout, scoring and updates alone; ratio at most 1",
        ),
    ]


@dataclass(frozen=True)
class PpoRun:
    """One run of both sides: seconds a step behind the warm-up, and what they trained."""

    ours: list[float]
    between: list[float]
    opponent: Opponent
    policy: Llama
    peer_policy: Llama | None


def ppo_defaults_rows(
    task: PpoTask,
    peer: PeerSource,
    *,
    batch: int = 64,
    n_steps: int = 20,
    peer_lrs: Sequence[float] = (1e-3, 2e-3),
    n_seeds: int = 3,
    root_seed: int = 0,
    device: str = "cpu",
) -> list[Row]:
    """A PPO step of this project's defaults, and of its fast settings, against the peer's.

    And what each step buys: all sides take the same number of samples from the same start against
    the same proxy; then their policies answer the same held-out prompts, ours of ``n_seeds``
    training seeds. The peer keeps its own algorithm (4 epochs, a value model of the policy's size)
    and takes the best of ``peer_lrs``, because its default rate is meant for large models; its
    steps at the first of them alternate with our defaults', at the second with our fast settings'.
    """
    init = float(held_scores(task.policy(), task, seed=root_seed).mean())
    settings = [
        replace(cfg, steps=n_steps, batch=batch)
        for cfg in (PpoConfig(), replace(PpoConfig(), **FAST_PPO))
    ]
    ours: list[tuple[PpoRun, Tensor]] = []
    peers: list[tuple[float, PpoRun, Tensor]] = []
    for cfg, lr in zip(settings, peer_lrs, strict=True):
        scores = []
        for i in range(n_seeds):
            run = ppo_run(
                task,
                cfg,
                peer if i == 0 else PeerSource(None),
                peer_lr=lr,
                seed=derive_seed(root_seed, "train", i),
                device=device,
                peer_epochs=4,
                peer_minibatches=1,
                peer_value="ladder:policy-0.8m",
            )
            scores.append(held_scores(run.policy, task, seed=root_seed))
            if i == 0:
                timed = run
        ours.append((timed, torch.stack(scores)))
        if timed.peer_policy is not None:
            peers.append((lr, timed, held_scores(timed.peer_policy, task, seed=root_seed)))
    peer_details = [
        {
            "lr": lr,
            "proxy_score": float(theirs.mean()),
            "proxy_score_stderr": _stderr(theirs),
            "step_s": run.opponent.seconds,
            "log": run.opponent.done.get("log"),
        }
        for lr, run, theirs in peers
    ]
    rows = []
    for name, (run, by_seed) in zip(DEFAULT_PPO_NAMES, ours, strict=True):
        score = by_seed.mean(0)
        details: dict[str, Any] = {
            "proxy_score_initial": init,
            "proxy_score": float(score.mean()),
            "proxy_score_stderr": _stderr(score),
            "proxy_score_of_seeds": by_seed.mean(1).tolist(),
            "n_samples": n_steps * batch,
            "peer_runs": peer_details,
        }
        note = (
            f"{n_steps} x {batch} samples; ours: proxy score {float(score.mean()):.3f} ± "
            f"{_stderr(score):.3f} (initial policy {init:.3f}; mean of {n_seeds} training seeds)"
        )
        no_worse = True
        if peers:
            lr, _, theirs = max(peers, key=lambda p: float(p[2].mean()))
            difference = score - theirs
            gap, stderr = float(difference.mean()), _stderr(difference)
            details |= {
                "score_difference": gap,
                "score_difference_stderr": stderr,
                "best_peer_lr": lr,
            }
            no_worse = gap + 1.96 * stderr >= 0
            note += (
                f"; TRL {float(theirs.mean()):.3f} ± {_stderr(theirs):.3f} at its best rate {lr:g}; "
                f"difference {gap:+.3f} ± {stderr:.3f}"
            )
        row = make_row(
            name,
            run.ours,
            run.opponent.timed,
            target=TARGETS[name],
            reason=run.opponent.reason,
            note=note,
            details=details,
        )
        if row["met"]:
            row["met"] = no_worse
        rows.append(row)
    return rows


def ppo_run(
    task: PpoTask,
    cfg: PpoConfig,
    peer: PeerSource,
    *,
    peer_lr: float,
    seed: int,
    device: str,
    between: Callable[[], None] = lambda: None,
    peer_epochs: int | None = None,
    peer_minibatches: int | None = None,
    peer_value: str | None = None,
    precision: Precision = "fp32",
) -> PpoRun:
    """``cfg.steps`` PPO steps of both sides in turn.

    The peer follows ``cfg`` except where its own settings are given.
    """
    now = clock(device)
    policy, ref_policy = task.policy().to(device), task.policy().to(device)
    state = new_state(policy, task.value_model(cfg.value_backbone).to(device), cfg)
    compute = Compute(precision=precision)
    proxy, n_tokens = task.proxy, task.n_tokens
    proxy.model.to(device)
    ours: list[float] = []
    others: list[float] = []
    peer_policy = None

    def step() -> None:
        stats = ppo_step(
            state,
            ref_policy,
            proxy,
            task.prompts,
            cfg,
            n_tokens=n_tokens,
            seed=seed,
            compute=compute,
        )
        if stats["train_response_tokens"] != n_tokens:
            raise BenchError(
                f"responses have {stats['train_response_tokens']} tokens on average, not {n_tokens}"
            )

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        write_lm(task.policy(), home / "policy")
        value = task.value_model(peer_value or cfg.value_backbone)
        write_reward_model(value, home / "value")
        write_reward_model(proxy.model, home / "reward", scale=1 / proxy.std)
        prompts = task.prompts.ids.tolist()
        (home / "prompts.json").write_text(json.dumps(prompts), encoding="utf-8")
        job = {
            "kind": "ppo",
            **{name: str(home / name) for name in ("policy", "value", "reward", "out")},
            "reward_bias": (proxy.model.head.bias.item() - proxy.mean) / proxy.std,
            "tokenizer": str(ladder_dir() / "tokenizer"),
            "prompts": str(home / "prompts.json"),
            "batch": cfg.batch,
            "n_tokens": n_tokens,
            "steps": cfg.steps,
            "epochs": peer_epochs or cfg.ppo_epochs,
            "minibatches": peer_minibatches or cfg.minibatches,
            "lr": peer_lr,
            "kl_coef": cfg.kl_coef,
            "precision": precision,
            "threads": torch.get_num_threads(),
            "device": device,
            "seed": seed,
        }
        opponent = Opponent(peer, job, device=device)
        for _ in range(cfg.steps):
            ours.append(_timed(step, now))
            others.append(_timed(between, now))
            opponent.step()
        opponent.close()
        if "policy" in opponent.done:
            # Taken out of what is reported: the folder is gone in a moment.
            trained = load_file(Path(opponent.done.pop("policy")) / "model.safetensors")
            peer_policy = from_transformers_state(trained, policy.cfg).eval()
    return PpoRun(
        ours[WARM_STEPS:],
        others[WARM_STEPS:],
        opponent,
        policy.cpu(),
        peer_policy,
    )


def ppo_products(
    policy: LlamaConfig,
    value: LlamaConfig,
    proxy: LlamaConfig,
    cfg: PpoConfig,
    *,
    n_prompt: int,
    n_tokens: int,
) -> list[Product]:
    """Linear maps of one PPO step: rollout, scores, values, reference, and the updates."""
    whole, read = cfg.batch * (n_prompt + n_tokens), cfg.batch * n_tokens
    out = forward_products(policy, cfg.batch * n_prompt, n_read=cfg.batch, n_logits=cfg.batch)
    # The last sampled token needs no forward pass; its logits come from the one before.
    for p in forward_products(policy, cfg.batch, n_logits=cfg.batch):
        out.append(p._replace(times=p.times * (n_tokens - 1)))
    out += forward_products(proxy, whole, n_read=cfg.batch)
    out += forward_products(value, whole, n_read=read)
    if cfg.kl_coef > 0:  # the reference's log-probs; the old policy's come with the samples
        out += forward_products(policy, whole, n_read=read, n_logits=read)
    whole, read = whole // cfg.minibatches, read // cfg.minibatches
    update = training_products(value, whole, n_read=read)
    update += training_products(policy, whole, n_read=read, n_logits=read)
    n_updates = cfg.ppo_epochs * cfg.minibatches
    return out + [p._replace(times=p.times * n_updates) for p in update]


def held_scores(policy: Llama, task: PpoTask, *, seed: int, copies: int = 2) -> Tensor:
    """Mean proxy score (P,) of ``copies`` responses to each held-out prompt, float64."""
    responses = sample(
        policy,
        task.held,
        n_tokens=task.n_tokens,
        seed=derive_seed(seed, "held"),
        copies=copies,
    )
    task.proxy.model.cpu()
    return task.proxy.score(responses).double().view(-1, copies).mean(1)


def _stderr(x: Tensor) -> float:
    """Standard error of the mean of ``x`` (P,), over prompts."""
    return float(x.std() / len(x) ** 0.5)
