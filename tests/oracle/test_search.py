"""Search over steps: against all its outcomes on a tiny policy, its bound, and a perfect guide."""

import itertools
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from enumerable import small_llama

from overopt.base.errors import ConfigError
from overopt.methods.search import Reader, beam_search, kl_bound
from overopt.nets.checkpoints import load_lm
from overopt.nets.sampling import sample
from overopt.stages.search import reader_of
from overopt.study.presets import load_experiment
from overopt.worlds import rows, sums

PROMPT, N_TOKENS = (3, 4), 2
EOS = small_llama().cfg.eos_token_id
VALUE = torch.tensor([0.3, -1.0, 0.1, 2.0, 0.7, -0.2])


def score_of(tokens):
    """Prefers some tokens at the first place and others at the second."""
    return sum(float(VALUE[t]) * (1 if i == 0 else -1.5) for i, t in enumerate(tokens))


def reader():
    """Every token is a step."""

    def responses(problems, answers):
        del problems
        return rows.as_responses([(PROMPT, answer) for answer in answers], eos=EOS)

    def score(found):
        kept = [row[mask].tolist() for row, mask in zip(found.ids, found.mask, strict=True)]
        return torch.tensor([score_of(tokens) for tokens in kept])

    return Reader(
        prompts=lambda table: rows.as_prompts(table, pad=0, start=0),
        responses=responses,
        step_ends=lambda found: [tuple(range(n)) for n in found.length.tolist()],
        score=score,
        end=EOS,
    )


def next_probability(policy, tokens):
    ids = torch.tensor([[*PROMPT, *tokens]])
    return policy.logits(policy(ids)[:, -1])[0].softmax(-1).tolist()


def outcomes(policy, expansions):
    """Probability of each response of one beam with ``expansions``, by listing all draws."""
    found = Counter()

    def go(tokens, p):
        if len(tokens) == N_TOKENS or tokens[-1:] == (EOS,):
            found[tokens] += p
            return
        q, chosen = next_probability(policy, tokens), Counter()
        for drawn in itertools.product(range(len(q)), repeat=expansions):
            best = max(drawn, key=lambda t: score_of((*tokens, t)))
            chosen[best] += float(np.prod([q[t] for t in drawn]))
        for token, weight in chosen.items():
            go((*tokens, token), p * weight)

    with torch.no_grad():
        go((), 1.0)
    return found


@pytest.mark.parametrize("expansions", [1, 2, 3])
def test_one_beam_has_the_distribution_of_all_its_draws_and_keeps_the_bound(expansions):
    policy, n = small_llama(), 800
    expected, plain = outcomes(policy, expansions), outcomes(policy, 1)
    assert sum(expected.values()) == pytest.approx(1)
    found = beam_search(
        policy, [PROMPT] * n, reader(), beams=1, expansions=expansions, n_tokens=N_TOKENS, seed=5
    )
    counts = Counter(map(tuple, found.rows))
    assert set(counts) <= set(expected)
    chi2 = sum((counts[r] - n * p) ** 2 / (n * p) for r, p in expected.items() if n * p > 5)
    cells = sum(n * p > 5 for p in expected.values())
    assert chi2 < cells + 4 * (2 * cells) ** 0.5
    kl = sum(p * np.log(p / plain[r]) for r, p in expected.items() if p > 0)
    steps = sum(p * len(r) for r, p in expected.items())
    assert np.mean(found.steps) == pytest.approx(steps, abs=0.08)
    assert kl <= kl_bound(steps, beams=1, expansions=expansions) + 1e-12
    assert np.mean(found.tokens) == pytest.approx(expansions * steps, abs=0.25)
    assert found.scored == found.tokens, "a step is a token here"


