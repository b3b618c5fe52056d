"""Speed of a step of DPO, IPO, GRPO and RLOO against TRL's, and whether the losses are the same.

Policy and reference differ a little, as in the middle of a run: where they are the same, margins are 0
and ratios are 1, and any two implementations agree. Before anything is timed both sides compute the
same loss of the same batch. For GRPO, whose responses are then those of the reference, with ratios that
are clipped and a KL penalty, and for RLOO that is loss or gradient of one optimizer step over a given
batch; for DPO and IPO the loss of the first step.
"""

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from overopt.base.datatypes import PreferenceSet, Prompts, Responses
from overopt.base.seeding import derive_seed, torch_generator
from overopt.bench.harness import BenchError, Row, clock, make_row
from overopt.bench.method_run import comparisons
from overopt.bench.models import write_lm, write_reward_model
from overopt.bench.opponent import WARM_STEPS, Opponent, PeerSource, timed
from overopt.bench.ppo_task import PpoTask, story_task
from overopt.bench.setting import Group, Setting
from overopt.methods import dpo, grpo, policy_gradient, rloo
from overopt.methods.method import Problem
from overopt.nets.compute import Compute
from overopt.nets.llama import Llama
from overopt.nets.sampling import sample
from overopt.nets.sources import ladder_dir

NAMES = tuple(f"{kind}_step_vs_trl" for kind in ("dpo", "ipo", "grpo", "rloo"))
PEER = "trl==1.16.0"
TARGET = 1.5
AGREES = {"rel_tol": 1e-5, "abs_tol": 1e-6}
"""Largest difference of two losses, or of two gradients' norms."""

N_PAIRS, N_RESPONSES, GROUP = 64, 128, 8
BETA, KL_COEF, LR = 0.1, 0.05, 1e-5
NOISE = 0.05
"""By how much of its standard deviation each weight of the policy differs from the reference's."""


def group(setting: Setting) -> Group | None:
    """The ladder's models, on the CPU only."""
    if setting.device != "cpu":
        return None

    def measure() -> Sequence[Row]:
        task = story_task(root_seed=setting.root_seed)
        return peer_rows(task, setting.peer(PEER), root_seed=setting.root_seed)

    return Group(NAMES, measure)


def peer_rows(
    task: PpoTask,
    peer: PeerSource,
    *,
    n_pairs: int = N_PAIRS,
    n_responses: int = N_RESPONSES,
    repeats: int = 5,
    root_seed: int = 0,
) -> list[Row]:
    """A row a method.

    Raises
    ------
    BenchError
        The peer's loss or gradient on the given batch is not ours: the sides do different work.
    """
    steps = repeats + WARM_STEPS
    problem = _problem(task, root_seed)
    losses: dict[str, tuple[Any, str]] = {"dpo": ("dpo", "sigmoid"), "ipo": ("ipo_mean", "ipo")}
    rows = []
    for name, (ours, theirs) in losses.items():
        settings = dpo.Settings(
            loss=ours, beta=BETA, batch=n_pairs, steps=steps, warmup_steps=0, lr=LR
        )
        rows.append(_pair_row(name, theirs, task, settings, problem, peer))
    same: dict[str, Any] = {
        "batch": n_responses,
        "group": GROUP,
        "minibatches": 1,
        "kl_coef": KL_COEF,
    }
    same |= {"steps": steps, "warmup_steps": 0, "lr": LR, "max_update_kl_token_nats": 1e9}
    # What TRL does unless it is told otherwise.
    for name, method, kl_in in (("grpo", grpo, "weighted_k3_loss"), ("rloo", rloo, "k1_reward")):
        settings = method.Settings(**same, kl_in=kl_in)
        rows.append(_group_row(name, method, settings, task, problem, peer))
    return rows


def moved(policy: Llama, seed: int) -> Llama:
    """``policy`` with noise on its weights, in place: the one that is trained."""
    generator = torch_generator(seed, "moved")
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.dim() > 1:
                noise = torch.randn(weight.shape, generator=generator)
                weight.add_(noise * (NOISE * weight.std()))
    return policy


