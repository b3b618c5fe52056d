"""``overopt sft``: fine-tune a policy on responses."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from overopt.base.config import RuntimeConfig
from overopt.cli.options import count

if TYPE_CHECKING:
    from overopt.study.fine_tune import Filter


def add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Declare the arguments of this family's commands."""
    sft = commands.add_parser(
        "sft", parents=[common], help="fine-tune a policy on responses; world.policy=DIR takes it"
    )
    sft.add_argument(
        "overrides", nargs="*", metavar="name=value", help="settings, such as epochs=2 lr=1e-4"
    )
    sft.add_argument("--model", required=True, help="what to start from, such as ladder:0.8m")
    sft.add_argument(
        "--data", type=Path, required=True, help="JSONL with the fields prompt and response"
    )
    sft.add_argument("--out", type=Path, required=True, help="checkpoint directory to write")
    sft.add_argument(
        "--reward",
        default="",
        metavar="SOURCE",
        help="learn only what this reward model likes best: anything that `overopt eval --model` takes;"
        " its settings are given as reward.kind=policy and the like",
    )
    sft.add_argument(
        "--keep",
        type=float,
        default=None,
        metavar="PERCENT",
        help="with --reward: the top share of the examples that is learned (100: plain SFT)",
    )
    sft.add_argument(
        "--keep-of",
        default="all",
        choices=("all", "prompt"),
        help="the top share of all examples, or of those of each prompt (default: all)",
    )
    sft.add_argument("--threads", type=count, default=1, help="threads (default: 1)")
    sft.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (default: cpu)")
    sft.add_argument(
        "--micro-batch", type=count, default=None, help="largest batch through a network at once"
    )
    sft.add_argument("--quiet", action="store_true", help="show no progress")
    sft.set_defaults(command=run_sft)


REWARD = "reward."
"""How settings of the reward model that filters begin."""


def _filter_of(args: argparse.Namespace) -> Filter | None:
    """The filter that the arguments ask for; None for none."""
    from overopt.base.config import require

    settings = [o.removeprefix(REWARD) for o in args.overrides if o.startswith(REWARD)]
    if not args.reward:
        require(not settings, REWARD[:-1], ", ".join(settings), "needs --reward SOURCE, the model")
        require(
            args.keep is None, "--keep", args.keep, "needs --reward SOURCE, the model that filters"
        )
        require(args.keep_of == "all", "--keep-of", args.keep_of, "needs --reward and --keep")
        return None
    require(
        args.keep is not None, "--reward", args.reward, "needs --keep PERCENT, such as --keep 25"
    )
    from overopt.evals import filtering
    from overopt.study.fine_tune import Filter

    model = filtering.settings_of(args.reward, settings)
    return Filter(
        lambda pairs: filtering.score_examples(model, pairs, device=args.device).tolist(),
        args.keep,
        args.keep_of,
        model.title,
    )


def run_sft(args: argparse.Namespace) -> int:
    """``overopt sft``."""
    runtime = RuntimeConfig(
        device=args.device, threads=args.threads, micro_batch=args.micro_batch, quiet=args.quiet
    )
    os.environ.update(runtime.environment)
    from overopt.base import folders
    from overopt.base.overrides import apply_overrides
    from overopt.engine import launched
    from overopt.engine.execute import check_device
    from overopt.methods.sft import SftConfig
    from overopt.study import fine_tune

    check_device(args.device)
    folders.check_folder(args.out.parent, "--out")
    tenth = 0

    def progress(done: int, total: int) -> None:
        nonlocal tenth
        if not args.quiet and launched.rank() == 0 and 10 * done // total > tenth:
            tenth = 10 * done // total
            print(f"step {done} of {total}", file=sys.stderr)

    own = [o for o in args.overrides if not o.startswith(REWARD)]
    cfg = apply_overrides(SftConfig(), own)
    log = fine_tune.run(
        args.model,
        args.data,
        args.out,
        cfg=cfg,
        runtime=runtime,
        progress=progress,
        only=_filter_of(args),
    )
    if launched.rank() == 0:
        print(
            f"{log.n_train} examples, {log.n_validation} held out: {log.validation_before:.3f} ->"
            f" {log.validation_after:.3f} nats a response token; written to {args.out}"
        )
    return 0
