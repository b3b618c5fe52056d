"""Speed of the sampler, as ratios to references measured interleaved in the same run.

The work is fixed on both sides: end tokens are suppressed, every row samples all of its tokens.
"""

from collections.abc import Callable, Mapping

import torch

from overopt.base.datatypes import Prompts
from overopt.base.seeding import torch_generator
from overopt.bench import sampling_at_size
from overopt.bench.generate import transformers_generate
from overopt.bench.harness import Row, interleaved, make_row
from overopt.bench.models import ladder
from overopt.bench.setting import Group, Setting
from overopt.nets.block import LlamaConfig
from overopt.nets.llama import Llama
from overopt.nets.sampling import SAMPLE_BLOCK, sample

NAMES = ("sample_vs_generate", "sample_vs_products")
GENERATE_TARGET, PRODUCTS_TARGET = 3.0, 0.5
# Shape of the ladder's 0.8M rung, the default initial policy. Speed does not depend on the weights.
POLICY_SHAPE = LlamaConfig(
    vocab_size=4096,
    hidden_size=128,
    intermediate_size=352,
    num_hidden_layers=4,
    num_attention_heads=4,
)


def group(setting: Setting) -> Group:
    """The ladder's policy on the CPU; at the shape of a checkpoint, one of random weights."""
    sizes, root_seed = setting.sizes, setting.root_seed
    if sizes is not None:
        return Group(
            sampling_at_size.NAMES,
            lambda: sampling_at_size.sampling_rows(sizes, **setting.where),
        )
    return Group(NAMES, lambda: sampling_rows(ladder("policy-0.8m"), root_seed=root_seed))


def sampling_rows(
    policy: Llama | None = None,
    *,
    n_prompt_tokens: int = 16,
    n_tokens: int = 48,
    repeats: int = 5,
    root_seed: int = 0,
) -> list[Row]:
    """The sampler against transformers' generate and against its own matrix products, one block.

    Parameters
    ----------
    policy : model to sample from; None: random weights in the shape of the default policy
    n_prompt_tokens, n_tokens : tokens of each prompt and each response
    repeats : timed calls of each side, in turn, after one untimed call
    root_seed : of weights and prompts
    """
    if policy is None:
        policy = Llama(POLICY_SHAPE)
        policy.init_weights(torch_generator(root_seed, "weights"))
    cfg = policy.cfg
    prompts = _random_prompts(cfg, n_prompt_tokens, root_seed)
    no_end = torch.zeros(cfg.vocab_size)
    no_end[cfg.eos_token_id] = -torch.inf

    def ours() -> None:
        made = sample(policy, prompts, n_tokens=n_tokens, seed=root_seed, logit_bias=no_end)
        if not bool(made.mask.all()):
            raise RuntimeError(
                "a row ended although end tokens were suppressed: nothing to compare"
            )

    sides = {
        "ours": ours,
        "generate": transformers_generate(policy, prompts, n_tokens, root_seed),
        "products": _bare_products(cfg, n_prompt_tokens, n_tokens, root_seed),
    }
    seconds = interleaved(sides, repeats)
    work = f"{SAMPLE_BLOCK} rows x ({n_prompt_tokens} + {n_tokens}) tokens, "
    work += f"{torch.get_num_threads()} thread(s), median of {repeats}"
    return [_vs_generate(seconds, work), _vs_products(seconds, work)]


def _vs_generate(seconds: Mapping[str, list[float]], work: str) -> Row:
    return make_row(
        NAMES[0], seconds["ours"], seconds["generate"], target=GENERATE_TARGET, note=work
    )


def _vs_products(seconds: Mapping[str, list[float]], work: str) -> Row:
    return make_row(
        NAMES[1],
        seconds["ours"],
        seconds["products"],
        against="limit",
        target=PRODUCTS_TARGET,
        note=f"{work}; ratio at most 1",
    )


def _random_prompts(cfg: LlamaConfig, length: int, root_seed: int) -> Prompts:
    """One block of prompts of random tokens, all of one length."""
    generator = torch_generator(root_seed, "prompts")
    ids = torch.randint(2, cfg.vocab_size, (SAMPLE_BLOCK, length), generator=generator)
    return Prompts(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(SAMPLE_BLOCK))


def _bare_products(
    cfg: LlamaConfig, n_prompt_tokens: int, n_tokens: int, root_seed: int
) -> Callable[[], None]:
    """The projections of prefill and decoding alone, on random matrices of the same shapes."""
    d, h, rows = cfg.hidden_size, cfg.intermediate_size, SAMPLE_BLOCK
    generator = torch_generator(root_seed, "products")
    n_qkv = (cfg.num_attention_heads + 2 * cfg.n_kv_heads) * cfg.head_dim
    layer = [(d, n_qkv), (d, d), (d, 2 * h), (h, d)]

    def pairs(n_rows: int, shapes: list[tuple[int, int]]) -> list[tuple[torch.Tensor, ...]]:
        make = [
            (torch.randn(n_rows, k, generator=generator), torch.randn(k, n, generator=generator))
            for k, n in shapes
        ]
        return [(x, w, torch.empty(n_rows, w.shape[1])) for x, w in make]

    per_layer = layer * cfg.num_hidden_layers
    prefill = pairs(rows * n_prompt_tokens, per_layer)
    decode, head = pairs(rows, per_layer), pairs(rows, [(d, cfg.vocab_size)])

    def run() -> None:
        # The last sampled token needs no forward pass; its logits come from the one before.
        steps = [prefill + head] + [decode + head] * (n_tokens - 1)
        for step in steps:
            for x, w, out in step:
                torch.mm(x, w, out=out)

    return run
