"""Other people's trainers, measured in virtual environments of their own, step by step in turn.

They are never dependencies of the package: the environment is built on demand below a directory of
the caller's, once, and the peer runs there as a subprocess (`peer_worker`) that waits for a word
before each of its steps, so that its steps and ours alternate on the same machine.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import venv
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from overopt.bench.harness import BenchError

WORKER = Path(__file__).with_name("peer_worker.py")
SHARED_VERSIONS = ("torch", "transformers")
"""Packages that both sides must have in the same version: only the trainers are to differ."""


def environment_python(folder: Path, requirement: str, *, constraints: Path | None = None) -> Path:
    """The interpreter of an environment with ``requirement`` in it, built if it is not there yet.

    Parameters
    ----------
    folder : parent of the environments; one named after the requirement appears in it
    requirement : such as ``trl==1.16.0``; torch and transformers are pinned to the versions here
    constraints : pip constraints file, or None

    Raises
    ------
    BenchError
        pip failed; names the requirement and ends with pip's last line.
    """
    home = folder / requirement.replace("==", "-")
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    finished = home / "installed.txt"
    if finished.is_file() and python.is_file():
        return python
    # The public version is asked for: a local build tag such as +cpu exists on one index only.
    pins = [f"{name}=={version(name).split('+')[0]}" for name in SHARED_VERSIONS]
    command = [str(python), "-m", "pip", "install", "--quiet", *pins, requirement]
    if constraints is not None:
        command += ["--constraint", str(constraints)]
    try:
        venv.create(home, with_pip=True, clear=True)
        subprocess.run(command, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        last = _last_line(error.stderr) or _last_line(error.stdout) or str(error)
        raise BenchError(
            f"environment for {requirement} could not be built in {home}: {last}; check the network "
            "and pip's index"
        ) from error
    except OSError as error:
        raise BenchError(f"environment for {requirement} needs {home}: {error}") from error
    # Written last: an environment without it is an unfinished one and is built anew.
    finished.write_text("\n".join([requirement, *pins]) + "\n", encoding="utf-8")
    return python


def wheel_site(folder: Path, requirement: str, wheels: Path) -> Path:
    """A directory with ``requirement`` from local wheels, for this interpreter; nothing is fetched.

    Parameters
    ----------
    folder : parent of what is installed; made once
    requirement : such as ``trl==1.16.0``
    wheels : with the wheels that every peer needs in ``common`` and those of this one in a directory
        named after it (``trl-1.16.0``); what is not among them comes from this environment, torch
        and transformers always

    Raises
    ------
    BenchError
        There are no such wheels, or pip failed.
    """
    name = requirement.replace("==", "-")
    site = folder / f"{name}-wheels"
    finished = site / "installed.txt"
    if finished.is_file():
        return site
    files = sorted(str(f) for part in ("common", name) for f in (wheels / part).glob("*.whl"))
    if not any(Path(f).parent.name == name for f in files):
        raise BenchError(f"{wheels / name} has no wheels: put {name} and what it needs there")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command += ["--no-compile", "--upgrade", "--target", str(site), *files]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        last = _last_line(error.stderr) or _last_line(error.stdout) or str(error)
        raise BenchError(f"{requirement} could not be installed from {wheels}: {last}") from error
    finished.write_text("\n".join(Path(f).name for f in files) + "\n", encoding="utf-8")
    return site


class Peer:
    """A worker process in a peer's environment, driven one step at a time.

    Use as a context manager; leaving it ends the process.
    """

    def __init__(
        self,
        python: Path,
        job: Mapping[str, Any],
        *,
        worker: Path | None = None,
        timeout_s: float = 600.0,
    ) -> None:
        """Start the worker on ``job`` (see `peer_worker`) and wait until it is ready to step."""
        self.name = str(job["kind"])
        self._timeout_s = timeout_s
        # Closed by `close`, like the process that writes to it.
        self._log = tempfile.TemporaryFile(  # noqa: SIM115
            "w+", encoding="utf-8", errors="replace"
        )
        # -I: nothing of this process's paths or user site reaches the peer.
        self._process = subprocess.Popen(
            [str(python), "-I", str(worker or WORKER), json.dumps(dict(job))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "WANDB_DISABLED": "true"},
            text=True,
            encoding="utf-8",
        )
        try:
            self.versions: dict[str, str] = self._read()["ready"]
        except BaseException:
            self.close()
            raise

    def step(self) -> dict[str, Any]:
        """Let the peer make one step; ``cpu_s``, ``wall_s`` and what else the worker reports."""
        self._write("step")
        return self._read()["step"]

    def finish(self) -> dict[str, Any]:
        """Let the peer end its run after the last step; what its worker hands over."""
        self._write("finish")
        return self._read()["done"]

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue  # a word that the dead process never read

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _write(self, word: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._error("ended early") from error

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        watchdog = threading.Timer(self._timeout_s, self._process.kill)
        watchdog.start()
        line = self._process.stdout.readline()
        timed_out = not watchdog.is_alive()
        watchdog.cancel()
        if timed_out:
            raise self._error(f"gave no answer in {self._timeout_s:.0f} s and was ended")
        if not line:
            raise self._error(f"ended early with status {self._process.wait()}")
        return json.loads(line)

    def _error(self, what: str) -> BenchError:
        self._log.seek(0)
        return BenchError(f"peer {self.name!r} {what}: {_last_line(self._log.read())}")


def _last_line(text: str | None) -> str:
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    return lines[-1] if lines else ""
