"""The embedded default data: captioned clips of moving shapes and words, and images in styles no clip has.

Everything is drawn from (seed, index), nothing is downloaded, and every file is labelled. `write_motion_shapes` leaves
an ordinary data set that any reader of folders can use:

    FOLDER/clips/000000.mp4, images/000000.png, captions.jsonl (a line per file), metadata.json

A tenth of the combinations of shape, colour and motion is held out of training, to see what a model composes. This
file writes; scenes, captions, drawing and styles are in the `motion_shapes_*` files beside it.
"""

import concurrent.futures
import concurrent.futures.process
import dataclasses
import fractions
import json
import multiprocessing
import os
import pathlib
import signal
import threading
from collections.abc import Callable

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from PIL import Image

from imagen_video_jax import storage
from imagen_video_jax.data.motion_shapes_captions import captions_of, names_a_figure, paraphrase_of
from imagen_video_jax.data.motion_shapes_render import render
from imagen_video_jax.data.motion_shapes_scene import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    SIZES,
    SPLITS,
    STYLES,
    WORDS,
    Scene,
    held_out_combinations,
    make_scene,
    scene_of,
)
from imagen_video_jax.errors import FAILED, UserError

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "MOTIONS",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "STYLES",
    "WORDS",
    "Scene",
    "captions_of",
    "end_with_parent",
    "held_out_combinations",
    "make_scene",
    "names_a_figure",
    "paraphrase_of",
    "render",
    "scene_of",
    "write_motion_shapes",
]

VERSION = 1
_CAPTIONS_PER_FILE = 2


def write_motion_shapes(
    folder: str | os.PathLike,
    *,
    clips: int,
    images: int,
    seed: int,
    split: str = "train",
    frames: int = 64,
    height: int = 96,
    width: int = 160,
    fps: float = 24.0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pathlib.Path:
    """Writes a labelled data set to `folder` and returns it; after an interruption, call again to go on.

    Files that are there are kept, so a larger `clips` or `images` extends a data set. captions.jsonl comes last: a
    folder without it is unfinished.

    Args:
      workers: processes that draw and encode, by default one per CPU; 1 works in this process.
      progress: called with (files done, files in all) after every file.

    Raises:
      UserError: for a number out of range, a folder that cannot be written, or one that holds another data set.
    """
    workers = (os.cpu_count() or 1) if workers is None else workers
    limits = {
        "clips": (clips, 0),
        "images": (images, 0),
        "seed": (seed, 0),
        "frames": (frames, 1),
        "workers": (workers, 1),
    }
    limits |= {"height": (height, 8), "width": (width, 8), "fps": (fps, 0.1)}
    for name, (value, least) in limits.items():
        if value < least:
            raise UserError(f"{name} must be at least {least}, got {value}")
    if split not in SPLITS:
        raise UserError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    folder = storage.writable_folder(folder)
    drawing = {"seed": seed, "split": split, "frames": frames, "height": height, "width": width, "fps": fps}
    settings = drawing | {"version": VERSION}
    _check_same(folder, settings, {"clips": clips, "images": images})
    metadata = settings | {"clips": clips, "images": images}
    storage.write_json(folder / "metadata.json", metadata | {"held_out": held_out_combinations()})

    tasks = [_Task(folder, i, image, **drawing) for image, n in ((False, clips), (True, images)) for i in range(n)]
    for subfolder in ("clips", "images"):
        (folder / subfolder).mkdir(exist_ok=True)
    missing = [task for task in tasks if not task.path.exists()]
    done = len(tasks) - len(missing)
    for _ in _each(_write_file, missing, min(workers, len(missing))):
        done += 1
        if progress:
            progress(done, len(tasks))
    storage.write_text(folder / "captions.jsonl", "".join(json.dumps(task.row()) + "\n" for task in tasks))
    return folder


def _check_same(folder: pathlib.Path, settings: dict, counts: dict) -> None:
    """UserError if `folder` already holds a data set that these settings would not extend."""
    if not (folder / "metadata.json").exists():
        return
    found = storage.read_json(folder / "metadata.json")
    for name, value in settings.items():
        if found.get(name) != value:
            raise UserError(
                f"{folder} holds motion_shapes with {name} {found.get(name)}, not {value}; choose another folder"
            )
    for name, value in counts.items():
        if found.get(name, 0) > value:
            raise UserError(f"{folder} already holds {found[name]} {name}, more than {value}; choose another folder")


@dataclasses.dataclass(frozen=True)
class _Task:
    """One file to write, small enough to send to another process."""

    folder: pathlib.Path
    index: int
    image: bool
    seed: int
    split: str
    frames: int
    height: int
    width: int
    fps: float

    @property
    def name(self) -> str:
        return f"images/{self.index:06d}.png" if self.image else f"clips/{self.index:06d}.mp4"

    @property
    def path(self) -> pathlib.Path:
        return self.folder / self.name

    @property
    def scene(self) -> Scene:
        """The scene, its motion stretched over the whole clip."""
        scene = make_scene(self.seed, self.index, split=self.split, image=self.image)
        return dataclasses.replace(scene, seconds=self.frames / self.fps)

    def row(self) -> dict:
        """The line of captions.jsonl."""
        captions = captions_of(self.scene, _CAPTIONS_PER_FILE)
        return {"path": self.name, "caption": captions[0], "captions": captions} | self.scene.labels()


def _write_file(task: _Task) -> None:
    frames = 1 if task.image else task.frames
    video_THWC = render(task.scene, frames=frames, height=task.height, width=task.width, fps=task.fps)
    with storage.atomic_path(task.path) as temporary:
        if task.image:
            Image.fromarray(video_THWC[0]).save(temporary)
        else:
            _encode(temporary, video_THWC, task.fps)


def _encode(path: pathlib.Path, video_THWC: np.ndarray, fps: float) -> None:
    """h264 in full colour resolution; half of it, as players want and `video.files` writes, doubles the error.

    Measured inside shapes at 96x160, mean over 30 clips: 1.5 of 255 here, 3.0 there. One thread and no B-frames: the
    same frames give the same bytes, and the workers already fill the machine.
    """
    _, height, width, _ = video_THWC.shape
    rate = fractions.Fraction(fps).limit_denominator(1001)  # 23.976 is 24000/1001
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "14", "preset": "medium", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        codec = stream.codec_context
        codec.thread_count = 1
        # Untagged files are BT.601 to one player and BT.709 to the next.
        codec.colorspace, codec.color_range = Colorspace.ITU709, ColorRange.MPEG
        codec.color_primaries, codec.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        for frame_HWC in video_THWC:
            frame = av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")
            frame = frame.reformat(
                format="yuv444p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
                threads=1,
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _each(function, items: list, workers: int):
    """Yields function(item) for each item in order, worked out in this process or in `workers` new ones."""
    if workers <= 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")  # fork is not safe once jax or another threaded library is loaded
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent) as pool:
        try:
            yield from pool.map(function, items, chunksize=4)
        except concurrent.futures.process.BrokenProcessPool:
            reason = "out of memory, or the calling script has no `if __name__ == '__main__':`"
            raise UserError(f"a worker process ended ({reason}); use workers=1", FAILED) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def end_with_parent() -> None:
    """For a worker's start: it leaves Ctrl-C to its parent, and ends when its parent is gone, however that went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
