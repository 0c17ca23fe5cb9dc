"""Trains the caption-video scorer of motion_shapes on endlessly drawn scenes, and says how often it picks right.

    python -m experiments.studies.train_scorer --out scorer.safetensors --judge-out judge.safetensors --minutes 10

The judge's reader of words is trained with it, its other attributes stay as they are. Scenes and damage are those of
`train_judge`, each scene damaged twice and what the judge sees of it kept: damage is what costs time. A video is
compared with the captions of all videos of its batch, and with one caption more per video that says the same but for
one fact. Captions that happen to fit a video without being its own are no counter-examples and are left out. Held-out
combinations are in no caption and no video.
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

from experiments.studies import train_judge
from experiments.studies.train_judge import CHUNK, WARM_UP_STEPS, base_view, damage
from imagen_video_jax import storage
from imagen_video_jax.commands.process import in_one_line
from imagen_video_jax.data.motion_shapes import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    SIZES,
    STYLES,
    WORDS,
    Scene,
    captions_of,
    end_with_parent,
    make_scene,
    paraphrase_of,
    render,
)
from imagen_video_jax.evaluation import judge as judges
from imagen_video_jax.evaluation import scorer as scorers
from imagen_video_jax.evaluation.judge import WEIGHTS, Judge, rate
from imagen_video_jax.evaluation.scorer import Scorer, words_of
from imagen_video_jax.video.frames import resize_uint8

BATCH = 256
STEPS_PER_CHUNK = 30
KEPT_CHUNKS = 48
LOOKED_AT = 128  # clips damaged at once
PEAK_RATE = 3e-3
ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.99), optax.add_decayed_weights(1e-3))
FACTS = {
    "shape": (*SHAPES, "word"),
    "colour": tuple(COLOURS),
    "motion": (*MOTIONS, "appear"),
    "word": ("", *WORDS),
    "style": STYLES,
    "size": ("", *SIZES),
    "background": tuple(BACKGROUNDS),
}
_PHRASINGS = 3  # captions of a scene beside its paraphrase


# Captions, and what they say.


@dataclasses.dataclass(frozen=True)
class Said:
    """A caption with the facts of its scene and which of them it mentions."""

    caption: str
    facts: tuple[int, ...]
    mentioned: tuple[bool, ...]


def said_of(scene: Scene, caption: str, *, paraphrase: bool) -> Said:
    words = set(words_of(caption))
    mentioned = {
        "shape": True,
        "colour": True,
        "motion": not scene.image,
        "word": bool(scene.word),
        "style": scene.style != "plain",
        "size": scene.size in words,
        "background": paraphrase or "background" in words,
    }
    facts = tuple(names.index(getattr(scene, fact)) for fact, names in FACTS.items())
    return Said(caption, facts, tuple(mentioned[fact] for fact in FACTS))


def all_said(scene: Scene) -> list[Said]:
    """Three captions and the paraphrase."""
    own = [said_of(scene, caption, paraphrase=False) for caption in captions_of(scene, _PHRASINGS)]
    return [*own, said_of(scene, paraphrase_of(scene), paraphrase=True)]


def neighbour(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with one fact changed, never one that is held out."""
    facts = ["colour", "background"]
    facts += ["word"] if scene.word else ["shape", "shape", "size"]
    facts += ["style"] if scene.image else ["motion", "motion"] if not scene.word else []
    while True:
        fact = facts[rng.integers(len(facts))]
        values = [value for value in FACTS[fact] if value not in ("", "word", "appear", getattr(scene, fact))]
        other = dataclasses.replace(scene, **{fact: values[rng.integers(len(values))]})
        if not other.held_out:
            return other


def fits(facts_VF: np.ndarray, facts_CF: np.ndarray, mentioned_CF: np.ndarray) -> np.ndarray:
    """Whether each caption is true of each video: (V, C)."""
    return (~mentioned_CF[None] | (facts_VF[:, None] == facts_CF[None])).all(-1)


