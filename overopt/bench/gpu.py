"""What `overopt bench --device cuda` measures beside the rows of the CPU, and at which sizes.

On a GPU the ladder's models would time the launching of kernels, so training, scoring and PPO are
compared at the shape of SmolLM2-135M. Its weights are random: speed does not depend on them, and no
checkpoint has to be at hand. The stacked members are the ladder's own, on every device.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from overopt.base.datatypes import Prompts
from overopt.base.seeding import derive_seed, torch_generator
from overopt.bench.harness import (
    BenchError,
    Row,
    clock,
    copy_bandwidth,
    interleaved,
    make_row,
    matrix_rate,
    training_products,
)
from overopt.bench.sampling import transformers_generate
from overopt.bench.scoring import random_responses
from overopt.bench.training import PpoTask, endless, random_pairs
from overopt.nets.block import LlamaConfig
from overopt.nets.checkpoints import load_lm
from overopt.nets.compute import Compute, Precision
from overopt.nets.heads import ScalarHeadModel
from overopt.nets.llama import Llama
from overopt.nets.sampling import sample
from overopt.rewards.kinds.reward_model import RewardModelScorer
from overopt.rewards.scorer import mean_std, raw_scores
from overopt.rewards.training.pairs import TrainingPairs
from overopt.rewards.training.stacked import train_reward_models_stacked
from overopt.rewards.training.train import train_reward_model

SMOLLM2_135M = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    rope_theta=100000.0,
    eos_token_id=0,
)
SAMPLING_NAMES = ("sample_vs_generate", "sample_vs_bandwidth")
MFU_NAMES = ("reward_mfu",)
POOL_NAMES = ("score_pool",)
STACKED_NAMES = ("stacked_vs_single_0.05m", "stacked_vs_single_0.2m")
GENERATE_TARGET, BANDWIDTH_TARGET = 5.0, 0.5
MFU_TARGET, POOL_BUDGET_S = 0.4, 5.0
STACKED_TARGET = {"cpu": 2.0, "accelerator": 4.0}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much work the rows of a GPU do.

    model : shape of policy, value model, reward model
    n_pairs, n_tokens : of a training step against the peer: pairs, tokens of a row
    mfu_pairs : pairs of the step whose share of the matrix rate is measured
    matrix : rows and columns of the matrices behind that rate
    ppo_batch, ppo_prompt_tokens, ppo_tokens : responses of a PPO step, tokens of each
    sample_rows, sample_shapes : responses sampled at once; tokens of prompt and response
    n_scored, n_pool : responses to score with the large model, and with the ladder's 0.8M
    """

    model: LlamaConfig = SMOLLM2_135M
    n_pairs: int = 128
    n_tokens: int = 128
    mfu_pairs: int = 256
    matrix: int = 8192
    ppo_batch: int = 128
    ppo_prompt_tokens: int = 32
    ppo_tokens: int = 64
    sample_rows: int = 1024
    sample_shapes: tuple[tuple[int, int], ...] = ((64, 64), (128, 256))
    n_scored: int = 2048
    n_pool: int = 1_900_000
    precision: Precision = "bf16"


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
    """The sampler against transformers' generate and against the device's copy bandwidth.

    The end token is suppressed on both sides, so each makes all its tokens; precision, weights and
    prompts are the same.
    """
    policy = random_lm(sizes.model, seed=root_seed).to(device)
    dtype = torch.bfloat16 if sizes.precision == "bf16" else torch.float32
    no_end = torch.zeros(sizes.model.vocab_size)
    no_end[sizes.model.eos_token_id] = -torch.inf
    bandwidth = copy_bandwidth(device, n_bytes=1 << 30)
    rows = []
    for shape, (n_prompt, n_tokens) in enumerate(sizes.sample_shapes):
        table = random_responses(
            sizes.model.vocab_size, sizes.sample_rows, n_prompt, 1, root_seed=root_seed
        )
        prompts = table.prompts

        def ours(prompts: Prompts = prompts, n_tokens: int = n_tokens) -> None:
            made = sample(
                policy,
                prompts,
                n_tokens=n_tokens,
                seed=root_seed,
                logit_bias=no_end,
                precision=sizes.precision,
            )
            if not bool(made.mask.all()):
                raise BenchError("a row ended although end tokens were suppressed")

        sides: dict[str, Callable[[], None]] = {"ours": ours}
        if shape == 0:
            sides["generate"] = transformers_generate(
                policy, prompts, n_tokens, root_seed, dtype=dtype, device=device
            )
        seconds = interleaved(sides, repeats, device=device)
        work = f"{sizes.sample_rows} rows x ({n_prompt} + {n_tokens}) tokens, {sizes.precision}"
        if shape == 0:
            rows.append(
                make_row(
                    SAMPLING_NAMES[0],
                    seconds["ours"],
                    seconds["generate"],
                    target=GENERATE_TARGET,
                    note=work,
                )
            )
        moved = decoding_bytes(sizes.model, sizes.sample_rows, n_prompt, n_tokens, dtype.itemsize)
        rows.append(
            make_row(
                SAMPLING_NAMES[1] + ("" if shape == 0 else f"_{n_prompt}_{n_tokens}"),
                seconds["ours"],
                [moved / bandwidth],
                against="limit",
                target=BANDWIDTH_TARGET if shape == 0 else None,
                note=f"{work}; reference: the least {moved / 1e9:.0f} GB at the measured copy rate, "
                f"{bandwidth / 1e9:,.0f} GB/s; prefill and transfers are on our side only",
                details={"kernel_ms": _kernel_ms(ours, device, most=12) if shape == 0 else {}},
            )
        )
    return rows


