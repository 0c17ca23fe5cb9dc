"""`Stage`: one model of the cascade as functions, the only join of conditioning, network and diffusion.

Base, temporal and spatial super-resolution are this one class; they differ in what conditions them and in the network.
"""

import dataclasses
import functools
import math
import zlib
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from imagen_video_jax import functional
from imagen_video_jax.batch import Batch
from imagen_video_jax.diffusion import gaussian, guidance, samplers
from imagen_video_jax.diffusion.loss import diffusion_loss
from imagen_video_jax.diffusion.noise import normal
from imagen_video_jax.diffusion.samplers import SamplerConfig
from imagen_video_jax.diffusion.schedules import Schedule
from imagen_video_jax.models.video_unet import VideoUNet
from imagen_video_jax.partitioning import constrain
from imagen_video_jax.stages import conditioning
from imagen_video_jax.stages.stage_config import StageConfig
from imagen_video_jax.stages.tiles import WHOLE, Tiling, in_tiles
from imagen_video_jax.video import frames


def named_key(key: jax.Array, name: str) -> jax.Array:
    """A key of its own for each use of one key: fold_in of the name's checksum."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def example_keys(key: jax.Array, index_B: jax.Array) -> jax.Array:
    """A key per example, by its global number, so that noise does not depend on how a batch is split."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(index_B)


