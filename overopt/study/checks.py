"""What is checked of an experiment before any work: prompts, checkpoints, tokenizers, contexts."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from typing import TYPE_CHECKING

from overopt.base.config import build, require
from overopt.base.kinds import kind_of, module_of
from overopt.base.lazy import lazy
from overopt.nets import sources
from overopt.stages.settings import RunConfig
from overopt.worlds import tokenizers
from overopt.worlds.prompts import read_prompts
from overopt.worlds.world import World

if TYPE_CHECKING:
    from overopt.rewards.transforms import inputs
    from overopt.rewards.transforms.inputs import Reward
else:
    inputs = lazy("overopt.rewards.transforms.inputs")

RESERVED = (
    *("calibration", "gold", "comparisons", "labels", "pool", "proxy", "heads", "reward", "scores"),
    *("bon", "round_data", "experiments", "policy", "start"),
)
"""Names of stages, their inputs and folders of the store, which a user's method may not take."""


def source_checksums(run: RunConfig) -> tuple[str, ...]:
    """SHA-256 of all checkpoints and prompts that a run reads, in a fixed order."""
    named = [
        run.world.policy,
        *run.world.sources.values(),
        *run.gold.sources.values(),
        *run.proxy.sources.values(),
    ]
    named += run.reward.backbones
    if run.method is not None:
        named += run.method.sources.values()
    found = []
    if run.world.prompts_file.startswith("datasets:"):
        texts = json.dumps(read_prompts(run.world.prompts_file)).encode()
        found.append(hashlib.sha256(texts).hexdigest())
    files = [*run.world.prompt_files, *run.gold.files, *run.proxy.files]
    for source in named:
        files += sources.source_files(source)
    return (*found, *(sources.checksum(f) for f in dict.fromkeys(files)))


def check_transform(run: RunConfig, transform: Reward) -> None:
    """Raise ConfigError unless the user's combination keeps its contract."""
    inputs.check_contract(
        transform,
        strength=run.reward.strength,
        n_members=run.reward.members,
        name=f"reward.transform = {run.reward.transform!r}: reward",
    )


def check_prompts(run: RunConfig, world: World) -> None:
    """Raise ConfigError or DataError unless every split has the prompts that the run asks for."""
    labels, available = run.labels, world.n_prompts("train")
    n_prompts = run.rounds.k * run.labels_per_round.n_prompts  # no round uses another's
    require(
        n_prompts <= available,
        "labels.n_pairs",
        labels.n_pairs,
        f"needs {n_prompts} training prompts of {labels.responses_per_prompt} responses, the "
        f"world has {available}: use fewer pairs or more responses_per_prompt",
    )
    available = world.n_prompts("validation")
    require(
        2 <= labels.n_validation_prompts <= available,
        "labels.n_validation_prompts",
        labels.n_validation_prompts,
        f"must be 2 to {available}, the validation prompts of this world",
    )
    available = world.n_prompts("gold")
    require(
        run.gold.prompts <= available,
        "gold.n_prompts",
        run.gold.prompts,
        f"must be at most {available}, the gold prompts of this world",
    )
    if run.bon is not None:
        world.rows("eval", run.bon.eval_offset + run.bon.n_prompts)
    if run.method is not None:
        world.rows("eval", run.method.eval_offset + run.method.eval_prompts)


def check_sources(run: RunConfig, world: World) -> None:
    """Raise unless every checkpoint of a run is complete, and its tokens mean what they should.

    The policy and what a method reads must share the world's tokenizer; a gold or proxy backbone with
    another one reads text. Where tokens are shared, the longest prompt with the longest response must
    fit the context.
    """
    if run.method is not None:
        kind = kind_of(run.method)
        require(
            kind not in RESERVED, "method.kind", kind, "is the name of a stage: rename the file"
        )
    policy, longest = run.world.policy, world.longest_prompt + run.world.max_response_tokens
    sources.checkpoint_dir(policy)
    require(
        tokenizers.shares_vocabulary(policy, world.tokenizer),
        "world.policy",
        policy,
        "has another tokenizer than the embedded world: use world.kind=hf",
    )
    used: dict[str, str] = {}
    of_method: set[str] = set()
    for role, settings in (("gold", run.gold), ("proxy", run.proxy)):
        if hasattr(module_of(settings), "check"):
            build(partial(module_of(settings).check, settings), role)
        if settings.reads_tokens:
            used |= {f"{role}.{name}": source for name, source in settings.sources.items()}
    used |= {f"world.{name}": source for name, source in run.world.sources.items()}
    used |= {f"reward.backbones[{i}]": name for i, name in enumerate(run.reward.backbones)}
    if run.method is not None:
        of_method = {f"method.{name}" for name in run.method.sources}
        used |= {f"method.{name}": source for name, source in run.method.sources.items()}
    for field, source in used.items():
        sources.checkpoint_dir(source)
        is_shared = tokenizers.shares_vocabulary(source, world.tokenizer)
        require(
            is_shared or field not in of_method,
            field,
            source,
            f"has another tokenizer than the policy, and values are per token: use {policy!r} or a "
            "model that shares its tokenizer",
        )
        context = sources.context_tokens(source)
        require(
            not is_shared or context is None or longest <= context,
            field,
            source,
            f"has a context of {context} tokens; the longest prompt and world.max_response_tokens "
            f"make {longest}: shorten them",
        )
