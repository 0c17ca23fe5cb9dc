"""`imagen-video prepare`: any source -> ArrayRecord shards, statistics.json and quarantine.jsonl; resumable.

Three steps, each going on where it was interrupted, with whatever signal:

1. every file is examined (`examine.py`), and what was found goes to a journal, a line a file;
2. the plan is drawn from the whole journal: equal contents once (with all their captions), validation apart, shards
   filled in the order of the paths. It depends on the contents and settings alone, not on who examined what when;
3. shards are written, each by one rename, then the index that makes the folder a data set.

In DIR/.prepare are the journal and what was encoded anew; without it, everything is done again.
"""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import imagen_video_jax
from imagen_video_jax import storage
from imagen_video_jax.data import records
from imagen_video_jax.data.examine import PrepareSettings, Verdict, examine
from imagen_video_jax.data.examples import Example, Listing, Problem, clean_captions
from imagen_video_jax.data.prepare_shards import Entry, publish, write_shards
from imagen_video_jax.data.sources import list_source
from imagen_video_jax.errors import TOO_MUCH_BAD_DATA, UserError
from imagen_video_jax.video.reading import IMAGE_ENDINGS, VIDEO_ENDINGS

QUARANTINE = "quarantine.jsonl"
_WORK = ".prepare"

# Examines numbered examples of a source somewhere else, and leaves their verdicts in journals of the work folder.
Elsewhere = Callable[[str, list[int], PrepareSettings, pathlib.Path], None]


def prepare(
    source: str,
    out: pathlib.Path,
    settings: PrepareSettings | None = None,
    *,
    workers: int | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    elsewhere: Elsewhere | None = None,
) -> dict:
    """Prepares a source into `out` and returns the statistics (see the head of this file).

    Args:
      source: anything that `data/sources.py` reads.
      workers: files examined at once, by default one per CPU.
      progress: called with (what is being done, how many are, of how many).
      elsewhere: what examines the files first, on other machines (data/beam_pipelines.py); what it leaves is done here.

    Raises:
      UserError: nothing to read there; `out` holds another data set; with exit code 4 no file was good.
      OSError: the disk is full.
    """
    settings = settings or PrepareSettings()
    _check_apart(source, out)
    listing = list_source(source)
    _check_readable(source, listing)  # before anything is left behind: a slip in the name must not take the folder
    storage.writable_folder(out)
    with storage.directory_lock(out):
        work = storage.writable_folder(out / _WORK)
        _check_same(out, work, source, settings)
        if elsewhere and (missing := _without(_known_verdicts(listing, work), listing)):
            elsewhere(source, [example.id for example in missing], settings, work)
        verdicts = _examine_all(listing, settings, work, workers or os.cpu_count() or 1, progress)
        entries, problems, duplicates = _plan(source, listing, verdicts)
        storage.write_text(out / QUARANTINE, "".join(json.dumps(problem.row()) + "\n" for problem in problems))
        parts = {"train": [], "validation": []}
        for entry in entries:
            parts[_split(entry.sha256, settings.validation)].append(entry)
        folders = {"train": out, "validation": out / "validation"}
        shards = {
            name: write_shards(folders[name], name, part, settings.shard_bytes, work, progress)
            for name, part in parts.items()
        }
        statistics = _statistics(source, settings, listing, entries, problems, duplicates)
        for name in parts:
            publish(folders[name], shards[name], statistics)
    if not entries:
        first = problems[0] if problems else "every file was dropped"
        raise UserError(
            f"{source}: none of its {len(listing.examples)} files can be used, see {out / QUARANTINE}; the first: "
            f"{first}",
            TOO_MUCH_BAD_DATA,
        )
    return statistics


# Before anything is done.


def _check_apart(source: str, out: pathlib.Path) -> None:
    folder = pathlib.Path(source)
    if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"--out {out} lies inside the source {source}; choose a folder beside it")