Text = tuple[jax.Array, jax.Array]  # text_BLD, text_mask_BL


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What conditions the network, per example; `low` is None in the base stage."""

    text_BLD: jax.Array
    text_mask_BL: jax.Array
    fps_B: jax.Array
    low_BTHWC: jax.Array | None = None
    low_logsnr_B: jax.Array | None = None
    low_mask_BT: jax.Array | None = None
    guidance_B: jax.Array | None = None  # in students, which take the weight as an input

    def unconditional(self, negative: "Text | None" = None) -> "Conditions":
        """The same with the null text, or the negative one; the low-resolution video stays (guidance acts on text)."""
        text_BLD, text_mask_BL = negative or conditioning.null_text(self.text_BLD, self.text_mask_BL)
        return dataclasses.replace(self, text_BLD=text_BLD, text_mask_BL=text_mask_BL)


jax.tree_util.register_dataclass(Conditions)


class Noised(NamedTuple):
    """A training batch at its noise levels: z = alpha x + sigma eps, and what conditions the network."""

    x: jax.Array
    eps: jax.Array
    z: jax.Array
    time_B: jax.Array
    logsnr_B: jax.Array
    conditions: Conditions


class Stage:
    """A stage as pure functions of a parameter tree; `tiling` is for sampling what is too large for one device."""

    def __init__(self, config: StageConfig, tiling: Tiling = WHOLE):
        self.config, self.tiling = config, tiling.of(config.network)
        self.network = functional.split(lambda rngs: VideoUNet(rngs, config.network))

    def __repr__(self):
        return f"Stage({self.config.name})"

    def init(self, key: jax.Array) -> functional.Params:
        return self.network.init(key)

    def predict(self, params, z_BTHWC, logsnr_B, conditions: Conditions) -> jax.Array:
        """The network's output (v, eps or x) at one noise level per example."""

        def call(z_BTHWC, low):
            return self.network.apply(
                params,
                z_BTHWC,
                logsnr_B=logsnr_B,
                text_BLD=conditions.text_BLD,
                text_mask_BL=conditions.text_mask_BL,
                fps_B=conditions.fps_B,
                low_logsnr_B=conditions.low_logsnr_B,
                guidance_B=conditions.guidance_B,
                **low,
            )

        low = {"low_BTHWC": conditions.low_BTHWC, "low_mask_BT": conditions.low_mask_BT}
        output = in_tiles(call, self.tiling, z_BTHWC, low)
        if self.config.residual:
            output += conditioning.denoise(conditions.low_BTHWC, logsnr_B=conditions.low_logsnr_B)
        return output

    def estimate(self, params, z_BTHWC, logsnr_B, conditions: Conditions) -> jax.Array:
        """The estimate of x at one noise level per example."""
        return gaussian.x_from_prediction(
            self.config.prediction,
            z=z_BTHWC,
            output=self.predict(params, z_BTHWC, logsnr_B, conditions),
            logsnr=gaussian.expand(logsnr_B, z_BTHWC),
        )

    def estimates(self, params, z_BTHWC, logsnr_B, conditions: Conditions, opposite: Conditions):
        """The estimates of x under both conditions, from one doubled batch."""
        # The two of an example lie beside each other: on one device, however the batch is sharded.
        B = z_BTHWC.shape[0]
        both, z, levels = jax.tree.map(
            lambda a, b: jnp.stack([a, b], axis=1).reshape(2 * B, *a.shape[1:]),
            (conditions, z_BTHWC, logsnr_B),
            (opposite, z_BTHWC, logsnr_B),
        )
        x = self.estimate(params, z, levels, both).reshape(B, 2, *z_BTHWC.shape[1:])
        return x[:, 0], x[:, 1]

    # Training.

    def loss(self, params, batch: Batch, key: jax.Array, slot_B: jax.Array | None = None, slots: int | None = None):
        """Loss and log-SNR per example, ([B], [B]); arguments as of `noised`."""
        config = self.config
        noised = self.noised(batch, key, slot_B, slots)
        loss_B = diffusion_loss(
            output=self.predict(params, noised.z, noised.logsnr_B, noised.conditions),
            prediction=config.prediction,
            z=noised.z,
            x=noised.x,
            eps=noised.eps,
            logsnr_B=noised.logsnr_B,
            weighting=config.weighting,
            sigmoid_bias=config.sigmoid_bias,
        )
        return loss_B, noised.logsnr_B

    def noised(
        self,
        batch: Batch,
        key: jax.Array,
        slot_B: jax.Array | None = None,
        slots: int | None = None,
        *,
        text_drop: float | None = None,
        time=lambda uniform_B: uniform_B,
    ) -> Noised:
        """A batch as the network sees it in training.

        Args:
          batch: clips of this stage's output size or of another that its network takes (a bucket), or images (T = 1).
          key: of this step.
          slot_B, slots: number of each example in the global batch, and the global batch's size, where `batch` is a
            part of it; noise and times are then those of the whole.
          text_drop: share of examples without text, where not the configured one.
          time: from uniform numbers in [0, 1) to times of the schedule.
        """
        B, T, H, W, _ = batch.video_BTHWC.shape
        chex.assert_shape(batch.video_BTHWC, (B, T, None, None, 3))
        slot_B = jnp.arange(B) if slot_B is None else slot_B
        slots = B if slots is None else slots

        def draw(name):
            return example_keys(named_key(key, name), slot_B)

        x = constrain(frames.to_unit(batch.video_BTHWC), "batch", "frames", "height")
        x = self._crop(x, draw("crop"))
        # Stratified times: each slot draws from its own part of [0, 1], rotated by one offset per step.
        offset = jax.random.uniform(named_key(key, "time"))
        time_B = time(jnp.mod(offset + slot_B / slots, 1.0))
        logsnr_B = self.config.schedule.logsnr(time_B)
        eps = normal(draw("noise"), x.shape[1:])
        z = gaussian.diffuse(x=x, eps=eps, logsnr=gaussian.expand(logsnr_B, x))
        return Noised(x, eps, z, time_B, logsnr_B, self._training_conditions(batch, x, draw, text_drop))

    def _crop(self, x_BTHWC, keys_B):
        """Clips larger than the network trains on; `train` cuts its batches on the host (`ClipSpec.part`)."""
        if self.config.crop is None or x_BTHWC.shape[2:4] == self.config.crop:
            return x_BTHWC
        height, width = self.config.crop
        step = self.config.crop_grid
        H, W = x_BTHWC.shape[2:4]
        corner_B2 = jax.vmap(
            lambda key: jax.random.randint(key, (2,), 0, jnp.array([(H - height) // step + 1, (W - width) // step + 1]))
        )(keys_B)
        return frames.crop(x_BTHWC, corner_B2[:, 0] * step, corner_B2[:, 1] * step, height, width)

    def _training_conditions(self, batch: Batch, x_BTHWC, draw, text_drop: float | None = None) -> Conditions:
        config = self.config
        share = config.text_drop if text_drop is None else text_drop
        drop_B = jax.vmap(lambda key: jax.random.uniform(key) < share)(draw("text"))
        text_BLD, text_mask_BL = conditioning.drop_text(batch.text_BLD, batch.text_mask_BL, drop_B)
        if config.kind == "base":
            return Conditions(text_BLD, text_mask_BL, batch.fps_B)
        low = conditioning.low_resolution(config.kind, x_BTHWC, config.factor)
        time_B = jax.vmap(lambda key: jax.random.uniform(key, maxval=config.augmentation_max))(draw("augmentation"))
        low_logsnr_B = Schedule().logsnr(time_B)
        eps = normal(draw("augmentation noise"), low.shape[1:])
        return self._with_low(text_BLD, text_mask_BL, batch.fps_B, low, low_logsnr_B, eps)

    def _with_low(self, text_BLD, text_mask_BL, fps_B, low_BTHWC, low_logsnr_B, eps) -> Conditions:
        config = self.config
        low = conditioning.augment(low_BTHWC, logsnr_B=low_logsnr_B, eps=eps)
        low, mask_BT = conditioning.fit_to_target(
            config.kind, low, factor=config.factor, fill=config.fill, blank_image=config.blank_image
        )
        return Conditions(text_BLD, text_mask_BL, fps_B, low, low_logsnr_B, mask_BT)

    # Sampling.

    def sample(
        self,
        params,
        *,
        text_BLD,
        text_mask_BL,
        index_B,
        seed,
        low_BTHWC=None,
        size: tuple[int, int] | None = None,
        negative: Text | None = None,
        sampler: SamplerConfig | None = None,
        weights_S=None,
        known_BTHWC=None,
        reconstruction: float = 0.0,
    ) -> jax.Array:
        """Videos in [-1, 1], BTHWC.

        Args:
          index_B, seed: number of each sample, and the seed or one for each: they alone decide the noise.
          low_BTHWC: the previous stage's output in [-1, 1]; its size decides the output's (any size in fully
            convolutional stages). None for the base.
          size: (height, width) of the base's output where it is not the configured one.
          negative: text that guidance leads away from, instead of the null text.
          weights_S: guidance weight of each step where the sampler's are to be replaced, e.g. by an argument of a
            compiled program; zero in the same steps, which are compiled without guidance.
          known_BTHWC: the first frames of the videos in [-1, 1], at this stage's size, where they are given.
          reconstruction: weight with which the rest is led to fit them (see `_reconstructed`).
        """
        config = self.config
        sampler = config.sampler if sampler is None else sampler
        B = text_BLD.shape[0]
        keys_B = jax.vmap(lambda one, index: jax.random.fold_in(named_key(jax.random.key(one), config.name), index))(
            jnp.broadcast_to(jnp.asarray(seed), index_B.shape), index_B
        )
        fps_B = jnp.full((B,), config.fps, jnp.float32)
        if config.kind == "base":
            conditions = Conditions(text_BLD, text_mask_BL, fps_B)
            shape = (config.frames, *(size or (config.height, config.width)), 3)
        else:
            conditions = self._sampling_conditions(
                text_BLD, text_mask_BL, fps_B, low_BTHWC, keys_B, snr=sampler.augmentation_snr
            )
            shape = conditions.low_BTHWC.shape[1:]

        def noise_at(name):
            return constrain(
                normal(jax.vmap(lambda key: named_key(key, name))(keys_B), shape), "batch", "frames", "height"
            )

        def fresh_noise(index):
            keys = jax.vmap(lambda key: jax.random.fold_in(named_key(key, "step"), index))(keys_B)
            return constrain(normal(keys, shape), "batch", "frames", "height")

        weights_S = sampler.weights_S if weights_S is None else weights_S
        guided = functools.partial(
            self._guided_x, params, conditions, conditions.unconditional(negative), weights_S, sampler
        )

        def predict_x(z, logsnr, index, memory):
            if known_BTHWC is None:
                x, memory = guided(z, logsnr, index, memory)
                return clipped(x, sampler), memory
            x, memory = _reconstructed(guided, known_BTHWC, reconstruction, z, logsnr, index, memory)
            return _with_first(known_BTHWC, clipped(x, sampler)), memory

        return samplers.sample(
            predict_x,
            noise=noise_at("start"),
            noise_at=fresh_noise,
            logsnrs=samplers.grid(config.schedule, sampler.steps),
            config=sampler,
            memory=jnp.zeros((B, *shape)) if sampler.rule == "apg" else None,
        )

    def sample_from_batch(self, params, batch: Batch, seed: int = 0) -> jax.Array:
        """Samples for a batch's captions, a super-resolution stage from the true low-resolution input of its clips."""
        low = None
        if self.config.kind != "base":
            x = frames.to_unit(batch.video_BTHWC)
            low = conditioning.low_resolution(self.config.kind, x, self.config.factor)
        return self.sample(
            params,
            text_BLD=batch.text_BLD,
            text_mask_BL=batch.text_mask_BL,
            index_B=jnp.arange(len(batch)),
            seed=seed,
            low_BTHWC=low,
            size=batch.video_BTHWC.shape[2:4],
        )

    def _sampling_conditions(self, text_BLD, text_mask_BL, fps_B, low_BTHWC, keys_B, *, snr: float) -> Conditions:
        logsnr = min(math.log(snr), Schedule().logsnr_max)
        low_logsnr_B = jnp.full((text_BLD.shape[0],), logsnr, jnp.float32)
        low, eps = (
            constrain(a, "batch", "frames", "height")
            for a in (
                low_BTHWC,
                normal(jax.vmap(lambda key: named_key(key, "augmentation"))(keys_B), low_BTHWC.shape[1:]),
            )
        )
        return self._with_low(text_BLD, text_mask_BL, fps_B, low, low_logsnr_B, eps)

    def _guided_x(self, params, conditions, opposite, weights_S, sampler, z, logsnr, index, memory):
        """The guided estimate of x at one noise level, and what guidance remembers of it."""
        weight, acts_S = jnp.asarray(weights_S)[index], sampler.weights_S != 0.0
        if self.config.network.guidance:
            given = dataclasses.replace(conditions, guidance_B=jnp.full((z.shape[0],), weight))
            x = self.estimate(params, z, jnp.full((z.shape[0],), logsnr), given)
        elif not acts_S.any():
            x = self.estimate(params, z, jnp.full((z.shape[0],), logsnr), conditions)
        else:
            guided = functools.partial(self._guided, params, conditions, opposite, sampler)
            if acts_S.all():
                x, memory = guided(weight, z, logsnr, memory)
            else:
                # Steps without guidance cost one network call, not two.
                x, memory = jax.lax.cond(
                    jnp.asarray(acts_S)[index],
                    guided,
                    lambda weight, z, logsnr, memory: (
                        self.estimate(params, z, jnp.full((z.shape[0],), logsnr), conditions),
                        memory,
                    ),
                    *(weight, z, logsnr, memory),
                )
        return x, memory

    def _guided(self, params, conditions, opposite, sampler, weight, z, logsnr, memory):
        """(x, memory) of guidance by two estimates."""
        conditional, unconditional = self.estimates(params, z, jnp.full((z.shape[0],), logsnr), conditions, opposite)
        if sampler.rule == "apg":
            x, memory = guidance.projected(
                conditional=conditional,
                unconditional=unconditional,
                weight=weight,
                parallel=sampler.apg_parallel,
                norm=sampler.apg_norm,
                momentum=sampler.apg_momentum,
                before=memory,
            )
        else:
            x = guidance.guide(conditional=conditional, unconditional=unconditional, weight=weight)
        return (guidance.rescale(x, conditional, sampler.rescale) if sampler.rescale else x), memory


def _reconstructed(predict_x, known_BTHWC, weight: float, z, logsnr, index, memory):
    """x - (weight alpha / 2) grad_z ||known - x^known(z)||^2, reconstruction guidance  (Ho et al. 2022, section 3.1).

    The known frames' own estimate is replaced by them afterwards, so that their part of z stays a sample of q(z | x).
    """

    def error(z):
        x, remembered = predict_x(z, logsnr, index, memory)
        return jnp.sum(jnp.square(known_BTHWC - x[:, : known_BTHWC.shape[1]])), (x, remembered)

    gradient, (x, remembered) = jax.grad(error, has_aux=True)(z)
    return x - 0.5 * weight * gaussian.alpha(logsnr) * gradient, remembered


def _with_first(known_BTHWC, x):
    return jnp.concatenate([known_BTHWC, x[:, known_BTHWC.shape[1] :]], axis=1)


def clipped(x, sampler: SamplerConfig):
    """x clipped as the sampler says."""
    if sampler.clip == "none":
        return x
    return guidance.clip_static(x) if sampler.clip == "static" else guidance.clip_dynamic(x, sampler.percentile)
