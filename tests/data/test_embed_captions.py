"""Prompts from a file into one .npz, captions of a data set into its cache, and a word on what was cut."""

import json

import numpy as np
import pytest
from PIL import Image

from imagen_video_jax.data.embed_captions import embed_data, embed_prompts_to_npz
from imagen_video_jax.text.embed import TextEncoder
from imagen_video_jax.text.embedding_cache import EmbeddingCache

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
