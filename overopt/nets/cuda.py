"""The forward pass of `overopt.nets.Llama` on a CUDA GPU: the same function, in other pieces.

On a GPU an elementwise step costs one pass over memory, and with a small model one launch, whatever
it computes. So this module has two ways through a block. Wide models run two regions compiled with
``torch.compile``: a whole block, and `_attend` for the last one, of which few positions are read on. One
compilation serves all layers and all batch shapes.
Small models run the same code as it stands, where launches count: fused norms, rotation in place.

What it does differently from `overopt.nets` on the CPU: rotation of coordinates half a head apart, as
in the checkpoint, so that no weight is reordered; products in the precision of autocast by explicit
casts, the residual stream in float32; the last block's attention at every position. Attention never
takes cuDNN's kernels, which plan anew for each shape of a batch.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from overopt.nets.block import Layer, LlamaConfig
from overopt.nets.compute import is_out_of_memory

# A compilation takes about ten seconds; it pays where the passes over memory are long.
COMPILE_FROM_WIDTH, COMPILE_FROM_TOKENS = 384, 1024
_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_AGREE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


class CompileWarning(UserWarning):
    """A block could not be compiled, and runs as it stands."""


class _Rope(NamedTuple):
    """Rotary angles of L positions, each (L, 1, D_head/2) float32."""

    cos: Tensor
    sin: Tensor


class _Turn(Function):
    """Heads (R, L, n, D_head) rotated by their position, coordinates i and i + D_head/2 together."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.float().chunk(2, -1)
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    to_left, to_right = out.chunk(2, -1)
    torch.mul(left, cos, out=to_left).addcmul_(right, sin, value=-1)
    torch.mul(right, cos, out=to_right).addcmul_(left, sin)
    return out.to(x.dtype)


