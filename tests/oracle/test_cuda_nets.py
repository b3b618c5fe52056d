"""The GPU's way through a block against the CPU's: on the CPU, and on a GPU where there is one."""

import pytest
import torch
from functorch.compile import make_boxed_func
from tolerances import FP32
from torch._dynamo.backends.common import aot_autograd
from training_data import VOCAB, backbone, reward_model, training_pairs

from overopt.base.datatypes import bounded_runs
from overopt.base.seeding import torch_generator
from overopt.nets import cuda, sampling
from overopt.nets.compute import Compute
from overopt.nets.cuda import _PLAIN, CompileWarning, _attend, _Block, _block, _Regions, _Rope
from overopt.nets.llama import Llama
from overopt.rewards.scorer import raw_scores
from overopt.rewards.training.stacked import train_reward_models_stacked
from overopt.rewards.training.train import train_reward_model
from overopt.stages.best_of_n import matmul_precision

SHAPES = [
    {},
    {"num_attention_heads": 4, "num_key_value_heads": 2},
    {"num_attention_heads": 4, "num_key_value_heads": 1, "attention_bias": True},
]
CUDA = 1e-4  # kernels of another kind sum in another order, over a few layers
BF16 = 5e-2  # products of a tiny model in bfloat16, relative to the largest
SETTINGS = dict(
    epochs=2, lr=1e-3, batch_prompts=4, weight_decay=0.01, progress=lambda done, total: None
)


def on_a_gpu(test):
    """Mark ``test`` as one that needs a CUDA device."""
    missing = not torch.cuda.is_available()
    return pytest.mark.gpu(pytest.mark.skipif(missing, reason="needs a CUDA device")(test))


def ids_of(n_rows: int = 5, length: int = 17) -> torch.Tensor:
    generator = torch_generator(0, "ids")
    return torch.randint(0, VOCAB, (n_rows, length), generator=generator)


def block_and_input(model: Llama, dtype: torch.dtype = torch.float32, n_rows: int = 5, length=17):
    half = model.cfg.head_dim // 2
    rope = _Rope(*(t[:length, None, :half] for t in (model.rope_cos, model.rope_sin)))
    return _Block(model.blocks[0], rope, dtype), model.embed(ids_of(n_rows, length)).detach()


def close(a: torch.Tensor, b: torch.Tensor, limit: float) -> None:
    a, b = a.detach(), b.detach()
    assert float((a - b).abs().max()) <= limit * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("where", ["everywhere", "somewhere"])
