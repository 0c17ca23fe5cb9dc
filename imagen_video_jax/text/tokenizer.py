"""Prompts -> token numbers: T5's SentencePiece and the default encoder's WordPiece. Says what was cut off.

Padding is number 0 and its mask is False; the caller chooses the length.
"""

import dataclasses
import os
import re
from collections.abc import Sequence

import numpy as np
import sentencepiece
import tokenizers

from imagen_video_jax.errors import UserError

# Sentinels of T5's pre-training, numbered down from the last id; not in the SentencePiece file.
_SENTINELS = 100
_SENTINEL = re.compile(r"<extra_id_(\d{1,2})>")
# Embedding tables are padded to a round number of rows, by less than this.
_SPARE_ROWS = 1024


@dataclasses.dataclass(frozen=True)
class Tokens:
    """ids_BL int32, mask_BL bool, and what did not fit: (prompt, lost text) pairs."""

    ids_BL: np.ndarray
    mask_BL: np.ndarray
    lost: tuple[tuple[str, str], ...] = ()


class SentencePieceTokenizer:
    """T5's `spiece.model`: text, then the closing token 1; `<extra_id_0>` and so on are sentinels."""

    def __init__(self, path: str | os.PathLike, rows: int):
        """UserError where `path` is no T5 vocabulary, or not the one of weights with `rows` embeddings."""
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=os.fspath(path))
        except (RuntimeError, OSError, ValueError) as error:
            raise UserError(f"cannot read vocabulary {path}: {error}") from None
        size = self._pieces.get_piece_size()
        if (self._pieces.pad_id(), self._pieces.eos_id()) != (0, 1):
            raise UserError(
                f"{path} is no T5 vocabulary: its padding and closing ids are {self._pieces.pad_id()} and "
                f"{self._pieces.eos_id()}, not 0 and 1"
            )
        if not size <= rows < size + _SENTINELS + _SPARE_ROWS:
            raise UserError(
                f"vocabulary {path} has {size} pieces, the weights {rows} rows: they do not belong together"
            )
        # A vocabulary that fills the table by itself has no sentinels, or holds them as pieces.
        self._ids = size + (_SENTINELS if size + _SENTINELS <= rows else 0)
        self._sentinels = self._ids - size

    def __call__(self, prompts: Sequence[str], max_length: int) -> Tokens:
        """Tokens of the prompts, padded to the longest of them, none longer than `max_length`."""
        clean = [_encodable(prompt) for prompt in prompts]
        encoded = [self._encode(prompt) for prompt in clean]
        kept, lost = [], []
        for given, prompt, ids in zip(prompts, clean, encoded):
            if len(ids) > max_length - 1:
                lost.append((given, self._surface(prompt, max_length - 1)))
            kept.append([*ids[: max_length - 1], self._pieces.eos_id()])
        return _padded(kept, lost)

    def _parts(self, prompt: str):
        """Text and sentinels (as numbers), in order."""
        begin = 0
        for match in _SENTINEL.finditer(prompt):
            if int(match[1]) < self._sentinels:
                yield prompt[begin : match.start()]
                yield int(match[1])
                begin = match.end()
        yield prompt[begin:]

    def _encode(self, prompt: str) -> list[int]:
        ids = []
        for part in self._parts(prompt):
            ids += [self._ids - 1 - part] if isinstance(part, int) else self._pieces.encode(part)
        return ids

    def _surface(self, prompt: str, first: int) -> str:
        """The text of the tokens from number `first` on."""
        surfaces = []
        for part in self._parts(prompt):
            if isinstance(part, int):
                surfaces.append(f"<extra_id_{part}>")
            else:
                surfaces += [piece.surface for piece in self._pieces.encode(part, out_type="proto").pieces]
        return "".join(surfaces[first:]).strip()


class WordPieceTokenizer:
    """A `tokenizer.json` of the tokenizers package, e.g. MiniLM's."""

    def __init__(self, path: str | os.PathLike):
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises bare Exception
            raise UserError(f"cannot read tokenizer {path}: {error}") from None
        # Length is decided below, not by what the file's author happened to store.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def __call__(self, prompts: Sequence[str], max_length: int) -> Tokens:
        """Tokens of the prompts, padded to the longest of them, none longer than `max_length`."""
        encodings = self._tokenizer.encode_batch([_encodable(prompt) for prompt in prompts])
        rows, lost = [], []
        for prompt, encoding in zip(prompts, encodings):
            kept = list(encoding.ids)
            if len(kept) > max_length:
                # The closing token stays; the text from the first dropped token on is lost.
                lost.append((prompt, prompt[encoding.offsets[max_length - 1][0] :]))
                kept = kept[: max_length - 1] + kept[-1:]
            rows.append(kept)
        return _padded(rows, lost)


def _encodable(prompt: str) -> str:
    """Lone surrogates, which JSON files can hold, are no text: a question mark each."""
    return prompt.encode("utf-8", "replace").decode()


def _padded(rows: list[list[int]], lost: list[tuple[str, str]]) -> Tokens:
    length = max(map(len, rows), default=1)
    ids = np.zeros((len(rows), length), np.int32)
    mask = np.zeros((len(rows), length), bool)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
        mask[number, : len(row)] = True
    return Tokens(ids, mask, tuple(lost))
