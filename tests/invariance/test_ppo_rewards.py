"""PPO with shaped rewards and an adaptive KL penalty: state, references, and what they change."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from ppo_steps import ppo_step, reference_scores

from overopt.base.datatypes import Prompts
from overopt.methods import ppo
from overopt.methods.ppo import load_state_tensors, new_state, state_tensors
from overopt.methods.rollouts import prompts_of_step
from overopt.nets.block import LlamaConfig
from overopt.nets.heads import ScalarHeadModel
from overopt.nets.llama import Llama
from overopt.rewards.transforms.shaping import shape_of


def policy(seed=0):
    cfg = LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    model = Llama(cfg)
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


@dataclass
class LikesToken:
    """A proxy that counts one token."""

    token: int = 9

    def score(self, responses):
        return ((responses.ids == self.token) & responses.mask).sum(1).float()


PROMPTS = Prompts(
    torch.tensor([[1, 4, 5], [2, 1, 6], [1, 7, 8], [1, 2, 3]]),
    torch.ones(4, 3, dtype=torch.bool),
    torch.arange(4),
)


def fresh(cfg):
    return new_state(policy(), ScalarHeadModel(policy()), cfg)


def run(state, cfg, n, ref_scores=None):
    shaped = cfg.shaping != "none"
    shape = shape_of(cfg.shaping, strength=cfg.shaping_scale, ref_scores=ref_scores)
    return [
        ppo_step(
            state,
            policy(),
            LikesToken(),
            PROMPTS,
            cfg,
            n_tokens=6,
            seed=5,
            shape=shape if shaped else None,
        )
        for _ in range(n)
    ]


def config(**kw):
    return ppo.Settings(steps=40, batch=32, minibatches=2, lr=1e-2, eval_prompts=4, **kw)


def test_adaptive_weight_is_part_of_the_state_and_resumes_bitwise():
    cfg = config(kl_coef=0.05, kl_target=0.5)
    straight, first, second = fresh(cfg), fresh(cfg), fresh(cfg)
    stats = run(straight, cfg, 6)
    assert len({s["kl_coef"] for s in stats}) == 6 and stats[0]["kl_coef"] == 0.05
    run(first, cfg, 3)
    load_state_tensors(second, {k: v.clone() for k, v in state_tensors(first).items()})
    assert run(second, cfg, 3) == stats[3:]
    a, b = state_tensors(straight), state_tensors(second)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_adaptive_weight_follows_the_rule_and_lets_kl_rise_to_its_target():
    """The weight starts so large that a fixed one of that size lets nothing move."""
    last = {}
    for target in (0.0, 1.0):
        gain = {"kl_target": target, "kl_gain": 1.0} if target else {}
        cfg = ppo.Settings(
            steps=24, batch=32, minibatches=2, lr=5e-3, eval_prompts=4, kl_coef=1.0, **gain
        )
        stats = run(fresh(cfg), cfg, 24)
        last[target] = stats[-1]["train_kl_seq_nats"]
        for now, following in pairwise(stats):
            error = (now["train_kl_seq_nats"] - target) / target if target else 0.0
            factor = 1 + min(max(error, -0.2), 0.2)
            assert following["kl_coef"] == pytest.approx(now["kl_coef"] * factor, rel=1e-12)
    assert last[0.0] < 0.2 < 0.4 < last[1.0]


def test_measured_kl_is_zero_at_step_0():
    cfg = config(kl_coef=0.05)
    assert run(fresh(cfg), cfg, 1)[0]["train_kl_seq_nats"] == 0.0


def test_reference_scores_cover_exactly_the_prompts_that_are_rolled_out():
    cfg = ppo.Settings(steps=1, batch=2, minibatches=1, eval_prompts=4)
    found = reference_scores(policy(), LikesToken(), PROMPTS, cfg, n_tokens=6, seed=5)
    drawn = set(prompts_of_step(4, batch=2, seed=5, step=0).tolist())
    assert set(torch.nonzero(found.isfinite())[:, 0].tolist()) == drawn
    again = reference_scores(policy(), LikesToken(), PROMPTS, cfg, n_tokens=6, seed=5)
    assert torch.equal(found.nan_to_num(-1), again.nan_to_num(-1))


@pytest.mark.parametrize("shaping", ["clip", "par", "log_sigmoid"])
def test_shaped_rewards_still_teach_and_the_plain_score_is_logged(shaping):
    cfg = config(shaping=shaping)
    state, zeros = fresh(cfg), torch.zeros(4)
    stats = run(state, cfg, 30, ref_scores=zeros)
    assert stats[-1]["train_proxy_score"] > stats[0]["train_proxy_score"] + 0.5
    bound = {"clip": (-1.0, 1.0), "par": (0.0, 1.0), "log_sigmoid": (-100.0, 0.0)}[shaping]
    assert all(bound[0] <= s["train_reward"] <= bound[1] for s in stats)
    assert stats[-1]["train_proxy_score"] != stats[-1]["train_reward"]


def test_a_wide_clip_changes_nothing():
    plain, wide = config(), config(shaping="clip", shaping_scale=1e6)
    a, b = fresh(plain), fresh(wide)
    assert run(a, plain, 2) == run(b, wide, 2)
    one, other = state_tensors(a), state_tensors(b)
    assert all(torch.equal(one[k], other[k]) for k in one)
