"""Prompts -> token numbers: the tokenizer of the default encoder. Says what was cut off.

Padding is number 0 and its mask is False; the caller chooses the length.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
import tokenizers

from imagen_video_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Tokens:
    """ids_BL int32, mask_BL bool, and what did not fit: (prompt, lost text) pairs."""

    ids_BL: np.ndarray
    mask_BL: np.ndarray
    lost: tuple[tuple[str, str], ...] = ()


class WordPieceTokenizer:
    """A `tokenizer.json` of the tokenizers package, e.g. MiniLM's."""

    def __init__(self, path: pathlib.Path):
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises bare Exception
            raise UserError(f"cannot read tokenizer {path}: {error}") from None
        # Length is decided below, not by what the file's author happened to store.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def __call__(self, prompts: Sequence[str], max_length: int) -> Tokens:
        """Tokens of the prompts, padded to the longest of them, none longer than `max_length`."""
        encodings = self._tokenizer.encode_batch(list(prompts))
        length = min(max((len(e.ids) for e in encodings), default=1), max_length)
        ids = np.zeros((len(encodings), length), np.int32)
        mask = np.zeros((len(encodings), length), bool)
        lost = []
        for row, (prompt, encoding) in enumerate(zip(prompts, encodings)):
            kept = list(encoding.ids)
            if len(kept) > max_length:
                # The closing token stays; the text from the first dropped token on is lost.
                lost.append((prompt, prompt[encoding.offsets[max_length - 1][0] :]))
                kept = kept[: max_length - 1] + kept[-1:]
            ids[row, : len(kept)] = kept
            mask[row, : len(kept)] = True
        return Tokens(ids, mask, tuple(lost))
