"""A caption finds its own embedding, however often the writer was killed and whoever else wrote."""

import concurrent.futures
import json
import multiprocessing.reduction
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from imagen_video_jax.data import embed_captions as job
from imagen_video_jax.data.embed_captions import embed_captions
from imagen_video_jax.errors import UserError
from imagen_video_jax.text import embedding_cache
from imagen_video_jax.text.embedding_cache import EmbeddingCache
from tests.text.fake_encoder import CAPTIONS, WIDTH, FakeEncoder, states_of


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(job, "UNIT", 8)


@pytest.fixture
def folder(tmp_path):
    embed_captions(tmp_path / "cache", CAPTIONS, FakeEncoder())
    return tmp_path / "cache"


def test_a_caption_finds_its_own_states_and_only_real_tokens(folder):
    cache = EmbeddingCache.open(folder, FakeEncoder().fingerprint)
    assert (len(cache), cache.width) == (len(CAPTIONS), WIDTH)
    for caption in CAPTIONS:
        np.testing.assert_array_equal(cache.lookup(caption), states_of(caption))
    assert cache.lookup("short").shape == (1, WIDTH)
    assert cache.lookup("short").dtype == np.float32


def test_what_a_reader_does_with_states_changes_nothing(folder):
    cache = EmbeddingCache.open(folder)
    cache.lookup("short")[:] = 0
    np.testing.assert_array_equal(cache.lookup("short"), states_of("short"))


def test_only_what_is_missing_is_computed_and_each_caption_once(folder):
    encoder, progress = FakeEncoder(), []
    count = embed_captions(
        folder, ["new one", *CAPTIONS, "new two", "new one"], encoder, progress=lambda *p: progress.append(p)
    )
    assert count == 2
    assert sorted(encoder.seen) == ["new one", "new two"]
    assert progress == [(2, 2)]
    assert EmbeddingCache.open(folder).missing(["other", "short", "new two", "other"]) == ["other"]


def test_a_caption_that_was_never_embedded_is_named_with_the_remedy(folder):
    with pytest.raises(UserError, match=r"caption 'a new thing' is not in .*run imagen-video embed"):
        EmbeddingCache.open(folder).lookup("a new thing")


def test_captions_longer_than_the_encoder_takes_are_reported_with_what_was_lost(tmp_path):
    caption = "one two three four five six seven"
    embed_captions(tmp_path, [caption, "one two"], FakeEncoder())
    (row,) = map(json.loads, (tmp_path / "problems.jsonl").read_text().splitlines())
    assert row == {"caption": caption, "reason": "cut to 5 tokens", "lost": "six seven"}


def test_the_cache_of_another_encoder_is_refused_for_reading_and_writing(folder):
    other = FakeEncoder(fingerprint="0" * 64)
    for attempt in (
        lambda: EmbeddingCache.open(folder, other.fingerprint),
        lambda: embed_captions(folder, ["x"], other),
    ):
        with pytest.raises(UserError, match=r"written by encoder fake f{12}, wanted is 0{12}"):
            attempt()


def test_a_shard_of_another_encoder_is_refused(folder, tmp_path):
    embed_captions(tmp_path / "other", ["x"], FakeEncoder(fingerprint="0" * 64))
    (shard,) = (tmp_path / "other").glob("shard-*")
    shard.rename(folder / shard.name)
    with pytest.raises(UserError, match=f"{shard.name} was written by encoder 0{{12}}, its cache by f{{12}}"):
        EmbeddingCache.open(folder)


def test_a_folder_that_is_no_cache_is_named(tmp_path):
    with pytest.raises(UserError, match="is no embedding cache"):
        EmbeddingCache.open(tmp_path)


def test_a_missing_shard_is_named_and_embedding_again_repairs_it(folder):
    lost = sorted(folder.glob("shard-*"))[2]
    lost.unlink()
    with pytest.raises(UserError, match=f"lacks 1 of its shards, {lost.name} among them"):
        EmbeddingCache.open(folder)
    assert embed_captions(folder, CAPTIONS, FakeEncoder()) in (5, 8)
    test_a_caption_finds_its_own_states_and_only_real_tokens(folder)


