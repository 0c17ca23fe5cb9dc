"""CLIP equals transformers' on random weights, text and images, from file to unit vector."""

import json

import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from random_weights import flat, random_params, torch_or_skip

from imagen_video_jax import functional
from imagen_video_jax.errors import UserError
from imagen_video_jax.evaluation import clip
from imagen_video_jax.evaluation.clip import CLIPConfig, CLIPNetwork, TowerConfig

TINY = CLIPConfig(
    image=TowerConfig(width=24, layers=2, heads=3, feed_forward=40),
    text=TowerConfig(width=16, layers=2, heads=2, feed_forward=32),
    image_size=24,
    patch=8,
    vocabulary=40,
    positions=12,
    closing=39,
    embedding=20,
)
PUBLISHED = {
    "text_config": {"num_attention_heads": 2, "hidden_act": "quick_gelu", "eos_token_id": 39},
    "vision_config": {"num_attention_heads": 3, "hidden_act": "quick_gelu"},
}


def stored(params):
    """Params under the names and axes of the published files."""
    out = {}
    for name, array in flat(params).items():
        theirs, _ = clip._source(name)
        if name == "image.kernel":
            array = array.reshape(TINY.patch, TINY.patch, 3, -1).transpose(3, 2, 0, 1)
        elif name.endswith(("kernel", "projection")):
            array = array.T
        out[theirs] = np.ascontiguousarray(array)
    return out | {"logit_scale": np.float32(4.6)[None]}


def words_tokenizer():
    """Words of one letter; opening token 38, closing 39."""
    vocabulary = {chr(97 + i): i for i in range(26)} | {"[UNK]": 30, "<start>": 38, "<end>": 39}
    read = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    read.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    read.post_processor = tokenizers.processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 38), ("<end>", 39)]
    )
    return read


@pytest.fixture
def folder(tmp_path):
    params = random_params(functional.split(lambda rngs: CLIPNetwork(TINY)).abstract)
    safetensors.numpy.save_file(stored(params), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    words_tokenizer().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def frames_of(height, width, count=3):
    rng = np.random.default_rng(3)
    return rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def their_model(folder):
    torch = torch_or_skip()
    transformers = pytest.importorskip("transformers", reason="needs the parity extra: pip install -e .[parity]")
    text = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 12, "projection_dim": 20}
    text |= {"bos_token_id": 38, "eos_token_id": 39, "pad_token_id": 39}
    image = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
    image |= {"image_size": 24, "patch_size": 8, "projection_dim": 20}
    config = transformers.CLIPConfig(text_config=text, vision_config=image, projection_dim=20)
    model = transformers.CLIPModel(config).eval()
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    arrays["logit_scale"] = arrays["logit_scale"][0]
    state = {name: torch.tensor(array) for name, array in arrays.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("position_ids") for name in missing)
    return torch, transformers, model


def test_parity_with_transformers_on_random_weights(folder):
    torch, transformers, model = their_model(folder)
    ours = clip.load(folder)
    texts = ["a b c", "q", "a z e r t y u i o p q s d f g"]
    seen = clip.prepared(frames_of(40, 30), TINY.image_size)
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(ours.tokenize(texts), dtype=torch.long),
            pixel_values=torch.tensor(seen).permute(0, 3, 1, 2),
        )
    pairs = {
        "text": (ours.text_features(texts), out.text_embeds.numpy()),
        "image": (ours.image_features(frames_of(40, 30)), out.image_embeds.numpy()),
    }
    for name, (a, b) in pairs.items():
        difference = np.abs(a - b).max()
        print(f"{name}: largest difference to transformers {transformers.__version__}: {difference:.1e}")
        assert difference < 1e-4
    np.testing.assert_allclose(np.linalg.norm(pairs["image"][0], axis=1), 1, atol=1e-5)


def test_frames_are_prepared_as_transformers_does():
    torch_or_skip()
    reason = "needs the parity extra: pip install -e .[parity]"
    name = "transformers.models.clip.image_processing_pil_clip"
    processor = pytest.importorskip(name, reason=reason).CLIPImageProcessorPil()

    for height, width in ((48, 80), (301, 200), (224, 224)):
        frames = frames_of(height, width, 2)
        theirs = processor(list(frames), return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(clip.prepared(frames, 224), theirs, atol=1e-5)


def test_a_text_is_opened_closed_and_cut_to_the_positions(folder):
    ids = clip.load(folder).tokenize(["a b", "a b c d e f g h i j k l m n"])
    np.testing.assert_array_equal(ids[0], [38, 0, 1] + [39] * 9)
    np.testing.assert_array_equal(ids[1], [38, *range(10), 39])


def test_floats_bytes_and_batches_agree(folder, monkeypatch):
    monkeypatch.setattr(clip, "_BATCH", 2)
    network, frames = clip.load(folder), frames_of(40, 30, 3)
    features = network.image_features(frames)
    assert (features.shape, features.dtype) == ((3, 20), np.float32)
    np.testing.assert_allclose(network.image_features(frames / 127.5 - 1), features, atol=1e-5)
    np.testing.assert_allclose(network.image_features(frames[1:]), features[1:], atol=1e-5)
    assert network.text_features([]).shape == (0, 20)


def test_sizes_are_read_from_the_weights(folder):
    assert clip.load(folder).config == TINY


def test_files_that_are_missing_or_of_another_network_are_one_line(folder, tmp_path):
    with pytest.raises(UserError, match=r"weights of CLIP: model\.safetensors, tokenizer\.json .*huggingface\.co"):
        clip.load(tmp_path / "nowhere")
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json, which is missing"):
        clip.load(folder).text_features(["a"])
    short = dict(arrays)
    del short["vision_model.post_layernorm.bias"]
    safetensors.numpy.save_file(short, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"holds no CLIP: array vision_model\.post_layernorm\.bias is missing"):
        clip.load(folder)
    safetensors.numpy.save_file({"x": arrays["logit_scale"]}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"holds no CLIP: array vision_model\.embeddings\.patch_embedding"):
        clip.load(folder)
    poisoned = arrays | {"text_projection.weight": np.full_like(arrays["text_projection.weight"], np.nan)}
    safetensors.numpy.save_file(poisoned, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"array text_projection\.weight holds numbers that are not finite"):
        clip.load(folder)
