"""What every mitigation keeps, built-in or a user's own, and what is refused before work starts."""

import functools
import json
import typing
from dataclasses import replace

import pytest
import torch

from overopt.base.annotations import annotations_of
from overopt.base.config import from_dict, to_dict
from overopt.base.errors import CheckpointError, ConfigError, DataError
from overopt.base.seeding import torch_generator
from overopt.methods import ppo
from overopt.nets.heads import ScalarHeadModel
from overopt.nets.sampling import sample
from overopt.rewards.kinds import bradley_terry
from overopt.rewards.kinds.ensemble import (
    average_weights,
    normalised_ensemble,
)
from overopt.rewards.kinds.reward_model import MultiHeadScorer, RewardModelScorer
from overopt.rewards.scorer import mean_std, raw_scores
from overopt.rewards.settings import COMBINATIONS, RewardConfig
from overopt.rewards.transforms import length
from overopt.rewards.transforms.ensembles import ENSEMBLES
from overopt.rewards.transforms.inputs import RewardInputs, Step, check_contract
from overopt.rewards.transforms.own import load_transform
from overopt.rewards.transforms.shaping import SHAPINGS
from overopt.stages.names import mitigation_name
from overopt.stages.reward import member_proxies
from overopt.stages.settings import RunConfig
from overopt.study.chain import build_graph
from overopt.study.presets import load_experiment

USER_FILE = "def reward(inputs, *, strength):\n    return inputs.scores.amax(0) - strength\n"
BUILT_IN = {
    **ENSEMBLES,
    "linear": length.linear,
    "hinge": functools.partial(length.hinge, budget=1.5),
    **SHAPINGS,
}


def user_reward(tmp_path, text=USER_FILE):
    path = tmp_path / "my.py"
    path.write_text(text)
    return load_transform(path)


@pytest.mark.parametrize("m", [2, 5])
@pytest.mark.parametrize("name", [*BUILT_IN, "a user's file"])
def test_every_mitigation_keeps_the_contract(name, m, tmp_path):
    reward = BUILT_IN[name] if name in BUILT_IN else user_reward(tmp_path)
    check_contract(reward, strength=0.5, n_members=m, name=name)
    inputs = RewardInputs(
        torch.randn(m, 9, generator=torch_generator(m, "x")), torch.arange(9), 4.0, torch.zeros(9)
    )
    out = reward(inputs, strength=0.5)
    # Each response on its own: what others are in the batch changes nothing.
    alone = [
        reward(
            RewardInputs(inputs.scores[:, [r]], inputs.n_tokens[[r]], 4.0, torch.zeros(1)),
            strength=0.5,
        )
        for r in range(9)
    ]
    torch.testing.assert_close(torch.cat(alone), out, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return inputs.scores", r"returned \(3, 7\) for 7 responses"),
        ("return 0.5", "returned float for 7"),
        ("return inputs.scores[0] * float('nan')", "finite floats"),
        ("return inputs.n_tokens", "finite floats"),
        ("return inputs.gold", "AttributeError: 'RewardInputs' object has no attribute 'gold'"),
        ("import torch; return inputs.scores[0] + torch.rand(7)", "two results"),
        ("inputs.scores.mul_(0); return inputs.scores[0]", "in place"),
    ],
)
def test_a_broken_user_file_is_refused_with_the_reason(body, message, tmp_path):
    reward = user_reward(tmp_path, f"def reward(inputs, *, strength):\n    {body}\n")
    with pytest.raises(ConfigError, match=message):
        check_contract(reward, strength=0.5, n_members=3, name="my.py")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reward.members=0"], "reward.members = 0: must be at least 1"),
        (["reward.combine=worst_case"], "reward.members = 1: reward.combine = 'worst_case' needs"),
        (["reward.combine=worst"], "reward.combine = 'worst'.*worst_case"),
        (["reward.members=3", "reward.combine=mean_minus_variance", "reward.strength=-1"],
         "reward.strength = -1.0: must be lambda >= 0"),
        (["reward.members=3", "reward.combine=log_mean_exp", "reward.strength=0"],
         "reward.strength = 0.0: must be beta > 0"),
        (["reward.members=3", "reward.strength=0.1"], "reward.strength = 0.1: has no effect"),
        (["reward.length_penalty=hinge", "reward.length_coef=1", "reward.length_budget=0"],
         "reward.length_budget = 0.0: must be above 0"),
        (["reward.length_coef=0.1"], "reward.length_coef = 0.1.*length_penalty=linear"),
        (["reward.members=3", "reward.members_by=pretraining"], r"reward.backbones = \(\): give 2"),
        (["reward.members=2", "reward.members_by=pretraining", "reward.backbones=ladder:0.2m",
          "proxy.backbone=ladder:0.2m"], "repeats a backbone"),
        (["reward.members=2", "reward.members_by=pretraining", "reward.backbones=ladder:9m"],
         "ladder:9m"),
        (["reward.members=2", "reward.members_by=heads", "reward.combine=weight_average"],
         "cannot average members by 'heads'"),
        (["reward.members=2", "reward.members_by=heads", "reward.backbones=ladder:3m"],
         "reward.backbones = .*has no effect"),
        (["reward.members=2", "reward.members_by=heads", "proxy.length_control=1"], "heads on one"),
        (["reward.members=2", "proxy.kind=gold"], "reward.members = 2: a proxy of kind .gold. has no"),
        (["reward.transform=absent.py"], "reward.transform = 'absent.py' does not exist"),
        (["proxy.length_control=-1"], "proxy.length_control = -1.0"),
        (["method.kl_target=6"], "method.kl_coef = 0.0: must be above 0 with method.kl_target"),
        (["method.shaping=par", "method.shaping_scale=0"], "method.shaping_scale = 0.0"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_by_name(overrides, message):
    with pytest.raises((ConfigError, CheckpointError), match=message):
        build_graph(load_experiment("smoke", overrides))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def reword(inputs): ...\n", r"defines no function reward\(inputs"),
        ("import nothing_of_this_name\n", "importing it raised ModuleNotFoundError"),
        ("def reward(inputs, *, strength):\n    return inputs.scores\n", r"returned \(2, 7\)"),
    ],
)
def test_a_user_file_is_tried_before_work_starts(text, message, tmp_path):
    (tmp_path / "my.py").write_text(text)
    overrides = ["reward.members=2", f"reward.transform={tmp_path / 'my.py'}"]
    with pytest.raises(ConfigError, match=message):
        build_graph(load_experiment("smoke", overrides))


