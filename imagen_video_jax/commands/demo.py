"""`imagen-video demo`."""

import json
import pathlib

from imagen_video_jax.commands.parsing import number, seed
from imagen_video_jax.commands.process import until_sigterm, use_compilation_cache
from imagen_video_jax.errors import UserError

TEXT = "Sample videos of the shipped miniature, train its seven stages on, and compare."


def add_arguments(parser) -> None:
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--minutes", type=number, default=None, help="training time for all stages")
    parser.add_argument("--scratch", action="store_true", help="train from nothing instead")
    parser.add_argument("--seed", type=seed, default=0)


def run(arguments, _) -> int:
    return until_sigterm(lambda: _demo(arguments))


def _demo(arguments) -> None:
    from imagen_video_jax.demo import DEFAULT_MINUTES, run

    minutes = DEFAULT_MINUTES if arguments.minutes is None else arguments.minutes
    if not minutes > 0:
        raise UserError(f"--minutes must be above 0, got {minutes:g}")
    use_compilation_cache()
    result = run(pathlib.Path(arguments.out), minutes=minutes, seed=arguments.seed, scratch=arguments.scratch)
    print(json.dumps(result, indent=2))
