"""Peak FLOP/s, bandwidth and memory of known chips, and the FLOPs and bytes of a function counted from its jaxpr.

XLA's own count of a compiled program counts the body of a loop once; here a scan counts as often as it runs. FLOPs are
those of matrix products and convolutions, two per multiply and add: the ones that a chip's peak is about.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator

import jax
from jax.extend import core

from imagen_video_jax.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator, as its maker publishes it.

    Attributes:
      name: as in a topology name.
      flops: dense bfloat16 FLOP/s.
      bandwidth: of its memory, bytes/s.
      memory: bytes that a program may use (what the runtime keeps for itself is taken off).
      links: bytes/s that one chip sends to the others of its slice or machine.
      dimensions: of a slice: 3 or 2 for a TPU's torus, 1 for a number of GPUs.
      kinds: beginnings of `jax.Device.device_kind` that mean this chip.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float
    links: float
    dimensions: int
    kinds: tuple[str, ...]

    @property
    def tpu(self) -> bool:
        return self.dimensions > 1


# TPU figures: Google's system architecture pages; their usable memory is what the TPU compiler states (15.75 GiB of a
# v5e's 16). GPU figures: NVIDIA's data sheets, SXM boards; CUDA and the allocator are taken to keep 4% of the memory.
#                 FLOP/s   bytes/s   usable memory     links  dimensions, device kinds
_CHIPS = (
    Chip("v4",        275e12, 1.228e12, 30.75 * GIB,   3.00e11, 3, ("TPU v4",)),
    Chip("v5e",       197e12, 0.819e12, 15.75 * GIB,   2.00e11, 2, ("TPU v5 lite", "TPU v5e")),
    Chip("v5p",       459e12, 2.765e12, 95.74 * GIB,   6.00e11, 3, ("TPU v5p", "TPU v5")),
    Chip("v6e",       918e12, 1.640e12, 31.25 * GIB,   4.48e11, 2, ("TPU v6 lite", "TPU v6e")),
    Chip("a100",      312e12, 2.039e12, 0.96 * 80e9,   3.00e11, 1, ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB")),
    Chip("a100-40gb", 312e12, 1.555e12, 0.96 * 40e9,   3.00e11, 1, ("NVIDIA A100",)),
    Chip("h100",      989e12, 3.350e12, 0.96 * 80e9,   4.50e11, 1, ("NVIDIA H100",)),
    Chip("h200",      989e12, 4.800e12, 0.96 * 141e9,  4.50e11, 1, ("NVIDIA H200",)),
    Chip("b200",     2250e12, 8.000e12, 0.96 * 180e9,  9.00e11, 1, ("NVIDIA B200",)),
    Chip("l4",        121e12, 0.300e12, 0.96 * 24e9,   3.20e10, 1, ("NVIDIA L4",)),
)  # fmt: skip
CHIPS = {chip.name: chip for chip in _CHIPS}


def chip_of(device: jax.Device) -> Chip | None:
    """The chip that a jax device is; None for a CPU or one not in the table (then there is no peak to compare with)."""
    matches = [
        (len(kind), chip)
        for chip in _CHIPS
        for kind in chip.kinds
        if device.device_kind.lower().startswith(kind.lower())
    ]
    return max(matches, key=lambda match: match[0])[1] if matches else None


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of TPUs or a number of GPUs.

    Attributes:
      chip: of which it is made.
      shape: chips along each dimension.
    """

    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"


# Slices that can be ordered. 3D slices: sides of 1, 2 within a host or two, then multiples of 4 up to 16 a side.
SLICES_2D = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
SLICES_3D = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8), (8, 8, 16),
             (8, 16, 16), (16, 16, 16))  # fmt: skip
GPU_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def slices(chip: Chip) -> list[Topology]:
    """The usual sizes of a slice of `chip`, from small to large."""
    shapes = {1: [(count,) for count in GPU_COUNTS], 2: SLICES_2D, 3: SLICES_3D}[chip.dimensions]
    return [Topology(chip, shape) for shape in shapes]


