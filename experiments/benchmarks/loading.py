"""The whole data path against bare PyAV decoding of the same frames, alternating, on one core.

    taskset -c 0 python -m experiments.benchmarks.loading [--clips 8] [--rounds 5]

h264 of 320x192 at 24 frames/s, 4 s a clip, to batches of clips of 16x24x40 at 6 frames/s. Bare decoding reads every
frame of each file as RGB, as PyAV does it by default (faster, and off by several levels) and with the conversion that
the whole path has where it does not shrink. The whole path also opens each file in its own process, shrinks every
frame, cuts the clip, looks the caption up and makes the batch. Prints frames per second and per second of processor
time (of both processes; this is what a busy machine does not spoil), and the ratios.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import time

import av
import numpy as np
from PIL import Image

from imagen_video_jax.commands.process import in_one_line
from imagen_video_jax.data.batches import open_batches
from imagen_video_jax.data.clips import ClipSpec
from imagen_video_jax.data.loading import Decoded
from imagen_video_jax.data.sources import open_source
from imagen_video_jax.video import isolated
from imagen_video_jax.video.files import write_video
from imagen_video_jax.video.reading import CONVERSION

FRAMES, HEIGHT, WIDTH, FPS = 96, 192, 320, 24


class NoEmbeddings:
    width = 384

    def lookup(self, caption):
        return np.zeros((8, self.width), np.float32)


def make_clips(folder: pathlib.Path, count: int) -> None:
    """A textured picture that pans, with a little noise, as film has."""
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = rng.integers(0, 256, (12, 20, 3)).astype(np.uint8)
        wide = Image.fromarray(coarse).resize((WIDTH + 2 * FRAMES, HEIGHT), Image.Resampling.BICUBIC)
        wide = np.clip(np.asarray(wide) + rng.normal(0, 6, (HEIGHT, WIDTH + 2 * FRAMES, 3)), 0, 255).astype(np.uint8)
        frames_THWC = np.stack([wide[:, 2 * t : 2 * t + WIDTH] for t in range(FRAMES)])
        write_video(folder / f"{number}.mp4", frames_THWC, fps=FPS)
        (folder / f"{number}.txt").write_text(f"clip {number}\n")


def bare(paths, **conversion) -> None:
    """Decodes every frame to RGB."""
    for path in paths:
        with av.open(str(path)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for frame in container.decode(video=0):
                frame.to_ndarray(format="rgb24", threads=1, **conversion)


def whole(source, batch_size: int, seed: int) -> None:
    """The batches that show every clip once, nothing kept in memory."""
    spec = ClipSpec(16, 24, 40, 6.0)
    options = {"embeddings": NoEmbeddings(), "text_length": 16, "threads": 1, "prefetch": 1, "decoded": Decoded(0)}
    steps = len(source.videos) // batch_size
    with open_batches(source.videos, spec, batch_size=batch_size, seed=seed, **options) as batches:
        for _ in range(steps):
            next(batches)


def processor_seconds() -> float:
    """Of this process and those that decode for it."""
    ticks = 0
    for decoder in isolated._all:
        fields = pathlib.Path(f"/proc/{decoder.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def timed(function, *arguments, **options) -> np.ndarray:
    """Seconds, and processor seconds."""
    began, used = time.perf_counter(), processor_seconds()
    function(*arguments, **options)
    return np.array([time.perf_counter() - began, processor_seconds() - used])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        make_clips(folder, arguments.clips)
        source = open_source(folder)
        isolated.read(source.videos[0].path, height=24, width=40)  # starts the process
        paths, frames = [example.path for example in source.videos], arguments.clips * FRAMES
        rounds = []
        for number in range(arguments.rounds):
            default, same = timed(bare, paths), timed(bare, paths, interpolation=CONVERSION)
            rounds.append([default, same, timed(whole, source, 4, number)])
        default, same, path = np.median(rounds, axis=0)
        for name, row in (("bare, PyAV's default", default), ("bare, our conversion", same), ("whole path", path)):
            print(f"{name:22} {frames / row[0]:6.0f} frames/s {frames / row[1]:6.0f} per processor second")
        ratios = [np.median([one[base][1] / one[2][1] for one in rounds]) for base in (0, 1)]
        print("per processor second the whole path does {:.2f} of PyAV's default, {:.2f} of ours".format(*ratios))


if __name__ == "__main__":
    sys.exit(in_one_line(main))
