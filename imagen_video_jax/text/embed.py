"""`TextEncoder`: prompts -> text_BLD, mask_BL; jitted, in length buckets."""

import hashlib
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from imagen_video_jax import functional, storage
from imagen_video_jax.errors import UserError
from imagen_video_jax.text import minilm_encoder
from imagen_video_jax.text.tokenizer import Tokens, WordPieceTokenizer

# Token counts that a program is compiled for: short prompts are not padded to the maximum.
BUCKETS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


class TextEncoder:
    """A frozen text encoder.

    Attributes:
      name, width, max_length: of the encoder.
      fingerprint: sha256 over name, weights, tokenizer and maximum length: what an embedding depends on.
    """

    def __init__(
        self,
        *,
        name: str,
        apply: Callable,
        params,
        tokenizer: Callable[[Sequence[str], int], Tokens],
        width: int,
        vocabulary: int,
        max_length: int,
        positions: int | None,
        fingerprint: str,
    ):
        """`apply` is (params, ids_BL, mask_BL) -> states BLD; `positions` is the longest row it takes (None: any)."""
        self.name, self.width, self.max_length, self.fingerprint = name, width, max_length, fingerprint
        self._params, self._tokenizer = params, tokenizer
        self._vocabulary, self._positions = vocabulary, positions

        def apply_exactly(*arguments):
            # Accelerators would round the inputs of float32 products; embeddings are compared across machines.
            with jax.default_matmul_precision("highest"):
                return apply(*arguments)

        self._apply = jax.jit(apply_exactly)

    @classmethod
    def minilm(cls, max_length: int = 64) -> "TextEncoder":
        """The embedded default, 384 wide; UserError for a length that it cannot take, or with the wheel missing."""
        config = minilm_encoder.MiniLMConfig()
        if not 3 <= max_length <= config.positions:
            raise UserError(f"max_length must be 3 to {config.positions} tokens, got {max_length}")
        folder = minilm_encoder.model_folder()
        files = [folder / "model.safetensors", folder / "tokenizer.json"]
        network = functional.split(lambda rngs: minilm_encoder.MiniLMEncoder(config))
        return cls(
            name="minilm",
            apply=network.apply,
            params=jax.tree.map(jax.numpy.asarray, minilm_encoder.load_params(files[0], config)),
            tokenizer=WordPieceTokenizer(files[1]),
            width=config.width,
            vocabulary=config.vocabulary,
            max_length=max_length,
            positions=config.positions,
            fingerprint=fingerprint_of("minilm", files, max_length),
        )

    def tokenize(self, prompts: Sequence[str]) -> Tokens:
        return self._tokenizer(prompts, self.max_length)

    def __call__(
        self, prompts: Sequence[str], *, batch_size: int = 32, progress: Callable[[int], None] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Embeds prompts: (text_BLD float32, mask_BL), L the longest prompt's length; zeros at padding.

        What `tokenize` says was cut off is not embedded.

        Args:
          batch_size: prompts at once.
          progress: called with the number of prompts done.
        """
        tokens = self.tokenize(prompts)
        return self._embed(tokens.ids_BL, tokens.mask_BL, batch_size, progress), tokens.mask_BL

    def embed_ids(
        self, ids_BL: np.ndarray, *, batch_size: int = 32, progress: Callable[[int], None] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Embeds token numbers as given, 0 at padding: (text_BLD float32, mask_BL); B and L are kept.

        Raises:
          UserError: ids that are no (B, L) array of whole numbers, or outside the vocabulary; rows too long.
        """
        if ids_BL.ndim != 2 or ids_BL.dtype.kind not in "iu" or not ids_BL.shape[1]:
            raise UserError(f"ids must be whole numbers (N, L) with L at least 1, got {ids_BL.dtype}{ids_BL.shape}")
        if ids_BL.size and not 0 <= ids_BL.min() <= ids_BL.max() < self._vocabulary:
            raise UserError(
                f"ids of encoder {self.name} are 0 to {self._vocabulary - 1}, got {ids_BL.min()} to {ids_BL.max()}"
            )
        if self._positions is not None and ids_BL.shape[1] > self._positions:
            raise UserError(f"encoder {self.name} takes rows of at most {self._positions} ids, got {ids_BL.shape[1]}")
        mask_BL = ids_BL != 0
        return self._embed(ids_BL, mask_BL, batch_size, progress), mask_BL

    def _embed(self, ids_BL, mask_BL, batch_size: int, progress) -> np.ndarray:
        B, L = ids_BL.shape
        # One past the last real token, and at least one.
        lengths_B = np.max(np.where(mask_BL, np.arange(1, L + 1), 1), axis=1, initial=1)
        out_BLD = np.zeros((B, L, self.width), np.float32)
        # Prompts of like length go together; batches are padded to one size, so few programs are compiled.
        order, size = np.argsort(lengths_B, kind="stable"), batch_size if B > 8 else 8
        for begin in range(0, B, size):
            rows = order[begin : begin + size]
            longest = int(lengths_B[rows].max())
            bucket = next((length for length in BUCKETS if length >= longest), longest)
            ids, mask = np.zeros((size, bucket), np.int32), np.zeros((size, bucket), bool)
            ids[: len(rows), :longest] = ids_BL[rows, :longest]
            mask[: len(rows), :longest] = mask_BL[rows, :longest]
            # Attention needs a valid key, also in rows that only fill the batch; their states are not kept.
            keys = mask | (~mask.any(1, keepdims=True) & (np.arange(bucket) == 0))
            states = np.asarray(self._apply(self._params, ids, keys))
            out_BLD[rows, :longest] = (states * mask[:, :, None])[: len(rows), :longest]
            if progress is not None:
                progress(begin + len(rows))
        return out_BLD


def fingerprint_of(name: str, files: Sequence[pathlib.Path], max_length: int) -> str:
    """sha256 over the encoder's name, the content of its files and the maximum length.

    A file's own hash is remembered in the user cache by path, size and modification time: weights can be gigabytes.
    """
    digest = hashlib.sha256(f"{name} {max_length}".encode())
    for file in files:
        digest.update(_remembered_hash(file).encode())
    return digest.hexdigest()


def _remembered_hash(file: pathlib.Path) -> str:
    status = file.stat()
    key = hashlib.sha256(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()
    note = storage.user_cache() / "file_hashes" / key
    if note.is_file():
        return note.read_text()
    value = storage.sha256_file(file)
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        storage.write_text(note, value)
    except OSError:
        pass  # a cache that cannot be written only costs the next start a few seconds
    return value
