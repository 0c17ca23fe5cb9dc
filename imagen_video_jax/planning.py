"""What a run needs on a named slice, before it is paid for: memory, FLOPs, time, cost, and what would fit better.

Time is a roofline: the longest of computing at the chip's peak, moving at its memory's bandwidth, and receiving over
its links. Nothing runs so fast; it bounds what can be reached, and MFU from above.
"""

import dataclasses
import math

import jax
from jax.sharding import AbstractMesh, AxisType

from imagen_video_jax import partitioning
from imagen_video_jax.chips import GIB, Topology, slices
from imagen_video_jax.compiling import Compiled, TooLarge, compile_program, devices_of
from imagen_video_jax.errors import UserError
from imagen_video_jax.estimating import Estimate, estimate_sample, estimate_train, stage_of
from imagen_video_jax.functional import parameter_count
from imagen_video_jax.partitioning import MESH_AXES, MeshShape
from imagen_video_jax.programs import sample_program, train_program
from imagen_video_jax.training.train_config import TrainConfig, check_divisible

MODES = ("train", "sample")


@dataclasses.dataclass(frozen=True)
class Request:
    """What to plan.

    Attributes:
      config, topology: the run and where.
      mode: "train" (a step) or "sample" (one denoiser call).
      given: config fields that the person set: these are never changed to fit the mesh.
      price: of a chip for an hour, in any currency.
      videos: sampled at once; 0 for one on each part of the batch.
    """

    config: TrainConfig
    topology: Topology
    mode: str = "train"
    given: frozenset[str] = frozenset()
    price: float | None = None
    videos: int = 0


def plan(request: Request, *, quick: bool) -> dict:
    """The plan as one flat-keyed dict of plain values (see README.md)."""
    request, notes = fit(request)
    estimate = estimate_of(request)
    found = estimate if quick else _compile(request)
    if isinstance(found, TooLarge):
        notes.append(f"the compiler gave up: {found.message}")
    chip = request.topology.chip
    memory = _memory(found, estimate)
    missing = max(memory.get("allocated", memory["peak"]) + estimate.waiting - chip.memory, 0.0)
    fits = missing == 0.0 and not isinstance(found, TooLarge)
    return {
        "topology": str(request.topology),
        "chips": request.topology.chips,
        "mode": request.mode,
        "source": "quick" if quick else "compiled",
        "parameters": parameter_count(stage_of(request.config.stage).network.abstract),
        "fits": fits,
        "missing_bytes_per_chip": missing,
        "bytes_per_chip": memory | {"waiting_batches": estimate.waiting, "memory": chip.memory},
        "quick_bytes_per_chip": _memory(estimate, estimate),
        **_work(request, found, estimate),
        "mesh": dict(zip(MESH_AXES, sizes_of(request))),
        **_batch(request),
        "suggestions": suggest(request, fits=fits),
        "notes": notes,
    }


# The mesh and the batch.


def mesh_field(request: Request) -> str:
    return "mesh" if request.mode == "train" else "sample_mesh"


def mesh_shape(request: Request) -> MeshShape:
    return getattr(request.config, mesh_field(request))


def sizes_of(request: Request) -> tuple[int, ...]:
    """Devices along each axis; UserError where their product is not the slice."""
    field = mesh_field(request)
    sizes = mesh_shape(request).sizes(request.topology.chips)
    if math.prod(sizes) != request.topology.chips:
        raise UserError(
            f"config.{field} {dict(zip(MESH_AXES, sizes))} makes {math.prod(sizes)} devices, {request.topology} has "
            f"{request.topology.chips}; one axis may be -1 and takes the rest, which the others must divide"
        )
    return sizes


