"""`imagen-video COMMAND`: parsing and one-line errors. Heavy imports happen inside each command."""

import argparse
import contextlib
import json
import pathlib
import signal
import sys
import warnings

from imagen_video_jax import __version__
from imagen_video_jax.errors import DONE, FAILED, STOPPED_AFTER_SAVING, UserError


class _Parser(argparse.ArgumentParser):
    """argparse with this program's one-line errors."""

    def error(self, message: str):
        raise UserError(message)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code (see errors.py)."""
    try:
        parsed, rest = _parser().parse_known_args(arguments)
        if rest and parsed.command != "train":
            raise UserError(f"unknown argument {rest[0]!r}; see imagen-video {parsed.command} --help")
        return parsed.run(parsed, rest) or DONE
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="imagen-video", description="Train and sample an Imagen Video cascade.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    prepare = command("prepare", _prepare, "Check videos and pack the good ones; run again to go on or to add files.")
    prepare.add_argument(
        "--source", required=True, metavar="SOURCE", help="folder, manifest, .tar, motion_shapes[:mini] or tfds:NAME"
    )
    prepare.add_argument(
        "--out", required=True, metavar="DIR", help="*.array_record, statistics.json, quarantine.jsonl"
    )
    prepare.add_argument("--workers", type=int, metavar="N", help="files at once; default one per CPU")
    for name, text in _PREPARE_NUMBERS.items():
        prepare.add_argument(f"--{name.replace('_', '-')}", type=float, metavar="X", help=text)
    prepare.add_argument("--require-captions", action="store_true", help="drop what has no caption")

    inspect = command("inspect", _inspect, "Show what a data set holds: a table and a contact sheet.")
    inspect.add_argument("data", metavar="DIR", help="folder, manifest, prepared folder, tfds:NAME")
    inspect.add_argument("--out", metavar="FILE.png", help="the contact sheet; default contact_sheet.png here")
    inspect.add_argument("--rows", type=int, default=12, metavar="N", help="clips on the sheet")

    train = command("train", _train, "Train one stage; run again to go on where it stopped.")
    train.add_argument(
        "--config", required=True, metavar="FILE.py[:SCALE]", help="e.g. experiments/base_16f_24x40.py:mini"
    )
    train.add_argument("--workdir", required=True, help="checkpoints, metrics.jsonl, TensorBoard events, samples")
    train.epilog = "Any field of the config is set as --config.FIELD=VALUE, e.g. --config.steps=100 --config.data=DIR."

    cascade = command("cascade", _cascade, "Join trained stages, in order, into cascade.json.")
    cascade.add_argument(
        "--stage", action="append", required=True, metavar="WORKDIR", help="repeated, from the base on"
    )
    cascade.add_argument("--out", required=True, metavar="FILE")

    sample = command("sample", _sample, "Write one mp4 per prompt and number.")
    sample.add_argument("--cascade", required=True, metavar="FILE", help="cascade.json")
    sample.add_argument("--prompt", action="append", metavar="TEXT", help="may be repeated")
    sample.add_argument("--prompts", metavar="FILE", help="one prompt a line")
    sample.add_argument("--out", required=True, metavar="DIR")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--num", type=int, default=1, help="videos per prompt")
    sample.add_argument("--steps", metavar="N[,N...]", help="network calls, for all stages or one number per stage run")
    sample.add_argument("--guidance", metavar="W[,W...]", help="guidance weight, likewise")
    sample.add_argument("--batch", type=int, default=4, help="videos sampled at once")
    sample.add_argument("--start-at", metavar="STAGE", help="name, number from 1, or kind (TSR, SSR); needs --input")
    sample.add_argument("--stop-after", metavar="STAGE")
    sample.add_argument("--input", metavar="VIDEO", help="video file that enters the --start-at stage")
    sample.add_argument("--negative", metavar="TEXT", help="what guidance leads away from")
    sample.add_argument("--size", metavar="HEIGHTxWIDTH", help="of the videos, e.g. a portrait bucket of the training")
    sample.add_argument("--keep-stages", action="store_true", help="also write every stage's video, to DIR/stages")
    sample.add_argument("--weights", default="", metavar="PATH", help="where the T5 that it was trained with is now")
    sample.add_argument("--vocabulary", default="", metavar="FILE", help="likewise its spiece.model")

    embed = command("embed", _embed, "Embed the captions of data sets into a cache, or prompts into an .npz file.")
    embed.add_argument("--data", action="append", metavar="DIR", help="data whose captions go into --out; repeatable")
    embed.add_argument("--prompts", metavar="FILE", help="one prompt a line")
    embed.add_argument("--ids", metavar="FILE.npy", help="token numbers, int32 (N, L), padding 0")
    embed.add_argument("--encoder", choices=("minilm", "t5"), default="minilm")
    embed.add_argument("--weights", default="", metavar="PATH", help="T5: T5X checkpoint or safetensors")
    embed.add_argument("--vocabulary", default="", metavar="FILE", help="T5: spiece.model")
    embed.add_argument("--max-length", type=int, default=0, metavar="N", help="tokens a prompt is cut to")
    embed.add_argument("--out", metavar="DIR", help="embedding cache; several processes may fill one")
    embed.add_argument("--npz", metavar="FILE", help="arrays embeddings (N, L, D) and mask (N, L)")

    demo = command("demo", _demo, "Train the seven mini stages on the embedded data set and sample videos.")
    demo.add_argument("--out", required=True, metavar="DIR")
    demo.add_argument("--minutes", type=float, default=None, help="training time for all stages")
    demo.add_argument("--seed", type=int, default=0)
    return parser


_PREPARE_NUMBERS = {
    "min_fps": "drop videos of fewer frames/s",
    "max_fps": "drop videos of more frames/s",
    "min_seconds": "drop shorter videos",
    "max_seconds": "drop longer videos",
    "cut": "cut videos where this share of the colours changes at once, e.g. 0.5",
    "validation": "share of the contents that goes to DIR/validation",
    "seconds_per_file": "time limit of decoding",
    "megabytes_per_file": "memory limit of decoding",
    "shard_megabytes": "size of a shard",
}


def _prepare(arguments, _) -> None:
    from imagen_video_jax.data.default_set import progress_of, rendered
    from imagen_video_jax.data.examine import PrepareSettings
    from imagen_video_jax.data.prepare import prepare

    given = {name: getattr(arguments, name) for name in _PREPARE_NUMBERS if getattr(arguments, name) is not None}
    for name, field in (("megabytes_per_file", "memory_per_file"), ("shard_megabytes", "shard_bytes")):
        if name in given:
            given[field] = int(given.pop(name) * 2**20)
    settings = PrepareSettings(**given, require_captions=arguments.require_captions)
    if arguments.workers is not None and arguments.workers < 1:
        raise UserError(f"--workers must be at least 1, got {arguments.workers}")
    source = arguments.source
    if source.partition(":")[0] == "motion_shapes" and not pathlib.Path(source).exists():
        source = str(rendered(source.partition(":")[2] or "tiny", "train"))
    try:
        with progress_of("preparing") as progress:
            statistics = prepare(
                source, pathlib.Path(arguments.out), settings, workers=arguments.workers, progress=progress
            )
    except OSError as error:
        raise UserError(f"{arguments.out}: {error.strerror or error}; run the same command again", FAILED) from None
    print(
        f"{arguments.out}: {statistics['kept']} clips kept, {statistics['dropped']} files dropped, "
        f"{statistics['duplicates']} duplicates; reasons in quarantine.jsonl and statistics.json"
    )


def _inspect(arguments, _) -> None:
    from imagen_video_jax.data.inspect import inspect

    if arguments.rows < 1:
        raise UserError(f"--rows must be at least 1, got {arguments.rows}")
    inspect(arguments.data, pathlib.Path(arguments.out or "contact_sheet.png"), rows=arguments.rows)


def _train(arguments, overrides: list[str]) -> int:
    from imagen_video_jax import configs
    from imagen_video_jax.training.loop import train

    _use_compilation_cache()
    workdir = pathlib.Path(arguments.workdir)
    config = configs.with_data(configs.training(arguments.config, overrides), workdir)
    with _stop_on_sigterm() as should_stop:
        train(config, workdir, should_stop=should_stop)
        return STOPPED_AFTER_SAVING if should_stop() else DONE


def _cascade(arguments, _) -> None:
    from imagen_video_jax.cascade import join

    joined = join(arguments.stage, arguments.out)
    print(f"{arguments.out}: {len(joined['stages'])} stages")


def _sample(arguments, _) -> None:
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
        steps=_numbers("--steps", arguments.steps, int),
        guidance=_numbers("--guidance", arguments.guidance, float),
        start_at=arguments.start_at,
        stop_after=arguments.stop_after,
        input=arguments.input,
        negative=arguments.negative,
        size=parse_sizes([arguments.size])[0] if arguments.size else None,
        keep_stages=arguments.keep_stages,
        weights=arguments.weights,
        vocabulary=arguments.vocabulary,
    )
    _use_compilation_cache()
    sample_to_folder(arguments.cascade, request, pathlib.Path(arguments.out))


def _prompts(arguments) -> list[str]:
    if bool(arguments.prompt) == bool(arguments.prompts):
        raise UserError("give either --prompt TEXT or --prompts FILE")
    return arguments.prompt if arguments.prompt else _lines(arguments.prompts)


def _lines(path: str) -> list[str]:
    """The non-empty lines of a prompt file."""
    try:
        lines = [line.strip() for line in pathlib.Path(path).read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read prompts from {path}: {error}") from None
    if not lines:
        raise UserError(f"{path} holds no prompt; one a line is expected")
    return lines


def _numbers(name: str, text: str | None, kind) -> tuple:
    try:
        return tuple(kind(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UserError(f"{name} must be a number, or one per stage with commas, got {text!r}") from None


def _embed(arguments, _) -> None:
    from imagen_video_jax import distributed
    from imagen_video_jax.data import embed_captions
    from imagen_video_jax.text.embed import EncoderConfig, open_encoder

    data, prompts, ids, out, npz = (getattr(arguments, n) for n in ("data", "prompts", "ids", "out", "npz"))
    if sum(map(bool, (data, prompts, ids))) != 1 or bool(out) == bool(npz):
        raise UserError("give one of --data, --prompts and --ids, and one of --out DIR and --npz FILE")
    if (data and npz) or (ids and out):
        raise UserError("--data goes into --out DIR, --ids go into --npz FILE")
    if arguments.max_length < 0:
        raise UserError(f"--max-length must be at least 1, got {arguments.max_length}")
    lines = _lines(prompts) if prompts else None
    _use_compilation_cache()
    share = distributed.start()
    encoder = open_encoder(
        EncoderConfig(arguments.encoder, arguments.weights, arguments.vocabulary, arguments.max_length)
    )
    if out:
        if data:
            count = embed_captions.embed_data(data, pathlib.Path(out), encoder, share=share)
        else:
            count = embed_captions.embed_all(lines, pathlib.Path(out), encoder, share=share)
        print(f"{out}: {count} captions embedded by this process")
    elif ids:
        embed_captions.embed_ids_to_npz(pathlib.Path(ids), encoder, pathlib.Path(npz))
    else:
        embed_captions.embed_prompts_to_npz(lines, encoder, pathlib.Path(npz))


def _demo(arguments, _) -> None:
    from imagen_video_jax.demo import DEFAULT_MINUTES, run

    minutes = DEFAULT_MINUTES if arguments.minutes is None else arguments.minutes
    if not minutes > 0:
        raise UserError(f"--minutes must be above 0, got {minutes:g}")
    _use_compilation_cache()
    print(json.dumps(run(pathlib.Path(arguments.out), minutes=minutes, seed=arguments.seed), indent=2))


@contextlib.contextmanager
def _stop_on_sigterm():
    """Yields a function that says whether SIGTERM came; a second one ends the process at once."""
    asked = []

    def handle(number, frame):
        asked.append(number)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _use_compilation_cache() -> None:
    """Compiled programs are kept in the user cache, so that running a command again starts at once."""
    import jax

    from imagen_video_jax.storage import user_cache

    # Whether the folder can be written is not this command's business: jax warns and compiles.
    jax.config.update("jax_compilation_cache_dir", str(user_cache() / "compiled"))
    warnings.filterwarnings("ignore", message=".*compilation cache.*")
