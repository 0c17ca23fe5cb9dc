"""What commands do for their whole process: errors in one line, SIGTERM, where compiled programs are kept."""

import contextlib
import ctypes
import errno
import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from typing import TypeVar

from imagen_video_jax.errors import DONE, STOPPED_AFTER_SAVING, WRONG_REQUEST, UserError
from imagen_video_jax.training.stopping import Stop, StopNow

T = TypeVar("T")
# What a command may meet wherever it writes: a disk, a quota or a file that is full, a disk that may only be read.
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# What a disk, or a server of files, that fails answers to reading and writing.
_FAILS = (errno.EIO, errno.ESTALE)
# What makes a path that a person named unusable, for reading too.
_CANNOT_USE = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR)
SHOW_CURSOR = "\033[?25h"


def in_one_line(work: Callable[[], int | None]) -> int:
    """`work`'s exit code (None: done); what a person can mend is one line on stderr and a code of errors.py."""
    try:
        code = work() or DONE
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _stdout_is_closed():  # another pipe, as of a process that died
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in its buffer goes nowhere
        return 128 + signal.SIGPIPE
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno in _CANNOT_WRITE:
            what = f"write {error.filename or 'its files'}"
        elif error.errno in _FAILS:
            what = f"read or write {error.filename or 'its files'}"
        elif is_of_a_path(error):
            what = f"use {error.filename}"
        else:
            raise
        print(f"error: cannot {what}: {error.strerror}", file=sys.stderr)
        return WRONG_REQUEST
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130


def _stdout_is_closed() -> bool:
    """Whether whoever read stdout has gone, as `head` does."""
    watched = select.poll()
    watched.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in watched.poll(0))


def is_of_a_path(error: OSError) -> bool:
    """Whether it tells of a path that cannot be used as it is: another path or other rights mend it."""
    return error.errno in _CANNOT_USE and error.filename is not None


@contextlib.contextmanager
def stop_on_sigterm():
    """Yields a `Stop` that says whether SIGTERM came; a second one ends the process at once."""
    stop, first = Stop(), []

    def handle(number, frame):
        # A scheduler may signal every process, and the watchdog passes on what it got: within a second it is one.
        if first and time.monotonic() - first[0] > 1.0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        if not first:
            first.append(time.monotonic())
            stop.ask()

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, previous)


def unless_stopped(work: Callable[[Stop], object]) -> int:
    """Runs `work`, which raises Stopped once it saved what it was asked to stop with SIGTERM; the exit code."""
    from imagen_video_jax.training.loop import Stopped

    with stop_on_sigterm() as stop:
        try:
            work(stop)
        except Stopped:
            if stop.left_running:  # a compilation, which would keep this process for minutes
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(STOPPED_AFTER_SAVING)
            return STOPPED_AFTER_SAVING
    return DONE


def until_sigterm(work: Callable[[], object]) -> int:
    """Runs `work`, which goes on from what it has written when it is run again; the exit code. SIGTERM ends it at once.

    It has a thread of its own: inside native code (a compilation) no signal is heard.
    """
    with stop_on_sigterm() as stop:
        try:
            stop.run(work)
        except (StopNow, KeyboardInterrupt) as ended:
            if not stop.left_running:
                raise  # of the work itself
            if sys.stderr.isatty():
                print(SHOW_CURSOR, end="", file=sys.stderr)  # a bar hides it
            print("stopped; run the same command again to go on", file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(STOPPED_AFTER_SAVING if isinstance(ended, StopNow) else 130)
    return DONE


def with_all_processes(prepare: Callable[[], T], work: Callable[[T, Stop], object]) -> int:
    """`unless_stopped` of `work(prepare(), stop)`, after the job's other processes were joined, if it has some.

    What SIGTERM ends at once, as long as nothing is lost, ends with 75: in a job of one process until `work` begins, in
    others until they have joined. From there on they can only end together, so it is only noted until `work` asks.
    """
    from imagen_video_jax import distributed

    if distributed.start()[1] > 1:
        return unless_stopped(lambda stop: work(prepare(), stop))
    ready = prepare()
    return unless_stopped(lambda stop: work(ready, stop))


def use_compilation_cache() -> None:
    """Compiled programs are kept, so that running a command again starts at once: in JAX_COMPILATION_CACHE_DIR, or in
    the user cache."""
    import jax

    from imagen_video_jax.storage import user_cache

    # Whether the folder can be written is not this command's business: jax warns and compiles.
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(user_cache() / "compiled"))
    warnings.filterwarnings("ignore", message=".*compilation cache.*")


def keep_freed_memory() -> None:
    """Large arrays that this process frees stay its own, to be used again: mini train steps took 0.8 of the time.

    The C library gives blocks of 32 MB and more back to the system, which has to fill their pages with zeros when the
    next step asks for them. Does nothing where the C library is not glibc. Before jax starts its threads.
    """
    TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        # Only the arena of the first thread can grow beyond 64 MB.
        for option, value in ((ARENA_MAX, 1), (MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1)):
            mallopt(option, value)