def vocabulary(scenes: int = 4000) -> dict[str, int]:
    """Every word of captions and paraphrases -> its number."""
    words = {word.lower() for word in WORDS}
    for index, image in itertools.product(range(scenes), (False, True)):
        for said in all_said(make_scene(0, index, image=image)):
            words.update(words_of(said.caption))
    return {word: number for number, word in enumerate(sorted(words), start=1)}


def draw_chunk(seed: int, number: int, words: dict[str, int]):
    """Videos uint8 (CHUNK, 8, 24, 40, 3), and of 4 own and 2 neighbours' captions: ids, facts and what is mentioned."""
    video_BTHWC, _ = train_judge.draw_chunk(seed, number)
    rng = np.random.default_rng([seed, number, 3])
    said = []
    for index in range(number * CHUNK, (number + 1) * CHUNK):
        scene = train_judge.training_scene(seed, index)
        others = all_said(neighbour(scene, rng))
        said += [*all_said(scene), others[rng.integers(_PHRASINGS)], others[-1]]
    ids = Scorer({}, words, None).tokenize([one.caption for one in said])
    rows = ids, np.array([one.facts for one in said]), np.array([one.mentioned for one in said])
    return video_BTHWC, *(row.reshape(CHUNK, _PHRASINGS + 3, -1) for row in rows)


# Training.


@jax.jit
def look(judge_params, video_BTHWC, key):
    """What the judge reads and sees of damaged clips, word aside: chances, view of the word, place, whole frames."""
    seen = judges.view(damage(video_BTHWC, key))
    read = {name: value for name, value in judges.classified(judge_params, seen).items() if name != "word"}
    found = scorers.chances_of(read), seen.line_BHWC, seen.place_BTK, seen.still_BTHWC
    return jax.tree.map(lambda array: array.astype(jnp.float16), found)


def loss(params, seen, ids_CL, words_V, excluded_VC):
    """Cross-entropy of picking the caption of each video among all, and the video of each caption of the batch's own.

    The first captions are the videos' own, in order. Plus that of the judge's reader of words, which learns by itself.
    """
    chances_VK, line_VHWC, place_VTK, still_VTHWC = (array.astype(jnp.float32) for array in seen)
    word_VK = judges.word_logits(params, line_VHWC)
    target_VK = optax.smooth_labels(jax.nn.one_hot(words_V, word_VK.shape[-1]), 0.02)
    read_word = optax.softmax_cross_entropy(word_VK, target_VK).mean()
    chances_VK = jnp.concatenate([chances_VK, jax.lax.stop_gradient(jax.nn.softmax(word_VK))], -1)
    video_VD = scorers.embed_seen(params, chances_VK, place_VTK, still_VTHWC)
    text_CD = scorers.embed_text(params, ids_CL)
    scale = jnp.exp(jnp.minimum(params["log_scale"], math.log(100.0)))
    logits_VC = jnp.where(excluded_VC, -1e9, scale * video_VD @ text_CD.T)
    own_V = jnp.arange(len(video_VD))
    pick_caption = optax.softmax_cross_entropy_with_integer_labels(logits_VC, own_V).mean()
    pick_video = optax.softmax_cross_entropy_with_integer_labels(logits_VC[:, : len(own_V)].T, own_V).mean()
    return pick_caption + pick_video + read_word, (pick_caption, pick_video, read_word)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def train_step(params, state, seen, ids_CL, words_V, excluded_VC, rate):
    gradient, values = jax.grad(loss, has_aux=True)(params, seen, ids_CL, words_V, excluded_VC)
    update, state = ADAM.update(gradient, state, params)
    return optax.apply_updates(params, jax.tree.map(lambda u: -rate * u, update)), state, values


