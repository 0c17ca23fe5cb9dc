"""`TextEncoder`: prompts or token numbers -> text_BLD, mask_BL; jitted, in length buckets, sharded where asked.

    encoder = open_encoder(EncoderConfig("t5", weights="t5_1_1_xxl/checkpoint_1000000", vocabulary="spiece.model"))
    text_BLD, mask_BL = encoder(["a red circle moves left"])

Every encoder is this one class; what differs is in the functions that make it. Weights are read when the first prompt
is embedded, so an encoder is cheap to ask for its name and fingerprint.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from imagen_video_jax import functional, partitioning, storage
from imagen_video_jax.errors import UserError
from imagen_video_jax.text import minilm_encoder
from imagen_video_jax.text.t5_encoder import T5Encoder
from imagen_video_jax.text.t5_weights import open_weights
from imagen_video_jax.text.tokenizer import SentencePieceTokenizer, Tokens, WordPieceTokenizer

# Token counts that a program is compiled for: short prompts are not padded to the maximum.
BUCKETS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# Part of every fingerprint: raised when the same weights and text would be embedded differently.
_VERSION = 2


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Which encoder an experiment uses.

    Attributes:
      name: "minilm", the embedded default, or "t5".
      weights: of T5, see t5_weights.py.
      vocabulary: T5's SentencePiece file.
      max_length: tokens that a prompt is cut to; 0: 64 for MiniLM, 128 for T5.
    """

    name: str = "minilm"
    weights: str = ""
    vocabulary: str = ""
    max_length: int = 0

    def __post_init__(self):
        if self.name not in ENCODERS:
            raise ValueError(f"name must be one of {', '.join(ENCODERS)}, got {self.name!r}")


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
        load: Callable[[], functional.Params],
        tokenizer: Callable[[Sequence[str], int], Tokens] | None,
        width: int,
        vocabulary: int,
        max_length: int,
        positions: int | None,
        fingerprint: Callable[[], str],
        mesh: jax.sharding.Mesh | None = None,
    ):
        """`apply` is (params, ids_BL, mask_BL) -> states BLD; `positions` is the longest row it takes (None: any)."""
        self.name, self.width, self.max_length = name, width, max_length
        self._load, self._tokenizer, self._fingerprint = load, tokenizer, fingerprint
        self._vocabulary, self._positions, self._mesh = vocabulary, positions, mesh

        def apply_exactly(*arguments):
            # Accelerators would round the inputs of float32 products; embeddings are compared across machines.
            with jax.default_matmul_precision("highest"), partitioning.activate(mesh):
                return apply(*arguments)

        # Every process of a mesh gets all states: they go to the host next.
        self._apply = jax.jit(apply_exactly, out_shardings=None if mesh is None else partitioning.replicated(mesh))

    @classmethod
    def minilm(cls, max_length: int = 64) -> "TextEncoder":
        """The embedded default, 384 wide; UserError for a length that it cannot take, or with the wheel missing."""
        config = minilm_encoder.MiniLMConfig()
        if not 3 <= max_length <= config.positions:
            raise UserError(f"max_length must be 3 to {config.positions} tokens, got {max_length}")
        folder = minilm_encoder.model_folder()
        files = [folder / "model.safetensors", folder / "tokenizer.json"]
        return cls(
            name="minilm",
            apply=functional.split(lambda rngs: minilm_encoder.MiniLMEncoder(config)).apply,
            load=lambda: jax.tree.map(jnp.asarray, minilm_encoder.load_params(files[0], config)),
            tokenizer=WordPieceTokenizer(files[1]),
            width=config.width,
            vocabulary=config.vocabulary,
            max_length=max_length,
            positions=config.positions,
            fingerprint=lambda: fingerprint_of("minilm", [storage.remembered_sha256(f) for f in files], max_length),
        )

    @classmethod
    def t5(
        cls,
        weights: str,
        vocabulary: str | None = None,
        max_length: int = 128,
        *,
        dtype=None,
        mesh: jax.sharding.Mesh | None = None,
    ) -> "TextEncoder":
        """T5 v1.1, Flan or 1.0 of whatever size the weights have.

        Args:
          weights: a T5X checkpoint or safetensors, see t5_weights.py.
          vocabulary: SentencePiece file; without it only token numbers can be embedded.
          dtype: of weights and products; by default bfloat16 on accelerators, float32 on a CPU.
          mesh: devices to shard weights and batches over; by default this process's accelerators.
        """
        if max_length < 2:
            raise UserError(f"max_length must be at least 2 tokens, got {max_length}")
        opened = open_weights(weights)
        on_cpu = jax.default_backend() == "cpu"
        dtype = dtype or (jnp.float32 if on_cpu else jnp.bfloat16)
        if mesh is None and not on_cpu and jax.local_device_count() > 1:
            shape = partitioning.MeshShape(data=1, fsdp=jax.local_device_count())
            mesh = partitioning.make_mesh(shape, jax.local_devices())

        def fingerprint():
            if vocabulary is None:
                raise UserError("a T5 encoder without vocabulary has no fingerprint; name the SentencePiece file")
            hashes = [opened.content_hash(), storage.sha256_file(vocabulary)]
            return fingerprint_of("t5", hashes, max_length)

        return cls(
            name="t5",
            apply=functional.split(lambda rngs: T5Encoder(opened.config, dtype)).apply,
            load=lambda: opened.load(dtype, mesh),
            tokenizer=SentencePieceTokenizer(vocabulary, opened.config.vocabulary) if vocabulary else None,
            width=opened.config.width,
            vocabulary=opened.config.vocabulary,
            max_length=max_length,
            positions=None,
            fingerprint=fingerprint,
            mesh=mesh,
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        return self._fingerprint()

    @functools.cached_property
    def _params(self):
        return self._load()

    def tokenize(self, prompts: Sequence[str], max_length: int = 0) -> Tokens:
        """Token numbers, none more than `max_length` (0: the encoder's own), and what was cut off."""
        if self._tokenizer is None:
            raise UserError(f"encoder {self.name} needs --vocabulary FILE (spiece.model) to read text")
        return self._tokenizer(prompts, max_length or self.max_length)

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

    def real_states(
        self, tokens: Tokens, dtype=np.float32, *, batch_size: int = 32, progress: Callable[[int], None] | None = None
    ) -> list[np.ndarray]:
        """States of the real tokens alone, one array (length, D) per prompt: what a cache keeps."""
        out = [np.zeros((0, self.width), dtype)] * len(tokens.ids_BL)
        for rows, states_bLD in self._batches(tokens.ids_BL, tokens.mask_BL, batch_size, progress):
            for row, states_LD in zip(rows, states_bLD):
                out[row] = states_LD[tokens.mask_BL[row, : len(states_LD)]].astype(dtype)
        return out

    def _embed(self, ids_BL, mask_BL, batch_size: int, progress) -> np.ndarray:
        out_BLD = np.zeros((*ids_BL.shape, self.width), np.float32)
        for rows, states_bLD in self._batches(ids_BL, mask_BL, batch_size, progress):
            length = states_bLD.shape[1]
            out_BLD[rows, :length] = states_bLD * mask_BL[rows, :length, None]
        return out_BLD

    def _batches(self, ids_BL, mask_BL, batch_size: int, progress) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(numbers of rows, their states) batch by batch, up to the longest of the batch's rows.

        Rows of like length go together; batches are padded to one size, so few programs are compiled. The next batch
        is on its way to the device before the states of one are waited for.
        """
        B, L = ids_BL.shape
        # One past the last real token, and at least one.
        lengths_B = np.max(np.where(mask_BL, np.arange(1, L + 1), 1), axis=1, initial=1)
        order, size = np.argsort(lengths_B, kind="stable"), self._batch_size(batch_size if B > 8 else 8)
        pending = None
        for begin in range(0, B + size, size):
            rows = order[begin : begin + size]
            started = None
            if len(rows):
                longest = int(lengths_B[rows].max())
                started = rows, longest, self._start(ids_BL[rows, :longest], mask_BL[rows, :longest], size)
            if pending is not None:
                done, longest, states = pending
                yield done, np.asarray(states)[: len(done), :longest]
                if progress is not None:
                    progress(min(begin, B))
            pending = started

    def _batch_size(self, wanted: int) -> int:
        divisor = 1 if self._mesh is None else partitioning.batch_divisor(self._mesh)
        return -(-wanted // divisor) * divisor

    def _start(self, ids_bL, mask_bL, size: int) -> jax.Array:
        """Begins to embed a few rows, as (size, length of their bucket)."""
        rows, longest = ids_bL.shape
        bucket = next((length for length in BUCKETS if length >= longest), longest)
        ids, mask = np.zeros((size, bucket), np.int32), np.zeros((size, bucket), bool)
        ids[:rows, :longest], mask[:rows, :longest] = ids_bL, mask_bL
        # Attention needs a valid key, also in rows that only fill the batch; their states are not kept.
        keys = mask | (~mask.any(1, keepdims=True) & (np.arange(bucket) == 0))
        if self._mesh is not None:
            sharding = partitioning.batch_sharding(self._mesh)
            ids, keys = (jax.make_array_from_callback(a.shape, sharding, a.__getitem__) for a in (ids, keys))
        return self._apply(self._params, ids, keys)


def _minilm(config: EncoderConfig) -> TextEncoder:
    if config.weights or config.vocabulary:
        raise UserError("encoder minilm brings its own weights and vocabulary; they are given with encoder t5")
    return TextEncoder.minilm(config.max_length or 64)


def _t5(config: EncoderConfig) -> TextEncoder:
    if not config.weights:
        raise UserError(
            "encoder t5 needs weights: a T5X checkpoint or safetensors (--weights, or config.encoder.weights)"
        )
    return TextEncoder.t5(config.weights, config.vocabulary or None, config.max_length or 128)


ENCODERS = {"minilm": _minilm, "t5": _t5}


def open_encoder(config: EncoderConfig) -> TextEncoder:
    """The encoder that an experiment names; UserError where its files are missing or are not what they should be."""
    return ENCODERS[config.name](config)


def fingerprint_of(name: str, hashes: Sequence[str], max_length: int) -> str:
    """sha256 over the encoder's name, the sha256 of its weights and tokenizer, and the maximum length."""
    return hashlib.sha256(f"{_VERSION} {name} {max_length} {' '.join(hashes)}".encode()).hexdigest()
