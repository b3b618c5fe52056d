"""Speed of the sampler at the shape of a checkpoint, against generate and the copy bandwidth.

The end token is suppressed on both sides, so each makes all its tokens; precision, weights and
prompts are the same.
"""

from collections.abc import Callable

import torch

from overopt.base.datatypes import Prompts
from overopt.bench.generate import transformers_generate
from overopt.bench.harness import BenchError, Row, copy_bandwidth, interleaved, make_row
from overopt.bench.on_device import kernel_ms
from overopt.bench.random_inputs import random_lm, random_responses
from overopt.bench.sizes import Sizes
from overopt.bench.training import DTYPES
from overopt.nets.block import LlamaConfig
from overopt.nets.llama import Llama
from overopt.nets.sampling import sample

NAMES = ("sample_vs_generate", "sample_vs_bandwidth")
GENERATE_TARGET, BANDWIDTH_TARGET = 5.0, 0.5


def decoding_bytes(
    cfg: LlamaConfig, n_rows: int, n_prompt: int, n_tokens: int, itemsize: int
) -> float:
    """Least bytes that decoding moves: at each token the weights, the slots in use, the logits.

    Weights and slots are read once, float32 logits written and read once. Reading the prompt is
    arithmetic, and is left out: an implementation pays for it on top.
    """
    per_layer = cfg.hidden_size * cfg.head_dim * 2 * (cfg.num_attention_heads + cfg.n_kv_heads)
    per_layer += 3 * cfg.hidden_size * cfg.intermediate_size
    weights = cfg.num_hidden_layers * per_layer + cfg.vocab_size * cfg.hidden_size
    slot = 2 * cfg.num_hidden_layers * cfg.n_kv_heads * cfg.head_dim
    slots = n_rows * sum(range(n_prompt, n_prompt + n_tokens))
    logits = 2 * 4 * n_rows * n_tokens * cfg.vocab_size
    return float(itemsize * (n_tokens * weights + slot * slots) + logits)


def sampling_rows(
    sizes: Sizes, *, repeats: int = 5, root_seed: int = 0, device: str = "cuda"
) -> list[Row]:
    """Against generate at the first of the shapes, against the bandwidth at each of them."""
    policy = random_lm(sizes.model, seed=root_seed).to(device)
    bandwidth = copy_bandwidth(device, n_bytes=1 << 30)
    rows = []
    for i, (n_prompt, n_tokens) in enumerate(sizes.sample_shapes):
        prompts = random_responses(
            sizes.model.vocab_size, sizes.sample_rows, n_prompt, 1, root_seed=root_seed
        ).prompts
        ours = _sampler(policy, prompts, n_tokens, sizes, seed=root_seed)
        work = f"{sizes.sample_rows} rows x ({n_prompt} + {n_tokens}) tokens, {sizes.precision}"
        is_first = i == 0
        sides = {"ours": ours}
        if is_first:
            dtype = DTYPES[sizes.precision]
            sides["generate"] = transformers_generate(
                policy, prompts, n_tokens, root_seed, dtype=dtype, device=device
            )
        seconds = interleaved(sides, repeats, device=device)
        if is_first:
            rows.append(_vs_generate(seconds["ours"], seconds["generate"], work))
        rows.append(
            _vs_bandwidth(
                seconds["ours"],
                _bytes_moved(sizes, n_prompt, n_tokens),
                bandwidth,
                work,
                name=NAMES[1] if is_first else f"{NAMES[1]}_{n_prompt}_{n_tokens}",
                target=BANDWIDTH_TARGET if is_first else None,
                kernels=kernel_ms(ours, device, most=12) if is_first else {},
            )
        )
    return rows


def _vs_generate(ours: list[float], generate: list[float], work: str) -> Row:
    return make_row(NAMES[0], ours, generate, target=GENERATE_TARGET, note=work)


def _vs_bandwidth(
    ours: list[float],
    moved: float,
    bandwidth: float,
    work: str,
    *,
    name: str,
    target: float | None,
    kernels: dict[str, float],
) -> Row:
    return make_row(
        name,
        ours,
        [moved / bandwidth],
        against="limit",
        target=target,
        note=f"{work}; reference: the least {moved / 1e9:.0f} GB at the measured copy rate, "
        f"{bandwidth / 1e9:,.0f} GB/s; prefill and transfers are on our side only",
        details={"kernel_ms": kernels},
    )


def _bytes_moved(sizes: Sizes, n_prompt: int, n_tokens: int) -> float:
    itemsize = DTYPES[sizes.precision].itemsize
    return decoding_bytes(sizes.model, sizes.sample_rows, n_prompt, n_tokens, itemsize)


def _sampler(
    policy: Llama, prompts: Prompts, n_tokens: int, sizes: Sizes, *, seed: int
) -> Callable[[], None]:
    """Our side: all ``n_tokens`` tokens of a response to each prompt."""
    no_end = torch.zeros(sizes.model.vocab_size)
    no_end[sizes.model.eos_token_id] = -torch.inf

    def run() -> None:
        made = sample(
            policy,
            prompts,
            n_tokens=n_tokens,
            seed=seed,
            logit_bias=no_end,
            precision=sizes.precision,
        )
        if not bool(made.mask.all()):
            raise BenchError("a row ended although end tokens were suppressed")

    return run
