"""What can be measured on the pixels alone: colour drift, flicker, motion, and the colour shift of super-resolution.

All are in grey levels (of 255) and 0 for a video that stands still. They catch what features are blind to: frozen
samples, pulsing brightness, colours that wander off over the frames or from one stage to the next.
"""

import itertools

import numpy as np

MEASURES = ("colour_drift", "flicker", "motion")


def mean_colours(video_THWC: np.ndarray) -> np.ndarray:
    """The mean colour of every frame, float64 [T, 3]."""
    return np.asarray(video_THWC).mean((1, 2), dtype=np.float64)


def colour_drift(video_THWC: np.ndarray) -> float:
    """How far the mean colour is from the first frame's, on average over the later frames."""
    colour_TC = mean_colours(video_THWC)
    if len(colour_TC) < 2:
        return 0.0
    return float(np.linalg.norm(colour_TC[1:] - colour_TC[0], axis=1).mean())


def flicker(video_THWC: np.ndarray) -> float:
    """How much the mean colour of a frame differs from the middle of its neighbours': steady change is none."""
    colour_TC = mean_colours(video_THWC)
    if len(colour_TC) < 3:
        return 0.0
    return float(np.linalg.norm(colour_TC[1:-1] - (colour_TC[:-2] + colour_TC[2:]) / 2, axis=1).mean())


def motion(video_THWC: np.ndarray) -> float:
    """Mean absolute difference of neighbouring frames over all pixels."""
    if len(video_THWC) < 2:
        return 0.0
    pairs = itertools.pairwise(video_THWC)  # frame by frame: a difference of all would be twice the memory
    return float(np.mean([np.abs(b.astype(np.int16) - a).mean() for a, b in pairs]))


def measures(video_THWC: np.ndarray) -> np.ndarray:
    """The three above, in the order of MEASURES, float32 [3]."""
    return np.array([colour_drift(video_THWC), flicker(video_THWC), motion(video_THWC)], np.float32)


def colour_shift(video_THWC: np.ndarray, low_THWC: np.ndarray) -> float:
    """How far the mean colour of each frame is from that of the low-resolution input at the same time.

    The input may have fewer frames (temporal super-resolution): a frame is compared with the one shown at its moment.
    """
    at_T = np.arange(len(video_THWC)) * len(low_THWC) // len(video_THWC)
    return float(np.linalg.norm(mean_colours(video_THWC) - mean_colours(low_THWC)[at_T], axis=1).mean())
