"""`imagen-video cascade`."""

import argparse

from imagen_video_jax.errors import UserError

TEXT = "Join trained stages, in order, into cascade.json."


def add_arguments(parser) -> None:
    parser.add_argument("--stage", action="append", required=True, metavar="WORKDIR", help="repeated, from the base on")
    parser.add_argument("--student", action=_Student, help="after a --stage: WORKDIR is of imagen-video distill")
    parser.add_argument("--out", required=True, metavar="FILE")


def run(arguments, _) -> None:
    from imagen_video_jax.cascade_file import join

    joined = join(arguments.stage, arguments.out, students=arguments.student or ())
    print(f"{arguments.out}: {len(joined['stages'])} stages")


class _Student(argparse.Action):
    """Notes the position of the --stage that it follows."""

    def __init__(self, option_strings, dest, **options):
        super().__init__(option_strings, dest, nargs=0, **options)

    def __call__(self, parser, namespace, values, option_string=None):
        if not namespace.stage:
            raise UserError("--student goes after the --stage WORKDIR that is a folder of imagen-video distill")
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or ()), len(namespace.stage) - 1])
