"""How much memory a program needs on one chip, told from its jaxpr alone: an analytic model, not a compiler.

The equations are walked in order. What matrix products, convolutions, reductions, joins and random numbers give is
stored. An element-wise value of one stored value is not (the compiler computes it where it is read) and keeps that
value alive instead; one of several is stored, in the place of one of them if that is not read again. A value lives
until its last reading, and the peak is the largest sum of what lives at once. Weights that are sharded are whole while
they are read. How far from the compiler this is, is measured in launch/PLANS.md.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

from jax.extend import core

from imagen_video_jax.chips import inner_jaxprs

# Run once, where they stand: their equations are walked as if written out.
CALLS = {"jit", "pjit", "closed_call", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call", "core_call"}
STORED = {
    "conv_general_dilated", "dot_general", "concatenate", "gather", "scatter", "scatter-add", "sort", "random_bits",
    "random_wrap", "threefry2x32", "dynamic_update_slice", "reduce_sum", "reduce_max", "reduce_min", "argmax", "cumsum",
    "reduce_window_sum", "top_k", "scan", "while", "cond", "pad", "erf_inv",
    "pallas_call", "exp",  # of a softmax: its sum and its quotient read it
}  # fmt: skip
PRODUCTS = {"conv_general_dilated", "dot_general"}
TILES = {1: (32, 128), 2: (16, 128), 4: (8, 128), 8: (8, 128)}


@dataclasses.dataclass(eq=False)
class _Value:
    """An array: `size` bytes if stored; the stored values it is made of otherwise."""

    size: float
    roots: tuple["_Value", ...] = ()
    weight: bool = False
    last: int = -1

    @property
    def stored(self) -> tuple["_Value", ...]:
        return self.roots if self.roots else (self,)


@dataclasses.dataclass(frozen=True)
class _Step:
    """One equation: what it reads, what it stores, and bytes that it needs only while it runs."""

    reads: tuple[_Value, ...]
    writes: tuple[_Value, ...]
    passing: float
    in_place: bool


def padded_bytes(shape: tuple[int, ...], itemsize: int) -> float:
    """Bytes of an array in a TPU's tiles, in the layout that wastes least."""
    size = math.prod(shape) * itemsize
    if len(shape) < 2 or not size:
        return size
    rows, lanes = TILES.get(itemsize, (8, 128))
    best = math.inf
    for lane, width in enumerate(shape):
        for row, height in enumerate(shape):
            if row != lane:
                waste = _round(width, lanes) / width * _round(height, rows if height >= rows else 1) / height
                best = min(best, waste)
    return size * best


def plain_bytes(shape: tuple[int, ...], itemsize: int) -> float:
    """Bytes of an array without padding."""
    return float(math.prod(shape) * itemsize)


