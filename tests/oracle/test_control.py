"""Control against Gymnasium, closed forms and rewards that are known."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from overopt.base.errors import ConfigError, DivergenceError
from overopt.control import gym, predictor
from overopt.control.environment import load_environment
from overopt.control.human import compare
from overopt.control.pendulum import CALM, Pendulum
from overopt.control.policy import Policy
from overopt.control.settings import ProxySettings, WorldSettings
from overopt.control.trajectories import Trajectories

gymnasium = pytest.importorskip("gymnasium")


def random_trajectories(n=200, horizon=40, seed=0, careful=0.0, scale=1.0):
    rng = np.random.default_rng(seed)
    env = Pendulum(careful)
    return env.roll_out(env.starts(n, rng), scale * rng.standard_normal((n, horizon, 1)))


# --- environments ---------------------------------------------------------------------------------


def test_the_pendulum_is_gymnasiums():
    """To 1e-6 over 200 steps from anywhere, clipped torques and speeds among them."""
    rng = np.random.default_rng(0)
    starts = np.stack([rng.uniform(-7, 7, 20), rng.uniform(-8, 8, 20)], 1)
    actions = rng.normal(0, 1, (20, 200, 1))
    actions[::2] = np.sign(actions[::2, :1])  # a constant push reaches the highest speed
    ours = Pendulum().roll_out(starts, actions)
    assert np.abs(ours.observations[..., 2]).max() == 1
    env = gymnasium.make("Pendulum-v1").unwrapped
    env.reset(seed=0)
    for row in range(20):
        env.state = starts[row].copy()
        seen = [env._get_obs()]
        for t in range(200):
            torque = np.float64(2 * actions[row, t])
            observed, reward, *_ = env.step(torque)
            seen.append(observed)
            assert ours.reward[row, t] == pytest.approx(float(reward), abs=1e-6)
        theirs = np.array(seen)[:-1] / [1, 1, 8]
        np.testing.assert_allclose(ours.observations[row], theirs, atol=1e-6)


def test_a_careful_human_minds_speed_alone():
    plain, careful = random_trajectories(scale=3), random_trajectories(scale=3, careful=0.5)
    np.testing.assert_array_equal(plain.observations, careful.observations)
    speed = 8 * np.abs(plain.observations[..., 2].astype(float))
    assert (speed > CALM).any()
    expected = plain.reward - 0.5 * np.maximum(speed - CALM, 0) ** 2
    np.testing.assert_allclose(careful.reward, expected, atol=1e-5)


def test_any_environment_is_run_like_its_own_loop():
    env = gym.GymEnvironment("MountainCarContinuous-v0")
    starts = env.starts(3, np.random.default_rng(1))
    actions = np.random.default_rng(2).normal(0, 2, (3, 30, 1))
    ours = env.roll_out(starts, actions)
    theirs = gymnasium.make("MountainCarContinuous-v0")
    for row in range(3):
        observed, _ = theirs.reset(seed=int(starts[row, 0]))
        for t in range(30):
            np.testing.assert_allclose(ours.observations[row, t], observed / [1.2, 0.07], rtol=1e-6)
            action = np.clip(actions[row, t], -1, 1).astype(np.float32)
            observed, reward, *_ = theirs.step(action)
            assert ours.reward[row, t] == pytest.approx(reward)


def test_a_trajectory_ends_where_the_environment_says(monkeypatch):
    env = gym.GymEnvironment("MountainCarContinuous-v0")
    real, count = env._env.step, []

    def step(action):
        count.append(1)
        observed, reward, _, _, info = real(action)
        return observed, reward, len(count) % 7 == 0, False, info

    monkeypatch.setattr(env._env, "step", step)
    made = env.roll_out(np.array([[0], [1]]), np.ones((2, 20, 1)))
    assert made.length.tolist() == [7, 7]
    assert made.mask.sum(1).tolist() == [7, 7]
    assert not made.reward[:, 7:].any() and not made.features[:, 7:].any()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CartPole-v1", r"'CartPole-v1': its actions are Discrete\(2\)"),
        ("Nothing-v0", "'Nothing-v0': Gymnasium cannot make it"),
    ],
)
def test_environments_that_do_not_fit_are_refused_by_name(name, message):
    with pytest.raises(ConfigError, match=message):
        load_environment(WorldSettings(env=name))


def test_without_gymnasium_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ConfigError, match=r"overopt\[control\]"):
        load_environment(WorldSettings(env="Pendulum-v1"))
    load_environment(WorldSettings())


# --- the human ------------------------------------------------------------------------------------


def test_segments_are_pieces_of_trajectories_and_answers_err_as_often_as_said():
    shown = random_trajectories()
    made = compare(shown, n_pairs=20_000, segment=10, flip_rate=0.1, rng=np.random.default_rng(3))
    assert made.first_mask.all() and made.second_mask.all()
    wrong = (made.margin > 0) != (made.first_is_better == 1)
    assert abs(wrong.mean() - 0.1) < 4 * (0.09 / 20_000) ** 0.5
    assert abs(made.first_is_better.mean() - 0.5) < 0.02
    # A piece is found again in exactly one trajectory, and has its reward.
    flat = shown.features.reshape(-1, 4)
    for k in range(5):
        (at,) = np.flatnonzero((flat == made.first[k, 0]).all(1))
        row, t = divmod(int(at), 40)
        np.testing.assert_array_equal(made.first[k], shown.features[row, t : t + 10])
        first = shown.reward[row, t : t + 10].sum()
        (at,) = np.flatnonzero((flat == made.second[k, 0]).all(1))
        row, t = divmod(int(at), 40)
        assert made.margin[k] == pytest.approx(first - shown.reward[row, t : t + 10].sum())


def test_segments_of_short_trajectories_end_with_them():
    shown = random_trajectories(n=4)
    length = np.array([3, 40, 3, 3])
    short = Trajectories(
        *(np.where((np.arange(40) < length[:, None])[..., None], a, 0) for a in shown[:2]),
        np.where(np.arange(40) < length[:, None], shown.reward, 0),
        length,
    )
    made = compare(short, n_pairs=200, segment=10, flip_rate=0.0, rng=np.random.default_rng(0))
    assert set(made.first_mask.sum(1)) == {3, 10}


# --- the reward model -----------------------------------------------------------------------------


def test_the_loss_is_that_of_answers_partly_at_random():
    margin, answer = torch.tensor([0.5, -2.0]), torch.tensor([1.0, 1.0])
    p = 0.9 / (1 + np.exp([-0.5, 2.0])) + 0.05
    loss = predictor.answer_loss(margin, answer, 0.1)
    assert float(loss) == pytest.approx(-np.log(p).mean(), rel=1e-6)
    exact = predictor.answer_loss(margin, answer, 0.0)
    assert float(exact) == pytest.approx(np.log(1 + np.exp([-0.5, 2.0])).mean(), rel=1e-6)


def test_a_reward_that_is_known_is_learned_from_comparisons():
    """Returns correlate with gold's on trajectories that were not compared; noise costs little."""
    shown, held = random_trajectories(seed=1), random_trajectories(seed=2)
    rng = np.random.default_rng(0)
    for flips, least in ((0.0, 0.95), (0.1, 0.85)):
        data = compare(shown, n_pairs=1000, segment=10, flip_rate=flips, rng=rng)
        cfg = ProxySettings(members=2, steps=300, assumed_random=2 * flips)
        made = predictor.normalised(predictor.train(cfg, data, seed=0), "mean", held)
        assert np.corrcoef(made.score(held), held.gold)[0, 1] > least


