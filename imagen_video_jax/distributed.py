"""Several processes as one job: joining them in a limited time, and what they tell each other on the host.

Process 0 owns the files of a job (checkpoints, metrics, locks); the others learn from it. Everything here is called by
all processes alike, in the same order; with one process it costs nothing.
"""

import itertools
import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from imagen_video_jax.errors import FAILED, UserError

JOIN_SECONDS = "IMAGEN_VIDEO_JOIN_SECONDS"  # environment variable: how long to wait for the job's other processes
_JOIN_SECONDS = 300
# One process that ends with an error ends the others after this, not after jax's five minutes.
_SHUTDOWN_SECONDS = 30
# One that is silent for so long is dead, and ends the others; jax waits for 100 s.
_HEARTBEAT_SECONDS = 30
_SHOWN = 80  # characters of a value in a message

T = TypeVar("T")


def start() -> tuple[int, int]:
    """Joins the job's other processes, if it has some; returns (number of this process, how many there are).

    Several processes are meant where JAX_COORDINATOR_ADDRESS is set (with JAX_NUM_PROCESSES and JAX_PROCESS_ID, unless
    jax finds them out, as under Slurm), or where a TPU slice has several hosts. Where they do not come together within
    IMAGEN_VIDEO_JOIN_SECONDS the process says so in one line and ends with exit code 1.
    """
    several = "JAX_COORDINATOR_ADDRESS" in os.environ or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    if several and not jax.distributed.is_initialized():
        numbers = {}
        for field in ("num_processes", "process_id"):
            if (value := _whole_number(f"JAX_{field.upper()}")) is not None:
                numbers[field] = value
        _join(_whole_number(JOIN_SECONDS) or _JOIN_SECONDS, numbers)
    return jax.process_index(), jax.process_count()


def _join(seconds: int, numbers: dict[str, int]) -> None:
    """Waits for the others in a thread of its own, so that a signal is heard meanwhile."""
    errors, done = [], threading.Event()
    # Its handler would take SIGTERM from ours; the loop tells all processes by itself.
    jax.config.update("jax_enable_preemption_service", False)

    def work():
        try:
            # jax ends the process with a stack trace when its own time is over, so ours ends first.
            jax.distributed.initialize(
                initialization_timeout=seconds + 60,
                heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
                **numbers,
            )
        except Exception as error:
            errors.append(error)
        done.set()

    threading.Thread(target=work, daemon=True).start()
    try:
        if not done.wait(seconds):
            _give_up(seconds)
    except SystemExit as asked:  # by a signal; the thread would keep this process
        os._exit(asked.code)
    if errors and not isinstance(errors[0], (ValueError, RuntimeError)):
        raise errors[0]
    if errors:
        raise UserError(f"cannot join the job's processes: {str(errors[0]).splitlines()[0][:200]}") from None


def _whole_number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is not None and not text.isdecimal():
        raise UserError(f"{name} must be a whole number, got {text!r}")
    return None if text is None else int(text)


def _give_up(seconds: int) -> None:
    address = os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    what = f"not all of the job's processes came within {seconds} s"
    host, _, port = address.rpartition(":")
    try:
        if address:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except (OSError, ValueError) as error:
        what = f"the coordinator {address} could not be reached within {seconds} s: {error}"
    print(f"error: {what} ({JOIN_SECONDS} sets the limit)", file=sys.stderr, flush=True)
    os._exit(FAILED)


_meetings = itertools.count()


def meet() -> None:
    """Returns when all processes are here, however long it takes; whoever dies meanwhile ends the others.

    Before they compute together for the first time: on CPUs they wait for each other for 30 s only, and one may read
    or compile for longer than another.
    """
    number = next(_meetings)
    if jax.process_count() > 1:
        from orbax.checkpoint import multihost

        multihost.get_barrier_sync_fn()(key=f"imagen_video_jax-{number}", timeout_ms=24 * 3600 * 1000)


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def from_first(make: Callable[[], T]) -> T:
    """What `make` returns on process 0, on every process; a UserError or OSError there is raised by all.

    Args: make is called on process 0 alone; its result must be JSON-serialisable.
    """
    if jax.process_count() == 1:
        return make()
    answer = b""
    if is_first():
        try:
            answer = json.dumps({"value": make()}).encode()
        except UserError as error:
            answer = json.dumps({"error": str(error), "exit_code": error.exit_code}).encode()
        except OSError as error:
            named = None if error.filename is None else str(error.filename)
            answer = json.dumps({"system_error": [error.errno, error.strerror or str(error), named]}).encode()
    first = json.loads(_gather(answer)[0])
    if "error" in first:
        raise UserError(first["error"], first["exit_code"])
    if "system_error" in first:
        raise OSError(*first["system_error"])
    return first["value"]


def agree(facts: Callable[[], dict[str, str]]) -> None:
    """Raises a UserError on every process unless `facts()` is the same on all; it names the first field that differs.

    A UserError that `facts` raises on one process is raised by all.
    """
    if jax.process_count() == 1:
        facts()
        return
    try:
        own = {"facts": facts()}
    except UserError as error:
        own = {"error": f"process {jax.process_index()}: {error}", "exit_code": error.exit_code}
    answers = [json.loads(answer) for answer in _gather(json.dumps(own).encode())]
    for answer in answers:
        if "error" in answer:
            raise UserError(answer["error"], answer["exit_code"])
    expected = answers[0]["facts"]
    for number, answer in enumerate(answers[1:], 1):
        for field in expected | answer["facts"]:
            values = [str(facts.get(field, "missing")) for facts in (expected, answer["facts"])]
            if values[0] != values[1]:
                here, there = (value if len(value) <= _SHOWN else value[:_SHOWN] + "..." for value in values)
                raise UserError(
                    f"the processes of this job differ in {field}: {here!r} in process 0, {there!r} in process "
                    f"{number}; start all of them alike"
                )


def _gather(data: bytes) -> list[bytes]:
    """Every process's bytes, in order."""
    meet()
    lengths = multihost_utils.process_allgather(np.array([len(data)], np.int32)).reshape(-1)
    # Few sizes, so that few programs are compiled.
    padded = np.zeros(1 << max(int(lengths.max()) - 1, 63).bit_length(), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    rows = multihost_utils.process_allgather(padded).reshape(len(lengths), -1)
    return [row[:length].tobytes() for row, length in zip(rows, lengths)]
