"""Triton kernels of a decoding step: attention of single tokens, drawing, norm, gated activation.

What `overopt.lanes` does in plain torch with several passes over memory is one pass each here.
Arithmetic is float32 or better whatever the tensors' type.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

SLOTS, WARPS = 32, 2  # slots of the cache read at once, warps of a program
HALF_SLOTS, HALF_WARPS, HALF_STAGES = 32, 2, 3  # the same in half precision, and reads under way
PART, PART_WARPS = 4096, 4  # of the vocabulary that a row reads at once


@triton.jit
def _rotated(at, half, c, s, real):
    """Both halves in float32 of the vectors at ``at``, turned by angles of cosine c and sine s."""
    left = tl.load(at, mask=real, other=0.0).to(tl.float32)
    right = tl.load(at + half, mask=real, other=0.0).to(tl.float32)
    return left * c - right * s, right * c + left * s


@triton.jit
def _attend_half(
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
    GROUP_P: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """`_attend` in half precision, on matrix units.

    A product of two halves is exact in float32. Weights are split into two halves each, which keep
    16 bits of them.
    """
    pid = tl.program_id(0)
    lane, head = pid // N_KV, pid % N_KV
    HALF: tl.constexpr = DIM // 2
    GROUP: tl.constexpr = N_HEADS // N_KV
    TYPE: tl.constexpr = keys.dtype.element_ty
    at = tl.load(slot + lane)
    i, j = tl.arange(0, HALF), tl.arange(0, DIM)
    c, s = tl.load(cos + at * HALF + i), tl.load(sin + at * HALF + i)
    row = qkv + lane.to(tl.int64) * (N_HEADS + 2 * N_KV) * DIM
    # 1. The new token's key, rotated, and value, into the cache.
    k1, k2 = _rotated(row + (N_HEADS + head) * DIM + i, HALF, c, s, i < HALF)
    k1, k2 = k1.to(TYPE), k2.to(TYPE)
    value = tl.load(row + (N_HEADS + N_KV + head) * DIM + j)
    cache = pid.to(tl.int64) * n_slots * DIM
    tl.store(keys + cache + at * DIM + i, k1)
    tl.store(keys + cache + at * DIM + HALF + i, k2)
    tl.store(values + cache + at * DIM + j, value)
    # 2. Queries (GROUP, DIM), rotated.
    g = tl.arange(0, GROUP_P)
    known = (g < GROUP)[:, None]
    of_query = row + (head * GROUP + g)[:, None] * DIM + i[None, :]
    q1, q2 = _rotated(of_query, HALF, c[None, :], s[None, :], known & (i >= 0)[None, :])
    q1, q2 = q1.to(TYPE), q2.to(TYPE)
    q = tl.reshape(tl.permute(tl.join(q1, q2), (0, 2, 1)), (GROUP_P, DIM))
    # 3. Softmax over the new token and all slots before it, a few slots at a time.
    top = tl.sum(q1.to(tl.float32) * k1.to(tl.float32)[None, :], axis=1)
    top = (top + tl.sum(q2.to(tl.float32) * k2.to(tl.float32)[None, :], axis=1)) * scale
    total = tl.full((GROUP_P,), 1.0, tl.float32)
    mixed = tl.zeros((GROUP_P, DIM), tl.float32) + value.to(tl.float32)[None, :]
    for first in range(0, at, SLOTS):
        place = first + tl.arange(0, SLOTS)
        used = place < at
        there = cache + place[:, None] * DIM + j[None, :]
        k = tl.load(keys + there, mask=used[:, None], other=0.0)
        v = tl.load(values + there, mask=used[:, None], other=0.0)
        scores = tl.where(used[None, :], tl.dot(q, tl.trans(k)) * scale, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        shrink = tl.exp(top - new_top)
        p = tl.exp(scores - new_top[:, None])
        high = p.to(TYPE)
        low = (p - high.to(tl.float32)).to(TYPE)
        mixed = tl.dot(low, v, tl.dot(high, v, mixed * shrink[:, None]))
        total = total * shrink + tl.sum(p, axis=1)
        top = new_top
    to = out + lane.to(tl.int64) * N_HEADS * DIM + (head * GROUP + g)[:, None] * DIM + j[None, :]
    tl.store(to, (mixed / total[:, None]).to(out.dtype.element_ty), mask=known)


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
    new1, new2 = _rotated(row + (N_HEADS + head) * DIM + i, HALF, c, s, real)
    new1, new2 = new1.to(keys.dtype.element_ty), new2.to(keys.dtype.element_ty)
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
    q1, q2 = _rotated(of_query, HALF, c[None, :], s[None, :], known)
    q1 = q1.to(keys.dtype.element_ty).to(tl.float32) * scale
    q2 = q2.to(keys.dtype.element_ty).to(tl.float32) * scale
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
    group = triton.next_power_of_2(n_heads // n_kv)
    tensors, shape = (qkv, keys, values, cos, sin, slot, out), (n_slots, dim**-0.5)
    sizes = {"N_HEADS": n_heads, "N_KV": n_kv, "DIM": dim}
    if keys.itemsize == 2 and dim >= 32 and dim == triton.next_power_of_2(dim):
        _attend_half[(n_rows * n_kv,)](
            *tensors, *shape, **sizes, GROUP_P=max(16, group), SLOTS=HALF_SLOTS,
            num_warps=HALF_WARPS, num_stages=HALF_STAGES,
        )  # fmt: skip
    else:
        _attend[(n_rows * n_kv,)](
            *tensors, *shape, **sizes, HALF_P=max(16, triton.next_power_of_2(dim // 2)),
            GROUP_P=group, SLOTS=SLOTS, num_warps=WARPS,
        )  # fmt: skip
    return out


@triton.jit
def _logits(at, bias, columns, vocab, scale, BIASED: tl.constexpr):
    """Those of ``columns`` of the row at ``at``, with bias and temperature; minus infinity outside."""
    real = columns < vocab
    x = tl.load(at + columns, mask=real, other=float("-inf")).to(tl.float32)
    if BIASED:
        x += tl.load(bias + columns, mask=real, other=0.0)
    return x * scale


@triton.jit
def _draw(
    logits,
    bias,
    uniform,
    token,
    logprob,
    vocab,
    scale,
    BIASED: tl.constexpr,
    PARTS_P: tl.constexpr,
    PART: tl.constexpr,
):
    """One row: a pass over its logits finds the part of the vocabulary, a second look the token."""
    r = tl.program_id(0).to(tl.int64)
    row = logits + r * vocab
    column, part_of = tl.arange(0, PART), tl.arange(0, PARTS_P)
    # 1. Of each part the largest logit, and its mass relative to that.
    tops = tl.full((PARTS_P,), float("-inf"), tl.float32)
    mass = tl.zeros((PARTS_P,), tl.float32)
    for part in range(0, tl.cdiv(vocab, PART)):
        x = _logits(row, bias, part * PART + column, vocab, scale, BIASED)
        top = tl.max(x, axis=0)
        here = part_of == part
        tops = tl.where(here, top, tops)
        # A part that the bias excludes altogether has no mass.
        mass = tl.where(here, tl.sum(tl.exp(x - tl.maximum(top, -3e38)), axis=0), mass)
    # 2. The part in which the quantile falls.
    top = tl.max(tops, axis=0)
    mass64 = mass.to(tl.float64) * tl.exp(tops - top).to(tl.float64)
    upper = tl.cumsum(mass64, axis=0)
    total = tl.max(upper, axis=0)
    u = tl.load(uniform + r)
    target = tl.minimum(u * total, total * (1 - 1e-15))
    which = tl.sum((upper <= target).to(tl.int32), axis=0)
    below = tl.sum(tl.where(part_of == which - 1, upper, 0.0), axis=0)
    # 3. The token in it. The two passes round differently: the target stays inside the part.
    x = _logits(row, bias, which * PART + column, vocab, scale, BIASED)
    inner = tl.cumsum(tl.exp(x - top).to(tl.float64), axis=0)
    target = tl.minimum(target - below, tl.max(inner, axis=0) * (1 - 1e-12))
    place = tl.sum((inner <= target).to(tl.int32), axis=0)
    chosen = tl.sum(tl.where(column == place, x, 0.0), axis=0)
    tl.store(token + r, (which * PART + place).to(tl.int64))
    tl.store(logprob + r, ((chosen - top).to(tl.float64) - tl.log(total)).to(tl.float32))


def draw(
    logits: Tensor, bias: Tensor | None, uniform: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Tokens (R,) at quantiles ``uniform`` (R,) float64 of the softmax, and their log-probabilities.

    The softmax is that of (logits (R, V) + bias (V,)) / temperature, whole, read once from memory.
    """
    n_rows, vocab = logits.shape
    token = torch.empty(n_rows, dtype=torch.int64, device=logits.device)
    logprob = torch.empty(n_rows, dtype=torch.float32, device=logits.device)
    part = min(PART, max(16, triton.next_power_of_2(vocab)))
    parts = max(2, triton.next_power_of_2(triton.cdiv(vocab, part)))
    _draw[(n_rows,)](
        logits, logits if bias is None else bias, uniform, token, logprob, vocab, 1 / temperature,
        BIASED=bias is not None, PARTS_P=parts, PART=part, num_warps=PART_WARPS,
    )  # fmt: skip
    return token, logprob


