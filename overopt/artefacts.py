"""Reading and writing what flows between stages: responses, scorers, rubric, the world."""

import functools
import importlib.util
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from overopt import checkpoints, store
from overopt.config import from_dict, require, to_dict
from overopt.datatypes import Prompts, Responses
from overopt.errors import ConfigError
from overopt.gold.pretrained import ClassifierScorer
from overopt.gold.rubric import Rubric, RubricConfig
from overopt.mitigations import length
from overopt.mitigations.ensembles import ENSEMBLES
from overopt.mitigations.inputs import Reward, Step
from overopt.nets import (
    Llama,
    LlamaConfig,
    ScalarHeadModel,
    from_transformers_state,
    to_transformers_state,
)
from overopt.scorers import EnsembleScorer, MultiHeadScorer, RewardModelScorer, RubricScorer
from overopt.settings import RewardConfig, WorldConfig
from overopt.world.hf import UNLIMITED_CONTEXT, HFWorld, TextReader, World
from overopt.world.stories import StoriesWorld


def load_world(cfg: WorldConfig) -> StoriesWorld | HFWorld:
    """Prompts and tokenizer of a world.

    Raises
    ------
    ConfigError
        A response may be as long as the policy's context.
    """
    texts = tuple(checkpoints.read_prompts(cfg.prompts_file)) if cfg.prompts_file else ()
    if cfg.kind == "stories":
        return StoriesWorld(texts or checkpoints.load_openings(), checkpoints.load_tokenizer())
    context = checkpoints.context_tokens(cfg.policy) or UNLIMITED_CONTEXT
    require(
        cfg.max_response_tokens < context,
        "world.max_response_tokens",
        cfg.max_response_tokens,
        f"must be below {context}, the context of {cfg.policy!r}, to leave room for a prompt",
    )
    return HFWorld(
        texts or tuple(checkpoints.load_instructions()),
        checkpoints.load_codec(cfg.policy),
        context - cfg.max_response_tokens,
    )


def load_backbone(source: str, world: World, *, layers: int = 0) -> Llama:
    """What a scorer's head is put on; reads text where the source has another tokenizer."""
    backbone = checkpoints.load_trunk(source, layers=layers)
    if not checkpoints.shares_vocabulary(source, world.tokenizer):
        backbone.reader = TextReader(source, world, checkpoints.load_codec(source))
    return backbone


def load_policy(source: str, weights: Path) -> Llama:
    """The initial policy ``source`` with the weights that PPO ended with."""
    policy: Any = checkpoints.load_lm(source)
    state = store.load_tensors(weights)
    if isinstance(policy, Llama):
        return from_transformers_state(state, policy.cfg).eval()
    from overopt.hf_nets import from_spec  # transformers takes seconds to import

    return cast(Llama, from_spec(policy.spec(), state))  # it has the interface of one


def backbone_state(backbone: Any) -> dict[str, torch.Tensor]:
    """Weights under transformers' names."""
    if isinstance(backbone, Llama):
        return to_transformers_state(backbone)
    return backbone.transformers_state()


