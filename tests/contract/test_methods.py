"""What every method must do, whatever it is: each file of ``overopt/methods`` with ``Settings``.

On a toy (a small policy, a proxy that counts a token), and in whole runs of the smoke preset.
"""

import dataclasses
import importlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import small_smoke
import torch
from method_toy import (
    CASES,
    KINDS,
    NAMES,
    LikesToken,
    T,
    copied,
    problem,
    prompts,
    settings_of,
    started,
    steps,
)

from overopt.base.errors import ConfigError, DivergenceError
from overopt.cli.main import main
from overopt.nets.compute import Compute
from overopt.nets.sampling import sample
from overopt.records.curves import load_curves, read_costs
from overopt.records.schema import FIELDS
from overopt.reports.draw import draw
from overopt.study.chain import build_graph
from overopt.study.presets import load_experiment

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=CASES, ids=NAMES)
def method(request):
    """A method's module and settings of the toy."""
    kind, more = request.param
    module = importlib.import_module(f"overopt.methods.{kind}")
    return module, settings_of(module, **more)


def test_methods_are_found_by_their_files():
    assert {"ppo", "grpo", "rloo", "reinforce", "dpo", "rejection"} <= set(KINDS)


def test_resume_is_bitwise(method):
    module, settings = method
    task = problem()
    straight = started(module, settings, task)
    steps(module, straight, settings, task, 2)
    saved = copied(module.state_tensors(straight))
    assert all(x.is_contiguous() for x in saved.values())
    log = steps(module, straight, settings, task, 2)
    second = started(module, settings, problem())
    module.load_state_tensors(second, saved)
    assert second.step == 2
    assert steps(module, second, settings, task, 2) == log
    a, b = module.state_tensors(straight), module.state_tensors(second)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_global_seed_and_micro_batches_do_not_matter(method):
    module, settings = method
    found = []
    for seed, micro_batch in ((0, None), (1, None), (0, 5)):
        torch.manual_seed(seed)
        task = problem(compute=Compute(micro_batch=micro_batch))
        state = started(module, settings, task)
        steps(module, state, settings, task, 1)
        found.append(copied(module.state_tensors(state)))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    for name, x in found[0].items():
        # Adam divides by the root of the second moment: rounding of a tiny gradient shows.
        torch.testing.assert_close(found[2][name], x, rtol=1e-3, atol=1e-3)


def test_the_proxy_score_rises(method):
    module, settings = method
    task = problem()
    state = started(module, settings, task)

    def mean():
        responses = sample(state.policy, prompts(), n_tokens=T, seed=3, copies=64)
        return float(LikesToken().score(responses).mean())

    before = mean()
    steps(module, state, settings, task, settings.steps)
    assert mean() > before + 0.2


def test_nan_stops_with_the_step_before_it_reaches_the_weights(method):
    """A nan score; in a method that asks the proxy nothing, a nan weight of the policy."""
    module, settings = method
    blind = settings.reads_comparisons
    task = problem() if blind else problem(LikesToken(scale=float("nan")))
    state = started(module, settings, task)
    if blind:
        with torch.no_grad():
            state.policy.norm[0] = torch.nan
    before = copied(module.state_tensors(state))
    with pytest.raises(DivergenceError, match="step 0"):
        module.step(state, settings, task)
    after = module.state_tensors(state)
    weights = [name for name in before if name.startswith("policy.")]
    assert weights
    assert all(torch.equal(before[k], after[k]) for k in weights if not before[k].isnan().any())


def test_what_is_logged_is_finite(method):
    module, settings = method
    task = problem()
    state = started(module, settings, task)
    (log,) = steps(module, state, settings, task, 1)
    assert state.step == 1
    assert all(type(x) is float and x == x and abs(x) < 1e6 for x in log.values())


# --- settings and what is shown -------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_settings_document_themselves(kind):
    module = importlib.import_module(f"overopt.methods.{kind}")
    text = " ".join(c.__doc__ or "" for c in module.Settings.__mro__)
    assert "Attributes" in (module.Settings.__doc__ or "")
    for field in dataclasses.fields(module.Settings):
        assert re.search(rf"\b{field.name}\b", text), field.name


@pytest.mark.parametrize("kind", KINDS)
def test_columns_and_treatments_are_those_of_records(kind):
    module = importlib.import_module(f"overopt.methods.{kind}")
    row = module.columns(module.Settings())
    assert set(row) <= set(FIELDS)
    assert set(module.SHOWN.treatments) <= set(row)
    assert {"method_seed", "ppo_seed"} & set(row)
    assert module.SHOWN.label and module.SHOWN.coord.startswith(kind)


def test_methods_have_markers_and_names_of_their_own():
    shown = [importlib.import_module(f"overopt.methods.{kind}").SHOWN for kind in KINDS]
    for what in ("label", "coord", "marker"):
        assert len({getattr(s, what) for s in shown}) == len(shown)


@pytest.mark.parametrize("kind", KINDS)
def test_a_replicate_differs_in_its_seed_alone(kind):
    module = importlib.import_module(f"overopt.methods.{kind}")
    settings = module.Settings()
    other = settings.with_seed(7)
    assert (settings.seed, other.seed) == (0, 7)
    assert other.with_seed(0) == settings
    assert other.title != settings.title and other.treatment == settings.treatment


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_setting_is_named(kind):
    module = importlib.import_module(f"overopt.methods.{kind}")
    with pytest.raises(ConfigError, match=r"method\.steps = 0"):
        module.Settings(steps=0)


