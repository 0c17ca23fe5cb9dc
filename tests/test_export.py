"""Export: a bundle gives the same pixels as its cascade, with and without this package, and a bad one is refused."""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imagen_video_jax import bundle, checkpoint, export, stablehlo, storage
from imagen_video_jax.cascade import Cascade
from imagen_video_jax.cascade_file import join, read_members
from imagen_video_jax.cli import main
from imagen_video_jax.diffusion.distillation import StudentConfig
from imagen_video_jax.errors import UserError
from imagen_video_jax.export import ExportRequest
from imagen_video_jax.stages.stage import Stage
from tests.stages.stage_kinds import smallest

FIRST = "1_base_16f_24x40"
SAMPLER = {"guidance": 1.0, "steps": 2}


class DrawnText:
    """A text encoder without a network: states drawn from the prompt, as long as it has words."""

    def __call__(self, prompts):
        length = max(len(prompt.split()) for prompt in prompts)
        text_BLD, mask_BL = np.zeros((len(prompts), length, 384), np.float32), np.zeros((len(prompts), length), bool)
        for row, prompt in enumerate(prompts):
            words = len(prompt.split())
            text_BLD[row, :words] = np.random.default_rng(list(prompt.encode())).normal(size=(words, 384))
            mask_BL[row, :words] = True
        return text_BLD, mask_BL


PROMPTS = ["a red circle", "a blue cube spins quickly"]


def write_stage(workdir, name, seed):
    """A training folder with random weights, all of them, in its newest checkpoint."""
    config = smallest(name)
    config = dataclasses.replace(config, sampler=dataclasses.replace(config.sampler, **SAMPLER))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: 0.1 * rng.normal(size=leaf.shape).astype(np.float32), Stage(config).network.abstract
    )
    encoder = {"encoder": "minilm", "fingerprint": "a" * 64, "width": 384, "max_length": 64, "weights": "/home/me/t5"}
    training = {"data": "/home/me/clips", "batch_size": 4, "image_batch_size": 2, "stage": dataclasses.asdict(config)}
    meta = {"config": training, "seconds": 7200.0, "encoder": encoder}
    checkpoint.save(workdir / "checkpoints", 7, {"params": params, "ema": params}, meta)
    row = {"step": 7, "kind": "held_out", "loss": 0.123}
    (workdir / "metrics.jsonl").write_text(json.dumps(row) + "\n")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """`cascade.json` of two stages and its bundle."""
    root = tmp_path_factory.mktemp("export")
    names = ("base_16f_24x40", "temporal_sr_32f_24x40")
    for seed, name in enumerate(names):
        write_stage(root / name, name, seed)
    join([str(root / name) for name in names], root / "cascade.json")
    export.export(root / "cascade.json", root / "bundle")
    return root


@pytest.fixture(scope="module")
def videos(world):
    """What the cascade itself samples."""
    return sampled(world / "cascade.json")


COMPILED = {}  # the same stages, whatever their weights were loaded from


def sampled(path, seed=3):
    cascade = Cascade.load(path)
    cascade._encoder, cascade._compiled = DrawnText(), COMPILED
    return cascade.sample(PROMPTS, seed=seed)


def test_a_bundle_gives_the_same_pixels(world, videos):
    assert videos.std() > 5
    np.testing.assert_array_equal(sampled(world / "bundle"), videos)
    np.testing.assert_array_equal(sampled(world / "bundle" / "cascade.json"), videos)


def test_a_bundle_says_which_weights_it_holds(world):
    sums = bundle._read_sums(world / "bundle")
    _, members = read_members(world / "bundle")
    assert [member.sha256 for member in members] == [
        sums[f"{name}/model.safetensors"] for name in (FIRST, "2_temporal_sr_32f_24x40")
    ]


