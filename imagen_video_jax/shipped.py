"""The miniature cascade that travels with the package: seven trained stages as one bundle, `miniature/`.

`python -m experiments.miniature.build` makes it. It knows the world of motion_shapes and nothing else.
"""

import pathlib

from imagen_video_jax import bundle
from imagen_video_jax.cascade_file import stage_config
from imagen_video_jax.data.motion_shapes import COLOURS, MOTIONS, SHAPES, names_a_figure
from imagen_video_jax.errors import UserError
from imagen_video_jax.stages.stage_config import StageConfig

FOLDER = pathlib.Path(__file__).parent / "miniature"


def miniature(folder: pathlib.Path = FOLDER) -> pathlib.Path:
    """The folder of the bundle, verified; UserError where it is missing or damaged."""
    try:
        bundle.read_description(folder)
    except UserError as error:
        raise UserError(
            f"the miniature that comes with the package cannot be used: {error}; install the package again, pass "
            "--cascade FILE, or rebuild it with python -m experiments.miniature.build (hours)",
            error.exit_code,
        ) from None
    return folder


def stages() -> list[StageConfig]:
    """Its stages as they were trained, which what is trained on from them has to be."""
    _, content = bundle.read_description(FOLDER)
    return [stage_config(entry["stage"]) for entry in content["stages"]]


def outside_note(prompts: list[str]) -> str:
    """One line about prompts that the miniature cannot know, empty where there are none."""
    outside = [prompt for prompt in prompts if not names_a_figure(prompt)]
    if not outside:
        return ""
    more = f" and {len(outside) - 1} more prompts name" if len(outside) > 1 else " names"
    return (
        f"note: {outside[0][:60]!r}{more} nothing that this miniature was trained on: {', '.join(SHAPES)} in "
        f"{', '.join(COLOURS)} that {', '.join(MOTIONS)}; or a word that appears. It is sampled anyway"
    )
