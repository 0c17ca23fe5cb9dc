"""Damage of a committed checkpoint: every flipped bit and every cut is found, and never restored."""

import random
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video_jax import checkpoint, storage
from imagen_video_jax.errors import NO_CHECKPOINT, UserError


def tree(step: int) -> dict:
    rng = np.random.default_rng(step)
    return {
        "kernel": jnp.asarray(rng.normal(size=(64, 32)), jnp.float32),
        "half": jnp.asarray(rng.normal(size=333), jnp.bfloat16),
        "count": jnp.int32(step),
        "constant": jnp.full((100,), float(step)),
    }


def test_every_flipped_bit_and_every_cut_is_found_and_the_step_before_is_restored(tmp_path, count, capsys):
    began, rng = time.monotonic(), random.Random(1)
    folder, good = tmp_path / "checkpoints", tmp_path / "good"
    for step in (1, 2):
        checkpoint.save(folder, step, {"params": tree(step), "ema": tree(step + 10)}, {"note": step})
    shutil.copytree(folder / "2", good)
    files = sorted(path for path in (folder / "2").rglob("*") if path.is_file())
    bits = {path: path.stat().st_size for path in files if path.stat().st_size}
    missed = []
    for number in range(count("flips")):
        # Every file in turn, so that small ones are hit as often as large ones.
        path = list(bits)[number % len(bits)]
        intact = path.read_bytes()
        damaged = bytearray(intact)
        if number // len(bits) % 3 == 2:
            damaged = damaged[: rng.randrange(len(damaged))]
        else:
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        problems = storage.damaged_files(folder / "2")
        if len(problems) != 1 or path.name not in problems[0]:
            missed.append((path, problems))
        path.write_bytes(intact)
    assert not missed
    assert storage.damaged_files(folder / "2") == []
    # What a run does with it, for one file of each kind.
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree(1))
    for path in list(bits)[:: max(len(bits) // 4, 1)]:
        intact = path.read_bytes()
        path.write_bytes(intact[:-1])
        newest = checkpoint.newest(folder)
        assert newest.name == "1"
        assert path.name in capsys.readouterr().err
        restored = checkpoint.restore(newest, "params", abstract)
        jax.tree.map(np.testing.assert_array_equal, restored, tree(1))
        path.write_bytes(intact)
    with capsys.disabled():
        seconds = time.monotonic() - began
        print(f"\nflips and cuts x {count('flips')} over {len(bits)} files: all found, 0 restored, {seconds:.0f} s")


def test_missing_added_and_linked_files_are_named(tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    checkpoint.save(folder, 1, {"params": tree(1)}, {})
    shutil.copytree(folder / "1", tmp_path / "good")

    def damage(change) -> str:
        shutil.rmtree(folder / "1")
        shutil.copytree(tmp_path / "good", folder / "1")
        change(folder / "1")
        with pytest.raises(UserError) as error:
            checkpoint.newest(folder)
        assert error.value.exit_code == NO_CHECKPOINT
        return capsys.readouterr().err

    for path in (tmp_path / "good").rglob("*"):
        if path.is_file():
            name = path.relative_to(tmp_path / "good")
            text = damage(lambda step, name=name: (step / name).unlink())
            assert f"{name}: missing" in text
    assert "new: not listed" in damage(lambda step: (step / "new").touch())
    assert "meta.json: is a link" in damage(
        lambda step: ((step / "meta.json").unlink(), (step / "meta.json").symlink_to(tmp_path / "good" / "meta.json"))
    )
