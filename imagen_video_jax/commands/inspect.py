"""`imagen-video inspect`."""

import pathlib

from imagen_video_jax.errors import UserError

TEXT = "Show what a data set holds: a table and a contact sheet."


def add_arguments(parser) -> None:
    parser.add_argument("data", metavar="DIR", help="folder, manifest, prepared folder, tfds:NAME")
    parser.add_argument("--out", metavar="FILE.png", help="the contact sheet; default contact_sheet.png here")
    parser.add_argument("--rows", type=int, default=12, metavar="N", help="clips on the sheet")


def run(arguments, _) -> None:
    from imagen_video_jax.data.inspect import inspect

    if arguments.rows < 1:
        raise UserError(f"--rows must be at least 1, got {arguments.rows}")
    inspect(arguments.data, pathlib.Path(arguments.out or "contact_sheet.png"), rows=arguments.rows)