def _problem(task: PpoTask, seed: int) -> Problem:
    return Problem(
        ref_policy=task.policy(),
        proxy=task.proxy,
        prompts=task.prompts,
        n_tokens=task.n_tokens,
        seed=seed,
        compute=Compute(),
    )


# --- pairs ----------------------------------------------------------------------------------------


def _pair_row(
    name: str,
    loss: str,
    task: PpoTask,
    settings: dpo.Settings,
    problem: Problem,
    peer: PeerSource,
) -> Row:
    """Steps of both sides on the same pairs in the same order; ``loss``: the peer's name for it."""
    pairs = comparisons(task, n=settings.steps * settings.batch, seed=problem.seed)
    policy = moved(task.policy(), problem.seed)
    state = dpo.start(policy, settings, replace(problem, preferences=lambda: pairs))
    logged: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        job = _models(Path(folder), policy, task, problem.seed)
        order = torch.cat(
            [
                dpo.pairs_of_step(len(pairs), batch=settings.batch, seed=problem.seed, step=k)
                for k in range(settings.steps)
            ]
        )
        job |= {"kind": "pairs", "loss": loss, "beta": settings.beta, "batch": settings.batch}
        job |= {"steps": settings.steps, "lr": settings.lr}
        job["pairs"] = _written(Path(folder) / "pairs.json", _token_lists(pairs, order))
        ours, opponent = _in_turn(
            lambda: logged.append(dpo.step(state, settings, problem)), settings.steps, peer, job
        )
    compared = {"loss": (logged[0]["loss"], opponent.first.get("loss"))}
    work = f"{settings.batch} pairs x 2 x {_lengths(task)} tokens"
    return _row(name, ours, opponent, compared, f"{work}; reference: TRL DPOTrainer")


def _token_lists(pairs: PreferenceSet, order: Tensor) -> dict[str, list[list[int]]]:
    """The pairs in ``order`` as DPOTrainer reads them; all prompts and responses have one length."""
    chosen, rejected = pairs.chosen[order], pairs.rejected[order]
    return {
        "prompt_ids": pairs.responses.prompts.ids[chosen].tolist(),
        "chosen_ids": pairs.responses.ids[chosen].tolist(),
        "rejected_ids": pairs.responses.ids[rejected].tolist(),
    }


# --- groups ---------------------------------------------------------------------------------------


def _group_row(
    name: str, method: Any, settings: Any, task: PpoTask, problem: Problem, peer: PeerSource
) -> Row:
    """Steps of both sides from the same policy, and a step's loss on a batch that is given."""
    policy = moved(task.policy(), problem.seed)
    state = method.start(policy, settings, problem)
    batch, draw = _given(name, policy, task, settings, problem)
    ours_given = _given_batch(name, state, batch, draw, settings, problem, method.how(settings))
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        job = _models(home, policy, task, problem.seed)
        given = {
            "prompts": draw.repeat_interleave(GROUP).tolist(),
            "completions": batch.ids.tolist(),
            "rewards": task.proxy.score(batch).tolist(),
        }
        proxy = task.proxy
        write_reward_model(proxy.model, home / "reward", scale=1 / proxy.std)
        job |= {"kind": "group", "method": name, "batch": settings.batch, "group": GROUP}
        job |= {"reward": str(home / "reward"), "n_tokens": task.n_tokens}
        job["reward_bias"] = (proxy.model.head.bias.item() - proxy.mean) / proxy.std
        job |= {"kl_coef": settings.kl_coef, "steps": settings.steps, "lr": settings.lr}
        job["given"] = _written(home / "given.json", given)
        job["prompts"] = _written(home / "prompts.json", task.prompts.ids.tolist())
        ours, opponent = _in_turn(
            partial(method.step, state, settings, problem), settings.steps, peer, job
        )
    compared = {key: (x, opponent.first.get(key)) for key, x in ours_given.items()}
    work = f"{settings.batch} responses x {_lengths(task)} tokens, groups of {GROUP}, KL penalty"
    peer_name = "GRPOTrainer" if name == "grpo" else "RLOOTrainer"
    return _row(name, ours, opponent, compared, f"{work}; reference: TRL {peer_name}")


