"""`Example` and `Source`: captioned videos and images, wherever they lie; and what is wrong with the others."""

import dataclasses
import pathlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable

from imagen_video_jax.video.containers import EncodedMedia
from imagen_video_jax.video.reading import Video, is_image

MAX_CAPTION = 10_000  # characters; an encoder cuts long before
# Marks that turn the direction of what follows, in a terminal too.
_DIRECTION_MARKS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclasses.dataclass(frozen=True)
class Example:
    """One captioned video or image.

    Attributes:
      path: the file, or the name under which a shard holds it.
      captions: descriptions of it, any of which may be shown with it; may be empty only where the source allows it.
      id: its number in the source, counted over videos and images in the order of their paths.
      facts: what else is known of it; `height`, `width`, `frames` and `fps` where it was prepared.
      load: reads it, where `path` is not a file.
      part: which data set of a mixture it belongs to.
      stamp: changes whenever the content does, as far as can be told without reading it; "" where `path` is a file.
    """

    path: pathlib.Path
    captions: tuple[str, ...]
    id: int
    facts: dict = dataclasses.field(default_factory=dict, compare=False)
    load: Callable[[], EncodedMedia | Video] | None = dataclasses.field(default=None, compare=False, repr=False)
    part: int = 0
    stamp: str = dataclasses.field(default="", compare=False)

    @property
    def is_image(self) -> bool:
        return is_image(self.path)

    def media(self) -> pathlib.Path | EncodedMedia | Video:
        """The file, its bytes, or (where the source has no files) its frames; MediaError when it cannot be had."""
        return self.load() if self.load else self.path


@dataclasses.dataclass(frozen=True)
class Source:
    """The examples of a data set, in the order of their paths.

    Attributes:
      path: as it was named.
      videos, images: its examples.
      weights: how often the parts of a mixture are shown, relative to each other; one for a single data set.
    """

    path: str
    videos: tuple[Example, ...]
    images: tuple[Example, ...]
    weights: tuple[float, ...] = (1.0,)

    @property
    def captions(self) -> tuple[str, ...]:
        """Every different caption, in the order of the examples: what a text encoder has to embed."""
        return tuple(dict.fromkeys(c for example in sorted_by_id(self) for c in example.captions))


def sorted_by_id(source: Source) -> list[Example]:
    """Videos and images together, in the order of their numbers."""
    return sorted(source.videos + source.images, key=lambda example: example.id)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Why a file, or a line that describes one, is not used.

    Attributes:
      path: relative to the source, or as it was written.
      reason: one line.
      fix: what helps, or "".
      line: of `path`, where it is a manifest.
      exists: False where a file is only spoken of.
    """

    path: str
    reason: str
    fix: str = ""
    line: int | None = None
    exists: bool = True

    def __str__(self) -> str:
        shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in self.path)  # it ends up on a terminal
        where = shown if self.line is None else f"{shown}:{self.line}"
        return f"{where}: {self.reason}" + (f"; {self.fix}" if self.fix else "")

    def row(self) -> dict:
        """A line of quarantine.jsonl."""
        row = {"path": self.path, "line": self.line, "reason": self.reason, "fix": self.fix}
        return {name: value for name, value in row.items() if value not in ("", None)}


@dataclasses.dataclass
class Listing:
    """What a source holds before anything is decoded.

    Attributes:
      examples: numbered, in order.
      problems: the files and lines that are not among them, and why.
      other: files that are no media, by ending.
      prepared: whether it was decided before which examples may lack a caption.
    """

    examples: list[Example]
    problems: list[Problem] = dataclasses.field(default_factory=list)
    other: Counter = dataclasses.field(default_factory=Counter)
    prepared: bool = False


def clean_captions(captions: Iterable[str]) -> tuple[str, ...]:
    """Captions as one line each in composed Unicode, without control and direction characters and lone surrogates,
    each once; empty ones are left out, overlong ones cut."""
    return tuple(dict.fromkeys(filter(None, map(_clean, captions))))


def captions_of(text: str) -> tuple[str, ...]:
    """The captions of a text file, one a line; form feeds and the separators of Unicode end no line."""
    return clean_captions(re.split(r"\r\n?|\n", text))


def _clean(caption: str) -> str:
    kept = "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in caption if c not in _DIRECTION_MARKS)
    return " ".join(unicodedata.normalize("NFC", kept).split())[:MAX_CAPTION].rstrip()
