"""A Ray cluster on the loopback address of this machine, for tests:  python ray_nodes.py NODES CPUS

A head without cores, so that no stage is lost with it, and NODES nodes with CPUS cores each. Prints a
line of JSON: the cluster's address, and the process of each node's raylet, the head's first. A line on
its standard input adds a node, and prints such a line again; the end of the input ends the cluster.
Ray is told to send no usage statistics, to show no dashboard, and to bind to loopback.

A node of Ray whose helpers are not there within 15 seconds gives up, and no setting changes that. On a
machine with other work they may need longer: they get priority where that is allowed, and more tries.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

from overopt.engine.on_ray import LOCAL

os.environ.update(LOCAL, RAY_enable_worker_prestart="0", RAY_raylet_start_wait_time_s="40")
os.environ.update(RAY_worker_niceness="10")  # what computes tasks gives the priority back
TRIES = 4


def say(address: str, raylets: list[int]) -> None:
    """Print what is known of the cluster."""
    sys.stdout.write(json.dumps({"address": address, "raylets": raylets}) + "\n")
    sys.stdout.flush()


def add(cluster: Any, options: dict[str, Any]) -> int:
    """Add a node to the cluster; returns the process of its raylet."""
    for attempt in range(TRIES):
        try:
            node = cluster.add_node(wait=False, **options)
            return node.all_processes["raylet"][0].process.pid
        except Exception as error:  # Ray raises nothing more special
            if "timed out during startup" not in str(error) or attempt == TRIES - 1:
                raise
    raise AssertionError


def main() -> None:
    """Hold the cluster until the input ends."""
    from ray.cluster_utils import Cluster

    n, cpus = (int(word) for word in sys.argv[1:])
    options = {"num_cpus": cpus, "object_store_memory": 100_000_000}
    head = options | {"num_cpus": 0, "include_dashboard": False, "dashboard_host": "127.0.0.1"}
    with contextlib.suppress(OSError):
        os.nice(-10)
    cluster = Cluster()
    raylets = [add(cluster, head), *(add(cluster, options) for _ in range(n))]
    say(cluster.address, raylets)
    for _ in sys.stdin:
        raylets.append(add(cluster, options))
        say(cluster.address, raylets)
    cluster.shutdown()


if __name__ == "__main__":
    main()
