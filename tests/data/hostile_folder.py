"""A folder of videos and images as strangers leave it: good files of every kind, and everything else."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import zipfile
from fractions import Fraction

import av
import numpy as np
from PIL import Image

FRAMES, HEIGHT, WIDTH, FPS = 10, 48, 64, 10

# name -> (codec, container, pixel format)
CODECS = {
    "h264.mp4": ("libx264", "mp4", "yuv420p"),
    "h264 high10.mp4": ("libx264", "mp4", "yuv420p10le"),
    "h264 444.mov": ("libx264", "mov", "yuv444p"),
    "hevc.mp4": ("libx265", "mp4", "yuv420p"),
    "hevc 10 bit.mkv": ("libx265", "matroska", "yuv420p10le"),
    "vp8.webm": ("libvpx", "webm", "yuv420p"),
    "vp9.webm": ("libvpx-vp9", "webm", "yuv420p"),
    "av1.webm": ("libsvtav1", "webm", "yuv420p"),
    "av1.mp4": ("libsvtav1", "mp4", "yuv420p"),
    "mpeg4.avi": ("mpeg4", "avi", "yuv420p"),
    "h264.avi": ("libx264", "avi", "yuv420p"),
    "mpeg4.m4v": ("mpeg4", "mp4", "yuv420p"),
    "mjpeg.avi": ("mjpeg", "avi", "yuvj420p"),
    "mjpeg.mov": ("mjpeg", "mov", "yuvj420p"),
    "mpeg2.ts": ("mpeg2video", "mpegts", "yuv420p"),
    "h264.ts": ("libx264", "mpegts", "yuv420p"),
    "hevc.ts": ("libx265", "mpegts", "yuv420p"),
    "ffv1.mkv": ("ffv1", "matroska", "yuv420p"),
    "ffv1.avi": ("ffv1", "avi", "yuv420p"),
    "moving.gif": ("gif", "gif", "rgb8"),
}
NAMES = [
    "球 и é.mp4",
    "-dash.mp4",
    "100%25%s.mp4",
    'it\'s "quoted" `$(x)`.mp4',
    "concat:a|b.mp4",
    "line\nend.mp4",
    "SHOUT.MP4",
    "dots...and..mp4.mp4",
    "deep/er/one.mp4",
    os.fsdecode(b"not utf-8 \xff.mp4"),
]


@dataclasses.dataclass
class Hostile:
    """What is in the folder.

    Attributes:
      good: {name: (frames, height, width)} of every file that must be kept.
      bad: names that must be in the quarantine.
      duplicates: names of files whose content is that of a good one.
      either: damaged files that may go either way, as long as it ends well.
      outside: a file that nothing in the folder may lead to.
    """

    folder: pathlib.Path
    good: dict[str, tuple[int, int, int]] = dataclasses.field(default_factory=dict)
    bad: list[str] = dataclasses.field(default_factory=list)
    duplicates: list[str] = dataclasses.field(default_factory=list)
    either: list[str] = dataclasses.field(default_factory=list)
    outside: pathlib.Path = pathlib.Path()

    def path(self, name: str) -> pathlib.Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def bad_bytes(self, name: str, data: bytes) -> None:
        self.path(name).write_bytes(data)
        self.bad.append(name)


def picture(seed: int, frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A smooth picture that pans, of its own for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    wide = np.asarray(Image.fromarray(coarse).resize((width + 2 * frames, height), Image.Resampling.BICUBIC))
    return np.stack([wide[:, 2 * t : 2 * t + width] for t in range(frames)])


def encode(path, frames_THWC, codec="libx264", container="mp4", pix_fmt="yuv420p", *, times_ms=None, change=None):
    """Encodes with any codec; `change` is called with the stream before the first frame."""
    options = {"libx265": {"x265-params": "log-level=none"}, "libsvtav1": {"svtav1-params": "lp=1"}}.get(codec, {})
    with own_priority(), av.open(f"file:{path}", "w", format=container) as output:
        stream = output.add_stream(codec, rate=FPS, options=options | ({"crf": "8"} if codec == "libx264" else {}))
        stream.height, stream.width = frames_THWC.shape[1:3]
        stream.pix_fmt = pix_fmt
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if change:
            change(stream)
        for t, frame_HWC in enumerate(frames_THWC):
            frame = av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[t], Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


@contextlib.contextmanager
def own_priority():
    """Of root's threads libsvtav1 makes real-time ones, and everything they start after it: others got no processor."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def make_hostile_folder(root: pathlib.Path) -> Hostile:
    hostile = Hostile(root / "source")
    hostile.folder.mkdir(parents=True)
    (root / "outside").mkdir()
    hostile.outside = encode(root / "outside" / "secret.mp4", picture(999))
    _good_videos(hostile)
    _good_images(hostile)
    _broken_videos(hostile)
    _disguises(hostile)
    _bombs(hostile)
    _links(hostile)
    _captions(hostile)
    return hostile


