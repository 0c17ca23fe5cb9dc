"""Reading media in processes of their own, which may be killed: the decoders are C, the files come from strangers.

A decoder that crashes, hangs or fills the memory costs its own process and nothing else. A process is limited in time
(by its parent) and in memory (by the kernel), can write no file, and ends with its parent. What failed is tried once
more in a fresh process before the file is blamed, so that a process that somebody else stopped or killed changes no
result.

    python -m imagen_video_jax.video.isolated       the process; a request is a line of JSON, then the file's bytes

Idle processes wait for the next file, as many as were ever needed at once.
"""

import atexit
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np

from imagen_video_jax.video.containers import EncodedMedia, Media, size_of
from imagen_video_jax.video.reading import (
    Facts,
    MediaError,
    Video,
    content_hash,
    is_image,
    read_image,
    read_media,
    read_video,
    scan_media,
)

SECONDS = 30.0  # for one file, while training
MEMORY_BYTES = 2 << 30
_START_SECONDS = 60.0
# Of reading a file without decoding: what a healthy disk or network share needs at most, and bytes/s at least.
STUCK_SECONDS = 25.0
_SLOWEST = 5e6


@dataclasses.dataclass(frozen=True)
class Scan:
    """What a file is.

    Attributes:
      facts: of the whole file.
      changes: how much the picture changes at each frame after the first, in [0, 1]; empty unless asked for.
    """

    facts: Facts
    changes: tuple[float, ...] = ()


def read(media: Media, *, height: int, width: int, seconds: float = SECONDS, memory_bytes: int = MEMORY_BYTES) -> Video:
    """`read_media` in another process, each frame shrunk until it just covers height x width.

    Raises:
      MediaError: as `read_media`, or the file took too much time or memory, or the decoder died of it.
    """
    reply, data = _ask(media, {"do": "read", "cover": {"height": height, "width": width}}, seconds, memory_bytes)
    return Video(np.frombuffer(data, np.uint8).reshape(reply["shape"]), reply["fps"])


def read_part(media: Media, start: int, end: int, *, seconds: float, memory_bytes: int) -> Video:
    """The frames from `start` to before `end` of `read_media`, at full size, read in another process."""
    reply, data = _ask(media, {"do": "read", "part": [start, end]}, seconds, memory_bytes)
    return Video(np.frombuffer(data, np.uint8).reshape(reply["shape"]), reply["fps"])


def scan(media: Media, *, changes: bool = False, seconds: float = SECONDS, memory_bytes: int = MEMORY_BYTES) -> Scan:
    """Decodes a whole file in another process and says what is in it; MediaError as for `read`."""
    reply, _ = _ask(media, {"do": "scan", "changes": changes}, seconds, memory_bytes)
    return Scan(Facts(**reply["facts"]), tuple(reply["changes"]))


def displayed_size(media: Media, *, seconds: float = SECONDS, memory_bytes: int = MEMORY_BYTES) -> tuple[int, int]:
    """(height, width) as `read_media` returns them, from the first frame alone; MediaError as for `read`."""
    reply, _ = _ask(media, {"do": "size"}, seconds, memory_bytes)
    return tuple(reply["size"])


def read_hash(media: Media, *, memory_bytes: int = MEMORY_BYTES) -> str:
    """`content_hash`; a file on the disk is read in another process, so that storage that hangs costs only that.

    Raises:
      MediaError: as `content_hash`, or no end came within `STUCK_SECONDS` and what its size takes, twice.
    """
    if isinstance(media, EncodedMedia):
        return content_hash(media)
    try:
        size = size_of(media)
    except OSError as error:
        raise MediaError(media, error.strerror or str(error)) from None
    reply, _ = _ask(media, {"do": "hash"}, STUCK_SECONDS + size / _SLOWEST, memory_bytes)
    return reply["hash"]


def colour_change(before_HWC: np.ndarray, after_HWC: np.ndarray) -> float:
    """Half the difference of two frames' colour histograms, from 0 (the same colours) to 1 (none in common)."""
    return float(np.abs(_histogram(before_HWC) - _histogram(after_HWC)).sum() / 2)


