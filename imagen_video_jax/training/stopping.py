"""Being asked to stop: at the next step, or at once where nothing would be lost."""

import contextlib
import threading
from collections.abc import Callable, Iterator


class StopNow(BaseException):
    """Raised inside `Stop.at_once` when the process is asked to stop. Not an Exception: nobody's handler takes it."""


class Stop:
    """Whether this process was asked to stop; call it to know.

    Attributes: left_running: something that nothing can end (a compilation) was left behind in a thread.
    """

    def __init__(self, also: Callable[[], bool] = lambda: False):
        self.left_running = False
        self._asked, self._at_once, self._also = False, False, also

    def __call__(self) -> bool:
        return self._asked or self._also()

    def ask(self) -> None:
        """Called in the main thread, by a signal's handler."""
        self._asked = True
        if self._at_once:
            self._at_once = False
            raise StopNow

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """A body that changes nothing which is saved, and may take long: being asked to stop ends it, with StopNow."""
        if self():
            raise StopNow
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def run(self, function: Callable):
        """`function()` in a thread of its own: inside native code no signal is heard. StopNow leaves it there, and so
        does Ctrl-C."""
        result: list = []
        done = threading.Event()  # joining a thread is not safe against exceptions of signal handlers

        def work():
            try:
                result.append((function(), None))
            except BaseException as error:
                result.append((None, error))
            done.set()

        try:
            with self.at_once():
                threading.Thread(target=work, daemon=True).start()
                done.wait()
        except (StopNow, KeyboardInterrupt):
            self.left_running = not done.is_set()
            raise
        value, error = result[0]
        if error is not None:
            raise error
        return value
