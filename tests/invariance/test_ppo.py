"""PPO: exact start, resume, counters, and that it finds what the proxy rewards."""

from dataclasses import dataclass

import pytest
import torch
from ppo_steps import ppo_step

from overopt.base.datatypes import Prompts
from overopt.base.errors import DivergenceError
from overopt.methods import ppo
from overopt.methods.ppo import PpoState, load_state_tensors, new_state, state_tensors
from overopt.nets.block import LlamaConfig
from overopt.nets.heads import ScalarHeadModel
from overopt.nets.llama import Llama

CFG = ppo.Settings(steps=6, batch=16, minibatches=2, lr=3e-3, eval_prompts=4)


def policy(seed=0):
    cfg = LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    model = Llama(cfg)
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


def prompts():
    ids = torch.tensor([[1, 4, 5], [0, 1, 6], [1, 7, 8], [1, 2, 3]])
    return Prompts(ids, ids > 0, torch.arange(4))


@dataclass
class LikesToken:
    """A proxy that counts one token."""

    token: int = 9
    scale: float = 1.0

    def score(self, responses):
        return self.scale * ((responses.ids == self.token) & responses.mask).sum(1).float()


def run(state, ref, n, cfg=CFG, proxy=None):
    return [
        ppo_step(state, ref, proxy or LikesToken(), prompts(), cfg, n_tokens=6, seed=5)
        for _ in range(n)
    ]


def fresh(cfg=CFG):
    return new_state(policy(), ScalarHeadModel(policy()), cfg)


def test_first_update_starts_on_policy():
    stats = run(
        fresh(), policy(), 1, ppo.Settings(steps=1, batch=16, minibatches=1, eval_prompts=4)
    )
    assert stats[0]["update_kl_token_nats"] == pytest.approx(0, abs=1e-6)
    assert stats[0]["clip_fraction"] == 0.0


def test_optimizer_steps_are_epochs_times_minibatches():
    cfg = ppo.Settings(steps=2, batch=16, minibatches=4, ppo_epochs=3, eval_prompts=4, lr=1e-5)
    state = fresh(cfg)
    run(state, policy(), 2, cfg)
    assert state.grad_steps == 2 * 3 * 4


def test_resume_is_bitwise():
    straight = fresh()
    run(straight, policy(), 4)
    first = fresh()
    run(first, policy(), 2)
    saved = {k: v.clone() for k, v in state_tensors(first).items()}
    second = fresh()
    load_state_tensors(second, saved)
    run(second, policy(), 2)
    a, b = state_tensors(straight), state_tensors(second)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_checkpoint_goes_to_the_device_of_the_models():
    """Checkpoints are read to the CPU; the optimizer's moments must not stay there."""
    saved = fresh()
    run(saved, policy(), 1)
    model, value = policy().to("meta"), ScalarHeadModel(policy()).to("meta")
    state = PpoState(
        model, value, *(torch.optim.Adam(m.parameters()) for m in (model, value)), kl_coef=0.0
    )
    load_state_tensors(state, {k: v.clone() for k, v in state_tensors(saved).items()})
    moments = [
        x for o in (state.policy_opt, state.value_opt) for s in o.state.values() for x in s.values()
    ]
    assert len(moments) > 0 and {x.device.type for x in moments} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_that_began_on_the_cpu_goes_on_on_a_gpu():
    first = fresh()
    run(first, policy(), 2)
    saved = {k: v.clone() for k, v in state_tensors(first).items()}
    second = new_state(policy().cuda(), ScalarHeadModel(policy()).cuda(), CFG)
    load_state_tensors(second, saved)
    run(second, policy().cuda(), 2)
    run(first, policy(), 2)
    a, b = state_tensors(first), state_tensors(second)
    assert all(torch.isfinite(x).all() for x in b.values())
    assert a["counters"].tolist() == b["counters"].tolist()


def test_global_seed_does_not_matter():
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        state = fresh()
        run(state, policy(), 1)
        results.append(state_tensors(state))
    assert all(torch.equal(results[0][k], results[1][k]) for k in results[0])


def test_score_rises_towards_what_the_proxy_rewards():
    cfg = ppo.Settings(steps=40, batch=64, minibatches=2, lr=1e-2, eval_prompts=4)
    stats = run(fresh(cfg), policy(), 40, cfg)
    assert stats[-1]["train_proxy_score"] > stats[0]["train_proxy_score"] + 2.0


def test_kl_penalty_holds_the_policy_back():
    last = {}
    for coef in (0.0, 2.0):
        cfg = ppo.Settings(steps=25, batch=64, minibatches=2, lr=1e-2, kl_coef=coef, eval_prompts=4)
        last[coef] = run(fresh(cfg), policy(), 25, cfg)[-1]["train_proxy_score"]
    assert last[2.0] < last[0.0] - 1.0


def test_large_updates_are_stopped_and_counted():
    cfg = ppo.Settings(steps=3, batch=16, minibatches=2, ppo_epochs=4, lr=1.0, eval_prompts=4)
    state = fresh(cfg)
    stats = run(state, policy(), 1, cfg)
    assert stats[0]["updates_stopped"] == 1.0
    assert state.grad_steps < 8


def test_nonfinite_loss_stops_with_the_step():
    with pytest.raises(DivergenceError, match="step 0"):
        run(fresh(), policy(), 1, proxy=LikesToken(scale=float("nan")))
