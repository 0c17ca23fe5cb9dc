"""What commands read from their arguments: lines of a file, numbers per stage, and the types of single ones."""

import argparse
import pathlib

from imagen_video_jax.errors import UserError


def lines(path: str, what: str = "prompt") -> list[str]:
    """The non-empty lines of a file of prompts, or of something else."""
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {what}s from {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    # Not splitlines, which also cuts at form feeds and at the separators of Unicode.
    found = [line.strip() for line in text.split("\n") if line.strip()]
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


def seed(text: str) -> int:
    """The type of an argument that is a seed."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"must be in [0, 2^32), got {text[:40]}")
    return value


def number(text: str) -> float:
    """The type of an argument that is a number, of a size that can be calculated with."""
    value = float(text)
    if not abs(value) < 1e300:
        raise argparse.ArgumentTypeError(f"must be a finite number below 1e300, got {text[:40]}")
    return value


def _at_least_zero(text: str) -> int:
    """The type of an argument that counts."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, got {text}")
    return int(text)
