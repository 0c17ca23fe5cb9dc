"""An encoder without a network: what a caption's states are can be said at once."""

import ml_dtypes
import numpy as np

from imagen_video_jax.text.embedding_cache import key_of
from imagen_video_jax.text.tokenizer import Tokens

WIDTH = 6


class FakeEncoder:
    """States drawn from the caption; as many tokens as words."""

    name, width = "fake", WIDTH

    def __init__(self, fingerprint="f" * 64, max_length=5):
        self.fingerprint, self.max_length = fingerprint, max_length
        self.seen = []

    def tokenize(self, prompts):
        self.tokenized = prompts
        words = [prompt.split() for prompt in prompts]
        lost = [(p, " ".join(w[self.max_length :])) for p, w in zip(prompts, words) if len(w) > self.max_length]
        lengths_B = np.array([min(len(w), self.max_length) for w in words])
        mask_BL = np.arange(lengths_B.max()) < lengths_B[:, None]
        return Tokens(mask_BL.astype(np.int32), mask_BL, tuple(lost))

    def real_states(self, tokens, dtype, progress=None):
        self.seen += self.tokenized
        if progress:
            progress(len(self.tokenized))
        return [states_of(p)[:length].astype(dtype) for p, length in zip(self.tokenized, tokens.mask_BL.sum(1))]


CAPTIONS = [f"caption number {number}" for number in range(50)] + ["short", "ünïcödé 猫", "lone \ud800 surrogate"]


def states_of(caption):
    """What the cache should give back: as many rows as words, exact in bfloat16."""
    drawn = np.random.default_rng(list(key_of(caption))).normal(size=(len(caption.split()), WIDTH))
    return drawn.astype(ml_dtypes.bfloat16).astype(np.float32)
