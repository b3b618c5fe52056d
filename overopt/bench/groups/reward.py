"""Speed of a reward model's training step, against TRL and against bare matrix products.

Both sides start from the same weights and do the same work: same tokens of fixed lengths, same
batch and precision. Our step and the peer's alternate, so that a drift of the machine hits both
alike. Without a peer our side and the limit are measured alone, and the row says why.
"""

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from overopt.base.seeding import torch_generator
from overopt.bench.harness import (
    BenchError,
    Row,
    clock,
    make_row,
    product_runner,
    training_products,
)
from overopt.bench.models import ladder, write_reward_model
from overopt.bench.opponent import WARM_STEPS, Opponent, PeerSource, timed
from overopt.bench.random_inputs import random_lm, random_pairs
from overopt.bench.setting import Group, Setting
from overopt.bench.training import DTYPES, LR, train_once
from overopt.nets.compute import Compute, Precision
from overopt.nets.heads import ScalarHeadModel
from overopt.nets.llama import Llama
from overopt.nets.sources import ladder_dir
from overopt.rewards.training.pairs import TrainingPairs
from overopt.rewards.training.train import bradley_terry_loss

NAMES = ("reward_step_vs_trl", "reward_step_vs_products")
PEER = "trl==1.16.0"
TARGET = 1.5
LOSS_AGREES = {"fp32": 1e-4, "bf16": 2e-2}  # largest difference of the sides' first losses, nats


def group(setting: Setting) -> Group:
    """The ladder's 0.8M backbone, or one at the shape of a checkpoint."""

    def measure() -> list[Row]:
        sizes, peer = setting.sizes, setting.peer(PEER)
        if sizes is None:
            return reward_rows(ladder("0.8m"), peer, **setting.where)
        return reward_rows(
            random_lm(sizes.model, seed=setting.root_seed),
            peer,
            n_pairs=sizes.n_pairs,
            n_tokens=sizes.n_tokens,
            precision=sizes.precision,
            **setting.where,
        )

    return Group(NAMES, measure)


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
    steps, n_prompt = repeats + WARM_STEPS, n_tokens // 4
    compute = Compute(precision=precision)
    model = ScalarHeadModel(backbone)
    model.init_head(torch_generator(root_seed, "head"))
    model = model.to(device)
    pairs = random_pairs(backbone.cfg.vocab_size, n_pairs * steps, n_tokens, root_seed=root_seed)
    first_loss = _first_loss(model, pairs, n_pairs, compute, device)
    products = product_runner(
        training_products(backbone.cfg, n_pairs * (2 * n_tokens - n_prompt), n_read=2 * n_pairs),
        torch_generator(root_seed, "products"),
        device=device,
        dtype=DTYPES[precision],
    )
    run = _in_turn(
        model,
        pairs,
        peer,
        products,
        batch=n_pairs,
        seed=root_seed,
        device=device,
        compute=compute,
    )
    _check_loss(run.opponent, first_loss, LOSS_AGREES[precision])
    work = f"{n_pairs} pairs x {n_tokens} tokens, {n_prompt} of them the pair's prompt, {precision}"
    return [_vs_trl(run, first_loss, work), _vs_products(run)]


class _Run(NamedTuple):
    """Seconds of each step of ours and of the bare products, warm-up included, and the peer's."""

    ours: list[float]
    bare: list[float]
    opponent: Opponent


def _vs_trl(run: _Run, first_loss: float, work: str) -> Row:
    return make_row(
        NAMES[0],
        run.ours[WARM_STEPS:],
        run.opponent.timed,
        target=TARGET,
        reason=run.opponent.reason,
        note=f"{work}; reference: TRL RewardTrainer, same weights, pairs and precision",
        details={
            "first_loss": first_loss,
            "peer_first_loss": run.opponent.first.get("loss"),
            "peer_versions": run.opponent.versions,
        },
    )


def _vs_products(run: _Run) -> Row:
    return make_row(
        NAMES[1],
        run.ours[WARM_STEPS:],
        run.bare[WARM_STEPS:],
        against="limit",
        note="reference: the linear maps forward and backward alone, of each prompt once; "
        "ratio at most 1",
    )


def _first_loss(
    model: ScalarHeadModel, pairs: TrainingPairs, batch: int, compute: Compute, device: str
) -> float:
    """Mean loss of the first ``batch`` pairs, nats, before any step."""
    ids = pairs.responses.sequences().ids
    both = torch.cat([pairs.first[:batch], pairs.second[:batch]])
    length = torch.full((2 * batch,), ids.shape[1], device=device)
    with torch.no_grad(), compute.autocast(torch.device(device)):
        scores = model.at_last_token(ids[both].to(device), length)
        return float(bradley_terry_loss(*scores.float().chunk(2)))


def _in_turn(
    model: ScalarHeadModel,
    pairs: TrainingPairs,
    peer: PeerSource,
    products: Callable[[], None],
    *,
    batch: int,
    seed: int,
    device: str,
    compute: Compute,
) -> _Run:
    """Train on both sides, a step of ours, one of the peer's and the bare products in turn."""
    now = clock(device)
    ours: list[float] = []
    bare: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        job = _peer_job(Path(folder), model, pairs, batch=batch, precision=compute.precision)
        opponent = Opponent(peer, job | {"device": device}, device=device)
        start = now()

        def turn(done: int, total: int) -> None:
            nonlocal start
            ours.append(now() - start)
            opponent.step()
            bare.append(timed(products, now))
            start = now()

        train_once(model, pairs, batch=batch, seed=seed, progress=turn, compute=compute)
        opponent.close()
    return _Run(ours, bare, opponent)


def _peer_job(
    home: Path, model: ScalarHeadModel, pairs: TrainingPairs, *, batch: int, precision: str
) -> dict[str, Any]:
    """What `peer_worker` is told; its model and its pairs are written to ``home``."""
    write_reward_model(model, home / "model")
    ids = pairs.responses.sequences().ids
    lists = {"chosen_ids": ids[pairs.first].tolist(), "rejected_ids": ids[pairs.second].tolist()}
    (home / "pairs.json").write_text(json.dumps(lists), encoding="utf-8")
    return {
        "kind": "reward",
        "model": str(home / "model"),
        "tokenizer": str(ladder_dir() / "tokenizer"),
        "pairs": str(home / "pairs.json"),
        "batch": batch,
        "steps": len(pairs.first) // batch,
        "lr": LR,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "out": str(home / "out"),
    }


def _check_loss(opponent: Opponent, ours: float, tolerance: float) -> None:
    theirs = opponent.first.get("loss")
    if theirs is not None and not math.isclose(ours, theirs, abs_tol=tolerance):
        raise BenchError(
            f"loss of the first batch is {ours:.6f} here and {theirs:.6f} with the peer: the two "
            "sides do different work, so their speeds cannot be compared"
        )
