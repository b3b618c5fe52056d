"""The short form of ``make torture``: each trial once."""

import pytest
from torture import Trials


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    return Trials(tmp_path_factory.mktemp("torture"), seed=3)


@pytest.mark.slow
def test_a_killed_collection_leaves_whole_records(trials):
    assert trials.collect(kills=3) == 3


@pytest.mark.slow
@pytest.mark.parametrize("writers", [2, 4])
def test_parts_that_end_together_lose_no_curve(trials, writers):
    assert trials.race(writers) == writers


@pytest.mark.slow
def test_a_signal_at_a_random_moment_keeps_what_is_finished(trials):
    trials.signal()
