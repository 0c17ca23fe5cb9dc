"""Bad input of every parser of our own is refused with its error; `python -m tests.faults.fuzz` does it for hours."""

import pytest

from tests.faults.fuzz import fuzz
from tests.faults.fuzz_targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_of_good_input_are_taken_or_refused(name, tmp_path):
    counts = fuzz(TARGETS[name], tmp_path, seed=1, inputs=60)
    assert not counts.failures
    assert counts.inputs == 60
