"""`imagen-video inspect`: what a data set holds, as a table, and a contact sheet of clips spread over it."""

import pathlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import rich.console
import rich.markup
import rich.table

from imagen_video_jax import storage
from imagen_video_jax.data import records
from imagen_video_jax.data.examples import Example
from imagen_video_jax.data.sources import list_source
from imagen_video_jax.errors import TOO_MUCH_BAD_DATA, UserError
from imagen_video_jax.video import isolated
from imagen_video_jax.video.cover import cover
from imagen_video_jax.video.files import write_contact_sheet
from imagen_video_jax.video.reading import Facts, MediaError, Video

_CELL = (96, 160)  # height and width that a cell covers


def inspect(source: str, sheet: pathlib.Path, *, rows: int = 12) -> None:
    """Prints a table of a data set and writes a contact sheet of `rows` of its clips.

    Raises:
      UserError: nothing to read there; with exit code 4 not one of the clips chosen can be read.
    """
    if not sheet.parent.is_dir() or sheet.suffix.lower() != ".png" or sheet.is_dir():
        raise UserError(f"--out must be a .png in a folder that is there, got {sheet}")
    storage.writable_folder(sheet.parent)  # before minutes of reading
    listing = list_source(source)
    if not listing.examples:
        first = f"; the first problem: {listing.problems[0]}" if listing.problems else ""
        raise UserError(f"{source} holds no videos or images{first}")
    chosen = _spread(listing.examples, rows)
    videos, labels, bad = [], [], []
    for example in chosen:
        try:
            facts, frames_THWC = _look(example)
        except MediaError as error:
            bad.append(error)
            continue
        videos.append(frames_THWC)
        caption = example.captions[0] if example.captions else "(no caption)"
        labels.append(f"{example.path.name}  {_form(facts)}  {caption}")
    console = rich.console.Console()
    console.print(_table(source, listing, len(bad), len(chosen)))
    for error in bad:
        console.print(f"unreadable: {rich.markup.escape(str(error))}", soft_wrap=True)
    if not videos:
        raise UserError(f"{source}: none of the {len(chosen)} clips looked at can be read; {bad[0]}", TOO_MUCH_BAD_DATA)
    write_contact_sheet(sheet, videos, labels)
    console.print(f"{sheet}: {len(videos)} clips", soft_wrap=True)


def _spread(examples: Sequence[Example], count: int) -> list[Example]:
    places = np.linspace(0, len(examples) - 1, min(count, len(examples))).round().astype(int)
    return [examples[place] for place in dict.fromkeys(places.tolist())]


def _look(example: Example) -> tuple[Facts, np.ndarray]:
    """Facts of one clip, and its frames at the size of a cell."""
    media = example.media()
    height, width = _CELL
    if isinstance(media, Video):
        T, H, W, _ = media.frames_THWC.shape
        return Facts(T, H, W, media.fps), cover(media.frames_THWC, height=height, width=width)
    facts = isolated.scan(media).facts
    return facts, isolated.read(media, height=height, width=width).frames_THWC


def _form(facts: Facts) -> str:
    return f"{facts.frames}x{facts.height}x{facts.width}" + (f"@{facts.fps:g}" if facts.fps else "")


def _table(source: str, listing, bad: int, looked: int) -> rich.table.Table:
    table = rich.table.Table(title=rich.markup.escape(source), show_header=False)
    for name, value in _facts(source, listing).items():
        table.add_row(name, rich.markup.escape(str(value)))
    table.add_row("of these looked at", f"{looked}, {bad} of them unreadable")
    return table


def _facts(source: str, listing) -> dict[str, object]:
    examples = listing.examples
    captions = [len(example.captions) for example in examples]
    lengths = [len(caption.split()) for example in examples for caption in example.captions]
    facts = {
        "videos": sum(not example.is_image for example in examples),
        "images": sum(example.is_image for example in examples),
        "captions": f"{sum(captions)}, {captions.count(0)} without one",
        "words in a caption": f"{min(lengths)} to {max(lengths)}, {np.mean(lengths):.1f} on average"
        if lengths
        else "-",
        "problems": f"{len(listing.problems)}" + (f", the first: {listing.problems[0]}" if listing.problems else ""),
    }
    known = (
        [e.facts for e in examples if {"frames", "height", "width", "fps"} <= set(e.facts)] if listing.prepared else []
    )
    if known:
        videos = [fact for fact in known if fact["fps"]]
        sizes = Counter(f"{fact['height']}x{fact['width']}" for fact in known)
        facts["sizes"] = ", ".join(f"{size} ({count})" for size, count in sizes.most_common(5))
        rates = Counter(f"{fact['fps']:g}" for fact in videos)
        facts["frames/s"] = ", ".join(f"{rate} ({count})" for rate, count in rates.most_common(5)) or "-"
        facts["hours of video"] = f"{sum(fact['frames'] / fact['fps'] for fact in videos) / 3600:.3f}"
        file = pathlib.Path(source) / records.STATISTICS
        statistics = storage.read_json(file)
        try:
            facts |= {name: statistics[name] for name in ("kept", "dropped", "duplicates", "validation")}
            reasons = statistics["dropped_by_reason"].items()
        except (KeyError, AttributeError) as error:
            raise UserError(f"{file} is damaged ({error}); run imagen-video prepare again") from None
        facts["dropped because"] = ", ".join(f"{k} ({v})" for k, v in reasons) or "-"
    return facts
