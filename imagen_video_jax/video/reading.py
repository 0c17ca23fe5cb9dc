"""Video and image files -> uint8 RGB arrays and frames per second (PyAV, Pillow).

Files come from strangers, so what opens is decided by allow-lists: the container is recognised by its first bytes and
forced on the demuxer (a playlist named `.mp4` would otherwise open the files it lists), the codec, the frame size, the
file's size and its stated duration are checked before the first frame is decoded. Every reason not to read a file is a
`MediaError` of one line. A media file may also lie in memory (`EncodedMedia`), as in a record or a tar shard.
"""

import contextlib
import dataclasses
import hashlib
import io
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image, ImageOps

from imagen_video_jax.errors import UserError
from imagen_video_jax.video.containers import EncodedMedia, Media, demuxer_of, opened, size_of, what_is_missing
from imagen_video_jax.video.cover import cover, cover_size

VIDEO_ENDINGS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".ts", ".gif")
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video", "mjpeg", "ffv1", "gif")
MAX_PIXELS = 7680 * 4320  # of one frame or image: 8K
MAX_BYTES = 4 << 30  # of one video as returned
MAX_FILE_BYTES = 4 << 30
MAX_SECONDS = 3600.0
MAX_FRAMES = 1_000_000
MAX_FPS = 1000.0
MAX_STRETCH = 16  # of pixels that are not square

# The default conversion between RGB and YUV darkens by about 1/255 and takes colour from the nearest of a quarter as
# many samples; on a smooth picture this one is off by 0.6 on average instead of 6.
CONVERSION = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
# With an antialiased bilinear resize in the same pass.
SHRINKING = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
MAX_SHRINK = 64  # in one pass; its filters have a largest size


class MediaError(UserError):
    """A video or image file that cannot be used: `PATH: reason`."""

    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.reason = " ".join(reason.split())


@dataclasses.dataclass(frozen=True)
class Video:
    """Decoded frames.

    Attributes:
      frames_THWC: uint8 RGB.
      fps: frames per second, constant over the clip; 0 for a still image.
    """

    frames_THWC: np.ndarray
    fps: float


@dataclasses.dataclass(frozen=True)
class Facts:
    """What decoding a whole file showed, without keeping its frames.

    Attributes:
      frames: as `read_video` returns them; 1 for an image.
      height, width: as displayed.
      fps: 0 for an image.
    """

    frames: int
    height: int
    width: int
    fps: float


def content_hash(media: Media) -> str:
    """sha256 of a media file."""
    digest = hashlib.sha256()
    try:
        if (size := size_of(media)) > MAX_FILE_BYTES:
            raise MediaError(media, f"{size} bytes are more than {MAX_FILE_BYTES}; cut it into shorter clips")
        with opened(media) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise MediaError(media, error.strerror or str(error)) from None
    return digest.hexdigest()


def is_image(media: Media) -> bool:
    """Whether the name says that it is a still image."""
    return pathlib.PurePath(media).suffix.lower() in IMAGE_ENDINGS


def read_media(media: Media, *, covering: tuple[int, int] | None = None) -> Video:
    """Reads a video, or an image as one frame with fps 0, by the file's ending; `covering` as in `read_video`."""
    if is_image(media):
        image_THWC = read_image(media)[None]
        return Video(_covered(image_THWC, covering), 0.0)
    return read_video(media, covering=covering)


def read_video(media: Media, *, max_frames: int | None = None, covering: tuple[int, int] | None = None) -> Video:
    """Decodes the first video stream of mp4, mov, webm, mkv, avi, ts or gif.

    Display rotation and the shape of the pixels are applied (the width of pixels that are not square changes). A stream
    of variable rate comes back at the constant rate of its median frame, every instant showing the frame that a player
    shows then.

    Args:
      media: file.
      max_frames: stop after so many decoded frames.
      covering: (height, width) that each frame is shrunk to just cover as it is decoded (`video/cover.py`), so that a
        long video of large frames never sits in memory at full size.

    Raises:
      MediaError: not a video we read, damaged, cut off, too large, or its frame size changes on the way.
    """
    too_much = f"decodes to more than {MAX_BYTES >> 30} GiB; cut it into shorter clips"
    frames: list[np.ndarray] = []

    def keep(frame_HWC):
        frames.append(frame_HWC)
        if len(frames) * frames[0].nbytes > MAX_BYTES:
            raise MediaError(media, too_much)

    order, fps, _ = _decode_all(media, keep, max_frames, covering)
    if len(order) * frames[0].nbytes > MAX_BYTES:
        raise MediaError(media, too_much)
    return Video(np.stack([frames[i] for i in order]), fps)


