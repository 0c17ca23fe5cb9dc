"""The figures of motion_shapes: which part of each pixel a shape, solid or word covers, and how bright it is there.

All frames at once: signed distances in pixels give the coverage of each pixel, clip(1/2 - d, 0, 1), which is
antialiasing by area for edges that are straight within a pixel. Solids are projected orthographically; the edges
between a face that is seen and one that is not make their contour, and inside it the faces share each pixel.

`flat` and `solid` get pixel centres relative to the figure, x_T1w to the right and y_Th1 up, in units of its radius,
and scale_T11, that radius in pixels. They return coverage and shade (T, h, w) in [0, 1], with shade <= coverage.
"""

import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from imagen_video_jax.data.motion_shapes_scene import Scene

_SPIN_PERIOD = 8 / 3  # seconds per turn of a coin: its width repeats every 4 frames at 3 fps
_TUMBLE_RATE = np.radians(115)  # per second: 38 degrees a frame at 3 fps, well below the 90 that hide a cube's turn
_REST_RATE = np.radians(12)  # the slow turn that solids always have, so that they look solid
_LIGHT = np.array([-0.40, 0.72, 0.57])
_AMBIENT = 0.46


# Flat shapes: signed distances of shapes of radius 1.


def _convex(points: list[tuple[float, float]], x, y):
    """Largest distance to the edges of a convex polygon (vertices counter-clockwise)."""
    distance = None
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1]):
        length = float(np.hypot(bx - ax, by - ay))
        nx, ny = (by - ay) / length, (ax - bx) / length
        edge = x * nx + (y * ny - (ax * nx + ay * ny))
        distance = edge if distance is None else np.maximum(distance, edge, out=distance)
    return distance


def _star(x, y):
    """A five-pointed star: the plane is folded onto one half of one point, where a single edge remains."""
    sector = 2 * np.pi / 5
    angle = np.arctan2(x, y)  # 0 at the upper point
    angle = np.abs(angle - sector * np.rint(angle / sector))
    radius = np.hypot(x, y)
    px, py = radius * np.sin(angle), radius * np.cos(angle)
    tip, notch, turn = 1.12, 0.44, sector / 2
    ex, ey = notch * np.sin(turn), notch * np.cos(turn) - tip
    length = np.hypot(ex, ey)
    return (px * -ey + (py - tip) * ex) / length


_FLAT_DISTANCE = {
    "circle": lambda x, y: np.hypot(x, y) - 1,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.9,
    "triangle": lambda x, y: _convex([(-1.05, -0.86), (1.05, -0.86), (0, 0.98)], x, y),
    "star": lambda x, y: _star(x, y + 0.06),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.77) - 0.23,
}


def flat(scene: Scene, times_T, x_T1w, y_Th1, scale_T11):
    """Coverage of a flat shape; spinning it turns it about the vertical axis, like a coin."""
    distance = _FLAT_DISTANCE[scene.shape]
    if scene.motion != "spin":
        tilt = np.float32(np.radians(7) * scene.angle)
        x_T1w, y_Th1 = x_T1w * np.cos(tilt) + y_Th1 * np.sin(tilt), y_Th1 * np.cos(tilt) - x_T1w * np.sin(tilt)
        cover_Thw = np.clip(0.5 - distance(x_T1w, y_Th1) * scale_T11, 0, 1)
        return cover_Thw, cover_Thw
    turn_T = 2 * np.pi * (times_T / _SPIN_PERIOD + scene.phase)
    squeeze_T11 = np.hypot(np.cos(turn_T), 0.1)[:, None, None].astype(np.float32)  # 0.1: the coin's thickness
    # Squeezed distances are not distances, so the horizontal direction is sampled eight times a pixel instead.
    steps = (np.arange(8, dtype=np.float32) + 0.5) / 8 - 0.5
    x_T1w8 = (x_T1w[..., None] + steps / scale_T11[..., None]) / squeeze_T11[..., None]
    cover_Thw8 = np.clip(0.5 - distance(x_T1w8, y_Th1[..., None]) * scale_T11[..., None], 0, 1)
    cover_Thw = cover_Thw8.mean(axis=-1)
    return cover_Thw, cover_Thw


# Solids.


