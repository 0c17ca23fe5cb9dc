"""`imagen-video sample`."""

import pathlib
import sys

from imagen_video_jax.commands.parsing import lines, numbers, seed
from imagen_video_jax.commands.process import until_sigterm, use_compilation_cache
from imagen_video_jax.errors import UserError

TEXT = "Write one mp4 per prompt and number."


def add_arguments(parser) -> None:
    parser.add_argument(
        "--cascade",
        metavar="FILE",
        help="cascade.json, or the folder of a bundle; the default is the miniature",
    )
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="may be repeated")
    parser.add_argument("--prompts", metavar="FILE", help="one prompt a line")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--seeds", metavar="FILE", help="a seed for each prompt, one a line, instead of --seed")
    parser.add_argument("--num", type=int, default=1, help="videos per prompt")
    parser.add_argument("--steps", metavar="N[,N...]", help="network calls, for all stages or one number per stage run")
    parser.add_argument(
        "--guidance", metavar="W[,W...]", help="guidance weight, likewise; constant, without --set guidance_low"
    )
    parser.add_argument("--sampler", metavar="NAME[,NAME...]", help="ddim, ancestral, dpmpp_2m or distilled, likewise")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE[,VALUE...]",
        help="another field of the samplers, e.g. guidance_low=1, percentile=99, rule=apg, interval=0.2:0.8",
    )
    parser.add_argument("--batch", type=int, default=4, help="videos sampled at once")
    parser.add_argument("--start-at", metavar="STAGE", help="name, number from 1, or kind (TSR, SSR); needs --input")
    parser.add_argument("--stop-after", metavar="STAGE")
    parser.add_argument("--input", metavar="VIDEO", help="video file that enters the --start-at stage")
    parser.add_argument("--first-frame", metavar="IMAGE", help="with which the videos start")
    parser.add_argument("--extend", metavar="VIDEO", help="whose end the new frames go on from")
    parser.add_argument(
        "--extend-from", type=float, default=0.0, metavar="SECONDS", help="of that end; default half a clip"
    )
    parser.add_argument(
        "--reconstruction", type=float, default=9.0, metavar="W", help="how strongly given frames lead the others"
    )
    parser.add_argument("--negative", metavar="TEXT", help="what guidance leads away from")
    parser.add_argument("--size", metavar="HEIGHTxWIDTH", help="of the videos, e.g. a portrait bucket of the training")
    parser.add_argument("--keep-stages", action="store_true", help="also write every stage's video, to DIR/stages")
    parser.add_argument("--weights", default="", metavar="PATH", help="where the T5 that it was trained with is now")
    parser.add_argument("--vocabulary", default="", metavar="FILE", help="likewise its spiece.model")
    parser.add_argument("--mesh", metavar="AXIS=N[,...]", help="shard over devices, e.g. frames=4,height=2")
    parser.add_argument("--tile", metavar="TxHxW", help="super-resolution in tiles, frames x height x width, 0: whole")
    parser.add_argument("--overlap", default="8x32x32", metavar="TxHxW", help="of tiles, on either side")


def run(arguments, _) -> int:
    return until_sigterm(lambda: _sample(arguments))


def _sample(arguments) -> None:
    from imagen_video_jax.data.buckets import parse_sizes
    from imagen_video_jax.sampling import SampleRequest, sample_to_folder
    from imagen_video_jax.shipped import miniature

    if arguments.num < 1 or arguments.batch < 1:
        raise UserError(f"--num and --batch must be at least 1, got {arguments.num} and {arguments.batch}")
    request = SampleRequest(
        prompts=tuple(_prompts(arguments)),
        num=arguments.num,
        seed=arguments.seed,
        seeds=_seeds(arguments.seeds) if arguments.seeds else (),
        batch=arguments.batch,
        steps=numbers("--steps", arguments.steps, int),
        guidance=numbers("--guidance", arguments.guidance, float),
        sampler=numbers("--sampler", arguments.sampler, str),
        fields=tuple(map(_field, arguments.set)),
        start_at=arguments.start_at,
        stop_after=arguments.stop_after,
        input=arguments.input,
        first_frame=arguments.first_frame,
        extend=arguments.extend,
        extend_from=arguments.extend_from,
        reconstruction=arguments.reconstruction,
        negative=arguments.negative,
        size=parse_sizes([arguments.size])[0] if arguments.size else None,
        keep_stages=arguments.keep_stages,
        weights=arguments.weights,
        vocabulary=arguments.vocabulary,
        mesh=_mesh(arguments.mesh) if arguments.mesh else None,
        tile=_three("--tile", arguments.tile) if arguments.tile else (0, 0, 0),
        overlap=_three("--overlap", arguments.overlap),
    )
    use_compilation_cache()
    out = pathlib.Path(arguments.out)
    if arguments.cascade:
        sample_to_folder(arguments.cascade, request, out)
    else:
        sample_to_folder(str(miniature()), request, out, note=lambda: _say_what_is_outside(request.prompts))


def _say_what_is_outside(prompts: tuple[str, ...]) -> None:
    from imagen_video_jax.shipped import outside_note

    if note := outside_note(list(prompts)):
        print(note, file=sys.stderr)


def _seeds(path: str) -> tuple[int, ...]:
    found = lines(path, "seed")
    for number, text in enumerate(found, 1):
        if not text.isdecimal() or int(text) >= 2**32:
            raise UserError(f"{path} line {number}: a seed is a number in [0, 2^32), got {text[:40]!r}")
    return tuple(map(int, found))


def _prompts(arguments) -> list[str]:
    if bool(arguments.prompt) == bool(arguments.prompts):
        raise UserError("give either --prompt TEXT or --prompts FILE")
    return arguments.prompt if arguments.prompt else lines(arguments.prompts)


def _three(name: str, text: str) -> tuple[int, int, int]:
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise UserError(f"{name} must be frames x height x width like 16x192x320, got {text!r}")
    return tuple(map(int, parts))


def _mesh(text: str):
    from imagen_video_jax.partitioning import MESH_AXES, MeshShape

    sizes = {}
    for part in text.split(","):
        axis, _, number = part.partition("=")
        if axis not in MESH_AXES or not number.isdecimal():
            raise UserError(f"--mesh must be AXIS=NUMBER[,...] with axes {', '.join(MESH_AXES)}, got {text!r}")
        sizes[axis] = int(number)
    return MeshShape(**{"data": 1} | sizes)


def _field(text: str) -> tuple[str, tuple]:
    """`FIELD=VALUE[,VALUE...]` -> the field of SamplerConfig and its values."""
    import difflib

    from imagen_video_jax.diffusion.samplers import SamplerConfig

    name, _, values = text.partition("=")
    known = vars(SamplerConfig())
    if name not in known or not values:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"fields are {', '.join(known)}"
        raise UserError(f"--set {text} is not FIELD=VALUE of a sampler field; {hint}")
    if name == "interval":
        return name, tuple(numbers("--set interval", part.replace(":", ","), float) for part in values.split(","))
    kind = float if known[name] is None else type(known[name])
    read = numbers(f"--set {name}", values, kind)
    return name, tuple(None if name == "guidance_low" and value < 0 else value for value in read)
