"""Filtered SFT: what is kept by hand, and with everything kept the plain loop of fine-tuning."""

import pytest
import torch
from method_toy import LikesToken, copied, policy, problem, settings_of, started, steps
from torch.nn.functional import cross_entropy

from overopt.base.errors import ConfigError, DataError, DivergenceError
from overopt.base.seeding import torch_generator
from overopt.methods import filtered_sft

SCORE = torch.tensor([1.0, 5.0, 5.0, 2.0, 7.0, 0.0, 3.0, 3.0])
ONE, TWO = torch.zeros(8, dtype=torch.int64), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])


@pytest.mark.parametrize(
    ("percent", "group", "rows"),
    [
        (25, ONE, [1, 4]),  # of the two fives the first
        (37.5, ONE, [1, 2, 4]),
        (26, ONE, [1, 2, 4]),  # 2.08 of 8, rounded up
        (1, ONE, [4]),
        (50, TWO, [1, 2, 4, 6]),
        (25, TWO, [1, 4]),
        (100, ONE, list(range(8))),
        (100, TWO, list(range(8))),
    ],
)
def test_the_top_by_hand(percent, group, rows):
    assert filtered_sft.top(SCORE, percent, group).tolist() == rows


def plain_sft(settings, task, n):
    """A loop of fine-tuning on all responses of the comparisons, written without the package's own."""
    pairs = task.preferences()
    used = sorted({*pairs.chosen.tolist(), *pairs.rejected.tolist()})
    data = pairs.responses.select(torch.tensor(used)).sequences()
    model = policy()
    adam = torch.optim.Adam(model.parameters(), lr=settings.lr, eps=1e-5)
    order = []
    for epoch in range(1 + n * settings.batch // len(used)):
        generator = torch_generator(task.seed, "order", epoch)
        order += torch.randperm(len(used), generator=generator).tolist()
    for k in range(n):
        losses, n_tokens = [], 0
        for row in order[k * settings.batch : (k + 1) * settings.batch]:
            ids = data.ids[row, : data.length[row]]
            front = int(data.n_prompt[row])
            logits = model.logits(model(ids[None]))[0, front - 1 : -1]
            losses.append(cross_entropy(logits, ids[front:], reduction="sum"))
            n_tokens += len(ids) - front
        adam.zero_grad()
        (sum(losses) / n_tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
        for group in adam.param_groups:
            group["lr"] = settings.lr * (1 - 0.9 * k / settings.steps)
        adam.step()
    return model


def test_with_everything_kept_it_is_plain_sft():
    settings = settings_of(filtered_sft, keep=100.0)
    state = started(filtered_sft, settings, problem())
    steps(filtered_sft, state, settings, problem(), 12)  # more than one pass
    expected = plain_sft(settings, problem(), 12)
    for ours, theirs in zip(state.policy.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_with_everything_kept_the_proxy_has_no_say():
    """Bit for bit the same policy, and a proxy that cannot score is not even asked."""
    settings = settings_of(filtered_sft, keep=100.0)
    found = []
    for scale in (1.0, -1.0, float("nan")):
        task = problem()
        task.__dict__["proxy"] = LikesToken(scale)
        state = started(filtered_sft, settings, task)
        steps(filtered_sft, state, settings, task, 3)
        found.append(copied(filtered_sft.state_tensors(state)))
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in found[0])


def test_a_filter_keeps_what_the_proxy_likes():
    settings = settings_of(filtered_sft, keep=10.0)
    task = problem()
    state = started(filtered_sft, settings, task)
    counts = (state.data.ids == 9).sum(1)
    assert len(state.kept) == -(-len(counts) // 10)
    rest = [r for r in range(len(counts)) if r not in set(state.kept.tolist())]
    assert counts[state.kept].min() >= counts[rest].max()
    by_prompt = started(filtered_sft, settings_of(filtered_sft, keep=10.0, keep_of="prompt"), task)
    assert len(by_prompt.kept) >= len(state.kept)
    assert not torch.equal(by_prompt.kept, state.kept)


def test_what_cannot_be_filtered_is_said():
    settings = settings_of(filtered_sft)
    task = problem()
    task.__dict__["proxy"] = LikesToken(float("nan"))
    with pytest.raises(DivergenceError, match="proxy scores are not finite"):
        started(filtered_sft, settings, task)
    task.__dict__["preferences"] = None
    with pytest.raises(DataError, match="there are no comparisons"):
        started(filtered_sft, settings, task)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 0.0}, "method.keep = 0.0"),
        ({"keep": 101.0}, "method.keep = 101.0"),
        ({"batch": 0}, "method.batch = 0"),
        ({"lr": 0.0}, "method.lr = 0.0"),
        ({"shaping": "clip", "shaping_scale": 2.0}, "method.shaping = 'clip'"),
    ],
)
def test_settings_say_what_is_wrong(settings, message):
    with pytest.raises(ConfigError, match=message):
        filtered_sft.Settings(**settings)


def test_filters_are_series_of_their_own():
    names = [
        filtered_sft.Settings(keep=q, keep_of=of).treatment
        for q, of in ((25.0, "all"), (100.0, "all"), (25.0, "prompt"))
    ]
    assert names == ["", "top 100 %", "top 25 % of each prompt"]