def _check_same(out: pathlib.Path, work: pathlib.Path, source: str, settings: PrepareSettings) -> None:
    """UserError if `out` already holds something that this request would not go on with."""
    named = os.path.abspath(source) if os.path.exists(source) else source
    request = {"version": records.VERSION, "source": named} | dataclasses.asdict(settings)
    if not (work / "request.json").exists():
        if any(out.glob(f"*{records.ENDING}")):
            raise UserError(f"{out} already holds {records.ENDING} files of something else; choose another --out")
        storage.write_json(work / "request.json", request)
        return
    found = storage.read_json(work / "request.json")
    if not isinstance(found, dict):
        raise UserError(f"{work / 'request.json'} is damaged; choose another --out, or remove {out} to do it all again")
    changed = [f"{name}: {found.get(name)} -> {value}" for name, value in request.items() if found.get(name) != value]
    if changed:
        raise UserError(f"{out} was prepared otherwise ({'; '.join(changed)}); choose another --out")


def _check_readable(source: str, listing: Listing) -> None:
    if listing.examples or any(
        _is_media(problem) for problem in listing.problems if "no such file" not in problem.reason
    ):
        return
    first = f"; the first: {listing.problems[0]}" if listing.problems else ""
    raise UserError(f"{source} holds no videos or images to read{first}")


def _is_media(problem: Problem) -> bool:
    return problem.line is None and pathlib.PurePath(problem.path).suffix.lower() in VIDEO_ENDINGS + IMAGE_ENDINGS


# Step 1.


def _examine_all(listing, settings, work, workers, progress) -> dict[int, Verdict]:
    """{number of the example: verdict}, from the journals where the file is still as it was."""
    verdicts = _known_verdicts(listing, work)
    missing = _without(verdicts, listing)
    journal = work / "journal.jsonl"
    _end_last_line(journal)
    with open(journal, "a", encoding="utf-8") as file:
        for example, row in _in_threads(lambda example: examined_row(example, settings, work), missing, workers):
            file.write(row)
            file.flush()
            verdicts[example.id] = Verdict.from_json(json.loads(row))
            progress("examining files", len(verdicts), len(listing.examples))
    return verdicts


def examined_row(example: Example, settings: PrepareSettings, work: pathlib.Path) -> str:
    """Examines one example: its line of a journal."""
    stamp = _stamp(example)  # before it is read: what is written later is another file
    verdict = examine(example, settings, work)
    return json.dumps({"path": str(example.path), "stamp": stamp} | dataclasses.asdict(verdict)) + "\n"


def _in_threads(function: Callable, items: Iterable, workers: int) -> Iterator[tuple]:
    """(item, result) in any order, from threads that each wait for a decoding process of their own."""
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    try:
        futures = {pool.submit(function, item): item for item in items}
        for future in concurrent.futures.as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # who is asked to stop does not wait for a file that hangs


def _known_verdicts(listing: Listing, work: pathlib.Path) -> dict[int, Verdict]:
    known = _read_journals(work)
    keys = {example.id: (str(example.path), _stamp(example)) for example in listing.examples}
    return {number: known[key] for number, key in keys.items() if key in known and _holds(known[key], work)}


def _without(verdicts: dict[int, Verdict], listing: Listing) -> list[Example]:
    return [example for example in listing.examples if example.id not in verdicts]


def _stamp(example: Example) -> str:
    """Changes with all that a verdict depends on: the file, whether it has captions, and the hash stated for it."""
    said = ("" if example.captions else "-bare") + (f"-{example.facts['sha256']}" if "sha256" in example.facts else "")
    if example.load:
        return example.stamp + said
    try:
        facts = os.stat(example.path)
    except OSError:
        return "gone"  # whoever examines it says so
    return f"{facts.st_size}-{facts.st_mtime_ns}-{facts.st_ino}{said}"


def _holds(verdict: Verdict, work: pathlib.Path) -> bool:
    """Whether a verdict of an earlier run holds: not of a file that could not be read, which may pass (a network share
    that hung, permissions), nor where what was encoded for it is gone."""
    return bool(verdict.sha256) and all(not clip.stored or (work / clip.stored).exists() for clip in verdict.clips)


