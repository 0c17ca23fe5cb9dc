"""The miniature cascade that travels with the package (imagen_video_jax/miniature), made from nothing.

    python -m experiments.miniature.build --work out/miniature [--out imagen_video_jax/miniature]

Renders 16384 clips and 24576 images of motion_shapes, trains the seven mini stages on them, joins them and exports the
bundle in bfloat16. On two CPU cores the base takes three hours in its two parts (grow.py) and the others two together;
the last --finish updates of the base, which teach it to draw, want a GPU (resident.py: six minutes of an H100), or
--finish 0.
Every part that is done is kept: run the command again after an interruption. Needs a checkout; any stage can be trained
elsewhere into its folder in --work.

Every part of it once but the last, in a quarter of an hour, into a bundle that has learnt nothing:

    python -m experiments.miniature.build --work out/rehearsal --out out/rehearsed --share 0.005 --finish 0
"""

import argparse
import dataclasses
import math
import pathlib
import shutil
import sys
from collections.abc import Callable, Mapping

from experiments import scales
from experiments.miniature import grow, resident
from imagen_video_jax import configs
from imagen_video_jax.cascade_file import join
from imagen_video_jax.commands.process import in_one_line, keep_freed_memory, use_compilation_cache
from imagen_video_jax.data.motion_shapes import write_motion_shapes
from imagen_video_jax.errors import UserError
from imagen_video_jax.export import ExportRequest, export
from imagen_video_jax.stages.stage import Stage
from imagen_video_jax.training.loop import train
from imagen_video_jax.training.step import OWN_LOSS, Objective
from imagen_video_jax.training.teachers import find_teacher, weights_of

# clips, images and seed of each split: those of the embedded default set, more of them
DATA = {"train": (16384, 24576, 0), "validation": (64, 32, 1)}
# updates of the smaller base and of each stage, and the stage whose weights it starts from (counted from 1)
SMALL_STEPS = 4500
STEPS = (5000, 400, 600, 500, 350, 250, 400)
STARTS = {6: 5, 7: 4}
# of the base that starts from the smaller one
LARGE = {"optimizer.learning_rate": "2e-3", "image_batch_size": "24", "step.image_weight": "1.0"}
# of its last updates, and how many
FINISHED = LARGE | {"batch_size": "64", "image_batch_size": "96"}
FINISH = 30_000
BUNDLE = pathlib.Path(__file__).parents[2] / "imagen_video_jax" / "miniature"
TITLE = "The miniature of imagen_video_jax"
ABOUT = """
Trained on motion_shapes alone, drawn by `imagen_video_jax.data.motion_shapes`: eight shapes and solids in eight colours
with nine motions on four backgrounds, words that appear letter by letter, images in five styles. It knows nothing else.
The drawings and these weights are under the licence of the package, Apache-2.0.

    python -m experiments.miniature.build --work out/miniature
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=pathlib.Path, required=True, metavar="DIR", help="data and stages")
    parser.add_argument("--out", type=pathlib.Path, default=BUNDLE, metavar="BUNDLE", help="replaced where it is there")
    parser.add_argument(
        "--finish", type=int, default=FINISH, metavar="UPDATES", help=f"of the base in the end ({FINISH}; 0: none)"
    )
    parser.add_argument("--share", type=float, default=1.0, help="of data and other updates, to rehearse (needs --out)")
    arguments = parser.parse_args()
    if arguments.finish < 0:
        raise UserError(f"--finish must be at least 0, got {arguments.finish}")
    if not 0 < arguments.share <= 1:
        raise UserError(f"--share must be above 0 and at most 1, got {arguments.share}")
    if arguments.share < 1 and arguments.out.resolve() == BUNDLE.resolve():
        raise UserError("a rehearsal (--share below 1) does not replace the miniature of the package: give --out")
    resident.check_calls(arguments.finish, resident.UPDATES)
    keep_freed_memory()
    use_compilation_cache()
    work = arguments.work.absolute()

    def part(number: int) -> int:
        return math.ceil(number * arguments.share)

    for split, (clips, images, seed) in DATA.items():
        write_motion_shapes(work / "data" / split, clips=part(clips), images=part(images), seed=seed, split=split)
    base = scales.STAGES[0]
    train_stage(base, work / "0_small_base", work / "data", steps=part(SMALL_STEPS), fields=grow.SMALL)
    workdirs: list[pathlib.Path] = []
    for number, name in enumerate(scales.STAGES, 1):
        workdirs.append(work / f"{number}_{name}")
        start = str(workdirs[STARTS[number] - 1]) if number in STARTS else ""
        objective = Objective(start=grow.grown(trained(base, work / "0_small_base"))) if name == base else OWN_LOSS
        fields = {"init_from": start, **(LARGE if name == base else {})}
        steps = part(STEPS[number - 1])
        train_stage(name, workdirs[-1], work / "data", steps=steps, fields=fields, objective=objective)
    if arguments.finish:
        begun, workdirs[0] = workdirs[0], work / f"finished_{base}"
        fields = FINISHED | {"init_from": str(begun)}
        train_stage(base, workdirs[0], work / "data", steps=arguments.finish, fields=fields, run=resident.train)
    join([str(folder) for folder in workdirs], work / "cascade.json")
    write_bundle(work, arguments.out)


def train_stage(
    name: str,
    workdir: pathlib.Path,
    data: pathlib.Path,
    *,
    steps: int,
    fields: Mapping[str, str],
    objective: Objective = OWN_LOSS,
    run: Callable = train,
) -> None:
    config = configs.training(f"experiments/{name}.py:mini", [f"{configs.PREFIX}{k}={v}" for k, v in fields.items()])
    config = dataclasses.replace(
        config,
        data=str(data / "train"),
        validation=str(data / "validation"),
        steps=steps,
        # A run of thousands of updates gains from a longer average than the demo's hundreds.
        step=dataclasses.replace(config.step, ema_decay=0.998),
        evaluate_every=500,
        checkpoint_every=250,
        keep=2,
    )
    print(f"{name}: {steps} updates", flush=True)
    run(configs.with_data(config, workdir), workdir, objective=objective)


def trained(name: str, workdir: pathlib.Path):
    """The averaged weights of the newest checkpoint."""
    found = find_teacher(str(workdir), name)
    return weights_of(found.path, name, Stage(found.stage).network.abstract)


def write_bundle(work: pathlib.Path, out: pathlib.Path) -> None:
    """Exports beside `out` first, so that there is a whole bundle at any time."""
    fresh = out.with_name(out.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    export(str(work / "cascade.json"), str(fresh), ExportRequest(dtype="bfloat16", title=TITLE, about=ABOUT))
    shutil.rmtree(out, ignore_errors=True)
    fresh.rename(out)
    print(out)


if __name__ == "__main__":
    sys.exit(in_one_line(main))
