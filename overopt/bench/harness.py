"""What every benchmark shares: clocks, turns, rows of the report, and the machine's own limit.

A row compares one path of the package with a reference that does the same work in the same run; a
ratio is reference over ours, above 1 where ours is faster. On the CPU seconds are CPU seconds of a
process, so that other work on the machine does not enter; on an accelerator they are wall seconds
after synchronisation, because the CPU's clock does not see its work.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from overopt.base.errors import OveroptError
from overopt.base.seeding import torch_generator
from overopt.nets.block import LlamaConfig

Row = dict[str, Any]

REPORT_VERSION = 1
ROW_FIELDS = {
    "name": "what is timed, and against what",
    "against": '"implementation"; "limit": what no implementation can beat; or "budget"',
    "seconds": "of ours, median; null where not measured",
    "reference_seconds": "of the reference, median; null where not measured",
    "ratio": "reference_seconds / seconds; null where either is missing",
    "target": "ratio aimed at; null for none",
    "met": "whether the target is reached; null without target or measurement",
    "reason": "why a side was not measured; empty where both were",
    "note": "the work, and anything needed to read the numbers",
    "samples": "every timed repetition of ours, in seconds",
    "reference_samples": "every timed repetition of the reference, in seconds",
    "details": "further measurements of this row",
}


class BenchError(OveroptError, RuntimeError):
    """A benchmark that cannot be run or whose two sides do not do the same work."""


def clock(device: str) -> Callable[[], float]:
    """Seconds for timing on ``device``: CPU time of this process, or synchronized wall time."""
    if device == "cpu":
        return time.process_time

    def now() -> float:
        torch.accelerator.synchronize(device)
        return time.perf_counter()

    return now


def interleaved(
    sides: Mapping[str, Callable[[], Any]], repeats: int, *, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of ``repeats`` calls of each side, in turn, after one untimed call of each.

    In turn, so that a drift of the machine (frequency, other work) hits all sides alike.
    """
    now = clock(device)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, run in sides.items():
            start = now()
            run()
            elapsed = now() - start
            if turn > 0:
                seconds[name].append(elapsed)
    return seconds


def make_row(
    name: str,
    samples: Sequence[float],
    reference_samples: Sequence[float] | None,
    *,
    against: str = "implementation",
    target: float | None = None,
    reason: str = "",
    note: str = "",
    details: Mapping[str, Any] | None = None,
) -> Row:
    """A row from the raw seconds of both sides; the median stands for each.

    ``reference_samples`` None: not measured, for ``reason``.
    """
    seconds = statistics.median(samples) if samples else None
    reference = statistics.median(reference_samples) if reference_samples else None
    return complete(
        {
            "name": name,
            "against": against,
            "seconds": seconds,
            "reference_seconds": reference,
            "target": target,
            "reason": reason,
            "note": note,
            "samples": list(samples),
            "reference_samples": list(reference_samples or ()),
            "details": dict(details or {}),
        }
    )


def complete(row: Mapping[str, Any]) -> Row:
    """``row`` with every field of `ROW_FIELDS`: absent ones empty, ratio and verdict derived.

    Raises
    ------
    BenchError
        ``row`` has a field that the report does not know.
    """
    if unknown := sorted(set(row) - set(ROW_FIELDS)):
        raise BenchError(f"row {row.get('name')!r} has unknown fields {unknown}")
    empty: Row = dict.fromkeys(ROW_FIELDS)
    empty |= {"against": "implementation", "reason": "", "note": ""}
    empty |= {"samples": [], "reference_samples": [], "details": {}}
    full = empty | dict(row)
    ours, reference = full["seconds"], full["reference_seconds"]
    full["ratio"] = None if ours is None or reference is None else reference / ours
    if full["ratio"] is None and not full["reason"]:
        full["reason"] = "no reference"
    if full["ratio"] is None or full["target"] is None:
        full["met"] = None
    elif full["met"] is None:
        full["met"] = full["ratio"] >= full["target"]
    return full


def not_measured(name: str, reason: str, *, target: float | None = None) -> Row:
    """A row of which neither side was measured, and why."""
    return complete({"name": name, "reason": reason, "target": target})


def rows_or_reason(
    names: Sequence[str], measure: Callable[[], Sequence[Mapping[str, Any]]]
) -> list[Row]:
    """The rows that ``measure`` returns; where it fails, ``names`` as not measured, with the error.

    So that one benchmark that cannot be run leaves the others their numbers.
    """
    try:
        return [complete(row) for row in measure()]
    except (OveroptError, ArithmeticError, OSError, RuntimeError, ValueError) as error:
        return [not_measured(name, f"{type(error).__name__}: {error}") for name in names]


# --- the machine's own limit ----------------------------------------------------------------------


