"""The scorer: how well a caption describes a motion_shapes video, as CLIP does for pictures of the world.

Two small networks turn a video and a caption into unit vectors, whose product is the score. The video's starts from
what the judge reads and adds what the judge does not: background, size and place. The caption's knows the words of
motion_shapes' captions and paraphrases and skips all others; it sees words with their neighbours, not sentences.
Trained contrastively by `experiments/studies/train_scorer.py`, which states how often it picks the right caption.
"""

import dataclasses
import functools
import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from imagen_video_jax.errors import UserError
from imagen_video_jax.evaluation import judge as judges
from imagen_video_jax.evaluation.judge import ATTRIBUTES, FRAMES, Judge

WEIGHTS = pathlib.Path(__file__).with_name("scorer.safetensors")
EMBEDDING = 64
LENGTH = 32  # words of a caption at most; the longest of motion_shapes has 19

_WORD, _TEXT, _VIDEO = 48, 128, 192  # widths
_BATCH = 32


def words_of(caption: str) -> list[str]:
    """Lower-case words, without punctuation."""
    return re.findall(r"[a-z]+", caption.lower())


@dataclasses.dataclass(frozen=True)
class Scorer:
    """The trained networks; `Scorer.load()` gives the ones that are shipped.

    Attributes:
      judge: reads the video first.
      words: word -> its number, from 1; 0 is padding.
    """

    params: Mapping[str, jax.Array]
    words: Mapping[str, int]
    judge: Judge

    @classmethod
    def load(cls, path: pathlib.Path = WEIGHTS, judge: Judge | None = None) -> "Scorer":
        """Reads the weights; UserError when the file is missing, damaged or of another network."""
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                words = json.loads(file.metadata()["words"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
        except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"the scorer's weights {path} cannot be read: {error}") from None
        expected = jax.eval_shape(functools.partial(init, words=len(words)), jax.random.key(0))
        if {name: value.shape for name, value in arrays.items()} != {n: v.shape for n, v in expected.items()}:
            raise UserError(f"{path} holds the weights of another network than this version's scorer; train it again")
        params = {name: jnp.asarray(value, jnp.float32) for name, value in arrays.items()}
        return cls(params, {word: number for number, word in enumerate(words, start=1)}, judge or Judge.load())

    def saved(self) -> bytes:
        """The content of a weights file, numbers in half precision."""
        arrays = {name: np.asarray(value, np.float16) for name, value in self.params.items()}
        return safetensors.numpy.save(arrays, {"words": json.dumps(list(self.words))})

    def video_features(self, videos: Sequence[np.ndarray]) -> np.ndarray:
        """Unit vectors, float32 (N, 64), of uint8 THWC videos; sizes and lengths may differ, an image is one frame."""
        found = [np.zeros((0, EMBEDDING), np.float32)]
        for begin in range(0, len(videos), _BATCH):
            clips_BTHWC = np.stack([judges.canonical(video_THWC) for video_THWC in videos[begin : begin + _BATCH]])
            missing = _BATCH - len(clips_BTHWC)  # always one shape, so that it is compiled once
            padded_BTHWC = np.pad(clips_BTHWC, ((0, missing), *[(0, 0)] * 4))
            found.append(np.asarray(_embed_clips(self.params, self.judge.params, padded_BTHWC))[: len(clips_BTHWC)])
        return np.concatenate(found)

    def text_features(self, captions: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 (N, 64); words that the scorer does not know are skipped."""
        ids_NL = self.tokenize(captions)
        found = [np.zeros((0, EMBEDDING), np.float32)]
        for begin in range(0, len(ids_NL), _BATCH):
            ids_BL = ids_NL[begin : begin + _BATCH]
            padded_BL = np.pad(ids_BL, ((0, _BATCH - len(ids_BL)), (0, 0)))
            found.append(np.asarray(_embed_ids(self.params, padded_BL))[: len(ids_BL)])
        return np.concatenate(found)

    def tokenize(self, captions: Sequence[str]) -> np.ndarray:
        """Numbers of the known words, int32 (N, 32), padded with 0."""
        ids_NL = np.zeros((len(captions), LENGTH), np.int32)
        for ids_L, caption in zip(ids_NL, captions):
            known = [self.words[word] for word in words_of(caption) if word in self.words][:LENGTH]
            ids_L[: len(known)] = known
        return ids_NL


# The networks: plain functions on a flat dict of arrays.


def init(key: jax.Array, words: int) -> dict[str, jax.Array]:
    """Fresh parameters for a vocabulary of `words`, normal with variance 2 / inputs (He et al. 2015)."""
    read = sum(map(len, ATTRIBUTES.values()))
    shapes = {
        "ground0": (3, 3, 2, 16),
        "ground1": (3, 3, 16, 24),
        "video0": (read + 6 * FRAMES + 2 * 24, _VIDEO),
        "video1": (_VIDEO, EMBEDDING),
        "text0": (3 * _WORD, _TEXT),
        "text1": (2 * _TEXT, _VIDEO),
        "text2": (_VIDEO, EMBEDDING),
    }
    params = {"log_scale": jnp.array([math.log(10.0)])}
    keys = jax.random.split(key, len(shapes) + 1)
    for (name, shape), one in zip(shapes.items(), keys[1:]):
        params[f"{name}.weight"] = jax.random.normal(one, shape) * math.sqrt(2 / math.prod(shape[:-1]))
        params[f"{name}.bias"] = jnp.zeros(shape[-1])
    return params | {"words": 0.5 * jax.random.normal(keys[0], (words + 1, _WORD))}


def embed_video(params, judge_params, video_BTHWC: jax.Array) -> jax.Array:
    """float32 video in [-1, 1], (B, 8, 24, 40, 3) -> unit vectors (B, 64)."""
    seen = judges.view(video_BTHWC)
    return embed_seen(params, chances_of(judges.classified(judge_params, seen)), seen.place_BTK, seen.still_BTHWC)


def chances_of(logits: Mapping[str, jax.Array]) -> jax.Array:
    """The judge's probabilities of all values of its attributes, side by side."""
    return jnp.concatenate([jax.nn.softmax(logits_BK) for logits_BK in logits.values()], -1)


def embed_seen(params, chances_BK: jax.Array, place_BTK: jax.Array, still_BTHWC: jax.Array) -> jax.Array:
    """What the judge reads, and where and on what the shape is (see `judge.View`) -> unit vectors (B, 64)."""
    B = len(chances_BK)
    ground = judges.convolved(params, "ground0", still_BTHWC.reshape(-1, *still_BTHWC.shape[2:]))
    ground_BPC = judges.convolved(params, "ground1", ground).reshape(B, -1, 24)
    x = jnp.concatenate([chances_BK, place_BTK.reshape(B, -1), ground_BPC.mean(1), ground_BPC.max(1)], -1)
    return _unit(_linear(params, "video1", judges.dense(params, "video0", x)))


def embed_text(params, ids_BL: jax.Array) -> jax.Array:
    """Word numbers, 0 at padding -> unit vectors (B, 64)."""
    real_BL1 = (ids_BL > 0)[..., None]
    x_BLD = params["words"][ids_BL] * real_BL1
    padded = jnp.pad(x_BLD, ((0, 0), (1, 1), (0, 0)))
    x_BLD = jnp.concatenate([padded[:, :-2], x_BLD, padded[:, 2:]], -1)
    x_BLD = judges.dense(params, "text0", x_BLD) * real_BL1
    mean_BD = x_BLD.sum(1) / jnp.maximum(real_BL1.sum(1), 1)
    x_BD = judges.dense(params, "text1", jnp.concatenate([x_BLD.max(1), mean_BD], -1))
    return _unit(_linear(params, "text2", x_BD))


def _linear(params, name, x):
    return x @ params[f"{name}.weight"] + params[f"{name}.bias"]


def _unit(x):
    return x * jax.lax.rsqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-12)


@jax.jit
def _embed_clips(params, judge_params, clips_BTHWC):
    return embed_video(params, judge_params, clips_BTHWC.astype(jnp.float32) / 127.5 - 1)


_embed_ids = jax.jit(embed_text)
