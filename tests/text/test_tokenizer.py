"""Prompts become the token numbers that the encoder was trained with, and nothing is cut in silence."""

import numpy as np
import pytest

from imagen_video_jax.errors import UserError
from imagen_video_jax.text.minilm_encoder import model_folder
from imagen_video_jax.text.tokenizer import WordPieceTokenizer

OPEN, CLOSE = 101, 102  # [CLS], [SEP]


@pytest.fixture(scope="module")
def tokenizer():
    return WordPieceTokenizer(model_folder() / "tokenizer.json")


def test_a_prompt_is_enclosed_in_the_opening_and_closing_token(tokenizer):
    tokens = tokenizer(["Hello"], 64)
    assert tokens.ids_BL.tolist() == [[OPEN, 7592, CLOSE]]
    assert (tokens.ids_BL.dtype, tokens.mask_BL.dtype) == (np.int32, np.bool_)
    assert tokens.lost == ()


def test_shorter_prompts_are_padded_with_zero_and_masked(tokenizer):
    tokens = tokenizer(["hello", "a red circle moves left"], 64)
    assert tokens.mask_BL.tolist() == [[True] * 3 + [False] * 4, [True] * 7]
    assert not tokens.ids_BL[~tokens.mask_BL].any()


def test_a_cut_prompt_is_reported_with_what_was_lost(tokenizer):
    prompt = "a red circle moves left, slowly and with great dignity"
    tokens = tokenizer(["a red circle", prompt], 7)
    assert tokens.lost == ((prompt, ", slowly and with great dignity"),)
    assert tokens.ids_BL[1].tolist() == tokenizer(["a red circle moves left"], 64).ids_BL[0].tolist()


def test_a_prompt_that_just_fits_is_not_cut(tokenizer):
    assert tokenizer(["a red circle moves left"], 7).lost == ()
    assert tokenizer(["a red circle moves left"], 6).lost == (("a red circle moves left", "left"),)


def test_an_empty_prompt_and_no_prompt_have_a_shape(tokenizer):
    assert tokenizer([""], 64).ids_BL.tolist() == [[OPEN, CLOSE]]
    assert tokenizer([], 64).ids_BL.shape == (0, 1)


def test_case_and_accents_make_no_difference(tokenizer):
    plain, dressed = tokenizer(["a cafe in paris", "A Café in PARIS"], 64).ids_BL
    assert plain.tolist() == dressed.tolist()


def test_a_damaged_tokenizer_file_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        WordPieceTokenizer(tmp_path / "tokenizer.json")