def parse_topology(text: str) -> Topology:
    """ "v5p:4x4x4" or "h200:8" -> Topology; UserError, listing what there is, for anything else."""
    name, _, shape = text.lower().partition(":")
    if name not in CHIPS:
        known = ", ".join(str(slices(chip)[-1 if chip.tpu else 3]) for chip in _CHIPS)
        raise UserError(f"unknown topology {text!r}; known chips, each with its largest or a usual size, are {known}")
    chip = CHIPS[name]
    if not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4})*", shape) or shape.count("x") + 1 != chip.dimensions:
        raise UserError(f"unknown topology {text!r}; {_known(chip)}")
    topology = Topology(chip, tuple(int(side) for side in shape.split("x")))
    if not _exists(topology):
        raise UserError(f"there is no slice {text!r}; {_known(chip)}")
    return topology


def _exists(topology: Topology) -> bool:
    if not topology.chip.tpu:
        return True
    shapes = {tuple(sorted(known.shape)) for known in slices(topology.chip)}
    multiples = topology.chip.dimensions == 3 and all(side % 4 == 0 and side <= 24 for side in topology.shape)
    return tuple(sorted(topology.shape)) in shapes or multiples


def _known(chip: Chip) -> str:
    usual = ", ".join(map(str, slices(chip)))
    return f"known are {usual}" + (" and other sides that are multiples of 4" if chip.dimensions == 3 else "")


# Counting.


@dataclasses.dataclass(frozen=True)
class Cost:
    """Attributes: flops of matrix products and convolutions; `recomputed`, the part of them that rematerialisation
    repeats; `unknown_loops`, loops whose number of turns the program decides (counted once)."""

    flops: float = 0.0
    recomputed: float = 0.0
    unknown_loops: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.flops + other.flops, self.recomputed + other.recomputed, self.unknown_loops + other.unknown_loops
        )

    def times(self, turns: float) -> "Cost":
        return Cost(self.flops * turns, self.recomputed * turns, self.unknown_loops)

    @property
    def useful(self) -> float:
        """What the mathematics asks for: without the recomputed part. MFU is this over time and peak."""
        return self.flops - self.recomputed


def count(function: Callable, *arguments) -> Cost:
    """The cost of function(*arguments), arrays or ShapeDtypeStructs; nothing is computed."""
    return cost_of(jax.make_jaxpr(function)(*arguments).jaxpr)


def cost_of(jaxpr: core.Jaxpr, recomputed: bool = False) -> Cost:
    """The cost of one run of `jaxpr`."""
    total = Cost()
    for equation in jaxpr.eqns:
        again = recomputed or "rematted_computation" in str(equation.source_info.name_stack)
        total += _cost_of_equation(equation, again)
    return total


def _cost_of_equation(equation, recomputed: bool) -> Cost:
    name = equation.primitive.name
    if name in ("dot_general", "conv_general_dilated"):
        flops = (_dot_flops if name == "dot_general" else _conv_flops)(equation)
        return Cost(flops, flops if recomputed else 0.0)
    if name.startswith("dot_product_attention_"):
        return _attention_cost(equation, recomputed)
    if name == "pallas_call":
        return _splash_cost(equation, recomputed)
    inner = [cost_of(jaxpr, recomputed) for jaxpr in inner_jaxprs(equation)]
    if name == "cond" and None in (platforms := equation.params.get("branches_platforms") or ()):
        return inner[platforms.index(None)]  # one result, made in several ways: as where no platform has its own
    if name == "cond":
        return max(inner, key=lambda cost: cost.flops)
    total = sum(inner, Cost())
    if name == "shard_map":  # its body is what one shard does; what several devices do alike counts once
        axes = {axis for spec in equation.params["in_specs"] for part in spec if part for axis in _names(part)}
        return total.times(math.prod(equation.params["mesh"].shape[axis] for axis in axes))
    if name == "scan":
        return total.times(equation.params["length"])
    if name == "while":
        turns = _turns(equation)
        return total + Cost(unknown_loops=1) if turns is None else total.times(turns)
    return total


def _names(part: str | tuple[str, ...]) -> tuple[str, ...]:
    return (part,) if isinstance(part, str) else part


def inner_jaxprs(equation) -> Iterator[core.Jaxpr]:
    """The programs that an equation runs: bodies of loops, branches, calls."""
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def _dot_flops(equation) -> float:
    (contracting, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracting)


