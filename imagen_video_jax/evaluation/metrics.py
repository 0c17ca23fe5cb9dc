"""The table of metrics: which features each needs and how a number, with its interval, comes of them.

A number is one key of the result, its 95% interval another, `NAME_interval`.
"""

import dataclasses
import difflib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from imagen_video_jax.errors import FAILED, UserError
from imagen_video_jax.evaluation import bootstrap, mmd, ocr, reference, retrieval, steadiness
from imagen_video_jax.evaluation.frechet import Moments, frechet_distance, frechet_of_samples
from imagen_video_jax.evaluation.judge import ATTRIBUTES, hits, rate


@dataclasses.dataclass(frozen=True)
class VideoSet:
    """What is known of a set of videos.

    Attributes:
      features: extractor -> an array [N, D] per video.
      captions: one per video, "" where there is none.
      labels: one per video: what a motion_shapes video is to show, {} where nobody knows.
      contents: one per video: what identifies it.
      moments: extractor -> moments of its features, where they are kept.
    """

    features: Mapping[str, Sequence[np.ndarray]]
    captions: Sequence[str] = ()
    labels: Sequence[Mapping] = ()
    contents: Sequence[str] = ()
    moments: Mapping[str, Moments] = dataclasses.field(default_factory=dict)

    def wanted_texts(self) -> list[str]:
        """What each video is to show in letters, "" where nothing is asked for."""
        return [ocr.wanted_text(caption, label) for caption, label in zip(self.captions, self.labels)]

    def with_moments(self, folder: pathlib.Path, extractors: Mapping[str, str]) -> "VideoSet":
        """The same with the moments of its features, found in `folder` or computed and kept there.

        Args: extractors: name -> key of those whose moments some metric needs.
        """
        enough = [name for name in extractors if sum(map(len, self.features[name])) >= 2]
        found = {
            name: reference.moments(folder, extractors[name], self.contents, self.features[name]) for name in enough
        }
        return dataclasses.replace(self, moments=found)

    def stacked(self, extractor: str) -> np.ndarray:
        return np.concatenate(list(self.features[extractor]))


@dataclasses.dataclass(frozen=True)
class Metric:
    """A row of the table.

    Attributes:
      features: the extractor it reads; "" for one that compares pairs of videos, whose values are features NAME.
      compute: (name, Metric, real, generated, Options) -> keys and values.
      better: "lower", "higher", or "" where the real videos' value is the aim.
      text: what it is, for lists and reports.
      needs_real, needs_captions, needs_labels, needs_words: what it cannot do without.
    """

    features: str
    compute: Callable
    better: str
    text: str
    needs_real: bool = False
    needs_captions: bool = False
    needs_labels: bool = False
    needs_words: bool = False


@dataclasses.dataclass
class Options:
    """text: extractor -> (captions -> features); pool: captions per R-precision; notes: what a reader has to know."""

    text: Mapping[str, Callable] = dataclasses.field(default_factory=dict)
    pool: int = 100
    notes: list[str] = dataclasses.field(default_factory=list)


_DRAWN = 4000  # videos of a set that the interval of a kernel distance draws one by one: 128 MB of sums over pairs
_BUDGET = 2e11  # floating-point operations for the interval of one distance: seconds on a laptop


def _frechet(name: str, metric: Metric, real: VideoSet, generated: VideoSet, options: Options) -> dict:
    videos = [[np.asarray(v, np.float64) for v in s.features[metric.features]] for s in (real, generated)]
    sizes, width = [sum(map(len, one)) for one in videos], videos[0][0].shape[1]
    if min(sizes) < 2:
        raise UserError(f"{name} needs at least 2 videos in each set, got {sizes[0]} real and {sizes[1]} generated")
    sets = zip((real, generated), videos)
    value = frechet_distance(*(s.moments.get(metric.features) or Moments.of(np.concatenate(one)) for s, one in sets))
    if min(sizes) < width + 1:
        options.notes.append(
            f"{name}: {min(sizes)} features are fewer than their {width} dimensions: the covariance is singular and "
            "the distance biased upwards; compare it only with distances of sets of the same size"
        )
    few = min(sizes) <= width

    def resampled(*chosen) -> float:
        sets = [np.concatenate([one[i] for i in indices]) for one, indices in zip(videos, chosen)]
        return frechet_of_samples(*sets) if few else frechet_distance(*map(Moments.of, sets))

    cost = 2.0 * width * sizes[0] * sizes[1] if few else 2.0 * sum(sizes) * width**2 + 30 * width**3
    resamples = int(np.clip(_BUDGET / cost, 10, 200))
    counts = (len(videos[0]), len(videos[1]))
    return {name: value, f"{name}_interval": bootstrap.distance_interval(value, resampled, counts, resamples=resamples)}