def abstract_mesh(request: Request) -> AbstractMesh:
    return AbstractMesh(sizes_of(request), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def fit(request: Request) -> tuple[Request, list[str]]:
    """The request with a mesh and a batch for its slice, and what was changed; UserError where the person set it."""
    request, of_mesh = fit_mesh(request)
    request, of_batch = fit_batch(request)
    return request, of_mesh + of_batch


def fit_mesh(request: Request) -> tuple[Request, list[str]]:
    """The request with weights shared by as many chips as its slice allows, where nobody set the mesh."""
    field, shape = mesh_field(request), mesh_shape(request)
    if any(name.startswith(f"{field}.") for name in request.given) or shape.fsdp < 1:
        return request, []
    others = math.prod(size for size in (shape.data, shape.tensor, shape.frames, shape.height) if size > 0)
    fsdp = math.gcd(shape.fsdp, request.topology.chips // others)
    if fsdp in (0, shape.fsdp):
        return request, []
    fitting = dataclasses.replace(shape, fsdp=fsdp)
    planned = "planned, and to be trained, with" if request.mode == "train" else "planned with"
    notes = [f"{planned} --config.{field}.fsdp={fsdp}, a divisor of the {request.topology.chips} chips"]
    return dataclasses.replace(request, config=dataclasses.replace(request.config, **{field: fitting})), notes


def fit_batch(request: Request) -> tuple[Request, list[str]]:
    """The request with a batch that the mesh divides, and what was changed; UserError where the person set it."""
    mesh, config, notes = abstract_mesh(request), request.config, []
    divisor = partitioning.batch_divisor(mesh)
    if request.mode == "sample":
        videos = request.videos or divisor
        if videos % divisor:
            raise UserError(f"--videos {videos} must be divisible by {divisor} (data x fsdp devices)")
        return dataclasses.replace(request, videos=videos), notes
    if "step.accumulate" not in request.given and (parts := _parts_that_divide(config, divisor)):
        if parts != config.step.accumulate:
            notes.append(f"planned, and to be trained, with --config.step.accumulate={parts}, so that batches divide")
        config = dataclasses.replace(config, step=dataclasses.replace(config.step, accumulate=parts))
    divisor *= config.step.accumulate
    for field in ("batch_size", "image_batch_size"):
        size = getattr(config, field)
        if size % divisor and field not in request.given:
            rounded = -(-size // divisor) * divisor
            notes.append(f"{field} {size} does not divide; planned, and to be trained, with --config.{field}={rounded}")
            config = dataclasses.replace(config, **{field: rounded})
    check_divisible(config, mesh)
    return dataclasses.replace(request, config=config), notes


def _parts_that_divide(config: TrainConfig, divisor: int) -> int | None:
    """The accumulation of the config or the next smaller one (halving) that divides its batches; None for none."""
    parts, sizes = config.step.accumulate, [config.batch_size, config.image_batch_size]
    while parts and any(size % (divisor * parts) for size in sizes):
        parts //= 2
    return parts or None


def _batch(request: Request) -> dict:
    if request.mode == "sample":
        return {"videos": request.videos}
    config = request.config
    return {
        "batch_size": config.batch_size,
        "image_batch_size": config.image_batch_size,
        "accumulate": config.step.accumulate,
    }


# Costs.


def estimate_of(request: Request) -> Estimate:
    mesh, tiles = abstract_mesh(request), request.topology.chip.tpu
    if request.mode == "train":
        return estimate_train(request.config, mesh, tiles=tiles)
    return estimate_sample(request.config, mesh, request.videos, tiles=tiles)


def _compile(request: Request) -> Compiled | TooLarge:
    mesh = partitioning.make_mesh(mesh_shape(request), devices_of(request.topology))
    if request.mode == "train":
        return compile_program(train_program(request.config, mesh))
    return compile_program(sample_program(request.config, mesh, request.videos))


def _memory(found: Estimate | Compiled | TooLarge, estimate: Estimate) -> dict[str, float]:
    if isinstance(found, TooLarge):
        return {"peak": estimate.peak if found.needed is None else found.needed}
    allocated = {"allocated": found.allocated} if isinstance(found, Compiled) else {}
    return {"arguments": found.arguments, "temporaries": found.temporaries, **allocated, "peak": found.peak}


def _work(request: Request, found, estimate: Estimate) -> dict:
    """FLOPs, time and cost of a step or call and of the whole experiment."""
    chip, chips = request.topology.chip, request.topology.chips
    moved, collectives = _traffic(request, found, estimate)
    times = {
        "compute": estimate.cost.flops / chip.flops,
        "memory": moved / chip.bandwidth,
        "links": sum(collectives.values()) / chip.links if chips > 1 else 0.0,
    }
    seconds = max(times.values())
    steps = request.config.steps if request.mode == "train" else request.config.stage.sampler.steps
    hours = steps * seconds * chips / 3600
    cost = {} if request.price is None else {"price_per_chip_hour": request.price, "cost": hours * request.price}
    return {
        "flops_per_chip": {
            "jaxpr": estimate.cost.flops,
            "useful": estimate.cost.useful,
            "recomputed": estimate.cost.recomputed,
            "compiler": found.flops if isinstance(found, Compiled) else None,
        },
        "bytes_moved_per_chip": moved,
        "collective_bytes_per_chip": collectives,
        "roofline_seconds": seconds,
        "roofline": times | {"bound": max(times, key=times.get)},
        "mfu_bound": estimate.cost.useful / (seconds * chip.flops),
        "steps": steps,
        "chip_hours": hours,
        **cost,
        **({"compile_seconds": found.seconds} if isinstance(found, Compiled) else {}),
    }


def _traffic(request: Request, found, estimate: Estimate) -> tuple[float, dict[str, float]]:
    if not isinstance(found, Compiled):
        return estimate.moved, estimate.collectives
    # The compiler counts a loop's body once: the parts of an accumulated step are such a loop, the update is not.
    parts = request.config.step.accumulate if request.mode == "train" else 1
    update = min(2.0 * found.arguments, found.bytes_moved)
    return update + (found.bytes_moved - update) * parts, found.collectives


# What would fit better.


def suggest(request: Request, *, fits: bool) -> dict:
    """The smallest slice of this chip that would do, and what makes a run fit that does not; all by estimate."""
    found = {}
    smallest = smallest_slice(request)
    found["smallest_slice"] = None if smallest is None else str(smallest.topology)
    if smallest is not None and request.mode == "train" and smallest.config.step != request.config.step:
        found["smallest_slice_accumulate"] = smallest.config.step.accumulate
    if fits:
        return found
    if (changed := _rearranged(request)) is not None:
        for field in ("fsdp", "accumulate"):
            if _arrangement(changed)[field] != _arrangement(request)[field]:
                found[field] = _arrangement(changed)[field]
        return found
    if request.mode == "sample":
        return found
    found["batch_size"] = largest_batch(request)
    network = request.config.stage.network
    if not network.remat:
        stage = dataclasses.replace(request.config.stage, network=dataclasses.replace(network, remat=True))
        found["remat"] = _fits(dataclasses.replace(request, config=dataclasses.replace(request.config, stage=stage)))
    return found


def _rearranged(request: Request) -> Request | None:
    """The same work on the same slice so that it fits: in more parts, or with weights shared by more chips."""
    for shared in (request, *_shared_by_more(request)):
        if not _state_fits(shared):
            continue
        for parts in (shared.config.step.accumulate, *_accumulations(shared)):
            if _fits(changed := _with_accumulate(shared, parts)):
                return changed
    return None


def _arrangement(request: Request) -> dict[str, int]:
    sizes = dict(zip(MESH_AXES, sizes_of(request)))
    return {"fsdp": sizes["fsdp"], "accumulate": request.config.step.accumulate}


def _shared_by_more(request: Request) -> list[Request]:
    """The request with weights shared by more chips, doubling, where the data axis takes what is left."""
    field, shape = mesh_field(request), mesh_shape(request)
    if shape.data != -1:
        return []
    sizes = dict(zip(MESH_AXES, sizes_of(request)))
    batch, fsdp, found = sizes["data"] * sizes["fsdp"], sizes["fsdp"] * 2, []
    while batch % fsdp == 0:  # the batch lies over both axes: it divides as before
        changed = dataclasses.replace(request.config, **{field: dataclasses.replace(shape, fsdp=fsdp)})
        found.append(dataclasses.replace(request, config=changed))
        fsdp *= 2
    return found


def smallest_slice(request: Request) -> Request | None:
    """The request on the smallest slice on which it fits, at most one example a chip at a time if it must."""
    for topology in slices(request.topology.chip):
        try:
            smaller, _ = fit(dataclasses.replace(request, topology=topology))
        except UserError:  # the mesh, or a batch that the person set, does not divide here
            continue
        if not _state_fits(smaller):
            continue
        # Cut into the most parts, every slice sees the same few examples at a time: they are traced once.
        parts = [] if "step.accumulate" in request.given else _accumulations(smaller)
        candidate = _with_accumulate(smaller, parts[-1]) if parts else smaller
        if _fits(candidate):
            return candidate
    return None


def largest_batch(request: Request) -> int | None:
    """The largest halving of the batch that fits; None when not even one clip a chip does."""
    config = request.config
    divisor = partitioning.batch_divisor(abstract_mesh(request)) * config.step.accumulate
    size = config.batch_size // 2
    while size >= divisor and size % divisor == 0:
        images = max(config.image_batch_size * size // config.batch_size // divisor, 1) * divisor
        smaller = dataclasses.replace(config, batch_size=size, image_batch_size=images)
        if _fits(dataclasses.replace(request, config=smaller)):
            return size
        size //= 2
    return None


def _accumulations(request: Request) -> list[int]:
    """Larger numbers of parts, doubling, into which the batch of `request` can be cut."""
    if request.mode != "train":
        return []
    config, divisor = request.config, partitioning.batch_divisor(abstract_mesh(request))
    sizes = [size for size in (config.batch_size, config.image_batch_size) if size]
    parts, found = config.step.accumulate * 2, []
    while all(size % (parts * divisor) == 0 for size in sizes):
        found.append(parts)
        parts *= 2
    return found


def _with_accumulate(request: Request, parts: int) -> Request:
    step = dataclasses.replace(request.config.step, accumulate=parts)
    return dataclasses.replace(request, config=dataclasses.replace(request.config, step=step))


def _fits(request: Request) -> bool:
    estimate = estimate_of(request)
    return estimate.peak + estimate.waiting <= request.topology.chip.memory


def _state_fits(request: Request) -> bool:
    """A quick look before anything is traced: parameters alone, four times in training."""
    mesh = abstract_mesh(request)
    network = stage_of(request.config.stage).network
    shards = partitioning.shardings_of(mesh, network.abstract, network.axes)
    own = sum(
        4.0 * math.prod(sharding.shard_shape(leaf.shape))
        for leaf, sharding in zip(jax.tree.leaves(network.abstract), jax.tree.leaves(shards), strict=True)
    )
    return own * (4 if request.mode == "train" else 1) <= request.topology.chip.memory


def gib(size: float) -> str:
    """Bytes for people."""
    return f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.1f} MiB"
