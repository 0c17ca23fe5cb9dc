"""`imagen-video export`."""

import json
import pathlib

from imagen_video_jax.errors import UserError

TEXT = "Write a cascade as one folder for others: safetensors, configs, model card, and programs."


def add_arguments(parser) -> None:
    parser.add_argument("--cascade", required=True, metavar="FILE", help="cascade.json, or another bundle")
    parser.add_argument("--out", required=True, metavar="BUNDLE", help="folder that does not exist yet")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the stored weights")
    parser.add_argument("--programs", action="store_true", help="also StableHLO programs, and sample.py that runs them")
    parser.add_argument("--title", default="", help="of the model card; by default the folder's name")
    parser.add_argument(
        "--scores",
        action="append",
        default=[],
        metavar="FILE",
        help="JSON of evaluate --json, for the card; repeatable",
    )
    parser.add_argument("--about", metavar="FILE.md", help="for the card: data, licence, what else people should know")


def run(arguments, _) -> None:
    from imagen_video_jax.export import ExportRequest, export

    scores = {pathlib.Path(path).stem: _scores(path) for path in arguments.scores}
    request = ExportRequest(
        dtype=arguments.dtype,
        programs=arguments.programs,
        title=arguments.title,
        scores=scores,
        about=_text(arguments.about) if arguments.about else "",
    )
    export(arguments.cascade, arguments.out, request)
    print(f"{arguments.out}: imagen-video sample --cascade {arguments.out} --prompt TEXT --out DIR")


def _scores(path: str) -> dict[str, float]:
    """The plain numbers of an object, or of the last of several lines."""
    try:
        text = _text(path).strip()
        values = json.loads(text) if text.startswith("{") and "\n{" not in text else json.loads(text.splitlines()[-1])
        return {key: value for key, value in values.items() if type(value) in (int, float)}
    except (ValueError, IndexError, AttributeError, RecursionError):
        raise UserError(f"--scores {path} is no JSON object with a number a metric") from None


def _text(path: str) -> str:
    try:
        return pathlib.Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