@pytest.mark.parametrize("part", ["empty", "header", "half", "last byte"])
def test_a_cut_shard_is_named(folder, part):
    shard = sorted(folder.glob("shard-*"))[1]
    size = shard.stat().st_size
    os.truncate(shard, {"empty": 0, "header": 20, "half": size // 2, "last byte": size - 1}[part])
    with pytest.raises(UserError, match=f"{shard.name} is damaged .*delete it"):
        EmbeddingCache.open(folder)


@pytest.mark.parametrize("text", ["3", "[[1]]", "{}", '"shard"', "[1]"])
def test_a_list_of_shards_that_is_none_is_named(folder, text):
    job_file = next(folder.glob("job-*"))
    job_file.write_text(text)
    for attempt in (lambda: EmbeddingCache.open(folder), lambda: embed_captions(folder, ["x"], FakeEncoder())):
        with pytest.raises(UserError, match=f"{job_file.name} is damaged"):
            attempt()
    job_file.unlink()  # as the message says
    embed_captions(folder, CAPTIONS, FakeEncoder())
    test_a_caption_finds_its_own_states_and_only_real_tokens(folder)


@pytest.mark.parametrize("text", ["[]", "{}", '{"encoder": 1, "fingerprint": 2, "width": "a"}'])
def test_a_fingerprint_of_another_shape_is_named(folder, text):
    (folder / "fingerprint.json").write_text(text)
    with pytest.raises(UserError, match=r"fingerprint\.json is damaged"):
        EmbeddingCache.open(folder, FakeEncoder().fingerprint)


def test_a_list_of_problems_that_is_no_text_is_written_anew(tmp_path):
    for captions, rows in ((["good", ""], 1), (["good"], 0)):
        (tmp_path / "problems.jsonl").write_bytes(b"\xff\n")
        embed_captions(tmp_path, captions, FakeEncoder())
        assert [path.read_text().count("\n") for path in tmp_path.glob("problems.jsonl")] == [1] * rows


def test_a_folder_of_training_does_not_become_a_cache(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="is a folder of imagen-video train"):
        embed_captions(tmp_path, ["x"], FakeEncoder())
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_every_flipped_byte_is_found_and_its_shard_named(tmp_path):
    embed_captions(tmp_path, ["one caption here", "and another"], FakeEncoder())
    (shard,) = tmp_path.glob("shard-*")
    whole = shard.read_bytes()
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    begin = len(whole) - max(header[name]["data_offsets"][1] for name in embedding_cache.DTYPES)
    for position in range(begin, len(whole), 3):
        damaged = bytearray(whole)
        damaged[position] ^= 16
        shard.write_bytes(damaged)
        with pytest.raises(UserError, match=shard.name):
            cache = EmbeddingCache.open(tmp_path)
            cache.lookup("one caption here")
            cache.lookup("and another")


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from imagen_video_jax.data import embed_captions as job
from tests.text.fake_encoder import CAPTIONS, FakeEncoder
job.UNIT = 8
replace, calls = os.replace, []
def replace_or_die(*arguments):
    calls.append(arguments)
    if len(calls) == 4:  # fingerprint.json, two shards, and a third that is written but not in place
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*arguments)
os.replace = replace_or_die
job.embed_captions({folder!r}, CAPTIONS, FakeEncoder())
"""


def test_a_writer_killed_in_the_middle_goes_on_where_it_was(tmp_path):
    script = KILLED.format(tests=str(pathlib.Path(__file__).parent.parent.parent), folder=str(tmp_path / "cache"))
    code = subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode
    assert code == -signal.SIGKILL
    left = [path.name for path in (tmp_path / "cache").iterdir()]
    assert sum(name.startswith("shard-") for name in left) == 2
    assert any(".tmp-" in name for name in left), "the third was being written"
    assert len(EmbeddingCache.open(tmp_path / "cache")) == 16
    assert embed_captions(tmp_path / "cache", CAPTIONS, FakeEncoder()) == len(CAPTIONS) - 16
    test_a_caption_finds_its_own_states_and_only_real_tokens(tmp_path / "cache")


def test_writers_that_overlap_leave_one_good_cache(tmp_path):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        parts = [CAPTIONS[begin:] + CAPTIONS[:begin] for begin in range(0, 40, 10)]
        list(pool.map(lambda part: embed_captions(tmp_path, part, FakeEncoder()), parts))
    cache = EmbeddingCache.open(tmp_path)
    for caption in CAPTIONS:
        np.testing.assert_array_equal(cache.lookup(caption), states_of(caption))


def test_readers_in_threads_agree_although_few_shards_are_mapped_at_once(folder, monkeypatch):
    monkeypatch.setattr(embedding_cache, "_MAPPED", 2)
    cache = EmbeddingCache.open(folder)
    expected = {caption: states_of(caption) for caption in CAPTIONS}

    def read(seed):
        order = np.random.default_rng(seed).permutation(CAPTIONS)
        return all(np.array_equal(cache.lookup(str(c)), expected[str(c)]) for c in order)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(16)))


def test_a_cache_can_be_sent_to_another_process(folder):
    cache = EmbeddingCache.open(folder)
    again = multiprocessing.reduction.ForkingPickler.loads(multiprocessing.reduction.ForkingPickler.dumps(cache))
    np.testing.assert_array_equal(again.lookup("short"), cache.lookup("short"))


def test_twenty_thousand_lookups_take_less_than_a_second(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "UNIT", 1000)
    captions = [f"{number}" for number in range(5000)]
    embed_captions(tmp_path, captions, FakeEncoder())
    cache = EmbeddingCache.open(tmp_path)
    for caption in captions:
        cache.lookup(caption)
    begin = time.process_time()
    for caption in captions:
        cache.lookup(caption)
    assert time.process_time() - begin < 0.25
