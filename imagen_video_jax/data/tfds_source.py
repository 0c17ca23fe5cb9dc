"""TFDS data sets by name, read with `tfds.data_source` (ArrayRecord), without TensorFlow.

    tfds:NAME[/CONFIG][:VERSION][?split=train&caption=a video of {label}]

Nothing is downloaded: the data set must lie in TFDS's own folder (`TFDS_DATA_DIR`, by default ~/tensorflow_datasets),
written as array_record. Media are found by the name of the feature: `media` or `video` (bytes of a file), `image`, or
`frames` (a sequence of images or a tensor, shown at `fps`; `video` may be so too). TFDS's own `Video` feature needs
TensorFlow even to be described and is refused. Captions are the features `caption`, `captions` or `text`, or made from
the others by `caption=`, whose fields in braces are features (a class label is its name).
"""

import contextlib
import io
import pathlib
import re
import urllib.parse

import numpy as np

from imagen_video_jax.data.examples import Example, Listing, Problem, clean_captions
from imagen_video_jax.errors import UserError
from imagen_video_jax.video.containers import EncodedMedia, ending_of
from imagen_video_jax.video.reading import MediaError, Video, read_image

PREFIX = "tfds:"
_MEDIA, _CAPTIONS = ("media", "video", "image", "frames"), ("caption", "captions", "text")
_FIELD = re.compile(r"\{([^{}]*)\}")
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
    # What TFDS prints of missing TensorFlow is said below, in one line.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        builder, rows, kind = _opened(tfds, name, address, split)
    captioner = _Captioner(name, builder.info.features, options.get("caption"))
    listing = Listing([])
    for number in range(len(rows)):
        try:
            row = _row(rows, number, kind)
            path, captions = _name_of(address, split, number, row, kind), captioner(row)
        except (MediaError, ValueError) as error:
            listing.problems.append(Problem(f"{address}/{split}/{number:08d}", getattr(error, "reason", str(error))))
            continue
        facts = {key: value for key, value in row.items() if isinstance(value, str | int | float)}
        load = lambda number=number, path=path: _load(_row(rows, number, kind), kind, path)  # noqa: E731
        listing.examples.append(
            Example(
                path, captions, len(listing.examples), facts, load, stamp=f"{builder.info.full_name}-{split}-{number}"
            )
        )
    return listing


def _opened(tfds, name: str, address: str, split: str):
    """(builder, its rows undecoded, the feature that holds the media)."""
    try:
        builder = tfds.builder(address, try_gcs=False)
        features = builder.info.features or {}
        kind = next((feature for feature in _MEDIA if feature in features), None)
        if kind is None:
            raise UserError(f"{name} has the features {', '.join(features)}; one of {', '.join(_MEDIA)} is needed")
        rows = builder.as_data_source(split=split, decoders=_undecoded(tfds, kind, features[kind]))
    except UserError:
        raise
    except Exception as error:
        # TFDS raises many unrelated types; its texts run over several lines, the first says what is wrong.
        reason = str(error).strip().split("\n")[0][:200]
        if "No module named 'tensorflow'" in str(error):
            raise UserError(
                f"{name} has a feature that needs TensorFlow, as Video does; build the set with the bytes of the video "
                "files in a feature media of Tensor(shape=(), dtype=np.bytes_), as data/motion_shapes_tfds.py does"
            ) from None
        raise UserError(
            f"{name} cannot be opened ({type(error).__name__}: {reason}); make it first: "
            f"tfds build {address} --file_format=array_record"
        ) from None
    return builder, rows, kind


def _tfds(name: str):
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise UserError(f"{name} needs tensorflow-datasets: pip install 'imagen_video_jax[tfds]'") from None
    return tfds


def _undecoded(tfds, kind: str, feature) -> dict | None:
    """Decoders that leave images as they are stored: else whole sets would be decoded for their captions."""

    class Stored(tfds.decode.SkipDecoding):
        def decode_batch_example_np(self, images):
            return images

    image = isinstance(getattr(feature, "feature", feature), tfds.features.Image)
    return {kind: Stored()} if image else None


def _row(rows, number: int, kind: str) -> dict:
    try:
        row = rows[number]
        if row[kind] is None:  # what a shard that was cut short reads as
            raise ValueError(f"it holds no {kind}")
        return row
    except Exception as error:
        # Of damaged shards: protobuf, array_record and TFDS have no common type.
        raise MediaError(f"{number:08d}", f"cannot be read ({type(error).__name__}: {str(error)[:200]})") from None


def _name_of(address: str, split: str, number: int, row: dict, kind: str) -> pathlib.Path:
    """The example's own path where it has one, else its number; the ending says what it is."""
    value = row[kind]
    if not isinstance(value, bytes):
        ending = ".png" if kind == "image" else ".mp4"
    elif (ending := ending_of(value[:512])) is None:
        raise MediaError(f"{number:08d}", f"not a video or image we read (begins with {value[:12]!r})")
    own = row.get("path")
    own = own.decode("utf-8", "replace") if isinstance(own, bytes) else f"{number:08d}{ending}"
    return pathlib.Path(address.replace(":", "-"), split, own)


def _load(row: dict, kind: str, path: pathlib.Path) -> EncodedMedia | Video:
    value = row[kind]
    if isinstance(value, bytes):
        return EncodedMedia(str(path), value)
    if len(value) and isinstance(value[0], bytes):
        images = [read_image(EncodedMedia(f"{path}, frame {number}", data)) for number, data in enumerate(value)]
        if len({image.shape for image in images}) > 1:
            raise MediaError(path, "its frames are not of one size")
        value = np.stack(images)
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
        if unknown := [field for field in _FIELD.findall(template or "") if field not in features]:
            raise UserError(f"{name}: caption={template!r} names {unknown[0]!r}; known are {', '.join(features)}")

    def __call__(self, row: dict) -> tuple[str, ...]:
        if self._template is not None:
            # Not str.format, which would reach into attributes.
            return clean_captions([_FIELD.sub(lambda found: self._word(found[1], row[found[1]]), self._template)])
        values = next((row[name] for name in _CAPTIONS if name in row), [])
        values = values if isinstance(values, list | tuple | np.ndarray) else [values]
        return clean_captions([v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values])

    def _word(self, name: str, value) -> str:
        feature = self._features[name]
        if hasattr(feature, "int2str"):
            return feature.int2str(int(value)).replace("_", " ")
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
