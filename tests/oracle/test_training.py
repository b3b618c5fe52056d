"""Training steps: the same in any division, after running out of memory, and against plain autograd."""

import copy
import math
import warnings

import pytest
import torch
from ppo_steps import ppo_step
from tolerances import FP32
from training_data import (
    CountsToken,
    backbone,
    examples,
    prompts,
    reward_model,
    training_pairs,
)

from overopt.base.datatypes import Sequences, shared_prompts
from overopt.base.errors import DataError, DivergenceError, MemoryLimitError
from overopt.base.seeding import torch_generator
from overopt.methods import ppo
from overopt.methods.ppo import new_state
from overopt.methods.sft import Examples, SftConfig, fine_tune, join_examples, mean_loss
from overopt.nets.compute import Compute, MemoryWarning, fit_memory
from overopt.nets.heads import ScalarHeadModel
from overopt.rewards.scorer import raw_scores
from overopt.rewards.training import train as train_module
from overopt.rewards.training.pairs import PairBatches
from overopt.rewards.training.train import forward_scores, pair_loss_backward, train_reward_model

GRADIENT = 1e-6  # of the gradient's largest entry: float32 sums in another order


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def close(a, b):
    assert a.keys() == b.keys()
    largest = max(float(g.abs().max()) for g in a.values())
    for name in a:
        assert (a[name] - b[name]).abs().max() <= GRADIENT * largest, name


def train(compute=None, model=None, epochs=2):
    model = model or reward_model()
    log = train_reward_model(
        model, training_pairs(), epochs=epochs, lr=1e-2, batch_prompts=4, weight_decay=0.01, seed=3,
        validate=dict, progress=lambda done, total: None, compute=compute,
    )  # fmt: skip
    return model, log


class RunsOut:
    """Makes a network fail as torch does when a call has more than ``rows`` rows."""

    def __init__(self, module, rows, error=torch.OutOfMemoryError):
        self.calls, self.rows, self.error = 0, rows, error
        module.register_forward_pre_hook(self.check)

    def check(self, module, args):
        self.calls += 1
        if len(args[0]) > self.rows:
            raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB")


def shared(n_prompt, copies, seed=0):
    """Sequences of ``copies`` ragged responses to a prompt of each length, in random order."""
    generator = torch_generator(seed, "shared")
    ids, length = [], []
    for n in n_prompt:
        prompt = torch.randint(2, 48, (n,), generator=generator)
        for _ in range(copies):
            n_response = int(torch.randint(1, 9, (), generator=generator))
            response = torch.randint(2, 48, (n_response,), generator=generator)
            ids.append(torch.nn.functional.pad(torch.cat([prompt, response]), (0, 8 - n_response)))
            length.append(n + n_response)
    ids = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    order = torch.randperm(len(ids), generator=generator)
    n_prompt = torch.tensor(n_prompt).repeat_interleave(copies)
    return Sequences(ids[order], torch.tensor(length)[order], n_prompt[order])


@pytest.mark.parametrize("n_prompt", [[3, 3, 3], [1, 7, 2, 2, 5]])
@pytest.mark.parametrize("copies", [2, 4])
@pytest.mark.parametrize("shape", [{}, {"num_key_value_heads": 2, "attention_bias": True}])
def test_scores_and_gradients_of_shared_prompts_equal_those_of_whole_sequences(
    tiny_llama, monkeypatch, n_prompt, copies, shape
):
    model = ScalarHeadModel(tiny_llama(4, num_attention_heads=4, hidden_size=32, **shape)).double()
    model.init_head(torch_generator(4, "head"))
    seq = shared(n_prompt, copies)
    weight = torch.randn(len(seq.ids), generator=torch_generator(4, "weight")).double()

    whole = model.at_last_token(seq.ids, seq.length)
    (whole * weight).sum().backward()
    expected = gradients(model)

    monkeypatch.setattr(train_module, "FORWARD_TOKENS_CPU", 24)  # several calls
    rows_read = []
    model.backbone.embed.register_forward_hook(lambda _, args, __: rows_read.append(args[0].shape))
    model.zero_grad()
    scores = forward_scores(model, seq, Compute())
    (scores.double() * weight).sum().backward()
    torch.testing.assert_close(scores, whole.float(), rtol=FP32, atol=FP32)
    close(expected, gradients(model))
    assert rows_read[0] == (len(n_prompt), max(n_prompt))
    assert len(rows_read) > 2 and sum(n for n, _ in rows_read[1:]) == len(seq.ids)


