"""Video and image files <-> uint8 RGB arrays and frames per second (PyAV, Pillow).

Files come from strangers, so what opens is decided by allow-lists: the container is recognised by its first bytes and
forced on the demuxer (a playlist named `.mp4` would otherwise open the files it lists), the codec and the frame size
are checked before the first frame is decoded. Every reason not to read a file is a `MediaError` of one line.

Written files carry their provenance in the container's own tags: `title` is the prompt, `comment` is JSON.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo

import imagen_video_jax
from imagen_video_jax.errors import UserError
from imagen_video_jax.storage import atomic_path

VIDEO_ENDINGS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif")
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video", "mjpeg", "ffv1", "gif")
MAX_PIXELS = 7680 * 4320  # of one frame or image: 8K
MAX_BYTES = 4 << 30  # of one video as returned
MAX_FPS = 1000.0

_ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
# The same pixels shall give the same bytes: x264's output depends on its thread count, and with B-frames three runs in
# five differed (measured; without them none of 25 did). The conversion puts a colour sample at the centre of its four
# pixels, and H.264 takes it to lie on their left unless told: a shift of half a pixel.
_ENCODER_THREADS = 4
_ENCODER_OPTIONS = {"crf": "12", "preset": "medium", "bf": "0", "chroma_sample_location": "center"}
# The default conversion between RGB and YUV darkens by about 1/255 and takes colour from the nearest of a quarter as
# many samples; on a smooth picture this one is off by 0.6 on average instead of 6.
_CONVERSION = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


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


def read_media(path: str | os.PathLike, *, each_frame: Callable | None = None) -> Video:
    """Reads a video, or an image as one frame with fps 0, chosen by the file's ending."""
    if pathlib.Path(path).suffix.lower() in IMAGE_ENDINGS:
        image_HWC = read_image(path)
        return Video((each_frame(image_HWC) if each_frame else image_HWC)[None], 0.0)
    return read_video(path, each_frame=each_frame)


def read_video(path: str | os.PathLike, *, max_frames: int | None = None, each_frame: Callable | None = None) -> Video:
    """Decodes the first video stream of mp4, mov, webm, mkv, avi or gif.

    Display rotation is applied. A stream of variable rate comes back at the constant rate of its median frame, every
    instant showing the frame that a player shows then.

    Args:
      path: file.
      max_frames: stop after so many decoded frames.
      each_frame: uint8 HWC -> uint8 HWC, applied to each frame as it is decoded, so that a long video of large frames
        never sits in memory at full size.

    Raises:
      MediaError: not a video we read, damaged, cut off, too large, or its frame size changes on the way.
    """
    with _reading(path) as container:
        stream = _video_stream(path, container)
        frames, times = [], []
        total, duration_s = 0, 0.0
        for frame_HWC, time_s, duration_s in _decode(path, container, stream):  # noqa: B007
            frames.append(each_frame(frame_HWC) if each_frame else frame_HWC)
            times.append(time_s)
            total += frames[-1].nbytes
            if total > MAX_BYTES:
                raise MediaError(path, f"decodes to more than {MAX_BYTES >> 30} GiB; cut it into shorter clips")
            if max_frames is not None and len(frames) >= max_frames:
                break
        if not frames:
            raise MediaError(path, "holds no frame that decodes")
        order, fps = _constant_rate(path, times, duration_s, float(stream.average_rate or 0))
        if len(order) * frames[0].nbytes > MAX_BYTES:
            raise MediaError(path, f"decodes to more than {MAX_BYTES >> 30} GiB; cut it into shorter clips")
    return Video(np.stack([frames[i] for i in order]), fps)


def _container_format(path: str | os.PathLike) -> str:
    """The demuxer for a file, from its first bytes: the ending is only a claim."""
    with open(path, "rb") as file:
        head = file.read(12)
    if not head:
        raise MediaError(path, "the file is empty")
    if head[4:8] in _ISO_BOXES:
        return "mp4"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    raise MediaError(path, f"not an mp4, mov, webm, mkv, avi or gif file (begins with {head!r})")


def _url(path: str | os.PathLike) -> str:
    """With the protocol spelled out, a name such as `concat:a|b` is only the name of a file."""
    return f"file:{os.path.abspath(path)}"


@contextlib.contextmanager
def _reading(path: str | os.PathLike) -> Iterator[av.container.InputContainer]:
    """Opens a file with the demuxer of its content; any failure inside becomes a MediaError."""
    try:
        name = _container_format(path)
        # The whitelist: whatever the content asks for, nothing but files is opened.
        with av.open(_url(path), format=name, options={"protocol_whitelist": "file"}) as container:
            yield container
    except MediaError:
        raise
    except MemoryError:
        raise MediaError(path, "does not fit in memory") from None
    except (OSError, ValueError, EOFError, av.FFmpegError) as error:
        # PyAV's errors derive from several builtin ones; their text repeats the file name after the reason.
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise MediaError(path, f"cannot be decoded ({reason})") from None