def scan_media(media: Media, *, each_frame: Callable = lambda frame_HWC: None) -> tuple[Facts, np.ndarray]:
    """Decodes everything, one frame in memory at a time; fails as `read_media` does.

    Returns:
      what is there, and which of the decoded frames (as `each_frame` saw them) `read_media` returns at each place.
    """
    if is_image(media):
        image_HWC = read_image(media)
        each_frame(image_HWC)
        return Facts(1, *image_HWC.shape[:2], 0.0), np.zeros(1, np.int64)
    order, fps, (height, width) = _decode_all(media, each_frame, None)
    return Facts(len(order), height, width, fps), order


def _decode_all(media: Media, each_frame: Callable, max_frames: int | None, covering: tuple[int, int] | None = None):
    """Shows every frame to `each_frame`; (which of them at each tick of a constant rate, that rate, displayed size)."""
    with reading(media) as container:
        stream = _video_stream(media, container)
        times: list[float | None] = []
        size, duration_s = (0, 0), 0.0
        for frame_HWC, time_s, duration_s in _decode(media, container, stream, covering):  # noqa: B007
            size = frame_HWC.shape[:2]
            each_frame(frame_HWC)
            times.append(time_s)
            if len(times) > MAX_FRAMES:
                raise MediaError(media, f"has more than {MAX_FRAMES} frames; cut it into shorter clips")
            if max_frames is not None and len(times) >= max_frames:
                break
        if not times:
            raise MediaError(media, "holds no frame that decodes")
        rate = float(stream.average_rate or 0)
        if container.format.name == "avi" and None not in times and np.any(np.diff(times) <= 0):
            # An avi stores no times, only a rate; those of reordered frames are guesses of the decoder.
            times = [place / rate for place in range(len(times))] if rate else [None] * len(times)
        return *_constant_rate(media, times, duration_s, rate), size


def url_of(path: str | os.PathLike) -> str:
    """With the protocol spelled out, a name such as `concat:a|b` is only the name of a file."""
    return f"file:{os.path.abspath(path)}"


@contextlib.contextmanager
def reading(media: Media) -> Iterator[av.container.InputContainer]:
    """Opens a file with the demuxer of its content; any failure inside becomes a MediaError."""
    try:
        demuxer = _checked_demuxer(media)
        # The whitelist: whatever the content asks for, nothing but files is opened.
        options = {"protocol_whitelist": "file"}
        source = io.BytesIO(media.data) if isinstance(media, EncodedMedia) else url_of(media)
        with av.open(source, format=demuxer, options=options) as container:
            yield container
    except MediaError:
        raise
    except MemoryError:
        raise MediaError(media, "does not fit in memory") from None
    except (OSError, ValueError, EOFError, av.FFmpegError) as error:
        # PyAV's errors derive from several builtin ones; their text repeats the file name after the reason.
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise MediaError(media, f"cannot be decoded ({reason})") from None


def _checked_demuxer(media: Media) -> str:
    """The demuxer for a file, after every check that its first bytes and its length allow."""
    if (size := size_of(media)) > MAX_FILE_BYTES:
        raise MediaError(media, f"{size} bytes are more than {MAX_FILE_BYTES}; cut it into shorter clips")
    with opened(media) as file:
        head = file.read(512)
        if not head:
            raise MediaError(media, "the file is empty")
        demuxer = demuxer_of(head)
        if demuxer is None:
            raise MediaError(media, f"not an mp4, mov, webm, mkv, avi, ts or gif file (begins with {head[:12]!r})")
        if missing := what_is_missing(demuxer, file, size):
            raise MediaError(media, f"cut off: {missing}")
    return demuxer


