"""The experiment file that `overopt init` writes: every part of a run, with a comment."""

from __future__ import annotations

import string
import textwrap
from collections.abc import Iterable
from pathlib import Path

from overopt.base import files
from overopt.base.kinds import kind_of
from overopt.nets import sources
from overopt.study import presets
from overopt.worlds import prompts as worlds_prompts
from overopt.worlds.splits import split_bounds

EXPERIMENT = '''\
"""${name}: what is asked, and what you expect. Write the prediction down before the run.

    overopt plan ${file}              # what it computes, and for how long
    overopt run ${file}               # compute it; the same command goes on after an interruption
    overopt figures results/${name} --out results/${name}
    overopt report results/${name} --out ${name}.html

`overopt settings WORD` explains every setting; any of them can be changed on the command line too,
as in `overopt run ${file} labels.n_pairs=1500`.
"""

from dataclasses import replace

from overopt import Experiment, RunConfig
from overopt.methods import ppo
from overopt.rewards.kinds import ${gold_kind}
from overopt.rewards.kinds.bradley_terry import Settings as Proxy
from overopt.rewards.settings import LabelsConfig
from overopt.stages.settings import BonConfig
from overopt.worlds import ${world_kind}

# Where prompts come from and what answers them. A policy is a directory with config.json,
# safetensors and tokenizer, or org/name of the hub; prompts are a JSONL file.
WORLD = ${world_kind}.Settings(
${world})

# What plays the human: it labels the pairs that proxies learn from, and scores every point.
GOLD = ${gold_kind}.Settings(${gold})

# The pairs. More of them make a better proxy; label_flip_rate turns some of them round.
LABELS = LabelsConfig(
    n_pairs=${n_pairs},
    n_validation_prompts=${n_validation},
    label_flip_rate=0.0,
)

# The models that learn from the pairs: one run, and one colour in Figure 1, for each.
PROXIES = (
${proxies})

# Best-of-n at these n, on n_prompts prompts with pool_size responses each. None leaves it out.
BON = BonConfig(
    n_prompts=${bon_prompts},
    pool_size=${pool_size},
    ns=(
${ns}    ),
)

# Optimisation of the policy, in even steps of √KL. kl_coef is the price of a nat of distance from
# where it began.
METHOD = ppo.Settings(
    steps=48,
    batch=64,
    adv_scale="fixed",
    step_kl=0.15,
    eval_sqrt_kl=1.0,
    stop_sqrt_kl=8.0,
    kl_coef=0.0,
    eval_prompts=${eval_prompts},
    eval_copies=2,
${method})

# Replicates of everything: comparisons, proxies and PPO. More of them make differences trustworthy.
SEEDS = range(1)


def build() -> Experiment:
    """A run for each proxy and seed."""
    runs = tuple(
        RunConfig(
            world=WORLD,
            gold=GOLD,
            labels=replace(LABELS, data_seed=seed),
            proxy=replace(proxy, rm_seed=seed),
            bon=BON,
            method=replace(METHOD, ppo_seed=seed),
        )
        for seed in SEEDS
        for proxy in PROXIES
    )
    return Experiment(name="${name}", runs=runs)
'''


def experiment_text(file: Path, *, policy: str = "", prompts: str = "", gold: str = "") -> str:
    """The text of the experiment file ``file``: Figure 1 on the embedded world, or on the user's.

    Parameters
    ----------
    policy : source of a causal language model; "" for the embedded world of stories.
    prompts : with ``policy``: a prompts file; "" for the shipped instructions.
    gold : with ``policy``: source of a sequence classifier; "" for the rubric of stories.

    Raises
    ------
    ConfigError, CheckpointError, DataError
        A source or a file that cannot be read.
    """
    figure_1 = presets.figure_run(presets.MIDDLE, 0)
    labels, bon, method = figure_1.labels, figure_1.bon, figure_1.method
    assert bon is not None and method is not None
    if not policy:
        sizes = (presets.SMALLEST, presets.MIDDLE, presets.LARGE)
        settings = [presets.proxy(size, labels.n_pairs) for size in sizes]
        words = {
            "world_kind": "stories",
            "world": "",
            "gold_kind": kind_of(figure_1.gold),
            "gold": "",
            "n_pairs": labels.n_pairs,
            "n_validation": labels.n_validation_prompts,
            "bon_prompts": bon.n_prompts,
            "eval_prompts": method.eval_prompts,
            "method": "",
            "proxies": _proxies((p.backbone, p.layers, p.lr) for p in settings),
        }
    else:
        own = (
            worlds_prompts.read_prompts(prompts).texts
            if prompts
            else worlds_prompts.load_instructions()
        )
        available = {s: stop - start for s, (start, stop) in split_bounds(len(own)).items()}
        config = files.load_object(sources.checkpoint_dir(policy) / "config.json")
        named = [f"policy={policy!r}", *([f"prompts_file={prompts!r}"] if prompts else [])]
        named += [] if gold else ['intent="rubric"']
        most = available["train"] * labels.pairs_per_prompt
        words = {
            "world_kind": "hf",
            "world": "".join(f"    {setting},\n" for setting in named),
            "gold_kind": "pretrained" if gold else "rubric",
            "gold": f"source={gold!r}" if gold else "",
            "n_pairs": min(labels.n_pairs, most),
            "n_validation": min(labels.n_validation_prompts, available["validation"]),
            "bon_prompts": min(bon.n_prompts, available["eval"]),
            "eval_prompts": min(method.eval_prompts, available["eval"]),
            "method": f"    lr=1e-5,\n    value_lr=2e-5,\n    value_backbone={policy!r},\n",
            "proxies": _proxies((policy, layers, 3e-5) for layers in _depths(config)),
        }
    ns = textwrap.fill(", ".join(map(str, bon.ns)) + ",", 88)
    words |= {
        "name": file.stem,
        "file": file.name,
        "pool_size": bon.pool_size,
        "ns": textwrap.indent(ns, " " * 8) + "\n",
    }
    return string.Template(EXPERIMENT).substitute(words)


def _proxies(settings: Iterable[tuple[str, int, float]]) -> str:
    """Lines of proxies by backbone, first layers (0: all) and learning rate."""
    return "".join(
        f"    Proxy(backbone={backbone!r}, {f'layers={layers}, ' if layers else ''}lr={lr:g}),\n"
        for backbone, layers, lr in settings
    )


def _depths(config: dict) -> list[int]:
    """A quarter, a half and all (0) of a model's layers."""
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    if not isinstance(layers, int):
        return [0]
    parts = dict.fromkeys(max(1, layers // share) for share in (4, 2))
    return [*(k for k in parts if k < layers), 0]
