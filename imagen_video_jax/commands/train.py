"""`imagen-video train`."""

import pathlib

from imagen_video_jax.commands.parsing import add_restarts
from imagen_video_jax.commands.process import use_compilation_cache, with_all_processes

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
    from imagen_video_jax import configs
    from imagen_video_jax.training.loop import train

    use_compilation_cache()
    workdir = pathlib.Path(arguments.workdir)
    return with_all_processes(
        lambda: configs.with_data(configs.training(arguments.config, overrides), workdir),
        lambda config, stop: train(config, workdir, should_stop=stop),
    )