def _video_stream(media: Media, container: av.container.InputContainer) -> av.VideoStream:
    """The video stream, after every check that needs no decoding."""
    stream = container.streams.best("video")
    if stream is None:
        raise MediaError(media, "holds no video stream")
    codec = stream.codec_context
    name = codec.codec.canonical_name if codec is not None else "unknown"
    if name not in CODECS:
        raise MediaError(media, f"codec {name} is not one of {', '.join(CODECS)}")
    if codec.width < 1 or codec.height < 1:
        raise MediaError(media, "does not state its frame size")
    if codec.width * codec.height > MAX_PIXELS:
        raise MediaError(media, f"frames of {codec.width}x{codec.height} exceed {MAX_PIXELS} pixels; scale it down")
    seconds = max((container.duration or 0) / 1e6, float((stream.duration or 0) * (stream.time_base or 0)))
    if seconds > MAX_SECONDS:
        raise MediaError(media, f"lasts {seconds:.0f} s, more than {MAX_SECONDS:.0f}; cut it into shorter clips")
    _shown_width(media, stream, codec.width, codec.height)
    # The index of an mp4, mov or avi says where each frame lies, and a file cut short decodes to fewer frames silently.
    if container.format.name in ("mp4", "avi"):
        end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
        if end > (size := size_of(media)):
            raise MediaError(media, f"cut off: {size} bytes, its index needs {end}")
    # One thread a file: many files are read at once, and a clip of a few dozen frames does not repay more.
    codec.thread_count = 1
    return stream


def _shown_width(media: Media, stream: av.VideoStream, width: int, height: int) -> int:
    """The width at which pixels of the stated shape are shown square."""
    ratio = float(stream.sample_aspect_ratio or 1)
    if not 1 / MAX_STRETCH <= ratio <= MAX_STRETCH:
        raise MediaError(media, f"its pixels are stated to be {ratio:g} times as wide as high; re-encode it")
    shown = max(1, round(width * ratio))
    if shown * height > MAX_PIXELS:
        raise MediaError(media, f"shown at {shown}x{height} it exceeds {MAX_PIXELS} pixels; scale it down")
    return shown


def _decode(
    media: Media,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    covering: tuple[int, int] | None,
) -> Iterator[tuple[np.ndarray, float | None, float]]:
    """Yields (uint8 HWC as displayed, time and duration in seconds, 0 or None where the file says nothing)."""
    size, shown_width = None, 0
    reformatter = VideoReformatter()  # one for all frames: it keeps its tables
    for frame in container.decode(stream):
        if size is None:
            size = (frame.width, frame.height)
            if frame.width * frame.height > MAX_PIXELS:
                raise MediaError(media, f"frames of {frame.width}x{frame.height} exceed {MAX_PIXELS} pixels")
            shown_width = _shown_width(media, stream, *size)
        if (frame.width, frame.height) != size:
            raise MediaError(
                media, f"frame size changes from {size[0]}x{size[1]} to {frame.width}x{frame.height}; re-encode it"
            )
        if frame.is_corrupt:
            raise MediaError(media, f"damaged: the frame at {frame.time or 0:.2f} s does not decode cleanly")
        quarter_turns = round(frame.rotation / 90) % 4
        height, width = _shrunk((frame.height, shown_width), quarter_turns, covering)
        how = SHRINKING if width < shown_width else CONVERSION
        small = reformatter.reformat(frame, width=width, height=height, format="rgb24", interpolation=how, threads=1)
        frame_HWC = small.to_ndarray()
        if quarter_turns:  # the angle is counterclockwise, as rot90's
            frame_HWC = np.ascontiguousarray(np.rot90(frame_HWC, quarter_turns))
        frame_HWC = _covered(frame_HWC[None], covering)[0]
        yield frame_HWC, frame.time, float((frame.duration or 0) * (frame.time_base or 0))


