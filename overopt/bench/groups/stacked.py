"""Speed of reward models trained at once, against the same trained one after another.

The members are the ladder's own, on every device.
"""

from collections.abc import Callable, Sequence

from overopt.base.seeding import derive_seed, torch_generator
from overopt.bench.harness import Row, interleaved, make_row
from overopt.bench.models import ladder
from overopt.bench.random_inputs import random_pairs
from overopt.bench.setting import Group, Setting
from overopt.bench.training import LR, train_once
from overopt.nets.heads import ScalarHeadModel
from overopt.nets.llama import Llama
from overopt.rewards.training.stacked import train_reward_models_stacked

NAMES = ("stacked_vs_single_0.05m", "stacked_vs_single_0.2m")
TARGET = {"cpu": 2.0, "accelerator": 4.0}


def group(setting: Setting) -> Group:
    """Two rungs of the ladder, at every size."""
    return Group(NAMES, lambda: stacked_rows(**setting.where))


def stacked_rows(
    *,
    backbones: Sequence[tuple[str, Callable[[], Llama]]] = (
        (NAMES[0], lambda: ladder("0.05m")),
        (NAMES[1], lambda: ladder("0.2m")),
    ),
    n_members: int = 5,
    n_steps: int = 8,
    batch: int = 8,
    n_tokens: int = 64,
    repeats: int = 5,
    root_seed: int = 0,
    device: str = "cpu",
) -> list[Row]:
    """``n_members`` reward models trained at once, against one after another; a row a backbone.

    ``batch`` prompts a step with a pair each, ``n_tokens`` tokens a row; every member has its own head
    and data order.
    """
    return [
        _row(
            name,
            backbone,
            n_members=n_members,
            n_steps=n_steps,
            batch=batch,
            n_tokens=n_tokens,
            repeats=repeats,
            root_seed=root_seed,
            device=device,
        )
        for name, backbone in backbones
    ]


def _row(
    name: str,
    backbone: Callable[[], Llama],
    *,
    n_members: int,
    n_steps: int,
    batch: int,
    n_tokens: int,
    repeats: int,
    root_seed: int,
    device: str,
) -> Row:
    seeds = [derive_seed(root_seed, "member", m) for m in range(n_members)]

    def members() -> list[ScalarHeadModel]:
        made = [ScalarHeadModel(backbone()) for _ in seeds]
        for model, seed in zip(made, seeds, strict=True):
            model.init_head(torch_generator(seed, "head"))
        return [model.to(device) for model in made]

    apart, together = members(), members()
    vocab = apart[0].backbone.cfg.vocab_size
    pairs = random_pairs(vocab, batch * n_steps, n_tokens, root_seed=root_seed)

    def single() -> None:
        for model, seed in zip(apart, seeds, strict=True):
            train_once(model, pairs, batch=batch, seed=seed)

    def stacked() -> None:
        train_reward_models_stacked(
            together,
            [pairs] * n_members,
            epochs=1,
            lr=LR,
            batch_prompts=batch,
            weight_decay=0.0,
            seeds=seeds,
            validate=lambda model: {},
            progress=lambda done, total: None,
        )

    seconds = interleaved({"ours": stacked, "apart": single}, repeats, device=device)
    return make_row(
        name,
        seconds["ours"],
        seconds["apart"],
        target=TARGET["cpu" if device == "cpu" else "accelerator"],
        note=f"{n_members} members, {n_steps} steps of {batch} pairs x {n_tokens} tokens; "
        "reference: the same members one after another",
    )
