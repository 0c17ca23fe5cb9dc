"""`imagen-video sample`."""

import pathlib

from imagen_video_jax.commands.parsing import lines, numbers
from imagen_video_jax.commands.process import use_compilation_cache
from imagen_video_jax.errors import UserError

TEXT = "Write one mp4 per prompt and number."


def add_arguments(parser) -> None:
    parser.add_argument("--cascade", required=True, metavar="FILE", help="cascade.json")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="may be repeated")
    parser.add_argument("--prompts", metavar="FILE", help="one prompt a line")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num", type=int, default=1, help="videos per prompt")
    parser.add_argument("--steps", metavar="N[,N...]", help="network calls, for all stages or one number per stage run")
    parser.add_argument("--guidance", metavar="W[,W...]", help="guidance weight, likewise")
    parser.add_argument("--batch", type=int, default=4, help="videos sampled at once")
    parser.add_argument("--start-at", metavar="STAGE", help="name, number from 1, or kind (TSR, SSR); needs --input")
    parser.add_argument("--stop-after", metavar="STAGE")
    parser.add_argument("--input", metavar="VIDEO", help="video file that enters the --start-at stage")
    parser.add_argument("--negative", metavar="TEXT", help="what guidance leads away from")
    parser.add_argument("--size", metavar="HEIGHTxWIDTH", help="of the videos, e.g. a portrait bucket of the training")
    parser.add_argument("--keep-stages", action="store_true", help="also write every stage's video, to DIR/stages")
    parser.add_argument("--weights", default="", metavar="PATH", help="where the T5 that it was trained with is now")
    parser.add_argument("--vocabulary", default="", metavar="FILE", help="likewise its spiece.model")


def run(arguments, _) -> None:
    from imagen_video_jax.data.buckets import parse_sizes
    from imagen_video_jax.sampling import SampleRequest, sample_to_folder

    if arguments.num < 1 or arguments.batch < 1:
        raise UserError(f"--num and --batch must be at least 1, got {arguments.num} and {arguments.batch}")
    if not 0 <= arguments.seed < 2**32:
        raise UserError(f"--seed must be in [0, 2^32), got {arguments.seed}")
    request = SampleRequest(
        prompts=tuple(_prompts(arguments)),
        num=arguments.num,
        seed=arguments.seed,
        batch=arguments.batch,
        steps=numbers("--steps", arguments.steps, int),
        guidance=numbers("--guidance", arguments.guidance, float),
        start_at=arguments.start_at,
        stop_after=arguments.stop_after,
        input=arguments.input,
        negative=arguments.negative,
        size=parse_sizes([arguments.size])[0] if arguments.size else None,
        keep_stages=arguments.keep_stages,
        weights=arguments.weights,
        vocabulary=arguments.vocabulary,
    )
    use_compilation_cache()
    sample_to_folder(arguments.cascade, request, pathlib.Path(arguments.out))


def _prompts(arguments) -> list[str]:
    if bool(arguments.prompt) == bool(arguments.prompts):
        raise UserError("give either --prompt TEXT or --prompts FILE")
    return arguments.prompt if arguments.prompt else lines(arguments.prompts)