def _shrunk(size: tuple[int, int], quarter_turns: int, covering: tuple[int, int] | None) -> tuple[int, int]:
    """The size, before it is turned, to which a frame is shrunk while its colours are converted: all that `_covered`
    would do, and three times as fast; the frame's own size where that is not possible."""
    if covering is None:
        return size
    turn = slice(None, None, -1 if quarter_turns % 2 else 1)
    wanted = cover_size(*size[turn], height=covering[0], width=covering[1])[turn]
    shrinks = all(small < large <= MAX_SHRINK * small for small, large in zip(wanted, size, strict=True))
    return wanted if shrinks else size


def _covered(video_THWC: np.ndarray, covering: tuple[int, int] | None) -> np.ndarray:
    return video_THWC if covering is None else cover(video_THWC, height=covering[0], width=covering[1])


def _constant_rate(
    media: Media, times: Sequence[float | None], last_duration: float, nominal_fps: float
) -> tuple[np.ndarray, float]:
    """Which decoded frame to show at each tick of a constant rate, and that rate."""
    count = len(times)
    order, fps = np.arange(count), nominal_fps
    if count > 1 and None not in times:
        seconds = np.asarray(times) - times[0]
        gaps = np.diff(seconds)
        if np.any(gaps <= 0):
            raise MediaError(media, "its timestamps do not increase; re-encode it")
        typical = float(np.median(gaps))
        mean_fps = (count - 1) / seconds[-1]
        if np.abs(seconds * mean_fps - order).max() < 0.75:
            # Timestamps are rounded (1 ms in webm, 10 ms in gif); the stated rate is exact where it agrees.
            fps = nominal_fps if abs(nominal_fps / mean_fps - 1) < 0.01 else mean_fps
        else:
            fps = 1 / typical
            ticks = round((seconds[-1] + max(last_duration, typical)) * fps)
            if ticks > MAX_FRAMES:
                raise MediaError(media, f"its timestamps span {seconds[-1]:.0f} s at {fps:.0f} frames/s")
            # A small lead, so that a tick that falls on a frame's rounded time shows that frame.
            order = np.searchsorted(seconds, (np.arange(ticks) + 0.25) / fps, side="right") - 1
    if not 0 < fps <= MAX_FPS:
        raise MediaError(media, f"{fps:g} frames/s is outside (0, {MAX_FPS:g}]; re-encode it with a frame rate")
    return order, float(fps)


def read_image(media: Media) -> np.ndarray:
    """Decodes a png, jpeg or webp (the first frame of an animation) to uint8 HWC RGB.

    EXIF orientation is applied, transparency is laid over white, 16-bit grey keeps its upper 8 bits.

    Raises:
      MediaError: another format, damaged, or more than `MAX_PIXELS` pixels (checked before decoding).
    """
    try:
        if (size := size_of(media)) > MAX_FILE_BYTES:
            raise MediaError(media, f"{size} bytes are more than {MAX_FILE_BYTES}; scale it down")
        with opened(media) as file, Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise MediaError(media, f"an image of {width}x{height} exceeds {MAX_PIXELS} pixels; scale it down")
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):
                grey_HW = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
                return np.repeat(grey_HW[..., None], 3, axis=-1)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.asarray(image.convert("RGB"))
    except MediaError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise MediaError(media, f"the image exceeds {MAX_PIXELS} pixels; scale it down") from None
    except Image.UnidentifiedImageError:
        raise MediaError(media, "not a png, jpeg or webp image") from None
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise MediaError(media, f"cannot be decoded ({reason})") from None


def select_frames(
    count: int, *, fps: float, target_fps: float, frames: int | None = None, start: int = 0
) -> np.ndarray:
    """Indices of the frames nearest in time to the ticks of `target_fps`, from frame `start` on; nothing is blended.

    Args:
      count: frames there are.
      fps: their rate.
      target_fps: wanted rate; above `fps` frames repeat.
      frames: how many ticks; default as many as fit. Ticks past the end repeat the last frame.
      start: first frame taken, which is also the phase of the selection.
    """
    ratio = fps / target_fps
    if frames is None:
        frames = max(1, math.floor((count - 1 - start + 0.5) / ratio * (1 - 1e-9)) + 1)
    # floor(x + 1/2): half-way ticks go one way; rounding to even would stutter.
    indices = start + np.floor(np.arange(frames) * ratio + 0.5).astype(np.int64)
    return np.minimum(indices, count - 1)