@pytest.mark.parametrize("combine", ["mean", "worst_case"])
def test_scores_have_zero_and_unit_of_the_initial_policy_and_survive_a_folder(tmp_path, combine):
    base, other = random_trajectories(), random_trajectories(seed=5)
    data = compare(base, n_pairs=50, segment=5, flip_rate=0.0, rng=np.random.default_rng(0))
    members = predictor.train(ProxySettings(steps=5), data, seed=1)
    made = predictor.normalised(members, combine, base)
    assert made.score(base).mean() == pytest.approx(0, abs=1e-9)
    assert made.score(base).std() == pytest.approx(1)
    alone = made.member_scores(base)
    np.testing.assert_allclose(alone.mean(1), 0, atol=1e-9)
    np.testing.assert_allclose(alone.std(1), 1)
    assert len({float(m[0].weight.detach().sum()) for m in members}) == 3, "members differ"
    made.save(tmp_path)
    again = predictor.load(tmp_path)
    np.testing.assert_allclose(again.score(other), made.score(other), rtol=1e-12)
    assert again.unit == pytest.approx(made.unit)
    expected = made.member_scores(other)
    one = expected.mean(0) if combine == "mean" else expected.min(0)
    order = np.argsort(one)
    np.testing.assert_array_equal(order, np.argsort(made.score(other)))


