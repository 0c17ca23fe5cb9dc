"""The artistic styles of motion_shapes images: pencil sketch, watercolour, pixel art, neon.

No video has a style, so a model that makes a neon video has carried it over from images. Each style changes large
structures (outline, filling, ground), which survive at 12x20 pixels, and keeps the hue of the colour. Widths are
fractions of the frame, textures depend on `scene.variation` only.
"""

import numpy as np
from PIL import Image, ImageFilter

from imagen_video_jax.data.motion_shapes_scene import COLOURS, Scene


def paint(scene: Scene, cover_HW: np.ndarray, shade_HW: np.ndarray, background_HW: np.ndarray) -> np.ndarray:
    """One frame (H, W, 3) uint8 in the scene's style, from coverage and shade in [0, 1] and grey levels in [0, 255]."""
    colour_C = np.array(COLOURS[scene.colour], np.float32)
    frame_HWC = _PAINTERS[scene.style](scene.variation, cover_HW, shade_HW, background_HW, colour_C)
    return np.clip(np.rint(frame_HWC), 0, 255).astype(np.uint8)


def _mix(under_HWC, over_C, amount_HW):
    return under_HWC * (1 - amount_HW[..., None]) + over_C * amount_HW[..., None]


def _tone(cover_HW, shade_HW):
    """How brightly the shape is lit, 1 where there is none."""
    return np.divide(shade_HW, cover_HW, out=np.ones_like(shade_HW), where=cover_HW > 0.3)


def _grey(background_HW):
    return np.repeat(background_HW[..., None], 3, axis=-1)


def _filtered(image_HW: np.ndarray, image_filter) -> np.ndarray:
    image = Image.fromarray(np.rint(image_HW * 255).astype(np.uint8)).filter(image_filter)
    return np.asarray(image, np.float32) / 255


