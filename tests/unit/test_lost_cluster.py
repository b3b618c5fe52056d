"""A Ray cluster that stops answering; what a real one does is in tests/pipeline/test_ray.py."""

from types import SimpleNamespace

import pytest

from overopt.engine.on_ray import RayCluster, RayError


class NoAnswer(Exception):
    pass


@pytest.mark.parametrize("gone", [NoAnswer("no head"), ConnectionError("no head")])
def test_a_look_at_nodes_of_a_lost_cluster_says_what_is_left(gone):
    def nodes():
        raise gone

    cluster = object.__new__(RayCluster)
    cluster._ray = SimpleNamespace(exceptions=SimpleNamespace(RayError=NoAnswer), nodes=nodes)
    cluster._looked = float("-inf")
    with pytest.raises(RayError, match="lost .no head.*in the store.*same command goes on"):
        cluster.capacity()
