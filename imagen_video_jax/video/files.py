"""Video and image files <-> uint8 RGB arrays and frames per second: the door to `reading.py`, and the writers.

Written files carry their provenance in the container's own tags: `title` is the prompt, `comment` is JSON.
"""

import itertools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

import imagen_video_jax
from imagen_video_jax.errors import UserError
from imagen_video_jax.storage import atomic_path
from imagen_video_jax.video.reading import (
    CONVERSION,
    IMAGE_ENDINGS,
    MAX_FPS,
    VIDEO_ENDINGS,
    MediaError,
    Video,
    read_image,
    read_media,
    read_video,
    reading,
    select_frames,
    url_of,
)

__all__ = [
    "IMAGE_ENDINGS",
    "VIDEO_ENDINGS",
    "MediaError",
    "Video",
    "read_image",
    "read_media",
    "read_metadata",
    "read_video",
    "select_frames",
    "write_contact_sheet",
    "write_video",
]

# The same pixels shall give the same bytes: x264's output depends on its thread count, and with B-frames three runs in
# five differed (measured; without them none of 25 did). The conversion puts a colour sample at the centre of its four
# pixels, and H.264 takes it to lie on their left unless told: a shift of half a pixel.
_ENCODER_THREADS = 4
_ENCODER_OPTIONS = {"crf": "12", "preset": "medium", "bf": "0", "chroma_sample_location": "center"}


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
    with av.open(url_of(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
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
                interpolation=CONVERSION,
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
    with reading(path) as container:
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
