"""Drawing of motion_shapes: a scene becomes uint8 frames of any size and frame rate. numpy and Pillow only.

A shape is drawn in a window around it, all frames at once (`motion_shapes_figures`). A frame of a video is then
background (1 - coverage) + colour * shade; an image in another style is painted from the same two layers.

Coordinates: the shorter side of the frame has length 1, the origin is the middle, x points right, y up, z to the eye.
"""

import numpy as np

from imagen_video_jax.data.motion_shapes_figures import flat, solid, word
from imagen_video_jax.data.motion_shapes_scene import BACKGROUNDS, COLOURS, FLAT_SHAPES, WORD_SHAPE, Scene
from imagen_video_jax.data.motion_shapes_style import paint

_SMOOTH_HEIGHT = 48  # smaller frames are drawn larger and averaged: a star of 5 pixels has no straight edges
_BOUNCE_PERIOD = 4 / 3
_GROWTH = {"small": (0.88, 1.85), "large": (0.72, 1.60)}


def render(scene: Scene, *, frames: int = 64, height: int = 96, width: int = 160, fps: float = 24.0) -> np.ndarray:
    """The scene as uint8 RGB frames (frames, height, width, 3); frame i shows the moment i / fps."""
    times_T = np.arange(frames) / fps
    factor = -(-_SMOOTH_HEIGHT // min(height, width)) if scene.style == "plain" else -(-96 // min(height, width))
    background_HW = background(scene, height * factor, width * factor)
    if scene.style == "plain":
        video_THWC = _draw(scene, times_T, background_HW)
    else:
        cover_THW, shade_THW = _layers(scene, times_T, background_HW.shape)
        video_THWC = np.stack([paint(scene, *layers, background_HW) for layers in zip(cover_THW, shade_THW)])
    return _average(video_THWC, factor)


def background(scene: Scene, height: int, width: int) -> np.ndarray:
    """The grey levels behind the shape, float32 (height, width): one level, or soft-edged vertical stripes."""
    low, high = BACKGROUNDS[scene.background]
    unit = min(height, width)
    x_W = (np.arange(width) + 0.5 - width / 2) / unit
    period = 1 / 3
    # Distance in pixels to the nearest edge of a stripe, signed; clipping it antialiases the edge.
    edge_W = (np.abs((x_W / period) % 1 - 0.5) - 0.25) * period * unit
    row_W = low + (high - low) * np.clip(0.5 + edge_W, 0, 1)
    return np.broadcast_to(row_W.astype(np.float32), (height, width))


def _average(video_THWC: np.ndarray, factor: int) -> np.ndarray:
    if factor == 1:
        return video_THWC
    T, H, W, C = video_THWC.shape
    blocks = video_THWC.reshape(T, H // factor, factor, W // factor, factor, C)
    return np.rint(blocks.mean(axis=(2, 4), dtype=np.float32)).astype(np.uint8)


# Where the shape is.


def placement(
    scene: Scene, times_T: np.ndarray, *, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre x, centre y and radius of the shape at each time, in units of the shorter side of the frame."""
    half_x, half_y = width / min(height, width) / 2, height / min(height, width) / 2
    done_T = np.clip(times_T / scene.seconds, 0, 1)
    radius_T = np.full(len(times_T), scene.diameter / 2)
    if scene.motion in ("grow", "shrink"):
        small, big = _GROWTH[scene.size]
        radius_T *= small + (big - small) * (done_T if scene.motion == "grow" else 1 - done_T)
    room_x, room_y = (max(half - radius_T.max(), 0.0) for half in (half_x, half_y))
    x_T, y_T = np.full_like(radius_T, 0.7 * scene.x * room_x), np.full_like(radius_T, 0.7 * scene.y * room_y)
    # A large shape may leave the frame by a little: else it would hardly move up or down.
    way_x, way_y = max(room_x, 0.28) * scene.reach, max(room_y, 0.28) * scene.reach
    if scene.motion in ("left", "right"):
        x_T = way_x * (2 * done_T - 1) * (1 if scene.motion == "right" else -1)
    if scene.motion in ("up", "down"):
        y_T = way_y * (2 * done_T - 1) * (1 if scene.motion == "up" else -1)
    if scene.motion == "bounce":
        cycle_T = (times_T / _BOUNCE_PERIOD + scene.phase) % 1
        floor, top = radius_T - half_y, max(room_y, 0.28) * scene.reach
        y_T = floor + (top - floor) * 4 * cycle_T * (1 - cycle_T)  # a parabola: thrown, not carried
    return x_T, y_T, radius_T


def _draw(scene: Scene, times_T: np.ndarray, background_HW: np.ndarray) -> np.ndarray:
    """Plain style: only the window around the shape is computed."""
    colour_C = np.array(COLOURS[scene.colour], np.float32)
    height, width = background_HW.shape
    video_THWC = np.empty((len(times_T), height, width, 3), np.uint8)
    video_THWC[...] = np.rint(background_HW).astype(np.uint8)[None, :, :, None]
    cover_Thw, shade_Thw, top_T, left_T = _window(scene, times_T, height, width)
    for frame_HWC, cover_hw, shade_hw, top, left in zip(video_THWC, cover_Thw, shade_Thw, top_T, left_T):
        # The part of the window that lies inside the frame.
        y0, x0 = max(top, 0), max(left, 0)
        y1, x1 = min(top + cover_hw.shape[0], height), min(left + cover_hw.shape[1], width)
        if y0 >= y1 or x0 >= x1:
            continue
        inside = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        under_hw = background_HW[y0:y1, x0:x1] * (1 - cover_hw[inside])
        frame_HWC[y0:y1, x0:x1] = under_hw[..., None] + shade_hw[inside][..., None] * colour_C + 0.5
    return video_THWC


def _layers(scene: Scene, times_T: np.ndarray, shape_HW: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and shade of whole frames, float32 (T, H, W): what the painting styles start from."""
    height, width = shape_HW
    cover_Thw, shade_Thw, top_T, left_T = _window(scene, times_T, height, width)
    _, h, w = cover_Thw.shape
    layers = np.zeros((2, len(times_T), height + 2 * h, width + 2 * w), np.float32)
    for t, (top, left) in enumerate(zip(top_T, left_T)):
        y, x = int(np.clip(top + h, 0, height + h)), int(np.clip(left + w, 0, width + w))
        layers[:, t, y : y + h, x : x + w] = cover_Thw[t], shade_Thw[t]
    return tuple(layers[:, :, h : h + height, w : w + width])


def _window(scene: Scene, times_T: np.ndarray, height: int, width: int):
    """Coverage and shade (T, h, w) of the shape in a moving window, and the window's top and left pixel per frame."""
    if scene.shape == WORD_SHAPE:
        cover_THW = word(scene, times_T, height, width)
        zeros = [0] * len(times_T)
        return cover_THW, cover_THW, zeros, zeros
    x_T, y_T, radius_T = placement(scene, times_T, height=height, width=width)
    unit = min(height, width)
    column_T, row_T = width / 2 + x_T * unit, height / 2 - y_T * unit
    reach = int(np.ceil(radius_T.max() * unit * 1.25)) + 2
    left_T, top_T = np.floor(column_T).astype(int) - reach, np.floor(row_T).astype(int) - reach
    pixels = np.arange(2 * reach + 1) + 0.5
    scale_T11 = (radius_T * unit)[:, None, None].astype(np.float32)
    x_T1w = ((left_T - column_T)[:, None] + pixels)[:, None, :].astype(np.float32) / scale_T11
    y_Th1 = ((row_T - top_T)[:, None] - pixels)[:, :, None].astype(np.float32) / scale_T11
    draw = flat if scene.shape in FLAT_SHAPES else solid
    cover_Thw, shade_Thw = draw(scene, times_T, x_T1w, y_Th1, scale_T11)
    return cover_Thw, shade_Thw, top_T.tolist(), left_T.tolist()