def _rotation(axis: tuple[float, float, float], angle_T) -> np.ndarray:
    """Rotation matrices (T, 3, 3) about an axis (Rodrigues)."""
    x, y, z = np.array(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle_T11 = np.asarray(angle_T)[:, None, None]
    return np.eye(3) + np.sin(angle_T11) * cross + (1 - np.cos(angle_T11)) * (cross @ cross)


def _pose(scene: Scene, times_T: np.ndarray) -> np.ndarray:
    """How a solid is turned: slowly about its own axis and seen from above; tumbling over and over when it spins."""
    still_T = np.zeros_like(times_T)
    start = {"cube": 35, "pyramid": 38, "cylinder": 0}[scene.shape] + 8 * scene.angle
    rest_T = np.radians(start) + _REST_RATE * (times_T - scene.seconds / 2)
    pose = _rotation((1, 0, 0), still_T + np.radians(30)) @ _rotation((0, 1, 0), rest_T)
    if scene.shape == "cylinder":  # turning about its axis would not show, so it sways
        pose = _rotation((0, 0, 1), np.radians(8) * np.sin(1.5 * times_T + 6 * scene.phase)) @ pose
    if scene.motion == "spin":
        pose = _rotation((0.35, 0.30, 0.89), _TUMBLE_RATE * times_T + 2 * np.pi * scene.phase) @ pose
    return pose


def _cube_faces() -> np.ndarray:
    s = 0.67
    square = np.array([(-s, -s, s), (s, -s, s), (s, s, s), (-s, s, s)])
    turns = [_rotation((0, 1, 0), [k * np.pi / 2])[0] for k in range(4)]
    turns += [_rotation((1, 0, 0), [k * np.pi / 2])[0] for k in (1, 3)]
    return np.stack([square @ turn.T for turn in turns])


def _pyramid_faces() -> np.ndarray:
    s, base, apex = 0.80, -0.66, (0.0, 1.0, 0.0)
    corners = [(-s, base, s), (s, base, s), (s, base, -s), (-s, base, -s)]
    sides = [[a, b, apex, apex] for a, b in zip(corners, corners[1:] + corners[:1])]
    return np.array([*sides, corners[::-1]])


def _neighbours(faces_F43: np.ndarray) -> np.ndarray:
    """The face across each edge, int (F, 4); itself where the edge has no length (a triangle's fourth)."""
    ends_F43 = np.roll(faces_F43, -1, axis=1)
    found_F4 = np.empty(faces_F43.shape[:2], int)
    for face, edge in np.ndindex(found_F4.shape):
        there = np.abs(faces_F43 - ends_F43[face, edge]).max(-1) < 1e-9
        back = np.abs(ends_F43 - faces_F43[face, edge]).max(-1) < 1e-9
        found_F4[face, edge] = np.argwhere(there & back)[0][0]
    return found_F4


_FACES = {"cube": (_cube_faces(), 3), "pyramid": (_pyramid_faces(), 4)}  # faces (F, 4, 3), how many can be seen at once
_NEIGHBOURS = {name: _neighbours(faces_F43) for name, (faces_F43, _) in _FACES.items()}


def _brightness(normal):
    """How bright a surface is, from its unit normal (..., 3): a lamp from the upper left and light all around."""
    return np.clip(_AMBIENT + 0.60 * (normal @ _LIGHT), 0.44, 1.0).astype(np.float32)


def solid(scene: Scene, times_T, x_T1w, y_Th1, scale_T11):
    pose_T33 = _pose(scene, times_T)
    if scene.shape == "cylinder":
        return _cylinder(pose_T33, x_T1w, y_Th1, scale_T11)
    faces_F43, most_seen = _FACES[scene.shape]
    points_TF43 = np.einsum("tij,fpj->tfpi", pose_T33, faces_F43)
    normal_TF3 = np.cross(points_TF43[:, :, 1] - points_TF43[:, :, 0], points_TF43[:, :, 2] - points_TF43[:, :, 0])
    normal_TF3 /= np.linalg.norm(normal_TF3, axis=-1, keepdims=True)
    seen_TF = normal_TF3[..., 2] > 0
    # The contour is where a face that is seen meets one that is not; only there the background shows.
    contour_TF4 = seen_TF[:, :, None] & ~seen_TF[:, _NEIGHBOURS[scene.shape]]
    shape_Thw = (len(times_T), y_Th1.shape[1], x_T1w.shape[2])
    outside_Thw, weight_Thw, shade_Thw = (np.zeros(shape_Thw, np.float32) for _ in range(3))
    rows = np.arange(len(times_T))
    for face_T in np.argsort(-normal_TF3[..., 2], axis=1)[:, :most_seen].T:
        points_T42, contour_T4 = points_TF43[rows, face_T, :, :2], contour_TF4[rows, face_T]
        part_Thw = _face(points_T42, contour_T4, x_T1w, y_Th1, scale_T11, outside_Thw)
        part_Thw *= seen_TF[rows, face_T][:, None, None]
        weight_Thw += part_Thw
        part_Thw *= _brightness(normal_TF3[rows, face_T])[:, None, None]
        shade_Thw += part_Thw
    cover_Thw = np.clip(1 - outside_Thw, 0, 1)
    shade_Thw *= cover_Thw / np.maximum(weight_Thw, 1e-6)
    return cover_Thw, np.minimum(shade_Thw, cover_Thw, out=shade_Thw)


def _face(points_T42, contour_T4, x_T1w, y_Th1, scale_T11, outside_Thw) -> np.ndarray:
    """How much of each pixel lies on a convex face, as the product over its edges, which is good between faces.

    What contour edges cut off is added to `outside_Thw`; their sum is exact for a strip thinner than a pixel too.
    """
    part_Thw = np.ones_like(outside_Thw)
    for edge in range(4):
        a_T2, b_T2 = points_T42[:, edge], points_T42[:, (edge + 1) % 4]
        along_T2 = b_T2 - a_T2
        length_T = np.hypot(*along_T2.T)
        normal_T2 = np.stack([along_T2[:, 1], -along_T2[:, 0]], axis=1) / np.maximum(length_T, 1e-6)[:, None]
        drawn_T = length_T > 1e-6  # the fourth point of a triangle repeats the third
        offset_T = np.where(drawn_T, np.sum(normal_T2 * a_T2, axis=1), 1e3)
        nx_T11, ny_T11, offset_T11 = (
            value_T[:, None, None].astype(np.float32) * scale_T11 for value_T in (*normal_T2.T, offset_T)
        )
        cut_Thw = x_T1w * nx_T11 + (y_Th1 * ny_T11 - offset_T11 + np.float32(0.5))
        np.clip(cut_Thw, 0, 1, out=cut_Thw)
        if contour_T4[:, edge].any():
            outside_Thw += cut_Thw * contour_T4[:, edge, None, None]
        part_Thw *= np.subtract(1, cut_Thw, out=cut_Thw)
    return part_Thw


def _ellipse(p, q, a_T11, b):
    """Approximate distance to the ellipse (p/a)^2 + (q/b)^2 = 1: value over gradient, good near the edge."""
    value = np.hypot(p / a_T11, q / b)
    gradient = np.hypot(p / a_T11**2, q / b**2)
    return value * (value - 1) / np.maximum(gradient, 1e-6)


def _cylinder(pose_T33, x_T1w, y_Th1, scale_T11):
    """An upright can: its side between two ellipses, shaded by the normal, and the end that faces the eye."""
    radius, half = 0.58, 0.80
    axis_T3 = pose_T33[:, :, 1] * np.where(pose_T33[:, 2:3, 1] < 0, -1, 1)  # the end that faces the eye
    flat_T = np.maximum(np.hypot(axis_T3[:, 0], axis_T3[:, 1]), 1e-4)
    ex, ey, length, depth = (
        value[:, None, None].astype(np.float32)
        for value in (axis_T3[:, 0] / flat_T, axis_T3[:, 1] / flat_T, half * flat_T, np.maximum(axis_T3[:, 2], 0.02))
    )
    p, q = x_T1w * ex + y_Th1 * ey, x_T1w * ey - y_Th1 * ex
    side = np.maximum(np.abs(p) - length, np.abs(q) - np.float32(radius))
    end = _ellipse(p - length, q, radius * depth, radius)
    far = _ellipse(p + length, q, radius * depth, radius)
    body = np.clip(0.5 - np.minimum(np.minimum(side, far), end) * scale_T11, 0, 1)
    cap = np.minimum(np.clip(0.5 - end * scale_T11, 0, 1), body)
    # Across the side the normal goes from one rim (q = -r) over the middle, which faces the eye most, to the other.
    across = np.clip(q / radius, -1, 1)
    towards = np.sqrt(1 - across**2)
    lamp_q = ey * _LIGHT[0] - ex * _LIGHT[1]
    lamp_m = flat_T[:, None, None] * _LIGHT[2] - depth * (ex * _LIGHT[0] + ey * _LIGHT[1])
    light = np.clip(_AMBIENT + 0.60 * (across * lamp_q + towards * lamp_m), 0.44, 1).astype(np.float32)
    shade = (body - cap) * light + cap * _brightness(axis_T3)[:, None, None]
    return body, np.minimum(shade, body)


# Words.

_FONT_HEIGHT = 128


@functools.cache
def _letters(word: str) -> tuple[Image.Image, ...]:
    """Each letter of a word at its place on a common canvas, white on black."""
    font = ImageFont.load_default(_FONT_HEIGHT)
    left, top, right, bottom = font.getbbox(word, stroke_width=4)
    letters = []
    for i, letter in enumerate(word):
        canvas = Image.new("L", (round(right - left), round(bottom - top)), 0)
        place = font.getlength(word[:i])
        ImageDraw.Draw(canvas).text((place - left, -top), letter, 255, font=font, stroke_width=4, stroke_fill=255)
        letters.append(canvas)
    return tuple(letters)


def word(scene: Scene, times_T: np.ndarray, height: int, width: int) -> np.ndarray:
    """Coverage (T, H, W) of a word whose letters appear one after the other during the first two thirds of the clip."""
    letters = _letters(scene.word)
    wide, high = letters[0].size
    shrink = min(0.86 * width / wide, 0.5 * height / high)
    size = (max(round(wide * shrink), 1), max(round(high * shrink), 1))
    top = round((height - size[1]) / 2 * (1 + 0.6 * scene.y))
    left = round((width - size[0]) / 2 * (1 + 0.6 * scene.x))
    cover_THW = np.zeros((len(times_T), height, width), np.float32)
    window_Thw = cover_THW[:, top : top + size[1], left : left + size[0]]
    for i, letter in enumerate(letters):
        mask_hw = np.asarray(letter.resize(size, Image.Resampling.BOX), np.float32) / 255
        begin = scene.seconds * 2 / 3 * i / len(letters)
        shown_T = np.ones_like(times_T) if scene.motion == "still" else (times_T >= begin - 1e-6).astype(float)
        np.maximum(window_Thw, mask_hw * shown_T[:, None, None].astype(np.float32), out=window_Thw)
    return cover_THW