def test_training_is_of_its_seed_and_steps_behind_the_end_do_not_count():
    base = random_trajectories(n=20)
    data = compare(base, n_pairs=30, segment=5, flip_rate=0.0, rng=np.random.default_rng(0))
    cfg = ProxySettings(members=1, steps=3)
    (one,), (same,), (other,) = (predictor.train(cfg, data, seed=s) for s in (0, 0, 1))
    assert torch.equal(one[0].weight, same[0].weight)
    assert not torch.equal(one[0].weight, other[0].weight)
    masked = data._replace(first=data.first.copy(), first_mask=data.first_mask.copy())
    masked.first_mask[:, 3:] = False
    junk = masked._replace(first=masked.first.copy())
    junk.first[:, 3:] = 99.0
    a, b = (predictor.train(cfg, d, seed=0)[0] for d in (masked, junk))
    assert torch.equal(a[0].weight, b[0].weight)


def test_a_reward_that_ranks_nothing_is_an_error():
    base = random_trajectories(n=20)
    member = predictor.network(4, 8, seed=0)
    with torch.no_grad():
        for parameter in member.parameters():
            parameter.zero_()
    with pytest.raises(DivergenceError, match=r"spread 0\.0"):
        predictor.normalised((member,), "mean", base)


# --- the policy -----------------------------------------------------------------------------------


def random_policy(seed=0):
    rng = np.random.default_rng(seed)
    return Policy(rng.normal(0, 1, (3, 5, 2)), rng.uniform(0.3, 1.5, (3, 5, 2)))


def test_kl_is_that_of_torch_and_zero_at_the_start():
    policy = random_policy()
    normal = torch.distributions.Normal
    mine = normal(torch.from_numpy(policy.mean), torch.from_numpy(policy.std))
    kl = torch.distributions.kl_divergence(mine, normal(torch.zeros(3, 5, 2), torch.ones(3, 5, 2)))
    np.testing.assert_allclose(policy.kl(), kl.sum((1, 2)).numpy(), rtol=1e-12)
    assert Policy.initial(3, 5, 2).kl().tolist() == [0, 0, 0]


def test_samples_have_the_policys_moments():
    policy = random_policy()
    drawn = policy.sample(40_000, np.random.default_rng(0))
    np.testing.assert_allclose(drawn.mean(1), policy.mean, atol=0.04)
    np.testing.assert_allclose(drawn.std(1), policy.std, atol=0.04)


def test_the_method_finds_the_optimum_and_reads_ranks_only():
    target = np.random.default_rng(1).normal(0, 1, (2, 4, 1))
    policy, cubed = Policy.initial(2, 4, 1), Policy.initial(2, 4, 1)
    how = {"n_elite": 40, "rate": 0.7, "least_std": 0.02}
    for k in range(30):
        actions = policy.sample(200, np.random.default_rng(k))
        score = -((actions - target[:, None]) ** 2).sum((2, 3))
        policy = policy.improved(actions, score, **how)
        cubed = cubed.improved(actions, score**3 - 7, **how)
    np.testing.assert_allclose(policy.mean, target, atol=0.02)
    np.testing.assert_array_equal(policy.mean, cubed.mean)
    np.testing.assert_array_equal(policy.std, cubed.std)
    assert policy.std.min() >= 0.02


def test_settings_are_refused_by_name():
    for make, message in (
        (
            lambda: WorldSettings(env="Pendulum-v1", careful=0.0),
            "world.careful = 0.0: has no effect",
        ),
        (lambda: ProxySettings(members=1, combine="worst_case"), "proxy.combine = 'worst_case'"),
        (lambda: replace(ProxySettings(), assumed_random=1.0), "proxy.assumed_random = 1.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()
