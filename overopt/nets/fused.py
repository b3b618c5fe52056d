"""Elementwise steps of a transformer block, each with a backward pass written by hand.

With small models these steps cost as much time as the matrix products
between them; written as one function each, they pass over memory about half as often as the chain
of operations that autograd would record. Derivatives of derivatives are not available.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class Normalise(Function):
    """x / rms(x) over the last axis, without a weight: that is multiplied into the next matrix."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        scale = scale.div_(x.shape[-1]).add_(eps).rsqrt_()
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        y, scale = ctx.saved_tensors
        along = (grad * y).mean(-1, keepdim=True)
        return torch.addcmul(grad, y, along, value=-1).mul_(scale), None


class SwiGlu(Function):
    """silu(gate) · up of (…, 2H), gate first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        activated = F.silu(gate)
        ctx.save_for_backward(x, activated)
        return activated * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, activated = ctx.saved_tensors
        gate, up = x.chunk(2, -1)
        out = torch.empty_like(x)
        to_gate, to_up = out.chunk(2, -1)
        torch.mul(grad, activated, out=to_up)
        torch.mul(grad, up, out=to_gate)
        torch.ops.aten.silu_backward.grad_input(to_gate, gate, grad_input=to_gate)
        return out


class RotateHeads(Function):
    """Heads (R, L, n, D) to one (R, n_i, L, D) for each n_i of ``sizes``, the first ones rotated.

    turn (L or R × L, n_rotated, D/2) complex: factor of each pair of adjacent coordinates of the
    first ``n_rotated`` heads, a sum of leading ``sizes``. They are computed in float32 at least.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, turn: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        ctx.save_for_backward(turn)
        ctx.sizes, ctx.dtype = sizes, x.dtype
        n_rotated = turn.shape[-2]
        rotated = torch.view_as_real(_as_complex(x[:, :, :n_rotated], turn) * turn).flatten(3)
        parts, start = [], 0
        for n in sizes:
            source, at = (rotated, start) if start < n_rotated else (x, start)
            parts.append(source[:, :, at : at + n].transpose(1, 2))
            start += n
        return tuple(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (turn,) = ctx.saved_tensors
        back = turn.conj().resolve_conj()
        n_rows, _, length, dim = grads[0].shape
        out = grads[0].new_empty(n_rows, length, sum(ctx.sizes), dim)
        start = 0
        for n, grad in zip(ctx.sizes, grads, strict=True):
            to, grad = out[:, :, start : start + n], grad.transpose(1, 2)
            if start < turn.shape[-2]:
                part = back[..., start : start + n, :]
                torch.mul(_as_complex(grad, turn), part, out=_as_complex(to, turn))
            else:
                to.copy_(grad)
            start += n
        return out.to(ctx.dtype), None, None


def _as_complex(x: Tensor, like: Tensor) -> Tensor:
    """Adjacent coordinates of the last axis as one complex number of ``like``'s precision."""
    x = x.to(like.real.dtype)
    if x.stride(-1) != 1:
        x = x.contiguous()
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))
