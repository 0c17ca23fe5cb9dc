"""`imagen-video launch`."""

import contextlib
import io
import pathlib
import sys
import tempfile
from collections.abc import Iterator

from imagen_video_jax.errors import UserError

TEXT = "Run any command as a job elsewhere: job files, rendered and checked."
_NAMES = ("gke", "xpk", "tpu-vm", "slurm", "skypilot")
# Variables of the templates, as flags.
VARIABLES = {
    "name": "of the job",
    "image": "all but slurm: container image, see launch/Dockerfile",
    "mount": "all but slurm: SOURCE:PATH, storage that outlives the job, where outputs go; see launch/README.md",
    "hosts": "gke, slurm, skypilot: processes of the job, one a host",
    "accelerator": "gke: e.g. tpu-v5p-slice; skypilot: e.g. tpu-v5litepod-16 or H100:8",
    "topology": "gke: of the slice, e.g. 4x4x4",
    "chips": "gke: TPU chips of a host",
    "queue": "gke: of Kueue",
    "namespace": "gke",
    "cluster": "xpk",
    "tpu-type": "xpk, tpu-vm: e.g. v5p-128",
    "project": "xpk, tpu-vm",
    "zone": "xpk, tpu-vm",
    "runtime": "tpu-vm: image of the VMs, e.g. v2-alpha-tpuv5",
    "partition": "slurm",
    "gpus": "slurm: of a host",
    "time": "slurm: limit, e.g. 2-00:00:00",
    "logs": "slurm, tpu-vm: folder of log files",
    "restarts": "how often it is run again after exit codes 1, 75, 124 and signals; default 20",
}


def add_arguments(parser) -> None:
    parser.add_argument("--platform", required=True, choices=_NAMES)
    parser.add_argument("--dry-run", action="store_true", help="print the job file; nothing is submitted")
    for name, text in VARIABLES.items():
        parser.add_argument(f"--{name}", metavar="X", help=text)
    parser.epilog = "After -- the command and its arguments, e.g. -- train --config FILE.py:paper --workdir DIR."


def run(arguments, _) -> int:
    from imagen_video_jax.launching import DEFAULTS, render, submit, unused

    parsed, rest = _check_command(arguments)
    fields = {name: getattr(arguments, name.replace("-", "_")) for name in VARIABLES}
    given = {name.upper().replace("-", "_"): value for name, value in fields.items() if value is not None}
    rendered, missing = render(arguments.platform, arguments.words, given)
    problems = [*unused(arguments.platform, given), *_lost_outputs(parsed, arguments.mount)]
    problems += _left_open(arguments.words[0], parsed, rest)
    if arguments.dry_run:
        for problem in problems:
            print(f"note: {problem}", file=sys.stderr)
        print(rendered, end="")
        return 0
    if problems:
        raise UserError(problems[0])
    with tempfile.TemporaryDirectory() as folder:
        logs = pathlib.Path(given.get("LOGS", DEFAULTS["LOGS"]))
        return submit(arguments.platform, rendered, missing, pathlib.Path(folder), logs)


def _check_command(arguments):
    """The parsed command and its config fields; UserError where it could not even be parsed on the other machine."""
    from imagen_video_jax import configs

    if not arguments.words:
        raise UserError("name the command after --, e.g. imagen-video launch --platform gke -- train --config ...")
    if arguments.words[0] == "launch":
        raise UserError("launch cannot launch itself; name another command after --")
    for word in arguments.words:
        if any("\ud800" <= letter <= "\udfff" for letter in word):  # what Python makes of bytes that are no text
            raise UserError(f"{word!r} is not UTF-8 text, and no job file can hold it")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            parsed, rest = arguments.parse(list(arguments.words))
    except SystemExit:
        raise UserError("--help and --version are no jobs") from None
    if getattr(parsed, "config", None):
        # Data and weights may be where only the job sees them: what a stage's config says is all that can be checked.
        stage = arguments.words[0] in ("train", "plan")
        (configs.training if stage else configs.load)(parsed.config, rest)
    elif rest:
        raise UserError(f"unknown argument {rest[0]!r}; see imagen-video {arguments.words[0]} --help")
    return parsed, rest


def _lost_outputs(parsed, mount: str | None) -> Iterator[str]:
    """A line for every output that no command can write, or that would be lost with the job's containers."""
    kept = (mount or "").rpartition(":")[2]
    for name in ("workdir", "out", "npz"):
        path = getattr(parsed, name, None) or ""
        if "://" in path:
            yield f"--{name} must be below a mounted folder, see --mount SOURCE:PATH, got {path}"
        elif path and kept and not pathlib.PurePosixPath(path).is_relative_to(kept):
            yield f"--{name} must be below {kept} of --mount, or it is lost with the container, got {path}"


def _left_open(command: str, parsed, fields: list[str]) -> Iterator[str]:
    """What a sweep's or a distillation's config still lacks."""
    from imagen_video_jax import configs

    try:
        if command == "evaluate" and parsed.config:
            configs.sweep(parsed.config, fields)
        if command == "distill" and not configs.load(parsed.config, fields).get("teacher"):
            configs.distillation(parsed.config, fields, pathlib.Path())  # says what is missing before it looks at data
    except UserError as error:
        yield str(error)