def test_a_bundle_is_safetensors_json_and_a_card_that_name_no_path_of_this_machine(world):
    folder = world / "bundle"
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    stages = [FIRST, "2_temporal_sr_32f_24x40"]
    wanted = {f"{stage}/{name}" for stage in stages for name in ("config.json", "model.safetensors")}
    assert files == {"README.md", "cascade.json", "SHA256SUMS", *wanted}
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=False).returncode == 0
    arrays = load_file(folder / FIRST / "model.safetensors")
    stored = checkpoint.read_meta(checkpoint.newest(world / "base_16f_24x40" / "checkpoints"))["trees"]["ema"]
    assert {name: checkpoint.describe(array) for name, array in arrays.items()} == stored
    config = storage.read_json(folder / stages[1] / "config.json")
    assert config["input"]["stage"] == "base_16f_24x40"
    assert config["input"]["weights_sha256"] == storage.sha256_file(folder / FIRST / "model.safetensors")
    assert storage.read_json(folder / "cascade.json")["encoder"]["fingerprint"] == "a" * 64
    card = (folder / "README.md").read_text()
    for text in ("clips", "0.123", "a" * 64, "temporal_sr_32f_24x40", "2 |", "## Limits"):
        assert text in card
    assert not any("/home/me" in (folder / name).read_text() for name in files if not name.endswith(".safetensors"))


def test_a_bfloat16_bundle_holds_rounded_weights_in_half_the_bytes_and_samples(world, tmp_path):
    export.export(world / "cascade.json", tmp_path / "half", ExportRequest(dtype="bfloat16"))
    whole, half = (load_file(folder / FIRST / "model.safetensors") for folder in (world / "bundle", tmp_path / "half"))
    for name, array in whole.items():
        assert half[name].dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(half[name], array.astype(ml_dtypes.bfloat16))
    assert sampled(tmp_path / "half").shape == (2, 8, 6, 10, 3)