def test_a_long_prompt_and_a_long_response_need_not_fit_the_context_together(tiny_llama):
    model = ScalarHeadModel(tiny_llama(5, max_position_embeddings=24))
    model.init_head(torch_generator(5, "head"))
    ids = torch.randint(2, 48, (4, 20), generator=torch_generator(5, "ids"))
    ids[1, :18], ids[3, :2] = ids[0, :18], ids[2, :2]
    seq = Sequences(ids, torch.full((4,), 20), torch.tensor([18, 18, 2, 2]))
    found, expected = forward_scores(model, seq, Compute()), model.at_last_token(ids, seq.length)
    torch.testing.assert_close(found, expected, rtol=FP32, atol=FP32)
    before = model.backbone.prefix(ids[:, :18], torch.tensor([18, 18, 2, 2]))
    with pytest.raises(ValueError, match="25 tokens a row; the model's context is 24"):
        model.at_last_token(ids[:, :7], torch.full((4,), 7), before)


def test_prompts_are_told_apart_by_tokens_and_length():
    seq = shared([2, 2, 3], 2)
    parts = shared_prompts(seq)
    assert parts is not None and len(parts.prompt_ids) == 3
    for i, p in enumerate(parts.prompt):
        ids = [parts.prompt_ids[p, : parts.n_prompt[p]], parts.ids[i, : parts.length[i]]]
        assert torch.equal(torch.cat(ids), seq.ids[i, : seq.length[i]])
    assert shared_prompts(shared([2, 2, 3], 1)) is None
    empty = seq._replace(length=torch.where(seq.n_prompt == 3, 3, seq.length))
    assert shared_prompts(empty) is None


def test_pair_gradients_equal_plain_autograd():
    """Against the loss written out for padded rows, one forward pass over all positions."""
    pairs, model = training_pairs(), reward_model()
    batch = next(iter(PairBatches(pairs, batch_prompts=12, seed=0).epoch(0)))
    loss = pair_loss_backward(model, batch, Compute())
    found = gradients(model)
    model.zero_grad()
    seq = pairs.responses.sequences()
    hidden = model.backbone(seq.ids)[torch.arange(len(seq.ids)), seq.length - 1]
    score = model.head(hidden)[:, 0]
    p = torch.sigmoid(score[pairs.first] - score[pairs.second])
    plain = -(pairs.target * p.log() + (1 - pairs.target) * (1 - p).log()).mean()
    plain.backward()
    assert loss.item() == pytest.approx(plain.item(), rel=FP32)
    expected = gradients(model)
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=FP32, atol=FP32)


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_pair_gradients_do_not_depend_on_the_micro_batch(micro_batch):
    batch = next(iter(PairBatches(training_pairs(), batch_prompts=12, seed=0).epoch(0)))
    found = []
    for size in (None, micro_batch):
        model = reward_model()
        pair_loss_backward(model, batch, Compute(micro_batch=size))
        found.append(gradients(model))
    close(*found)


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_reward_model_trajectory_does_not_depend_on_the_micro_batch(micro_batch):
    expected, found = train()[1].loss, train(Compute(micro_batch=micro_batch))[1].loss
    assert found == pytest.approx(expected, rel=FP32)


def run_ppo(compute=None, prepare=lambda state: None, steps=3):
    cfg = ppo.Settings(steps=steps, batch=12, minibatches=2, lr=3e-3, eval_prompts=4, kl_coef=0.05)
    policy = backbone()
    state = new_state(policy, ScalarHeadModel(backbone(1)), cfg)
    prepare(state)
    stats = [
        ppo_step(state, copy.deepcopy(policy) if i == 0 else ref, CountsToken(), prompts(6), cfg,
                 n_tokens=6, seed=5, compute=compute)
        for i, ref in enumerate([backbone()] * steps)
    ]  # fmt: skip
    return state, stats


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_ppo_trajectory_does_not_depend_on_the_micro_batch(micro_batch):
    (_, expected), (_, found) = run_ppo(), run_ppo(Compute(micro_batch=micro_batch))
    for a, b in zip(expected, found, strict=True):
        assert b == pytest.approx(a, rel=10 * FP32, abs=FP32)


SFT = SftConfig(batch=8, lr=1e-2, epochs=2)
NO_VALIDATION = SftConfig(batch=8, lr=1e-2, epochs=2, validation_share=0.0)


def tune(compute=None, prepare=lambda policy: None, cfg=SFT):
    policy = backbone()
    prepare(policy)
    log = fine_tune(
        policy, Examples(*examples()), cfg, progress=lambda done, total: None, compute=compute
    )
    return policy, log


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_fine_tuning_does_not_depend_on_the_micro_batch(micro_batch):
    expected, found = tune()[1], tune(Compute(micro_batch=micro_batch))[1]
    assert found.loss == pytest.approx(expected.loss, rel=FP32)
    assert found.validation_after == pytest.approx(expected.validation_after, rel=FP32)


def test_fine_tuning_loss_is_on_response_tokens_only():
    policy = backbone()
    asked, answers = examples(4)
    nats, count = 0.0, 0
    for prompt, response in zip(asked, answers, strict=True):
        row = torch.tensor([prompt + response])
        logp = policy.logits(policy(row))[0].log_softmax(-1)
        for t in range(len(prompt), row.shape[1]):
            nats -= logp[t - 1, row[0, t]].item()
            count += 1
    seq = join_examples(Examples(asked, answers), context=32)
    assert mean_loss(policy, seq, Compute()) == pytest.approx(nats / count, rel=FP32)