@triton.jit
def _rotate(
    qkv,
    cos,
    sin,
    width,
    N_TURNED: tl.constexpr,
    N_ALL: tl.constexpr,
    DIM: tl.constexpr,
    HALF_P: tl.constexpr,
    TURNED_P: tl.constexpr,
):
    token = tl.program_id(0)
    HALF: tl.constexpr = DIM // 2
    i, h = tl.arange(0, HALF_P), tl.arange(0, TURNED_P)
    c = tl.load(cos + (token % width) * HALF + i, mask=i < HALF, other=0.0)
    s = tl.load(sin + (token % width) * HALF + i, mask=i < HALF, other=0.0)
    at = qkv + token.to(tl.int64) * N_ALL * DIM + h[:, None] * DIM + i[None, :]
    real = (h < N_TURNED)[:, None] & (i < HALF)[None, :]
    left, right = _rotated(at, HALF, c[None, :], s[None, :], real)
    tl.store(at, left.to(qkv.dtype.element_ty), mask=real)
    tl.store(at + HALF, right.to(qkv.dtype.element_ty), mask=real)


def rotate(qkv: Tensor, cos: Tensor, sin: Tensor, width: int, n_turned: int) -> Tensor:
    """``qkv`` (R·width, heads·D), in which the first ``n_turned`` heads are turned in place."""
    dim = 2 * cos.shape[1]
    _rotate[(len(qkv),)](
        qkv, cos, sin, width, N_TURNED=n_turned, N_ALL=qkv.shape[1] // dim, DIM=dim,
        HALF_P=max(16, triton.next_power_of_2(dim // 2)),
        TURNED_P=triton.next_power_of_2(n_turned), num_warps=4,
    )  # fmt: skip
    return qkv


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
