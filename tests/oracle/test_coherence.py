"""Coherence against the softmax written out, one sequence at a time; and who may name the judge."""

import numpy as np
import pytest
import torch

from overopt.nets import checkpoints, sampling
from overopt.nets.heads import ScalarHeadModel
from overopt.nets.sampling import sample, score_logprobs
from overopt.rewards import scorer
from overopt.stages.common import truth_scores
from overopt.worlds import coherence, rubric, stories
from overopt.worlds.load import load_world

JUDGE = "ladder:0.05m"
SETTINGS = stories.Settings(rubric=rubric.RubricConfig(judge=JUDGE))


@pytest.fixture(scope="module")
def responses():
    policy = checkpoints.load_lm("ladder:policy-0.8m")
    prompts = load_world(SETTINGS).prompts("eval", 4)
    return sample(policy, prompts, n_tokens=14, seed=1, copies=5)


def by_hand(responses):
    """Mean log-probability (R,) of the tokens of each response under the judge."""
    model, found = checkpoints.load_lm(JUDGE), []
    for i in range(len(responses)):
        p, r = responses.prompts, responses
        prompt = p.ids[i][p.mask[i]]
        answer = r.ids[i][r.mask[i]]
        with torch.no_grad():
            logits = model.logits(model(torch.cat([prompt, answer])[None]))[0].double()
        logp = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        found.append(float(logp[torch.arange(len(answer)), answer].mean()))
    return np.array(found)


def test_coherence_is_the_mean_log_probability_of_a_token(responses):
    got = coherence.coherence(responses, load_world(SETTINGS), judge=JUDGE, device="cpu")
    np.testing.assert_allclose(got, by_hand(responses), atol=2e-5)


def test_features_are_what_the_score_is_made_of(responses):
    world = load_world(SETTINGS)
    spec = world.calibrate(responses)
    z, cfg = world.features(spec, responses), SETTINGS.rubric
    np.testing.assert_allclose(z["coherence"].mean(), 0, atol=1e-9)
    total = sum(w * cfg.utility(n, z[n]) for n, w in zip(rubric.FEATURES, cfg.weights, strict=True))
    score = world.intent(spec, responses)
    np.testing.assert_allclose(score, (total - total.mean()) / total.std(), atol=1e-9)


def test_a_judge_that_an_artefact_names_is_not_loaded(responses, monkeypatch):
    world = load_world(SETTINGS)
    spec = world.calibrate(responses)
    expected = world.intent(spec, responses)
    asked = []
    load = checkpoints.load_lm
    coherence._judge.cache_clear()
    monkeypatch.setattr(checkpoints, "load_lm", lambda source: asked.append(source) or load(source))
    forged = spec | {"cfg": spec["cfg"] | {"judge": "ladder:3m"}}
    np.testing.assert_array_equal(world.intent(forged, responses), expected)
    assert asked == [JUDGE]


def test_shared_prompts_change_no_score(responses, monkeypatch):
    lm = checkpoints.load_lm(JUDGE)
    reward = ScalarHeadModel(checkpoints.load_trunk("ladder:0.2m"))
    reward.init_head(torch.Generator().manual_seed(0))
    assert sampling.continuations(lm, responses, 64) is not None  # there is something to share
    shared = [score_logprobs(lm, responses, batch_tokens=64), scorer.raw_scores(reward, responses)]
    # Prompts in parts of like length: the same scores, in the same order.
    shared.append(score_logprobs(lm, responses, batch_tokens=64, by_length=True))
    shared.append(scorer.head_outputs(reward, responses, batch_tokens=64, by_length=True))
    for module in (sampling, scorer):
        monkeypatch.setattr(module, "continuations", lambda *_, **__: None)
    alone = score_logprobs(lm, responses), scorer.raw_scores(reward, responses)
    for got, want in zip(shared, alone * 2, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=3e-5)


class Counted:
    """A scorer that counts how often it is asked."""

    def __init__(self, name):
        self.name, self.calls = name, 0

    def __eq__(self, other):
        return self.name == other.name

    def score(self, responses):
        self.calls += 1
        return torch.full((len(responses),), float(len(self.name)))


def test_a_gold_that_is_the_intent_is_asked_once(responses):
    gold, same, other = Counted("rubric"), Counted("rubric"), Counted("model")
    both = truth_scores(gold, same, responses)
    assert (gold.calls, same.calls) == (1, 0) and torch.equal(both["gold"], both["intent"])
    apart = truth_scores(other, gold, responses)
    assert (other.calls, gold.calls) == (1, 2) and apart["gold"][0] == 5 and apart["intent"][0] == 6
    assert list(truth_scores(gold, None, responses)) == ["gold"]
