"""Trains the judge of motion_shapes videos on endlessly drawn scenes, and says how well it reads.

    python -m experiments.studies.train_judge --out judge.safetensors --minutes 10

Training scenes are of the split "train": combinations that are held out of a generator's training are held out of the
judge's too, so that its reading of them is tested as well. Each scene is seen a few times, each time damaged anew as a
generator would: lower resolution, ghosts of neighbouring frames, blur, noise, weak
colour resolution, shifted tones.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import itertools
import math
import multiprocessing
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy

from imagen_video_jax import storage
from imagen_video_jax.commands.process import in_one_line
from imagen_video_jax.data.motion_shapes import STYLES, WORDS, Scene, end_with_parent, make_scene, render
from imagen_video_jax.data.motion_shapes_scene import WORD_MOTION, WORD_SHAPE
from imagen_video_jax.evaluation import judge as judges
from imagen_video_jax.evaluation.judge import ATTRIBUTES, FRAMES, HEIGHT, WIDTH, Judge
from imagen_video_jax.video.frames import resize_uint8

BATCH = 128
CHUNK = 512  # scenes drawn at a time
STEPS_PER_CHUNK = 12
KEPT_CHUNKS = 16
PEAK_RATE = 2e-3
WARM_UP_STEPS = 100
_MIRRORED = {"left": "right", "right": "left"}
_REVERSED = _MIRRORED | {"up": "down", "down": "up", "grow": "shrink", "shrink": "grow"}


# Scenes.


def training_scene(seed: int, index: int) -> Scene:
    """Mostly plain clips; a fifth are images in any style, a fifth words, a twentieth clips in a style."""
    if index % 5 == 0:
        return make_scene(seed, index, image=True)
    scene = make_scene(seed, index)
    if index % 5 == 3:
        word = WORDS[index // 5 % len(WORDS)]
        return dataclasses.replace(scene, shape=WORD_SHAPE, motion=WORD_MOTION, size="", word=word)
    if index % 20 == 1:
        return dataclasses.replace(scene, style=STYLES[1 + index // 20 % (len(STYLES) - 1)])
    return scene


def labels_of(scene: Scene) -> list[int]:
    return [names.index(getattr(scene, attribute)) for attribute, names in ATTRIBUTES.items()]


def draw_chunk(seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Chunk `number` of training data: uint8 (CHUNK, 8, 24, 40, 3) and labels int32 (CHUNK, 5)."""
    scenes = [training_scene(seed, index) for index in range(number * CHUNK, (number + 1) * CHUNK)]
    clips = [
        render(scene, frames=1 if scene.image else FRAMES, height=HEIGHT, width=WIDTH, fps=3.0) for scene in scenes
    ]
    video_BTHWC = np.stack([np.repeat(clip, FRAMES // len(clip), axis=0) for clip in clips])
    return video_BTHWC, np.array([labels_of(scene) for scene in scenes], np.int32)


# Damage.


def _resized(video_BTHWC, height, width):
    B, T, _, _, C = video_BTHWC.shape
    return jax.image.resize(video_BTHWC, (B, T, height, width, C), "linear", antialias=True)


def _sometimes(key, share, changed, unchanged):
    """`changed` for a share of the batch, `unchanged` for the rest."""
    chosen_B = jax.random.bernoulli(key, share, (len(changed),))
    return jnp.where(chosen_B.reshape(-1, *[1] * (changed.ndim - 1)), changed, unchanged)


def _uniform(key, low, high, shape):
    return jax.random.uniform(key, shape, minval=low, maxval=high)


def damage(video_BTHWC, key):
    """What generators and encoders do to a clip, at random strength; float32 in about [-1, 1]."""
    keys = iter(jax.random.split(key, 16))
    B, T, H, W, _ = video_BTHWC.shape
    x = video_BTHWC.astype(jnp.float32) / 127.5 - 1
    ghosts = (jnp.concatenate([x[:, :1], x[:, :-1]], 1) + jnp.concatenate([x[:, 1:], x[:, -1:]], 1)) / 2
    x = _sometimes(next(keys), 0.2, 0.7 * x + 0.3 * ghosts, x)
    for height, share in ((H // 2, 0.4), (3 * H // 4, 0.2)):
        low = _resized(_resized(x, height, height * W // H), H, W)
        x = _sometimes(next(keys), share, low, x)
    sharpness_B1111 = _uniform(next(keys), -0.4, 1.0, (B, 1, 1, 1, 1))  # below 0: sharpened
    blurred = _resized(_resized(x, 2 * H // 3, 2 * W // 3), H, W)
    x = _sometimes(next(keys), 0.5, x + sharpness_B1111 * (blurred - x), x)
    grey = x.mean(-1, keepdims=True)
    x = _sometimes(next(keys), 0.4, grey + _resized(_resized(x - grey, H // 2, W // 2), H, W), x)
    x = x * _uniform(next(keys), 0.92, 1.08, (B, 1, 1, 1, 3)) * _uniform(next(keys), 0.8, 1.1, (B, 1, 1, 1, 1))
    x = x + _uniform(next(keys), -0.1, 0.1, (B, 1, 1, 1, 1))
    x = x + _uniform(next(keys), 0.0, 0.12, (B, 1, 1, 1, 1)) * _sometimes(
        next(keys), 0.6, jax.random.normal(next(keys), x.shape), jnp.zeros_like(x)
    )
    patches = jax.random.normal(next(keys), (B, T, H // 4, W // 4, 3))
    x = x + _uniform(next(keys), 0.0, 0.15, (B, 1, 1, 1, 1)) * _resized(patches, H, W)
    return jnp.clip(x, -1.1, 1.1)


def _renamed(names: dict[str, str]) -> np.ndarray:
    """Motion number -> motion number after mirroring or reversing."""
    motions = ATTRIBUTES["motion"]
    return np.array([motions.index(names.get(motion, motion)) for motion in motions])


def mirror_and_reverse(video_BTHWC: np.ndarray, labels_BA: np.ndarray, rng: np.random.Generator):
    """Half of the clips mirrored and half run backwards, their motion renamed; words are left as they are."""
    video_BTHWC, labels_BA = video_BTHWC.copy(), labels_BA.copy()
    plain_B = labels_BA[:, 1] != ATTRIBUTES["shape"].index("word")
    for names, axis in ((_MIRRORED, 3), (_REVERSED, 1)):
        chosen_B = plain_B & (rng.random(len(plain_B)) < 0.5)
        video_BTHWC[chosen_B] = np.flip(video_BTHWC[chosen_B], axis)
        labels_BA[chosen_B, 2] = _renamed(names)[labels_BA[chosen_B, 2]]
    return video_BTHWC, labels_BA


# Training.

_ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.99), optax.add_decayed_weights(1e-3))


def loss(params, video_BTHWC, labels_BA, key):
    """Cross-entropy summed over the attributes, labels softened a little so that confidence stays meaningful."""
    predicted = judges.logits(params, damage(video_BTHWC, key))
    total = 0.0
    for a, name in enumerate(ATTRIBUTES):
        target_BK = optax.smooth_labels(jax.nn.one_hot(labels_BA[:, a], len(ATTRIBUTES[name])), 0.02)
        total += optax.softmax_cross_entropy(predicted[name], target_BK).mean()
    return total


@functools.partial(jax.jit, donate_argnums=(0, 1))
def train_step(params, state, video_BTHWC, labels_BA, key, rate):
    value, gradient = jax.value_and_grad(loss)(params, video_BTHWC, labels_BA, key)
    update, state = _ADAM.update(gradient, state, params)
    return optax.apply_updates(params, jax.tree.map(lambda u: -rate * u, update)), state, value


def train(*, minutes: float, seed: int, workers: int):
    """Trains until the time is up, the rate falling by a cosine of the time used; returns the params."""
    began = time.monotonic()
    key = jax.random.key(seed)
    params = judges.init(jax.random.fold_in(key, 0))
    state, rng = _ADAM.init(params), np.random.default_rng(seed)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent) as pool:
        coming = [pool.submit(draw_chunk, seed, number) for number in range(4)]
        chunks, step = [], 0
        for number in itertools.count(4):
            coming.append(pool.submit(draw_chunk, seed, number))
            chunks = [*chunks, coming.pop(0).result()][-KEPT_CHUNKS:]
            video_NTHWC, labels_NA = (np.concatenate(part) for part in zip(*chunks))
            for _ in range(STEPS_PER_CHUNK):
                used = (time.monotonic() - began) / (60 * minutes)
                rate = PEAK_RATE * min(step / WARM_UP_STEPS, 1) * 0.5 * (1 + math.cos(math.pi * min(used, 1)))
                chosen_B = rng.integers(len(video_NTHWC), size=BATCH)
                batch = mirror_and_reverse(video_NTHWC[chosen_B], labels_NA[chosen_B], rng)
                params, state, value = train_step(params, state, *batch, jax.random.fold_in(key, step + 1), rate)
                step += 1
            print(f"step {step}  {used:4.0%} of the time  loss {value:.3f}", flush=True)
            if used >= 1:
                pool.shutdown(cancel_futures=True)
                print(f"{step} steps of {BATCH}, {(number - 3) * CHUNK} scenes, {minutes:g} minutes")
                break
    return params


# How well it reads.


def base_view(video_THWC: np.ndarray) -> np.ndarray:
    """What a miniature base model could keep of a clip, 8x12x20 at 3 fps, brought back up to 96x160."""
    small_THWC = resize_uint8(video_THWC[::8], 12, 20)
    return np.repeat(resize_uint8(small_THWC, 96, 160), 8, axis=0)


def table(judge: Judge, *, count: int, seed: int) -> dict[str, dict]:
    """Accuracy per attribute of clips from two splits at two sizes, and of images in all styles."""
    rows = {}
    for split in ("held_out", "validation"):
        scenes = [make_scene(seed, index, split=split) for index in range(count)]
        videos = [render(scene) for scene in scenes]
        rows[f"{split} 64x96x160"] = judge.score(videos, scenes)
        rows[f"{split} 8x12x20"] = judge.score([base_view(video) for video in videos], scenes)
    scenes = [make_scene(seed, index, split="validation", image=True) for index in range(count)]
    images = [render(scene, frames=1) for scene in scenes]
    rows["images 96x160"] = judge.score(images, scenes)
    rows["images 12x20"] = judge.score([resize_uint8(image, 12, 20) for image in images], scenes)
    return rows


def print_table(rows: dict[str, dict]) -> None:
    names = (*ATTRIBUTES, "all")
    print(f"{'':22}" + "".join(f"{name:>22}" for name in names))
    for title, scores in rows.items():
        cells = [
            f"{s['accuracy']:.1%} [{s['interval'][0]:.1%}, {s['interval'][1]:.1%}]" if s else "-"
            for s in map(scores.get, names)
        ]
        print(f"{title:22}" + "".join(f"{cell:>22}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=2210)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw scenes")
    parser.add_argument("--count", type=int, default=500, help="clips per row of the table")
    arguments = parser.parse_args()
    params = train(minutes=arguments.minutes, seed=arguments.seed, workers=arguments.workers)
    arrays = {name: np.asarray(value, np.float16) for name, value in params.items()}
    storage.write_bytes(arguments.out, safetensors.numpy.save(arrays))
    print_table(table(Judge.load(arguments.out), count=arguments.count, seed=arguments.seed + 1))


if __name__ == "__main__":
    sys.exit(in_one_line(main))
