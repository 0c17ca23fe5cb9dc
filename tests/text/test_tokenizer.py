"""Prompts become the token numbers that the encoder was trained with, and nothing is cut in silence."""

import io

import numpy as np
import pytest
import sentencepiece
import tokenizers

from imagen_video_jax.errors import UserError
from imagen_video_jax.text.minilm_encoder import model_folder
from imagen_video_jax.text.tokenizer import SentencePieceTokenizer, WordPieceTokenizer

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


# T5's.

EXTRAS, ROWS = 100, 32128


@pytest.fixture(scope="module")
def t5(t5_vocabulary):
    return SentencePieceTokenizer(t5_vocabulary / "spiece.model", ROWS)


def ids_of(tokenizer, prompt, max_length=512):
    (ids_L,) = tokenizer([prompt], max_length).ids_BL
    return ids_L.tolist()


def test_t5_prompts_end_with_its_closing_token(t5):
    assert ids_of(t5, "Hello world") == [8774, 296, 1]
    tokens = t5(["Hello", "Hello world", ""], 512)
    assert tokens.ids_BL.tolist() == [[8774, 1, 0], [8774, 296, 1], [1, 0, 0]]
    assert tokens.mask_BL.sum(1).tolist() == [2, 3, 1]


@pytest.mark.parametrize(
    "prompt",
    [
        "A panda bear in a red hat, 35mm film; shot #3 (slow motion).",
        "  two  spaces\tand\nlines ",
        "Ünïcödé, 猫 and 😀",
        "Hello <extra_id_0> world<extra_id_99>.",
        "<extra_id_7><extra_id_100>",
        "control\x00 characters\x07 in here",
        "",
    ],
)
def test_t5_tokens_are_those_of_its_published_tokenizer(t5, t5_vocabulary, prompt):
    published = tokenizers.Tokenizer.from_file(str(t5_vocabulary / "tokenizer.json"))
    assert ids_of(t5, prompt) == published.encode(prompt).ids


def test_sentinels_are_numbered_down_from_the_last_id(t5):
    assert ids_of(t5, "<extra_id_0> <extra_id_99>") == [32099, 32000, 1]


def test_a_cut_t5_prompt_keeps_its_closing_token_and_the_loss_is_said(t5):
    prompt = "a red circle moves left, slowly, with a 猫"
    tokens = t5(["a red circle", prompt], 7)
    assert tokens.lost == ((prompt, ", slowly, with a 猫"),)
    assert tokens.ids_BL[1].tolist() == ids_of(t5, "a red circle moves left")
    assert t5(["a red circle moves left"], 7).lost == ()
    assert t5(["one two<extra_id_3> three"], 4).lost == (("one two<extra_id_3> three", "three"),)


def test_a_hundred_thousand_characters_and_broken_text_are_only_cut(t5):
    tokens = t5(["a red circle moves left " * 4200, "lone \ud800 surrogate"], 128)
    assert tokens.ids_BL.shape == (2, 128)
    assert len(tokens.lost) == 1
    assert tokens.ids_BL[1].any()


@pytest.mark.parametrize("rows", [128, 31999, 250112])
def test_the_vocabulary_of_other_weights_is_refused(t5_vocabulary, rows):
    with pytest.raises(UserError, match=f"32000 pieces, the weights {rows} rows"):
        SentencePieceTokenizer(t5_vocabulary / "spiece.model", rows)


def trained(path, **options):
    """A small SentencePiece file."""
    model = io.BytesIO()
    sentences = iter(["the quick brown fox jumps over the lazy dog", "a red circle moves left"] * 20)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences, model_writer=model, vocab_size=40, hard_vocab_limit=False, minloglevel=2, **options
    )
    path.write_bytes(model.getvalue())
    return path


def test_a_vocabulary_with_other_special_tokens_is_refused(tmp_path):
    with pytest.raises(UserError, match="is no T5 vocabulary: its padding and closing ids are -1 and 2"):
        SentencePieceTokenizer(trained(tmp_path / "llama.model"), 128)


def test_a_small_vocabulary_goes_with_small_weights(tmp_path):
    path = trained(tmp_path / "t5.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    ids_L = ids_of(SentencePieceTokenizer(path, 200), "a red circle <extra_id_0>")
    assert ids_L[-1] == 1
    assert max(ids_L) == ids_L[-2] == sentencepiece.SentencePieceProcessor(str(path)).get_piece_size() + EXTRAS - 1


def test_a_damaged_or_missing_vocabulary_is_named(tmp_path):
    (tmp_path / "spiece.model").write_bytes(b"nonsense")
    for name in ("spiece.model", "missing.model"):
        with pytest.raises(UserError, match=f"cannot read vocabulary .*{name}"):
            SentencePieceTokenizer(tmp_path / name, ROWS)