# --- identities -----------------------------------------------------------------------------------


def fingerprints(*overrides):
    return {s.name: s.fingerprint for s in build_graph(load_experiment("smoke", overrides))[-2:]}


def test_default_reward_adds_no_stage_and_a_reward_reaches_both_methods():
    for overrides, proxy in (([], "proxy"), (["reward.members=2"], "reward")):
        bon, ppo_gold = build_graph(load_experiment("smoke", overrides))[-2:]
        assert bon.upstream["proxy"].name == proxy
        assert ppo_gold.upstream["ppo"].upstream["proxy"] is bon.upstream["proxy"]
        assert "gold" not in bon.upstream["proxy"].upstream


def test_shaping_is_no_part_of_best_of_n():
    plain, shaped = fingerprints(), fingerprints("method.shaping=par")
    assert plain["bon"] == shaped["bon"] and plain["ppo_gold"] != shaped["ppo_gold"]


def test_an_edited_user_file_makes_the_reward_new_and_nothing_before_it(tmp_path):
    path = tmp_path / "my.py"
    stages = []
    for text in (USER_FILE, USER_FILE + "# edited\n"):
        path.write_text(text)
        bon = build_graph(load_experiment("smoke", [f"reward.transform={path}"]))[-2]
        stages.append(bon)
    old, new = stages
    assert old.upstream["proxy"].fingerprint != new.upstream["proxy"].fingerprint
    assert old.upstream["pool"].fingerprint == new.upstream["pool"].fingerprint
    member = [s.upstream["proxy"].upstream["member_00"].fingerprint for s in stages]
    assert member[0] == member[1]


def test_replicates_of_an_ensemble_share_no_member_and_reuse_single_proxies():
    reward = RewardConfig(members=3)
    seeds = [
        {p.rm_seed for p, _ in member_proxies(bradley_terry.Settings(rm_seed=s), reward)}
        for s in range(3)
    ]
    assert seeds[0] == {0, 1, 2} and len(set.union(*seeds)) == 9
    graph = build_graph(load_experiment("smoke", ["reward.members=3"]))
    single = build_graph(load_experiment("smoke"))
    members = graph[-1].upstream["proxy"].upstream
    assert members["member_00"].fingerprint == single[-1].upstream["proxy"].fingerprint


def test_names_of_series():
    run = RunConfig(
        reward=RewardConfig(members=5, combine="mean_minus_variance", members_by="bootstrap"),
        method=ppo.Settings(shaping="par", kl_coef=0.1, kl_target=6.0),
    )
    assert mitigation_name(RunConfig(), with_method=True) == "none"
    assert mitigation_name(run, with_method=False) == "UWO 0.5 of 5 by bootstrap"
    assert mitigation_name(run, with_method=True) == "UWO 0.5 of 5 by bootstrap, par 1, KL target 6"
    others = [
        replace(run, method=replace(run.method, kl_gain=0.5)),
        *(
            RunConfig(reward=RewardConfig(members=2, members_by="pretraining", backbones=(name,)))
            for name in ("ladder:0.05m", "ladder:3m")
        ),
    ]
    # Series are told apart by this name: settings that differ must not share it.
    assert len({mitigation_name(r, with_method=True) for r in [run, *others]}) == 4


