"""What commands set for their whole process: what SIGTERM does, where compiled programs are kept."""

import contextlib
import signal
import warnings


@contextlib.contextmanager
def stop_on_sigterm():
    """Yields a function that says whether SIGTERM came; a second one ends the process at once."""
    asked = []

    def handle(number, frame):
        asked.append(number)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGTERM, previous)


def use_compilation_cache() -> None:
    """Compiled programs are kept in the user cache, so that running a command again starts at once."""
    import jax

    from imagen_video_jax.storage import user_cache

    # Whether the folder can be written is not this command's business: jax warns and compiles.
    jax.config.update("jax_compilation_cache_dir", str(user_cache() / "compiled"))
    warnings.filterwarnings("ignore", message=".*compilation cache.*")
