"""One process of a training job, and what the tests want to know of it. Run as a script in each process of a job.

    python -m tests.training.one_process LAYOUT FOLDER DEVICES [OTHER LAYOUT ...]

Trains base, TSR and SSR, each in FOLDER/LAYOUT-STAGE; notes the hash of the state that it reached, and of the states
of the other layouts, each restored here.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import sys

from tests.xla_flags import quick_to_compile

STAGES = ("base_16f_24x40", "temporal_sr_32f_24x40", "spatial_sr_32f_48x80")
STEPS = 20


def train_all(layout: str, folder: pathlib.Path) -> dict[str, str]:
    """Returns {stage: hash of the state}."""
    from imagen_video_jax.training.loop import train

    states = {}
    for name in STAGES:
        state = train(config_of(name, folder), folder / f"{layout}-{name}")
        states[name] = hash_of(state)
    return states


def config_of(name: str, folder: pathlib.Path, **changes):
    from imagen_video_jax.partitioning import MeshShape
    from imagen_video_jax.training.optimizer import OptimizerConfig
    from imagen_video_jax.training.step import StepConfig
    from imagen_video_jax.training.train_config import TrainConfig
    from tests.stages.stage_kinds import smallest

    stage = smallest(name)
    # Every process compiles: as few layers as show the kind of stage.
    network = dataclasses.replace(
        stage.network, channels=(8,), embedding_width=16, head_width=8, text_width=6, spatial_attention=(False,)
    )
    fields = {
        "stage": dataclasses.replace(stage, network=network, text_length=4),
        "optimizer": OptimizerConfig(learning_rate=1e-3, warmup=2),
        "step": StepConfig(ema_decay=0.9),
        "mesh": MeshShape(data=2, fsdp=4),
        "data": str(folder / "data"),
        "embeddings": str(folder / "embeddings"),
        "steps": STEPS,
        "batch_size": 8,
        "image_batch_size": 8,
        "log_every": 1,
    }
    return TrainConfig(**(fields | changes))


def hash_of(state) -> str:
    """sha256 of every array of a state, whole, in order."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    digest = hashlib.sha256()
    for leaf in jax.tree.leaves((state.params, state.ema, state.optimizer)):
        whole = leaf if leaf.is_fully_addressable else multihost_utils.process_allgather(leaf, tiled=True)
        digest.update(np.asarray(whole).tobytes())
    return digest.hexdigest()


def restored_hashes(layout: str, folder: pathlib.Path) -> dict[str, str]:
    """The states of another layout, restored onto this one's devices by going on with a run that is at its end."""
    from imagen_video_jax.training.loop import train

    return {name: hash_of(train(config_of(name, folder), folder / f"{layout}-{name}")) for name in STAGES}


def watch_examples(seen: list) -> None:
    """Notes (kind of clip, id, first pixel, first number of the text) of every example that reaches this process's
    devices."""
    import numpy as np

    from imagen_video_jax import partitioning

    put = partitioning.put_batch

    def put_and_note(mesh, batch):
        arrays = put(mesh, batch)
        shards = (arrays.id_B, arrays.video_BTHWC, arrays.text_BLD)
        for ids, videos, texts in zip(*(array.addressable_shards for array in shards)):
            for row in zip(np.asarray(ids.data), np.asarray(videos.data), np.asarray(texts.data)):
                seen.append((len(row[1]) > 1, int(row[0]), int(row[1].flat[0]), float(row[2].flat[0])))
        return arrays

    partitioning.put_batch = put_and_note


def main(layout: str, folder: pathlib.Path, *others: str) -> None:
    from imagen_video_jax import distributed

    number, _ = distributed.start()
    seen: list = []
    watch_examples(seen)
    result = {"states": train_all(layout, folder)}
    result["restored"] = {other: restored_hashes(other, folder) for other in others}
    result["seen"] = seen
    (folder / f"{layout}.{number}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = quick_to_compile(int(sys.argv[3]))  # every process compiles
    main(sys.argv[1], pathlib.Path(sys.argv[2]), *sys.argv[4:])
