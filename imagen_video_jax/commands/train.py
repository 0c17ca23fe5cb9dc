"""`imagen-video train`."""

import pathlib

from imagen_video_jax.commands.parsing import at_least_zero
from imagen_video_jax.commands.process import stop_on_sigterm, stopped, use_compilation_cache
from imagen_video_jax.errors import DONE

TEXT = "Train one stage; run again to go on where it stopped."
TAKES_FIELDS = True  # --config.FIELD=VALUE
WATCHED = True  # by training/watchdog.py


def add_arguments(parser) -> None:
    parser.add_argument(
        "--config", required=True, metavar="FILE.py[:SCALE]", help="e.g. experiments/base_16f_24x40.py:mini"
    )
    parser.add_argument("--workdir", required=True, help="checkpoints, metrics.jsonl, TensorBoard events, samples")
    parser.add_argument(
        "--restarts",
        type=at_least_zero,
        default=0,
        metavar="N",
        help="start again, at most N times, after a crash, a hang or a save on SIGTERM",
    )
    parser.epilog = "Any field of the config is set as --config.FIELD=VALUE, e.g. --config.steps=100 --config.data=DIR."


def run(arguments, overrides: list[str]) -> int:
    from imagen_video_jax import configs, distributed
    from imagen_video_jax.training.loop import Stopped, train

    use_compilation_cache()
    distributed.start()
    workdir = pathlib.Path(arguments.workdir)
    config = configs.with_data(configs.training(arguments.config, overrides), workdir)
    with stop_on_sigterm() as should_stop:
        try:
            train(config, workdir, should_stop=should_stop)
        except Stopped:
            return stopped(should_stop)
    return DONE
