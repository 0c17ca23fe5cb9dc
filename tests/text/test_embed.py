"""Embeddings mean something, and depend on the prompt alone: not on padding, company, order or batch size."""

import numpy as np
import pytest

from imagen_video_jax import storage
from imagen_video_jax.errors import UserError
from imagen_video_jax.text import embed
from imagen_video_jax.text.embed import TextEncoder

SHORT = "a red circle moves left"
LONG = "a tiny glossy blue triangle spins twice, stops for a moment, grows and then leaves the picture at the top right"


@pytest.fixture(scope="module")
def encoder():
    return TextEncoder.minilm()


def sentence_vectors(encoder, prompts):
    """Unit means over the tokens."""
    text_BLD, mask_BL = encoder(prompts)
    mean_BD = text_BLD.sum(1) / mask_BL.sum(1, keepdims=True)
    return mean_BD / np.linalg.norm(mean_BD, axis=1, keepdims=True)


def test_similar_prompts_are_closer_than_unrelated_ones(encoder):
    vectors = sentence_vectors(
        encoder, ["A cat sleeps on the sofa.", "A kitten naps on a couch.", "The stock market fell sharply today."]
    )
    similar, unrelated = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert similar > 0.6
    assert abs(unrelated) < 0.2


def test_padding_is_zero_and_changes_nothing(encoder):
    together_BLD, mask_BL = encoder([SHORT, LONG])
    (alone_LD,), (alone_mask_L,) = encoder([SHORT])
    assert mask_BL[0].sum() == alone_mask_L.sum() == len(alone_LD) == 7
    np.testing.assert_allclose(together_BLD[0, :7], alone_LD, atol=1e-5)
    assert not together_BLD[~mask_BL].any()


def test_company_order_and_batch_size_change_nothing(encoder):
    prompts = [SHORT, LONG, *(f"{number} green squares on a table" for number in range(9))]
    expected_BLD, _ = encoder(prompts)
    reordered_BLD, _ = encoder(prompts[::-1], batch_size=4)
    np.testing.assert_allclose(reordered_BLD[::-1], expected_BLD, atol=1e-5)


def test_a_prompt_is_cut_at_the_maximum_and_what_is_lost_is_said(encoder):
    shorter = TextEncoder.minilm(max_length=8)
    ((prompt, lost),) = shorter.tokenize([SHORT, LONG]).lost
    assert prompt == LONG
    assert lost.endswith("at the top right")
    text_BLD, _ = shorter([LONG])
    kept_BLD, _ = encoder([LONG.removesuffix(lost)])
    np.testing.assert_allclose(text_BLD, kept_BLD, atol=1e-5)


def test_token_numbers_are_embedded_as_given(encoder):
    ids_BL = np.zeros((3, 20), np.int64)
    ids_BL[:2, :7] = encoder.tokenize([SHORT]).ids_BL
    text_BLD, mask_BL = encoder.embed_ids(ids_BL)
    assert text_BLD.shape == (3, 20, 384)
    np.testing.assert_allclose(text_BLD[0, :7], encoder([SHORT])[0][0], atol=1e-5)
    assert mask_BL.sum(1).tolist() == [7, 7, 0]
    assert not text_BLD[2].any(), "a row of padding has no states"


@pytest.mark.parametrize(
    "ids_BL", [np.zeros(3, np.int32), np.ones((1, 2)), np.full((1, 2), 30522), np.ones((1, 513), int)]
)
def test_token_numbers_that_the_encoder_has_not_are_refused(encoder, ids_BL):
    with pytest.raises(UserError, match="ids"):
        encoder.embed_ids(ids_BL)


def test_no_prompts_give_no_rows(encoder):
    text_BLD, mask_BL = encoder([])
    assert (text_BLD.shape, mask_BL.shape) == ((0, 1, 384), (0, 1))


def test_progress_counts_to_the_number_of_prompts(encoder):
    counts = []
    encoder([SHORT] * 10, batch_size=4, progress=counts.append)
    assert counts == [4, 8, 10]


def test_the_fingerprint_changes_with_weights_tokenizer_name_and_length(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights, tokenizer = tmp_path / "weights", tmp_path / "tokenizer"
    weights.write_text("w")
    tokenizer.write_text("t")

    def fingerprint(name, max_length):
        return embed.fingerprint_of(name, [storage.remembered_sha256(f) for f in (weights, tokenizer)], max_length)

    seen = [fingerprint("minilm", 64), fingerprint("minilm", 32), fingerprint("t5", 64)]
    for file in (weights, tokenizer):
        file.write_text("changed")
        seen.append(fingerprint("minilm", 64))
    assert len(set(seen)) == 5


def test_a_file_is_not_hashed_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights = tmp_path / "weights"
    weights.write_text("w")
    first = storage.remembered_sha256(weights)
    monkeypatch.setattr(storage, "sha256_file", lambda path: pytest.fail("read again"))
    assert storage.remembered_sha256(weights) == first


@pytest.mark.parametrize("length", [2, 513])
def test_a_length_that_the_encoder_cannot_take_is_refused(length):
    with pytest.raises(UserError, match=f"max_length must be 3 to 512 tokens, got {length}"):
        TextEncoder.minilm(max_length=length)
