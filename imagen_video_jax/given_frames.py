"""Frames that a person gives to sampling: the input of an upscaling stage, a first frame, a video to go on with."""

import numpy as np

from imagen_video_jax.data.clips import ClipSpec, cut_clip
from imagen_video_jax.errors import UserError
from imagen_video_jax.stages.stage_config import StageConfig
from imagen_video_jax.video.cover import resize_uint8
from imagen_video_jax.video.files import read_video, select_frames
from imagen_video_jax.video.reading import read_media

ASPECT_TOLERANCE = 0.03


def input_video(path: str | None, start_at: str | None, stage: StageConfig) -> np.ndarray | None:
    """The file that enters the first stage, cut to what the stage was trained on (frames, size, rate); uint8 THWC."""
    if stage.kind == "base":
        if path:
            raise UserError("--input needs --start-at a super-resolution stage")
        return None
    if not path:
        raise UserError(f"--start-at {start_at} needs --input VIDEO")
    frames, height, width, fps = stage.input_size
    spec = ClipSpec(frames, height, width, fps)
    return cut_clip(read_video(path), spec, np.random.default_rng(0))


def first_frame(path: str, size: tuple[int, int]) -> np.ndarray:
    """An image as the one known frame, uint8 [1, H, W, 3] of the given (height, width)."""
    frames = read_media(path).frames_THWC[:1]
    return _fitted(path, frames, size)


def ending(path: str, size: tuple[int, int], *, fps: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """A video at the given size and rate: (all of it, its last `count` frames), uint8 THWC."""
    video = read_video(path)
    total = int(len(video.frames_THWC) * fps / video.fps + 1e-6)
    if total < count:
        raise UserError(
            f"{path} lasts {total / fps:.2f} s, less than the {count / fps:.2f} s that the new frames go on from; "
            "give a longer video or a smaller --extend-from"
        )
    chosen = select_frames(len(video.frames_THWC), fps=video.fps, target_fps=fps, frames=total, start=0)
    whole = _fitted(path, video.frames_THWC[chosen], size)
    return whole, whole[-count:]


def _fitted(path: str, frames_THWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Frames resized; UserError where that would distort them."""
    (H, W), (height, width) = frames_THWC.shape[1:3], size
    if abs(W * height / (H * width) - 1.0) > ASPECT_TOLERANCE:
        cut = (H, round(H * width / height)) if W * height > H * width else (round(W * height / width), W)
        raise UserError(
            f"{path} is {H}x{W} (height x width), the videos are {height}x{width}: another aspect. Crop it to "
            f"{cut[0]}x{cut[1]}, or sample at its aspect with --size HEIGHTxWIDTH"
        )
    return resize_uint8(frames_THWC, height, width)