@pytest.mark.parametrize("kind", KINDS)
def test_planning_needs_no_torch(kind, tmp_path):
    code = (
        "import sys; from overopt.cli.main import main;"
        f"code = main(['plan', 'smoke', 'method.kind={kind}', '--store', {str(tmp_path)!r}]);"
        "assert code == 0 and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert f" {kind}" in done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_gold_is_out_of_reach(kind):
    """In the graph: gold comes to a method as labels only, which say who won and not by how much."""
    from overopt.engine.graph import topological

    for end in build_graph(load_experiment("smoke", [f"method.kind={kind}"])):
        if kind in end.upstream:
            stage = end.upstream[kind]
            assert "gold" not in stage.upstream
            readers = {s.name for s in topological([stage]) if "gold" in s.upstream}
            assert readers <= {"comparisons", "labels"}


# --- whole runs -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory):
    """A store and the overrides of a small run, whose proxy all methods share."""
    folder = tmp_path_factory.mktemp("methods")
    small = [
        small_smoke.prompts_file(folder / "prompts.jsonl"),
        *("gold.kind=rubric", "labels.n_pairs=60", "bon=none", "proxy.backbone=ladder:0.05m"),
        *("method.steps=2", "--workers", "1", "--quiet", "--store", str(folder / "store")),
    ]
    return folder, small


def run(shared_store, kind, name, *more):
    folder, small = shared_store
    results = folder / name
    assert (
        main(["run", "smoke", f"method.kind={kind}", *small, *more, "--results", str(results)]) == 0
    )
    return results


@pytest.mark.parametrize("kind", KINDS)
def test_smoke(shared_store, kind):
    results = run(shared_store, kind, kind)
    (curve,) = load_curves(results)
    assert curve.meta["method"] == kind
    assert curve.meta["coord"] == importlib.import_module(f"overopt.methods.{kind}").SHOWN.coord
    assert [row["value"] for row in curve.rows] == [0, 1, 2]
    assert curve.rows[0]["kl_seq_nats"] == 0.0 and curve.rows[0]["kl_k1"] == 0.0
    assert curve.rows[-1]["kl_seq_nats"] > 0
    assert sum(read_costs(results).values()) < 20  # CPU seconds, with the proxy's training


def test_all_methods_start_from_the_same_responses(shared_store):
    """Evaluations share their random numbers: step 0 is one and the same for all."""
    starts = []
    for kind in ("ppo", "grpo", "rejection"):
        (curve,) = load_curves(run(shared_store, kind, f"again-{kind}"))
        starts.append([curve.arrays[name][0].tolist() for name in ("gold", "proxy", "length")])
    assert starts[0] == starts[1] == starts[2]


def test_par_has_a_reference_for_every_prompt_that_is_drawn(shared_store):
    """A prompt without one would have the reward nan, and the run would stop."""
    results = run(shared_store, "grpo", "par", "method.shaping=par")
    (curve,) = load_curves(results)
    assert curve.meta["shaping"] == "par" and curve.meta["mitigation"] == "par 1"


def test_a_method_reads_labels_without_gold_margins(shared_store, monkeypatch):
    """What `problem.preferences` gives in a real run."""
    from overopt.methods import dpo

    seen, original = [], dpo.start

    def spy(policy, settings, task):
        seen.append(task.preferences())
        return original(policy, settings, task)

    monkeypatch.setattr(dpo, "start", spy)
    run(shared_store, "dpo", "spied", "method.seed=3")
    (pairs,) = seen
    assert len(pairs) == 60 and pairs.gold_margin.isnan().all() and not pairs.flipped.any()


@pytest.fixture
def own_file(tmp_path):
    """The method that docs/methods.md shows."""
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.splitlines()) <= 60
    file = tmp_path / "my_method.py"
    file.write_text(code, encoding="utf-8")
    return file


def test_a_method_of_ones_own(shared_store, own_file):
    results = run(shared_store, own_file, "own")
    (curve,) = load_curves(results)
    assert curve.meta["method"] == "my_method"
    assert curve.rows[-1]["kl_seq_nats"] > 0
    assert json.loads((results / "shown.json").read_text())["my_method"]["label"] == "mine"


def test_a_step_that_does_not_count_ends_the_run(shared_store, own_file, capsys):
    """It would run for ever."""
    folder, small = shared_store
    own_file.write_text(own_file.read_text().replace("state.step += 1", "pass"))
    command = ["run", "smoke", f"method.kind={own_file}", *small]
    assert main([*command, "--results", str(folder / "uncounted")]) != 0
    assert "state.step from 0 to 0; it must add 1" in capsys.readouterr().err


def test_a_method_of_ones_own_becomes_a_picture(shared_store, own_file, tmp_path):
    results = run(shared_store, own_file, "drawn")
    pictures = draw(results, tmp_path / "pictures")
    assert any(file.suffix == ".png" and file.stat().st_size > 5000 for file in pictures)
