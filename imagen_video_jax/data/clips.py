"""One decoded video -> one clip of fixed frames, height, width and frame rate.

Time: a window is chosen at random, its frames are those nearest to the ticks of the wanted rate (nothing is blended),
so the window's first frame is also the phase of the frame skip. Space: an antialiased resize, aspect kept, until the
frame just covers the target, then a crop. No flips: a caption may say left.
"""

import dataclasses
from typing import Literal

import numpy as np

from imagen_video_jax.errors import UserError
from imagen_video_jax.video.cover import cover, resize_uint8
from imagen_video_jax.video.files import Video, select_frames


class ShortClipError(UserError):
    """A video with too few frames for the clip, where the spec says to skip those."""


@dataclasses.dataclass(frozen=True)
class ClipSpec:
    """What every clip of a batch looks like.

    Attributes:
      frames: 1 for images (a video then gives one of its frames).
      height, width: pixels.
      fps: frames per second of the clip; a single frame has no rate, so it becomes 0.
      crop: where the covered frame is cut; "pad" shows all of it within black bars instead.
      short: a video that ends before the clip does repeats its last frame, or is skipped.
      part: height and width of the part of that which is kept, anywhere in it; None for all.
      grid: the part's corner lies on a multiple of so many pixels.
    """

    frames: int
    height: int
    width: int
    fps: float = 0.0
    crop: Literal["centre", "random", "pad"] = "centre"
    short: Literal["repeat", "skip"] = "repeat"
    part: tuple[int, int] | None = None
    grid: int = 1

    def __post_init__(self):
        if min(self.frames, self.height, self.width) < 1:
            raise UserError(f"a clip needs positive sizes, got {self.frames} x {self.height} x {self.width}")
        if self.frames == 1:
            object.__setattr__(self, "fps", 0.0)
        elif not self.fps > 0:
            raise UserError(f"a clip of {self.frames} frames needs a positive fps, got {self.fps}")
        if self.crop not in ("centre", "random", "pad"):
            raise UserError(f"crop is centre, random or pad, got {self.crop!r}")
        if self.short not in ("repeat", "skip"):
            raise UserError(f"short is repeat or skip, got {self.short!r}")
        if self.part and not (1 <= self.part[0] <= self.height and 1 <= self.part[1] <= self.width):
            raise UserError(f"a part of {self.part} is not in a clip of {self.height} x {self.width}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what is made."""
        return self.part or (self.height, self.width)


def frames_needed(spec: ClipSpec, fps: float) -> int:
    """How many consecutive frames at `fps` a clip spans."""
    if spec.frames == 1:
        return 1
    return int(np.floor((spec.frames - 1) * fps / spec.fps + 0.5)) + 1


def is_short(video: Video, spec: ClipSpec) -> bool:
    return len(video.frames_THWC) < frames_needed(spec, video.fps)


def cut_clip(video: Video, spec: ClipSpec, rng: np.random.Generator) -> np.ndarray:
    """uint8 [frames, *spec.size, 3]. Depends on the video, the spec and `rng` only.

    Raises:
      ShortClipError: the video is too short and the spec says `short="skip"`.
    """
    count = len(video.frames_THWC)
    needed = frames_needed(spec, video.fps)
    if needed > count and spec.short == "skip":
        raise ShortClipError(
            f"too short: {count} frames at {video.fps:g} frames/s, {spec.frames} at {spec.fps:g} need {needed}"
        )
    start = int(rng.integers(max(0, count - needed) + 1))
    if spec.frames == 1:
        indices = np.array([start])
    else:
        indices = select_frames(count, fps=video.fps, target_fps=spec.fps, frames=spec.frames, start=start)
    if spec.crop == "pad":
        return _part(_pad(video.frames_THWC[indices], spec.height, spec.width), spec, rng)
    clip_THWC = cover(video.frames_THWC[indices], height=spec.height, width=spec.width)
    spare_height, spare_width = clip_THWC.shape[1] - spec.height, clip_THWC.shape[2] - spec.width
    top, left = spare_height // 2, spare_width // 2
    if spec.crop == "random":
        top, left = int(rng.integers(spare_height + 1)), int(rng.integers(spare_width + 1))
    return _part(clip_THWC[:, top : top + spec.height, left : left + spec.width], spec, rng)


def _part(clip_THWC: np.ndarray, spec: ClipSpec, rng: np.random.Generator) -> np.ndarray:
    if spec.part:
        height, width = spec.part
        top, left = (
            spec.grid * int(rng.integers((whole - own) // spec.grid + 1))
            for whole, own in zip(clip_THWC.shape[1:3], spec.part)
        )
        clip_THWC = clip_THWC[:, top : top + height, left : left + width]
    return np.ascontiguousarray(clip_THWC)


def _pad(video_THWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """The whole frames, as large as they fit, in the middle of black."""
    frame_height, frame_width = video_THWC.shape[1:3]
    scale = min(height / frame_height, width / frame_width)
    inner = min(height, max(1, round(frame_height * scale))), min(width, max(1, round(frame_width * scale)))
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    padded_THWC = np.zeros((len(video_THWC), height, width, 3), np.uint8)
    padded_THWC[:, top : top + inner[0], left : left + inner[1]] = resize_uint8(video_THWC, *inner)
    return padded_THWC
