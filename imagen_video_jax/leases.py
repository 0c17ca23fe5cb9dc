"""Who holds a folder, told so that other machines can find out whether the holder lives: pid, boot id, and a lease.

A kernel lock ends with its process, but other machines that share the folder may not see it, and some file systems have
none. So the holder keeps a note, and raises the number in it every few seconds. No clocks are compared and no ages
believed: who finds the note of another machine watches whether its number changes.
"""

import _thread
import contextlib
import json
import math
import os
import pathlib
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from imagen_video_jax.errors import UserError

BEAT = 10.0  # seconds between two numbers
_SETTLE = 1.0  # seconds in which two that began at once see each other
_BYTES = 512  # of a note; always the same, so that one is written over the other and needs no free disk


def boot_id() -> str:
    """What tells this start of this machine from all others."""
    try:
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return os.uname().nodename


def read(path: pathlib.Path) -> dict | None:
    """The note; None where the folder was given back or never held, {} where the note makes no sense."""
    try:
        text = path.read_bytes().decode()
        note = json.loads(text) if text.strip() else None
    except OSError:
        return None
    except ValueError:
        return {}
    return note if isinstance(note, dict) or note is None else {}


def describe(note: dict | None) -> str:
    return f"pid {note['pid']} on {note['host']}" if note and {"pid", "host"} <= note.keys() else "unknown"


def is_kept(path: pathlib.Path, note: dict) -> bool:
    """Whether the holder of `note` lives: waits for its number to change, for two and a half times as long as it takes.

    False where the folder is given back meanwhile. It counts looks, not seconds: a process that was stopped for longer
    than that in between would have looked once.
    """
    pause = min(0.5, BEAT / 4)
    for _ in range(math.ceil(2.5 * BEAT / pause)):
        time.sleep(pause)
        now = read(path)
        if now is None:
            return False
        if now and now != note:
            return True
    return False


@contextlib.contextmanager
def kept(
    path: pathlib.Path, descriptor: int, *, alone: bool, lost: Callable[[], None] = _thread.interrupt_main
) -> Iterator[None]:
    """Keeps a note of this process in the file while the body runs, and empties it then.

    Args:
      descriptor: of the open file.
      alone: a lock of the kernel says that nobody on this machine can begin at the same time.
      lost: called in another thread when somebody else took the folder over (this machine stood still for too long).

    Raises UserError when another process began at the same time, and won.
    """
    token = uuid.uuid4().hex
    own = {"pid": os.getpid(), "host": os.uname().nodename, "boot": boot_id(), "token": token}

    def is_own() -> bool:
        return (read(path) or own).get("token", token) == token

    def beat() -> None:
        number = 0
        while not done.wait(BEAT):
            if not is_own():
                print(f"error: {path.parent} was taken over by {describe(read(path))}", file=sys.stderr, flush=True)
                lost()
                return
            number += 1
            with contextlib.suppress(OSError):
                _write(descriptor, own | {"beat": number})

    try:
        _write(descriptor, own | {"beat": 0})
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror}") from None
    if not alone:
        time.sleep(_SETTLE)
        if not is_own():
            raise UserError(f"{path.parent} is in use by another process ({describe(read(path))}); wait for it")
    done = threading.Event()
    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if is_own():
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)


def _write(descriptor: int, note: dict) -> None:
    os.pwrite(descriptor, json.dumps(note).encode().ljust(_BYTES), 0)
