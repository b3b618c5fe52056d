"""Models, responses and pairs of random numbers: speed does not depend on what they say."""

from dataclasses import replace

import torch

from overopt.base.datatypes import Prompts, Responses
from overopt.base.seeding import torch_generator
from overopt.nets.block import LlamaConfig
from overopt.nets.heads import ScalarHeadModel
from overopt.nets.llama import Llama
from overopt.rewards.training.pairs import TrainingPairs


def random_lm(cfg: LlamaConfig, *, seed: int) -> Llama:
    """A `Llama` of shape ``cfg`` with random weights, the same for the same seed."""
    model = Llama(cfg)
    model.init_weights(torch_generator(seed, "lm"))
    return model.eval()


def random_reward_model(cfg: LlamaConfig, *, seed: int) -> ScalarHeadModel:
    """A reward model on `random_lm`, its head drawn as for training."""
    model = ScalarHeadModel(random_lm(cfg, seed=seed))
    model.init_head(torch_generator(seed, "head"))
    return model.eval()


def random_responses(
    vocab_size: int, n_rows: int, n_prompt_tokens: int, max_tokens: int, *, root_seed: int
) -> Responses:
    """Responses (R, T) of random tokens, lengths uniform in 1 … T, to prompts of one length."""
    generator = torch_generator(root_seed, "responses")
    ids = torch.randint(2, vocab_size, (n_rows, n_prompt_tokens + max_tokens), generator=generator)
    length = torch.randint(1, max_tokens + 1, (n_rows,), generator=generator)
    mask = torch.arange(max_tokens) < length[:, None]
    prompt_ids = ids[:, :n_prompt_tokens]
    prompts = Prompts(
        prompt_ids, torch.ones_like(prompt_ids, dtype=torch.bool), torch.arange(n_rows)
    )
    return Responses(
        prompts,
        ids[:, n_prompt_tokens:] * mask,
        mask,
        torch.zeros(mask.shape),
        torch.zeros(n_rows, dtype=torch.bool),
    )


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