def n_params(model: torch.nn.Module) -> dict[str, int]:
    """Parameters of a scorer's network, without embeddings and with them."""
    total = sum(p.numel() for p in model.parameters())
    tables = [m for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    embedding = sum(m.weight.numel() for m in tables)
    return {"n_params": total - embedding, "n_params_total": total}


def response_arrays(responses: Responses, copies: int) -> dict[str, np.ndarray]:
    """Responses of P prompts × ``copies`` adjacent rows as arrays, prompts once."""
    p = responses.prompts.select(slice(None, None, copies))
    return {
        "prompt_ids": p.ids.numpy().astype(np.int32),
        "prompt_mask": p.mask.numpy(),
        "prompt_id": p.prompt_id.numpy(),
        "ids": responses.ids.numpy().astype(np.int32),
        "mask": responses.mask.numpy(),
        "logprobs": responses.logprobs.numpy(),
        "ended": responses.ended.numpy(),
    }


def save_responses(path: Path, responses: Responses, copies: int) -> None:
    """Write `response_arrays`."""
    store.save_arrays(path, response_arrays(responses, copies))


def load_responses(path: Path) -> Responses:
    """What `save_responses` wrote."""
    a = store.load_arrays(path)
    prompts = Prompts(
        torch.from_numpy(a["prompt_ids"]).long(),
        torch.from_numpy(a["prompt_mask"]),
        torch.from_numpy(a["prompt_id"]),
    ).repeat(len(a["ids"]) // len(a["prompt_ids"]))
    return Responses(
        prompts,
        torch.from_numpy(a["ids"]).long(),
        torch.from_numpy(a["mask"]),
        torch.from_numpy(a["logprobs"]),
        torch.from_numpy(a["ended"]),
    )


def load_transform(path: Path) -> Reward:
    """The function ``reward(inputs, *, strength)`` of a user's Python file.

    Raises
    ------
    ConfigError
        The file does not exist, cannot be imported, or defines no ``reward``.
    """
    where = f"reward.transform = {str(path)!r}"
    if not path.is_file():
        raise ConfigError(f"{where}: does not exist: give the path of a Python file")
    spec = importlib.util.spec_from_file_location(f"overopt_transform_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{where}: cannot be imported: give the path of a .py file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as e:  # a user's file may raise anything
        raise ConfigError(f"{where}: importing it raised {type(e).__name__}: {e}") from e
    if not callable(getattr(module, "reward", None)):
        raise ConfigError(f"{where}: defines no function reward(inputs, *, strength)")
    return module.reward


def reward_steps(cfg: RewardConfig, transform: Reward | None = None) -> tuple[Step, ...]:
    """The mitigations that ``cfg`` asks for, in order; ``transform``: the user's combination."""
    steps = [Step(transform or ENSEMBLES[cfg.combine], cfg.strength)]
    match cfg.length_penalty:
        case "linear":
            steps.append(Step(length.linear, cfg.length_coef))
        case "hinge":
            hinge = functools.partial(length.hinge, budget=cfg.length_budget)
            steps.append(Step(hinge, cfg.length_coef))
    return tuple(steps)


def save_ensemble(
    folder: Path,
    scorer: EnsembleScorer,
    cfg: RewardConfig,
    *,
    transform: Path | None,
    info: dict[str, Any],
) -> None:
    """An ensemble with all that scoring needs: members, normalisation, and the user's file."""
    for i, part in enumerate(scorer.parts):
        (folder / f"member-{i}").mkdir()
        is_rubric = isinstance(part, RubricScorer)
        kind = {"kind": "rubric" if is_rubric else "reward_model"}
        save_scorer(folder / f"member-{i}", None if is_rubric else cast(Any, part), kind)
    if transform is not None:
        (folder / "transform.py").write_bytes(transform.read_bytes())
    store.save_json(
        folder / "scorer.json",
        info
        | {
            "kind": "ensemble",
            "n_parts": len(scorer.parts),
            "reward": to_dict(cfg),
            "ref_tokens": scorer.ref_tokens,
            "center": scorer.center,
            "spread": scorer.spread,
        },
    )


def save_scorer(
    folder: Path,
    scorer: RewardModelScorer | MultiHeadScorer | ClassifierScorer | None,
    info: dict[str, Any],
) -> None:
    """A reward model with its normalisation (None: the rubric is the scorer).

    A pretrained classifier is named, not copied: it may be large, and its checksum is part of every
    identity.
    """
    if isinstance(scorer, ClassifierScorer):
        source = {"kind": "classifier", "source": scorer.source, "scored_by": "text"}
        info = info | {"mean": scorer.mean, "std": scorer.std} | source
    elif scorer is not None:
        model = scorer.model
        backbone: Any = model.backbone
        state = backbone_state(backbone)
        state |= {f"score.{k}": v.detach().clone() for k, v in model.head.state_dict().items()}
        store.save_tensors(folder / "model.safetensors", state)
        is_llama = isinstance(backbone, Llama)
        shape = {"shape": vars(backbone.cfg)} if is_llama else {"transformers": backbone.spec()}
        info = info | {"mean": scorer.mean, "std": scorer.std, "scored_by": "tokens"} | shape
        if isinstance(backbone.reader, TextReader):
            info |= {"scored_by": "text", "tokenizer": backbone.reader.source}
    store.save_json(folder / "scorer.json", info)


def load_scorer(
    folder: Path, calibration: Path, world: World, device: str = "cpu"
) -> RewardModelScorer | RubricScorer | MultiHeadScorer | EnsembleScorer | ClassifierScorer:
    """The scorer of a gold, proxy or reward artefact, its networks on ``device``."""
    info = store.load_json(folder / "scorer.json")
    if info["kind"] == "rubric":
        return RubricScorer(load_rubric(calibration), world)
    if info["kind"] == "ensemble":
        parts = [
            load_scorer(folder / f"member-{i}", calibration, world, device)
            for i in range(info["n_parts"])
        ]
        cfg = from_dict(RewardConfig, info["reward"])
        transform = load_transform(folder / "transform.py") if cfg.transform else None
        return EnsembleScorer(
            tuple(parts),
            reward_steps(cfg, transform),
            info["ref_tokens"],
            info["center"],
            info["spread"],
        )
    if info["kind"] == "classifier":
        classifier, tokenizer = checkpoints.load_classifier(info["source"])
        place = (info["source"], world, info["mean"], info["std"])
        return ClassifierScorer(classifier.to(device), tokenizer, *place)
    state = store.load_tensors(folder / "model.safetensors")
    weights = {k: v for k, v in state.items() if not k.startswith("score.")}
    backbone: Any = None
    if "transformers" in info:
        from overopt.hf_nets import from_spec  # transformers takes seconds to import

        backbone = from_spec(info["transformers"], weights)
    else:
        backbone = from_transformers_state(weights, LlamaConfig(**info["shape"]))
    if info.get("scored_by") == "text":
        source = info["tokenizer"]
        backbone.reader = TextReader(source, world, checkpoints.load_codec(source))
    model = ScalarHeadModel(backbone, len(state["score.bias"]))
    model.head.load_state_dict({"weight": state["score.weight"], "bias": state["score.bias"]})
    model.to(device)
    if isinstance(info["mean"], list):
        return MultiHeadScorer(model.eval(), tuple(info["mean"]), tuple(info["std"]))
    return RewardModelScorer(model.eval(), info["mean"], info["std"])


def load_rubric(calibration: Path) -> Rubric:
    """The calibrated rubric of a calibration artefact."""
    spec = store.load_json(calibration / "rubric.json")
    return Rubric(
        RubricConfig(**spec["cfg"]),
        tuple(spec["feature_mean"]),
        tuple(spec["feature_std"]),
        spec["score_mean"],
        spec["score_std"],
        tuple(spec.get("constant_features", ())),
    )
