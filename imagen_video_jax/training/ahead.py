"""The next batch, made by a thread while the device computes: drawn, stacked and put on the devices.

In the main thread the same work would wait for the interpreter lock at every item, which the reading threads hold:
a tenth of a step of the mini base on two cores.
"""

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Made = TypeVar("Made")
_LEAVE_AFTER = 5.0  # seconds; a reader that hangs is left to the end of the process


class Ahead(Generic[Made]):
    """Iterator over what `make()` gives, one call after another, one made ahead; a context manager that ends it.

    Not more: batches lie on the devices, beside the one in use.

    What `make` raises is raised here, in its turn.
    """

    def __init__(self, make: Callable[[], Made]):
        self._make, self._ended = make, threading.Event()
        self._made: queue.Queue[tuple[Made | None, BaseException | None]] = queue.Queue()
        self._wanted = threading.Semaphore(1)
        self._thread = threading.Thread(target=self._work, name="next batch", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        error = None
        while error is None:
            self._wanted.acquire()
            if self._ended.is_set():
                return
            made = None
            try:
                made = self._make()
            except BaseException as raised:  # whatever it is, it belongs to the one who asks
                error = raised
            self._made.put((made, error))
            made = None

    def __iter__(self) -> "Ahead[Made]":
        return self

    def __next__(self) -> Made:
        made, error = self._made.get()
        self._wanted.release()
        if error is not None:
            raise error
        return made

    def __enter__(self) -> "Ahead[Made]":
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._wanted.release()
        self._thread.join(_LEAVE_AFTER)
