"""One candidate clip -> what `prepare` needs to know of it: a pure function of the file and the settings."""

import dataclasses
import hashlib
import io
import itertools
import pathlib
from collections.abc import Sequence

from PIL import Image

from imagen_video_jax import storage
from imagen_video_jax.data.examples import Example
from imagen_video_jax.errors import UserError
from imagen_video_jax.video import isolated
from imagen_video_jax.video.containers import Media, size_of
from imagen_video_jax.video.files import write_video
from imagen_video_jax.video.reading import Facts, MediaError, Video

_MOST_SECONDS = 1_000_000  # what a socket can wait for is twice as long


@dataclasses.dataclass(frozen=True)
class PrepareSettings:
    """What is kept, and in which form.

    Attributes:
      min_fps, max_fps, min_seconds, max_seconds: of a video; 0 for no limit.
      cut: a video is cut where this share of the colours changes from one frame to the next; 0 never, 0.5 is usual.
        Parts are encoded anew (everything else keeps its bytes).
      validation: share of the contents that goes to DIR/validation, chosen by the content's hash.
      require_captions: drop what has no caption instead of keeping it for training without text.
      seconds_per_file, memory_per_file: limits of decoding (s, bytes).
      shard_bytes: a shard is closed once its media reach this size.
    """

    min_fps: float = 0.0
    max_fps: float = 0.0
    min_seconds: float = 0.0
    max_seconds: float = 0.0
    cut: float = 0.0
    validation: float = 0.0
    require_captions: bool = False
    seconds_per_file: float = 120.0
    memory_per_file: int = 1536 << 20
    shard_bytes: int = 256 << 20

    def __post_init__(self):
        for name in ("min_fps", "max_fps", "min_seconds", "max_seconds"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("fps", "seconds"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if high and low > high:
                raise UserError(f"min_{name} {low:g} is above max_{name} {high:g}")
        if not 0 <= self.cut <= 1 or not 0 <= self.validation < 1:
            raise UserError(f"cut must be in [0, 1] and validation in [0, 1), got {self.cut} and {self.validation}")
        if not 0 < self.seconds_per_file <= _MOST_SECONDS:
            raise UserError(f"seconds_per_file must be above 0, at most {_MOST_SECONDS}, got {self.seconds_per_file:g}")
        if not 256 << 20 <= self.memory_per_file < 1 << 63:
            raise UserError(f"a file needs from 256 to 2^43 MB of memory, got {self.memory_per_file / 2**20:g}")
        if self.shard_bytes < 1:
            raise UserError(f"a shard needs at least a byte, got {self.shard_bytes}")


@dataclasses.dataclass(frozen=True)
class Clip:
    """A part of a file, or the whole.

    Attributes:
      frames, height, width, fps: as it reads.
      size: bytes of the encoded media.
      stored: file name in the work folder of what was encoded for it, "" where the file itself is kept.
      part: which frames of the file, e.g. "0-48", "" for all.
    """

    frames: int
    height: int
    width: int
    fps: float
    size: int
    stored: str = ""
    part: str = ""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of one file: clips, or a reason why not."""

    sha256: str = ""
    clips: tuple[Clip, ...] = ()
    reason: str = ""

    @classmethod
    def from_json(cls, row: dict) -> "Verdict":
        return cls(row["sha256"], tuple(Clip(**clip) for clip in row["clips"]), row["reason"])


def examine(example: Example, settings: PrepareSettings, work: pathlib.Path) -> Verdict:
    """Decodes a file in a process of its own and decides; what has to be encoded anew is written to `work`."""
    sha256 = ""
    try:
        media = example.media()
        if isinstance(media, Video):
            return _examine_frames(media, example, settings, work)
        sha256 = isolated.read_hash(media, memory_bytes=settings.memory_per_file)
        _check_hash(example, sha256)
        limits = {"seconds": settings.seconds_per_file, "memory_bytes": settings.memory_per_file}
        scan = isolated.scan(media, changes=settings.cut > 0 and not example.is_image, **limits)
        _check_fps(example, scan.facts, settings)
        if settings.require_captions and not example.captions:
            raise MediaError(example.path, "has no caption; describe it in captions.jsonl or in a .txt beside it")
        parts = _parts(scan, settings)
        wanted = parts if example.is_image else [part for part in parts if _right_length(part, scan.facts, settings)]
        if not wanted:
            raise MediaError(example.path, f"filtered: {_seconds(parts, scan.facts)}, {_wanted(settings)} wanted")
        if len(parts) == 1:
            return Verdict(sha256, (Clip(**dataclasses.asdict(scan.facts), size=size_of(media)),))
        return Verdict(sha256, tuple(_cut(media, sha256, part, scan.facts, work, limits) for part in wanted))
    except MediaError as error:
        return Verdict(sha256, reason=error.reason)


def _check_hash(example: Example, sha256: str) -> None:
    """Where a manifest states the hash: decoding alone does not show every flipped bit."""
    stated = example.facts.get("sha256")
    if stated is not None and str(stated).strip().lower() != sha256:
        raise MediaError(example.path, "its content is not that of the sha256 stated for it; copy it again")


def _check_fps(example: Example, facts: Facts, settings: PrepareSettings) -> None:
    low, high = settings.min_fps, settings.max_fps
    if not example.is_image and (facts.fps < low or (high and facts.fps > high)):
        wanted = f"at least {low:g}" if facts.fps < low else f"at most {high:g}"
        raise MediaError(example.path, f"filtered: {facts.fps:g} frames/s, {wanted} wanted")


def _parts(scan: isolated.Scan, settings: PrepareSettings) -> list[tuple[int, int]]:
    cuts = [place for place, change in enumerate(scan.changes, 1) if settings.cut and change >= settings.cut]
    return list(itertools.pairwise([0, *cuts, scan.facts.frames]))


def _right_length(part: tuple[int, int], facts: Facts, settings: PrepareSettings) -> bool:
    seconds = (part[1] - part[0]) / facts.fps
    return seconds >= settings.min_seconds and not (settings.max_seconds and seconds > settings.max_seconds)


def _seconds(parts, facts: Facts) -> str:
    longest = max(end - start for start, end in parts) / facts.fps
    return f"{longest:.2f} s" if len(parts) == 1 else f"{len(parts)} parts of at most {longest:.2f} s"


def _wanted(settings: PrepareSettings) -> str:
    return f"{settings.min_seconds:g} s or more" + (f" up to {settings.max_seconds:g}" if settings.max_seconds else "")


def _cut(media: Media, sha256: str, part: Sequence[int], facts: Facts, work: pathlib.Path, limits: dict) -> Clip:
    stored = f"{sha256}-{part[0]}-{part[1]}.mp4"
    if not (work / stored).exists():
        write_video(work / stored, isolated.read_part(media, *part, **limits).frames_THWC, fps=facts.fps)
    # The encoder has no odd sizes.
    height, width = facts.height + facts.height % 2, facts.width + facts.width % 2
    size = size_of(work / stored)
    return Clip(part[1] - part[0], height, width, facts.fps, size, stored, f"{part[0]}-{part[1]}")


def _examine_frames(video: Video, example: Example, settings: PrepareSettings, work: pathlib.Path) -> Verdict:
    """Frames that come decoded (TFDS) are encoded, images without loss."""
    frames_THWC = video.frames_THWC
    sha256 = hashlib.sha256(repr((frames_THWC.shape, video.fps)).encode() + frames_THWC.tobytes()).hexdigest()
    facts = Facts(*frames_THWC.shape[:3], video.fps)
    _check_fps(example, facts, settings)
    stored = f"{sha256}.png" if example.is_image else f"{sha256}.mp4"
    if not (work / stored).exists() and example.is_image:
        buffer = io.BytesIO()
        Image.fromarray(frames_THWC[0]).save(buffer, "PNG")
        storage.write_bytes(work / stored, buffer.getvalue())
    elif not (work / stored).exists():
        write_video(work / stored, frames_THWC, fps=video.fps)
    height, width = (n if example.is_image else n + n % 2 for n in (facts.height, facts.width))
    return Verdict(sha256, (Clip(facts.frames, height, width, facts.fps, size_of(work / stored), stored),))
