"""Freed memory is used again, where the C library can be told."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import numpy as np
from overopt.base.memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()

def fill():
    some = [np.ones(1 << 18) for _ in range(8)]  # 2 MB each
    return sum(x[0] for x in some)

fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_pages_are_not_made_anew():
    assert faults("keep") * 20 < faults("leave")


def test_another_c_library_is_left_alone(monkeypatch):
    from overopt.base import memory

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    memory.keep_freed_memory.__wrapped__()