def _round(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class Usage:
    """Attributes: peak, bytes that live at once beside the arguments; moved, bytes that are read and written."""

    peak: float
    moved: float


def usage_of(
    closed: core.ClosedJaxpr,
    *,
    weights: Sequence[bool],
    whole: Sequence[float],
    gathered: Sequence[float],
    results: Sequence[float | None],
    share: float = 1.0,
    size_of: Callable[[tuple[int, ...], int], float] = padded_bytes,
    ahead: bool = False,
) -> Usage:
    """What a run of a program needs and moves on one chip.

    Args:
      closed: the program, at the shapes that one chip sees, except for axes that `share` speaks of.
      weights: for each argument whether it is a parameter.
      whole: for each argument the bytes that one reading reads.
      gathered: for each argument the bytes that lie beside it while it is read (0: it lies there whole).
      results: bytes of each result, where they are known otherwise (a sharded gradient).
      share: part of every activation that a chip holds.
      ahead: what is gathered lies there from the beginning until it is first read.
    """
    arguments = [_Value(size, weight=weight) for size, weight in zip(whole, weights, strict=True)]
    walk = _Walk(share, size_of, dict(zip(arguments, gathered, strict=True)), ahead)
    outputs = walk.run(closed.jaxpr, arguments)
    resized = set()
    for output, size in zip(outputs, results, strict=True):
        for root in set(output.stored).difference(arguments):
            root.last = len(walk.steps)
            if size is not None and root not in resized:
                root.size = size
                resized.add(root)
    return Usage(walk.peak, walk.moved)


class _Walk:
    """Equations -> steps in order. `gathered`: arguments, and the bytes that lie beside each while it is read."""

    def __init__(self, share: float, size_of, gathered: dict[_Value, float], ahead: bool = False):
        self.steps: list[_Step] = []
        self.moved = 0.0
        self.share, self.size_of, self.gathered, self.ahead = share, size_of, gathered, ahead

    @property
    def peak(self) -> float:
        return _sweep(self.steps, self.gathered, self.ahead)

    def run(self, jaxpr: core.Jaxpr, arguments: list[_Value]) -> list[_Value]:
        values: dict = dict(zip(jaxpr.invars, arguments, strict=True))
        values.update((variable, _Value(0.0, weight=True)) for variable in jaxpr.constvars)

        def read(atom):
            return _Value(0.0, weight=True) if isinstance(atom, core.Literal) else values[atom]

        for equation in jaxpr.eqns:
            reads = [read(atom) for atom in equation.invars]
            bodies = [] if equation.primitive.name == "pallas_call" else list(inner_jaxprs(equation))
            if equation.primitive.name in CALLS and bodies and len(bodies[0].invars) == len(reads):
                written = self.run(bodies[0], reads)
            else:
                written = self._equation(equation, reads, bodies)
            values.update(zip(equation.outvars, written))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation, reads: list[_Value], bodies) -> list[_Value]:
        name = equation.primitive.name
        weight = all(value.weight for value in reads)
        sizes = [self._bytes(variable.aval, weight) for variable in equation.outvars]
        roots = tuple({id(root): root for value in reads for root in value.stored if root.size}.values())
        if name not in STORED and (weight or _total(roots) <= 1.01 * max(sizes)):
            roots = roots or (_Value(0.0),)  # a constant's
            return [_Value(size, roots=roots, weight=weight) for size in sizes]
        writes = tuple(_Value(size, weight=weight) for size in sizes)
        passing = self._inside(equation, reads, bodies)
        if bodies:  # which gather what they read themselves
            roots = tuple(root for root in roots if root not in self.gathered)
        if name in PRODUCTS:
            # What is larger than what it is made of is written out for a product to read.
            spread = _total(value for value in reads if value.roots and value.size > 1.5 * _total(value.roots))
            passing += spread
            self.moved += 2 * spread
        self._append(_Step(roots, writes, passing, in_place=name not in STORED))
        return list(writes)

    def _inside(self, equation, reads: list[_Value], bodies) -> float:
        """The peak inside a loop or a branch, whose own arguments live outside."""
        turns = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        peak = 0.0
        for body in bodies if turns else ():
            given = reads[len(reads) - len(body.invars) :]  # what comes before them is a condition's
            arguments = [_Value(self._bytes(v.aval, g.weight), weight=g.weight) for v, g in zip(body.invars, given)]
            gathered = {own: self.gathered.get(outer, 0.0) for own, outer in zip(arguments, given)}
            inner = _Walk(self.share, self.size_of, gathered)
            for output in inner.run(body, arguments):
                for root in output.stored:
                    root.last = len(inner.steps)
            peak = max(peak, inner.peak)
            self.moved += inner.moved * turns
        return peak

    def _append(self, step: _Step) -> None:
        for value in (*step.reads, *step.writes):
            value.last = len(self.steps)
            self.moved += value.size
        self.steps.append(step)

    def _bytes(self, aval, weight: bool) -> float:
        if not hasattr(aval, "shape"):
            return 0.0
        return self.size_of(aval.shape, getattr(aval.dtype, "itemsize", 4)) * (1.0 if weight else self.share)


def _total(values) -> float:
    return sum(value.size for value in values)


def _sweep(steps: list[_Step], arguments: dict[_Value, float], ahead: bool) -> float:
    """The largest sum of living bytes; `arguments` live elsewhere and count what reading them takes."""
    waiting = {value for step in steps for value in step.reads if value in arguments} if ahead else set()
    living, peak, ending = sum(arguments[value] for value in waiting), 0.0, {}
    for number, step in enumerate(steps):
        read = set(step.reads)
        passing = step.passing + sum(arguments.get(value, 0.0) for value in read - waiting)
        written = _total(step.writes)
        dying = _total(value for value in read if value.last == number and value not in arguments)
        reused = min(dying, written) if step.in_place else 0.0
        peak = max(peak, living + written + passing - reused)
        living += written - sum(arguments[value] for value in read & waiting)
        waiting -= read
        for value in step.writes:
            ending[value.last] = ending.get(value.last, 0.0) + value.size
        living -= ending.pop(number, 0.0)
    return peak
