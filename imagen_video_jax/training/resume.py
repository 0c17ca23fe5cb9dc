"""Whether a workdir goes on with a training config: which fields may change, and the refusal of any other change."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import pathlib
import sys
from collections.abc import Iterator

from imagen_video_jax import __version__, checkpoint
from imagen_video_jax.errors import UserError
from imagen_video_jax.text.embedding_cache import check_same

_PACKAGE = pathlib.Path(__file__).parent.parent
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "grain")

# Fields that may change when a run resumes; any other change is refused with the difference.
FREE_ON_RESUME = (
    "data", "validation", "embeddings", "encoder", "steps", "max_seconds", "checkpoint_every", "log_every",
    "sample_every", "evaluate_every", "keep", "readers", "bad_share", "init_from", "profile_steps", "mesh",
    "sample_mesh", "stage.sampler", "step.guard", "stage.network.remat", "stage.network.remat_policy",
    "stage.network.attention", "deadlines",
)  # fmt: skip


def as_dict(config) -> dict:
    """A config as JSON-serialisable nested dicts."""
    return dataclasses.asdict(config)


def flat(value, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Nested dicts -> (path with dots, value), JSON-like."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from flat(item, f"{prefix}{name}.")
    else:
        yield prefix[:-1], list(value) if isinstance(value, tuple) else value


def is_free(name: str) -> bool:
    """Whether the field of a training config with this path may change on resume."""
    return any(name == free or name.startswith(free + ".") for free in FREE_ON_RESUME)


def identity(config) -> dict[str, object]:
    """Every field that may not change on resume, flat, JSON-like."""
    return {name: value for name, value in flat(as_dict(config)) if not is_free(name)}


def defaults(config, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Paths of fields, as `flat` gives them, and their defaults."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from defaults(value, f"{prefix}{field.name}.")
        elif field.default is not dataclasses.MISSING:
            yield from flat(field.default, f"{prefix}{field.name}.")


def meta_of(config, encoder: dict, contents: str, *, seconds: float, left_out: int) -> dict:
    """What a checkpoint of a run says of it.

    Args: encoder is what its embeddings say of theirs, contents what its data are (agreement.py); `left_out` batches
    were drawn and not trained on.
    """
    files = {"weights": config.encoder.weights, "vocabulary": config.encoder.vocabulary}
    meta = {"identity": identity(config), "seconds": seconds, "config": as_dict(config), "left_out": left_out}
    return meta | {"code": code_version(), "encoder": encoder | files, "contents": contents}


def check_goes_on(workdir: pathlib.Path, meta: dict, config) -> None:
    """UserError unless a checkpoint with this `meta` is of the same stage, scale and settings as `config`."""
    # A field that a later version brought had its default before.
    stored, wanted = dict(defaults(config)) | meta["identity"], identity(config)
    stored = {name: value for name, value in stored.items() if name in wanted or name in meta["identity"]}
    for field in ("stage.name", "scale"):
        if stored.get(field) != wanted.get(field):
            raise UserError(f"{workdir} belongs to {_title(stored)}, this is {_title(wanted)}; use another --workdir")
    changed = [
        f"{f}: {stored.get(f)} -> {wanted.get(f)}" for f in sorted({*stored, *wanted}) if stored.get(f) != wanted.get(f)
    ]
    if changed:
        raise UserError(f"{workdir} was trained with other settings ({'; '.join(changed[:6])}); use another --workdir")


@functools.cache
def code_version() -> dict[str, str]:
    """What computed a checkpoint: this package (version and sha256 of its source) and the libraries below it."""
    digest = hashlib.sha256()
    for file in sorted(_PACKAGE.rglob("*.py")):
        digest.update(file.relative_to(_PACKAGE).as_posix().encode() + b"\0" + file.read_bytes())
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"imagen_video_jax": __version__, "source": digest.hexdigest()[:16], **versions}


def note_other_code(meta: dict) -> None:
    """Says on stderr when a checkpoint was computed by other code: it goes on, but not to the same bits."""
    stored, now = meta.get("code", {}), code_version()
    changed = [f"{name} {stored.get(name)} -> {now[name]}" for name in now if stored.get(name) != now[name]]
    if changed:
        print(f"note: checkpoint {meta['step']} was written by other code ({'; '.join(changed)})", file=sys.stderr)


def note_other_data(meta: dict, contents: str) -> None:
    """Says on stderr when a checkpoint was trained on other data: it may go on, but not as it would have."""
    before = meta.get("contents", contents)  # checkpoints of before this was noted say nothing
    if before != contents:
        print(f"note: checkpoint {meta['step']} was trained on other data ({before} -> {contents})", file=sys.stderr)


def check_early(workdir: pathlib.Path, config, encoder: dict | None = None) -> None:
    """The same from the newest step's notes alone, before data are made and captions embedded for nothing.

    Args: encoder is what `describe` says of the text encoder that is about to embed the captions.
    """
    steps = checkpoint.committed_steps(workdir / "checkpoints")
    if not steps:
        return
    try:
        meta = checkpoint.read_meta(workdir / "checkpoints" / str(steps[-1]))
    except (UserError, OSError):
        return  # damaged: whoever restores it says so
    check_goes_on(workdir, meta, config)
    check_same(meta.get("encoder"), str(workdir), encoder, "the one asked for")


def _title(fields: dict) -> str:
    return f"{fields.get('stage.name')} at scale {fields.get('scale') or 'custom'!r}"