def test_states_and_gradients_are_those_of_the_cpu(shape, where):
    model, ids = backbone(**shape), ids_of()
    at = None
    if where == "somewhere":
        at = torch.randint(0, 17, (5, 3), generator=torch_generator(0, "at"))
    theirs, ours = model(ids, at), cuda.hidden_states(model, ids, at)
    close(ours, theirs, FP32)
    weight = torch.randn(theirs.shape, generator=torch_generator(0, "weight"))
    parameters = list(model.parameters())
    for a, b in zip(
        *(torch.autograd.grad((y * weight).sum(), parameters) for y in (ours, theirs)), strict=True
    ):
        close(a, b, 10 * FP32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_compiled_computes_what_stands(shape, dtype):
    block, x = block_and_input(backbone(**shape), dtype)
    fused, plain = (block._results(x, r) for r in (_Regions(_block, _attend, True), _PLAIN))
    for a, b in zip(fused, plain, strict=True):
        close(a, b, FP32 if dtype == torch.float32 else BF16)


def test_autocast_sets_the_precision_of_products_and_not_of_what_is_returned():
    model, ids = backbone().requires_grad_(False), ids_of()
    exact = cuda.hidden_states(model, ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = cuda.hidden_states(model, ids)
    assert rounded.dtype == torch.float32
    assert 1e-4 < float((rounded - exact).abs().max()) < BF16 * float(exact.abs().max())


def counting_backend(count: list[int]):
    def compiler(graph, inputs):
        count[0] += 1
        return make_boxed_func(graph)

    return aot_autograd(fw_compiler=compiler, bw_compiler=compiler)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_one_compilation_serves_all_layers_and_batch_shapes():
    count = [0]
    options = dict(backend=counting_backend(count), dynamic=False)
    regions = _Regions(torch.compile(_block, **options), torch.compile(_attend, **options), True)
    model = backbone(num_attention_heads=4, num_key_value_heads=2)
    for n_rows, length in ((5, 17), (6, 32), (17, 9)):
        block, x = block_and_input(model, n_rows=n_rows, length=length)
        x.requires_grad_()
        last = _Block(model.blocks[1], block.rope, block.dtype)
        y = block(block(x, regions), regions)
        (last(y, regions).sum() + last.attend(y, regions).sum()).backward()
        assert count[0] == 4  # two regions, forward and backward


def broken(graph, inputs):
    raise RuntimeError("no compiler is installed")


def wrong(graph, inputs):
    return lambda *args: [2 * t for t in graph(*args)]


@pytest.mark.parametrize(
    ("backend", "why"), [(broken, "no compiler is installed"), (wrong, "its results differ")]
)
def test_a_block_that_cannot_be_compiled_runs_as_it_stands(backend, why, monkeypatch):
    monkeypatch.setattr(cuda, "_compiled", {})
    block, x = block_and_input(backbone(hidden_size=24, num_attention_heads=3))
    with pytest.warns(CompileWarning, match=why), torch.no_grad():
        assert block._try(x, backend) is _PLAIN


def test_tf32_is_no_reason_against_a_compiled_block(monkeypatch):
    def tf32(x):
        return ((x.contiguous().view(torch.int32) + (1 << 12)) & ~((1 << 13) - 1)).view(x.dtype)

    linear = torch.nn.functional.linear
    monkeypatch.setattr(
        cuda.F, "linear", lambda x, w, b=None: linear(tf32(x), tf32(w.contiguous()), b)
    )
    monkeypatch.setattr(cuda, "_compile", lambda backend: _Regions(_block, _attend, True))
    block, x = block_and_input(backbone())
    with torch.no_grad():
        with pytest.warns(CompileWarning, match="its results differ"):
            block._try(x)
        with matmul_precision("tf32"):
            assert block._try(x).fuse


def test_memory_that_runs_out_while_compiling_is_for_the_caller(monkeypatch):
    def full(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cuda, "_compile", lambda backend: _Regions(full, full, False))
    block, x = block_and_input(backbone())
    with pytest.raises(torch.OutOfMemoryError):
        block._try(x)


@pytest.mark.parametrize("batch_tokens", [1, 7, 40, 1000])
def test_runs_are_the_longest_that_fit(batch_tokens):
    length = torch.randint(1, 12, (60,), generator=torch_generator(0, "length")).sort().values
    found, start = list(bounded_runs(length, batch_tokens)), 0
    for begin, stop in found:
        assert begin == start
        assert stop - begin == 1 or (stop - begin) * int(length[stop - 1]) <= batch_tokens
        if stop < len(length):
            assert (stop + 1 - begin) * int(length[stop]) > batch_tokens
        start = stop
    assert start == len(length)


# --- on a GPU -------------------------------------------------------------------------------------


def wide_model():
    """Wide enough to be compiled; 64 rows of 32 tokens are enough of them."""
    return reward_model(
        hidden_size=384, intermediate_size=512, num_attention_heads=6, num_key_value_heads=2
    )


@on_a_gpu
@pytest.mark.parametrize("shape", SHAPES)
def test_cuda_equals_the_cpu_in_float32(shape):
    model, ids = reward_model(**shape), ids_of()
    length = torch.tensor([17, 3, 1, 9, 12])
    results = []
    for device in ("cpu", "cuda"):
        model = model.to(device)
        scores = model.at_last_token(ids.to(device), length.to(device))
        grads = torch.autograd.grad(scores.square().sum(), list(model.parameters()))
        results.append([scores.detach(), *grads])
    for a, b in zip(*results, strict=True):
        close(b.cpu(), a.cpu(), CUDA)


@on_a_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_equals_what_stands_on_cuda(precision, monkeypatch):
    """A failed compilation would warn, and warnings are errors here.

    In bfloat16 both round, in different places: both must be equally near to float32.
    """
    model, ids = wide_model().cuda(), ids_of(64, 32).cuda()
    length = torch.randint(1, 33, (64,), generator=torch_generator(0, "length")).cuda()

    def found(from_width, precision):
        monkeypatch.setattr(cuda, "COMPILE_FROM_WIDTH", from_width)
        with Compute(precision=precision).autocast(ids.device):
            scores = model.at_last_token(ids, length).float()
        return [scores, *torch.autograd.grad(scores.square().sum(), model.parameters())]

    compiled, plain, exact = found(384, precision), found(10**9, precision), found(10**9, "fp32")
    assert any(regions.fuse for regions in cuda._tried.values())
    for a, b, c in zip(compiled, plain, exact, strict=True):
        if precision == "fp32":
            close(a, b, CUDA)
        else:
            assert float((a - c).norm()) <= 1.5 * float((b - c).norm())


@on_a_gpu
def test_training_on_cuda_follows_the_cpu():
    pairs, losses = training_pairs(24), {}
    for device, precision in (("cpu", "fp32"), ("cuda", "fp32"), ("cuda", "bf16")):
        log = train_reward_model(
            reward_model().to(device),
            pairs,
            seed=0,
            validate=dict,
            compute=Compute(precision=precision),
            **SETTINGS,
        )
        assert len(log.loss) == log.steps == 12
        losses[device, precision] = torch.tensor(log.loss)
    close(losses["cuda", "fp32"], losses["cpu", "fp32"], 10 * CUDA)
    close(losses["cuda", "bf16"], losses["cpu", "fp32"], BF16)


@on_a_gpu
def test_stacked_members_on_cuda_follow_those_trained_alone():
    pairs, seeds = training_pairs(24), [0, 1, 2]
    alone = [
        train_reward_model(reward_model(s).cuda(), pairs, seed=s, validate=dict, **SETTINGS).loss
        for s in seeds
    ]
    found = train_reward_models_stacked(
        [reward_model(s).cuda() for s in seeds],
        [pairs] * 3,
        seeds=seeds,
        validate=lambda model: {},
        **SETTINGS,
    )
    for a, log in zip(alone, found, strict=True):
        close(torch.tensor(log.loss), torch.tensor(a), 10 * CUDA)


@on_a_gpu
def test_a_table_scored_in_pieces_on_cuda(monkeypatch):
    model, responses = reward_model(), training_pairs(24).responses
    expected = raw_scores(model, responses)
    model = model.cuda()
    close(raw_scores(model, responses), expected, CUDA)
    monkeypatch.setattr(sampling, "_TABLE_IDS", 200)
    close(raw_scores(model, responses, batch_tokens=60), expected, CUDA)
