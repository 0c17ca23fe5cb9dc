"""`imagen-video prepare`."""

import os
import pathlib
import sys

from imagen_video_jax.commands.parsing import number
from imagen_video_jax.commands.process import is_of_a_path, stop_on_sigterm
from imagen_video_jax.errors import FAILED, STOPPED_AFTER_SAVING, UserError
from imagen_video_jax.training.stopping import StopNow

TEXT = "Check videos and pack the good ones; run again to go on or to add files."
NUMBERS = {
    "min_fps": "drop videos of fewer frames/s",
    "max_fps": "drop videos of more frames/s",
    "min_seconds": "drop shorter videos",
    "max_seconds": "drop longer videos",
    "cut": "cut videos where this share of the colours changes at once, e.g. 0.5",
    "validation": "share of the contents that goes to DIR/validation",
    "seconds_per_file": "time limit of decoding",
    "megabytes_per_file": "memory limit of decoding",
    "shard_megabytes": "size of a shard",
}


def add_arguments(parser) -> None:
    parser.add_argument(
        "--source", required=True, metavar="SOURCE", help="folder, manifest, .tar, motion_shapes[:mini] or tfds:NAME"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="*.array_record, statistics.json, quarantine.jsonl")
    parser.add_argument("--workers", type=int, metavar="N", help="files at once; default one per CPU")
    for name, text in NUMBERS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=number, metavar="X", help=text)
    parser.add_argument(
        "--beam",
        metavar="OPTIONS",
        help='examine the files in an Apache Beam pipeline, e.g. --beam="--runner=FlinkRunner"',
    )
    parser.add_argument("--require-captions", action="store_true", help="drop what has no caption")


def run(arguments, _) -> None:
    from imagen_video_jax.data.default_set import progress_of, rendered
    from imagen_video_jax.data.examine import PrepareSettings
    from imagen_video_jax.data.prepare import prepare

    given = {name: getattr(arguments, name) for name in NUMBERS if getattr(arguments, name) is not None}
    for name, field in (("megabytes_per_file", "memory_per_file"), ("shard_megabytes", "shard_bytes")):
        if name in given:
            given[field] = int(given.pop(name) * 2**20)
    settings = PrepareSettings(**given, require_captions=arguments.require_captions)
    if arguments.workers is not None and arguments.workers < 1:
        raise UserError(f"--workers must be at least 1, got {arguments.workers}")
    source = arguments.source
    if source.partition(":")[0] == "motion_shapes" and not pathlib.Path(source).exists():
        source = str(rendered(source.partition(":")[2] or "tiny", "train"))
    elsewhere = None
    if arguments.beam is not None:
        from imagen_video_jax.data.beam_pipelines import examiner

        elsewhere = examiner(arguments.beam)
    try:
        with progress_of("preparing") as progress, stop_on_sigterm() as stop, stop.at_once():
            statistics = prepare(
                source,
                pathlib.Path(arguments.out),
                settings,
                workers=arguments.workers,
                progress=progress,
                elsewhere=elsewhere,
            )
    except (StopNow, KeyboardInterrupt) as stopped:
        print("stopped; run the same command again to go on", file=sys.stderr, flush=True)
        # Files that are being decoded are not waited for; their processes end with this one.
        os._exit(STOPPED_AFTER_SAVING if isinstance(stopped, StopNow) else 130)
    except OSError as error:
        if is_of_a_path(error):  # the source's, as often as not, and no second run mends it
            raise
        where = error.filename or arguments.out
        raise UserError(f"{where}: {error.strerror or error}; run the same command again", FAILED) from None
    print(
        f"{arguments.out}: {statistics['kept']} clips kept, {statistics['dropped']} files dropped, "
        f"{statistics['duplicates']} duplicates; reasons in quarantine.jsonl and statistics.json"
    )
