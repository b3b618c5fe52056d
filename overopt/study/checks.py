"""What is checked of an experiment before any work: prompts, checkpoints, tokenizers, contexts."""

import hashlib
import json
from pathlib import Path

from overopt.base.config import require
from overopt.nets import sources
from overopt.nets.sources import checksum, source_files
from overopt.rewards.kinds import classifier
from overopt.stages.settings import RunConfig
from overopt.worlds import codecs, splits
from overopt.worlds.load import load_world
from overopt.worlds.prompts import instructions_file, read_prompts
from overopt.worlds.splits import SPLITS
from overopt.worlds.stories import MAX_PROMPT_TOKENS
from overopt.worlds.world import World, WorldConfig


def source_checksums(run: RunConfig) -> tuple[str, ...]:
    """SHA-256 of all checkpoints and prompts that a run reads, in a fixed order."""
    sources = [run.world.policy, run.gold.source, run.proxy.backbone, *run.reward.backbones]
    if run.ppo is not None:
        sources.append(run.ppo.value_backbone)
    prompts, found = run.world.prompts_file, []
    if prompts.startswith("datasets:"):
        texts = json.dumps(read_prompts(prompts)).encode()
        found.append(hashlib.sha256(texts).hexdigest())
    files = [Path(prompts)] if prompts and not found else []
    if run.world.kind == "hf" and not prompts:
        files.append(instructions_file())
    for source in sources:
        files += source_files(source)
    return (*found, *(checksum(f) for f in dict.fromkeys(files)))


def check_prompts(run: RunConfig, world: World) -> None:
    """Raise ConfigError or DataError unless every split has the prompts that the run asks for."""
    labels, available = run.labels, splits.len_split(world, "train")
    n_prompts = run.rounds.k * run.labels_per_round.n_prompts  # no round uses another's
    require(
        n_prompts <= available,
        "labels.n_pairs",
        labels.n_pairs,
        f"needs {n_prompts} training prompts of {labels.responses_per_prompt} responses, the "
        f"world has {available}: use fewer pairs or more responses_per_prompt",
    )
    available = splits.len_split(world, "validation")
    require(
        2 <= labels.n_validation_prompts <= available,
        "labels.n_validation_prompts",
        labels.n_validation_prompts,
        f"must be 2 to {available}, the validation prompts of this world",
    )
    if run.gold.kind == "learned":
        available = splits.len_split(world, "gold")
        require(
            run.gold.n_prompts <= available,
            "gold.n_prompts",
            run.gold.n_prompts,
            f"must be at most {available}, the gold prompts of this world",
        )
    if run.bon is not None:
        splits.eval_prompts(world, run.bon.n_prompts, run.bon.eval_offset)
    if run.ppo is not None:
        splits.eval_prompts(world, run.ppo.eval_prompts, run.ppo.eval_offset)


def check_sources(run: RunConfig, world: World, longest_prompt: int) -> None:
    """Raise unless every checkpoint of a run is complete, and its tokens mean what they should.

    The policy and the value model must share the world's tokenizer; a gold or proxy backbone with
    another one reads text. Where tokens are shared, the longest prompt (``longest_prompt`` tokens)
    with the longest response must fit the context.
    """
    policy, longest = run.world.policy, longest_prompt + run.world.max_response_tokens
    sources.checkpoint_dir(policy)
    require(
        codecs.shares_vocabulary(policy, world.tokenizer),
        "world.policy",
        policy,
        "has another tokenizer than the embedded world: use world.kind=hf",
    )
    used = {}
    match run.gold.kind:
        case "pretrained":
            classifier.check_classifier(run.gold.source)
        case "frozen" | "learned":
            used["gold.source"] = run.gold.source
    if run.proxy.kind == "learned":
        used["proxy.backbone"] = run.proxy.backbone
        used |= {f"reward.backbones[{i}]": name for i, name in enumerate(run.reward.backbones)}
    if run.ppo is not None:
        used["ppo.value_backbone"] = run.ppo.value_backbone
    for field, source in used.items():
        sources.checkpoint_dir(source)
        is_shared = codecs.shares_vocabulary(source, world.tokenizer)
        require(
            is_shared or field != "ppo.value_backbone",
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


def with_longest_prompt(cfg: WorldConfig) -> tuple[World, int]:
    """A world, and the tokens of its longest prompt; reads every prompt that is not the package's."""
    world = load_world(cfg)
    if cfg.kind == "stories" and not cfg.prompts_file:
        return world, MAX_PROMPT_TOKENS
    sizes = {split: splits.len_split(world, split) for split in SPLITS}
    return world, max(world.prompts(s, n).ids.shape[1] for s, n in sizes.items() if n > 0)
