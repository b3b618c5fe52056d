"""Commands to begin with: ``init``, ``completion``."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from overopt.base.errors import ConfigError
from overopt.cli.completion import SHELLS, script


def add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Declare the arguments of this family's commands."""
    init = commands.add_parser(
        "init", parents=[common], help="write an experiment file with comments, to be edited"
    )
    init.add_argument(
        "file", type=Path, nargs="?", default=Path("experiment.py"), help="(default: experiment.py)"
    )
    init.add_argument(
        "--policy",
        default="",
        metavar="SOURCE",
        help="your language model: a directory or org/name",
    )
    init.add_argument("--prompts", default="", metavar="FILE", help="your prompts, with --policy")
    init.add_argument(
        "--gold",
        default="",
        metavar="SOURCE",
        help="with --policy: a reward model (default: the rubric of stories)",
    )
    init.set_defaults(command=write_experiment)

    completion = commands.add_parser(
        "completion", parents=[common], help="print the completion script of a shell"
    )
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(command=print_completion)


def write_experiment(args: argparse.Namespace) -> int:
    """``overopt init``: write the file, unless there is one."""
    from overopt.base import files, folders
    from overopt.study.template import experiment_text

    file: Path = args.file
    if not re.fullmatch(r"[\w.-]+\.py", file.name):
        raise ConfigError(
            f"file {str(file)!r}: must be a name of letters, digits, _, - and . that ends in .py"
        )
    if file.exists():
        raise ConfigError(f"file {str(file)!r}: exists already; give another name, or delete it")
    if not args.policy and (args.prompts or args.gold):
        raise ConfigError("--prompts and --gold go with --policy: give it too")
    folders.check_folder(file.parent, "file", file.name)
    text = experiment_text(file, policy=args.policy, prompts=args.prompts, gold=args.gold)
    files.atomic_write(folders.made_for(file), text.encode())
    print(f"{file} written; next: overopt plan {file}")
    return 0


def print_completion(args: argparse.Namespace) -> int:
    """``overopt completion``."""
    print(script(args.whole, args.shell), end="")
    return 0
