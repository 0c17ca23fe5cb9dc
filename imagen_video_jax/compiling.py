"""Ahead-of-time compilation for a TPU slice that is not there, and what the compiled program says of itself.

libtpu holds the real TPU compiler and needs no TPU. Its counts are per chip; it counts the body of a loop once.
"""

import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Iterator

import jax

from imagen_video_jax.chips import Topology
from imagen_video_jax.collectives import read_collectives
from imagen_video_jax.errors import UserError
from imagen_video_jax.programs import Program

# Kernels whose loops are rolled are made sooner; the program's memory and what it sends stay as they are.
_OPTIONS = {"xla_tpu_enable_emitter_rolling": True}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a program needs on each chip.

    Attributes:
      arguments, results, aliased, temporaries: bytes of its memory; aliased results lie in donated arguments.
      peak: the compiler's own: what lives at once at most, wherever (small values live on the chip, beside its memory).
      flops, bytes_moved: the compiler's count, the body of a loop once.
      collectives: kind -> bytes that one run receives, loops counted as often as they turn.
      gathers: (bytes, operation name) of each all-gather, the largest first.
      seconds: that the compilation took.
    """

    arguments: int
    results: int
    aliased: int
    temporaries: int
    peak: int
    flops: float
    bytes_moved: float
    collectives: dict[str, float]
    gathers: tuple[tuple[float, str], ...]
    seconds: float

    @property
    def allocated(self) -> int:
        """What the program takes of a chip's memory while it runs."""
        return self.arguments + self.results - self.aliased + self.temporaries


@dataclasses.dataclass(frozen=True)
class TooLarge:
    """The compiler gave up: bytes it would have needed (None where it does not say), and its own words."""

    needed: float | None
    message: str


def devices_of(topology: Topology) -> list:
    """The devices of a slice that is not there; UserError without libtpu or for what it does not know."""
    if not topology.chip.tpu:
        raise UserError(f"{topology} cannot be compiled for without its GPUs; use --quick")
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise UserError("plan needs the TPU compiler: pip install 'imagen_video_jax[plan]', or use --quick") from None
    from jax.experimental import topologies

    # Nothing is asked of a metadata server, and several plans may be made at once.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    extra = {}
    if topology.shape == (1, 1):
        # Hosts of four chips are libtpu's default.
        extra = {"chips_per_host_bounds": (1, 1, 1)}
    try:
        with _quiet(), _without_flags():
            return topologies.get_topology_desc(platform="tpu", topology_name=str(topology), **extra).devices
    except Exception as error:  # libtpu's own exception types are not public
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"the TPU compiler does not know the topology {topology}: {reason}") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """libtpu writes about the missing TPU to stderr, from C, while it starts."""
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


@contextlib.contextmanager
def _without_flags() -> Iterator[None]:
    """libtpu ends the process for an XLA flag that only the CPU's compiler knows; its own are in LIBTPU_INIT_ARGS."""
    saved = os.environ.pop("XLA_FLAGS", None)
    try:
        yield
    finally:
        if saved is not None:
            os.environ["XLA_FLAGS"] = saved


def compile_program(program: Program) -> Compiled | TooLarge:
    """Compiles for the devices that the arguments' shardings name."""
    began = time.monotonic()
    lowered = program.lower()
    try:
        with _without_flags():
            compiled = _compile(lowered)
    except jax.errors.JaxRuntimeError as error:
        found = too_large(str(error), program.argument_bytes)
        if found is None:
            raise
        return found
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    collectives, gathers = read_collectives(text)
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        results=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        peak=memory.peak_memory_in_bytes,
        flops=cost["flops"],
        bytes_moved=cost["bytes accessed"],
        collectives=collectives,
        gathers=gathers,
        seconds=time.monotonic() - began,
    )


def too_large(text: str, arguments: int) -> TooLarge | None:
    """What an error of the TPU compiler says of a program with so many bytes of arguments; None: something else."""
    message = " ".join(text.split())
    if "RESOURCE_EXHAUSTED" not in message or "hbm" not in message.lower():
        return None
    size = r"([\d.]+)([KMGT]?)"
    for pattern, beside in ((rf"[Uu]sed {size} of {size} hbm", 0), (rf"HLO temporaries \({size}\)", arguments)):
        if found := re.search(pattern, message):
            return TooLarge(float(found[1]) * 1024 ** " KMGT".index(found[2] or " ") + beside, message[:400])
    return TooLarge(None, message[:400])


def _compile(lowered):
    try:
        return lowered.compile(_OPTIONS)
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
    return lowered.compile()  # with a libtpu that does not know them
