"""`imagen-video distill`."""

import pathlib

from imagen_video_jax.commands.parsing import add_restarts
from imagen_video_jax.commands.process import use_compilation_cache, with_all_processes

TEXT = "Distil a trained stage into students of ever fewer network calls; run again to go on where it stopped."
TAKES_FIELDS = True  # --config.FIELD=VALUE
WATCHED = True  # by training/watchdog.py


def add_arguments(parser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE.py[:SCALE]", help="e.g. experiments/distill.py:mini")
    parser.add_argument("--workdir", required=True, help="rounds.jsonl, a training folder for each round")
    add_restarts(parser)
    parser.epilog = "--config.teacher=WORKDIR names the trained stage; any field is set as --config.FIELD=VALUE."


def run(arguments, overrides: list[str]) -> int:
    from imagen_video_jax import configs
    from imagen_video_jax.training.distill import distill

    use_compilation_cache()
    workdir = pathlib.Path(arguments.workdir)
    return with_all_processes(
        lambda: configs.distillation(arguments.config, overrides, workdir),
        lambda config, stop: distill(config, workdir, should_stop=stop),
    )
