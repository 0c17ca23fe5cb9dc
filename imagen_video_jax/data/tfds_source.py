"""TFDS data sets by name, read with `tfds.data_source` (ArrayRecord), without TensorFlow.

    tfds:NAME[/CONFIG][:VERSION][?split=train&caption=a video of {label}]

Nothing is downloaded: the data set must lie in TFDS's own folder (`TFDS_DATA_DIR`, by default ~/tensorflow_datasets),
written as array_record. Media are found by the name of the feature: `media` or `video` (bytes of a file), `image`, or
`frames` (a sequence of images, shown at `fps`). Captions are the features `caption`, `captions` or `text`, or made from
the others by `caption=`, whose fields in braces are features (a class label is its name).
"""

import pathlib
import string
import urllib.parse

import numpy as np

from imagen_video_jax.data.examples import Example, Listing, Problem, clean_captions
from imagen_video_jax.errors import UserError
from imagen_video_jax.video.containers import EncodedMedia, ending_of
from imagen_video_jax.video.reading import MediaError, Video

PREFIX = "tfds:"
_MEDIA, _CAPTIONS = ("media", "video", "image", "frames"), ("caption", "captions", "text")
_DEFAULT_FPS = 24.0


def list_tfds(name: str) -> Listing:
    """The examples of `tfds:NAME...`, in the order of the data set.

    Raises:
      UserError: no such data set on this machine, or it has no media.
    """
    tfds = _tfds(name)
    address, _, query = name.removeprefix(PREFIX).partition("?")
    options = dict(urllib.parse.parse_qsl(query))
    if unknown := set(options) - {"split", "caption"}:
        raise UserError(f"{name}: unknown option {min(unknown)!r}; known are split and caption")
    split = options.get("split", "train")
    try:
        builder = tfds.builder(address, try_gcs=False)
        features = builder.info.features or {}
        kind = next((feature for feature in _MEDIA if feature in features), None)
        if kind is None:
            raise UserError(f"{name} has the features {', '.join(features)}; one of {', '.join(_MEDIA)} is needed")
        # Its own decoders would need TensorFlow, and whole sets would be decoded for their captions.
        skip = {kind: tfds.decode.SkipDecoding()} if isinstance(features[kind], tfds.features.Image) else None
        rows = builder.as_data_source(split=split, decoders=skip)
    except UserError:
        raise
    except Exception as error:
        # TFDS raises many unrelated types; its texts run over several lines, the first says what is wrong.
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"{name} cannot be opened ({type(error).__name__}: {reason}); make it first: "
            f"tfds build {address} --file_format=array_record"
        ) from None
    captioner = _Captioner(name, features, options.get("caption"))
    listing = Listing([])
    for number in range(len(rows)):
        row = rows[number]
        try:
            path, captions = _name_of(address, split, number, row, kind), captioner(row)
        except (MediaError, ValueError) as error:
            listing.problems.append(Problem(f"{address}/{split}/{number:08d}", getattr(error, "reason", str(error))))
            continue
        facts = {key: value for key, value in row.items() if isinstance(value, str | int | float)}
        load = lambda number=number, path=path: _load(rows[number], kind, path)  # noqa: E731
        listing.examples.append(
            Example(
                path, captions, len(listing.examples), facts, load, stamp=f"{builder.info.full_name}-{split}-{number}"
            )
        )
    return listing


def _tfds(name: str):
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise UserError(f"{name} needs tensorflow-datasets: pip install 'imagen_video_jax[tfds]'") from None
    return tfds


def _name_of(address: str, split: str, number: int, row: dict, kind: str) -> pathlib.Path:
    """The example's own path where it has one, else its number; the ending says what it is."""
    value = row[kind]
    if kind == "frames" or isinstance(value, np.ndarray):
        ending = ".mp4" if np.ndim(value) == 4 or kind == "frames" else ".png"
    elif (ending := ending_of(value[:512])) is None:
        raise MediaError(f"{number:08d}", f"not a video or image we read (begins with {value[:12]!r})")
    own = row.get("path")
    own = own.decode("utf-8", "replace") if isinstance(own, bytes) else f"{number:08d}{ending}"
    return pathlib.Path(address.replace(":", "-"), split, own)


def _load(row: dict, kind: str, path: pathlib.Path) -> EncodedMedia | Video:
    value = row[kind]
    if isinstance(value, bytes):
        return EncodedMedia(str(path), value)
    frames = np.asarray(value)
    frames_THWC = frames[None] if frames.ndim == 3 else frames
    if frames_THWC.dtype != np.uint8 or frames_THWC.ndim != 4 or not len(frames_THWC):
        raise MediaError(path, f"expected uint8 frames, got {frames.dtype}{frames.shape}")
    if frames_THWC.shape[-1] == 1:
        frames_THWC = np.repeat(frames_THWC, 3, axis=-1)
    return Video(frames_THWC, 0.0 if frames.ndim == 3 else float(row.get("fps", _DEFAULT_FPS)))


class _Captioner:
    """Row -> captions."""

    def __init__(self, name: str, features, template: str | None):
        self._template, self._features = template, features
        fields = [field for _, field, _, _ in string.Formatter().parse(template or "") if field is not None]
        if unknown := [field for field in fields if field not in features]:
            raise UserError(f"{name}: caption={template!r} names {unknown[0]!r}; known are {', '.join(features)}")

    def __call__(self, row: dict) -> tuple[str, ...]:
        if self._template is not None:
            words = {name: self._word(name, value) for name, value in row.items()}
            # Replaced one by one: str.format would reach into attributes.
            text = self._template
            for name, word in words.items():
                text = text.replace("{" + name + "}", word)
            return clean_captions([text])
        values = next((row[name] for name in _CAPTIONS if name in row), [])
        values = values if isinstance(values, list | tuple | np.ndarray) else [values]
        return clean_captions([v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values])

    def _word(self, name: str, value) -> str:
        feature = self._features[name]
        if hasattr(feature, "int2str"):
            return feature.int2str(int(value)).replace("_", " ")
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
