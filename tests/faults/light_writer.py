"""A process that only writes checkpoints, as fast as it can, and says each one that is committed.

    python light_writer.py FOLDER SAVES [KEEP]

It begins after the newest good step, as a trainer does. The files of step N are filled with the number N.
"""

import pathlib
import sys

from imagen_video_jax import steps, storage

FILES = {"params/a": 20_000, "params/sub/b": 100, "meta.json": 50}


def content(step: int, name: str) -> bytes:
    return (f"{step:08d}" * (FILES[name] // 8)).encode()


def is_whole(folder: pathlib.Path) -> bool:
    """Whether a step's files hold what was written into them."""
    return all((folder / name).read_bytes() == content(int(folder.name), name) for name in FILES)


def main(folder: pathlib.Path, saves: int, keep: int) -> None:
    with storage.directory_lock(folder):
        newest = steps.newest(folder / "checkpoints")
        steps.take_over(folder / "checkpoints", newest)
        first = int(newest.name) + 1 if newest else 1
        print(f"start {first}", flush=True)
        for step in range(first, first + saves):
            try:
                with steps.committing(folder / "checkpoints", step, keep=keep) as temporary:
                    for name in FILES:
                        (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                        (temporary / name).write_bytes(content(step, name))
            except OSError as error:
                print(f"failed {step} {error.strerror}", flush=True)
            else:
                print(f"committed {step}", flush=True)


if __name__ == "__main__":
    assert not {"jax", "orbax", "numpy"} & sys.modules.keys()
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 3)
