"""OCR accuracy: does a video show the text that its caption asks for?

The text is the `word` of a motion_shapes label, else what the caption has in double quotes: a sign that says "Open".
It is read by the PP-OCRv4 networks of the wheel rapidocr-onnxruntime (extra `judge`), which carries their weights.
"""

import importlib.metadata
import importlib.util
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from imagen_video_jax import storage
from imagen_video_jax.errors import UserError
from imagen_video_jax.video.cover import resize_uint8

INSTALL = "pip install 'imagen_video_jax[judge]'"
MOMENTS = (0.5, 1.0)  # of the clip, at which a frame is read: text may appear, or pass by
_SIDE = 320  # pixels of the longer side at least: smaller letters are not found
_QUOTED = re.compile('["“”„]([^"“”„]+)["“”]')


class Reader:
    """The networks; UserError where the wheel is not installed."""

    def __init__(self):
        if importlib.util.find_spec("rapidocr_onnxruntime") is None:
            raise UserError(f"reading text needs the package rapidocr-onnxruntime: {INSTALL}")
        from rapidocr_onnxruntime import RapidOCR

        # "max": frames are looked at in their own size, which is ours, and not enlarged to 736 pixels.
        self._ocr = RapidOCR(det_limit_type="max")

    @property
    def fingerprint(self) -> str:
        """Changes with the networks and with how they are shown frames."""
        (folder,) = importlib.util.find_spec("rapidocr_onnxruntime").submodule_search_locations
        weights = sorted(pathlib.Path(folder).glob("models/*.onnx"))
        version = importlib.metadata.version("rapidocr-onnxruntime")
        return " ".join([version, str(_SIDE), str(MOMENTS), *map(storage.sha256_file, weights)])

    def __call__(self, video_THWC: np.ndarray) -> np.ndarray:
        """uint8 THWC -> the text of each looked-at frame, top to bottom and left to right, strings [moments, 1]."""
        return np.array([[self._text(video_THWC[max(0, round(at * len(video_THWC)) - 1)])] for at in MOMENTS])

    def _text(self, frame_HWC: np.ndarray) -> str:
        height, width = frame_HWC.shape[:2]
        zoom = max(1.0, _SIDE / max(height, width))
        if zoom > 1:
            frame_HWC = resize_uint8(frame_HWC[None], round(zoom * height), round(zoom * width))[0]
        found, _ = self._ocr(np.ascontiguousarray(frame_HWC[..., ::-1]), use_cls=False)  # BGR, upright
        return " ".join(text for _, text, *_ in found or ())


def wanted_text(caption: str, labels: Mapping) -> str:
    """The text that a video is to show; "" where none is asked for."""
    if labels.get("word"):
        return str(labels["word"])
    return " ".join(_QUOTED.findall(caption))


def similarity(frames: Sequence[str], wanted: str) -> float:
    """1 where a frame shows the wanted words one after the other, else 1 - edits / letters, at best, at least 0.

    Case, punctuation and where a line breaks do not count; further words before and behind do not either.
    """
    target = "".join(_words(wanted))
    best = 0.0
    for frame in frames:
        words = _words(frame)
        for begin in range(len(words)):
            for end in range(begin + 1, min(begin + len(_words(wanted)) + 2, len(words)) + 1):
                run = "".join(words[begin:end])
                best = max(best, 1 - _edits(run, target) / max(len(run), len(target)))
    return best


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold().replace("'", "").replace("’", ""))


def _edits(a: str, b: str) -> int:
    """The least number of letters to insert, remove or replace  (Levenshtein 1966)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return row[-1]