def test_fine_tuning_learns_what_the_examples_share():
    log = tune(cfg=SftConfig(batch=8, lr=1e-2, epochs=6))[1]
    assert log.validation_after < 0.7 * log.validation_before
    assert (log.n_train, log.n_validation) == (38, 2)


def test_examples_that_cannot_be_used_are_named():
    with pytest.raises(DataError, match="example 2 has a response without tokens"):
        join_examples(Examples([[2], [3]], [[4], []]), context=8)
    with pytest.raises(DataError, match="example 1 has 5 tokens.*context is 4"):
        join_examples(Examples([[2, 2]], [[4, 4, 1]]), context=4)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_running_out_of_memory_halves_the_micro_batch_once_and_changes_nothing(error):
    expected = train()[1].loss
    model, compute = reward_model(), Compute()
    RunsOut(model.backbone.embed, 3, error)
    with pytest.warns(MemoryWarning, match="went on with 3") as caught:
        found = train(compute, model)[1].loss
    assert len(caught) == 1
    assert compute.micro_batch == 3
    assert found == pytest.approx(expected, rel=FP32)


def test_ppo_and_fine_tuning_survive_running_out_of_memory():
    (_, expected) = run_ppo()
    with pytest.warns(MemoryWarning):
        (_, found) = run_ppo(prepare=lambda state: Backward(state.value.head, 2))
    for a, b in zip(expected, found, strict=True):
        assert b == pytest.approx(a, rel=10 * FP32, abs=FP32)
    expected = tune(cfg=NO_VALIDATION)[1].loss
    with pytest.warns(MemoryWarning):
        found = tune(prepare=lambda policy: RunsOut(policy.embed, 4), cfg=NO_VALIDATION)[1].loss
    assert found == pytest.approx(expected, rel=FP32)


class Backward(RunsOut):
    """Runs out of memory in passes with gradients only."""

    def check(self, module, args):
        if torch.is_grad_enabled():
            super().check(module, args)


def test_a_single_sequence_that_does_not_fit_names_the_remedy():
    model = reward_model()
    RunsOut(model.backbone.embed, 0)
    with pytest.raises(MemoryLimitError, match="max_response_tokens.*precision = bf16"):
        train(model=model)


def test_other_errors_are_not_retried():
    def fails(size):
        raise RuntimeError("shape mismatch")

    with warnings.catch_warnings(), pytest.raises(RuntimeError, match="shape mismatch"):
        fit_memory(fails, 8)


def test_scoring_survives_running_out_of_memory():
    responses = training_pairs().responses
    model = reward_model()
    expected = raw_scores(model, responses)
    RunsOut(model.backbone.embed, 4)
    with pytest.warns(MemoryWarning, match="padded tokens"):
        found = raw_scores(model, responses)
    torch.testing.assert_close(found, expected, rtol=FP32, atol=FP32)


def test_bf16_trains_to_about_the_same_loss_with_float32_weights():
    expected = train(epochs=6)[1].loss
    model, log = train(Compute(precision="bf16"), epochs=6)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert log.loss != expected
    assert log.loss[0] == pytest.approx(expected[0], rel=1e-2)
    assert log.loss[-1] < log.loss[0]


class OnDevice(torch.Tensor):
    """A loss that says it is on a CUDA device, so that it is not read at every step."""

    is_cuda = True


def steps_until_divergence(monkeypatch, nan_at):
    """Steps that training took when the loss of step ``nan_at`` is nan, read every 4 steps."""
    taken, validations = [], []

    def backward(*args):
        loss = pair_loss_backward(*args) + (math.nan if len(taken) == nan_at else 0.0)
        return torch.Tensor._make_subclass(OnDevice, loss)

    monkeypatch.setattr(train_module, "READ_LOSS_EVERY", 4)
    monkeypatch.setattr(train_module, "pair_loss_backward", backward)
    with pytest.raises(DivergenceError, match=f"loss is nan at step {nan_at} of"):
        train_reward_model(
            reward_model(), training_pairs(), epochs=1, lr=1e-2, batch_prompts=2, weight_decay=0.0,
            seed=3, validate=lambda: validations.append(1) or {},
            progress=lambda done, total: taken.append(total),
        )  # fmt: skip
    assert not validations
    return len(taken), taken[0]


@pytest.mark.parametrize("nan_at", [0, 1, 3])
def test_a_loss_that_is_read_late_is_still_read_and_names_its_step(monkeypatch, nan_at):
    taken, _ = steps_until_divergence(monkeypatch, nan_at)
    assert taken <= 4


def test_the_last_loss_is_read_before_anything_is_validated(monkeypatch):
    _, total = steps_until_divergence(monkeypatch, 0)
    assert total % 4, "the last steps are to be fewer than one reading"
    monkeypatch.undo()
    taken, _ = steps_until_divergence(monkeypatch, total - 1)
    assert taken == total