def _read_journals(work: pathlib.Path) -> dict[tuple[str, str], Verdict]:
    known = {}
    for journal in sorted(work.glob("journal*.jsonl")):
        for line in journal.read_bytes().splitlines():
            try:
                row = json.loads(line)
                known[row["path"], row["stamp"]] = Verdict.from_json(row)
            except (ValueError, KeyError, TypeError):
                continue  # the line during which an earlier run was killed
    return known


def _end_last_line(journal: pathlib.Path) -> None:
    if journal.exists() and not journal.read_bytes().endswith(b"\n"):
        with open(journal, "ab") as file:
            file.write(b"\n")


# Step 2.


def _plan(source: str, listing: Listing, verdicts: dict[int, Verdict]):
    """(clips in the order of the paths, what is not used and why, {path: the path that has the same content})."""
    problems = list(listing.problems)
    firsts: dict[str, Example] = {}
    captions: dict[str, tuple[str, ...]] = {}
    duplicates: dict[str, str] = {}
    for example in listing.examples:
        verdict, name = verdicts[example.id], _relative(source, example)
        if verdict.reason:
            reason, _, fix = verdict.reason.partition("; ")
            problems.append(Problem(name, reason, fix))
            continue
        if verdict.sha256 in firsts:
            duplicates[name] = _relative(source, firsts[verdict.sha256])
        firsts.setdefault(verdict.sha256, example)
        captions[verdict.sha256] = clean_captions(captions.get(verdict.sha256, ()) + example.captions)
    entries = []
    for sha256, example in firsts.items():
        for clip in verdicts[example.id].clips:
            name = _relative(source, example) + (f"#{clip.part}.mp4" if clip.part else "")
            facts = {key: value for key, value in example.facts.items() if key != "sha256"}  # of the whole file
            entries.append(Entry(name, captions[sha256], facts, sha256, clip, example))
    return entries, problems, duplicates


def _relative(source: str, example: Example) -> str:
    """The example's path within the source, as text that any file can hold."""
    root = pathlib.Path(source)
    root = root if root.is_dir() else root.parent
    path = example.path.relative_to(root) if example.path.is_relative_to(root) else example.path
    return os.fsencode(path.as_posix()).decode("utf-8", "replace")


def _split(sha256: str, validation: float) -> str:
    """By the content alone, so that no content is on both sides, whatever else is in the source."""
    return "validation" if int(sha256[:8], 16) < validation * 2**32 else "train"


def _statistics(source, settings, listing, entries, problems, duplicates) -> dict:
    dropped = [problem for problem in problems if _is_media(problem)]
    videos = [entry for entry in entries if entry.clip.fps]
    return {
        "version": records.VERSION,
        "made_by": f"imagen_video_jax {imagen_video_jax.__version__}",
        "source": source,
        "settings": dataclasses.asdict(settings),
        "files": len(listing.examples),
        "kept": len(entries),
        "dropped": len(dropped),
        "dropped_by_reason": dict(Counter(_kind(problem) for problem in dropped).most_common()),
        "duplicates": len(duplicates),
        "duplicate_of": duplicates,
        "caption_problems": len(problems) - len(dropped),
        "videos": len(videos),
        "images": len(entries) - len(videos),
        "seconds": round(sum(entry.clip.frames / entry.clip.fps for entry in videos), 3),
        "captions": sum(len(entry.captions) for entry in entries),
        "without_caption": sum(not entry.captions for entry in entries),
        "validation": sum(_split(entry.sha256, settings.validation) == "validation" for entry in entries),
        "other_files": dict(listing.other.most_common()),
    }


def _kind(problem: Problem) -> str:
    """A reason without its numbers and names."""
    return re.split(r"[(:]|(?<=\s)\d", problem.reason)[0].strip() or problem.reason