def batch_of(pool, filled: int, rng: np.random.Generator):
    """What is seen of some videos, captions (own first, then neighbours') and which pairs fit by chance."""
    *seen, ids_NKL, facts_NKF, mentioned_NKF = pool
    chosen_B = rng.integers(filled, size=BATCH)
    own_B, other_B = rng.integers(_PHRASINGS + 1, size=BATCH), _PHRASINGS + 1 + rng.integers(2, size=BATCH)

    def captions(values_NK):
        return np.concatenate([values_NK[chosen_B, own_B], values_NK[chosen_B, other_B]])

    facts_BF = facts_NKF[chosen_B, 0]
    excluded_VC = fits(facts_BF, captions(facts_NKF), captions(mentioned_NKF)) & ~np.eye(BATCH, 2 * BATCH, dtype=bool)
    words_B = facts_BF[:, list(FACTS).index("word")]
    return [array[chosen_B] for array in seen], captions(ids_NKL), words_B, excluded_VC


def stored(pool, begin: int, chunk, judge_params, key):
    """Puts a chunk's videos, damaged twice, and their captions into the pool at row `begin`."""
    video_NTHWC, *captions = chunk
    for part in range(0, 2 * CHUNK, LOOKED_AT):
        rows = np.arange(part, part + LOOKED_AT) % CHUNK
        seen = look(judge_params, video_NTHWC[rows], jax.random.fold_in(key, part))
        new = [np.asarray(array) for array in seen] + [values[rows] for values in captions]
        pool = pool or [np.empty((2 * CHUNK * KEPT_CHUNKS, *array.shape[1:]), array.dtype) for array in new]
        for kept, array in zip(pool, new):
            kept[begin + part : begin + part + LOOKED_AT] = array
    return pool


def train(*, minutes: float, seed: int, workers: int) -> tuple[Scorer, dict]:
    """Trains until the time is up, the rate falling by a cosine of the time used; the scorer and the judge's params."""
    began = time.monotonic()
    key, words, rng = jax.random.key(seed), vocabulary(), np.random.default_rng(seed)
    judge = judges.init(key) | safetensors.numpy.load_file(WEIGHTS)
    judge = {name: jnp.asarray(value, jnp.float32) for name, value in judge.items()}
    reader = {name: value for name, value in judge.items() if name.startswith("word")}
    params = scorers.init(jax.random.fold_in(key, 0), len(words)) | reader
    state, pool, step = ADAM.init(params), None, 0
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent) as drawers:
        coming = [drawers.submit(draw_chunk, seed, number, words) for number in range(4)]
        for number in itertools.count():
            coming.append(drawers.submit(draw_chunk, seed, number + 4, words))
            begin = 2 * CHUNK * (number % KEPT_CHUNKS)
            pool = stored(pool, begin, coming.pop(0).result(), judge, jax.random.fold_in(key, number + 1))
            for _ in range(STEPS_PER_CHUNK):
                used = (time.monotonic() - began) / (60 * minutes)
                rate = PEAK_RATE * min(step / WARM_UP_STEPS, 1) * 0.5 * (1 + math.cos(math.pi * min(used, 1)))
                batch = batch_of(pool, 2 * CHUNK * min(number + 1, KEPT_CHUNKS), rng)
                params, state, values = train_step(params, state, *batch, rate)
                step += 1
            losses = "  ".join(f"{value:.3f}" for value in values)
            print(f"step {step}  {used:4.0%} of the time  losses {losses}", flush=True)
            if used >= 1:
                drawers.shutdown(cancel_futures=True)
                print(f"{step} steps of {BATCH}, {(number + 1) * CHUNK} scenes, {minutes:g} minutes")
                break
    judge |= {name: params.pop(name) for name in reader}
    return Scorer(params, words, Judge(judge)), judge


# How often it picks right.


