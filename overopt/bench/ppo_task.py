"""What both sides of a PPO comparison optimise: a policy, prompts and a proxy."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from overopt.base.datatypes import Prompts
from overopt.base.seeding import derive_seed, torch_generator
from overopt.bench.models import ladder
from overopt.bench.random_inputs import random_lm, random_responses, random_reward_model
from overopt.bench.sizes import Sizes
from overopt.nets.checkpoints import load_lm, load_reward_model
from overopt.nets.heads import ScalarHeadModel
from overopt.nets.llama import Llama
from overopt.nets.sampling import sample
from overopt.rewards.kinds.reward_model import RewardModelScorer
from overopt.rewards.labels.pairs import label_pairs
from overopt.rewards.scorer import mean_std, raw_scores
from overopt.rewards.training.pairs import TrainingPairs
from overopt.rewards.training.train import train_reward_model
from overopt.worlds import stories
from overopt.worlds.load import load_world

NO_END = -1  # a token id that is never sampled: no response ends early


@dataclass(frozen=True)
class PpoTask:
    """A policy whose responses never end early, prompts and a proxy.

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


@lru_cache(maxsize=1)  # two groups measure on the same task
def story_task(
    *,
    n_prompt_tokens: int = 16,
    n_tokens: int = 32,
    n_pair_prompts: int = 250,
    n_held: int = 200,
    root_seed: int = 0,
) -> PpoTask:
    """The embedded world with responses of fixed length, and a proxy trained on labels of gold."""
    world = load_world(stories.Settings())

    def policy() -> Llama:
        return endless(ladder("policy-0.8m"))

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


def random_task(sizes: Sizes, *, n_prompts: int = 256, root_seed: int = 0) -> PpoTask:
    """A policy, a value model, a proxy and prompts of random weights and tokens."""
    cfg, n_tokens = sizes.model, sizes.ppo_tokens

    def policy() -> Llama:
        return endless(random_lm(cfg, seed=derive_seed(root_seed, "policy")))

    proxy = random_reward_model(cfg, seed=derive_seed(root_seed, "proxy"))
    table = random_responses(
        cfg.vocab_size, n_prompts, sizes.ppo_prompt_tokens, n_tokens, root_seed=root_seed
    )
    unit = mean_std(raw_scores(proxy, table.select(slice(0, 16))))
    prompts: Prompts = table.prompts
    return PpoTask(
        policy,
        RewardModelScorer(proxy, *unit),
        prompts,
        prompts.select(slice(0, 16)),
        n_tokens,
        lambda: random_lm(cfg, seed=derive_seed(root_seed, "value")),
    )