def _good_videos(hostile: Hostile) -> None:
    seed = 0

    def add(name, shape=(FRAMES, HEIGHT, WIDTH), frames=None, *rest, **options):
        nonlocal seed
        seed += 1
        frames = picture(seed) if frames is None else frames
        encode(hostile.path(name), frames, *rest, **options)
        hostile.good[name] = shape

    for name, form in CODECS.items():
        add(name, (FRAMES, HEIGHT, WIDTH), None, *form)
    for name in NAMES:
        add(name)
    add("one frame.mp4", (1, HEIGHT, WIDTH), picture(100, 1))
    add("odd.mkv", (FRAMES, 47, 63), picture(101, FRAMES, 47, 63), "ffv1", "matroska", "bgr0")
    add("odd 444.mp4", (FRAMES, 47, 63), picture(102, FRAMES, 47, 63), "libx264", "mp4", "yuv444p")
    times = [0, 100, 200, 300, 400, 500, 600, 900, 1000, 1100]
    add("variable.mkv", (12, HEIGHT, WIDTH), None, "mpeg4", "matroska", times_ms=times)
    wide = lambda stream: setattr(stream.codec_context, "sample_aspect_ratio", Fraction(2, 1))  # noqa: E731
    add("wide pixels.mp4", (FRAMES, HEIGHT, 2 * WIDTH), change=wide)
    add("rotated.mp4", (FRAMES, WIDTH, HEIGHT), change=lambda stream: stream.set_display_rotation(90))
    hostile.path("copy of h264.mp4").write_bytes(hostile.path("h264.mp4").read_bytes())
    # "copy of" comes first in the order of the names, so the other one is the copy.
    hostile.good["copy of h264.mp4"] = hostile.good.pop("h264.mp4")
    hostile.duplicates.append("h264.mp4")