def _attention_cost(equation, recomputed: bool) -> Cost:
    """cuDNN's fused attention: two products forward; backward four, and one again."""
    (B, Q, N, K), (_, S, _, _) = (variable.aval.shape for variable in equation.invars[:2])
    product = 2.0 * B * N * Q * S * K
    if "_bwd" in equation.primitive.name:
        return Cost(5 * product, 5 * product if recomputed else product)
    return Cost(2 * product, 2 * product if recomputed else 0.0)


def _splash_cost(equation, recomputed: bool) -> Cost:
    """The Pallas kernel of TPUs: two products forward; backward three for the queries, two of them again, and four for
    keys and values, one of them again."""
    *B, N, Q, K = equation.invars[2].aval.shape
    S = equation.invars[3].aval.shape[-2]
    product = 2.0 * math.prod(B) * N * Q * S * K
    kernel = equation.params["name"].removeprefix("splash_mha_").split("_")[0]
    all_, again = {"fwd": (2, 0), "dq": (3, 2), "dkv": (4, 1)}[kernel]
    return Cost(all_ * product, (all_ if recomputed else again) * product)


def _conv_flops(equation) -> float:
    """Two FLOPs for each kernel element that meets a real (not padded, not dilated-in) input element.

    A product per output element, kernel tap and input channel, less the taps that fall on padding or on the zeros
    between dilated elements: those are what a strided convolution's gradient is made of.
    """
    numbers, parameters = equation.params["dimension_numbers"], equation.params
    left, right = (variable.aval.shape for variable in equation.invars)
    out = equation.outvars[0].aval.shape
    taps = 1.0
    for axis, (low, _) in enumerate(parameters["padding"]):
        taps *= _real_taps(
            left[numbers.lhs_spec[2 + axis]],
            right[numbers.rhs_spec[2 + axis]],
            out[numbers.out_spec[2 + axis]],
            stride=parameters["window_strides"][axis],
            low=low,
            input_dilation=parameters["lhs_dilation"][axis],
            kernel_dilation=parameters["rhs_dilation"][axis],
        )
    # The output's batch is already divided by a batch group count, the kernel's inputs by a feature group count.
    batch, channels = out[numbers.out_spec[0]], out[numbers.out_spec[1]]
    return 2.0 * batch * channels * right[numbers.rhs_spec[1]] * taps


def _real_taps(size, kernel, out, *, stride, low, input_dilation, kernel_dilation) -> int:
    """How many pairs (output position, kernel position) meet a real input element along one axis."""
    short, long = sorted((kernel, out))
    # The pair meets input position (o * stride + k * kernel_dilation - low) / input_dilation. The shorter of the two
    # ranges is walked, the longer counted, so that kernel gradients (kernels as long as the input) cost no more.
    walk, step = (kernel_dilation, stride) if short == kernel else (stride, kernel_dilation)
    last = (size - 1) * input_dilation
    total = 0
    for position in range(short):
        start = position * walk - low
        total += _hits(start, step, long, last, input_dilation)
    return total


def _hits(start: int, step: int, count: int, last: int, dilation: int) -> int:
    """Members of start, start + step, ... (count of them) in [0, last] that are multiples of dilation."""
    if dilation == 1 or step % dilation == 0:
        if start % dilation:
            return 0
        first = max(0, -(start // step))
        end = min(count - 1, (last - start) // step)
        return max(0, end - first + 1)
    return sum(0 <= (value := start + i * step) <= last and value % dilation == 0 for i in range(count))


def _turns(equation) -> int | None:
    """Turns of a `fori_loop` with constant bounds, seen in the comparison of its condition; None where unknown."""
    condition = equation.params["cond_jaxpr"].jaxpr
    if len(condition.eqns) != 1 or condition.eqns[0].primitive.name != "lt":
        return None
    position, limit = condition.eqns[0].invars
    constants = equation.params["cond_nconsts"] + equation.params["body_nconsts"]
    if position not in condition.invars or not isinstance(limit, core.Literal):
        return None
    offset = condition.invars.index(position) - equation.params["cond_nconsts"]
    start = equation.invars[constants + offset]
    return int(limit.val) - int(start.val) if isinstance(start, core.Literal) else None
