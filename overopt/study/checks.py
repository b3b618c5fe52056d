"""What is checked of an experiment before any work: prompts, checkpoints, tokenizers, contexts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from overopt.base.config import require
from overopt.base.errors import CheckpointError, ConfigError
from overopt.base.kinds import kind_of, module_of
from overopt.base.lazy import lazy
from overopt.nets import examine, sources
from overopt.pools import selection
from overopt.rewards.labels.people import read_pairs
from overopt.stages import people
from overopt.stages.settings import RunConfig
from overopt.worlds import tokenizers
from overopt.worlds.prompts import read_prompts, turns_of
from overopt.worlds.world import World

if TYPE_CHECKING:
    from overopt.rewards.transforms import inputs
    from overopt.rewards.transforms.inputs import Reward
else:
    inputs = lazy("overopt.rewards.transforms.inputs")

RESERVED = (
    *("calibration", "gold", "comparisons", "labels", "pool", "proxy", "heads", "reward", "scores"),
    *("bon", "search", "searched", "round_data", "experiments", "policy", "start"),
    *selection.names(),
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
        texts = json.dumps(read_prompts(run.world.prompts_file).texts).encode()
        found.append(hashlib.sha256(texts).hexdigest())
    files = [*run.world.prompt_files, *run.gold.files, *run.proxy.files]
    for source in named:
        files += sources.source_files(source)
    sums = (sources.checksum(f) for f in dict.fromkeys(files))
    # What is masked decides what is sampled, as files do.
    masked = sources.masked_ids(run.world.policy)
    return (*found, *sums, *([f"masked: {len(masked)}"] if masked else []))


def masked_tokens(run: RunConfig) -> tuple[str, ...]:
    """A sentence for each policy whose tokenizer lacks tokens."""
    told = []
    for field, policy in policies_of(run).items():
        masked = sources.masked_ids(policy)
        if masked:
            rows = sources.vocab_size(sources.read_config(sources.source_dir(policy)))
            told.append(
                f"{field} = {policy!r}: its embedding has {rows} rows, its tokenizer lacks"
                f" {len(masked)} of them (first: {masked[0]}); these tokens get probability 0, in the"
                " policy and in the reference"
            )
    return tuple(told)


def policies_of(run: RunConfig) -> dict[str, str]:
    """The policies of a run, by the name of the setting."""
    start = {"start_policy": run.start_policy} if run.start_policy else {}
    return {"world.policy": run.world.policy, **start}


def check_transform(run: RunConfig, transform: Reward) -> None:
    """Raise ConfigError unless the user's combination keeps its contract."""
    inputs.check_contract(
        transform,
        strength=run.reward.strength,
        n_members=run.reward.members,
        name=f"reward.transform = {run.reward.transform!r}: reward",
    )


def check_checkpoints(run: RunConfig) -> None:
    """Raise unless the files of every checkpoint can be what the run makes of them.

    Reads headers and configurations, and renders a chat in each template; torch is not imported.
    """
    greeting = [{"role": "user", "content": "Hello"}]
    for field, policy in policies_of(run).items():
        examine.examine(field, policy, "policy")
        examine.render(field, policy, greeting, answer=True)
    for role, settings in (("gold", run.gold), ("proxy", run.proxy)):
        if hasattr(module_of(settings), "check"):
            _of_role(role, partial(module_of(settings).check, settings))
    for field, source in _trunks(run).items():
        examine.examine(field, source, "trunk")
        examine.render(field, source, greeting, answer=True)


def check_texts(run: RunConfig, world: World) -> None:
    """Raise unless chat templates take the roles of the prompts, and what reads text has the context."""
    by_roles = {tuple(t["role"] for t in turns_of(text)): text for text in reversed(world.texts)}
    if run.labels.pairs_file:
        read_pairs(run.labels.pairs_file)  # its errors before what takes longer
    for text in by_roles.values():
        for field, policy in policies_of(run).items():
            examine.render(field, policy, turns_of(text), answer=True)
    for role, settings in (("gold", run.gold), ("proxy", run.proxy)):
        if hasattr(module_of(settings), "check_texts"):
            check = module_of(settings).check_texts
            _of_role(role, partial(check, settings, world.texts, run.world.max_response_tokens))


def _of_role(role: str, check: Callable[[], None]) -> None:
    """Run a check of a kind; its errors get the role in front of the setting that they name."""
    try:
        check()
    except (CheckpointError, ConfigError) as e:
        if str(e).startswith(role):
            raise
        raise type(e)(f"{role}.{e}") from e


