"""What commands read from their arguments: lines of a file, numbers per stage."""

import argparse
import pathlib

from imagen_video_jax.errors import UserError


def lines(path: str, what: str = "prompt") -> list[str]:
    """The non-empty lines of a file of prompts, or of something else."""
    try:
        found = [line.strip() for line in pathlib.Path(path).read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {what}s from {path}: {error}") from None
    if not found:
        raise UserError(f"{path} holds no {what}; one a line is expected")
    return found


def numbers(name: str, text: str | None, kind) -> tuple:
    try:
        return tuple(kind(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UserError(f"{name} must be a number, or one per stage with commas, got {text!r}") from None


def add_restarts(parser) -> None:
    """--restarts, of commands that the watchdog watches."""
    parser.add_argument(
        "--restarts",
        type=_at_least_zero,
        default=0,
        metavar="N",
        help="start again, at most N times, after a crash, a hang or a save on SIGTERM",
    )


def _at_least_zero(text: str) -> int:
    """The type of an argument that counts."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, got {text}")
    return int(text)
