"""The processes of one job on this machine."""

import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence

ROOT = pathlib.Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def variables(number: int, count: int, port: int) -> dict[str, str]:
    """The environment of process `number` of `count`."""
    own = {"JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(number)}
    return os.environ | {"PYTHONPATH": str(ROOT), "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}"} | own


def start(count: int, command: Callable[[int], Sequence[str]]) -> list[subprocess.Popen]:
    """Starts `python -m COMMAND` in each process; `command(number)` gives each its arguments."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, "-m", *command(number)], env=variables(number, count, port), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for number in range(count)
    ]  # fmt: skip


def ended(processes: Sequence[subprocess.Popen], seconds: int = 1800) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each."""
    try:
        outputs = [process.communicate(timeout=seconds) for process in processes]
        return [(process.returncode, *output) for process, output in zip(processes, outputs)]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
