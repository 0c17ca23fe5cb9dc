"""How often each fault is injected: few in `make test`, many in `make faults` (see the Makefile)."""

import pytest

COUNTS = {
    "flips": (60, "damaged files of a checkpoint"),
    "kills": (12, "SIGKILLs of a process that only writes checkpoints"),
    "renames": (3, "renames of a save at which each error is injected"),
}


def pytest_addoption(parser):
    for name, (few, text) in COUNTS.items():
        parser.addoption(f"--{name}", type=int, default=few, help=f"{text}; default {few}")


@pytest.fixture
def count(request):
    """name -> how often."""
    return lambda name: request.config.getoption(f"--{name}", default=COUNTS[name][0])