def attention_flops(cfg: LlamaConfig, n_rows: int, length: int) -> float:
    """Operations of causal attention's two products, forward and backward, in all layers."""
    return 3 * 2 * n_rows * length**2 * cfg.hidden_size * cfg.num_hidden_layers


def mfu_rows(
    sizes: Sizes, *, repeats: int = 5, warm_steps: int = 3, root_seed: int = 0, device: str = "cuda"
) -> list[Row]:
    """Share of the measured bfloat16 matrix rate that a training step reaches.

    Counted: linear maps forward and backward where the loss needs them (`training_products`), and
    causal attention. Not counted: embedding, norms, optimizer, anything computed twice.
    """
    now, n_steps = clock(device), repeats + warm_steps
    cfg, n_tokens = sizes.model, sizes.n_tokens
    model = random_reward_model(cfg, seed=root_seed).to(device)
    rate = matrix_rate(device, size=sizes.matrix)
    n_rows = 2 * sizes.mfu_pairs
    products = training_products(cfg, n_rows * n_tokens, n_read=n_rows)
    flops = sum(p.flops for p in products) + attention_flops(cfg, n_rows, n_tokens)
    seconds: list[float] = []
    start = now()

    def turn(done: int, total: int) -> None:
        nonlocal start
        seconds.append(now() - start)
        start = now()

    _train(
        model,
        random_pairs(cfg.vocab_size, sizes.mfu_pairs * n_steps, n_tokens, root_seed=root_seed),
        batch=sizes.mfu_pairs,
        compute=Compute(precision=sizes.precision),
        progress=turn,
    )
    timed = seconds[warm_steps:]
    one_step = random_pairs(cfg.vocab_size, sizes.mfu_pairs, n_tokens, root_seed=root_seed)
    by_kernel = _kernel_ms(
        lambda: _train(
            model, one_step, batch=sizes.mfu_pairs, compute=Compute(precision=sizes.precision)
        ),
        device,
    )
    per_s = n_rows * n_tokens / statistics.median(timed)
    return [
        make_row(
            MFU_NAMES[0],
            timed,
            [flops / rate],
            against="limit",
            target=MFU_TARGET,
            note=f"{sizes.mfu_pairs} pairs x {n_tokens} tokens, {sizes.precision}, {per_s:,.0f} "
            f"tokens/s; reference: the step's {flops / 1e12:.1f} TFLOP at the measured matrix rate, "
            f"{rate / 1e12:.0f} TFLOP/s",
            details={
                "matrix_tflops": rate / 1e12,
                "tflop": flops / 1e12,
                "first_step_s": seconds[0],
                "peak_memory_gb": _peak_gb(device),
                "kernel_ms": by_kernel,
            },
        )
    ]


