"""The short form of ``make torture``: each trial once, races a few times."""

import signal

import pytest
from torture import Trials

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    return Trials(tmp_path_factory.mktemp("torture"), seed=3)


@pytest.mark.slow
def test_a_killed_collection_leaves_whole_records(trials):
    assert trials.collect(0, kills=3) in ("3 kills, 2 found records", "3 kills, 3 found records")


@pytest.mark.slow
@pytest.mark.parametrize("writers", [2, 4])
def test_parts_that_end_together_lose_no_curve_unless_the_lock_is_missing(trials, writers):
    trials.commands(writers)
    assert trials.race(writers, 5) == 0
    assert trials.race(writers, 5, planted=True) > 0


@pytest.mark.slow
def test_a_signal_at_a_random_moment_keeps_what_is_finished(trials):
    assert trials.signal(signal.SIGTERM, 0) == "status 143"


@pytest.mark.slow
def test_a_killed_worker_costs_its_stage_only(trials):
    assert trials.worker(0).startswith("status ")
