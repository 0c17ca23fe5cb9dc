"""The mesh, the logical axis rules, shardings of trees, and host batch -> global array.

Networks name the axes of their parameters and activations by meaning; the one table below says which mesh axis each
meaning is laid over. The partitioner does the rest, but for what it is not left to: where weights are gathered
(`whole`), when gradients are summed over data (`summed_over_data`), and kernels over shards (`over_shards`,
`on_each_shard`).
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from imagen_video_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor", "frames", "height")

# Logical axis -> mesh axes. An axis whose size its mesh axes do not divide stays unsharded.
RULES: dict[str, tuple[str, ...]] = {
    # Activations.
    "batch": ("data", "fsdp"),
    "frames": ("frames",),
    "height": ("height",),
    "moved_heads": ("height",),  # of attention over the pixels of a frame, where these are not all on one device
    # Parameters: inputs over fsdp, outputs over tensor.
    "conv_in": ("fsdp",),
    "conv_out": ("tensor",),
    "embed": ("fsdp",),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "vocabulary": ("tensor",),
}

# A shard has at least as many frames or rows: smaller ones cost more to exchange than they save.
LEAST = {"frames": 2, "height": 2}


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Devices along each mesh axis; one axis may be -1 and takes what the others leave."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    frames: int = 1
    height: int = 1

    def sizes(self, devices: int) -> tuple[int, ...]:
        """Sizes in the order of MESH_AXES on `devices` devices (their product may be another number)."""
        sizes = [getattr(self, axis) for axis in MESH_AXES]
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise UserError(
                f"mesh axes must be at least 1 (one may be -1: the rest), got {dict(zip(MESH_AXES, sizes))}"
            )
        rest = int(np.prod([size for size in sizes if size != -1]))
        return tuple(max(devices // rest, 1) if size == -1 else size for size in sizes)


def make_mesh(shape: MeshShape = MeshShape(), devices=None) -> Mesh:
    """A mesh over all devices, or over the first ones where a single process names fewer; UserError for too many."""
    devices = jax.devices() if devices is None else devices
    sizes = shape.sizes(len(devices))
    needed = int(np.prod(sizes))
    if needed < len(devices) and jax.process_count() == 1:
        devices = devices[:needed]
    if needed != len(devices):
        raise UserError(f"the mesh {dict(zip(MESH_AXES, sizes))} needs {needed} devices, there are {len(devices)}")
    # Auto: the partitioner propagates shardings; jax's own default (Explicit) would ask for them at every operation.
    types = (AxisType.Auto,) * len(MESH_AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1 or devices[0].platform != "tpu":
        # A mesh axis lies along whole axes of the chips' torus where it can, else along parts of them.
        laid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    else:
        laid = _over_slices(sizes, slices, devices)
    return Mesh(laid, MESH_AXES, axis_types=types)


def _over_slices(sizes: list[int], slices: int, devices) -> np.ndarray:
    """Devices of several slices, which the slower network joins: only the data axis crosses it, once a step."""
    if sizes[0] % slices:
        raise UserError(
            f"mesh.data {sizes[0]} must be divisible by the number of slices, {slices}: it alone joins them"
        )
    inside = (sizes[0] // slices, *sizes[1:])
    across = (slices, *(1 for _ in sizes[1:]))
    return mesh_utils.create_hybrid_device_mesh(inside, across, devices, allow_split_physical_axes=True)


def spec_of(mesh: Mesh, shape: tuple[int, ...], names: tuple[str | None, ...]) -> PartitionSpec:
    """The partition of one array: each named axis over its mesh axes, where they divide it."""
    parts, used = [], set(_manual(mesh))
    for size, name in zip(shape, names, strict=True):
        axes = tuple(axis for axis in RULES[name] if mesh.shape[axis] > 1 and axis not in used) if name else ()
        count = int(np.prod([mesh.shape[axis] for axis in axes]))
        if not axes or size % count or size // count < LEAST.get(name, 1):
            parts.append(None)
            continue
        used.update(axes)
        parts.append(axes if len(axes) > 1 else axes[0])
    return PartitionSpec(*parts)


def _manual(mesh: Mesh) -> tuple[str, ...]:
    """Axes of the mesh over which a function is being traced for one shard alone (`summed_over_data`)."""
    return tuple(axis for axis, kind in zip(mesh.axis_names, mesh.axis_types) if kind == AxisType.Manual)


def shardings_of(mesh: Mesh, abstract, axes):
    """NamedShardings for a tree of arrays whose logical axis names are in the parallel tree `axes`."""
    return jax.tree.map(lambda leaf, names: NamedSharding(mesh, spec_of(mesh, leaf.shape, names)), abstract, axes)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis over the data and fsdp axes, the rest replicated."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def batch_divisor(mesh: Mesh) -> int:
    """What a global batch size must be divisible by."""
    return int(np.prod([mesh.shape[axis] for axis in RULES["batch"]]))


def batch_slots(mesh: Mesh, size: int) -> np.ndarray:
    """Which slots of a global batch of `size` this process has devices for, in order.

    Processes whose devices differ only along the other mesh axes have the same slots.
    """
    parts = batch_sharding(mesh).addressable_devices_indices_map((size,)).values()
    return np.unique(np.concatenate([np.arange(size)[part] for part in parts]))


def put_batch(mesh: Mesh, batch):
    """This process's slots of a batch (a tree of numpy arrays) -> global arrays sharded over the batch axis."""
    sharding, count = batch_sharding(mesh), batch_divisor(mesh)
    own = batch_slots(mesh, count).tolist()  # which parts of the batch this process has

    def put(leaf):
        size = len(leaf) // len(own)

        def part(index):
            begin = own.index((index[0].start or 0) // size) * size
            return leaf[begin : begin + size]

        return jax.make_array_from_callback((size * count, *leaf.shape[1:]), sharding, part)

    return jax.tree.map(put, batch)


def put_own(mesh: Mesh, values) -> jax.Array:
    """A row of numbers from every process -> float32 [devices, len(values)], so that a program can compare them."""
    row = np.asarray([values], np.float32)
    sharding = NamedSharding(mesh, PartitionSpec(MESH_AXES))
    return jax.make_array_from_callback((mesh.size, row.shape[1]), sharding, lambda _: row)


_mesh: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)
_kind: contextvars.ContextVar[str] = contextvars.ContextVar("kind", default="")