def test_weights_in_several_files_load_alike_and_are_handed_off(world, videos, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_LARGEST", 20_000)
    export.export(world / "bundle", tmp_path / "split")
    assert len(list((tmp_path / "split" / FIRST).glob("model-*-of-*.safetensors"))) > 1
    np.testing.assert_array_equal(sampled(tmp_path / "split"), videos)
    # The card and the configs of a bundle that was made of a bundle still say how it was trained.
    assert "0.123" in (tmp_path / "split" / "README.md").read_text()


def test_a_run_starts_from_the_weights_of_a_bundle(world):
    abstract = Stage(smallest("base_16f_24x40")).network.abstract
    wanted = checkpoint.restore(checkpoint.newest(world / "base_16f_24x40" / "checkpoints"), "ema", abstract)
    for path in ("bundle", f"bundle/{FIRST}", "base_16f_24x40"):
        given = bundle.initial_params(world / path, "base_16f_24x40", abstract)
        jax.tree.map(np.testing.assert_array_equal, given, wanted)
    with pytest.raises(UserError, match="holds no stage other; name the folder of one: 1_base"):
        bundle.initial_params(world / "bundle", "other", abstract)
    (world / "weights.pt").write_bytes(b"PK\3\4")
    with pytest.raises(UserError, match="is a pickle"):
        bundle.initial_params(world / "weights.pt", "other", abstract)


# Programs.

WITHOUT_PACKAGE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("imagen_video_jax", "flax", "orbax", "experiments"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
import runpy
script, sys.argv = sys.argv[1], sys.argv[1:]
runpy.run_path(script, run_name="__main__")
"""


def test_programs_give_the_same_videos_without_the_package(world, videos, tmp_path):
    pytest.importorskip("flatbuffers", reason="jax.export needs it: pip install flatbuffers")
    export.export(world / "cascade.json", tmp_path / "b", ExportRequest(programs=True))
    text_BLD, mask_BL = DrawnText()(PROMPTS)
    np.savez(tmp_path / "text.npz", embeddings=text_BLD, mask=mask_BL)
    command = [sys.executable, "-c", WITHOUT_PACKAGE, tmp_path / "b" / "sample.py", "text.npz", "out.npz", "3"]
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "XLA_FLAGS")}
    subprocess.run(list(map(str, command)), cwd=tmp_path, env=environment, check=True)
    with np.load(tmp_path / "out.npz") as file:
        made = file["videos"]
    # Another program, so other roundings: at most one grey level, and that seldom.
    difference = np.abs(made.astype(int) - videos)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3
    script = (tmp_path / "b" / "sample.py").read_text()
    assert "imagen_video_jax" not in script
    assert sampled(tmp_path / "b").shape == videos.shape
    with open(next((tmp_path / "b").glob("*/*.safetensors")), "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")
    refused = subprocess.run(list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert refused.returncode == 1
    assert refused.stderr.endswith("is damaged: it is not what SHA256SUMS says\n")
    assert "Traceback" not in refused.stderr


def test_a_denoiser_program_is_the_stage_within_1e_5_for_any_batch(world):
    pytest.importorskip("flatbuffers", reason="jax.export needs it: pip install flatbuffers")
    member = Cascade.load(world / "bundle").members[1]
    function, arguments = stablehlo._denoiser(member.stage, "float32")
    exported = jax.export.export(jax.jit(function), platforms=stablehlo.PLATFORMS)(*arguments.values())
    exported = jax.export.deserialize(exported.serialize())
    assert set(exported.platforms) == {"cpu", "cuda", "rocm", "tpu"}
    for size in (1, 3):
        rng = np.random.default_rng(size)
        drawn = [
            rng.normal(size=(size, *shape.shape[1:])).astype(shape.dtype) for shape in list(arguments.values())[1:]
        ]
        flat = checkpoint.flatten(member.params)
        np.testing.assert_allclose(exported.call(flat, *drawn), jax.jit(function)(flat, *drawn), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["base_16f_24x40", "temporal_sr_32f_24x40"])
def test_the_denoiser_of_a_student_takes_the_guidance_weight(name):
    config = smallest(name)
    network = dataclasses.replace(config.network, guidance=True)
    config = dataclasses.replace(config, network=network, student=StudentConfig(weights=(0.0, 20.0)))
    function, arguments = stablehlo._denoiser(Stage(config), "float32")
    assert list(arguments)[-1] == "guidance"
    given = [jax.ShapeDtypeStruct((2, *shape.shape[1:]), shape.dtype) for shape in list(arguments.values())[1:]]
    made = jax.eval_shape(function, arguments["weights"], *given)
    assert made.shape == (2, config.frames, config.height, config.width, 3)


# What is refused.


def copy_of(world, tmp_path) -> pathlib.Path:
    shutil.copytree(world / "bundle", tmp_path / "bundle")
    return tmp_path / "bundle"


def renew_sums(folder) -> None:
    """An attacker writes the checksums too."""
    (folder / "SHA256SUMS").unlink()
    export._write_sums(folder)


def edit(path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refusal(capsys, path, code) -> str:
    """The one line, and nothing beside it."""
    assert main(["sample", "--cascade", str(path), "--prompt", "x", "--out", str(path.parent / "out")]) == code
    text = capsys.readouterr().err.strip()
    assert text.startswith("error: ")
    assert "\n" not in text
    assert not (path.parent / "out").exists()
    return text


def test_any_flipped_bit_cut_or_missing_file_is_named(world, tmp_path, capsys):
    folder, rng = copy_of(world, tmp_path), np.random.default_rng(0)
    for name in ("cascade.json", f"{FIRST}/config.json", f"{FIRST}/model.safetensors", "SHA256SUMS"):
        good = (folder / name).read_bytes()
        for _ in range(4):
            damaged = bytearray(good)
            damaged[rng.integers(len(good))] ^= 1 << rng.integers(8)
            (folder / name).write_bytes(damaged)
            with pytest.raises(UserError) as error:
                bundle.read_description(folder)
            assert "\n" not in str(error.value)
        (folder / name).write_bytes(good[: len(good) // 2])
        with pytest.raises(UserError):
            read_members(folder)
        (folder / name).unlink()
        with pytest.raises(UserError, match=name):
            read_members(folder)
        (folder / name).write_bytes(good)
    read_members(folder)
    data = bytearray((folder / FIRST / "model.safetensors").read_bytes())
    data[-3] ^= 16
    (folder / FIRST / "model.safetensors").write_bytes(data)
    assert f"{FIRST}/model.safetensors is not what was exported" in refusal(capsys, folder, 5)


def test_the_card_is_free_and_files_of_a_hub_do_not_matter(world, tmp_path, capsys):
    folder = copy_of(world, tmp_path)
    (folder / "README.md").write_text("my own words")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    bundle.read_description(folder)
    assert not capsys.readouterr().err


HOSTILE = {
    "../x": lambda c: c["stages"][0].update(weights="../x.safetensors"),
    "/etc/passwd": lambda c: c["stages"][0].update(weights="/etc/passwd"),
    "no weights": lambda c: c["stages"][0].pop("weights"),
    "a number": lambda c: c["stages"][0].update(weights=7),
    "no stages": lambda c: c.update(stages="none"),
    "another version": lambda c: c.update(bundle=99),
    "another cascade version": lambda c: c.update(version=99),
    "another class": lambda c: c["stages"][0]["stage"].update(target="os.system"),
    "no config": lambda c: c["stages"][0].update(stage=None),
    "a stage too many": lambda c: c["stages"].append(c["stages"][0]),
    "another order": lambda c: c["stages"].reverse(),
    "a step of words": lambda c: c["stages"][0].update(step="two"),
    "an encoder of a later version": lambda c: c.update(encoder={"encoder": "t6"}),
    "an encoder that is a name": lambda c: c.update(encoder="minilm"),
    "an encoder of lists": lambda c: c.update(encoder={"encoder": ["minilm"]}),
    "an encoder of words": lambda c: c.update(encoder={"encoder": "minilm", "max_length": "64"}),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_description_is_refused_in_one_line(world, tmp_path, capsys, change):
    folder = copy_of(world, tmp_path)
    edit(folder / "cascade.json", change)
    renew_sums(folder)
    refusal(capsys, folder, 2)


def test_names_and_links_that_lead_out_are_refused(world, tmp_path, capsys):
    folder = copy_of(world, tmp_path)
    with open(folder / "SHA256SUMS", "a") as file:
        file.write(f"{'0' * 64}  ../../etc/passwd\n")
    assert "'../../etc/passwd', which is no file inside of it" in refusal(capsys, folder, 2)
    renew_sums(folder)
    (folder / FIRST / "model.safetensors").rename(tmp_path / "elsewhere")
    (folder / FIRST / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    assert "a link that leads out of it" in refusal(capsys, folder, 2)
    (tmp_path / "elsewhere").rename(folder / FIRST / "model.safetensors")
    (folder / "SHA256SUMS").rename(tmp_path / "elsewhere")
    (folder / "SHA256SUMS").symlink_to(tmp_path / "elsewhere")
    assert "a link that leads out of it: SHA256SUMS" in refusal(capsys, folder, 2)


def test_foreign_tensors_are_refused(world, tmp_path, capsys):
    folder = copy_of(world, tmp_path)
    path = folder / FIRST / "model.safetensors"
    arrays = load_file(path)
    (name, *_) = arrays
    for changed, says in (
        (arrays | {"../../x": np.zeros(3, np.float32)}, "'../../x' is not part of the model"),
        ({key: value for key, value in arrays.items() if key != name}, f"{name} is missing"),
        (arrays | {name: np.zeros(3, np.float32)}, "expected ["),
    ):
        save_file(changed, path)
        edit(folder / "cascade.json", lambda c: c["stages"][1].pop("input", None))
        renew_sums(folder)
        assert says in refusal(capsys, folder, 2)


@pytest.mark.parametrize(
    "head",
    [b"", b"\xff" * 8, (10**6).to_bytes(8, "little") + b"{", (2).to_bytes(8, "little") + b"[]",
     (5).to_bytes(8, "little") + b"{\"a\":", b"\x80\x04\x95garbage"],
    ids=["empty", "endless", "cut", "a list", "bad JSON", "a pickle"],
)  # fmt: skip
def test_a_malformed_header_is_refused(world, tmp_path, capsys, head):
    folder = copy_of(world, tmp_path)
    (folder / FIRST / "model.safetensors").write_bytes(head)
    edit(folder / "cascade.json", lambda c: c["stages"][1].pop("input"))
    renew_sums(folder)
    assert "cannot read weights" in refusal(capsys, folder, 2)


def test_a_base_that_was_exchanged_is_refused(world, tmp_path, capsys):
    folder = copy_of(world, tmp_path)
    path = folder / FIRST / "model.safetensors"
    save_file({name: array + 1 for name, array in load_file(path).items()}, path)
    renew_sums(folder)
    assert "was handed off from other weights" in refusal(capsys, folder, 2)


@pytest.mark.parametrize("name", ["model.pt", "model.ckpt", "model.pkl", "cascade.json"])
def test_a_pickle_is_refused_and_not_run(tmp_path, capsys, name):
    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    import pickle

    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    assert "is a pickle, which could run anything when read" in refusal(capsys, tmp_path / name, 2)
    assert main(["export", "--cascade", str(tmp_path / name), "--out", str(tmp_path / "b")]) == 2
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "b").exists()


# Writing.


def test_a_folder_that_is_there_is_left_alone_and_an_empty_one_is_filled(world, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    export.export(world / "cascade.json", tmp_path / "mine")
    before = hashlib.sha256((tmp_path / "mine" / "cascade.json").read_bytes()).hexdigest()
    assert main(["export", "--cascade", str(world / "cascade.json"), "--out", str(tmp_path / "mine")]) == 2
    assert "a bundle is written once" in capsys.readouterr().err
    assert hashlib.sha256((tmp_path / "mine" / "cascade.json").read_bytes()).hexdigest() == before


def test_a_full_disk_is_one_line_and_leaves_nothing(world, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_file", full)
    assert main(["export", "--cascade", str(world / "cascade.json"), "--out", str(tmp_path / "b")]) == 2
    assert "No space left on device; nothing of it is left" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_one_line(world, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["export", "--cascade", str(world / "cascade.json"), "--out", str(tmp_path / "file" / "b")]) == 2
    text = capsys.readouterr().err.strip()
    assert text.startswith("error: ")
    assert "\n" not in text


def test_what_a_killed_export_left_is_removed_by_the_next(world, tmp_path):
    left = tmp_path / ".b.tmp-1-abc"
    left.mkdir()
    (left / "part").write_text("half")
    export.export(world / "cascade.json", tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_scores_of_something_else_beside_a_cascade_are_left_alone(tmp_path):
    assert export._scores_beside(tmp_path) == {}
    for text in ("{", "[1]", "7", "{}", '{"fvd": 123.5}', '{"fvd": {"value": 1}}', '{"fvd": {"accuracy": null}}'):
        (tmp_path / "scores.json").write_text(text)
        assert export._scores_beside(tmp_path) == {}, text
    (tmp_path / "scores.json").write_text('{"colour": {"accuracy": 0.5, "of": 64}}')
    assert list(export._scores_beside(tmp_path).values()) == [{"colour right (share)": 0.5}]


def test_scores_and_words_of_ones_own_are_on_the_card(world, tmp_path, capsys):
    (tmp_path / "scores.json").write_text('{"fvd": 123.5, "notes": "64 videos"}')
    (tmp_path / "about.md").write_text("Licence: CC0.")
    request = ["--cascade", str(world / "cascade.json"), "--out", str(tmp_path / "b"), "--title", "Mine"]
    words = ["--scores", str(tmp_path / "scores.json"), "--about", str(tmp_path / "about.md")]
    assert main(["export", *request, *words]) == 0
    card = (tmp_path / "b" / "README.md").read_text()
    for text in ("# Mine", "| scores | fvd | 123.5 |", "Licence: CC0."):
        assert text in card
    (tmp_path / "scores.json").write_text("[1]")
    capsys.readouterr()
    assert main(["export", "--cascade", "x", "--out", "y", *words]) == 2
    assert "is no JSON object" in capsys.readouterr().err