def _histogram(frame_HWC: np.ndarray) -> np.ndarray:
    """Share of the pixels in each of 8 x 8 x 8 colours; every few pixels are enough."""
    step = max(1, min(frame_HWC.shape[:2]) // 64)
    colour = (frame_HWC[::step, ::step] >> 5).astype(np.int64)
    index = (colour[..., 0] << 6) | (colour[..., 1] << 3) | colour[..., 2]
    return np.bincount(index.ravel(), minlength=512) / index.size


# The parent's side.


def _ask(media: Media, request: dict, seconds: float, memory_bytes: int) -> tuple[dict, bytes]:
    for last in (False, True):
        try:
            # Whoever stopped or killed one process may have done so to all that are idle.
            with _borrowed(memory_bytes, fresh=last) as decoder:
                reply, data = decoder.call(media, request, seconds)
        except _Died as error:
            if last:
                raise MediaError(media, str(error)) from None
            continue
        if "error" in reply:
            raise MediaError(media, reply["error"])
        return reply, data
    raise AssertionError("unreachable")


class _Died(Exception):
    """The process is gone; the text says what it was doing."""


class _Decoder:
    """One process."""

    def __init__(self, memory_bytes: int):
        self.memory_bytes = memory_bytes
        self._socket, theirs = socket.socketpair()
        packages = [str(pathlib.Path(__file__).parent.parent.parent), os.environ.get("PYTHONPATH")]
        # One thread each: the stack of every thread counts as memory, and the processes fill the machine already.
        settings = {"PYTHONPATH": os.pathsep.join(filter(None, packages)), "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "imagen_video_jax.video.isolated", str(theirs.fileno()), str(memory_bytes)],
            stdin=subprocess.PIPE,  # only its end is read: it comes when this process ends, however that went
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=os.environ | settings,
            start_new_session=True,  # Ctrl-C is for the parent to handle
        )
        theirs.close()
        self._ready = False
        _all.add(self)

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, media: Media, request: dict, seconds: float) -> tuple[dict, bytes]:
        in_memory = isinstance(media, EncodedMedia)
        request = request | {"path": os.path.abspath(media) if not in_memory else media.name, "in_memory": in_memory}
        try:
            if not self._ready:  # starting may take long on a busy machine, and is not the file's doing
                _receive(self._socket, time.monotonic() + _START_SECONDS)
                self._ready = True
            deadline = time.monotonic() + seconds
            _send(self._socket, json.dumps(request).encode(), deadline)
            if in_memory:
                _send(self._socket, media.data, deadline)
            return json.loads(_receive(self._socket, deadline)), _receive(self._socket, deadline)
        except TimeoutError:
            if request["do"] == "hash":
                raise _Died(f"could not be read within {seconds:.0f} s; its disk or network share may hang") from None
            raise _Died(f"took longer than {seconds:g} s to decode; cut it into shorter clips") from None
        except (OSError, EOFError):
            status = self._process.wait()
            how = signal.Signals(-status).name if status < 0 else f"exit code {status}"
            raise _Died(f"the decoder died of it ({how})") from None

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        _all.discard(self)
        self._socket.close()
        self._process.kill()
        # What is stuck inside the kernel ends when the kernel lets it.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        self._process.stdin.close()


_all: set[_Decoder] = set()
_idle: list[_Decoder] = []
_lock = threading.Lock()


@contextlib.contextmanager
def _borrowed(memory_bytes: int, fresh: bool) -> Iterator[_Decoder]:
    """An idle process with these limits, or a new one; idle again if its use goes well."""
    decoder = (None if fresh else _take_idle(memory_bytes)) or _Decoder(memory_bytes)
    try:
        yield decoder
    except BaseException:
        decoder.close()
        raise
    with _lock:
        _idle.append(decoder)


def _take_idle(memory_bytes: int) -> _Decoder | None:
    with _lock:
        for decoder in [d for d in _idle if d.memory_bytes == memory_bytes]:
            _idle.remove(decoder)
            if decoder.alive:
                return decoder
            decoder.close()
    return None


@atexit.register
def close_all() -> None:
    """Ends the idle processes."""
    with _lock:
        while _idle:
            _idle.pop().close()


# Messages: eight bytes that say how long, then the bytes.


def _send(connection: socket.socket, data, deadline: float | None = None) -> None:
    for part in (len(data).to_bytes(8, "big"), data):
        connection.settimeout(_remaining(deadline))
        connection.sendall(part)


def _receive(connection: socket.socket, deadline: float | None = None) -> bytearray:
    return _receive_exactly(connection, int.from_bytes(_receive_exactly(connection, 8, deadline), "big"), deadline)


def _remaining(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    if (seconds := deadline - time.monotonic()) <= 0:
        raise TimeoutError
    return seconds


def _receive_exactly(connection: socket.socket, size: int, deadline: float | None) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        connection.settimeout(_remaining(deadline))
        count = connection.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]
    return data


# The process's side.


def main(descriptor: int, memory_bytes: int) -> None:
    """Answers requests until the parent is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    connection = socket.socket(fileno=descriptor)
    with contextlib.suppress(EOFError, OSError):
        _send(connection, b"ready")
        while True:
            request = json.loads(_receive(connection))
            media = request.pop("path")
            if request.pop("in_memory"):
                media = EncodedMedia(media, bytes(_receive(connection)))
            reply, data = _answer(media, request)
            _send(connection, json.dumps(reply).encode())
            _send(connection, data)
            del media, data


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(1)


def _answer(media: Media, request: dict) -> tuple[dict, bytes | memoryview]:
    try:
        return {"read": _read, "scan": _scan, "size": _size, "hash": _hash}[request.pop("do")](media, **request)
    except MediaError as error:
        return {"error": error.reason}, b""
    except MemoryError:
        return {"error": "does not fit in memory"}, b""
    except Exception as error:
        # Whatever a decoder raises about a stranger's file is about that file.
        return {"error": f"cannot be decoded ({type(error).__name__}: {error})"}, b""


def _read(media: Media, *, cover: dict | None = None, part: list[int] | None = None):
    video = read_media(media, covering=(cover["height"], cover["width"]) if cover else None)
    frames_THWC = video.frames_THWC[slice(*part)] if part else video.frames_THWC
    reply = {"shape": frames_THWC.shape, "fps": video.fps}
    return reply, memoryview(np.ascontiguousarray(frames_THWC)).cast("B")


def _hash(media: Media):
    return {"hash": content_hash(media)}, b""


def _size(media: Media):
    first_HWC = read_image(media) if is_image(media) else read_video(media, max_frames=1).frames_THWC[0]
    return {"size": first_HWC.shape[:2]}, b""


def _scan(media: Media, *, changes: bool):
    decoded: list[float] = []
    before: list[np.ndarray] = []

    def compare(frame_HWC):
        decoded.extend(colour_change(frame, frame_HWC) for frame in before)
        before[:] = [frame_HWC]

    facts, order_T = scan_media(media, **({"each_frame": compare} if changes else {}))
    shown = [max(decoded[a:b], default=0.0) for a, b in itertools.pairwise(order_T)] if changes else []
    return {"facts": dataclasses.asdict(facts), "changes": shown}, b""


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