def _outline(cover_HW, shade_HW, width: float) -> np.ndarray:
    """Where coverage or shade changes within `width` of the frame's shorter side: the contour and a solid's edges."""
    size = max(round(width * min(cover_HW.shape)) // 2 * 2 + 1, 3)
    layers = (cover_HW, _tone(cover_HW, shade_HW))
    contour, edges = (
        _filtered(layer, ImageFilter.MaxFilter(size)) - _filtered(layer, ImageFilter.MinFilter(size))
        for layer in layers
    )
    inside = _filtered(cover_HW, ImageFilter.MinFilter(size))
    return np.maximum(contour, np.clip(edges * 5 - 0.3, 0, 1) * inside)


def _clouds(seed: int, shape_HW, cell: float) -> np.ndarray:
    """Smooth noise in [0, 1] with features of `cell` of the frame's shorter side."""
    height, width = shape_HW
    step = cell * min(height, width)
    grid = np.random.default_rng(seed).random((max(round(height / step), 2), max(round(width / step), 2)))
    image = Image.fromarray(np.rint(grid * 255).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32) / 255


def _pencil(seed, cover_HW, shade_HW, background_HW, colour_C):
    """Coloured pencil: a dark contour, hatching that leaves paper bare, a grain on everything."""
    height, width = cover_HW.shape
    y, x = np.mgrid[:height, :width] / min(height, width)
    wobble = _clouds(seed, cover_HW.shape, 0.12) * 0.06
    hatch_HW = np.clip(0.5 + 3 * np.sin(2 * np.pi * (x + y + wobble) / 0.11), 0.12, 1)
    grain_HW = np.random.default_rng(seed).random(cover_HW.shape) ** 2
    lines_HW = _outline(cover_HW, shade_HW, 0.03)
    paper_HWC = _grey(background_HW - 30 * grain_HW)
    tone_HW = _tone(cover_HW, shade_HW)
    pressed_HWC = colour_C * (0.92 * tone_HW)[..., None]
    frame_HWC = _mix(paper_HWC, pressed_HWC, cover_HW * np.maximum(hatch_HW, 1 - tone_HW) * (0.9 - 0.35 * grain_HW))
    return _mix(frame_HWC, colour_C * 0.42, lines_HW * (0.95 - 0.3 * grain_HW))


def _watercolour(seed, cover_HW, shade_HW, background_HW, colour_C):
    """Thin paint that runs: soft uneven contour, pools of pigment, and a pale wash of the colour around."""
    radius = 0.022 * min(cover_HW.shape)
    clouds_HW = _clouds(seed, cover_HW.shape, 0.10)
    soft_HW = _filtered(cover_HW, ImageFilter.GaussianBlur(radius))
    body_HW = np.clip((soft_HW - 0.5) * 5 + 0.5 + 2.2 * (clouds_HW - 0.5), 0, 1) * (soft_HW > 0.04)
    rim_HW = np.clip(body_HW - _filtered(body_HW, ImageFilter.GaussianBlur(1.6 * radius)), 0, 1)
    tone_HW = _tone(cover_HW, shade_HW)
    halo_HW = _filtered(cover_HW, ImageFilter.GaussianBlur(6 * radius)) * (0.25 + 0.75 * clouds_HW)
    frame_HWC = _mix(_grey(background_HW - 14 * _clouds(seed + 1, cover_HW.shape, 0.2)), colour_C, 0.6 * halo_HW)
    pigment_HW = body_HW * (0.30 + 0.38 * _clouds(seed + 2, cover_HW.shape, 0.16) + 0.9 * rim_HW)
    return _mix(frame_HWC, colour_C * np.clip(0.35 + 0.65 * tone_HW, 0, 1)[..., None], np.clip(pigment_HW, 0, 1))


def _pixel_art(seed, cover_HW, shade_HW, background_HW, colour_C):
    """Large hard pixels in few tones, with a black (on black: white) contour one pixel wide."""
    height, width = cover_HW.shape
    small = (max(round(24 * width / min(height, width)), 1), max(round(24 * height / min(height, width)), 1))

    def shrink(image_HW):
        return np.asarray(Image.fromarray(image_HW.astype(np.float32)).resize(small, Image.Resampling.BOX))

    cover_hw, shade_hw, ground_hw = shrink(cover_HW), shrink(shade_HW), np.rint(shrink(background_HW) / 32) * 32
    solid_hw = cover_hw > 0.5
    tone_hw = _tone(cover_hw, shade_hw)
    rows, columns = np.mgrid[: small[1], : small[0]]
    tone_hw = np.where((rows + columns) % 2 == 0, 1.0, 0.62) * np.clip(np.rint(tone_hw * 3) / 3, 0.4, 1)
    grown_hw = _filtered(solid_hw.astype(np.float32), ImageFilter.MaxFilter(3)) > 0.5
    line = 255 if ground_hw.mean() < 40 else 0
    frame_hwC = np.where(solid_hw[..., None], colour_C * tone_hw[..., None], _grey(ground_hw))
    frame_hwC = np.where((grown_hw & ~solid_hw)[..., None], line, frame_hwC)
    frame = Image.fromarray(np.clip(np.rint(frame_hwC), 0, 255).astype(np.uint8))
    return np.asarray(frame.resize((width, height), Image.Resampling.NEAREST), np.float32)


def _neon(seed, cover_HW, shade_HW, background_HW, colour_C):
    """A glass tube along the contour that glows into the dark; the inside stays dark."""
    unit = min(cover_HW.shape)
    tube_HW = _outline(cover_HW, shade_HW, 0.042)
    tube_HW = _filtered(tube_HW, ImageFilter.GaussianBlur(0.008 * unit))
    glow_HW = _filtered(tube_HW, ImageFilter.GaussianBlur(0.06 * unit))
    core_HW = np.clip(tube_HW * 2.4 - 1.75, 0, 1)
    light_HWC = _grey(background_HW) + colour_C * np.clip(tube_HW + 0.9 * glow_HW, 0, 1.1)[..., None]
    return light_HWC + 70 * core_HW[..., None]


_PAINTERS = {"pencil sketch": _pencil, "watercolour": _watercolour, "pixel art": _pixel_art, "neon": _neon}
