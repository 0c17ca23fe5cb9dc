"""Filling an embedding cache: a job that any number of processes may do together, and go on with after a kill.

The captions that the cache lacks are sorted by their hash and cut into units; every unit becomes one shard. Units
depend on the captions and on jobs that ended, not on what this job has done so far, so whoever does a unit, and however
often the job was killed, the bytes are the same (on machines of one kind). A process claims a unit before it embeds it;
a claim ends with its process. Processes of one job need not know of each other.
"""

import dataclasses
import io
import json
import pathlib
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Sequence

import ml_dtypes
import numpy as np
import rich.console
import rich.progress

from imagen_video_jax import storage
from imagen_video_jax.data.sources import open_source
from imagen_video_jax.errors import UserError
from imagen_video_jax.text import embedding_cache
from imagen_video_jax.text.embed import TextEncoder
from imagen_video_jax.text.embedding_cache import EmbeddingCache, key_of

UNIT = 1024  # captions per shard: what a kill can cost
PROBLEMS = "problems.jsonl"
_SHOWN = 200  # characters of a caption, and of what it lost, that are kept for the list of problems
_SECONDS = 30  # between two lines of progress where there is no terminal


@dataclasses.dataclass(frozen=True)
class Unit:
    """Captions that become one shard, sorted by key."""

    name: str
    captions: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be embedded into a cache, and rows of problems.jsonl for captions that are not."""

    folder: pathlib.Path
    units: tuple[Unit, ...]
    bad: tuple[dict, ...]


def plan(folder: pathlib.Path, captions: Iterable[str], encoder: TextEncoder) -> Job:
    """Creates the cache where there is none, and says what is to be done: fixed by captions and finished jobs."""
    folder = storage.writable_folder(folder)
    good, bad = _sorted_out(captions)
    embedding_cache.create(folder, encoder)
    lacking = EmbeddingCache.open(folder, encoder.fingerprint, only_finished=True).missing(good)
    pairs = sorted((key_of(caption), caption) for caption in lacking)
    units = []
    for begin in range(0, len(pairs), UNIT):
        keys, texts = zip(*pairs[begin : begin + UNIT])
        units.append(Unit(embedding_cache.shard_name(keys), texts))
    return Job(folder, tuple(units), tuple(bad))


def embed_unit(folder: pathlib.Path, unit: Unit, encoder: TextEncoder, progress=None) -> None:
    """Embeds and writes one unit."""
    tokens = encoder.tokenize(unit.captions)
    reason = f"cut to {encoder.max_length} tokens"
    cut = [{"caption": c[:_SHOWN], "reason": reason, "lost": lost[:_SHOWN]} for c, lost in tokens.lost]
    states = encoder.real_states(tokens, ml_dtypes.bfloat16, progress=progress)
    keys = [key_of(caption) for caption in unit.captions]
    embedding_cache.write_shard(folder / unit.name, keys, states, encoder.fingerprint, cut)


def finish(job: Job) -> None:
    """Ends a job whose shards are all there; every process of a job may do it, and writes the same."""
    embedding_cache.finish_job(job.folder, [unit.name for unit in job.units])
    storage.clear_claims(job.folder)
    rows = [*job.bad, *embedding_cache.cut_captions(job.folder)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path = job.folder / PROBLEMS
    if not rows:
        path.unlink(missing_ok=True)
    elif not (path.exists() and path.read_bytes() == text.encode()):
        storage.write_text(path, text)


def embed_captions(
    folder: pathlib.Path,
    captions: Iterable[str],
    encoder: TextEncoder,
    *,
    share: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Embeds what is missing, together with whoever else does the same; returns the captions embedded by this call.

    Captions that no encoder could take (empty, or only control characters) are left out and listed in problems.jsonl,
    with those that were cut.

    Args:
      share: (number of this process, how many there are): where to begin, so that few meet at one unit.
      progress: called with (captions done by all, captions to do).
    """
    job, mine = plan(folder, captions, encoder), 0
    total = sum(len(unit.captions) for unit in job.units)
    first = len(job.units) * share[0] // share[1]
    waiting = job.units[first:] + job.units[:first]
    while waiting := [unit for unit in waiting if not (job.folder / unit.name).exists()]:
        claims = 0
        for unit in waiting:
            with storage.claim(job.folder / unit.name) as claimed:
                claims += claimed
                if claimed and not (job.folder / unit.name).exists():
                    done = total - _left(job)
                    report = progress and (lambda count, done=done: progress(done + count, total))
                    embed_unit(job.folder, unit, encoder, report)
                    mine += len(unit.captions)
        if not claims:
            time.sleep(0.2)  # others are at what is left
            if progress:
                progress(total - _left(job), total)
    finish(job)
    return mine


