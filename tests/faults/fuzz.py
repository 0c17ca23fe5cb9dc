"""Damaged and hostile input for every parser of our own, for as long as one likes.

    python -m tests.faults.fuzz [--seconds 600] [--parser NAME ...] [--seed N] [--keep FOLDER]

Each parser gets mutations of good input, in a process of its own, for so many seconds of processor time (what else the
machine does takes nothing from them). It may take them or refuse them with the error that its docstring names; anything
else (another exception, a crash, ten seconds for one, 4 GiB of memory) is a failure: the input is kept, its name
printed, and the exit code is 1.
"""

import argparse
import dataclasses
import faulthandler
import multiprocessing
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback

from imagen_video_jax.errors import UserError
from tests.faults import fuzz_targets

_SECONDS_EACH, _MEMORY = 10, 4 << 30
# What parsers stumble over: limits of numbers, what closes and what nests, names that lead out.
_TOKENS = [
    b"", b"0", b"-1", b"1e999", b"NaN", b"null", b"true", b'"', b"{", b"}", b"[", b"]", b"[[[[[[[[", b",", b":", b"\n",
    b"\0", b"../", b"/etc/passwd", b"\\u0000", b"\xff\xfe", b"\xed\xa0\x80", b"9" * 40, b"18446744073709551615",
    b"9223372036854775807", b"4294967296", b"(" * 50, b"F32", b"BF16", b"bool", b"__metadata__", b"[" * 2000,
    *(number.to_bytes(8, "little") for number in (0, 1, 1 << 31, (1 << 63) - 1, (1 << 64) - 1)),
    *(number.to_bytes(4, "big") for number in (0, 1, 1 << 31, (1 << 32) - 1)),
]  # fmt: skip


@dataclasses.dataclass
class Counts:
    """How many inputs there were, how many of them were refused, and the failures: (input, what happened)."""

    inputs: int = 0
    refused: int = 0
    failures: list = dataclasses.field(default_factory=list)


def mutated(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """`data` with one to four small changes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, kind = rng.randrange(len(out) + 1), rng.randrange(7)
        if kind == 0 and out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        elif kind == 1 and out:
            out[at % len(out)] = rng.randrange(256)
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            del out[at : at + rng.randrange(1, 17)]
        elif kind == 4:
            token = rng.choice(_TOKENS)
            out[at : at + rng.choice((0, len(token)))] = token
        elif kind == 5:
            out[at:at] = out[at : at + rng.randrange(1, 65)] * rng.choice((1, 1, 2, 50))
        else:
            other = rng.choice(others)
            begin = rng.randrange(len(other) + 1)
            out[at : at + rng.randrange(65)] = other[begin : begin + rng.randrange(65)]
    return bytes(out)


def fuzz(
    target: fuzz_targets.Target, folder: pathlib.Path, *, seed: int, seconds: float = 0.0, inputs: int = 0
) -> Counts:
    """Feeds `target` until the time or the number of inputs is reached, or ten failures."""
    rng, counts = random.Random(seed), Counts()
    previous = signal.signal(signal.SIGPROF, _late)
    seeds = target.seeds(folder)
    for data in seeds:  # or the fuzzing means nothing
        target.parse(folder, data)
    ends = time.process_time() + seconds
    while len(counts.failures) < 10 and (counts.inputs < inputs or time.process_time() < ends):
        data = mutated(rng.choice(seeds), seeds, rng)
        (folder / "last").write_bytes(data)  # for a crash that nobody can report
        counts.inputs += 1
        signal.setitimer(signal.ITIMER_PROF, _SECONDS_EACH)
        try:
            target.parse(folder, data)
        except (UserError, *target.refusals):
            counts.refused += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            counts.failures.append((data, "".join(traceback.format_exception(error)[-3:])))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, previous)
    return counts


class _TooLong(BaseException):
    """One input took too long."""


def _late(*_) -> None:
    raise _TooLong(f"still at it after {_SECONDS_EACH} s")


def _alone(name: str, seed: int, seconds: float, folder: pathlib.Path, results) -> None:
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
    os.chdir(folder)
    counts = fuzz(fuzz_targets.TARGETS[name], folder, seed=seed, seconds=seconds)
    results.put((counts.inputs, counts.refused, counts.failures))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600, help="of processor time, for each parser")
    parser.add_argument("--parser", nargs="+", default=list(fuzz_targets.TARGETS), choices=fuzz_targets.TARGETS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=pathlib.Path, default=pathlib.Path("fuzz_failures"))
    arguments = parser.parse_args()
    failed = False
    for name in arguments.parser:
        folder = pathlib.Path(tempfile.mkdtemp(prefix="fuzz-"))
        context = multiprocessing.get_context("spawn")
        results = context.Queue()
        process = context.Process(target=_alone, args=(name, arguments.seed, arguments.seconds, folder, results))
        process.start()
        failures, text = [], ""
        while process.is_alive() and results.empty():
            process.join(0.2)
        if not results.empty():
            inputs, refused, failures = results.get()
            text = f"{inputs} inputs, {refused} refused, {inputs - refused - len(failures)} taken"
        process.join()
        if process.exitcode:
            last = folder / "last"
            failures.append((last.read_bytes() if last.exists() else b"", f"ended with exit code {process.exitcode}"))
        print(f"{name:22}{text}, {len(failures)} failures", flush=True)
        for number, (data, reason) in enumerate(failures):
            failed = True
            arguments.keep.mkdir(parents=True, exist_ok=True)
            (arguments.keep / f"{name}-{number}").write_bytes(data)
            print(f"  {arguments.keep / f'{name}-{number}'}: {reason}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
