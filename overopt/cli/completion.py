"""``overopt completion``: scripts that let a shell complete commands, options, presets and settings."""

from __future__ import annotations

import argparse

from overopt.cli.options import PRESETS
from overopt.cli.settings import known_names

SHELLS = ("bash", "zsh", "fish")

_BASH = """\
_overopt() {
    local word=${COMP_WORDS[COMP_CWORD]} words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="%(commands)s"
    else
        case ${COMP_WORDS[1]} in
%(cases)s
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    if [[ ${COMPREPLY[0]} == *= ]]; then compopt -o nospace; fi
}
complete -o default -F _overopt overopt
"""


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion script of one of `SHELLS` for the commands of ``parser``."""
    settings = [f"{name}=" for name in known_names()]
    words: dict[str, list[str]] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                options = [s for a in command._actions for s in a.option_strings]
                takes_settings = any(a.dest == "overrides" for a in command._actions)
                takes_preset = any(a.dest == "experiment" for a in command._actions)
                words[name] = [
                    *options,
                    *(PRESETS if takes_preset else ()),
                    *(settings if takes_settings and takes_preset else ()),
                ]
    if shell == "fish":
        return "\n".join(_fish(words)) + "\n"
    cases = (f'            {name}) words="{" ".join(known)}" ;;' for name, known in words.items())
    text = _BASH % {"commands": " ".join(words), "cases": "\n".join(cases)}
    return text if shell == "bash" else f"autoload -U +X bashcompinit && bashcompinit\n{text}"


def _fish(words: dict[str, list[str]]) -> list[str]:
    lines = [f"complete -c overopt -n __fish_use_subcommand -f -a '{' '.join(words)}'"]
    for name, known in words.items():
        where = f"complete -c overopt -n '__fish_seen_subcommand_from {name}'"
        lines += [f"{where} -l {word[2:]}" for word in known if word.startswith("--")]
        plain = [word for word in known if not word.startswith("-")]
        lines += [f"{where} -a '{' '.join(plain)}'"] if plain else []
    return lines