def picks(scorer: Scorer, videos, scenes, *, paraphrase: bool, pool: int, seed: int) -> dict[str, dict]:
    """Shares, each with its interval, of videos whose best caption is true of them.

    "pool": among its own and `pool` - 1 captions of other scenes. "pair": against one that is false
    by a single fact.
    """
    rng = np.random.default_rng(seed)

    def caption(scene):
        return all_said(scene)[-1 if paraphrase else rng.integers(_PHRASINGS)]

    own, other = [caption(s) for s in scenes], [caption(neighbour(s, rng)) for s in scenes]
    video_ND = scorer.video_features(videos)
    own_ND, other_ND = (scorer.text_features([said.caption for said in all_]) for all_ in (own, other))
    facts, mentioned = np.array([said.facts for said in own]), np.array([said.mentioned for said in own])
    scores_NN, fit_NN = video_ND @ own_ND.T, fits(facts, facts, mentioned)
    right = 0
    for n in range(len(videos)):
        rest = rng.permutation(np.delete(np.arange(len(videos)), n))[: pool - 1]
        candidates = np.append(rest, n)
        right += fit_NN[n, candidates[scores_NN[n, candidates].argmax()]]
    pair_N = np.einsum("nd,nd->n", video_ND, own_ND) > np.einsum("nd,nd->n", video_ND, other_ND)
    changed = np.array([said.facts for said in other]), np.array([said.mentioned for said in other])
    false_N = ~np.diagonal(fits(facts, *changed))  # a caption may leave out the fact that was changed
    return {"pool": rate(int(right), len(videos)), "pair": rate(int(pair_N[false_N].sum()), int(false_N.sum()))}


def table(scorer: Scorer, *, count: int, seed: int, pool: int) -> dict[str, dict]:
    """How often it picks right for clips of two splits at two sizes, and for images in all styles."""
    rows = {}
    for split in ("held_out", "validation"):
        scenes = [make_scene(seed, index, split=split) for index in range(count)]
        videos = [render(scene) for scene in scenes]
        small = [base_view(video) for video in videos]
        kinds = (("64x96x160", videos, False), ("paraphrased", videos, True), ("8x12x20", small, False))
        for title, shown, paraphrase in kinds:
            rows[f"{split} {title}"] = picks(scorer, shown, scenes, paraphrase=paraphrase, pool=pool, seed=seed)
    scenes = [make_scene(seed, index, split="validation", image=True) for index in range(count)]
    images = [render(scene, frames=1) for scene in scenes]
    rows["images 96x160"] = picks(scorer, images, scenes, paraphrase=False, pool=pool, seed=seed)
    small = [resize_uint8(image, 12, 20) for image in images]
    rows["images 12x20"] = picks(scorer, small, scenes, paraphrase=False, pool=pool, seed=seed)
    return rows


def print_table(rows: dict[str, dict], pool: int) -> None:
    print(f"{'':26}{f'best of {pool} captions':>26}{'one fact changed':>26}")
    for title, scores in rows.items():
        cells = [f"{s['accuracy']:.1%} [{s['interval'][0]:.1%}, {s['interval'][1]:.1%}]" for s in scores.values()]
        print(f"{title:26}" + "".join(f"{cell:>26}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--judge-out", type=pathlib.Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=2210)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw scenes")
    parser.add_argument("--count", type=int, default=400, help="clips per row of the table")
    parser.add_argument("--pool", type=int, default=100, help="captions to pick from")
    arguments = parser.parse_args()
    trained, judge = train(minutes=arguments.minutes, seed=arguments.seed, workers=arguments.workers)
    storage.write_bytes(arguments.out, trained.saved())
    halves = {name: np.asarray(value, np.float16) for name, value in judge.items()}
    storage.write_bytes(arguments.judge_out, safetensors.numpy.save(halves))
    reloaded = Scorer.load(arguments.out, Judge.load(arguments.judge_out))
    rows = table(reloaded, count=arguments.count, seed=arguments.seed + 1, pool=arguments.pool)
    print_table(rows, arguments.pool)
    train_judge.print_table(train_judge.table(reloaded.judge, count=arguments.count, seed=arguments.seed + 1))


if __name__ == "__main__":
    sys.exit(in_one_line(main))
