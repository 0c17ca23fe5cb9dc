"""How far a stage's estimate of the video is off at each noise level: what it cannot draw even where it sees it.

    python -m experiments.studies.noise_levels [--cascade CASCADE] [--stages N] [--clips 32]

Scenes of the validation split, drawn at each stage's size, with fixed noise of several log-SNRs; mean squared error of
the network's estimate in [-1, 1], beside that of taking the noisy video itself, exp(-log-SNR). A network that does all
it could falls towards 0 with the noise. Where its error stays at a floor instead, it does not carry from its input to
its output what it is shown, for want of room or of training there; no sampler makes its samples sharper than that.
"""

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np

from imagen_video_jax.batch import Batch
from imagen_video_jax.cascade import Cascade, fit_length
from imagen_video_jax.commands.process import in_one_line
from imagen_video_jax.diffusion import gaussian
from imagen_video_jax.errors import UserError
from imagen_video_jax.evaluation import scenes
from imagen_video_jax.shipped import miniature
from imagen_video_jax.stages.stage import Stage

LOGSNRS = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 10.0, 15.0)
FRAMES = 16  # of the later stages' clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cascade", default="", help="bundle or cascade.json; by default the package's miniature")
    parser.add_argument("--stages", type=int, default=0, help="only the first so many")
    parser.add_argument("--clips", type=int, default=32)
    arguments = parser.parse_args()
    for name, least in (("stages", 0), ("clips", 1)):
        if getattr(arguments, name) < least:
            raise UserError(f"--{name} must be at least {least}, got {getattr(arguments, name)}")
    cascade = Cascade.load(arguments.cascade or miniature())
    members = cascade.members[: arguments.stages or None]
    for config in (member.stage.config for member in members):
        if config.network.guidance:
            raise UserError(f"{config.name} is a student, which learned a teacher's steps; --cascade takes teachers")
    prompts = scenes.prompts_of_scenes("validation", arguments.clips)
    print("| stage | " + " | ".join(f"{logsnr:g}" for logsnr in LOGSNRS) + " |\n|---" + "|---" * len(LOGSNRS) + "|")
    print("| the noisy video itself | " + " | ".join(f"{np.exp(-logsnr):.2g}" for logsnr in LOGSNRS) + " |", flush=True)
    for member in members:
        found = errors(member.stage, member.params, batch_of(member.stage, prompts, cascade.encoder))
        print(f"| {member.stage.config.name} | " + " | ".join(f"{error:.4f}" for error in found) + " |", flush=True)
        jax.clear_caches()


def batch_of(stage: Stage, prompts: scenes.Prompts, encoder) -> Batch:
    """The scenes as they really look, at the stage's size and rate."""
    config = stage.config
    frames = config.frames if config.kind == "base" else min(config.frames, FRAMES)
    size = (frames, config.height, config.width, config.fps)
    text_BLD, mask_BL = (fit_length(array, config.text_length) for array in encoder(list(prompts.captions)))
    count = len(prompts.captions)
    return Batch(
        video_BTHWC=np.stack([scenes.rendered(scene, size) for scene in prompts.scenes]),
        text_BLD=text_BLD,
        text_mask_BL=mask_BL,
        fps_B=np.full((count,), config.fps, np.float32),
        id_B=np.arange(count, dtype=np.int32),
        valid_B=np.ones((count,), bool),
    )


def errors(stage: Stage, params, batch: Batch, logsnrs=LOGSNRS) -> list[float]:
    """Mean squared error of the estimate of x at each log-SNR, with the same noise at all of them."""

    @jax.jit
    def error(params, batch, logsnr):
        noised = stage.noised(batch, jax.random.key(0), text_drop=0.0)
        z = gaussian.diffuse(x=noised.x, eps=noised.eps, logsnr=logsnr)
        x = stage.estimate(params, z, jnp.full((len(batch),), logsnr), noised.conditions)
        return jnp.mean(jnp.square(x - noised.x))

    return [float(error(params, batch, jnp.float32(logsnr))) for logsnr in logsnrs]


if __name__ == "__main__":
    sys.exit(in_one_line(main))
