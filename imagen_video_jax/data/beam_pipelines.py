"""The two long jobs on data as Apache Beam pipelines (extra `beam`), for data that outgrow one machine.

A pipeline only spreads the work: what is to be done, and what becomes of it, is decided by the same code as without
Beam, so the files are the same, and a stopped pipeline is gone on with by either. Workers must reach the source, the
weights and the output folder under the same paths (a shared file system).

    imagen-video prepare --source DIR --out PREPARED --beam="--runner=FlinkRunner --flink_master=HOST:PORT"
    imagen-video embed --data PREPARED --out CACHE --beam="--runner=DirectRunner --direct_num_workers=4"
"""

import functools
import json
import pathlib
import shlex
import uuid

from imagen_video_jax import storage
from imagen_video_jax.data import embed_captions
from imagen_video_jax.data.embed_captions import Unit
from imagen_video_jax.data.examine import PrepareSettings
from imagen_video_jax.data.prepare import Elsewhere, examined_row
from imagen_video_jax.data.sources import list_source, open_source
from imagen_video_jax.errors import FAILED, UserError
from imagen_video_jax.text.embed import EncoderConfig, open_encoder

_UNITS = ".units"
_list_source = functools.lru_cache(maxsize=2)(list_source)
_open_encoder = functools.lru_cache(maxsize=1)(open_encoder)


def examiner(options: str) -> Elsewhere:
    """What `prepare` takes as `elsewhere`; `options` are Beam's, as on a command line. UserError for wrong ones."""
    _pipeline(options)

    def examine_all(source: str, numbers: list[int], settings: PrepareSettings, work: pathlib.Path) -> None:
        _run(options, numbers, functools.partial(_examine_group, source, settings, work), group=32)

    return examine_all


def embed(data: list[str], cache: pathlib.Path, config: EncoderConfig, options: str) -> int:
    """Embeds what the cache lacks of the captions of data folders; returns how many captions there were to do."""
    _pipeline(options)
    captions = [caption for folder in data for caption in open_source(folder).captions]
    job = embed_captions.plan(cache, captions, open_encoder(config))
    for unit in job.units:  # by name, so that ten million captions are no part of the pipeline's program
        storage.writable_folder(cache / _UNITS)
        storage.write_json(cache / _UNITS / f"{unit.name}.json", list(unit.captions))
    names = [unit.name for unit in job.units if not (cache / unit.name).exists()]
    _run(options, names, functools.partial(_embed_group, cache, config), group=1)
    if any(not (cache / unit.name).exists() for unit in job.units):
        raise UserError(f"another process is at units of {cache}; run the same command again when it has ended", FAILED)
    embed_captions.finish(job)
    for unit in job.units:
        (cache / _UNITS / f"{unit.name}.json").unlink(missing_ok=True)
    return sum(len(unit.captions) for unit in job.units)


def _examine_group(source: str, settings: PrepareSettings, work: pathlib.Path, numbers: list[int]) -> None:
    """A group's lines go to a journal of their own, which appears whole."""
    examples = {example.id: example for example in _list_source(source).examples}
    rows = [examined_row(examples[number], settings, work) for number in numbers if number in examples]
    storage.write_text(work / f"journal-{uuid.uuid4().hex}.jsonl", "".join(rows))


def _embed_group(cache: pathlib.Path, config: EncoderConfig, names: list[str]) -> None:
    for name in names:
        with storage.claim(cache / name) as claimed:
            if claimed and not (cache / name).exists():
                captions = tuple(json.loads((cache / _UNITS / f"{name}.json").read_text()))
                embed_captions.embed_unit(cache, Unit(name, captions), _open_encoder(config))


def _run(options: str, items: list, function, *, group: int) -> None:
    """Runs `function` on groups of items, on the workers."""
    import apache_beam as beam

    groups = [items[begin : begin + group] for begin in range(0, len(items), group)]
    if not groups:
        return
    _list_source.cache_clear()  # what a worker in this process listed for an earlier run may have changed
    pipeline = _pipeline(options)
    _ = pipeline | beam.Create(groups) | beam.Reshuffle() | beam.Map(function)
    try:
        pipeline.run().wait_until_finish()
    except UserError:
        raise
    except Exception as error:  # whatever a runner raises: it is not this program's
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"the Beam pipeline failed: {reason[:300]}; run the same command again", FAILED) from None


def _pipeline(options: str):
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError("--beam needs Apache Beam: pip install 'imagen_video_jax[beam]'") from None
    try:
        return beam.Pipeline(options=PipelineOptions(shlex.split(options)))
    except (ValueError, ImportError, AttributeError) as error:
        raise UserError(f"--beam {options!r}: {str(error).splitlines()[0]}") from None
