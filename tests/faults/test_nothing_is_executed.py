"""Loading any format runs nothing that the file says: watched by Python's own audit events while it happens."""

import contextlib
import json
import pickle
import random
import sys

import jax
import numpy as np
import pytest

from imagen_video_jax import checkpoint, storage
from imagen_video_jax.data import records
from imagen_video_jax.data.embed_captions import embed_ids_to_npz
from imagen_video_jax.errors import UserError
from tests.faults.fuzz import mutated
from tests.faults.fuzz_targets import TARGETS

# What a file would need to do harm; see docs.python.org/3/library/audit_events.html.
HARMFUL = {
    "pickle.find_class", "marshal.loads", "marshal.load", "compile", "exec", "import", "code.__new__",
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pty.spawn",
    "socket.connect", "socket.bind", "urllib.Request", "ctypes.dlopen", "shutil.unpack_archive",
}  # fmt: skip
_seen: list[str] | None = None


def _hook(event: str, arguments: tuple) -> None:
    if _seen is not None and event in HARMFUL:
        _seen.append(f"{event} {arguments}"[:200])


@pytest.fixture(scope="module", autouse=True)
def hook():
    sys.addaudithook(_hook)  # cannot be taken away again


@contextlib.contextmanager
def watched():
    """Yields the list of harmful events while the body runs."""
    global _seen
    _seen = []
    try:
        yield _seen
    finally:
        _seen = None


def test_the_watch_sees_a_pickle_that_is_read():
    data = pickle.dumps(np.float32)
    with watched() as seen:
        pickle.loads(data)
        eval("1")
    assert any("pickle.find_class" in event for event in seen)
    assert any("compile" in event for event in seen)
    assert any("exec" in event for event in seen)


@pytest.mark.parametrize("name", TARGETS)
def test_good_and_hostile_input_of_every_parser_runs_nothing(name, tmp_path):
    target, rng = TARGETS[name], random.Random(2)
    seeds = target.seeds(tmp_path)
    inputs = seeds + [mutated(rng.choice(seeds), seeds, rng) for _ in range(20)]
    for watching in (False, True):  # the first time imports what is imported when it is needed
        with watched() as seen:
            for data in inputs:
                with contextlib.suppress(UserError, *target.refusals):
                    target.parse(tmp_path, data)
        assert not (watching and seen)


class Encoder:
    """Takes token numbers as states."""

    def embed_ids(self, ids_BL):
        return ids_BL[..., None].astype(np.float32), ids_BL > 0


def test_a_checkpoint_a_data_set_and_token_numbers_run_nothing(tmp_path):
    tree = {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}
    checkpoint.save(tmp_path / "checkpoints", 1, {"params": jax.tree.map(jax.numpy.asarray, tree)}, {"note": 1})
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    row = {"path": "a.mp4", "captions": ["a cat"], "facts": {"fps": 24}, "sha256": "0" * 64}
    (tmp_path / "data").mkdir()
    records.write_shard(tmp_path / "data" / "0.array_record", [records.pack(**row, media=b"m" * 50)])
    index = row | {"shard": "0.array_record", "record": 0}
    (tmp_path / "data" / records.INDEX).write_text(json.dumps(index) + "\n")
    shards = {"version": records.VERSION, "shards": {"0.array_record": {"records": 1}}}
    storage.write_json(tmp_path / "data" / records.STATISTICS, shards)
    np.save(tmp_path / "ids.npy", np.ones((2, 3), np.int32))

    def load():
        found = checkpoint.restore(checkpoint.newest(tmp_path / "checkpoints"), "params", abstract)
        np.testing.assert_array_equal(found["kernel"], tree["kernel"])
        (example,) = records.list_prepared(tmp_path / "data").examples
        assert example.media().data == b"m" * 50

    load()
    with watched() as seen:
        load()
    assert not seen
    for _ in range(2):
        with watched() as seen:
            embed_ids_to_npz(tmp_path / "ids.npy", Encoder(), tmp_path / "out.npz")
    # numpy reads a header with ast.literal_eval, which makes a syntax tree and runs nothing.
    assert not [event for event in seen if not event.startswith("compile")]
