"""Speed of scoring a whole best-of-n pool with one small reward model, against a budget."""

from overopt.bench.groups.scoring import ladder_reward_model
from overopt.bench.harness import Row, interleaved, make_row
from overopt.bench.random_inputs import random_responses
from overopt.bench.setting import Group, Setting
from overopt.nets.heads import ScalarHeadModel
from overopt.rewards.scorer import raw_scores

NAMES = ("score_pool",)
BUDGET_S = 5.0


def group(setting: Setting) -> Group | None:
    """Only where sizes are given: the pool is one that a GPU can score."""
    sizes = setting.sizes
    if sizes is None:
        return None
    return Group(
        NAMES,
        lambda: pool_rows(
            ladder_reward_model(setting.root_seed), n_responses=sizes.n_pool, **setting.where
        ),
    )


def pool_rows(
    model: ScalarHeadModel,
    *,
    n_responses: int,
    n_prompt_tokens: int = 16,
    n_tokens: int = 64,
    repeats: int = 2,
    root_seed: int = 0,
    device: str = "cuda",
) -> list[Row]:
    """Scores of a whole best-of-n pool by one small reward model, against a budget of seconds."""
    pool = random_responses(
        model.backbone.cfg.vocab_size, n_responses, n_prompt_tokens, n_tokens, root_seed=root_seed
    )
    model = model.to(device).eval()
    seconds = interleaved({"ours": lambda: raw_scores(model, pool)}, repeats, device=device)
    return [
        make_row(
            NAMES[0],
            seconds["ours"],
            [BUDGET_S],
            against="budget",
            target=1.0,
            note=f"{n_responses:,} responses of {n_prompt_tokens} + 1 to {n_tokens} tokens, float32; "
            f"reference: a budget of {BUDGET_S:.0f} s",
        )
    ]
