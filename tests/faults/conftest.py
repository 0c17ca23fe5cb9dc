"""How often each fault is injected: few in `make test`, many in `make faults` (see the Makefile)."""

import pytest

COUNTS = {
    "flips": (60, "damaged files of a checkpoint"),
    "kills": (12, "SIGKILLs of a process that only writes checkpoints"),
    "renames": (3, "renames of a save at which each error is injected"),
    "train-kills": (2, "SIGKILLs of a training run that saves in the background"),
    "train-stops": (2, "SIGTERMs of a training run on two hosts"),
    "kill-points": (1, "moments at which each stage's run is killed, once on one host and once on two; at most 3"),
}


def pytest_addoption(parser):
    for name, (few, text) in COUNTS.items():
        parser.addoption(f"--{name}", type=int, default=few, help=f"{text}; default {few}")


@pytest.fixture
def count(request):
    """name -> how often."""
    return lambda name: request.config.getoption(f"--{name}", default=COUNTS[name][0])
