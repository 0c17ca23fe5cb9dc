"""`imagen-video COMMAND`: which there are, and parsing; what a command takes and does is in commands/COMMAND.py."""

import argparse
import contextlib
import itertools
import sys

from imagen_video_jax import __version__
from imagen_video_jax.commands import (
    cascade,
    demo,
    distill,
    embed,
    evaluate,
    export,
    inspect,
    launch,
    plan,
    prepare,
    sample,
    train,
)
from imagen_video_jax.commands.process import in_one_line, keep_freed_memory
from imagen_video_jax.errors import UserError
from imagen_video_jax.training import watchdog

# In the order in which people need them.
COMMANDS = (demo, prepare, inspect, embed, train, distill, cascade, sample, evaluate, export, plan, launch)


class _Parser(argparse.ArgumentParser):
    """argparse with this program's one-line errors."""

    def error(self, message: str):
        raise UserError(message)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code (see errors.py).

    Without `arguments` this process is the command line itself: then it only watches over a command that says `WATCHED`
    and does the work in a child (training/watchdog.py).
    """
    # Names of files may hold bytes that are no text, or none of a terminal's: work that is done is not to fail by them.
    with contextlib.suppress(AttributeError):  # of a stand-in, as a notebook's
        sys.stdout.reconfigure(errors="backslashreplace")
    return in_one_line(lambda: _run(arguments))


def _run(arguments: list[str] | None) -> int:
    parsed, rest = parse(sys.argv[1:] if arguments is None else arguments)
    if arguments is None and getattr(parsed.command, "WATCHED", False) and not watchdog.connect():
        command = [sys.executable, "-m", "imagen_video_jax", *sys.argv[1:]]
        return watchdog.supervise(command, restarts=parsed.restarts)
    if arguments is None:
        keep_freed_memory()
    return parsed.command.run(parsed, rest)


def parse(arguments: list[str]):
    """(parsed arguments, those of fields); of `launch` the words after -- are kept as they are, in `words`."""
    words = []
    if arguments[:1] == ["launch"] and "--" in arguments:
        cut = arguments.index("--")
        arguments, words = arguments[:cut], arguments[cut + 1 :]
    _check_folders(arguments)
    parsed, rest = _parser().parse_known_args(arguments)
    if rest and not getattr(parsed.command, "TAKES_FIELDS", False):
        raise UserError(f"unknown argument {rest[0]!r}; see imagen-video {_name(parsed.command)} --help")
    parsed.words, parsed.parse = words, parse
    return parsed, rest


def _check_folders(arguments: list[str]) -> None:
    """UserError where what is written would go to a folder without a name: what a shell makes of an unset variable."""
    for option in ("--out", "--workdir"):
        followed = [value for name, value in itertools.pairwise(arguments) if name == option]
        if "" in followed or f"{option}=" in arguments:
            raise UserError(f"{option} is empty; name a folder ('.' for this one)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="imagen-video", description="Train and sample an Imagen Video cascade.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    for command in COMMANDS:
        added = commands.add_parser(_name(command), help=command.TEXT, description=command.TEXT, allow_abbrev=False)
        command.add_arguments(added)
        added.set_defaults(command=command)
    return parser


def _name(command) -> str:
    return command.__name__.rpartition(".")[2]
