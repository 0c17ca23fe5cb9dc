"""`imagen-video train`."""

import pathlib

from imagen_video_jax.commands.parsing import add_restarts
from imagen_video_jax.commands.process import unless_stopped, use_compilation_cache

TEXT = "Train one stage; run again to go on where it stopped."
TAKES_FIELDS = True  # --config.FIELD=VALUE
WATCHED = True  # by training/watchdog.py


def add_arguments(parser) -> None:
    parser.add_argument(
        "--config", required=True, metavar="FILE.py[:SCALE]", help="e.g. experiments/base_16f_24x40.py:mini"
    )
    parser.add_argument("--workdir", required=True, help="checkpoints, metrics.jsonl, TensorBoard events, samples")
    add_restarts(parser)
    parser.epilog = "Any field of the config is set as --config.FIELD=VALUE, e.g. --config.steps=100 --config.data=DIR."


def run(arguments, overrides: list[str]) -> int:
    from imagen_video_jax import configs, distributed
    from imagen_video_jax.training.loop import train

    use_compilation_cache()
    distributed.start()
    workdir = pathlib.Path(arguments.workdir)
    config = configs.with_data(configs.training(arguments.config, overrides), workdir)
    return unless_stopped(lambda should_stop: train(config, workdir, should_stop=should_stop))
