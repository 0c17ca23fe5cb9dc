"""Sampling jobs: they go on, seeds of their own, spread over devices, frames that are given."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from imagen_video_jax import sampling
from imagen_video_jax.cascade import Cascade, changed_sampler, fit_length
from imagen_video_jax.cascade_file import Member
from imagen_video_jax.errors import UserError
from imagen_video_jax.partitioning import make_mesh
from imagen_video_jax.sampling import SampleRequest, sample_with
from imagen_video_jax.stages.stage import Stage
from imagen_video_jax.text.tokenizer import Tokens
from imagen_video_jax.video.files import read_video, write_video
from imagen_video_jax.video.frames import to_uint8
from tests.stages.stage_kinds import NAMES, smallest

PROMPTS = ("a red circle", "a blue square", "a green star")


class Encoder:
    """Noise that belongs to the length of a prompt; a token a word."""

    max_length = 24

    def __call__(self, prompts):
        rngs = [np.random.default_rng(len(prompt)) for prompt in prompts]
        states = np.stack([rng.normal(size=(24, 384)) for rng in rngs])
        return states.astype(np.float32), np.ones((len(prompts), 24), bool)

    def tokenize(self, prompts, max_length):
        words = [(prompt, prompt.split(" ")) for prompt in prompts]
        lost = tuple((prompt, " ".join(own[max_length - 1 :])) for prompt, own in words if len(own) >= max_length)
        return Tokens(np.zeros((len(prompts), 1)), np.ones((len(prompts), 1)), lost)


encoder = Encoder()


@pytest.fixture(scope="module")
def cascade():
    """An untrained base of 4 frames of 6x10 and a temporal stage that doubles them."""
    members = []
    for name in NAMES[:2]:
        stage = Stage(smallest(name))
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda a, rng=rng: rng.normal(0, 0.1, a.shape).astype(np.float32), stage.network.abstract)
        members.append(Member(stage, params, name, "0"))
    return Cascade(members, encoder, mesh=make_mesh())


def request(**changes):
    return SampleRequest(**{"prompts": PROMPTS, "batch": 8, "steps": (2,), "guidance": (0.0,), **changes})


def run(cascade, out, **changes):
    return sample_with(cascade, request(**changes), out, name="test")


def test_a_killed_job_goes_on_with_what_is_missing_and_another_job_starts_anew(cascade, tmp_path, monkeypatch):
    run(cascade, tmp_path / "whole", num=6)
    made, make = [], sampling._Run.make

    def killed(self, out, chunk, *rest):
        make(self, out, chunk, *rest)
        made.append([job.file for job in chunk])
        if len(made) == 1:
            (out / chunk[-1].file).unlink()  # the kill came before the last file of the chunk
            raise MemoryError

    monkeypatch.setattr(sampling._Run, "make", killed)
    with pytest.raises(MemoryError):
        run(cascade, tmp_path / "parts", num=6)
    rows = run(cascade, tmp_path / "parts", num=6)
    assert [len(files) for files in made] == [8, 8, 8, 2]
    text = (tmp_path / "parts" / "samples.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == rows
    assert text == (tmp_path / "whole" / "samples.jsonl").read_text()
    for row in rows:
        assert (tmp_path / "parts" / row["path"]).read_bytes() == (tmp_path / "whole" / row["path"]).read_bytes()
    run(cascade, tmp_path / "parts", num=6)
    assert len(made) == 4
    run(cascade, tmp_path / "parts", num=6, seed=1)
    assert len(made) == 7


def files_below(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {".lock"}


def test_a_stage_of_the_same_weights_that_samples_otherwise_is_another_job(cascade, tmp_path, capsys):
    run(cascade, tmp_path, stop_after="1")
    first = (tmp_path / "0000-000.mp4").read_bytes()
    base, *rest = cascade.members
    sampler = dataclasses.replace(base.stage.config.sampler, name="ancestral")
    stage = Stage(dataclasses.replace(base.stage.config, sampler=sampler))
    changed = Cascade([dataclasses.replace(base, stage=stage), *rest], encoder, mesh=make_mesh())
    capsys.readouterr()
    run(changed, tmp_path, stop_after="1")
    assert f"note: 3 videos of another request in {tmp_path} are replaced" in capsys.readouterr().err
    assert (tmp_path / "0000-000.mp4").read_bytes() != first


def test_nothing_of_another_job_is_left_in_a_jobs_folder(cascade, tmp_path):
    def kept(**changes):
        return sample_with(cascade, request(stop_after="1", **changes), tmp_path, name="test", stage_videos=stages)

    stages = tmp_path / "stages"
    kept()
    (folder,) = stages.iterdir()
    first = (folder / "0000-000.mp4").read_bytes()
    # What a kill leaves: videos that samples.jsonl does not list yet, and a part of one; and what is not ours.
    for name in ("0007-000.mp4", ".0008-000.mp4.tmp-1-abc.mp4", "stages/1_base/.0000-000.mp4.tmp-1-abc", "mine.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    kept()  # the same job goes on
    assert not [name for name in files_below(tmp_path) if ".tmp-" in name]
    sample_with(cascade, request(prompts=PROMPTS[1:2], stop_after="1"), tmp_path, name="test")
    assert files_below(tmp_path) == {".job.json", "samples.jsonl", "0000-000.mp4", "mine.mp4"}
    kept(prompts=PROMPTS[1:2])
    assert (folder / "0000-000.mp4").read_bytes() != first


def test_prompts_that_are_cut_are_counted_once_and_one_is_shown(cascade, tmp_path, capsys):
    long = "a " * 23 + "red circle"
    run(cascade, tmp_path, prompts=(long, "a red circle"), stop_after="1", batch=1)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
    assert "1 of 2 prompts are longer than the 24 tokens that are read" in line
    assert "loses 10 of 56 characters, from 'red circle' on" in line


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"size": (0, 8)}, "cannot sample 0x8"),
        ({"size": (99999999, 99999999)}, "--size 99999999x99999999 makes videos of .* values .*, more than 4294967295"),
        ({"fields": (("guidance_low", (float("nan"),)),)}, "guidance_low must be at least 0 .* and finite, got nan"),
        ({"steps": (10**12,)}, "steps must be from 1 to 10000, got 1000000000000"),
        ({"extend": "nofile.mp4", "extend_from": float("nan")}, "--extend-from must be from .* got nan"),
        ({"extend": "nofile.mp4", "extend_from": float("inf")}, "--extend-from must be from .* got inf"),
        ({"fields": (("augmentation_snr", (5.0,)),)}, "more noise than temporal_sr_32f_24x40 was trained with"),
    ],
)
def test_a_refused_request_leaves_the_folder_as_it_was_and_no_note(cascade, tmp_path, changes, says):
    (tmp_path / "0000-000.mp4").write_bytes(b"a finished video")
    (tmp_path / "samples.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=says):
        sample_with(cascade, request(**changes), tmp_path, name="test", note=pytest.fail)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "0000-000.mp4": b"a finished video",
        "samples.jsonl": b"{}\n",
    }


def test_the_encoder_is_opened_before_another_jobs_videos_go_and_not_for_a_job_that_is_done(cascade, tmp_path):
    gone = {"encoder": "t5", "weights": "/no/such/weights", "vocabulary": "/no/such/vocabulary"}
    without = Cascade(cascade.members, trained_with=gone, mesh=cascade.mesh)
    rows = run(cascade, tmp_path)
    assert run(without, tmp_path) == rows
    with pytest.raises(UserError, match="encoder cannot be opened"):
        run(without, tmp_path, seed=1)
    assert all((tmp_path / row["path"]).exists() for row in rows)


def test_names_sort_by_prompt_and_number_however_many_there_are():
    def files(**changes):
        return [job.file for job in sampling._jobs(SampleRequest(**changes))]

    assert files(prompts=("a", "b"), num=2) == ["0000-000.mp4", "0000-001.mp4", "0001-000.mp4", "0001-001.mp4"]
    for many in (files(prompts=("a", "b"), num=1001), files(prompts=("a",) * 10001)):
        assert many == sorted(set(many))


def test_a_seed_per_prompt_makes_its_place_in_the_list_unimportant(cascade, tmp_path):
    run(cascade, tmp_path / "one", seeds=(5, 6, 7))
    rows = run(cascade, tmp_path / "two", prompts=PROMPTS[::-1], seeds=(7, 6, 5))
    assert [row["seed"] for row in rows] == [7, 6, 5]
    one = read_video(tmp_path / "one" / "0000-000.mp4").frames_THWC.astype(int)
    two = read_video(tmp_path / "two" / "0002-000.mp4").frames_THWC.astype(int)
    assert np.abs(one - two).max() <= 3
    with pytest.raises(UserError, match="2 seeds for 3 prompts"):
        run(cascade, tmp_path / "three", seeds=(1, 2))


def test_a_batch_spread_over_devices_is_the_batch_of_one(cascade):
    assert cascade.mesh.size == 8
    options = dict(samplers={0: {"steps": 2, "guidance": 0.0}}, stop=1)
    spread = cascade.sample(["a red circle"] * 8, **options)
    alone = cascade.sample(["a red circle"] * 3, **options)
    assert np.abs(spread[:3].astype(int) - alone).max() <= 1


def test_constant_guidance_weights_share_one_program_and_give_what_programs_of_their_own_do(cascade, monkeypatch):
    traced, real = [], Stage.sample

    def counted(self, *rest, **options):
        traced.append(options["sampler"])
        return real(self, *rest, **options)

    monkeypatch.setattr(Stage, "sample", counted)
    calls = {"steps": 3, "interval": (0.2, 0.8)}
    videos = {
        weight: cascade.sample(PROMPTS, samplers={0: {**calls, "guidance": weight}}, stop=1)
        for weight in (0.5, 2.0, 7.0, 0.0)
    }
    assert len(traced) == 2, "one for guidance and one for none"
    assert np.abs(videos[0.5].astype(int) - videos[7.0]).max() > 0
    member = cascade.members[0]
    text_BLD, text_mask_BL = (fit_length(one, member.stage.config.text_length) for one in encoder(PROMPTS))
    own = real(
        member.stage,
        member.params,
        text_BLD=text_BLD,
        text_mask_BL=text_mask_BL,
        index_B=np.arange(3),
        seed=0,
        sampler=changed_sampler(member.stage.config, {**calls, "guidance": 7.0}),
    )
    assert np.abs(videos[7.0].astype(int) - to_uint8(own)).max() <= 1


def test_given_frames_come_out_as_given_and_lead_the_others(cascade, tmp_path):
    known = np.full((8, 1, 6, 10, 3), 220, np.uint8)
    options = dict(samplers={i: {"steps": 2, "guidance": 0.0} for i in (0, 1)}, known_BTHWC=known)
    led, free = (cascade.sample(["a red circle"] * 8, **options, reconstruction=weight) for weight in (9.0, 0.0))
    np.testing.assert_array_equal(led[:, :1], known)
    np.testing.assert_array_equal(free[:, :1], known)
    assert np.abs(led[:, 1:].astype(int) - free[:, 1:]).max() > 0


def test_a_first_frame_and_a_video_to_go_on_with_are_read_from_files(cascade, tmp_path):
    Image.new("RGB", (20, 12), (200, 200, 200)).save(tmp_path / "first.png")
    run(cascade, tmp_path / "a", prompts=PROMPTS[:1], first_frame=str(tmp_path / "first.png"))
    frames = read_video(tmp_path / "a" / "0000-000.mp4").frames_THWC
    assert np.abs(frames[0].astype(int) - 200).max() <= 6
    write_video(tmp_path / "v.mp4", np.full((12, 12, 20, 3), 100, np.uint8), fps=6)
    run(cascade, tmp_path / "b", prompts=PROMPTS[:1], extend=str(tmp_path / "v.mp4"))
    # Half a clip of 8 frames is known, so 4 are new.
    frames = read_video(tmp_path / "b" / "0000-000.mp4").frames_THWC
    assert frames.shape == (16, 6, 10, 3)
    assert np.abs(frames[:10].astype(int) - 100).max() <= 6
    Image.new("RGB", (12, 12)).save(tmp_path / "square.png")
    for changes, says in (
        ({"first_frame": str(tmp_path / "square.png")}, "is 12x12 .* another aspect. Crop it to 7x12"),
        (
            {"extend": str(tmp_path / "v.mp4"), "extend_from": 9.0},
            "--extend-from must be from 0.33 to 1.00 seconds, got 9",
        ),
    ):
        with pytest.raises(UserError, match=says):
            run(cascade, tmp_path / "c", **changes)
    assert not (tmp_path / "c").exists()