class Product(NamedTuple):
    """``times`` matrix products of (rows, inner) with (inner, cols)."""

    rows: int
    inner: int
    cols: int
    times: int = 1

    @property
    def flops(self) -> int:
        """Floating-point operations, a multiplication and an addition counted as two."""
        return 2 * self.rows * self.inner * self.cols * self.times


def forward_products(
    cfg: LlamaConfig, n_positions: int, *, n_read: int | None = None, n_logits: int = 0
) -> list[Product]:
    """Products that one forward pass over ``n_positions`` tokens cannot do without.

    ``n_read``: positions at which the last block's output is read (None: all); at the others it owes
    keys and values only. ``n_logits``: positions mapped to the vocabulary. The linear maps only:
    attention, norms and all else come on top, so the time that these products take is a lower bound
    for whatever multiplies at this precision.
    """
    d, h, kv = cfg.hidden_size, cfg.intermediate_size, 2 * cfg.n_kv_heads * cfg.head_dim
    n_read = n_positions if n_read is None else n_read
    behind = [(d, d), (d, 2 * h), (h, d)]
    products = [
        Product(n_positions, k, n, cfg.num_hidden_layers - 1) for k, n in [(d, d + kv), *behind]
    ]
    products += [Product(n_positions, d, kv)]
    products += [Product(n_read, k, n) for k, n in [(d, d), *behind]]
    return products + ([Product(n_logits, d, cfg.vocab_size)] if n_logits else [])


def training_products(
    cfg: LlamaConfig, n_positions: int, *, n_read: int | None = None, n_logits: int = 0
) -> list[Product]:
    """The same forward and backward: each map, and the gradients of its input and of its weight."""
    out = []
    for p in forward_products(cfg, n_positions, n_read=n_read, n_logits=n_logits):
        out += [
            p,
            Product(p.rows, p.cols, p.inner, p.times),
            Product(p.inner, p.rows, p.cols, p.times),
        ]
    return out


def product_runner(
    products: Sequence[Product],
    generator: torch.Generator,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Callable[[], None]:
    """A function that computes all ``products`` once, on random matrices."""
    made: dict[tuple[int, int, int], tuple[torch.Tensor, ...]] = {}
    for p in products:
        shape = (p.rows, p.inner, p.cols)
        if shape not in made:
            x, w = (
                torch.randn(s, generator=generator).to(device, dtype)
                for s in ((p.rows, p.inner), (p.inner, p.cols))
            )
            made[shape] = (x, w, torch.empty((p.rows, p.cols), device=device, dtype=dtype))

    def run() -> None:
        for p in products:
            x, w, out = made[p.rows, p.inner, p.cols]
            for _ in range(p.times):
                torch.mm(x, w, out=out)

    return run


def matrix_rate(device: str, *, size: int = 8192, repeats: int = 5) -> float:
    """Floating-point operations a second of a (size, size) product in bfloat16; median."""
    generator = torch_generator(0, "matrix")
    x, y = (
        torch.randn(size, size, generator=generator).to(device, torch.bfloat16) for _ in range(2)
    )
    out = torch.empty_like(x)
    # Ten at a time: the clock's own cost is nothing beside them.
    many = interleaved(
        {"mm": lambda: [torch.mm(x, y, out=out) for _ in range(10)]}, repeats, device=device
    )["mm"]
    return 10 * 2 * size**3 / statistics.median(many)


def copy_bandwidth(device: str, *, n_bytes: int = 1 << 28, repeats: int = 5) -> float:
    """Bytes a second that a copy on ``device`` reads and writes, both counted; median."""
    source = torch.zeros(n_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = interleaved({"copy": lambda: target.copy_(source)}, repeats, device=device)["copy"]
    return 2 * n_bytes / statistics.median(seconds)


# --- the report -----------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """The rows as text, one a line, what was not measured with its reason."""
    head = f"{'path':34} {'ours':>9} {'reference':>9} {'ratio':>7} {'target':>7}"
    lines = [head]
    for row in rows:
        ours, theirs = (
            f"{row[k]:7.3f} s" if row[k] is not None else f"{'-':>9}"
            for k in ("seconds", "reference_seconds")
        )
        ratio = f"{row['ratio']:7.2f}" if row["ratio"] is not None else f"{'-':>7}"
        target = f"{'-':>7}" if row["target"] is None else f"{row['target']:7.2g}"
        verdict = {True: "met", False: "MISSED", None: ""}[row["met"]]
        lines.append(f"{row['name']:34} {ours} {theirs} {ratio} {target}  {verdict}".rstrip())
        if row["ratio"] is None:
            lines.append(f"    not measured: {row['reason']}")
        if row["note"]:
            lines.append(f"    {row['note']}")
    return "\n".join(lines)