def test_beams_keep_the_bound_and_find_more():
    policy, n, plain = small_llama(), 800, outcomes(small_llama(), 1)
    mean = []
    for beams in (1, 4):
        found = beam_search(
            policy, [PROMPT] * n, reader(), beams=beams, expansions=2, n_tokens=N_TOKENS, seed=5
        )
        mean.append(np.mean([score_of(row) for row in found.rows]))
        share = Counter(map(tuple, found.rows))
        kl = sum(c / n * np.log(c / n / plain[r]) for r, c in share.items())
        assert kl <= kl_bound(np.mean(found.steps), beams=beams, expansions=2)
    assert mean[1] > mean[0] + 0.3


@pytest.fixture(scope="module")
def problems():
    """A world, its policy, and a reader with a perfect guide: right steps so far, and a right answer."""
    world = sums.load(sums.Settings(n_problems=600))
    policy = load_lm("ladder:sums-0.2m")
    made = reader_of(
        world, SimpleNamespace(score=None), world.rows("eval", 12), policy.cfg.eos_token_id
    )

    def score(responses):
        found = world.verdicts(responses)
        so_far = [v.step_ok.index(False) if False in v.step_ok else 99 for v in found]
        return torch.tensor([float(n) for n in so_far])

    return world, policy, made._replace(score=score)


@pytest.mark.parametrize(("lookahead", "least"), [(0, 0.85), (1, 0.85)])
def test_a_perfect_guide_finds_right_answers(problems, lookahead, least):
    world, policy, guided = problems
    asked = world.rows("eval", 12)
    found = beam_search(
        policy, asked, guided, beams=2, expansions=4, n_tokens=64, seed=1, lookahead=lookahead
    )
    responses = guided.responses(range(12), found.rows)
    right = np.mean([v.right and v.valid for v in world.verdicts(responses)])
    plain = sample(policy, world.prompts("eval", 12), n_tokens=64, seed=1, copies=4)
    before = np.mean([v.right and v.valid for v in world.verdicts(plain)])
    assert right >= least > before + 0.3
    ends = world.step_ends(responses)
    assert found.steps == list(map(len, ends))
    # Two beams of four: eight beginnings a round, fewer where a beam has ended.
    assert all(
        4 * (s - 1) < n <= 8 * (s + 3) for s, n in zip(found.steps, found.scored, strict=True)
    )


def test_prompts_that_just_fit_are_searched():
    """The longest with its longest response is as long as the context, and is ahead of the others."""
    policy = small_llama()
    asked = [(3,) * 4, (3,) * 12] * 20
    assert len(asked[1]) + 4 == policy.cfg.max_position_embeddings

    def responses(problems, answers):
        pairs = zip((asked[i] for i in problems), answers, strict=True)
        return rows.as_responses(list(pairs), eos=EOS)

    def step_ends(found):
        """Steps of three tokens behind long prompts, of one behind short ones."""
        step = [3 if n == 12 else 1 for n in found.prompts.mask.sum(1).tolist()]
        lengths = zip(found.length.tolist(), step, strict=True)
        return [(*range(k - 1, n - 1, k), n - 1) for n, k in lengths]

    made = reader()._replace(responses=responses, step_ends=step_ends)
    found = beam_search(policy, asked, made, beams=2, expansions=2, n_tokens=4, seed=0)
    assert all(1 <= len(row) <= 4 for row in found.rows)
    assert max(map(len, found.rows[1::2])) == 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["world.kind=sums", "search.candidates=2,4"], r"search\.candidates = \(2, 4\): must be"),
        (["world.kind=sums", "search.candidates=1,6"], r"search\.candidates = 6: must be below"),
        (["search.candidates=1,4"], r"'stories' have no steps: use world\.kind=sums"),
        (["bon.also=majority"], r"bon\.also = 'majority': counts answers"),
    ],
)
def test_a_search_that_cannot_be_is_refused(overrides, message):
    more = ["gold.kind=rubric", "proxy.kind=rule"] if "world.kind=sums" in overrides else []
    with pytest.raises(ConfigError, match=message):
        load_experiment("smoke", [*overrides, *more])