# --- scorers --------------------------------------------------------------------------------------


@pytest.fixture
def base(tiny_llama, ragged_prompts):
    """Responses of a tiny initial policy."""
    return sample(tiny_llama(0), ragged_prompts(0, [3, 5, 4]), n_tokens=9, seed=1, copies=12)


def reward_model(tiny_llama, seed, base, **shape):
    model = ScalarHeadModel(tiny_llama(seed, **shape))
    model.init_head(torch_generator(seed, "head"))
    return RewardModelScorer(model, *mean_std(raw_scores(model, base)))


MEAN = (Step(ENSEMBLES["mean"], 0.0),)


def test_an_ensemble_of_one_is_that_proxy_to_the_bit(tiny_llama, base):
    single = reward_model(tiny_llama, 1, base)
    ensemble = normalised_ensemble([single], MEAN, base)
    assert torch.equal(ensemble.score(base), single.score(base))
    assert ensemble.unit == single.unit


def test_scores_are_normalised_and_ranked_by_the_combination(tiny_llama, base):
    members = [reward_model(tiny_llama, s, base) for s in (1, 2, 3)]
    steps = (Step(ENSEMBLES["worst_case"], 0.0), Step(length.linear, 0.1))
    ensemble = normalised_ensemble(members, steps, base)
    table = ensemble.member_scores(base)
    assert table.shape == (3, len(base))
    for row, member in zip(table, members, strict=True):
        assert torch.equal(row, member.score(base))
    mean, std = mean_std(ensemble.score(base))
    assert abs(mean) < 1e-6 and abs(std - 1) < 1e-6
    raw = table.amin(0) - 0.1 * (base.length - base.length.double().mean())
    assert torch.equal(ensemble.score(base).argsort(), raw.argsort())


def test_averaging_equal_weights_changes_nothing(tiny_llama, base):
    one = reward_model(tiny_llama, 1, base)
    average = average_weights([one, one, one], base)
    assert torch.equal(average.score(base), one.score(base))
    other = reward_model(tiny_llama, 2, base)
    between = average_weights([one, other], base)
    weight = (one.model.head.weight + other.model.head.weight) / 2
    torch.testing.assert_close(between.model.head.weight, weight)
    assert not torch.equal(between.score(base), one.score(base))


def test_members_that_cannot_be_combined_are_refused(tiny_llama, base):
    one = reward_model(tiny_llama, 1, base)
    wide = reward_model(tiny_llama, 1, base, hidden_size=32)
    with pytest.raises(CheckpointError, match="member 1 has shape.*hidden_size=32"):
        average_weights([one, wide], base)
    with pytest.raises(DataError, match="member 1 has mean .* standard deviation"):
        normalised_ensemble([one, RewardModelScorer(one.model, one.mean + 1, one.std)], MEAN, base)
    flat = Step(lambda inputs, *, strength: torch.zeros_like(inputs.scores[0]), 0.0)
    with pytest.raises(DataError, match="ranks nothing"):
        normalised_ensemble([one], (flat,), base)


def test_heads_on_one_trunk_are_members(tiny_llama, base):
    model = ScalarHeadModel(tiny_llama(4), n_heads=3)
    model.init_head(torch_generator(4, "head"))
    stats = [mean_std(x) for x in raw_scores(model, base).T]
    mean, std = (tuple(x) for x in zip(*stats, strict=True))
    ensemble = normalised_ensemble([MultiHeadScorer(model, mean, std)], MEAN, base)
    table = ensemble.member_scores(base)
    assert table.shape == (3, len(base))
    for k in range(3):
        single = ScalarHeadModel(model.backbone)
        single.head.load_state_dict(
            {"weight": model.head.weight[[k]], "bias": model.head.bias[[k]]}
        )
        alone = RewardModelScorer(single, mean[k], std[k]).score(base)
        torch.testing.assert_close(table[k], alone, atol=1e-5, rtol=0)


def test_reward_settings_survive_json():
    cfg = RewardConfig(members=2, members_by="pretraining", backbones=("ladder:3m",))
    assert from_dict(RewardConfig, json.loads(json.dumps(to_dict(cfg)))) == cfg


def test_every_choice_of_a_combination_has_its_class_and_its_function():
    choices = typing.get_args(annotations_of(RewardConfig)["combine"])
    assert set(choices) == set(COMBINATIONS) == set(ENSEMBLES)
