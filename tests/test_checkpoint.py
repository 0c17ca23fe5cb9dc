"""Checkpoints: what was saved comes back, what was damaged does not, what does not fit is said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video_jax import checkpoint
from imagen_video_jax.errors import NO_CHECKPOINT, UserError

TREE = {"layer": {"kernel": jnp.arange(12.0).reshape(3, 4), "count": jnp.int32(7)}, "list": (jnp.ones(2),)}


def abstract(tree):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)


def test_trees_come_back_and_only_the_newest_stay(tmp_path):
    for step in (1, 2, 10, 3):
        checkpoint.save(tmp_path, step, {"params": TREE}, {"note": step}, keep=3)
    assert checkpoint.committed_steps(tmp_path) == [2, 3, 10]
    path = checkpoint.newest(tmp_path)
    assert path.name == "10"
    assert checkpoint.read_meta(path)["note"] == 10
    restored = checkpoint.restore(path, "params", abstract(TREE))
    jax.tree.map(np.testing.assert_array_equal, restored, TREE)
    assert jax.tree.structure(restored) == jax.tree.structure(TREE)


def test_a_damaged_step_is_named_and_the_one_before_is_used(tmp_path, capsys):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"params": TREE}, {})
    victim = max((p for p in (tmp_path / "2").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 4
    victim.write_bytes(data)
    assert checkpoint.newest(tmp_path).name == "1"
    assert victim.name in capsys.readouterr().err
    (tmp_path / "1" / "manifest.json").unlink()
    with pytest.raises(UserError) as error:
        checkpoint.newest(tmp_path)
    assert error.value.exit_code == NO_CHECKPOINT


def test_another_shape_dtype_or_tree_is_refused_with_the_difference(tmp_path):
    path = checkpoint.save(tmp_path, 1, {"params": TREE}, {})
    wrong = abstract(TREE)
    wrong["layer"]["kernel"] = jax.ShapeDtypeStruct((3, 5), jnp.float32)
    wrong["layer"]["count"] = jax.ShapeDtypeStruct((), jnp.int8)
    wrong["extra"] = jax.ShapeDtypeStruct((), jnp.float32)
    with pytest.raises(UserError) as error:
        checkpoint.restore(path, "params", wrong)
    for part in ("layer.kernel is float32[3,4], expected float32[3,5]", "expected int8[]", "extra is missing"):
        assert part in str(error.value)


def test_a_step_that_is_deleted_while_it_is_read_is_one_line(tmp_path, monkeypatch):
    tree = {"w": jnp.ones(3)}
    checkpoint.save(tmp_path, 1, {"params": tree}, {})
    real = checkpoint.read_meta

    def read_meta(path):  # the last thing that is read before the arrays
        found = real(path)
        checkpoint.steps.remove(tmp_path, 1)
        return found

    monkeypatch.setattr(checkpoint, "read_meta", read_meta)
    with pytest.raises(UserError, match="1 was deleted while it was read") as caught:
        checkpoint.restore(tmp_path / "1", "params", abstract(tree))
    assert caught.value.exit_code == NO_CHECKPOINT


def test_temporary_folders_are_no_steps(tmp_path):
    checkpoint.save(tmp_path, 5, {"params": TREE}, {})
    (tmp_path / ".6.tmp-123").mkdir()
    (tmp_path / "6.orbax-checkpoint-tmp").mkdir()
    assert checkpoint.committed_steps(tmp_path) == [5]
