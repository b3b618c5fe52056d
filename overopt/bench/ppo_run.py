"""PPO steps of both sides in turn: ours, and TRL's in its own process."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from overopt.bench.harness import BenchError, clock
from overopt.bench.models import write_lm, write_reward_model
from overopt.bench.opponent import WARM_STEPS, Opponent, PeerSource, timed
from overopt.bench.ppo_task import PpoTask
from overopt.methods import ppo
from overopt.methods.method import Problem
from overopt.nets.block import LlamaConfig
from overopt.nets.compute import Compute, Precision
from overopt.nets.layout import from_transformers_state
from overopt.nets.llama import Llama
from overopt.nets.sources import ladder_dir

PEER = "trl==1.12.0"  # the last release with PPO


class PeerSettings(NamedTuple):
    """Where the peer departs from our settings; None: it follows them."""

    lr: float
    epochs: int | None = None
    minibatches: int | None = None
    value_backbone: str | None = None


@dataclass(frozen=True)
class PpoRun:
    """One run of both sides: seconds a step behind the warm-up, and what they trained."""

    ours: list[float]
    between: list[float]
    opponent: Opponent
    policy: Llama
    peer_policy: Llama | None


def ppo_run(
    task: PpoTask,
    cfg: ppo.Settings,
    peer: PeerSource,
    peer_settings: PeerSettings,
    *,
    seed: int,
    device: str,
    between: Callable[[], None] = lambda: None,
    precision: Precision = "fp32",
) -> PpoRun:
    """``cfg.steps`` PPO steps of both sides, with ``between`` after each of ours, all timed."""
    now = clock(device)
    policy = task.policy().to(device)
    step = _our_step(task, cfg, policy, seed=seed, device=device, precision=precision)
    ours: list[float] = []
    others: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        job = _peer_job(Path(folder), task, cfg, peer_settings)
        job |= {"seed": seed, "device": device, "precision": precision}
        opponent = Opponent(peer, job, device=device)
        for _ in range(cfg.steps):
            ours.append(timed(step, now))
            others.append(timed(between, now))
            opponent.step()
        opponent.close()
        peer_policy = _peer_policy(opponent, policy.cfg)
    return PpoRun(ours[WARM_STEPS:], others[WARM_STEPS:], opponent, policy.cpu(), peer_policy)


def _our_step(
    task: PpoTask, cfg: ppo.Settings, policy: Llama, *, seed: int, device: str, precision: Precision
) -> Callable[[], None]:
    """A function that takes one PPO step with ``policy``, in place."""
    state = ppo.new_state(policy, task.value_model(cfg.value_backbone).to(device), cfg)
    task.proxy.model.to(device)
    n_tokens = task.n_tokens
    problem = Problem(
        ref_policy=task.policy().to(device),
        proxy=task.proxy,
        prompts=task.prompts,
        n_tokens=n_tokens,
        seed=seed,
        compute=Compute(precision=precision),
    )

    def step() -> None:
        stats = ppo.step(state, cfg, problem)
        if stats["train_response_tokens"] != n_tokens:
            raise BenchError(
                f"responses have {stats['train_response_tokens']} tokens on average, not {n_tokens}"
            )

    return step


def _peer_job(
    home: Path, task: PpoTask, cfg: ppo.Settings, peer_settings: PeerSettings
) -> dict[str, Any]:
    """What `peer_worker` is told; its models and prompts are written to ``home``."""
    proxy = task.proxy
    write_lm(task.policy(), home / "policy")
    value = task.value_model(peer_settings.value_backbone or cfg.value_backbone)
    write_reward_model(value, home / "value")
    write_reward_model(proxy.model, home / "reward", scale=1 / proxy.std)
    prompts = json.dumps(task.prompts.ids.tolist())
    (home / "prompts.json").write_text(prompts, encoding="utf-8")
    return {
        "kind": "ppo",
        **{name: str(home / name) for name in ("policy", "value", "reward", "out")},
        "reward_bias": (proxy.model.head.bias.item() - proxy.mean) / proxy.std,
        "tokenizer": str(ladder_dir() / "tokenizer"),
        "prompts": str(home / "prompts.json"),
        "batch": cfg.batch,
        "n_tokens": task.n_tokens,
        "steps": cfg.steps,
        "epochs": peer_settings.epochs or cfg.ppo_epochs,
        "minibatches": peer_settings.minibatches or cfg.minibatches,
        "lr": peer_settings.lr,
        "kl_coef": cfg.kl_coef,
        "threads": torch.get_num_threads(),
    }


def _peer_policy(opponent: Opponent, cfg: LlamaConfig) -> Llama | None:
    """What the peer trained, or None; its place is taken out of what is reported."""
    if "policy" not in opponent.done:
        return None
    # The folder is gone in a moment.
    trained = load_file(Path(opponent.done.pop("policy")) / "model.safetensors")
    return from_transformers_state(trained, cfg).eval()