def _kernel(kind) -> Callable:
    def compute(name: str, metric: Metric, real: VideoSet, generated: VideoSet, options: Options) -> dict:
        sets = [_drawn(s.features[metric.features]) for s in (real, generated)]
        try:
            distance = kind(*map(np.concatenate, sets), [[len(video) for video in one] for one in sets])
        except ValueError as error:
            raise UserError(f"{name}: {error}") from None
        value, sizes = distance(), (len(sets[0]), len(sets[1]))

        def resampled(*chosen) -> float:
            return distance(*(np.bincount(c, minlength=size).astype(float) for c, size in zip(chosen, sizes)))

        interval = bootstrap.distance_interval(value, resampled, sizes, resamples=200, lowest=None)
        return {name: value, f"{name}_interval": interval}

    return compute


def _drawn(videos: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The features [N, D] of each video, or of random groups of videos where there are too many for a matrix of their
    pairs: the distance is the same, and groups drawn again vary it as much as their videos would."""
    if len(videos) <= _DRAWN:
        return list(videos)
    order = np.random.default_rng(0).permutation(len(videos))
    return [np.concatenate([videos[i] for i in group]) for group in np.array_split(order, _DRAWN)]


def _mean(column: int) -> Callable:
    def compute(name: str, metric: Metric, real: VideoSet | None, generated: VideoSet, options: Options) -> dict:
        found = described(name, generated.stacked(metric.features)[:, column])
        if real is not None and metric.features in real.features:
            found |= described(f"{name}_real", real.stacked(metric.features)[:, column])
        return found

    return compute


def _pair(name: str, metric: Metric, real, generated: VideoSet, options: Options) -> dict:
    return described(name, np.concatenate(list(generated.features[name]))[:, 0])


def described(name: str, values_N: np.ndarray) -> dict:
    return {name: float(np.mean(values_N)), f"{name}_interval": bootstrap.mean_interval(values_N)}


def _similarity(name: str, metric: Metric, real, generated: VideoSet, options: Options) -> dict:
    texts = options.text[metric.features](list(generated.captions))
    return described(name, retrieval.similarity_scores(generated.features[metric.features], texts))


def _precision(name: str, metric: Metric, real: VideoSet | None, generated: VideoSet, options: Options) -> dict:
    """Share of videos whose caption is found among others; of real ones of the same captions, too."""
    captions = list(generated.captions)
    different = len(set(captions))
    if different < 2:
        raise UserError(f"{name} needs at least 2 different captions, got {different}")
    pool = min(options.pool, different)
    if pool < options.pool:
        options.notes.append(
            f"{name}: {different} different captions, so each is found among {pool}, not {options.pool}"
        )
    texts = options.text[metric.features](captions)

    def precision(videos: VideoSet) -> np.ndarray:
        return retrieval.r_precision(videos.features[metric.features], texts, captions, pool=pool)

    found = described(name, precision(generated)) | {f"{name}_pool": pool}
    if real is not None and list(real.captions) == captions and metric.features in real.features:
        found |= described(f"{name}_real", precision(real))
    return found


def _judge(name: str, metric: Metric, real: VideoSet | None, generated: VideoSet, options: Options) -> dict:
    """Share of videos in which the judge reads all that the labels say of colour, shape and motion, and each attribute
    alone, with Wilson intervals; of real ones, too."""
    found = _read_by_judge(name, "", metric, generated)
    if real is not None and any(real.labels) and metric.features in real.features:
        found |= _read_by_judge(name, "_real", metric, real)
    return found


def _read_by_judge(name: str, ending: str, metric: Metric, videos: VideoSet) -> dict:
    readings = [
        {name: values[int(number)] for (name, values), number in zip(ATTRIBUTES.items(), row[0])}
        for row in videos.features[metric.features]
    ]
    read = [hits(reading, label) for reading, label in zip(readings, videos.labels)]
    found = {}
    for attribute in ("all", *ATTRIBUTES):
        values = [one[attribute] for one in read if attribute in one]
        if values:
            scored = rate(sum(values), len(values))
            key = (name if attribute == "all" else f"{name}_{attribute}") + ending
            found |= {key: scored["accuracy"], f"{key}_interval": scored["interval"]}
    return found


def _ocr(name: str, metric: Metric, real: VideoSet | None, generated: VideoSet, options: Options) -> dict:
    """Share of the videos that are to show a text and do, and of its letters, NAME_letters; of real ones, too."""
    found = _read_by_ocr(name, "", metric, generated)
    asked = sum(map(bool, generated.wanted_texts()))
    if asked < len(generated.captions):
        options.notes.append(f"{name}: {asked} of {len(generated.captions)} videos are to show a text")
    if real is not None and metric.features in real.features and any(real.wanted_texts()):
        found |= _read_by_ocr(name, "_real", metric, real)
    return found


def _read_by_ocr(name: str, ending: str, metric: Metric, videos: VideoSet) -> dict:
    letters = np.array(
        [
            ocr.similarity([str(text) for text in texts_N1[:, 0]], wanted)
            for texts_N1, wanted in zip(videos.features[metric.features], videos.wanted_texts())
            if wanted
        ]
    )
    scored = rate(int(np.sum(letters == 1.0)), len(letters))
    words = {f"{name}{ending}": scored["accuracy"], f"{name}{ending}_interval": scored["interval"]}
    return words | described(f"{name}_letters{ending}", letters)


_PIXEL_TEXTS = {
    "colour_drift": "distance of the mean colour from the first frame's, grey levels",
    "flicker": "jumps of the mean colour from frame to frame, grey levels",
    "motion": "mean difference of neighbouring frames, grey levels",
}
METRICS: dict[str, Metric] = {
    "fvd": Metric("i3d", _frechet, "lower", "Fréchet distance of I3D logits", needs_real=True),
    "kvd": Metric("i3d", _kernel(mmd.kid), "lower", "polynomial MMD of I3D logits", needs_real=True),
    "fid": Metric("inception", _frechet, "lower", "Fréchet distance of Inception features, per frame", needs_real=True),
    "kid": Metric("inception", _kernel(mmd.kid), "lower", "polynomial MMD of Inception features", needs_real=True),
    "cmmd": Metric("clip", _kernel(mmd.cmmd), "lower", "Gaussian MMD of CLIP features, times 1000", needs_real=True),
    "clip_score": Metric(
        "clip", _similarity, "higher", "100 x cosine of frame and caption by CLIP", needs_captions=True
    ),
    "clip_r_precision": Metric(
        "clip", _precision, "higher", "share of frames whose caption CLIP finds among others", needs_captions=True
    ),
    "scorer_score": Metric(
        "scorer", _similarity, "higher", "100 x cosine of motion_shapes video and caption", needs_captions=True
    ),
    "scorer_r_precision": Metric(
        "scorer", _precision, "higher", "share of motion_shapes videos whose caption is found", needs_captions=True
    ),
    "lpips": Metric("", _pair, "lower", "LPIPS of each video and the real one of its name", needs_real=True),
    "colour_shift": Metric(
        "", _pair, "lower", "mean colour against the real one of its name, e.g. its input", needs_real=True
    ),
    **{
        name: Metric("pixels", _mean(column), "", _PIXEL_TEXTS[name])
        for column, name in enumerate(steadiness.MEASURES)
    },
    "judge": Metric(
        "judge",
        _judge,
        "higher",
        "share of motion_shapes videos in which the judge reads colour, shape and motion as asked (judge_X: X alone)",
        needs_labels=True,
    ),
    "ocr": Metric(
        "ocr", _ocr, "higher", "share of the videos that are to show a text in which it can be read", needs_words=True
    ),
}  # fmt: skip


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once; UserError listing the known ones for a name that is none of them."""
    for name in names:
        if name not in METRICS:
            match = difflib.get_close_matches(name, METRICS, n=1)
            hint = f"did you mean {match[0]!r}? " if match else ""
            raise UserError(f"unknown metric {name!r}; {hint}known are {', '.join(METRICS)}")
    if not names:
        raise UserError(f"name at least one metric; known are {', '.join(METRICS)}")
    return tuple(dict.fromkeys(names))


def frechet_extractors(names: Sequence[str]) -> tuple[str, ...]:
    """The extractors of whose features these metrics need moments."""
    return tuple(dict.fromkeys(METRICS[name].features for name in names if METRICS[name].compute is _frechet))


def unable(name: str, real: VideoSet | None, generated: VideoSet) -> str | None:
    """Why a metric cannot be had of these sets, or None."""
    metric = METRICS[name]
    if metric.needs_real and real is None:
        return "needs real videos"
    if metric.needs_captions and not (generated.captions and all(generated.captions)):
        return "needs a caption for every generated video (captions.jsonl, samples.jsonl or .txt files beside them)"
    if metric.needs_labels and not any(generated.labels):
        return "needs motion_shapes labels of the generated videos (a captions.jsonl with colour, shape, motion)"
    if metric.needs_words and not any(generated.wanted_texts()):
        return 'needs generated videos whose captions ask for a text in double quotes (or have the label "word")'
    return None


def measure(name: str, real: VideoSet | None, generated: VideoSet, options: Options) -> dict:
    """Keys and values of one metric; UserError where the sets do not give it, or not as a finite number."""
    if reason := unable(name, real, generated):
        raise UserError(f"{name} {reason}")
    metric = METRICS[name]
    return finite(metric.compute(name, metric, real, generated, options))


def finite(found: dict) -> dict:
    """`found`, keys and values of metrics; UserError (exit code 1) naming one that is NaN or infinite."""
    for key, value in found.items():
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            raise UserError(f"{key} is {value}, not a finite number", FAILED) from None
    return found