@contextlib.contextmanager
def activate(mesh: Mesh | None) -> Iterator[None]:
    """Makes `constrain` lay activations over `mesh` while a function is traced."""
    token = _mesh.set(mesh)
    try:
        yield
    finally:
        _mesh.reset(token)


@contextlib.contextmanager
def for_device(kind: str) -> Iterator[None]:
    """Functions are traced as for a device of this kind ("" for the kind of those that there are)."""
    token = _kind.set(kind)
    try:
        yield
    finally:
        _kind.reset(token)


def device_kind() -> str:
    """What kind of device will run the program that is being traced, such as "TPU v5p" or "NVIDIA H100 80GB HBM3"."""
    mesh = _mesh.get()
    return _kind.get() or (jax.devices()[0] if mesh is None else mesh.devices.flat[0]).device_kind


def _active() -> Mesh | None:
    """The active mesh; inside of `summed_over_data` as jax knows it there, each part of the data axis alone."""
    mesh, inside = _mesh.get(), jax.sharding.get_abstract_mesh()
    return inside if mesh is not None and inside.axis_names == mesh.axis_names else mesh


def summed_over_data(function: Callable, shared, examples):
    """function(shared, examples), a tree of sums over examples, for arrays with examples along their first axis.

    Each part of the mesh's data axis adds up its own examples, whatever loops that takes; then they are added over the
    axis once, each device its shard. Left to the partitioner, gradients would be added over all devices at full size
    in each turn of a loop, also by the slower network that joins slices.
    """
    mesh = _mesh.get()
    if mesh is None or mesh.shape["data"] == 1:
        return function(shared, examples)

    def own(shared, examples):
        return jax.lax.psum(function(shared, examples), "data")

    specs = PartitionSpec(), PartitionSpec("data")
    # Unchecked: jax would sum gradients over the axis itself, wherever shared weights meet a part's own examples.
    summed = jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=specs[0], axis_names={"data"}, check_vma=False)
    return summed(shared, examples)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Lays an activation over the active mesh by logical names (missing trailing names: unsharded)."""
    mesh = _active()
    if mesh is None or mesh.size == 1:
        return x
    names = names + (None,) * (x.ndim - len(names))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec_of(mesh, x.shape, names)))


def whole(weight: jax.Array, names: Sequence[str | None]) -> jax.Array:
    """A weight as it is used: gathered over fsdp, over which it is only stored.

    Left to the partitioner, activations may be laid out as the weights are stored, channels instead of examples.
    """
    return constrain(weight, *(None if name and RULES[name] == ("fsdp",) else name for name in names))


def sharded(axis: str) -> bool:
    """Whether the active mesh splits the logical axis `axis`."""
    mesh = _active()
    return mesh is not None and any(mesh.shape[name] > 1 for name in set(RULES[axis]) - set(_manual(mesh)))


def over_shards(
    function: Callable[[jax.Array, jax.Array], jax.Array],
    x_BTHWC: jax.Array,
    kernel: jax.Array,
    name: str,
    halo: tuple[int, int],
    stride: int = 1,
) -> jax.Array:
    """function(x, kernel) on each device's own shard of a video activation, with the whole kernel.

    Args:
      name: "frames" or "height". Along this axis a shard comes with `halo` (before, after) entries of its neighbours,
        zeros at the ends, and `function` gives one entry back for each `stride` of the shard's own.

    The partitioner is not left to do this: with inputs of the kernel over fsdp, its outputs over tensor, or a batch
    that is not divided, convolutions and their gradients came out wrong by factors (jax 0.10.2).
    """
    mesh = _active()
    parts = list(spec_of(mesh, x_BTHWC.shape, ("batch", "frames", "height", None, None)))
    number = 1 if name == "frames" else 2
    if parts[number] is not None:
        own = x_BTHWC.shape[number] // mesh.shape[parts[number]]
        if own < max(halo) or own % stride:
            parts[number] = None
    axis, spec = parts[number], PartitionSpec(*parts)

    def local(x, kernel):
        return function(_with_neighbours(x, number, axis, halo), kernel)

    return _on_shards(local, mesh, (spec, PartitionSpec()), spec)(x_BTHWC, kernel)


def on_each_shard(function: Callable[..., jax.Array], arrays: Sequence[jax.Array], names: Sequence[tuple]) -> jax.Array:
    """function(*arrays) on each device's own shards of the active mesh; what it returns is laid out as the first.

    Args: names are the logical axes of each array. `function` mixes nothing along those that are sharded.
    """
    mesh = _active()
    if mesh is None or mesh.size == 1:
        return function(*arrays)
    specs = tuple(spec_of(mesh, array.shape, axes) for array, axes in zip(arrays, names, strict=True))
    # Pallas kernels do not say over which axes their results differ, so this is not checked.
    return _on_shards(function, mesh, specs, specs[0], check_vma=False)(*arrays)


def _on_shards(function: Callable, mesh: Mesh, in_specs, out_specs, **options) -> Callable:
    """`shard_map` over the axes that are not each device's own already."""
    rest = set(mesh.axis_names) - set(_manual(mesh))
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names=rest, **options)


def _with_neighbours(x: jax.Array, number: int, axis: str | None, halo: tuple[int, int]) -> jax.Array:
    """A shard with `halo` entries of the shards before and after it along axis `number`, zeros where there are none."""
    before, after = halo
    if axis is None:
        return jnp.pad(x, [halo if i == number else (0, 0) for i in range(x.ndim)])
    count, size = jax.lax.axis_size(axis), x.shape[number]
    pieces = [x]
    if before:
        last = jax.lax.slice_in_dim(x, size - before, size, axis=number)
        pieces.insert(0, jax.lax.ppermute(last, axis, [(i, i + 1) for i in range(count - 1)]))
    if after:
        first = jax.lax.slice_in_dim(x, 0, after, axis=number)
        pieces.append(jax.lax.ppermute(first, axis, [(i + 1, i) for i in range(count - 1)]))
    return jnp.concatenate(pieces, axis=number)
