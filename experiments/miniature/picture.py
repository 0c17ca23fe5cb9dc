"""The animated picture at the top of the README: what the shipped miniature makes of eight prompts, seed 0, unchosen.

    python -m experiments.miniature.picture [--out experiments/pictures/miniature.webp] [--cascade FILE]

An animated WebP of 12 frames a second, which browsers and GitHub show.
"""

import argparse
import pathlib
import sys

import numpy as np
from PIL import Image, ImageDraw

from imagen_video_jax import shipped
from imagen_video_jax.cascade import Cascade
from imagen_video_jax.commands.process import in_one_line, keep_freed_memory, use_compilation_cache

PROMPTS = (
    "a red circle moves left on a black background",
    "a large blue square grows",
    "a yellow star bounces up and down",
    "a green triangle moves to the right",
    "a cyan ring shrinks on a white background",
    "a purple cube spins around",
    'the word "SUN" appears letter by letter in orange',
    "a pink circle moves up on a striped background",
)
COLUMNS, SCALE, LINE = 4, 1.25, 26
RATE = 12  # of the picture, frames per second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("experiments/pictures/miniature.webp"))
    parser.add_argument("--cascade", help="another cascade than the miniature")
    arguments = parser.parse_args()
    keep_freed_memory()
    use_compilation_cache()
    cascade = Cascade.load(arguments.cascade or shipped.miniature())
    videos = cascade.sample(PROMPTS, seed=0)
    step = max(round(cascade.members[-1].stage.config.fps / RATE), 1)
    pictures = [page(frames) for frames in np.swapaxes(videos[:, ::step], 0, 1)]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(
        arguments.out, save_all=True, append_images=pictures[1:], duration=1000 // RATE, loop=0, quality=75, method=4
    )
    print(arguments.out)


def page(frames_NHWC: np.ndarray) -> Image.Image:
    """One frame of every video, its prompt below it."""
    height, width = (round(size * SCALE) for size in frames_NHWC.shape[1:3])
    rows = -(-len(PROMPTS) // COLUMNS)
    picture = Image.new("RGB", (COLUMNS * (width + 6), rows * (height + LINE)), "white")
    draw = ImageDraw.Draw(picture)
    for index, (frame_HWC, prompt) in enumerate(zip(frames_NHWC, PROMPTS)):
        x, y = index % COLUMNS * (width + 6), index // COLUMNS * (height + LINE)
        picture.paste(Image.fromarray(frame_HWC).resize((width, height), Image.Resampling.BICUBIC), (x, y))
        words = prompt.split()
        half = len(words) // 2 + 1
        draw.multiline_text(
            (x, y + height + 1), f"{' '.join(words[:half])}\n{' '.join(words[half:])}", "black", spacing=0
        )
    return picture


if __name__ == "__main__":
    sys.exit(in_one_line(main))
