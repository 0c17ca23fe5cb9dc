"""How much of a prompt in unseen words can be told from its tokens: a linear reader of the text encoder's output.

    python -m experiments.studies.unseen_words

For colour, shape and motion a linear map scores every token, and the caption by the (soft) largest score, as attention
to text could. That is no bound, but says how near the tokens of unseen words lie to those of the captions. It learns
from the captions of 2500 training scenes, without and with noise on the tokens (of so many standard deviations of each
of their numbers), and reads 300 captions of validation scenes and the paraphrases of the same scenes, in words that no
caption uses. "nearest" learns nothing: it takes the labels of the training caption whose mean token is most similar,
which is what MiniLM was trained to find.
"""

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from imagen_video_jax.cascade import fit_length
from imagen_video_jax.commands.process import in_one_line
from imagen_video_jax.data import motion_shapes
from imagen_video_jax.evaluation import scenes
from imagen_video_jax.text.embed import TextEncoder

ATTRIBUTES = {
    "colour": tuple(motion_shapes.COLOURS),
    "shape": tuple(motion_shapes.SHAPES),
    "motion": tuple(motion_shapes.MOTIONS),
}
TRAIN, TEST, LENGTH, STEPS, BATCH = 2500, 300, 32, 400, 64
SHOWN = ("validation", "paraphrase")
SHARPNESS = 3.0  # of the largest score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--noise", nargs="+", type=float, default=[0.0, 0.5, 1.0, 2.0])
    noises = parser.parse_args().noise
    encoder = TextEncoder.minilm()
    splits = {"train": TRAIN, "validation": TEST, "paraphrase": TEST}
    sets = {split: read(encoder, scenes.prompts_of_scenes(split, count)) for split, count in splits.items()}
    text_NLD, mask_NL, _ = sets["train"]
    mean_D, std_D = text_NLD[mask_NL].mean(0), text_NLD[mask_NL].std(0) + 1e-3
    raw, sets = sets, {split: ((text - mean_D) / std_D, mask, labels) for split, (text, mask, labels) in sets.items()}
    print("| noise, or reader | prompts | " + " | ".join(ATTRIBUTES) + " |\n" + "|---" * (2 + len(ATTRIBUTES)) + "|")
    show("nearest", {split: nearest(raw["train"], raw[split]) for split in SHOWN}, raw)
    for noise in noises:
        params = fitted(*sets["train"], noise)
        scores = {split: score(params, *sets[split][:2]) for split in SHOWN}
        found = {split: {name: np.argmax(s, -1) for name, s in own.items()} for split, own in scores.items()}
        show(f"{noise:g}", found, sets)


def show(reader: str, found: dict[str, dict], sets: dict) -> None:
    """A row of the table for each split: how often the labels that were `found` are those of the scenes."""
    for split, labels in found.items():
        shares = [np.mean(labels[name] == sets[split][2][name]) for name in ATTRIBUTES]
        print(f"| {reader} | {split} | " + " | ".join(f"{share:.0%}" for share in shares) + " |", flush=True)


def nearest(train, others) -> dict[str, np.ndarray]:
    """Labels of the training captions that are nearest to `others`, by the cosine of mean tokens."""

    def means(text_NLD, mask_NL):
        sums_ND = (text_NLD * mask_NL[..., None]).sum(1)  # the mean's direction
        return sums_ND / np.linalg.norm(sums_ND, axis=-1, keepdims=True)

    closest = np.argmax(means(*others[:2]) @ means(*train[:2]).T, axis=-1)
    return {name: labels[closest] for name, labels in train[2].items()}


def read(encoder: TextEncoder, prompts: scenes.Prompts):
    """(tokens [N, L, D], mask [N, L], attribute -> number of the label [N]) of the prompts that show no word."""
    chosen = [i for i, scene in enumerate(prompts.scenes) if not scene.word]
    tokens, masks = zip(
        *(encoder([prompts.captions[i] for i in chosen[at : at + 64]]) for at in range(0, len(chosen), 64))
    )
    labels = {
        name: np.array([values.index(getattr(prompts.scenes[i], name)) for i in chosen])
        for name, values in ATTRIBUTES.items()
    }
    return (
        np.concatenate([fit_length(one, LENGTH) for one in tokens]),
        np.concatenate([fit_length(one, LENGTH) for one in masks]),
        labels,
    )


def score(params, text_NLD, mask_NL) -> dict[str, jax.Array]:
    """attribute -> a score for each of its values, [N, values]."""

    def largest(name):
        token_NLK = text_NLD @ params[name]["weight"] + params[name]["bias"]
        masked_NLK = jnp.where(mask_NL[..., None], SHARPNESS * token_NLK, -1e9)
        return jax.nn.logsumexp(masked_NLK, axis=1) / SHARPNESS

    return {name: largest(name) for name in ATTRIBUTES}


def fitted(text_NLD, mask_NL, labels, noise: float):
    """The linear reader of the captions, trained with noise on the tokens."""
    width = text_NLD.shape[-1]
    params = {n: {"weight": jnp.zeros((width, len(v))), "bias": jnp.zeros(len(v))} for n, v in ATTRIBUTES.items()}
    optimizer = optax.adamw(3e-3, weight_decay=0.1)

    def loss(params, text, mask, labels):
        scores = score(params, text, mask)
        each = [optax.softmax_cross_entropy_with_integer_labels(scores[n], labels[n]).mean() for n in ATTRIBUTES]
        return sum(each)

    @jax.jit
    def step(params, state, text, mask, labels, key):
        noisy = text + noise * jax.random.normal(key, text.shape)
        updates, state = optimizer.update(jax.grad(loss)(params, noisy, mask, labels), state, params)
        return optax.apply_updates(params, updates), state

    state, rng = optimizer.init(params), np.random.default_rng(0)
    for number in range(STEPS):
        chosen = rng.integers(len(text_NLD), size=BATCH)
        batch = text_NLD[chosen], mask_NL[chosen], {name: values[chosen] for name, values in labels.items()}
        params, state = step(params, state, *batch, jax.random.key(number))
    return params


if __name__ == "__main__":
    sys.exit(in_one_line(main))
