"""`imagen-video evaluate --real DIR --generated DIR`: any folders of videos, numbers alone on stdout."""

import json
import shutil

import numpy as np
import pytest

from imagen_video_jax.cli import main
from imagen_video_jax.data.motion_shapes import write_motion_shapes
from imagen_video_jax.errors import FAILED, UserError
from imagen_video_jax.evaluation import folders, frechet, metrics, video_folders
from imagen_video_jax.evaluation.features import Extractor, FeatureStore
from imagen_video_jax.video.files import write_video

PIXELS = "colour_drift,flicker,motion"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Labelled clips, and others that are smaller and shorter."""
    root = tmp_path_factory.mktemp("world")
    write_motion_shapes(root / "real", clips=4, images=1, seed=0, frames=8, height=48, width=80, workers=1)
    write_motion_shapes(root / "other", clips=3, images=0, seed=1, frames=6, height=24, width=40, workers=1)
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def evaluate(*arguments) -> int:
    return main(["evaluate", *map(str, arguments)])


def measured(capsys, *arguments) -> dict:
    capsys.readouterr()
    assert evaluate(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_one_object_of_plain_numbers_is_alone_on_stdout(world, capsys):
    found = measured(capsys, "--real", world / "real", "--generated", world / "other", "--metrics", PIXELS)
    for name in PIXELS.split(","):
        low, high = found[f"{name}_interval"]
        assert isinstance(found[name], float)
        assert low <= found[name] <= high
    assert (found["real_videos"], found["generated_videos"]) == (4, 3)
    assert any("48x80" in note and "24x40" in note for note in found["notes"])


def test_frozen_frames_are_seen_without_any_weights(world, tmp_path, capsys):
    (tmp_path / "frozen").mkdir()
    for item in video_folders.list_videos(str(world / "real"), "real"):
        first = item.read().frames_THWC[:1]
        write_video(tmp_path / "frozen" / item.name.replace("clips/", ""), np.repeat(first, 8, axis=0), fps=24)
    found = measured(capsys, "--real", world / "real", "--generated", tmp_path / "frozen", "--metrics", "motion")
    assert found["motion"] < 0.1 < found["motion_real_interval"][0]


def test_the_judge_reads_labelled_clips_and_names_what_it_lacks(world, tmp_path, capsys):
    found = measured(capsys, "--generated", world / "real", "--metrics", "judge")
    assert found["judge_colour"] == 1.0
    assert 0.5 <= found["judge"] <= min(found[f"judge_{name}"] for name in ("colour", "shape", "motion"))
    (tmp_path / "bare").mkdir()
    shutil.copy(next((world / "real" / "clips").glob("*.mp4")), tmp_path / "bare")
    assert evaluate("--generated", tmp_path / "bare", "--metrics", "judge") == 2
    assert "judge needs motion_shapes labels" in line_of(capsys)


def test_the_scorer_finds_the_captions_of_clips_and_not_those_of_others(world, capsys):
    names = "scorer_score,scorer_r_precision"
    found = measured(capsys, "--generated", world / "real", "--metrics", names, "--pool", "4")
    assert found["scorer_r_precision"] >= 0.75
    assert 50 < found["scorer_score"] <= 100
    assert "scorer_r_precision_real" not in found
    beside = measured(
        capsys, "--real", world / "real", "--generated", world / "real", "--metrics", names, "--pool", "4"
    )
    assert beside["scorer_r_precision_real"] == found["scorer_r_precision"]


def line_of(capsys) -> str:
    text = capsys.readouterr().err.strip()
    assert text.startswith("error: ")
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--generated", "{real}", "--metrics", "fdv"], "unknown metric 'fdv'"),
        (["--generated", "{real}", "--metrics", ""], "name at least one metric; known are"),
        (["--generated", "{real}"], "known are fvd"),
        (["--real", "{real}", "--metrics", "motion"], "or --generated DIR (and --real DIR"),
        (["--generated", "{empty}", "--metrics", "motion"], "holds no videos"),
        (["--generated", "{empty}/no", "--metrics", "motion"], "no such file or folder"),
        (["--generated", "{real}/images", "--metrics", "motion"], "only 1 images"),
        (["--generated", "{real}", "--metrics", "motion", "--frames", "0"], "--frames must be at least 2, got 0"),
        (["--generated", "{real}", "--metrics", "motion", "--config.steps=1"], "--config.steps=1"),
        (["--config", "x.py", "--workdir", "{empty}", "--json", "--frames", "16"], "not --json, --frames; real videos"),
        (["--config", "x.py", "--workdir", "{empty}", "--pool", "0", "--i3d", "x"], "not --pool, --i3d; real videos"),
    ],
)
def test_wrong_requests_are_one_line_and_exit_2(world, tmp_path, capsys, arguments, says):
    (tmp_path / "empty").mkdir()
    filled = [text.format(real=world / "real", empty=tmp_path / "empty") for text in arguments]
    assert evaluate(*filled) == 2
    assert says in line_of(capsys)


def test_unreadable_videos_are_left_out_and_counted(world, tmp_path, capsys):
    shutil.copytree(world / "other" / "clips", tmp_path / "some")
    (tmp_path / "some" / "broken.mp4").write_bytes(b"no video at all")
    (tmp_path / "some" / "gone.mp4").symlink_to("nowhere")
    capsys.readouterr()
    assert evaluate("--generated", tmp_path / "some", "--metrics", "motion", "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["generated_skipped"] == 2
    assert printed.err.count("\n") == 1
    assert "2 of 5 generated videos are left out, the first:" in printed.err
    assert "broken.mp4" in printed.err
    (tmp_path / "all").mkdir()
    shutil.copy(tmp_path / "some" / "broken.mp4", tmp_path / "all")
    assert evaluate("--generated", tmp_path / "all", "--metrics", "motion") == 4
    assert "none of the 1 generated videos can be read" in line_of(capsys)


def test_lines_of_captions_that_cannot_be_used_are_counted(world, tmp_path, capsys):
    shutil.copytree(world / "other", tmp_path / "some")
    with (tmp_path / "some" / "captions.jsonl").open("a") as file:
        file.write("{no json\n")
    capsys.readouterr()
    assert evaluate("--generated", tmp_path / "some", "--metrics", "motion") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: 1 lines of ")
    assert "captions.jsonl cannot be used, the first: line 4: " in line


def counting(calls, width=3, frames=4):
    """An extractor that remembers what it was shown."""

    def apply(video_THWC):
        calls.append(video_THWC.shape)
        return video_THWC.mean((0, 1, 2))[None, :width]

    return Extractor("counting", "1", frames, apply)


def test_a_killed_run_goes_on_and_no_video_is_read_twice(world, tmp_path):
    calls, store = [], FeatureStore(tmp_path / "features")
    items = video_folders.list_videos(str(world / "real"), "real")

    class Killed(Exception):
        pass

    def kill(what, done, total):
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        folders.read_set("real", items, {"counting": counting(calls)}, store, kill)
    whole = folders.read_set("real", items, {"counting": counting(calls)}, store, lambda *_: None)
    assert len(calls) == 4
    assert [shape[0] for shape in calls] == [4] * 4
    # The same content in another place is known.
    shutil.copytree(world / "real", tmp_path / "copy")
    again = video_folders.list_videos(str(tmp_path / "copy"), "real")
    copied = folders.read_set("real", again, {"counting": counting(calls)}, store, lambda *_: None)
    assert len(calls) == 4
    np.testing.assert_array_equal(whole.videos.stacked("counting"), copied.videos.stacked("counting"))
    # A damaged array is made again, another network reads again.
    next(store.folder.glob("counting*/*.npy")).write_bytes(b"half")
    folders.read_set("real", items, {"counting": counting(calls)}, store, lambda *_: None)
    assert len(calls) == 5
    other = Extractor("counting", "2", 4, counting(calls).apply)
    folders.read_set("real", items, {"counting": other}, store, lambda *_: None)
    assert len(calls) == 9


def test_features_with_any_flipped_bit_or_without_a_checksum_are_as_good_as_gone(tmp_path):
    store, array = FeatureStore(tmp_path), np.arange(6, dtype=np.float32).reshape(2, 3)
    store.put("pixels", "a", array)
    file = tmp_path / "pixels" / "a.npy"
    intact = file.read_bytes()
    np.testing.assert_array_equal(store.get("pixels", "a"), array)
    for bit in range(8 * len(intact)):
        damaged = bytearray(intact)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        assert store.get("pixels", "a") is None, bit
    assert not store.has("pixels", "a")
    np.save(file, array)  # as an earlier version kept it
    assert not store.has("pixels", "a")


def test_a_metric_that_is_not_finite_is_refused_by_its_name():
    videos = metrics.VideoSet({"pixels": [np.array([[0.0, 0.0, np.nan]])]})
    assert metrics.measure("flicker", None, videos, metrics.Options())["flicker"] == 0.0
    with pytest.raises(UserError, match="motion is nan, not a finite number") as caught:
        metrics.measure("motion", None, videos, metrics.Options())
    assert caught.value.exit_code == FAILED


def test_features_that_are_not_finite_name_the_video(world, tmp_path):
    nan = Extractor("nan", "1", 0, lambda video_THWC: np.full((1, 2), np.nan, np.float32))
    items = video_folders.list_videos(str(world / "other"), "generated")
    with pytest.raises(Exception, match=r"000000\.mp4: its nan features hold NaN"):
        folders.read_set("generated", items, {"nan": nan}, FeatureStore(tmp_path), lambda *_: None)


def test_a_folder_of_samples_holds_what_samples_jsonl_lists(world, tmp_path):
    shutil.copytree(world / "other" / "clips", tmp_path / "out")
    shutil.copytree(world / "other" / "clips", tmp_path / "out" / "stages" / "1_base")
    assert len(video_folders.list_videos(str(tmp_path / "out"), "generated")) == 6
    row = {"prompt": "a red  circle", "number": 0, "seed": 0, "path": "000001.mp4"}
    (tmp_path / "out" / "samples.jsonl").write_text(json.dumps(row) + "\n")
    (item,) = video_folders.list_videos(str(tmp_path / "out"), "generated")
    assert (item.name, item.caption) == ("000001.mp4", "a red circle")


@pytest.mark.parametrize("row", ['{"path": 5, "prompt": "x"}', '{"path": "000001.mp4", "prompt": 5}'])
def test_a_samples_jsonl_of_something_else_is_named(tmp_path, row):
    (tmp_path / "samples.jsonl").write_text(row + "\n")
    with pytest.raises(UserError, match=r"samples\.jsonl cannot be read: .* path and prompt are texts, got"):
        video_folders.list_videos(str(tmp_path), "generated")


def with_fake(name, extractor, world, tmp_path, metrics, **sets):
    """The metrics with a small stand-in for a network."""
    store = FeatureStore(tmp_path / "features")
    paths = {"real": str(world / "real"), "generated": str(world / "other")} | sets
    return folders.evaluate_folders(paths["real"], paths["generated"], metrics, {name: extractor}, store=store)


def test_distances_of_a_set_and_itself_are_zero_and_too_few_videos_are_said(world, tmp_path):
    def apply(video_THWC):
        return video_THWC[0, ::12, ::12].reshape(1, -1).astype(np.float32)

    extractor = Extractor("i3d", "1", 8, apply)
    same = with_fake("i3d", extractor, world, tmp_path, ["fvd", "kvd"], generated=str(world / "real"))
    assert same["fvd"] < 1e-3
    assert same["kvd"] < 1e-3
    assert same["fvd_interval"][0] <= same["fvd"] <= same["fvd_interval"][1]
    assert any("fvd: 4 features are fewer than their" in note and "biased upwards" in note for note in same["notes"])


def test_statistics_of_a_real_set_are_computed_once_and_a_damaged_file_again(world, tmp_path, monkeypatch):
    def apply(video_THWC):
        return video_THWC[0, ::12, ::12].reshape(1, -1).astype(np.float32)

    computed, real = [], frechet.symmetric_root

    def counted(S_DD):
        computed.append(S_DD.shape)
        return real(S_DD)

    monkeypatch.setattr(frechet, "symmetric_root", counted)
    extractor = Extractor("i3d", "1", 0, apply)
    first = with_fake("i3d", extractor, world, tmp_path, ["fvd"], generated=str(world / "real"))
    assert len(computed) == 2
    shutil.copytree(world / "real", tmp_path / "elsewhere")
    again = with_fake(
        "i3d", extractor, world, tmp_path, ["fvd"], real=str(tmp_path / "elsewhere"), generated=str(world / "real")
    )
    assert len(computed) == 3, "of the generated set alone"
    assert again["fvd"] == first["fvd"]
    (file,) = (tmp_path / "features" / "statistics").rglob("*.safetensors")
    assert file.parent.name == extractor.key
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    assert with_fake("i3d", extractor, world, tmp_path, ["fvd"], generated=str(world / "real"))["fvd"] == first["fvd"]
    assert len(computed) == 5
    with_fake("i3d", extractor, world, tmp_path, ["fvd"], real=str(world / "other"), generated=str(world / "other"))
    assert len(computed) == 7, "another set has its own"


def test_videos_that_are_too_short_for_a_network_are_slowed_down_and_this_is_said(world, tmp_path):
    calls = []
    found = with_fake("i3d", counting(calls, frames=8), world, tmp_path, ["fvd"])
    assert {shape[0] for shape in calls} == {8}
    assert found["fvd"] > 0
    assert "counting: generated videos of 6 frames are slowed down to 8" in found["notes"]


def test_text_metrics_read_captions_beside_the_videos(world, tmp_path):
    captions = [item.caption for item in video_folders.list_videos(str(world / "real"), "real")]
    vectors = {caption: np.eye(8)[i] for i, caption in enumerate(dict.fromkeys(captions))}
    answers = iter([vectors[caption] for caption in captions])
    extractor = Extractor(
        "clip",
        "1",
        4,
        lambda video_THWC: next(answers)[None],
        lambda texts: np.stack([vectors[text] for text in texts]),
    )
    metrics = ["clip_score", "clip_r_precision"]
    found = with_fake("clip", extractor, world, tmp_path, metrics, generated=str(world / "real"), real=None)
    assert found["clip_score"] == pytest.approx(100)
    assert found["clip_r_precision"] == 1.0
    assert found["clip_r_precision_pool"] == 4
    assert any("found among 4, not 100" in note for note in found["notes"])


def test_colour_shift_is_of_files_of_the_same_name(world, tmp_path, capsys):
    (tmp_path / "up").mkdir()
    for item in video_folders.list_videos(str(world / "other"), "real"):
        video = item.read()
        brighter = np.clip(video.frames_THWC.repeat(2, 1).repeat(2, 2).astype(int) + 12, 0, 255).astype(np.uint8)
        write_video(tmp_path / "up" / item.name.replace("clips/", ""), brighter, fps=video.fps)
    request = ["--real", world / "other", "--generated", tmp_path / "up", "--metrics", "colour_shift"]
    assert 5 < measured(capsys, *request)["colour_shift"] < 12 * np.sqrt(3) + 1
    assert measured(capsys, "--real", world / "other", *request[2:])["real_videos"] == 3
    (tmp_path / "named").mkdir()
    shutil.copy(tmp_path / "up" / "000000.mp4", tmp_path / "named" / "z.mp4")
    assert evaluate("--real", world / "other", "--generated", tmp_path / "named", "--metrics", "colour_shift") == 2
    assert "pairs are files of the same name" in line_of(capsys)


def test_missing_weights_are_one_line_that_says_where_people_get_them(world, capsys):
    for metric, says in (("fid", "--inception FILE"), ("clip_score", "--clip FOLDER")):
        assert evaluate("--real", world / "real", "--generated", world / "other", "--metrics", metric) == 2
        assert says in line_of(capsys)
