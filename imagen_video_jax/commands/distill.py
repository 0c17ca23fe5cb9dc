"""`imagen-video distill`."""

import pathlib

from imagen_video_jax.commands.parsing import at_least_zero
from imagen_video_jax.commands.process import stop_on_sigterm, stopped, use_compilation_cache
from imagen_video_jax.errors import DONE

TEXT = "Distil a trained stage into students of ever fewer network calls; run again to go on where it stopped."
TAKES_FIELDS = True  # --config.FIELD=VALUE
WATCHED = True  # by training/watchdog.py


def add_arguments(parser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE.py[:SCALE]", help="e.g. experiments/distill.py:mini")
    parser.add_argument("--workdir", required=True, help="rounds.jsonl, a training folder for each round")
    parser.add_argument(
        "--restarts",
        type=at_least_zero,
        default=0,
        metavar="N",
        help="start again, at most N times, after a crash, a hang or a save on SIGTERM",
    )
    parser.epilog = "--config.teacher=WORKDIR names the trained stage; any field is set as --config.FIELD=VALUE."


def run(arguments, overrides: list[str]) -> int:
    from imagen_video_jax import configs, distributed
    from imagen_video_jax.training.distill import distill
    from imagen_video_jax.training.loop import Stopped

    use_compilation_cache()
    distributed.start()
    workdir = pathlib.Path(arguments.workdir)
    config = configs.distillation(arguments.config, overrides, workdir)
    with stop_on_sigterm() as should_stop:
        try:
            distill(config, workdir, should_stop=should_stop)
        except Stopped:
            return stopped(should_stop)
    return DONE
