"""Prompts from a file into one .npz, captions of a data set into its cache, and a word on what was cut."""

import json
import multiprocessing
import signal
import time

import numpy as np
import pytest
from PIL import Image

from imagen_video_jax import storage
from imagen_video_jax.data.embed_captions import embed_captions, embed_data, embed_ids_to_npz, embed_prompts_to_npz
from imagen_video_jax.errors import UserError
from imagen_video_jax.text.embed import TextEncoder
from imagen_video_jax.text.embedding_cache import EmbeddingCache
from tests.data import slow_job
from tests.text.fake_encoder import FakeEncoder

LONG = "a red circle moves left, slowly and with great dignity"


@pytest.fixture(scope="module")
def encoder():
    return TextEncoder.minilm(max_length=7)


def test_the_npz_holds_a_row_per_prompt_in_order(encoder, tmp_path, capsys):
    prompts = ["a red circle", LONG, "a cat"]
    embed_prompts_to_npz(prompts, encoder, tmp_path / "new" / "prompts")
    with np.load(tmp_path / "new" / "prompts") as file:
        text_BLD, mask_BL = file["embeddings"], file["mask"]
    assert text_BLD.dtype == np.float32
    assert text_BLD.shape == (3, 7, 384)
    assert mask_BL.sum(1).tolist() == [5, 7, 4]
    np.testing.assert_allclose(text_BLD[2, :4], encoder(["a cat"])[0][0], atol=1e-5)
    assert "cut to 7 tokens" in (said := capsys.readouterr().out)
    assert "great dignity" in said


def test_every_caption_of_a_folder_is_embedded_and_cuts_are_counted(encoder, tmp_path, capsys):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    row = {"path": "a.png", "captions": ["a cat", LONG, LONG + " again"]}
    (tmp_path / "captions.jsonl").write_text(json.dumps(row) + "\n")
    assert embed_data([str(tmp_path)], tmp_path / "cache", encoder) == 3
    assert EmbeddingCache.open(tmp_path / "cache").lookup("a cat").shape == (4, 384)
    assert "2 captions are listed in" in (said := capsys.readouterr().err)
    assert "e.g. 'a red circle moves left, slowly and with' (cut to 7 tokens, lost ', slowly and" in said


def test_token_numbers_from_a_file_are_embedded_as_given(encoder, tmp_path):
    ids_BL = np.pad(encoder.tokenize(["a red circle", "a cat"]).ids_BL, ((0, 1), (0, 9)))
    np.save(tmp_path / "ids.npy", ids_BL)
    embed_ids_to_npz(tmp_path / "ids.npy", encoder, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as file:
        assert file["embeddings"].shape == (*ids_BL.shape, 384)
        np.testing.assert_array_equal(file["mask"], ids_BL > 0)
        np.testing.assert_allclose(file["embeddings"][1, :4], encoder(["a cat"])[0][0], atol=1e-5)


def test_a_file_that_holds_no_token_numbers_is_named(encoder, tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "many.npz", a=np.zeros(3))
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    np.save(tmp_path / "floats.npy", np.zeros((2, 2)))
    good = (tmp_path / "floats.npy").read_bytes()
    (tmp_path / "torn.npy").write_bytes(good.replace(b"(2, 2)", b"(2, (2"))
    (tmp_path / "huge.npy").write_bytes(good.replace(b"2), }" + b" " * 14, b"9" * 14 + b"2), }"))
    (tmp_path / "archive.npy").write_bytes(b"PK\x03\x04 cut")
    for name, says in (
        ("torn.npy", "torn.npy"),
        ("huge.npy", "huge.npy"),
        ("archive.npy", "archive.npy"),
        ("objects.npy", "Python objects"),
        ("many.npz", "is an archive"),
        ("cut.npy", "cut.npy"),
        ("missing.npy", "missing.npy"),
        ("floats.npy", "whole numbers"),
    ):
        with pytest.raises(UserError, match=says):
            embed_ids_to_npz(tmp_path / name, encoder, tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()


def test_captions_without_text_are_listed_and_do_not_stop_the_others(tmp_path):
    captions = ["good one", "", "  \n", "\x00\x07", "\ud800", "x" * 100_000, "tab\there", "half \udc80 broken"]
    assert embed_captions(tmp_path, captions, FakeEncoder()) == 4
    cache = EmbeddingCache.open(tmp_path)
    assert cache.missing(captions) == ["", "  \n", "\x00\x07", "\ud800"]
    rows = [json.loads(line) for line in (tmp_path / "problems.jsonl").read_text().splitlines()]
    assert [(row["caption"], row["reason"]) for row in rows] == [
        (caption, "it holds no text") for caption in ("", "  \n", "\x00\x07", "\ud800")
    ]


# Many processes, and what kills leave behind.

# Forked from one process that has imported everything: a start takes milliseconds.
PROCESSES = multiprocessing.get_context("forkserver")


def start_workers(count, folder, log):
    """Processes that begin at the same time, each once it is ready."""
    PROCESSES.set_forkserver_preload(["tests.data.slow_job"])
    barrier = PROCESSES.Barrier(count + 1)
    started = [PROCESSES.Process(target=slow_job.run, args=(folder, log, barrier)) for _ in range(count)]
    for process in started:
        process.start()
    barrier.wait(60)
    return started


def ended(process) -> int:
    process.join(60)
    return process.exitcode


def units_begun(log) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


def content_of(folder):
    """Every file, hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder, log = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("log") / "log"
    (process,) = start_workers(1, folder, log)
    assert ended(process) == 0
    assert units_begun(log) == 50
    assert len(content_of(folder)) == 50 + 3  # fingerprint, list of shards, problems: every caption was cut
    return content_of(folder)


def test_two_processes_share_the_work_and_leave_the_bytes_of_one(undisturbed, tmp_path):
    processes = start_workers(2, tmp_path / "cache", tmp_path / "log")
    assert [ended(process) for process in processes] == [0, 0]
    assert content_of(tmp_path / "cache") == undisturbed
    assert units_begun(tmp_path / "log") == 50, "no unit was embedded twice"


def test_kills_at_random_moments_cost_a_unit_each_and_no_byte(undisturbed, tmp_path):
    rng, kills = np.random.default_rng(), 0
    for _ in range(5):
        (process,) = start_workers(1, tmp_path / "cache", tmp_path / "log")
        time.sleep(rng.uniform(0, 0.25))
        process.kill()
        kills += ended(process) == -signal.SIGKILL
    (process,) = start_workers(1, tmp_path / "cache", tmp_path / "log")
    assert ended(process) == 0
    assert content_of(tmp_path / "cache") == undisturbed
    assert kills
    assert units_begun(tmp_path / "log") <= 50 + kills


def test_a_claim_of_the_dead_is_taken_over_and_their_rubbish_removed(tmp_path):
    (tmp_path / ".unit.claim").touch()
    (tmp_path / ".unit.tmp-1-abc").write_text("half")
    (tmp_path / ".other.tmp-1-abc").write_text("half")
    with storage.claim(tmp_path / "unit") as mine, storage.claim(tmp_path / "unit") as again:
        assert (mine, again) == (True, False)
    assert [path.name for path in tmp_path.iterdir()] == [".other.tmp-1-abc"]
