"""Rows of a sweep, also to Weights & Biases (extra `wandb`)."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator

from imagen_video_jax.errors import UserError


@contextlib.contextmanager
def logging_to(project: str, workdir: pathlib.Path) -> Iterator[Callable[[dict], None]]:
    """Yields what takes a row; does nothing where `project` is "". UserError where wandb is not installed."""
    if not project:
        yield lambda row: None
        return
    try:
        import wandb
    except ImportError:
        raise UserError(
            "--config.wandb needs the package wandb: pip install 'imagen_video_jax[wandb]' (or leave the field empty)"
        ) from None
    run = wandb.init(project=project, dir=str(workdir), name=workdir.resolve().name)

    def log(row: dict) -> None:
        numbers = {name: value for name, value in row["metrics"].items() if isinstance(value, (int, float))}
        settings = {name: row[name] for name in ("step", "guidance", "steps", "seed", "seconds")}
        run.log({**{f"metrics/{name}": value for name, value in numbers.items()}, **settings})

    try:
        yield log
    finally:
        run.finish()
