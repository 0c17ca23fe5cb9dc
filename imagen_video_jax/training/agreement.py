"""What all processes of one training job must have alike: settings, code, data and text encoder."""

import hashlib
import json
import pathlib
from collections.abc import Sequence

from imagen_video_jax.data.examples import Source, sorted_by_id
from imagen_video_jax.training.resume import as_dict, code_version, flat

# Where a host keeps its copy of the files is its own matter; what they hold is compared.
OWN_PATHS = ("data", "validation", "embeddings", "encoder.weights", "encoder.vocabulary")


def facts(config, workdir: pathlib.Path, sources: Sequence[Source | None], encoder: dict) -> dict[str, str]:
    """Name -> text for `distributed.agree`: every field of the config, versions, code, data, embeddings."""
    settings = {f"config.{name}": value for name, value in flat(as_dict(config)) if name not in OWN_PATHS}
    found = {name: json.dumps(value) for name, value in settings.items()}
    found["the workdir"] = str(workdir)
    found |= {f"code: {name}": version for name, version in code_version().items()}
    for name, source in zip(("data", "validation"), sources):
        if source is not None:
            found[f"the contents of config.{name}"] = contents_of(source)
    found["the text encoder of config.embeddings"] = str(encoder.get("fingerprint"))
    return found


def contents_of(source: Source) -> str:
    """Counts, and a hash of names, sizes and captions: what can be told without reading the media."""
    digest = hashlib.sha256()
    for example in sorted_by_id(source):
        size = example.path.stat().st_size if example.load is None else 0
        row = [example.id, example.part, example.path.name, example.captions, example.stamp, size]
        digest.update(json.dumps(row).encode())
    return f"{len(source.videos)} videos, {len(source.images)} images, {digest.hexdigest()[:16]}"
