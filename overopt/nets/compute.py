"""How an optimizer step is carried out: micro-batches, processes, precision; never what it computes.

A loss is a sum over the step's pairs or tokens divided by the
step's total, so parts can be added up in any division: over micro-batches that fit the memory, and
over processes that each take a share of the rows. What is left of the division is the order of
float32 sums.

What it does differently from a trainer library: nothing is wrapped. The loop stays the caller's; it
asks for its share of the rows, for a sum over processes, for another try where memory ran out.
``accelerate`` starts the processes (`overopt.engine.launched`); autocast is torch's own, because
accelerate fixes one precision for a whole process and here each stage has its setting.
"""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from overopt.base.config import RuntimeConfig
from overopt.base.errors import ConfigError, MemoryLimitError

Precision = Literal["fp32", "bf16"]
_CUDA_TOKENS, _CUDA_LOGITS = 1 << 16, 1 << 29  # of one call: padded tokens; logits, float32
T = TypeVar("T")


@dataclass
class Compute:
    """What one process may use, and which share of the work is its own.

    Attributes
    ----------
    micro_batch : int or None
        Most sequences that go through a network at once; None: all. It is halved where memory runs
        out and stays so.
    precision : "fp32" or "bf16"
        Of matrix products in training; parameters, losses and optimizer states are float32.
    rank, n_ranks : int
        This process and the number of processes that share each optimizer step.
    """

    micro_batch: int | None = None
    precision: Precision = "fp32"
    rank: int = 0
    n_ranks: int = 1

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager:
        """The context in which networks are called."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)

    # --- memory -----------------------------------------------------------------------------------

    def attempt(self, work: Callable[[int], T], n_rows: int) -> T:
        """``work(micro_batch)``, again with half the micro-batch as often as memory runs out.

        ``work`` starts from scratch at each call and contains no exchange between processes, so
        that one of them can repeat it alone.

        Raises
        ------
        MemoryLimitError
            A micro-batch of 1 does not fit.
        """
        size = max(1, min(self.micro_batch or n_rows, n_rows))
        fitted = fit_memory(work, size)
        if fitted.size < size:
            self.micro_batch = fitted.size
        return fitted.result

    # --- one step ---------------------------------------------------------------------------------

    def accumulate(
        self, rows: Tensor, parameters: Sequence[Tensor], loss: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Gradients of a summed loss over all rows, in ``.grad``; returns the sums.

        Parameters
        ----------
        rows : (R,) int64
            Rows of the step, the same in every process.
        parameters : list of Tensor
            Their gradients are replaced, identically in every process.
        loss : callable
            Rows (r,) -> (S,) float32: this share's part of the loss, then of statistics, each a sum
            that the caller divides by the total of the step. Only entry 0 is differentiated.

        Returns
        -------
        Tensor
            (S,) sums over all rows and processes, detached.

        Raises
        ------
        ConfigError
            Fewer rows than processes.
        MemoryLimitError
            A single row does not fit.
        """
        if len(rows) < self.n_ranks:
            raise ConfigError(
                f"a step of {len(rows)} sequences cannot be shared by {self.n_ranks} processes: start"
                " fewer processes or take larger batches"
            )
        mine = self.share(rows)

        def run(size: int) -> Tensor:
            clear_gradients(parameters)
            totals = []
            for part in mine.split(size):
                sums = loss(part)
                sums[0].backward()
                totals.append(sums.detach())
            return torch.stack(totals).sum(0)

        total = self.attempt(run, len(mine))
        self.sum_gradients(parameters)
        return self.sum(total)

    # --- processes --------------------------------------------------------------------------------

    def share(self, rows: Tensor) -> Tensor:
        """This process's part of ``rows``: every n_ranks-th, so that rows sorted by length are
        dealt evenly."""
        return rows[self.rank :: self.n_ranks]

    def sum(self, x: Tensor) -> Tensor:
        """Sum of ``x`` over processes, bit-identical in each."""
        if self.n_ranks > 1:
            x = x.contiguous().clone()
            torch.distributed.all_reduce(x)
        return x

    def gather(self, own: Tensor, rows: Tensor, n_rows: int) -> Tensor:
        """The table (n_rows, …) of which this process holds ``own`` at ``rows``."""
        out = own.new_zeros((n_rows, *own.shape[1:]))
        out[rows.to(own.device, non_blocking=True)] = own
        if self.n_ranks == 1:
            return out
        if own.dtype == torch.bool:
            return self.sum(out.to(torch.uint8)).bool()
        return self.sum(out)  # adding zeros is exact

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Sum ``.grad`` over processes, in one exchange."""
        if self.n_ranks == 1:
            return
        parameters = [p for p in parameters if p.requires_grad]
        flat = self.sum(
            torch.cat(
                [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
            )
        )
        for p, grad in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = grad.view_as(p)


def tokens_at_once(device: torch.device, elsewhere: int, *, n_logits: int = 0) -> int:
    """Padded tokens of one call of a network: what fills a CUDA GPU, ``elsewhere`` on other devices.

    ``n_logits``: logits of each token that the call makes, which bound it by their memory.
    """
    if device.type != "cuda":
        return elsewhere
    return min(_CUDA_TOKENS, max(1, _CUDA_LOGITS // n_logits)) if n_logits else _CUDA_TOKENS


class MemoryWarning(UserWarning):
    """Memory ran out and the batch was halved."""


class Fitted(NamedTuple, Generic[T]):
    """What the work gave, and the size at which it fitted."""

    result: T
    size: int


def fit_memory(work: Callable[[int], T], size: int, unit: str = "sequences") -> Fitted[T]:
    """``work(size)``, with half the size as often as memory runs out; warns once when it did.

    Raises
    ------
    MemoryLimitError
        A size of 1 does not fit.
    """
    asked = size
    while True:
        try:
            result = work(size)
            break
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise MemoryLimitError(
                    f"out of memory with 1 of {unit} at once: use a smaller model, fewer response"
                    " tokens (world.max_response_tokens), precision = bf16, or fewer stages on the"
                    f" device at once (--gpu-jobs); torch says: {error}"
                ) from error
        # Behind the except block, where the error has let go of the tensors of the failed call.
        size //= 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if size < asked:
        warnings.warn(
            f"out of memory with {asked} {unit} at once: went on with {size} (--micro-batch), which"
            " changes results by rounding only",
            MemoryWarning,
            stacklevel=3,
        )
    return Fitted(result, size)


def clear_gradients(parameters: Iterable[Tensor]) -> None:
    """Forget all gradients."""
    for p in parameters:
        p.grad = None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch failed for want of memory, on an accelerator or in its CPU allocator."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text


def compute_of(runtime: RuntimeConfig, precision: Precision = "fp32") -> Compute:
    """What a training loop may use: micro-batch, precision, and this process's share."""
    import torch

    pass

    group = torch.distributed
    if not (group.is_available() and group.is_initialized()):
        return Compute(micro_batch=runtime.micro_batch, precision=precision)
    return Compute(
        micro_batch=runtime.micro_batch,
        precision=precision,
        rank=group.get_rank(),
        n_ranks=group.get_world_size(),
    )