def _video_stream(path: str | os.PathLike, container: av.container.InputContainer) -> av.VideoStream:
    """The video stream, after every check that needs no decoding."""
    stream = container.streams.best("video")
    if stream is None:
        raise MediaError(path, "holds no video stream")
    codec = stream.codec_context
    name = codec.codec.canonical_name if codec is not None else "unknown"
    if name not in CODECS:
        raise MediaError(path, f"codec {name} is not one of {', '.join(CODECS)}")
    if codec.width < 1 or codec.height < 1:
        raise MediaError(path, "does not state its frame size")
    if codec.width * codec.height > MAX_PIXELS:
        raise MediaError(path, f"frames of {codec.width}x{codec.height} exceed {MAX_PIXELS} pixels; scale it down")
    # The index of an mp4, mov or avi says where each frame lies, and a file cut short decodes to fewer frames silently.
    if container.format.name in ("mp4", "avi"):
        end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
        if end > (size := os.path.getsize(path)):
            raise MediaError(path, f"cut off: {size} bytes, its index needs {end}")
    # One thread a file: many files are read at once, and a clip of a few dozen frames does not repay more.
    codec.thread_count = 1
    return stream


def _decode(
    path: str | os.PathLike, container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[tuple[np.ndarray, float | None, float]]:
    """Yields (uint8 HWC as displayed, time and duration in seconds, 0 or None where the file says nothing)."""
    size = None
    for frame in container.decode(stream):
        if size is None:
            size = (frame.width, frame.height)
            if frame.width * frame.height > MAX_PIXELS:
                raise MediaError(path, f"frames of {frame.width}x{frame.height} exceed {MAX_PIXELS} pixels")
        if (frame.width, frame.height) != size:
            raise MediaError(
                path, f"frame size changes from {size[0]}x{size[1]} to {frame.width}x{frame.height}; re-encode it"
            )
        frame_HWC = frame.to_ndarray(format="rgb24", interpolation=_CONVERSION, threads=1)
        # The angle is counterclockwise, as rot90's.
        if quarter_turns := round(frame.rotation / 90) % 4:
            frame_HWC = np.ascontiguousarray(np.rot90(frame_HWC, quarter_turns))
        yield frame_HWC, frame.time, float((frame.duration or 0) * (frame.time_base or 0))


def _constant_rate(
    path: str | os.PathLike, times: Sequence[float | None], last_duration: float, nominal_fps: float
) -> tuple[np.ndarray, float]:
    """Which decoded frame to show at each tick of a constant rate, and that rate."""
    count = len(times)
    order, fps = np.arange(count), nominal_fps
    if count > 1 and None not in times:
        seconds = np.asarray(times) - times[0]
        gaps = np.diff(seconds)
        if np.any(gaps <= 0):
            raise MediaError(path, "its timestamps do not increase; re-encode it")
        typical = float(np.median(gaps))
        mean_fps = (count - 1) / seconds[-1]
        if np.abs(seconds * mean_fps - order).max() < 0.75:
            # Timestamps are rounded (1 ms in webm, 10 ms in gif); the stated rate is exact where it agrees.
            fps = nominal_fps if abs(nominal_fps / mean_fps - 1) < 0.01 else mean_fps
        else:
            fps = 1 / typical
            ticks = round((seconds[-1] + max(last_duration, typical)) * fps)
            if ticks > MAX_BYTES // 3:
                raise MediaError(path, f"its timestamps span {seconds[-1]:.0f} s at {fps:.0f} frames/s")
            # A small lead, so that a tick that falls on a frame's rounded time shows that frame.
            order = np.searchsorted(seconds, (np.arange(ticks) + 0.25) / fps, side="right") - 1
    if not 0 < fps <= MAX_FPS:
        raise MediaError(path, f"{fps:g} frames/s is outside (0, {MAX_FPS:g}]; re-encode it with a frame rate")
    return order, float(fps)


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Decodes a png, jpeg or webp (the first frame of an animation) to uint8 HWC RGB.

    EXIF orientation is applied, transparency is laid over white, 16-bit grey keeps its upper 8 bits.

    Raises:
      MediaError: another format, damaged, or more than `MAX_PIXELS` pixels (checked before decoding).
    """
    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise MediaError(path, f"an image of {width}x{height} exceeds {MAX_PIXELS} pixels; scale it down")
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
        raise MediaError(path, f"the image exceeds {MAX_PIXELS} pixels; scale it down") from None
    except Image.UnidentifiedImageError:
        raise MediaError(path, "not a png, jpeg or webp image") from None
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise MediaError(path, f"cannot be decoded ({reason})") from None


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


def write_video(
    path: str | os.PathLike, frames_THWC: np.ndarray, *, fps: float, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes uint8 RGB frames as mp4 (H.264, yuv420p, plays in browsers) or gif, by ending; atomic.

    An odd height or width is made even for mp4 by repeating the last row or column (yuv420p has no odd sizes).

    Args:
      path: ends in .mp4 or .gif; its folder exists.
      frames_THWC: at least one frame.
      fps: frames per second; a gif keeps it to 10 ms a frame on average.
      metadata: provenance (cascade, prompt, seed, ...) for `read_metadata`; `made_by` is added.
    """
    if frames_THWC.dtype != np.uint8 or frames_THWC.ndim != 4 or frames_THWC.shape[-1] != 3 or not len(frames_THWC):
        raise ValueError(f"frames_THWC: expected uint8(T, H, W, 3), got {frames_THWC.dtype}{frames_THWC.shape}")
    if not 0 < fps <= MAX_FPS:
        raise UserError(f"{path}: fps must be in (0, {MAX_FPS:g}], got {fps}")
    writers = {".mp4": _write_mp4, ".gif": _write_gif}
    writer = writers.get(pathlib.Path(path).suffix.lower())
    if writer is None:
        raise UserError(f"{path}: videos are written as {' or '.join(writers)}; change the ending")
    tags = {"made_by": f"imagen_video_jax {imagen_video_jax.__version__}", **(metadata or {})}
    with atomic_path(path) as temporary:
        writer(temporary, frames_THWC, Fraction(fps).limit_denominator(1001), {k: str(v) for k, v in tags.items()})


def _write_mp4(path: pathlib.Path, frames_THWC: np.ndarray, rate: Fraction, tags: dict[str, str]) -> None:
    _, H, W, _ = frames_THWC.shape
    frames_THWC = np.pad(frames_THWC, ((0, 0), (0, H % 2), (0, W % 2), (0, 0)), mode="edge")
    with av.open(_url(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        container.metadata.update(title=_printable(tags.get("prompt", "")), comment=json.dumps(tags))
        stream = container.add_stream("libx264", rate=rate, options=_ENCODER_OPTIONS)
        stream.height, stream.width = frames_THWC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        codec = stream.codec_context
        codec.thread_count = _ENCODER_THREADS
        # Untagged files are BT.601 to one player and BT.709 to the next: say which, and encode by it.
        codec.colorspace, codec.color_range = Colorspace.ITU709, ColorRange.MPEG
        codec.color_primaries, codec.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        for frame_HWC in frames_THWC:
            frame = av.VideoFrame.from_ndarray(frame_HWC, format="rgb24").reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                dst_color_primaries=ColorPrimaries.BT709,
                dst_color_trc=ColorTrc.BT709,
                interpolation=_CONVERSION,
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _write_gif(path: pathlib.Path, frames_THWC: np.ndarray, rate: Fraction, tags: dict[str, str]) -> None:
    # A gif counts time in 1/100 s: the rounding error is spread so that the clip keeps its length.
    ticks = [round(100 * i / rate) for i in range(len(frames_THWC) + 1)]
    images = [Image.fromarray(frame_HWC).quantize(256, dither=Image.Dither.NONE) for frame_HWC in frames_THWC]
    images[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=[10 * (b - a) for a, b in itertools.pairwise(ticks)],
        loop=0,
        comment=json.dumps(tags).encode(),
    )


def _printable(text: str) -> str:
    """Text fit for a container's title: no control characters, no lone surrogates, one line."""
    text = text.encode("utf-8", "replace").decode()
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:1000]


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The provenance that `write_video` wrote into a file; {} for a file that carries none.

    Raises:
      MediaError: the file is not a video we read.
    """
    with _reading(path) as container:
        comment = container.metadata.get("comment", "")
    try:
        tags = json.loads(comment)
    except ValueError:
        return {}
    return tags if isinstance(tags, dict) and "made_by" in tags else {}


def write_contact_sheet(
    path: str | os.PathLike, videos: Sequence[np.ndarray], labels: Sequence[str] | None = None, frames: int = 8
) -> None:
    """Writes a png with a row per clip (uint8 THWC) and `frames` columns spread evenly over its time, for looking at.

    Small clips are enlarged by a whole factor, nearest pixel, so that the pixels stay visible.
    """
    if labels is not None and len(labels) != len(videos):
        raise ValueError(f"{len(labels)} labels for {len(videos)} videos")
    gap, caption = 4, 16 if labels is not None else 0
    cell_height = max(96, *(video_THWC.shape[1] for video_THWC in videos))
    zooms = [cell_height // video_THWC.shape[1] for video_THWC in videos]
    cell_width = max(video_THWC.shape[2] * zoom for video_THWC, zoom in zip(videos, zooms, strict=True))
    row_height = cell_height + caption + gap
    sheet = Image.new("RGB", (frames * (cell_width + gap) + gap, len(videos) * row_height + gap), (24, 24, 24))
    draw = ImageDraw.Draw(sheet)
    for row, (video_THWC, zoom) in enumerate(zip(videos, zooms, strict=True)):
        top = gap + row * row_height
        if labels is not None:
            draw.text((gap, top), _printable(labels[row]), fill=(220, 220, 220), font=ImageFont.load_default(11))
        T, H, W, _ = video_THWC.shape
        for column, t in enumerate(np.linspace(0, T - 1, min(frames, T)).round().astype(int)):
            cell = Image.fromarray(video_THWC[t]).resize((W * zoom, H * zoom), Image.Resampling.NEAREST)
            sheet.paste(cell, (gap + column * (cell_width + gap), top + caption))
    note = PngInfo()
    note.add_text("Software", f"imagen_video_jax {imagen_video_jax.__version__}")
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG", pnginfo=note)
