"""`Cascade`: prompts -> video. Needs nothing of training.

    cascade = Cascade.load("out/demo/cascade.json")
    video_BTHWC = cascade.sample(["a red circle moves left"], seed=0)       # uint8

Sample number i of a job draws all its noise from (seed, i), whatever the batch split or the number of devices.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from imagen_video_jax import partitioning
from imagen_video_jax.cascade_file import Member, read_members
from imagen_video_jax.diffusion.samplers import SamplerConfig
from imagen_video_jax.errors import DIVERGED, UserError
from imagen_video_jax.stages.stage_config import StageConfig, check_sampler
from imagen_video_jax.stages.tiles import WHOLE, Tiling
from imagen_video_jax.text.embed import EncoderConfig, TextEncoder, open_encoder
from imagen_video_jax.text.embedding_cache import check_same
from imagen_video_jax.text.embedding_cache import describe as describe_encoder
from imagen_video_jax.video import frames

_MOST_VALUES = 2**32 - 1  # of a video: noise numbers them in 32 bits


class Cascade:
    """Trained stages in order, with their text encoder."""

    def __init__(
        self,
        members: list[Member],
        encoder: TextEncoder | None = None,
        trained_with: dict | None = None,
        mesh: jax.sharding.Mesh | None = None,
    ):
        """`trained_with` is what `cascade.json` says of the encoder; without `encoder` it says which one to open."""
        self.members, self.mesh = members, mesh
        self._encoder, self._trained_with = encoder, trained_with
        self._compiled: dict = {}

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        *,
        weights: str = "",
        vocabulary: str = "",
        mesh: jax.sharding.Mesh | None = None,
        tiling: Tiling = WHOLE,
        allow_gone: bool = False,
    ) -> "Cascade":
        """Reads a `cascade.json` or a bundle, verifies every file it names and loads the EMA weights.

        Args:
          weights, vocabulary: where the text encoder's files are, if no longer where training found them.
          mesh: devices to shard weights, batch, frames and height over; by default the first one alone.
          tiling: of the network calls of super-resolution stages, along the axes that each of them can be cut.
          allow_gone: stages whose checkpoint was deleted have params None, to be put there by the caller.
        """
        content, members = read_members(path, mesh=mesh, tiling=tiling, allow_gone=allow_gone)
        members = list(members)
        moved = {name: text for name, text in (("weights", weights), ("vocabulary", vocabulary)) if text}
        return cls(members, trained_with=(content.get("encoder") or {}) | moved, mesh=mesh)

    @property
    def encoder(self) -> TextEncoder:
        """The text encoder that the stages were trained with; UserError where what is found is another."""
        if self._encoder is None:
            known = self._trained_with or {}
            fields = {name: known[name] for name in ("weights", "vocabulary", "max_length") if name in known}
            try:
                encoder = open_encoder(EncoderConfig(known.get("encoder", "minilm"), **fields))
            except UserError as error:
                hint = "; name its files with --weights and --vocabulary" if known.get("encoder") == "t5" else ""
                raise UserError(f"the cascade's text encoder cannot be opened: {error}{hint}") from None
            if "fingerprint" in known:
                check_same(known, "the cascade", describe_encoder(encoder), "what was opened now")
            self._encoder = encoder
        return self._encoder

    @property
    def names(self) -> list[str]:
        return [member.stage.config.name for member in self.members]

    def position(self, name: str) -> int:
        """Index of a stage by its name, a unique part of it, its number from 1, or its kind (TSR, SSR: the first)."""
        lower = name.lower()
        if lower.isdecimal():
            if not 1 <= int(lower) <= len(self.members):
                raise UserError(f"there is no stage {name}; stages are numbered 1 to {len(self.members)}")
            return int(lower) - 1
        kinds = {"base": "base", "tsr": "temporal_sr", "ssr": "spatial_sr"}
        for index, member in enumerate(self.members):
            config = member.stage.config
            if lower in (config.name, config.kind) or kinds.get(lower) == config.kind:
                return index
        matches = [index for index, known in enumerate(self.names) if lower in known]
        if len(matches) == 1:
            return matches[0]
        raise UserError(f"no single stage is named {name!r}; stages are {', '.join(self.names)}")

    def sample(
        self,
        prompts: Sequence[str],
        *,
        seed: int | Sequence[int] = 0,
        first: int = 0,
        numbers: Sequence[int] | None = None,
        start: int = 0,
        stop: int | None = None,
        video_BTHWC: np.ndarray | None = None,
        size: tuple[int, int] | None = None,
        negative: str | None = None,
        samplers: dict[int, dict] | None = None,
        known_BTHWC: np.ndarray | None = None,
        reconstruction: float = 9.0,
        on_stage: Callable[[int, np.ndarray], None] | None = None,
    ) -> np.ndarray:
        """uint8 videos, BTHWC, one per prompt.

        Args:
          seed: one, or one per prompt.
          first: global number of the first prompt; number and seed alone decide the noise.
          numbers: the global number of each prompt, where they are not consecutive.
          start, stop: first stage to run and the one after the last (all by default).
          video_BTHWC: uint8 input of the start stage, where that is not the base.
          size: (height, width) of the last stage's videos, where they are not those of its config.
          negative: prompt that guidance leads away from, in the stages that guide.
          samplers: stage index -> fields of its sampler to change.
          known_BTHWC: uint8, the first frames of the videos where they are given, at the last stage's rate and size.
          reconstruction: weight with which the rest is led to fit them (VDM used 9 and 50).
          on_stage: called with (index, uint8 videos) after each stage.
        """
        stop = len(self.members) if stop is None else stop
        if (video_BTHWC is None) != (self.members[start].stage.config.kind == "base"):
            raise UserError(f"stage {self.names[start]} {'needs' if video_BTHWC is None else 'takes no'} input video")
        base_size = self.base_size(size, start, stop) if size else None
        text_BLD, mask_BL = self.encoder([*prompts, *([negative] if negative else ())])
        index_B = np.arange(first, first + len(prompts)) if numbers is None else np.asarray(numbers)
        seed_B = np.broadcast_to(np.asarray(seed, np.uint32), index_B.shape)
        video = None if video_BTHWC is None else frames.to_unit(jnp.asarray(video_BTHWC))
        for index in range(start, stop):
            member = self.members[index]
            length = member.stage.config.text_length
            text, mask = fit_length(text_BLD, length), fit_length(mask_BL, length)
            opposite = None
            if negative:
                text, mask, last = text[:-1], mask[:-1], (text[-1:], mask[-1:])
                opposite = tuple(np.repeat(one, len(prompts), axis=0) for one in last)
            known = None
            if known_BTHWC is not None:
                known = self._known(known_BTHWC, index, stop, base_size)
            sampler = changed_sampler(member.stage.config, (samplers or {}).get(index, {}))
            run = self._program(index, sampler, base_size, reconstruction if known is not None else 0.0)
            given = self._spread((text, mask, opposite, index_B, seed_B, video, known))
            video = run(member.params, sampler.weights_S, *given)
            if not bool(jnp.isfinite(video).all()):
                raise UserError(f"stage {self.names[index]} sampled NaN or infinity", DIVERGED)
            if on_stage is not None:
                on_stage(index, frames.to_uint8(video))
        return frames.to_uint8(video)

    def _known(self, known_BTHWC: np.ndarray, index: int, stop: int, base_size) -> jax.Array:
        """The given frames as a stage shows them: at its rate and size, in [-1, 1]."""
        last, config = (self.members[i].stage.config for i in (stop - 1, index))
        factor = round(last.fps / config.fps)
        height, width = known_BTHWC.shape[2:4]
        shrink = math.prod(self.members[i].stage.config.factor for i in range(index + 1, stop) if self._spatial(i))
        known = frames.to_unit(jnp.asarray(frames.subsample_frames(known_BTHWC, factor)))
        return frames.resize(known, height // shrink, width // shrink)

    def _spatial(self, index: int) -> bool:
        return self.members[index].stage.config.kind == "spatial_sr"

    def _spread(self, batch):
        """What the host gives of a batch, over the mesh's data axes where they divide it; the rest stays."""
        if self.mesh is None or len(batch[3]) % partitioning.batch_divisor(self.mesh):
            return batch
        return jax.tree.map(
            lambda leaf: partitioning.put_batch(self.mesh, leaf) if isinstance(leaf, np.ndarray) else leaf, batch
        )

    def base_size(self, size: tuple[int, int], start: int, stop: int) -> tuple[int, int]:
        """The size at which the base has to sample so that the last stage gives `size`."""
        configs = [member.stage.config for member in self.members[start:stop]]
        if configs[0].kind != "base":
            raise UserError("--size goes with the base stage; from --start-at on the input video decides the size")
        values = math.prod((configs[-1].frames, *size, 3))
        if values > _MOST_VALUES:
            raise UserError(
                f"--size {size[0]}x{size[1]} makes videos of {values} values ({configs[-1].frames} frames), more than "
                f"{_MOST_VALUES}; take a smaller one"
            )
        factor = math.prod(config.factor for config in configs if config.kind == "spatial_sr")
        if any(side % factor for side in size):
            raise UserError(f"--size {size[0]}x{size[1]} must be divisible by {factor}, the factor of its stages")
        height, width = size
        try:
            for config in reversed(configs):
                dataclasses.replace(config, height=height, width=width)
                if config.kind == "spatial_sr":
                    height, width = height // config.factor, width // config.factor
        except ValueError as error:
            raise UserError(
                f"--size {size[0]}x{size[1]}: {config.name} cannot sample {height}x{width}: {error}"
            ) from None
        return height, width

    def _program(self, index: int, sampler: SamplerConfig, base_size, reconstruction: float):
        sampler = sampler.at_unit_weights()
        key = (index, base_size, reconstruction, sampler)
        if key not in self._compiled:
            stage = self.members[index].stage

            @jax.jit
            def run(params, weights_S, text_BLD, text_mask_BL, negative, index_B, seed_B, low_BTHWC, known_BTHWC):
                with partitioning.activate(self.mesh):
                    return stage.sample(
                        params,
                        text_BLD=text_BLD,
                        text_mask_BL=text_mask_BL,
                        index_B=index_B,
                        seed=seed_B,
                        low_BTHWC=low_BTHWC,
                        size=base_size,
                        negative=negative,
                        sampler=sampler,
                        weights_S=weights_S,
                        known_BTHWC=known_BTHWC,
                        reconstruction=reconstruction,
                    )

            self._compiled[key] = run
        return self._compiled[key]


def changed_sampler(config: StageConfig, changes: dict) -> SamplerConfig:
    """A stage's sampler with some fields replaced; UserError where it cannot be sampled so.

    A weight alone is a constant one, where the stage's own oscillates, too.
    """
    constant = {"guidance_low": None} if "guidance" in changes else {}
    try:
        sampler = dataclasses.replace(config.sampler, **(constant | changes))
        check_sampler(config, sampler)
        if sampler.guidance and not config.text_drop and not config.network.guidance:
            raise ValueError(
                f"{config.name} was trained without text dropout, so nothing can guide it: sample with --guidance 0, "
                "or train it with --config.stage.text_drop=0.1"
            )
        return sampler
    except ValueError as error:
        raise UserError(str(error)) from None


def fit_length(array_BL: np.ndarray, length: int) -> np.ndarray:
    """Token axis padded with zeros, or cut, to `length`."""
    array = np.asarray(array_BL)[:, :length]
    padding = [(0, 0), (0, length - array.shape[1])] + [(0, 0)] * (array.ndim - 2)
    return np.pad(array, padding)