def _kernel_ms(run: Callable[[], None], device: str, *, most: int = 20) -> dict[str, float]:
    """Milliseconds of the kernels of ``run`` that take longest, by name; empty without a profiler."""
    if not device.startswith("cuda"):
        return {}
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    try:
        with torch.profiler.profile(activities=kinds) as profile:
            run()
            torch.cuda.synchronize(device)
        events = [e for e in profile.key_averages() if "CUDA" in str(e.device_type)]
        events.sort(key=lambda e: e.self_device_time_total, reverse=True)
        return {e.key[:160]: e.self_device_time_total / 1e3 for e in events[:most]}
    except (RuntimeError, AttributeError):
        return {}


def _peak_gb(device: str) -> float | None:
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.startswith("cuda") else None


def pool_rows(
    model: ScalarHeadModel,
    *,
    n_responses: int,
    n_prompt_tokens: int = 16,
    n_tokens: int = 64,
    repeats: int = 2,
    root_seed: int = 0,
    device: str = "cuda",
) -> list[Row]:
    """Scores of a whole best-of-n pool by one small reward model, against a budget of seconds."""
    pool = random_responses(
        model.backbone.cfg.vocab_size, n_responses, n_prompt_tokens, n_tokens, root_seed=root_seed
    )
    model = model.to(device).eval()
    seconds = interleaved({"ours": lambda: raw_scores(model, pool)}, repeats, device=device)
    return [
        make_row(
            POOL_NAMES[0],
            seconds["ours"],
            [POOL_BUDGET_S],
            against="budget",
            target=1.0,
            note=f"{n_responses:,} responses of {n_prompt_tokens} + 1 to {n_tokens} tokens, float32; "
            f"reference: a budget of {POOL_BUDGET_S:.0f} s",
        )
    ]


def stacked_rows(
    *,
    backbones: Sequence[tuple[str, Callable[[], Llama]]] = (
        (STACKED_NAMES[0], lambda: load_lm("ladder:0.05m")),
        (STACKED_NAMES[1], lambda: load_lm("ladder:0.2m")),
    ),
    n_members: int = 5,
    n_steps: int = 8,
    batch: int = 8,
    n_tokens: int = 64,
    repeats: int = 5,
    root_seed: int = 0,
    device: str = "cpu",
) -> list[Row]:
    """``n_members`` reward models trained at once, against the same trained one after another.

    ``batch`` prompts a step with a pair each, ``n_tokens`` tokens a row; every member has its own head
    and data order.
    """
    target = STACKED_TARGET["cpu" if device == "cpu" else "accelerator"]
    seeds = [derive_seed(root_seed, "member", m) for m in range(n_members)]
    rows = []
    for name, backbone in backbones:

        def members(backbone: Callable[[], Llama] = backbone) -> list[ScalarHeadModel]:
            made = [ScalarHeadModel(backbone()) for _ in seeds]
            for model, seed in zip(made, seeds, strict=True):
                model.init_head(torch_generator(seed, "head"))
            return [model.to(device) for model in made]

        apart, together = members(), members()
        vocab = apart[0].backbone.cfg.vocab_size
        pairs = random_pairs(vocab, batch * n_steps, n_tokens, root_seed=root_seed)

        def single(models: list[ScalarHeadModel] = apart, pairs: TrainingPairs = pairs) -> None:
            for model, seed in zip(models, seeds, strict=True):
                _train(model, pairs, batch=batch, seed=seed)

        def stacked(models: list[ScalarHeadModel] = together, pairs: TrainingPairs = pairs) -> None:
            train_reward_models_stacked(
                models,
                [pairs] * n_members,
                epochs=1,
                lr=1e-4,
                batch_prompts=batch,
                weight_decay=0.0,
                seeds=seeds,
                validate=lambda model: {},
                progress=lambda done, total: None,
            )

        seconds = interleaved({"ours": stacked, "apart": single}, repeats, device=device)
        rows.append(
            make_row(
                name,
                seconds["ours"],
                seconds["apart"],
                target=target,
                note=f"{n_members} members, {n_steps} steps of {batch} pairs x {n_tokens} tokens; "
                "reference: the same members one after another",
            )
        )
    return rows


def _train(
    model: ScalarHeadModel,
    pairs: TrainingPairs,
    *,
    batch: int,
    seed: int = 0,
    compute: Compute | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    train_reward_model(
        model,
        pairs,
        epochs=1,
        lr=1e-4,
        batch_prompts=batch,
        weight_decay=0.0,
        seed=seed,
        validate=dict,
        progress=progress,
        compute=compute,
    )
