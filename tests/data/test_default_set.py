"""The embedded default data set is made once, whoever asks and however often it was interrupted."""

import concurrent.futures
import shutil

import pytest

from imagen_video_jax.data import default_set as subject
from imagen_video_jax.data.default_set import SETS, default_set
from imagen_video_jax.data.embed_captions import embed_captions
from imagen_video_jax.data.motion_shapes import write_motion_shapes
from imagen_video_jax.data.sources import open_source
from imagen_video_jax.text.embedding_cache import EmbeddingCache


@pytest.fixture
def renders(tmp_path, monkeypatch):
    """Splits that were rendered; the data set is as small as can be, in a user cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(SETS, "tiny", {"train": (2, 1), "validation": (1, 1), "size": (2, 16, 16)})
    rendered = []

    def write(folder, **options):
        rendered.append(options["split"])
        return write_motion_shapes(folder, **options, workers=1)

    monkeypatch.setattr(subject, "write_motion_shapes", write)
    return rendered


def test_every_caption_of_both_parts_is_embedded(renders):
    made = default_set("tiny")
    train, validation = open_source(made.train), open_source(made.validation)
    assert (len(train.videos), len(train.images), len(validation.videos), len(validation.images)) == (2, 1, 1, 1)
    assert EmbeddingCache.open(made.embeddings).missing(train.captions + validation.captions) == []


def test_two_that_ask_at_once_get_one_set_that_was_made_once(renders, capsys):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first, second = pool.map(default_set, ["tiny", "tiny"])
    assert first == second
    assert renders == ["train", "validation"]
    assert "waiting for another process" in capsys.readouterr().err


def test_an_interrupted_set_is_finished_without_drawing_a_file_again(renders, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(subject, "embed_data", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            default_set("tiny")
    root = subject.storage.user_cache() / "motion_shapes"
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.mp4")}
    made = default_set("tiny")
    assert len(before) == 3
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*.mp4")}
    assert len(EmbeddingCache.open(made.embeddings)) > 0


def test_a_lost_embedding_cache_is_made_again(renders):
    made = default_set("tiny")
    for path in made.embeddings.iterdir():
        path.unlink()
    assert len(EmbeddingCache.open(default_set("tiny").embeddings)) > 0


def test_embeddings_that_are_lost_in_part_or_were_made_for_other_data_are_completed(renders):
    made = default_set("tiny")
    captions = open_source(made.train).captions + open_source(made.validation).captions
    (shard,) = made.embeddings.glob("shard-*")
    shard.unlink()  # as the message about a damaged one says
    default_set("tiny")
    assert EmbeddingCache.open(made.embeddings).missing(captions) == []
    shutil.rmtree(made.embeddings)
    embed_captions(made.embeddings, ["a caption of other data"], subject.TextEncoder.minilm())
    default_set("tiny")
    assert EmbeddingCache.open(made.embeddings).missing(captions) == []
    assert renders == ["train", "validation"]


def test_the_tiny_set_stays_within_the_size_that_its_tests_can_afford():
    assert SETS["tiny"]["train"][0] <= 64
    assert SETS["tiny"]["train"][1] <= 32
