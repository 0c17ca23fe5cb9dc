"""How many flipped bits of a video file decoding finds, by codec.

    python -m experiments.benchmarks.flipped_bits [--copies 200] [--seed 0]

Copies of one motion_shapes clip (64 frames of 192x320) have one bit flipped each, anywhere in the file. They are
refused, unharmed (the same pixels), or decoded to other pixels or another number of frames.
"""

import argparse
import collections
import pathlib
import sys
import tempfile

import av
import numpy as np

from imagen_video_jax.commands.process import in_one_line
from imagen_video_jax.data.motion_shapes import make_scene
from imagen_video_jax.evaluation import scenes
from imagen_video_jax.video.files import MediaError, read_video

CODECS = {"libx264": ".mp4", "libvpx-vp9": ".webm"}
SIZE = (64, 192, 320, 24.0)  # frames, height, width, frames per second


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--copies", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    clip = scenes.rendered(make_scene(0, 0), SIZE)
    for codec, ending in CODECS.items():
        rng, found = np.random.default_rng(arguments.seed), collections.Counter()
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / f"clip{ending}"
            encode(path, clip, codec)
            data, whole = path.read_bytes(), read_video(path).frames_THWC
            for _ in range(arguments.copies):
                flipped = bytearray(data)
                flipped[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
                path.write_bytes(flipped)
                found[outcome(path, whole)] += 1
        print(f"{codec} ({len(data)} bytes): " + ", ".join(f"{name} {count}" for name, count in sorted(found.items())))


def encode(path: pathlib.Path, clip: np.ndarray, codec: str) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=int(SIZE[3]))
        stream.height, stream.width, stream.pix_fmt = *clip.shape[1:3], "yuv420p"
        for frame_HWC in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode(None))


def outcome(path: pathlib.Path, whole_THWC: np.ndarray) -> str:
    try:
        frames_THWC = read_video(path).frames_THWC
    except MediaError:
        return "refused"
    if len(frames_THWC) != len(whole_THWC):
        return "other frames"
    return "unharmed" if np.array_equal(frames_THWC, whole_THWC) else "other pixels"


if __name__ == "__main__":
    sys.exit(in_one_line(main))