def _good_images(hostile: Hostile) -> None:
    image = Image.fromarray(picture(200, 1)[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    images = {
        "plain.png": (image, {}, (HEIGHT, WIDTH)),
        "palette.png": (image.quantize(64), {}, (HEIGHT, WIDTH)),
        "deep.png": (Image.fromarray(np.full((30, 20), 0x8000, np.uint16)), {}, (30, 20)),
        "grey alpha.png": (image.convert("LA"), {}, (HEIGHT, WIDTH)),
        "cmyk.jpg": (image.convert("CMYK"), {}, (HEIGHT, WIDTH)),
        "turned.jpeg": (image, {"exif": exif, "quality": 95}, (WIDTH, HEIGHT)),
        "lossless.webp": (image, {"lossless": True}, (HEIGHT, WIDTH)),
        "dot.png": (image.resize((1, 1)), {}, (1, 1)),
    }
    for name, (picture_, options, (height, width)) in images.items():
        picture_.save(hostile.path(name), **options)
        hostile.good[name] = (1, height, width)


def _broken_videos(hostile: Hostile) -> None:
    whole = encode(hostile.folder / "whole.mp4", picture(300, 24)).read_bytes()
    (hostile.folder / "whole.mp4").unlink()
    for share in (0.05, 0.3, 0.6, 0.99):
        hostile.bad_bytes(f"cut at {share}.mp4", whole[: int(len(whole) * share)])
    for name in ("vp9.webm", "mpeg4.avi", "ffv1.mkv", "moving.gif"):
        data = hostile.path(name).read_bytes()
        hostile.bad_bytes(f"cut {name}", data[: len(data) * 2 // 3])
    png = hostile.path("plain.png").read_bytes()
    hostile.bad_bytes("cut.png", png[: len(png) // 2])
    moov = whole.index(b"moov") - 4
    hostile.bad_bytes("no moov.mp4", whole[:moov])
    rng = np.random.default_rng(0)
    for number in range(6):
        flipped = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            flipped[place] ^= 1 << int(rng.integers(8))
        hostile.path(f"flipped {number}.mp4").write_bytes(flipped)
        hostile.either.append(f"flipped {number}.mp4")
    for number in range(2):
        noisy = bytearray(whole)
        noisy[len(whole) // 3 : 2 * len(whole) // 3] = rng.bytes(len(whole) // 3 + 1)[
            : 2 * len(whole) // 3 - len(whole) // 3
        ]
        hostile.path(f"noise {number}.mp4").write_bytes(noisy)
        hostile.either.append(f"noise {number}.mp4")
    with av.open(str(hostile.path("sound only.mp4")), "w") as output:
        stream = output.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    hostile.bad.append("sound only.mp4")
    for name, codec, container in (("mpeg1.mkv", "mpeg1video", "matroska"), ("prores.mov", "prores_ks", "mov")):
        pix_fmt = "yuv422p10le" if codec == "prores_ks" else "yuv420p"
        try:
            encode(hostile.path(name), picture(301), codec, container, pix_fmt, change=_rate_of_film)
        except (av.FFmpegError, ValueError):
            hostile.path(name).write_bytes(b"")
        hostile.bad.append(name)


def _rate_of_film(stream) -> None:
    stream.codec_context.framerate = Fraction(25)
    stream.codec_context.time_base = Fraction(1, 25)


def _disguises(hostile: Hostile) -> None:
    secret = hostile.outside
    hostile.bad_bytes("playlist.mp4", f"#EXTM3U\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n".encode())
    hostile.bad_bytes("joined.mp4", f"ffconcat version 1.0\nfile {secret}\n".encode())
    hostile.bad_bytes("joined.mkv", b"ffconcat version 1.0\nfile ../outside/secret.mp4\n")
    mpd = (
        f"<?xml version='1.0'?><MPD type='static'><Period><AdaptationSet mimeType='video/mp4'><Representation id='1'>"
        f"<BaseURL>file://{secret}</BaseURL></Representation></AdaptationSet></Period></MPD>"
    )
    hostile.bad_bytes("dash.mp4", mpd.encode())
    hostile.bad_bytes("page.mp4", b"<!DOCTYPE html><html>not found</html>")
    hostile.bad_bytes("page.png", b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>")
    hostile.bad_bytes("empty.mp4", b"")
    hostile.bad_bytes("empty.jpg", b"")
    hostile.bad_bytes("zeros.mp4", bytes(10_000))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.mp4", b"x" * 1000)
    hostile.bad_bytes("archive.mp4", archive.getvalue())
    hostile.bad_bytes("archive.webp", archive.getvalue())
    bitmap = io.BytesIO()
    Image.new("RGB", (4, 4)).save(bitmap, "BMP")
    hostile.bad_bytes("bitmap.png", bitmap.getvalue())
    (hostile.folder / "notes.md").write_text("no media")
    (hostile.folder / "list.m3u8").write_text(f"#EXTM3U\n{secret}\n")


def _bombs(hostile: Hostile) -> None:
    for side in (8000, 14_000):
        Image.new("1", (side, side)).save(hostile.path(f"bomb {side}.png"))
        hostile.bad.append(f"bomb {side}.png")
    gif = bytearray(hostile.path("moving.gif").read_bytes())
    gif[6:10] = b"\xff\xff\xff\xff"
    hostile.bad_bytes("size bomb.gif", bytes(gif))
    avi = bytearray(hostile.path("mjpeg.avi").read_bytes())
    place = avi.index(b"strf") + 12
    avi[place : place + 8] = (60_000).to_bytes(4, "little") * 2
    hostile.path("size bomb.avi").write_bytes(avi)
    hostile.either.append("size bomb.avi")  # each of its pictures says the right size
    encode(hostile.path("time bomb.mkv"), picture(302, 4), "mpeg4", "matroska", times_ms=[0, 1, 2, 3_000_000])
    hostile.bad.append("time bomb.mkv")
    encode(hostile.path("long bomb.mkv"), picture(303, 2), "mpeg4", "matroska", times_ms=[0, 40_000_000])
    hostile.bad.append("long bomb.mkv")
    changing = io.BytesIO()
    with av.open(changing, "w", format="mpegts") as output:
        stream = output.add_stream("mpeg2video", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for frame_HWC in picture(304):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        output.mux(stream.encode(None))
    bigger = io.BytesIO()
    with av.open(bigger, "w", format="mpegts") as output:
        stream = output.add_stream("mpeg2video", rate=25)
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        for frame_HWC in picture(305, 10, 96, 128):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        output.mux(stream.encode(None))
    hostile.bad_bytes("size changes.ts", changing.getvalue() + bigger.getvalue())


def _links(hostile: Hostile) -> None:
    folder = hostile.folder
    os.symlink(hostile.outside, folder / "link out.mp4")
    os.symlink("../outside/secret.mp4", folder / "deep" / "link up.mp4")
    os.symlink(hostile.outside.parent, folder / "linked folder")
    os.symlink("vp8.webm", folder / "zz link inside.webm")
    os.symlink("nowhere.mp4", folder / "link to nothing.mp4")
    os.symlink("loop.mp4", folder / "loop.mp4")
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    os.symlink("/dev/zero", folder / "zero.mp4")
    hostile.bad += ["link out.mp4", "deep/link up.mp4", "linked folder", "zz link inside.webm", "link to nothing.mp4"]
    hostile.bad += ["loop.mp4", "folder.mp4", "pipe.mp4", "zero.mp4"]


BAD_LINES = [
    "{",
    "[" * 10_000,
    "[1]",
    '"vp8.webm"',
    "null",
    '{"caption": "no path"}',
    '{"path": 3, "caption": "x"}',
    '{"path": "vp8.webm", "caption": 3}',
    '{"path": "vp8.webm", "captions": "x"}',
    '{"path": "vp8.webm", "captions": [1, 2]}',
    '{"path": "vp8.webm", "caption": "' + "x" * (1 << 20) + '"}',
    '{"path": "vp8.webm", "caption": "said twice"}',
]
BAD_PATHS = [
    "../outside/secret.mp4", "/etc/passwd", "deep/../../outside/secret.mp4", "http://example.org/a.mp4", "pipe:0",
    "pipe:0.mp4", "concat:vp8.webm|vp9.webm", "missing.mp4", "notes.md", "nul\0.mp4", "x" * 5000 + ".mp4",
    "file:vp8.webm",
]  # fmt: skip


def _captions(hostile: Hostile) -> None:
    names = [name for name in hostile.good if _is_text(name)]
    rows = [{"path": name, "captions": [f"about {name}", "said twice"], "n": 1} for name in names if name != "av1.mp4"]
    rows += [{"path": name, "caption": "x"} for name in BAD_PATHS]
    rows.append({"path": "h264.mp4", "caption": "the copy"})
    lines = [json.dumps(row).encode() for row in rows] + [line.encode() for line in BAD_LINES]
    lines.append(b'{"path": "vp8.webm", "caption": "caf\xe9"}')
    (hostile.folder / "captions.jsonl").write_bytes(b"\n".join(lines) + b"\n\n")
    (hostile.folder / "av1.txt").write_text("from the sidecar\n\x1b[31m\u202e\n", encoding="utf-8")
    (hostile.folder / "deep" / "er" / "other.txt").write_bytes(b"\xff")
    hostile.bad += [path if path != "x" * 5000 + ".mp4" else path[:200] for path in BAD_PATHS]


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
