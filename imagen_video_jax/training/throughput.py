"""How fast a run is and what its steps wait for: numbers of the training rows, and lines under the account of time.

    step_seconds        from one step to the next, without compiling, looking and saving, of which
    data_seconds          waiting for the next batch,
    device_seconds        waiting for the device to end a step,
    host_seconds          everything else: dispatching, writing
    examples_per_second, frames_per_second    clips and images; an image is one frame
    flops_per_second    that the mathematics asks for: products and convolutions of the jaxpr, each once, whatever
                        is computed again to save memory
    mfu                 the same over the bfloat16 peak of all chips of the mesh; only where chips.py knows the chip

Each is a mean over the steps since the row before. A step that was compiled in is left out.
"""

import dataclasses
import time
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from imagen_video_jax import chips
from imagen_video_jax.batch import Batch
from imagen_video_jax.training.goodput import Ledger


@dataclasses.dataclass
class _Sums:
    steps: int = 0
    examples: int = 0
    frames: int = 0
    flops: float = 0.0
    step: float = 0.0  # seconds, as the three below
    data: float = 0.0
    device: float = 0.0

    def __sub__(self, other: "_Sums") -> "_Sums":
        return _Sums(*(a - b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other))))


class Throughput:
    """Counts steps as they end; time is the ledger's."""

    def __init__(self, ledger: Ledger, mesh: Mesh):
        self._ledger, self._chips = ledger, mesh.devices.size
        device = mesh.devices.flat[0]
        chip = chips.chip_of(device)
        self._peak = chip.flops * self._chips if chip else None
        self._kind = device.device_kind
        self._flops: dict[tuple, float] = {}
        self._begun: list[tuple] = []  # steps in flight: (examples, frames, FLOPs)
        self._all, self._reported = _Sums(), _Sums()
        self._clock = (0.0, 0.0)
        self.restart()

    def restart(self) -> None:
        """What is in flight is forgotten: training begins anew from a checkpoint."""
        self._begun, self._clock = [], self._ledger.working()

    def begin(self, batch: dict[str, Batch], traced: Callable[[], jax.stages.Traced]) -> None:
        """A step was dispatched; `traced`: its program, whose FLOPs are counted once for each set of shapes."""
        shapes = tuple(part.video_BTHWC.shape for part in batch.values())
        if shapes not in self._flops:
            self._flops[shapes] = chips.cost_of(traced().jaxpr.jaxpr).useful
        work = sum(shape[0] for shape in shapes), sum(shape[0] * shape[1] for shape in shapes), self._flops[shapes]
        self._begun.append(work)

    def end(self, wait: Callable[[], int]) -> int:
        """The step begun first ends when `wait` returns, whose value this is."""
        before = time.monotonic()
        value = wait()
        waited, now = time.monotonic() - before, self._ledger.working()
        data, step = (after - since for after, since in zip(now, self._clock))
        self._clock = now
        work = self._begun.pop(0) if self._begun else None
        if work is not None and data >= 0 and step >= 0:
            total = self._all
            total.steps, total.step, total.data = total.steps + 1, total.step + data + step, total.data + data
            total.device += min(waited, step)
            total.examples, total.frames, total.flops = (
                have + more for have, more in zip((total.examples, total.frames, total.flops), work)
            )
        return value

    def row(self) -> dict[str, float]:
        """Means since the last call; nothing where no step has ended since."""
        since, self._reported = self._all - self._reported, dataclasses.replace(self._all)
        return self._means(since)

    def _means(self, sums: _Sums) -> dict[str, float]:
        if not sums.steps or sums.step <= 0:
            return {}
        seconds = {"step": sums.step, "data": sums.data, "device": sums.device}
        seconds["host"] = sums.step - sums.data - sums.device
        means = {f"{name}_seconds": value / sums.steps for name, value in seconds.items()}
        for name in ("examples", "frames", "flops"):
            means[f"{name}_per_second"] = getattr(sums, name) / sums.step
        if self._peak:
            means["mfu"] = sums.flops / sums.step / self._peak
        return means

    def text(self) -> str:
        """This run's means, a few lines; empty where no step was measured."""
        means = self._means(self._all)
        if not means:
            return ""
        seconds = {name: means[f"{name}_seconds"] for name in ("step", "data", "device", "host")}
        shares = ", ".join(f"{name} {seconds[name] / seconds['step']:.1%}" for name in ("data", "device", "host"))
        if self._peak:
            share = f"; MFU {means['mfu']:.1%} of {self._chips} x {self._kind} in bfloat16"
        else:  # of a CPU nobody asks
            share = "" if self._kind == "cpu" else f"; no MFU: the peak of {self._kind!r} is not known"
        return (
            f"  a step {seconds['step']:.3g} s: waits for {shares}\n"
            f"  {means['examples_per_second']:.3g} examples/s, {means['frames_per_second']:.3g} frames/s, "
            f"{means['flops_per_second'] / 1e12:.3g} TFLOP/s{share}"
        )