def _turn_plain(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`_Turn`, in operations that a compiler can fuse."""
    left, right = x.float().chunk(2, -1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1).to(x.dtype)


def _normed_linear(
    x: Tensor, norm: Tensor, weight: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype
) -> Tensor:
    """A norm with its weight and the linear map behind it."""
    y = F.rms_norm(x, (x.shape[-1],), norm, eps).to(dtype)
    return F.linear(y, weight.to(dtype), None if bias is None else bias.to(dtype))


def _folded_linear(
    x: Tensor, norm: Tensor, weight: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype
) -> Tensor:
    """The same with the norm's weight in the matrix: no gradient of it has to sum over tokens."""
    y = F.rms_norm(x, (x.shape[-1],), None, eps).to(dtype)
    return F.linear(y, (weight * norm).to(dtype), None if bias is None else bias.to(dtype))


def _attend(
    x: Tensor,
    norm: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    heads: tuple[int, int],
    eps: float,
    dtype: torch.dtype,
    fuse: bool,
) -> Tensor:
    """Causal self-attention (R, L, D) before its output map; ``heads``: of queries, of keys."""
    n_rows, length, _ = x.shape
    n, n_kv = heads
    linear, turn = (_folded_linear, _turn_plain) if fuse else (_normed_linear, _Turn.apply)
    qkv = linear(x, norm, weight, bias, eps, dtype).view(n_rows, length, n + 2 * n_kv, -1)
    qk, v = qkv.split((n + n_kv, n_kv), 2)
    q, k = turn(qk, cos, sin).split((n, n_kv), 2)
    grouped = n_kv < n
    if grouped and dtype == torch.float32:  # the kernels for float32 know no groups
        k, v = (t.repeat_interleave(n // n_kv, 2) for t in (k, v))
        grouped = False
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    return y.transpose(1, 2).reshape(n_rows, length, -1)


def _rest(
    x: Tensor,
    y: Tensor,
    out: Tensor,
    norm: Tensor,
    gate_up: Tensor,
    down: Tensor,
    *,
    eps: float,
    dtype: torch.dtype,
    fuse: bool,
) -> Tensor:
    """What follows attention, on the block's input ``x`` and attention's output ``y`` (R, L, D)."""
    linear, add = (_folded_linear, _add) if fuse else (_normed_linear, _add_at_once)
    x = add(x, y, out, dtype)
    gate, up = linear(x, norm, gate_up, None, eps, dtype).chunk(2, -1)
    return add(x, F.silu(gate) * up, down, dtype)


def _block(
    x: Tensor,
    norm1: Tensor,
    qkv: Tensor,
    bias: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    out: Tensor,
    norm2: Tensor,
    gate_up: Tensor,
    down: Tensor,
    *,
    heads: tuple[int, int],
    eps: float,
    dtype: torch.dtype,
    fuse: bool,
) -> Tensor:
    """One block on (R, L, D), in one piece: a compiler then sums the gradients of ``x`` on the way."""
    y = _attend(x, norm1, qkv, bias, cos, sin, heads=heads, eps=eps, dtype=dtype, fuse=fuse)
    return _rest(x, y, out, norm2, gate_up, down, eps=eps, dtype=dtype, fuse=fuse)


def _add(x: Tensor, y: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """x + y Wᵀ."""
    return x + F.linear(y, weight.to(dtype))


def _add_at_once(x: Tensor, y: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The same in one kernel, where both have one precision."""
    if x.dtype != dtype:
        return _add(x, y, weight, dtype)
    return torch.addmm(x.flatten(0, -2), y.flatten(0, -2), weight.t()).view(x.shape)


# --- compiled -------------------------------------------------------------------------------------


class _Regions(NamedTuple):
    """`_block` and `_attend`, compiled (``fuse``) or as they stand."""

    block: Callable[..., Tensor]
    attend: Callable[..., Tensor]
    fuse: bool


_PLAIN = _Regions(_block, _attend, False)
_compiled: dict[str, _Regions] = {}
_tried: dict[tuple, _Regions] = {}


def _compile(backend: str = "inductor") -> _Regions:
    """The compiled regions; nothing is compiled before their first call."""
    if backend not in _compiled:
        # One compilation for each width, precision and mode; the default of 8 is soon used up.
        limit = "recompile_limit"
        if hasattr(torch._dynamo.config, limit):
            setattr(torch._dynamo.config, limit, max(64, getattr(torch._dynamo.config, limit)))
        # Static but for the dimensions marked below: a second width is a compilation of its own.
        options: dict[str, Any] = {"backend": backend, "dynamic": False}
        _compiled[backend] = _Regions(
            torch.compile(_block, **options), torch.compile(_attend, **options), True
        )
    return _compiled[backend]


def _mark(*tensors_and_dims: tuple[Tensor, tuple[int, ...]]) -> None:
    """Tell the compiler which dimensions change between calls."""
    for tensor, dims in tensors_and_dims:
        for dim in dims:
            torch._dynamo.maybe_mark_dynamic(tensor, dim)


class _Block(NamedTuple):
    """One layer's weights and shape, as the regions take them."""

    layer: Layer
    rope: _Rope
    dtype: torch.dtype

    def __call__(self, x: Tensor, regions: _Regions) -> Tensor:
        """The block's output (R, L, D) on ``x`` (R, L, D)."""
        return self._run(regions.block, x, self._behind_attention, regions.fuse)

    def at(self, x: Tensor, at: Tensor, regions: _Regions) -> Tensor:
        """Its output (R, T, D) at positions ``at`` (R, T) alone."""
        y, index = self.attend(x, regions), at[..., None].expand(-1, -1, x.shape[-1])
        x, y = x.gather(1, index), y.gather(1, index)
        return _rest(
            x, y, *self._behind_attention, eps=self.layer.eps, dtype=self.dtype, fuse=False
        )

    def attend(self, x: Tensor, regions: _Regions) -> Tensor:
        """Attention's output (R, L, D) on ``x`` (R, L, D)."""
        return self._run(regions.attend, x, (), regions.fuse)

    def _run(
        self, region: Callable[..., Tensor], x: Tensor, maps: tuple[Tensor, ...], fuse: bool
    ) -> Tensor:
        layer, (cos, sin) = self.layer, self.rope
        if fuse:
            _mark((x, (0, 1)), (cos, (0,)), (sin, (0,)))
        return region(
            x,
            layer.norm1,
            layer.qkv.weight,
            layer.qkv.bias,
            cos,
            sin,
            *maps,
            heads=(layer.n_heads, layer.n_kv_heads),
            eps=layer.eps,
            dtype=self.dtype,
            fuse=fuse,
        )

    @property
    def _behind_attention(self) -> tuple[Tensor, ...]:
        layer = self.layer
        return layer.out.weight, layer.norm2, layer.gate_up.weight, layer.down.weight

    def regions(self, x: Tensor) -> _Regions:
        """What to run on ``x`` (R, L, D): compiled where that pays, and gives the same on ``x``.

        The comparison is made once for each width, precision (TF32 is one) and mode of gradients.
        """
        n_rows, length, width = x.shape
        small = n_rows * length < COMPILE_FROM_TOKENS or min(n_rows, length) < 2
        if width < COMPILE_FROM_WIDTH or small or not x.is_cuda:
            return _PLAIN
        layer = self.layer
        shapes = tuple(tuple(p.shape) for p in layer.parameters())
        products = torch.get_float32_matmul_precision()
        key = (shapes, layer.n_heads, self.dtype, products, torch.is_grad_enabled(), x.device)
        if key not in _tried:
            _tried[key] = self._try(x.detach())
        return _tried[key]

    def _try(self, x: Tensor, backend: str = "inductor") -> _Regions:
        why = "its results differ"
        try:
            fused = _compile(backend)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what torch says to itself while compiling
                ours, theirs = (self._results(x, r) for r in (fused, _PLAIN))
            limit = _AGREE.get(self.dtype, 1e-2)
            if torch.get_float32_matmul_precision() != "highest":
                limit = max(limit, _AGREE[torch.float16])  # TF32 keeps as many bits
            if all(_distance(a, b) <= limit for a, b in zip(ours, theirs, strict=True)):
                return fused
        # No Triton or compiler, or a defect of one: torch wraps these in its own RuntimeErrors.
        except (RuntimeError, ImportError, OSError, AttributeError, TypeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        warnings.warn(
            f"a block of width {x.shape[-1]} could not be compiled and runs slower: {why}",
            CompileWarning,
            stacklevel=4,
        )
        return _PLAIN

    def _results(self, x: Tensor, regions: _Regions) -> tuple[Tensor, ...]:
        """Both outputs on ``x``; with gradients on, those of mean squares in input and weights too."""
        x = x.detach().clone().requires_grad_(torch.is_grad_enabled())
        y, of_attention = self(x, regions), self.attend(x, regions)
        if not torch.is_grad_enabled():
            return y, of_attention
        size = y.float().square().mean() + of_attention.float().square().mean()
        weights = [p for p in self.layer.parameters() if p.requires_grad]
        return y, of_attention, *torch.autograd.grad(size, [x, *weights])


def _distance(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over the norm of ``b``."""
    a, b = a.detach().float(), b.detach().float()
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


# --- the network ----------------------------------------------------------------------------------


@contextmanager
def explicit_precision(device: torch.device) -> Iterator[None]:
    """Neither autocast, which the casts of this module replace, nor cuDNN's attention."""
    with torch.autocast(device.type, enabled=False), sdpa_kernel(_BACKENDS):
        yield


class Trunk(Protocol):
    """What of `overopt.nets.llama.Llama` is read here."""

    cfg: LlamaConfig
    embed: nn.Embedding
    rope_cos: Tensor
    rope_sin: Tensor

    @property
    def blocks(self) -> list[Layer]:
        """The layers."""
        ...

    def normed(self, x: Tensor) -> Tensor:
        """The final norm on hidden states (R, L, D)."""
        ...


def hidden_states(model: Trunk, input_ids: Tensor, at: Tensor | None = None) -> Tensor:
    """`Llama.forward` on a GPU: hidden states (R, L, D), or (R, T, D) at positions ``at`` (R, T).

    Products have the precision of the autocast that is on, else of the weights.
    """
    kind, length = input_ids.device.type, input_ids.shape[1]
    weight = model.embed.weight
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    half = model.cfg.head_dim // 2
    rope = _Rope(*(t[:length, None, :half] for t in (model.rope_cos, model.rope_sin)))
    with explicit_precision(input_ids.device):
        x = model.embed(input_ids)
        blocks = [_Block(layer, rope, dtype) for layer in model.blocks]
        regions = blocks[0].regions(x)
        for block in blocks[:-1]:
            x = block(x, regions)
        last = blocks[-1]
        return model.normed(last(x, regions) if at is None else last.at(x, at, regions))
