"""Triton kernels of a decoding step: attention of single tokens, norm, and gated activation.

What `overopt.lanes` does in plain torch with several passes over memory is one pass each here.
Arithmetic is float32 whatever the tensors' type.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

SLOTS = 32  # slots of the cache read at once


@triton.jit
def _attend(
    qkv,
    keys,
    values,
    cos,
    sin,
    slot,
    out,
    n_slots,
    scale,
    N_HEADS: tl.constexpr,
    N_KV: tl.constexpr,
    DIM: tl.constexpr,
    HALF_P: tl.constexpr,
    GROUP_P: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """One row and one head of keys and values, with the group of query heads that share it."""
    pid = tl.program_id(0)
    lane, head = pid // N_KV, pid % N_KV
    HALF: tl.constexpr = DIM // 2
    GROUP: tl.constexpr = N_HEADS // N_KV
    at = tl.load(slot + lane)
    i = tl.arange(0, HALF_P)
    real = i < HALF
    c = tl.load(cos + at * HALF + i, mask=real, other=0.0)
    s = tl.load(sin + at * HALF + i, mask=real, other=0.0)
    row = qkv + lane.to(tl.int64) * (N_HEADS + 2 * N_KV) * DIM
    # 1. The new token's key, rotated, and value, into the cache.
    of_key = row + (N_HEADS + head) * DIM + i
    k1 = tl.load(of_key, mask=real, other=0.0).to(tl.float32)
    k2 = tl.load(of_key + HALF, mask=real, other=0.0).to(tl.float32)
    new1 = (k1 * c - k2 * s).to(keys.dtype.element_ty)
    new2 = (k2 * c + k1 * s).to(keys.dtype.element_ty)
    of_value = row + (N_HEADS + N_KV + head) * DIM + i
    v1 = tl.load(of_value, mask=real, other=0.0)
    v2 = tl.load(of_value + HALF, mask=real, other=0.0)
    cache = pid.to(tl.int64) * n_slots * DIM
    here = cache + at * DIM + i
    tl.store(keys + here, new1, mask=real)
    tl.store(keys + here + HALF, new2, mask=real)
    tl.store(values + here, v1, mask=real)
    tl.store(values + here + HALF, v2, mask=real)
    # 2. Queries (GROUP, HALF), rotated and scaled.
    g = tl.arange(0, GROUP_P)
    of_query = row + (head * GROUP + g)[:, None] * DIM + i[None, :]
    known = (g < GROUP)[:, None] & real[None, :]
    left = tl.load(of_query, mask=known, other=0.0).to(tl.float32)
    right = tl.load(of_query + HALF, mask=known, other=0.0).to(tl.float32)
    q1 = (left * c[None, :] - right * s[None, :]).to(keys.dtype.element_ty).to(tl.float32) * scale
    q2 = (right * c[None, :] + left * s[None, :]).to(keys.dtype.element_ty).to(tl.float32) * scale
    # 3. Softmax over the new token and all slots before it, a few slots at a time.
    top = tl.sum(q1 * new1.to(tl.float32)[None, :] + q2 * new2.to(tl.float32)[None, :], axis=1)
    total = tl.full((GROUP_P,), 1.0, tl.float32)
    mixed1 = tl.zeros((GROUP_P, HALF_P), tl.float32) + v1.to(tl.float32)[None, :]
    mixed2 = tl.zeros((GROUP_P, HALF_P), tl.float32) + v2.to(tl.float32)[None, :]
    for first in range(0, at, SLOTS):
        place = first + tl.arange(0, SLOTS)
        used = place < at
        there = cache + place[:, None] * DIM + i[None, :]
        read = used[:, None] & real[None, :]
        k1s = tl.load(keys + there, mask=read, other=0.0).to(tl.float32)
        k2s = tl.load(keys + there + HALF, mask=read, other=0.0).to(tl.float32)
        scores = tl.sum(q1[:, None, :] * k1s[None, :, :] + q2[:, None, :] * k2s[None, :, :], axis=2)
        scores = tl.where(used[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        shrink = tl.exp(top - new_top)
        p = tl.exp(scores - new_top[:, None])
        v1s = tl.load(values + there, mask=read, other=0.0).to(tl.float32)
        v2s = tl.load(values + there + HALF, mask=read, other=0.0).to(tl.float32)
        mixed1 = mixed1 * shrink[:, None] + tl.sum(p[:, :, None] * v1s[None, :, :], axis=1)
        mixed2 = mixed2 * shrink[:, None] + tl.sum(p[:, :, None] * v2s[None, :, :], axis=1)
        total = total * shrink + tl.sum(p, axis=1)
        top = new_top
    to = out + lane.to(tl.int64) * N_HEADS * DIM + (head * GROUP + g)[:, None] * DIM + i[None, :]
    tl.store(to, (mixed1 / total[:, None]).to(out.dtype.element_ty), mask=known)
    tl.store(to + HALF, (mixed2 / total[:, None]).to(out.dtype.element_ty), mask=known)


def attend(
    qkv: Tensor, keys: Tensor, values: Tensor, cos: Tensor, sin: Tensor, slot: Tensor
) -> Tensor:
    """`overopt.lanes.attend` in one kernel."""
    n_rows, n_kv, n_slots, dim = keys.shape
    n_heads = qkv.shape[1] // dim - 2 * n_kv
    out = torch.empty(n_rows, n_heads * dim, dtype=qkv.dtype, device=qkv.device)
    _attend[(n_rows * n_kv,)](
        qkv, keys, values, cos, sin, slot, out, n_slots, dim**-0.5,
        N_HEADS=n_heads, N_KV=n_kv, DIM=dim,
        HALF_P=max(16, triton.next_power_of_2(dim // 2)),
        GROUP_P=triton.next_power_of_2(n_heads // n_kv), SLOTS=SLOTS, num_warps=2,
    )  # fmt: skip
    return out


@triton.jit
def _normalise(x, y, eps, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, BLOCK)
    real = tl.arange(0, BLOCK) < SIZE
    row = tl.load(x + at, mask=real, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(row * row) / SIZE + eps)
    tl.store(y + at, (row * scale).to(y.dtype.element_ty), mask=real)


def normalise(x: Tensor, eps: float) -> Tensor:
    """Rows of ``x`` (R, D) over their root mean square."""
    y = torch.empty_like(x)
    size = x.shape[1]
    _normalise[(len(x),)](x, y, eps, SIZE=size, BLOCK=triton.next_power_of_2(size), num_warps=4)
    return y


@triton.jit
def _swiglu(x, y, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = at < size
    gate = tl.load(x + row * 2 * size + at, mask=real, other=0.0).to(tl.float32)
    up = tl.load(x + row * 2 * size + size + at, mask=real, other=0.0).to(tl.float32)
    tl.store(y + row * size + at, (gate * tl.sigmoid(gate) * up).to(y.dtype.element_ty), mask=real)


def swiglu(x: Tensor) -> Tensor:
    """silu(gate) · up of rows (R, 2H), gate first."""
    size = x.shape[1] // 2
    y = torch.empty(len(x), size, dtype=x.dtype, device=x.device)
    block = min(1024, triton.next_power_of_2(size))
    _swiglu[(len(x), triton.cdiv(size, block))](x, y, size, BLOCK=block, num_warps=4)
    return y
