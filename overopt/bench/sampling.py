"""Speed of the sampler, as ratios to references measured interleaved in the same run.

Each function returns one row (``name``, ``seconds``, ``reference_seconds``, ``ratio``, ``note``).
Seconds are medians of CPU seconds of this process, so that other work on the machine does not
enter; the ratio is reference over ours: above 1 where ours is faster. The work is fixed on both
sides: end tokens are suppressed, every row samples all of its tokens.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from overopt.base.datatypes import Prompts
from overopt.base.seeding import scoped_torch_seed, torch_generator
from overopt.nets.block import LlamaConfig
from overopt.nets.layout import to_transformers_state
from overopt.nets.llama import Llama
from overopt.nets.sampling import SAMPLE_BLOCK, sample

Row = dict[str, Any]

# Shape of the ladder's 0.8M rung, the default initial policy. Speed does not depend on the weights.
POLICY_SHAPE = LlamaConfig(
    vocab_size=4096,
    hidden_size=128,
    intermediate_size=352,
    num_hidden_layers=4,
    num_attention_heads=4,
)


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
    seconds = _interleaved(sides, repeats)
    work = f"{SAMPLE_BLOCK} rows x ({n_prompt_tokens} + {n_tokens}) tokens, "
    work += f"{torch.get_num_threads()} thread(s), median of {repeats}"
    return [
        _row("sample_vs_generate", seconds["ours"], seconds["generate"], work, target=3.0),
        _row(
            "sample_vs_products",
            seconds["ours"],
            seconds["products"],
            work + "; ratio at most 1",
            target=0.5,
        ),
    ]


def _row(name: str, seconds: float, reference_seconds: float, note: str, *, target: float) -> Row:
    """One row of the table."""
    return dict(
        name=name,
        seconds=seconds,
        reference_seconds=reference_seconds,
        ratio=reference_seconds / seconds,
        target=target,
        note=note,
    )


def _random_prompts(cfg: LlamaConfig, length: int, root_seed: int) -> Prompts:
    """One block of prompts of random tokens, all of one length."""
    generator = torch_generator(root_seed, "prompts")
    ids = torch.randint(2, cfg.vocab_size, (SAMPLE_BLOCK, length), generator=generator)
    return Prompts(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(SAMPLE_BLOCK))


def transformers_generate(
    policy: Llama,
    prompts: Prompts,
    n_tokens: int,
    root_seed: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Callable[[], None]:
    """The same work by transformers' ``generate`` with copied weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    spec = policy.cfg.to_transformers()
    config = AutoConfig.for_model(spec.pop("model_type"), **spec)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.load_state_dict(to_transformers_state(policy), strict=False)
    model.tie_weights()
    model.to(device=device, dtype=dtype)
    ids, mask = prompts.ids.to(device), prompts.mask.long().to(device)

    def run() -> None:
        with scoped_torch_seed(root_seed), torch.inference_mode():
            made = model.generate(
                ids,
                attention_mask=mask,
                do_sample=True,
                top_k=0,
                top_p=1.0,
                min_new_tokens=n_tokens,
                max_new_tokens=n_tokens,
                pad_token_id=policy.cfg.pad_token_id,
            )
        if made.shape[1] != prompts.ids.shape[1] + n_tokens:
            raise RuntimeError("generate stopped early: nothing to compare")

    return run


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


def _interleaved(sides: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each side, measured in turn so that drift hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, run in sides.items():
            start = time.process_time()
            run()
            if turn > 0:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
