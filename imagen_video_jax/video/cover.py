"""Frames on the host, without jax: antialiased resize, and the size that covers a clip.

Apart from `frames.py` because the processes that decode must start fast and small.
"""

import numpy as np
from PIL import Image


def resize_uint8(video_THWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """Antialiased bilinear resize of every uint8 frame."""
    if video_THWC.shape[1:3] == (height, width):
        return video_THWC
    frames = [
        np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR)) for frame in video_THWC
    ]
    return np.stack(frames)


def cover_size(frame_height: int, frame_width: int, *, height: int, width: int) -> tuple[int, int]:
    """The smallest size of the same aspect that covers height x width."""
    if frame_height * width <= frame_width * height:  # wider than the target: the height decides
        return height, max(width, round(frame_width * height / frame_height))
    return max(height, round(frame_height * width / frame_width)), width


def cover(video_THWC: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """Antialiased resize of uint8 frames to `cover_size`; again on its own result, it changes nothing."""
    covered_height, covered_width = cover_size(*video_THWC.shape[1:3], height=height, width=width)
    return resize_uint8(video_THWC, covered_height, covered_width)
