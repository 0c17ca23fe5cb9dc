"""Interleaving: exact shares in every stretch, each number of each stream once and in order."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagen_video_jax.data.interleave import Interleave


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=5))
def test_each_stream_counts_up_without_gaps_and_keeps_its_share(weights):
    interleave = Interleave(weights)
    counts = [0] * len(weights)
    for position in range(100):
        stream, number = interleave(position)
        assert number == counts[stream]
        counts[stream] += 1
        for count, weight in zip(counts, weights):
            assert abs(count - (position + 1) * weight / sum(weights)) <= len(weights)


def test_it_can_be_asked_anywhere():
    interleave = Interleave([3, 1])
    assert [interleave(p)[0] for p in range(8)] == [0, 0, 0, 1, 0, 0, 0, 1]
    assert interleave(4 * 10**15 + 3) == (1, 10**15)


@pytest.mark.parametrize("weights", [[], [0.0], [1.0, -1.0]])
def test_weights_must_be_above_zero(weights):
    with pytest.raises(ValueError, match="above 0"):
        Interleave(weights)
