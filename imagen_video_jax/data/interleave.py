"""One order out of several: which stream a position belongs to, in exact proportion and in closed form.

Used twice: for the data sets of a mixture (by position) and for the buckets of sizes (by step).
"""

from collections.abc import Sequence
from fractions import Fraction


class Interleave:
    """Position -> (stream, number within the stream), a pure function of the position.

    Of the first p positions, the last of K streams has floor(p s), with s its share; the others share the rest in the
    same way. So every stretch shows each stream as often as its weight says, to within one per stream.
    """

    def __init__(self, weights: Sequence[float]):
        exact = [Fraction(weight) for weight in weights]
        if not exact or min(exact) <= 0:
            raise ValueError(f"weights must be above 0, got {list(weights)}")
        self._shares = [weight / sum(exact[: number + 1]) for number, weight in enumerate(exact)]

    def __call__(self, position: int) -> tuple[int, int]:
        for stream in range(len(self._shares) - 1, 0, -1):
            share = self._shares[stream]
            before = position * share.numerator // share.denominator
            if (position + 1) * share.numerator // share.denominator > before:
                return stream, before
            position -= before
        return 0, position
