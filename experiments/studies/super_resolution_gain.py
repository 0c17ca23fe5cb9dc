"""Whether each super-resolution stage of a mini cascade improves on its input: one line a stage.

    python -m experiments.studies.super_resolution_gain out/demo/cascade.json

Input is the true low-resolution video of six validation clips of the embedded data set, enlarged bilinearly (or with
its frames repeated); output is what the stage samples from it. Printed: mean squared error of both against the original
in [-1, 1], and the mean difference of neighbouring pixels in the original, the input and the output (sharpness).
"""

import argparse
import sys

import jax.numpy as jnp
import numpy as np

from imagen_video_jax.cascade import Cascade
from imagen_video_jax.commands.process import in_one_line
from imagen_video_jax.data.default_set import default_set
from imagen_video_jax.data.sources import open_source
from imagen_video_jax.stages import conditioning
from imagen_video_jax.video import frames
from imagen_video_jax.video.files import read_video

CLIPS, FRAMES = 6, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cascade", help="cascade.json of a demo")
    cascade = Cascade.load(parser.parse_args().cascade)
    examples = open_source(default_set("mini").validation).videos[:CLIPS]
    captions = [example.captions[0] for example in examples]
    videos = [read_video(example.path) for example in examples]
    for index, member in enumerate(cascade.members):
        config = member.stage.config
        if config.kind == "base":
            continue
        count = min(config.frames, FRAMES)
        chosen = [video.frames_THWC[:: round(video.fps / config.fps)][:count] for video in videos]
        x = frames.resize(frames.to_unit(jnp.asarray(np.stack(chosen))), config.height, config.width)
        low = conditioning.low_resolution(config.kind, x, config.factor)
        enlarged, _ = conditioning.fit_to_target(config.kind, low, factor=config.factor, fill="repeat")
        made = cascade.sample(captions, start=index, stop=index + 1, video_BTHWC=frames.to_uint8(low))
        made = frames.to_unit(jnp.asarray(made))
        errors = [float(jnp.mean((video - x) ** 2)) for video in (enlarged, made)]
        sharpness = [float(jnp.mean(jnp.abs(jnp.diff(video, axis=3)))) for video in (x, enlarged, made)]
        print(
            f"{config.name:26} error {errors[0]:.5f} -> {errors[1]:.5f} ({errors[1] / errors[0] - 1:+.0%})   "
            f"sharpness {sharpness[0]:.4f}, input {sharpness[1]:.4f}, output {sharpness[2]:.4f}",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(in_one_line(main))