def _trunks(run: RunConfig) -> dict[str, str]:
    """Checkpoints under a head or a value, by the name of the setting."""
    used: dict[str, str] = {}
    for role, settings in (("gold", run.gold), ("proxy", run.proxy)):
        if settings.reads_tokens:
            used |= {f"{role}.{name}": source for name, source in settings.sources.items()}
    used |= {f"world.{name}": source for name, source in run.world.sources.items()}
    used |= {f"reward.backbones[{i}]": name for i, name in enumerate(run.reward.backbones)}
    if run.method is not None:
        used |= {f"method.{name}": source for name, source in run.method.sources.items()}
    return used


def check_pairs(run: RunConfig, world: World) -> tuple[str, ...]:
    """Draw the pairs of people that the run asks for; what is to be said of them.

    Raises
    ------
    ConfigError or DataError
        A pairs file cannot be read, has too few pairs, or pairs that are too long.
    """
    notes: tuple[str, ...] = ()
    gold_file = getattr(run.gold, "pairs_file", "")
    if gold_file:
        notes += read_pairs(gold_file).notes
    if run.labels.pairs_file:
        drawn = people.draw(people.settings_of(run), world)
        notes += drawn.notes
        for role, settings in (("gold", run.gold), ("proxy", run.proxy)):
            if hasattr(module_of(settings), "check_texts"):
                texts = (*drawn.train.prompts, *drawn.validation.prompts)
                check = module_of(settings).check_texts
                _of_role(role, partial(check, settings, texts, run.world.max_response_tokens))
    return notes


def check_prompts(run: RunConfig, world: World) -> None:
    """Raise ConfigError or DataError unless every split has the prompts that the run asks for."""
    if not run.labels.pairs_file:
        _check_comparisons(run, world)
    available = world.n_prompts("gold")
    require(
        run.gold.prompts <= available,
        "gold.n_prompts",
        run.gold.prompts,
        f"must be at most {available}, the gold prompts of this world",
    )
    if run.bon is not None:
        world.rows("eval", run.bon.eval_offset + run.bon.n_prompts)
    if run.search.candidates:
        world.rows("eval", run.search.n_prompts)
    if run.method is not None:
        world.rows("eval", run.method.eval_offset + run.method.eval_prompts)


def _check_comparisons(run: RunConfig, world: World) -> None:
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
    for field, source in policies_of(run).items():
        sources.checkpoint_dir(source)
        _check_pieces(field, source)
    require(
        tokenizers.shares_vocabulary(policy, world.tokenizer),
        "world.policy",
        policy,
        "has another tokenizer than the embedded world: use world.kind=hf",
    )
    require(
        not run.start_policy or tokenizers.shares_vocabulary(run.start_policy, world.tokenizer),
        "start_policy",
        run.start_policy,
        f"has another tokenizer than world.policy = {policy!r}, in whose tokens comparisons and scores"
        " are: use a model that shares its tokenizer",
    )
    if run.start_policy:
        _check_context("start_policy", run.start_policy, longest)
    for role, settings in (("gold", run.gold), ("proxy", run.proxy)):
        for name, source in settings.sources.items():
            _check_pieces(f"{role}.{name}", source)
    for field, source in _trunks(run).items():
        sources.checkpoint_dir(source)
        is_shared = tokenizers.shares_vocabulary(source, world.tokenizer)
        require(
            is_shared or not field.startswith("method."),
            field,
            source,
            f"has another tokenizer than the policy, and values are per token: use {policy!r} or a "
            "model that shares its tokenizer",
        )
        if is_shared:
            _check_context(field, source, longest)


def _check_context(field: str, source: str, longest: int) -> None:
    """Raise unless a prompt with its response fits."""
    context = sources.context_tokens(source)
    require(
        context is None or longest <= context,
        field,
        source,
        f"has a context of {context} tokens; the longest prompt and world.max_response_tokens "
        f"make {longest}: shorten them",
    )


def _check_pieces(field: str, source: str) -> None:
    """Raise unless the embedding has a row for each piece that transformers' tokenizer has."""
    try:
        sources.special_ids(source, sources.read_config(sources.source_dir(source)))
    except CheckpointError as e:
        raise CheckpointError(f"{field} = {source!r}: {e}") from e