def _left(job: Job) -> int:
    present = embedding_cache.shard_names(job.folder)
    return sum(len(unit.captions) for unit in job.units if unit.name not in present)


def _sorted_out(captions: Iterable[str]) -> tuple[list[str], list[dict]]:
    """Captions to embed, each once, and rows of problems.jsonl for the others."""
    good, bad = [], []
    for caption in dict.fromkeys(captions):
        if any(not c.isspace() and unicodedata.category(c) not in ("Cc", "Cs") for c in caption):
            good.append(caption)
        else:
            bad.append({"caption": caption[:_SHOWN], "reason": "it holds no text"})
    return good, bad


def embed_data(
    folders: Sequence[str], cache: pathlib.Path, encoder: TextEncoder, *, share: tuple[int, int] = (0, 1)
) -> int:
    """Embeds every caption of the data folders that the cache lacks; returns how many this process embedded.

    Says on stderr how many captions had problems, with one of them.
    """
    captions = [caption for folder in folders for caption in open_source(folder).captions]
    return embed_all(captions, cache, encoder, share=share)


def embed_all(
    captions: Sequence[str], cache: pathlib.Path, encoder: TextEncoder, *, share: tuple[int, int] = (0, 1)
) -> int:
    """The same for captions at hand."""
    console = rich.console.Console(stderr=True)
    with _Progress(console) as progress:
        count = embed_captions(cache, captions, encoder, share=share, progress=progress)
    if count and (cache / PROBLEMS).exists():
        rows = (cache / PROBLEMS).read_text().splitlines()
        row = json.loads(rows[0])
        lost = f", lost {row['lost'][:60]!r}" if "lost" in row else ""
        example = f"{row['caption'][:40]!r} ({row['reason']}{lost})"
        console.print(f"{len(rows)} captions are listed in {cache / PROBLEMS}, e.g. {example}", soft_wrap=True)
    return count


class _Progress:
    """Captions per second and remaining time: a bar on a terminal, elsewhere a line now and then."""

    def __init__(self, console: rich.console.Console):
        columns = ("{task.description}", rich.progress.BarColumn(), rich.progress.MofNCompleteColumn())
        rest = (rich.progress.TextColumn("{task.fields[rate]}"), rich.progress.TimeRemainingColumn())
        self._bar = rich.progress.Progress(*columns, *rest, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("embedding captions", total=None, rate="")
        self._console = console

    def __enter__(self) -> Callable[[int, int], None]:
        self._began, self._said, self._first = time.monotonic(), time.monotonic(), None
        self._bar.start()
        return self._update

    def _update(self, done: int, total: int) -> None:
        now = time.monotonic()
        self._first = done if self._first is None else self._first
        rate = (done - self._first) / max(now - self._began, 1e-3)
        self._bar.update(self._task, completed=done, total=total, rate=f"{rate:.0f} captions/s")
        if not self._console.is_terminal and now - self._said > _SECONDS and rate:
            self._said = now
            left = (total - done) / rate
            print(f"{done} of {total} captions, {rate:.0f} captions/s, {left:.0f} s left", file=sys.stderr, flush=True)

    def __exit__(self, *_) -> None:
        self._bar.stop()


def embed_prompts_to_npz(prompts: Sequence[str], encoder: TextEncoder, path: pathlib.Path) -> None:
    """Writes `embeddings` (N, L, D) float32 and `mask` (N, L); says on stdout what was cut off."""
    for prompt, lost in encoder.tokenize(prompts).lost:
        print(f"cut to {encoder.max_length} tokens: {prompt[:40]!r}..., lost {lost[:60]!r}")
    _write_npz(path, *encoder(prompts))


def embed_ids_to_npz(ids: pathlib.Path, encoder: TextEncoder, path: pathlib.Path) -> None:
    """The same for a file of token numbers, int32 (N, L) with padding 0; UserError where it is something else."""
    try:
        with open(ids, "rb") as file:
            ids_BL = np.load(file, allow_pickle=False)
    except Exception as error:  # numpy lets through what any part of a damaged file raises
        reason = "it holds Python objects" if "allow_pickle" in str(error) else error
        raise UserError(f"cannot read token numbers from {ids}: {reason}") from None
    if not isinstance(ids_BL, np.ndarray):
        raise UserError(f"{ids} is an archive; one array of token numbers (.npy) is expected")
    _write_npz(path, *encoder.embed_ids(ids_BL))


def _write_npz(path: pathlib.Path, text_BLD: np.ndarray, mask_BL: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, embeddings=text_BLD, mask=mask_BL)
    storage.writable_folder(path.parent)
    storage.write_bytes(path, buffer.getvalue())
