"""The whole data path against bare PyAV decoding of the same frames, alternating, on one core.

    taskset -c 0 python -m experiments.benchmarks.loading [--clips 8] [--rounds 5]

h264 of 320x192 at 24 frames/s, 4 s a clip, to batches of clips of 16x24x40 at 6 frames/s. Bare decoding reads every
frame of each file and converts it to RGB with the same conversion; the whole path also opens it in its own process,
shrinks every frame, cuts the clip, looks the caption up and makes the batch. Prints both rates and their ratio.
"""

import argparse
import pathlib
import statistics
import tempfile
import time

import av
import numpy as np
from PIL import Image

from imagen_video_jax.data.batches import open_batches
from imagen_video_jax.data.clips import ClipSpec
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


def bare(paths) -> float:
    """Seconds to decode every frame to RGB."""
    began = time.perf_counter()
    for path in paths:
        with av.open(str(path)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for frame in container.decode(video=0):
                frame.to_ndarray(format="rgb24", interpolation=CONVERSION, threads=1)
    return time.perf_counter() - began


def whole(source, batch_size: int, seed: int) -> float:
    """Seconds for the batches that show every clip once, nothing kept in memory, after the process has started."""
    spec = ClipSpec(16, 24, 40, 6.0)
    options = {"embeddings": NoEmbeddings(), "text_length": 16, "threads": 1, "prefetch": 1, "cache_bytes": 0}
    steps = len(source.videos) // batch_size
    began = time.perf_counter()
    with open_batches(source.videos, spec, batch_size=batch_size, seed=seed, **options) as batches:
        for _ in range(steps):
            next(batches)
        return time.perf_counter() - began


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
        rows = []
        for number in range(arguments.rounds):
            pair = bare([example.path for example in source.videos]), whole(source, 4, number)
            frames = arguments.clips * FRAMES
            rows.append((frames / pair[0], frames / pair[1], pair[0] / pair[1]))
            print("bare {:.0f} frames/s, whole path {:.0f} frames/s, ratio {:.2f}".format(*rows[-1]))
        bare_rate, whole_rate, ratio = (statistics.median(column) for column in zip(*rows))
        print(f"median: bare {bare_rate:.0f}, whole path {whole_rate:.0f} frames/s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
