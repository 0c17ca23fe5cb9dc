"""The next batch, made by a thread while the device computes: drawn, stacked and put on the devices.

In the main thread the same work would wait for the interpreter lock at every item, which the reading threads hold:
a tenth of a step of the mini base on two cores.
"""

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Made = TypeVar("Made")
_LEAVE_AFTER = 5.0  # seconds; a reader that hangs is left to the end of the process


class Ahead(Generic[Made]):
    """Iterator over what `make()` gives, one call after another, one made ahead; a context manager that ends it.

    What `make` raises is raised here, in its turn.
    """

    def __init__(self, make: Callable[[], Made]):
        self._make, self._ended = make, threading.Event()
        self._made: queue.Queue[tuple[Made | None, BaseException | None]] = queue.Queue(maxsize=1)
        self._thread = threading.Thread(target=self._work, name="next batch", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        error = None
        while error is None and not self._ended.is_set():
            made = None
            try:
                made = self._make()
            except BaseException as raised:  # whatever it is, it belongs to the one who asks
                error = raised
            self._offer((made, error))

    def _offer(self, item) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(queue.Full):
                self._made.put(item, timeout=0.1)
                break

    def __iter__(self) -> "Ahead[Made]":
        return self

    def __next__(self) -> Made:
        made, error = self._made.get()
        if error is not None:
            raise error
        return made

    def __enter__(self) -> "Ahead[Made]":
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._thread.join(_LEAVE_AFTER)
