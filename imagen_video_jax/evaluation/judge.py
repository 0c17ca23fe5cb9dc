"""The judge: reads colour, shape, motion, style and words off a motion_shapes video of any size and length.

A small convolutional network that looks at 8 frames of 24x40, chosen over the whole length: about twice the size of
what a miniature base model makes, so nothing that such a model says is lost. It was trained on endlessly drawn scenes,
damaged in the ways of generated video (low resolution, blur, noise, shifted tones), by
`experiments/studies/train_judge.py`, which states how well it reads. Where it sees a word (the shape is "word") it says
which of the 40 that motion_shapes knows.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from imagen_video_jax.data.motion_shapes_scene import (
    COLOURS,
    MOTIONS,
    SHAPES,
    STYLES,
    WORD_MOTION,
    WORD_SHAPE,
    WORDS,
    Scene,
)
from imagen_video_jax.errors import UserError
from imagen_video_jax.video.frames import resize_uint8

ATTRIBUTES = {
    "colour": tuple(COLOURS),
    "shape": (*SHAPES, WORD_SHAPE),
    "motion": (*MOTIONS, WORD_MOTION),
    "style": STYLES,
    "word": ("", *WORDS),
}
SCORED = (*ATTRIBUTES, "all")
FRAMES, HEIGHT, WIDTH = 8, 24, 40
WIDTHS = {"colour": 32, "shape": 64, "motion": 64, "style": 48, "word": 96}  # of the features of each
WEIGHTS = pathlib.Path(__file__).with_name("judge.safetensors")

CROP = 16  # pixels of the view that follows the shape
LINE = (12, 40)  # of the view of a word
_EPSILON = 1e-6
_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Reading:
    """What the judge sees in one video; `confidence` is its probability for each attribute's reading, in [0, 1].

    `word` is "" where there is none.
    """

    colour: str
    shape: str
    motion: str
    style: str
    word: str
    confidence: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Judge:
    """The trained network; `Judge.load()` gives the one that is shipped."""

    params: Mapping[str, jax.Array]

    @classmethod
    def load(cls, path: pathlib.Path = WEIGHTS) -> "Judge":
        """Reads the weights; UserError when the file is missing, damaged or of another network."""
        try:
            arrays = safetensors.numpy.load_file(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"the judge's weights {path} cannot be read: {error}") from None
        expected = jax.eval_shape(init, jax.random.key(0))
        if {name: value.shape for name, value in arrays.items()} != {n: v.shape for n, v in expected.items()}:
            raise UserError(f"{path} holds the weights of another network than this version's judge; train it again")
        return cls({name: jnp.asarray(value, jnp.float32) for name, value in arrays.items()})

    def __call__(self, video_THWC: np.ndarray) -> Reading:
        return self.read([video_THWC])[0]

    def read(self, videos: Sequence[np.ndarray]) -> list[Reading]:
        """One Reading per video (uint8 THWC, sizes and lengths may differ)."""
        readings = []
        for begin in range(0, len(videos), _BATCH):
            clips_BTHWC = np.stack([canonical(video_THWC) for video_THWC in videos[begin : begin + _BATCH]])
            missing = _BATCH - len(clips_BTHWC)  # always one shape, so that it is compiled once
            padded_BTHWC = np.pad(clips_BTHWC, ((0, missing), *[(0, 0)] * 4))
            chances = {name: np.asarray(chance_BK) for name, chance_BK in _chances(self.params, padded_BTHWC).items()}
            for i in range(len(clips_BTHWC)):
                best = {name: int(chance_BK[i].argmax()) for name, chance_BK in chances.items()}
                names = {name: ATTRIBUTES[name][k] for name, k in best.items()}
                readings.append(
                    Reading(**names, confidence={name: float(chances[name][i, k]) for name, k in best.items()})
                )
        return readings

    def score(self, videos: Sequence[np.ndarray], scenes: Sequence[Scene | Mapping]) -> dict[str, dict]:
        """How often the judge reads what was asked for.

        Args:
          videos: uint8 THWC.
          scenes: one Scene, or row of captions.jsonl, per video; an attribute that a row does not name is not scored.

        Returns:
          Per attribute, and under "all" for what is asked of colour, shape and motion right at once: `accuracy`, its
          95% Wilson `interval` [low, high], `right` and `of`.
        """
        if len(videos) != len(scenes):
            raise ValueError(f"{len(videos)} videos, {len(scenes)} scenes")
        labels = [scene.labels() if isinstance(scene, Scene) else scene for scene in scenes]
        found = [hits(dataclasses.asdict(reading), label) for reading, label in zip(self.read(videos), labels)]
        counted = {name: [one[name] for one in found if name in one] for name in SCORED}
        return {name: rate(sum(values), len(values)) for name, values in counted.items() if values}


def hits(seen: Mapping[str, str], label: Mapping[str, str]) -> dict[str, bool]:
    """Whether each attribute that a label names was seen; "all": those of colour, shape and motion that it names."""
    found = {name: seen[name] == label[name] for name in ATTRIBUTES if label.get(name)}
    if asked := {"colour", "shape", "motion"} & set(found):
        found["all"] = all(found[name] for name in asked)
    return found


def rate(right: int, of: int) -> dict:
    """A share with its 95% Wilson score interval (E. B. Wilson 1927), which stays in [0, 1] near both ends."""
    z, p = 1.959964, right / of
    middle = (p + z**2 / (2 * of)) / (1 + z**2 / of)
    half = z * math.sqrt(p * (1 - p) / of + z**2 / (4 * of**2)) / (1 + z**2 / of)
    interval = [max(0.0, middle - half), min(1.0, middle + half)]
    return {"accuracy": p, "interval": interval, "right": int(right), "of": of}


def canonical(video_THWC: np.ndarray) -> np.ndarray:
    """Any video as uint8 (8, 24, 40, 3): frames spread over its whole length, antialiased resize."""
    if video_THWC.dtype != np.uint8 or video_THWC.ndim != 4 or video_THWC.shape[-1] != 3 or not len(video_THWC):
        raise ValueError(f"video_THWC: expected uint8(T, H, W, 3), got {video_THWC.dtype}{video_THWC.shape}")
    chosen_T = np.arange(FRAMES) * len(video_THWC) // FRAMES
    return resize_uint8(video_THWC[chosen_T], HEIGHT, WIDTH)


# What the network is shown. Backgrounds have no hue and shapes do, so the distance of a pixel's colour from the
# background's says where the shape is; seen in a window that follows it, a shape is the same wherever it goes.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class View:
    """The parts of a clip, in float32.

    Attributes:
      crop_BTHWC: windows of 16x16 around the shape: colourfulness (1 at the clip's most colourful pixel), brightness.
      place_BTK: centre x and y, spread x and y, log of area and of window size.
      tint_BK: colour of the shape, weighted by colourfulness and by its square.
      still_BTHWC: two whole frames: colourfulness and brightness.
      line_BHWC: the last frames' colourfulness in a window of 12x40 as wide and high as what is there: a word.
    """

    crop_BTHWC: jax.Array
    place_BTK: jax.Array
    tint_BK: jax.Array
    still_BTHWC: jax.Array
    line_BHWC: jax.Array


def view(video_BTHWC: jax.Array) -> View:
    """Takes apart a canonical clip, float32 in [-1, 1]."""
    bright_BTHW = video_BTHWC.mean(-1)
    hue_BTHWC = video_BTHWC - bright_BTHW[..., None]
    # A tinted background is not the shape: its tint is the mean of the pixels that are nearly grey.
    grey_BTHW1 = jnp.exp(-16 * jnp.sum(hue_BTHWC**2, -1, keepdims=True))
    hue_BTHWC -= _mean(hue_BTHWC, grey_BTHW1, (1, 2, 3))
    colourful_BTHW = jnp.sqrt(jnp.sum(hue_BTHWC**2, -1) + _EPSILON)
    colourful_BTHW /= colourful_BTHW.max((1, 2, 3), keepdims=True)
    shape_BTHW = jax.nn.relu(colourful_BTHW - 0.3)
    window = _window(shape_BTHW)
    layers_BTHWC = jnp.stack([colourful_BTHW, bright_BTHW], -1)
    tints = [
        _mean(values_BTHWC, (shape_BTHW**power)[..., None], (1, 2, 3)).reshape(-1, 3)
        for values_BTHWC in (hue_BTHWC, video_BTHWC)
        for power in (1, 2)
    ]
    return View(
        crop_BTHWC=_crop(layers_BTHWC, window),
        place_BTK=_place(window, shape_BTHW),
        tint_BK=jnp.concatenate(tints, -1),
        still_BTHWC=layers_BTHWC[:, :: FRAMES // 2],
        line_BHWC=_line(colourful_BTHW),
    )


def _mean(values, weights, axes):
    return jnp.sum(values * weights, axes, keepdims=True) / (jnp.sum(weights, axes, keepdims=True) + _EPSILON)


def _window(shape_BTHW):
    """Centre (y, x) and spread (y, x) of the shape and half the side of a window around it: five BT, in pixels."""
    _, _, H, W = shape_BTHW.shape
    # A trace of weight in the middle: a frame without a shape is looked at as a whole.
    weight_BTHW = shape_BTHW + 1e-4
    total_BT = weight_BTHW.sum((2, 3))
    centres, spreads = [], []
    for size, weight_BTN in ((H, weight_BTHW.sum(3)), (W, weight_BTHW.sum(2))):
        at_N = jnp.arange(size) + 0.5
        centre_BT = weight_BTN @ at_N / total_BT
        distance_BTN = at_N - centre_BT[..., None]
        spreads.append(jnp.sqrt(jnp.sum(weight_BTN * distance_BTN**2, -1) / total_BT))
        centres.append(centre_BT)
    half_BT = jnp.clip(2.3 * jnp.hypot(*spreads), 3.0, W / 2)
    return *centres, *spreads, half_BT


def _crop(layers_BTHWC, window):
    """The window resampled to 16x16 by a triangle filter that widens where it reduces."""
    y_BT, x_BT, _, _, half_BT = window
    _, _, H, W, _ = layers_BTHWC.shape
    rows_BTPWC = jnp.einsum("btph,bthwc->btpwc", _filters(y_BT, half_BT, H, CROP), layers_BTHWC)
    return jnp.einsum("btqw,btpwc->btpqc", _filters(x_BT, half_BT, W, CROP), rows_BTPWC)


def _filters(centre, half, size: int, count: int):
    """Weights (..., count, size) of `count` samples over centre ± half on an axis of `size` pixels."""
    step = (2 * half / count)[..., None, None]
    wanted = centre[..., None, None] + (jnp.arange(count) + 0.5 - count / 2)[:, None] * step
    weights = jax.nn.relu(1 - jnp.abs(jnp.arange(size) + 0.5 - wanted) / jnp.maximum(step, 1))
    return weights / (weights.sum(-1, keepdims=True) + _EPSILON)


def _line(colourful_BTHW):
    """What the last three frames agree on (all letters are there by then), stretched to 12x40."""
    frame_BHW = colourful_BTHW[:, -3:].mean(1)
    y_B1, x_B1, spread_y_B1, spread_x_B1, _ = _window(jax.nn.relu(frame_BHW - 0.3)[:, None])
    _, H, W = frame_BHW.shape
    rows_BPH = _filters(y_B1[:, 0], 2.2 * spread_y_B1[:, 0], H, LINE[0])
    columns_BQW = _filters(x_B1[:, 0], 2.0 * spread_x_B1[:, 0], W, LINE[1])
    return jnp.einsum("bph,bhw,bqw->bpq", rows_BPH, frame_BHW, columns_BQW)[..., None]


def _place(window, shape_BTHW):
    """Where the shape is and how large, scaled to about [-1, 1]."""
    y_BT, x_BT, spread_y_BT, spread_x_BT, half_BT = window
    area_BT = shape_BTHW.sum((2, 3))
    return jnp.stack(
        [
            x_BT / (WIDTH / 2) - 1,
            y_BT / (HEIGHT / 2) - 1,
            spread_x_BT / 3 - 1,
            spread_y_BT / 3 - 1,
            jnp.log(area_BT + 1) / 2 - 1.5,
            jnp.log(half_BT) - 2,
        ],
        axis=-1,
    )


# The network: plain functions on a flat dict of arrays.


def init(key: jax.Array) -> dict[str, jax.Array]:
    """Fresh parameters, normal with variance 2 / inputs (He et al. 2015)."""
    crop_cells, seen = (CROP // 4) ** 2, 2 * 48
    shapes = {
        "crop0": (3, 3, 2, 24),
        "crop1": (3, 3, 24, 40),
        "crop2": (crop_cells * 40, 48),
        "still0": (3, 3, 2, 16),
        "still1": (3, 3, 16, 24),
        "moves": (48, 16),
        "motion0": (FRAMES * (6 + 16), 96),
        "motion1": (96, 64),
        "colour0": (12, 32),
        "shape0": (seen, 64),
        "style0": (seen + 2 * 24 + 32, 64),
        "style1": (64, 48),
        "word0": (3, 3, 1, 32),
        "word1": (3, 3, 32, 48),
        "word2": (LINE[0] // 4 * LINE[1] // 4 * 48, 96),
    }
    shapes |= {name: (WIDTHS[name], len(names)) for name, names in ATTRIBUTES.items()}
    params = {}
    for (name, shape), one in zip(shapes.items(), jax.random.split(key, len(shapes))):
        params[f"{name}.weight"] = jax.random.normal(one, shape) * math.sqrt(2 / math.prod(shape[:-1]))
        params[f"{name}.bias"] = jnp.zeros(shape[-1])
    return params


def logits(params: Mapping[str, jax.Array], video_BTHWC: jax.Array) -> dict[str, jax.Array]:
    """float32 video in [-1, 1], (B, 8, 24, 40, 3) -> attribute -> logits (B, classes)."""
    return classified(params, view(video_BTHWC))


def classified(params: Mapping[str, jax.Array], seen: View) -> dict[str, jax.Array]:
    """attribute -> logits (B, classes)."""
    found = features(params, seen)
    return {name: x @ params[f"{name}.weight"] + params[f"{name}.bias"] for name, x in found.items()}


def features(params: Mapping[str, jax.Array], seen: View) -> dict[str, jax.Array]:
    """attribute -> what its classifier sees, (B, WIDTHS[attribute])."""
    B, T = seen.place_BTK.shape[:2]
    crop = convolved(params, "crop0", seen.crop_BTHWC.reshape(B * T, CROP, CROP, 2))
    crop = convolved(params, "crop1", crop)
    crop_BTD = dense(params, "crop2", crop.reshape(B * T, -1)).reshape(B, T, -1)
    what_BD = jnp.concatenate([crop_BTD.mean(1), crop_BTD.max(1)], -1)
    still = convolved(params, "still0", seen.still_BTHWC.reshape(-1, HEIGHT, WIDTH, 2))
    still = convolved(params, "still1", still)
    still_BPC = still.reshape(B, -1, still.shape[-1])
    moves_BTD = jnp.concatenate([seen.place_BTK, dense(params, "moves", crop_BTD)], -1)
    tint_BD = dense(params, "colour0", seen.tint_BK)
    # Paint and pencil are paler than plain colour, so style needs the tint too.
    looks_BD = jnp.concatenate([what_BD, still_BPC.mean(1), still_BPC.max(1), tint_BD], -1)
    return {
        "colour": tint_BD,
        "shape": dense(params, "shape0", what_BD),
        "motion": dense(params, "motion1", dense(params, "motion0", moves_BTD.reshape(B, -1))),
        "style": dense(params, "style1", dense(params, "style0", looks_BD)),
        "word": _word(params, seen.line_BHWC),
    }


def word_logits(params: Mapping[str, jax.Array], line_BHWC: jax.Array) -> jax.Array:
    """What `logits` says of the word, from the view of it alone."""
    return _word(params, line_BHWC) @ params["word.weight"] + params["word.bias"]


def _word(params, line_BHWC):
    x = convolved(params, "word1", convolved(params, "word0", line_BHWC))
    return dense(params, "word2", x.reshape(len(x), -1))


def convolved(params, name, x_NHWC):
    """A 3x3 convolution that halves height and width."""
    x = jax.lax.conv_general_dilated(
        x_NHWC, params[f"{name}.weight"], (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.relu(x + params[f"{name}.bias"])


def dense(params, name, x):
    return jax.nn.relu(x @ params[f"{name}.weight"] + params[f"{name}.bias"])


@jax.jit
def _chances(params, clips_BTHWC):
    video_BTHWC = clips_BTHWC.astype(jnp.float32) / 127.5 - 1
    return {name: jax.nn.softmax(value_BK) for name, value_BK in logits(params, video_BTHWC).items()}
