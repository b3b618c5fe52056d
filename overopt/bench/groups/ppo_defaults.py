"""Speed of a PPO step with this project's own settings, and what the steps buy, against TRL.

All sides take the same number of samples from the same start against the same proxy; then their
policies answer the same held-out prompts, ours of several training seeds. The peer keeps its own
algorithm (4 epochs, a value model of the policy's size) and takes the best of several learning rates,
because its default rate is meant for large models.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from overopt.base.seeding import derive_seed
from overopt.bench.harness import Row, make_row
from overopt.bench.opponent import PeerSource
from overopt.bench.ppo_run import PEER, PeerSettings, PpoRun, ppo_run
from overopt.bench.ppo_task import PpoTask, story_task
from overopt.bench.setting import Group, Setting
from overopt.methods.ppo import Settings
from overopt.nets.llama import Llama
from overopt.nets.sampling import sample

NAMES = ("ppo_defaults_vs_trl", "ppo_fast_vs_trl")
TARGET = 3.0
# As many samples as the peer takes, to the peer's score: the defaults take gentler steps on purpose,
# because gold peaks within the first nats.
FAST: dict[str, Any] = {"lr": 3e-3, "warmup_steps": 0}


def group(setting: Setting) -> Group:
    """The embedded world's policy and proxy, at every size."""
    return Group(
        NAMES,
        lambda: ppo_defaults_rows(
            story_task(root_seed=setting.root_seed), setting.peer(PEER), **setting.where
        ),
    )


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

    The peer's steps at the first of ``peer_lrs`` alternate with our defaults', at the second with
    our fast settings'. Policies of ``n_seeds`` training seeds are scored, the first of them is timed.
    """
    init = float(held_scores(task.policy(), task, seed=root_seed).mean())
    settings = [
        replace(cfg, steps=n_steps, batch=batch)
        for cfg in (Settings(), replace(Settings(), **FAST))
    ]
    matches = [
        _match(task, cfg, peer, lr, n_seeds=n_seeds, root_seed=root_seed, device=device)
        for cfg, lr in zip(settings, peer_lrs, strict=True)
    ]
    common = {
        "proxy_score_initial": init,
        "n_samples": n_steps * batch,
        "peer_runs": [_peer_details(m) for m in matches if m.peer_scores is not None],
    }
    work = f"{n_steps} x {batch} samples"
    return [
        _row(name, match, _best_peer(matches), common, work)
        for name, match in zip(NAMES, matches, strict=True)
    ]


class _Match(NamedTuple):
    """Our settings against the peer at one learning rate."""

    run: PpoRun
    """The timed one: of the first training seed."""
    scores_SP: Tensor
    """(S, P) proxy score of our policies by training seed and held-out prompt."""
    peer_lr: float
    peer_scores: Tensor | None
    """(P,) of the peer's policy, or None without a peer."""


def _match(
    task: PpoTask,
    cfg: Settings,
    peer: PeerSource,
    peer_lr: float,
    *,
    n_seeds: int,
    root_seed: int,
    device: str,
) -> _Match:
    theirs = PeerSettings(lr=peer_lr, epochs=4, minibatches=1, value_backbone="ladder:policy-0.8m")
    runs = [
        ppo_run(
            task,
            cfg,
            peer if i == 0 else PeerSource(None),
            theirs,
            seed=derive_seed(root_seed, "train", i),
            device=device,
        )
        for i in range(n_seeds)
    ]
    scores = torch.stack([held_scores(run.policy, task, seed=root_seed) for run in runs])
    trained = runs[0].peer_policy
    peer_scores = None if trained is None else held_scores(trained, task, seed=root_seed)
    return _Match(runs[0], scores, peer_lr, peer_scores)


def _best_peer(matches: Sequence[_Match]) -> _Match | None:
    """The match whose peer scored highest; None where there was no peer."""
    played = [match for match in matches if match.peer_scores is not None]
    return max(played, key=_peer_mean, default=None)


def _peer_mean(match: _Match) -> float:
    return float("nan") if match.peer_scores is None else float(match.peer_scores.mean())


def _peer_details(match: _Match) -> dict[str, Any]:
    assert match.peer_scores is not None
    return {
        "lr": match.peer_lr,
        "proxy_score": _peer_mean(match),
        "proxy_score_stderr": _stderr(match.peer_scores),
        "step_s": match.run.opponent.seconds,
        "log": match.run.opponent.done.get("log"),
    }


def _row(name: str, match: _Match, best: _Match | None, common: dict[str, Any], work: str) -> Row:
    """Seconds of a step, met only where our score is not significantly below the best peer's."""
    score, n_seeds = match.scores_SP.mean(0), len(match.scores_SP)
    details: dict[str, Any] = common | {
        "proxy_score": float(score.mean()),
        "proxy_score_stderr": _stderr(score),
        "proxy_score_of_seeds": match.scores_SP.mean(1).tolist(),
    }
    note = (
        f"{work}; ours: proxy score {float(score.mean()):.3f} ± {_stderr(score):.3f} (initial "
        f"policy {common['proxy_score_initial']:.3f}; mean of {n_seeds} training seeds)"
    )
    no_worse = True
    if best is not None and best.peer_scores is not None:
        difference = score - best.peer_scores
        gap, stderr = float(difference.mean()), _stderr(difference)
        details |= {
            "score_difference": gap,
            "score_difference_stderr": stderr,
            "best_peer_lr": best.peer_lr,
        }
        no_worse = gap + 1.96 * stderr >= 0
        note += (
            f"; TRL {_peer_mean(best):.3f} ± {_stderr(best.peer_scores):.3f} at its best rate "
            f"{best.peer_lr:g}; difference {gap:+.3f} ± {stderr:.3f}"
        )
    row = make_row(
        name,
        match.run.ours,
        match.run.opponent.timed,
        target=TARGET,
        reason=match.run.opponent.reason,
        note=note,
        details=details,
    )
    if row["met"]:
        row["met"] = no_worse
    return row


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