def _given(
    name: str, policy: Llama, task: PpoTask, settings: Any, problem: Problem
) -> tuple[Responses, Tensor]:
    """A batch of responses, and which prompts they answer: of the reference in GRPO, else our own."""
    draw = torch.arange(settings.batch // GROUP)
    prompts: Prompts = task.prompts.select(draw)
    author = problem.ref_policy if name == "grpo" else policy
    seed = derive_seed(problem.seed, "given")
    return sample(author, prompts, n_tokens=task.n_tokens, seed=seed, copies=GROUP), draw


def _given_batch(
    name: str,
    state: Any,
    responses: Responses,
    draw: Tensor,
    settings: Any,
    problem: Problem,
    how: policy_gradient.How,
) -> dict[str, float]:
    """What is compared: the norm of the gradient of one optimizer step, and GRPO's loss.

    RLOO's losses are not alike: ours is that of log π, the peer's of a ratio that is 1. Their gradients
    are. GRPO's ratios are to the reference, which wrote the responses.
    """
    batch = policy_gradient.judged(state, responses, draw, settings, problem, how)
    if name == "grpo":
        batch = batch._replace(old_logp=batch.ref_logp)
    rows = torch.arange(settings.batch)
    update = policy_gradient.gradient(
        state, batch, rows, settings, problem, how, with_entropy=False
    )
    norms = [p.grad.norm() for p in state.policy.parameters() if p.grad is not None]
    state.policy.zero_grad()
    norm = {"gradient_norm": float(torch.linalg.vector_norm(torch.stack(norms)))}
    if name == "grpo":
        return norm | {"loss": update.loss, "clip_fraction": update.clip_fraction}
    return norm


# --- both -----------------------------------------------------------------------------------------


def _models(home: Path, policy: Llama, task: PpoTask, seed: int) -> dict[str, Any]:
    """Both policies in ``home``, and what every job says."""
    write_lm(policy, home / "policy")
    write_lm(task.policy(), home / "ref")
    paths = {name: str(home / name) for name in ("policy", "ref", "out")}
    return paths | {
        "tokenizer": str(ladder_dir() / "tokenizer"),
        "threads": torch.get_num_threads(),
        "device": "cpu",
        "seed": seed,
    }


def _written(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def _lengths(task: PpoTask) -> str:
    return f"({task.prompts.ids.shape[1]} + {task.n_tokens})"


def _in_turn(
    step: Callable[[], Any], n_steps: int, peer: PeerSource, job: dict[str, Any]
) -> tuple[list[float], Opponent]:
    """CPU seconds of ``n_steps`` steps of ours, and the peer behind its own, one after the other."""
    now = clock("cpu")
    opponent = Opponent(peer, job, device="cpu")
    ours = []
    for _ in range(n_steps):
        ours.append(timed(step, now))
        opponent.step()
    opponent.close()
    return ours, opponent


def _row(
    name: str,
    ours: list[float],
    opponent: Opponent,
    compared: dict[str, tuple[float, float | None]],
    note: str,
) -> Row:
    """The row, with both sides' losses.

    Raises
    ------
    BenchError
        They differ by more than `AGREES`.
    """
    for what, (x, theirs) in compared.items():
        if theirs is not None and not math.isclose(x, theirs, **AGREES):
            raise BenchError(
                f"{name}: {what} of the same batch is {x:.8g} here and {theirs:.8g} with the peer: the"
                " two sides do different work, so their speeds cannot be compared"
            )
    sides: dict[str, Any] = {
        what: {"ours": x, "peer": theirs} for what, (x, theirs) in compared.items()
    }
    return make_row(
        f"{name}_step_vs_trl",
        ours[WARM_STEPS:],
        opponent.timed,
        target=TARGET,
        reason=opponent.reason,
        note=f"{note}, same weights, proxy and precision",
        details=sides | {"peer_versions": opponent.versions},
    )
