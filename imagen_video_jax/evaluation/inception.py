"""Inception-v3 as FID uses it: frames -> 2048 features (Szegedy et al. 2015; Heusel et al. 2017).

The network is TensorFlow's of 2015-12-05, which differs from the usual one in its pooling: averages leave padding out,
and the last block takes maxima. Frames as in pytorch-fid: resized to 299x299 bilinearly without antialiasing (torch's
sample positions), pixels in [-1, 1]. Weights: pytorch-fid's file, or a safetensors file with its names, named by the
user.
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
from imagen_video_jax.evaluation import pixels, weight_files

SIZE = 299
WHERE = "pt_inception-2015-12-05-6726825d.pth of https://github.com/mseitzer/pytorch-fid/releases"

_EPSILON = 1e-3
_BATCH = 16


@dataclasses.dataclass(frozen=True)
class InceptionConfig:
    """Sizes; `shrink` divides every width, for tests."""

    shrink: int = 1


def _parameter(*shape):
    return nnx.Param(jnp.zeros(shape, jnp.float32))


class _Unit(nnx.Module):
    """Convolution, batch normalisation by stored statistics, relu."""

    def __init__(self, inputs: int, outputs: int, window=1, *, stride: int = 1, padding: str = "SAME"):
        height, width = (window, window) if isinstance(window, int) else window
        self.stride, self.padding = stride, padding
        self.kernel = _parameter(height, width, inputs, outputs)
        self.scale, self.bias, self.mean, self.variance = (_parameter(outputs) for _ in range(4))

    def __call__(self, x_NHWC):
        scale = self.scale[...] * jax.lax.rsqrt(self.variance[...] + _EPSILON)
        y = jax.lax.conv_general_dilated(
            x_NHWC,
            self.kernel[...] * scale,
            (self.stride, self.stride),
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return jax.nn.relu(y + (self.bias[...] - self.mean[...] * scale))


def _window(x, fill, function, stride: int, padding: str):
    return jax.lax.reduce_window(x, fill, function, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def _averaged(x):
    """3x3 means in which places beyond the edge do not count."""
    count = _window(jnp.ones((1, *x.shape[1:3], 1), x.dtype), 0.0, jax.lax.add, 1, "SAME")
    return _window(x, 0.0, jax.lax.add, 1, "SAME") / count


def _largest(x, stride: int = 2, padding: str = "VALID"):
    return _window(x, -jnp.inf, jax.lax.max, stride, padding)


# Blocks: branch -> its units in order, each (name, outputs, window[, stride]). A list in place of a unit splits the
# branch in two, side by side. "pool" takes the block's input pooled.
def _block_a(pool):
    return (
        [("branch1x1", 64, 1)],
        [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
        [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
        [_averaged, ("branch_pool", pool, 1)],
    )


_BLOCK_B = (
    [("branch3x3", 384, 3, 2)],
    [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2)],
    [_largest],
)


def _block_c(narrow):
    return (
        [("branch1x1", 192, 1)],
        [("branch7x7_1", narrow, 1), ("branch7x7_2", narrow, (1, 7)), ("branch7x7_3", 192, (7, 1))],
        [
            ("branch7x7dbl_1", narrow, 1),
            ("branch7x7dbl_2", narrow, (7, 1)),
            ("branch7x7dbl_3", narrow, (1, 7)),
            ("branch7x7dbl_4", narrow, (7, 1)),
            ("branch7x7dbl_5", 192, (1, 7)),
        ],
        [_averaged, ("branch_pool", 192, 1)],
    )


_BLOCK_D = (
    [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2)],
    [
        ("branch7x7x3_1", 192, 1),
        ("branch7x7x3_2", 192, (1, 7)),
        ("branch7x7x3_3", 192, (7, 1)),
        ("branch7x7x3_4", 192, 3, 2),
    ],
    [_largest],
)


def _block_e(pooling):
    return (
        [("branch1x1", 320, 1)],
        [("branch3x3_1", 384, 1), [("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))]],
        [
            ("branch3x3dbl_1", 448, 1),
            ("branch3x3dbl_2", 384, 3),
            [("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))],
        ],
        [pooling, ("branch_pool", 192, 1)],
    )


_STEM = (
    ("Conv2d_1a_3x3", 32, 3, 2, "VALID"),
    ("Conv2d_2a_3x3", 32, 3, 1, "VALID"),
    ("Conv2d_2b_3x3", 64, 3, 1, "SAME"),
    _largest,
    ("Conv2d_3b_1x1", 80, 1, 1, "VALID"),
    ("Conv2d_4a_3x3", 192, 3, 1, "VALID"),
    _largest,
)
_BLOCKS = {
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": _BLOCK_B,
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": _BLOCK_D,
    "Mixed_7b": _block_e(_averaged),
    "Mixed_7c": _block_e(functools.partial(_largest, stride=1, padding="SAME")),
}


class _Block(nnx.Module):
    """Branches side by side, as a table above says; `channels` is how many come out."""

    def __init__(self, inputs: int, branches, shrink: int):
        self.branches, self.channels = branches, 0
        for branch in branches:
            channels = inputs
            for step in branch:
                parts = step if isinstance(step, list) else [step]
                if callable(step):
                    continue
                for name, outputs, window, *stride in parts:
                    stride = stride[0] if stride else 1
                    padding = "SAME" if stride == 1 else "VALID"
                    setattr(self, name, _Unit(channels, outputs // shrink, window, stride=stride, padding=padding))
                channels = sum(part[1] // shrink for part in parts)
            self.channels += channels

    def __call__(self, x_NHWC):
        return jnp.concatenate([self._branch(branch, x_NHWC) for branch in self.branches], -1)

    def _branch(self, branch, x):
        for step in branch:
            if callable(step):
                x = step(x)
            else:
                parts = step if isinstance(step, list) else [step]
                x = jnp.concatenate([getattr(self, name)(x) for name, *_ in parts], -1)
        return x


class InceptionV3(nnx.Module):
    """float32 [-1, 1] (N, 299, 299, 3) -> features (N, 2048)."""

    def __init__(self, config: InceptionConfig = InceptionConfig()):
        channels = 3
        for step in _STEM:
            if not callable(step):
                name, outputs, window, stride, padding = step
                outputs //= config.shrink
                setattr(self, name, _Unit(channels, outputs, window, stride=stride, padding=padding))
                channels = outputs
        for name, branches in _BLOCKS.items():
            block = _Block(channels, branches, config.shrink)
            setattr(self, name, block)
            channels = block.channels

    def __call__(self, x_NHWC):
        for step in _STEM:
            x_NHWC = step(x_NHWC) if callable(step) else getattr(self, step[0])(x_NHWC)
        for name in _BLOCKS:
            x_NHWC = getattr(self, name)(x_NHWC)
        return x_NHWC.mean((1, 2))


_ARRAYS = {
    "kernel": "conv.weight",
    "scale": "bn.weight",
    "bias": "bn.bias",
    "mean": "bn.running_mean",
    "variance": "bn.running_var",
}


def _source(name: str):
    """The stored array for one of our params; kernels are stored (out, in, height, width)."""
    unit, leaf = name.rsplit(".", 1)
    return f"{unit}.{_ARRAYS[leaf]}", (lambda array: array.transpose(2, 3, 1, 0)) if leaf == "kernel" else np.asarray


@dataclasses.dataclass(frozen=True)
class Inception:
    """The network with its weights; `load(path)` makes one."""

    params: functional.Params
    config: InceptionConfig = InceptionConfig()

    def features(self, frames_NHWC: np.ndarray, *, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """The features of FID, float32 (N, 2048).

        Args:
          frames_NHWC: uint8, or floats in [-1, 1], of any size.
          progress: called with the number of frames done.
        """
        frames_NHWC = pixels.checked(frames_NHWC, "NHWC")

        def apply(frames):
            x = pixels.unit(frames)
            if x.shape[1:3] != (SIZE, SIZE):
                x = pixels.resized(x, SIZE, SIZE, half_pixel=True)
            return _apply(self.config, self.params, x)

        batches = list(pixels.in_batches(apply, frames_NHWC, size=_BATCH, progress=progress))
        return np.concatenate(batches or [np.zeros((0, 2048 // self.config.shrink), np.float32)])


def _network(config: InceptionConfig) -> functional.Functional:
    return functional.split(lambda rngs: InceptionV3(config))


def _apply_exactly(config, params, frames_NHWC):
    with jax.default_matmul_precision("highest"):
        return _network(config).apply(params, frames_NHWC)


_apply = jax.jit(_apply_exactly, static_argnums=0)


def load(path: str | pathlib.Path, config: InceptionConfig = InceptionConfig()) -> Inception:
    """Inception-v3 with the weights of pytorch-fid's file, or of a safetensors file or the one in a folder.

    Raises:
      UserError: the file is missing (says where people get it), cut, or of another network (names the array).
    """
    path = weight_files.named_file(path, "Inception-v3 (FID)", WHERE)
    arrays = weight_files.read_state(path)
    params = weight_files.params_of(arrays, _network(config).abstract, _source, path=path, what="Inception-v3 (FID)")
    return Inception(jax.tree.map(jnp.asarray, params), config)
