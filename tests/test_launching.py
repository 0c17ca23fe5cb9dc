"""Job files: every argument arrives as it was given, restarts on 75, nothing unset is submitted."""

import os
import shlex
import subprocess

import pytest
import yaml

from imagen_video_jax import launching
from imagen_video_jax.cli import main

BASE = "experiments/base_16f_24x40.py"
TRAIN = [
    "train",
    "--config",
    f"{BASE}:tiny",
    "--workdir",
    'out/it\'s "$HOME" `x`\n#y @NAME@ $(Z)',
]
ARGUMENTS = [*TRAIN, "--config.steps=5"]
SAMPLE = ["sample", "--prompt", "a cat", "--out", "/mnt/s/cat"]
DISTILL = ["distill", "--config", "experiments/distill.py:tiny", "--workdir", "y"]


def dry_run(capsys, platform, *arguments, command=ARGUMENTS) -> str:
    assert main(["launch", "--platform", platform, "--dry-run", *arguments, "--", *command]) == 0
    return capsys.readouterr().out


def last_words(script: str) -> list[str]:
    """What bash makes of the last command of a script: its arguments."""
    found = subprocess.run(
        ["bash", "-c", f"imagen-video() {{ printf '%s\\0' \"$@\"; }}\n{script}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.split("\0")[:-1]


@pytest.mark.parametrize("platform", launching.PLATFORMS)
def test_any_argument_arrives_as_it_was_given(capsys, platform):
    text = dry_run(capsys, platform)
    if platform == "gke":
        (workers,) = yaml.safe_load(text)["spec"]["replicatedJobs"]
        command = workers["template"]["spec"]["template"]["spec"]["containers"][0]["command"]
        assert [word.replace("$$", "$") for word in command] == ["imagen-video", *ARGUMENTS]
        assert "$" not in "".join(command).replace("$$", "")
    elif platform == "skypilot":
        run = yaml.safe_load(text)["run"]
        assert last_words(run) == ARGUMENTS
    else:
        joined = shlex.join(["imagen-video", *ARGUMENTS])
        assert shlex.quote(joined) in text
        assert last_words(joined) == ARGUMENTS


def test_gke_and_xpk_know_the_same_codes(capsys):
    spec = yaml.safe_load(dry_run(capsys, "gke"))["spec"]
    (rule,) = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["values"] == [2, 3, 4, 5, 126, 127, 128]
    assert spec["failurePolicy"]["maxRestarts"] == 20
    assert "--max-restarts 20 --restart-on-exit-codes 1,75,124 " in dry_run(capsys, "xpk")


@pytest.mark.parametrize("platform", launching.PLATFORMS)
def test_unset_variables_are_shown_and_refused_at_submission(capsys, platform):
    assert "<" in dry_run(capsys, platform)
    assert main(["launch", "--platform", platform, "--", *ARGUMENTS]) == 2
    text = capsys.readouterr().err.strip()
    assert "these are not given: --" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--platform", "moon", "--", *ARGUMENTS], "moon"),
        (["--platform", "gke", "--", "trian"], "trian"),
        (["--platform", "gke", "--", *TRAIN, "--config.stpes=3"], "did you mean 'steps'"),
        (["--platform", "gke", "--", *TRAIN, "--config.batch_size=-5"], "batch_size"),
        (["--platform", "gke", "--", "train", "--config", "no.py", "--workdir", "y"], "no such config file: no.py"),
        (["--platform", "gke", "--", "train", "--config", f"{BASE}:nosuch", "--workdir", "y"], "nosuch"),
        (["--platform", "gke", "--", "evaluate", "--config", "experiments/evaluate.py:nosuch"], "nosuch"),
        (["--platform", "gke", "--", "export", "--cascade", "x", "--out", "y", "--oops"], "--oops"),
        (["--platform", "gke", "--", "evaluate", "--generated", "x", "--oops"], "unknown argument '--oops'"),
        (["--platform", "gke"], "name the command after --"),
        (["--platform", "gke", "--hosts", "0", "--", *ARGUMENTS], "--hosts must be a whole number above 0, got '0'"),
        (["--platform", "gke", "--name", "a b", "--", *ARGUMENTS], "--name"),
        (["--platform", "gke", "--", "launch"], "cannot launch itself"),
        (["--platform", "gke", "--", "sample", "--out", "x", "--prompt", "a caf\udce9"], "is not UTF-8 text"),
        (["--platform", "slurm", "--", "sample", "--out", "x", "--prompt", "a caf\udce9"], "is not UTF-8 text"),
    ],
)
def test_wrong_requests_are_one_line(capsys, arguments, says):
    assert main(["launch", "--dry-run", *arguments]) == 2
    text = capsys.readouterr().err.strip()
    assert says in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--platform", "gke", "--", "evaluate", "--config", "experiments/evaluate.py:tiny"], "--config.cascade=FILE"),
        (["--platform", "gke", "--", *DISTILL], "distillation needs --config.teacher=WORKDIR"),
        (["--platform", "gke", "--", "sample", "--out", "gs://b/x"], "--out must be below a mounted folder"),
        (["--platform", "slurm", "--", "train", "--config", BASE, "--workdir", "gs://b/x"], "see --mount SOURCE:PATH"),
        (["--platform", "gke", "--mount", "a:/s", "--", "sample", "--out", "x"], "--out must be below /s of --mount"),
        (["--platform", "xpk", "--hosts", "2", "--", *ARGUMENTS], "--hosts does nothing on xpk"),
        (["--platform", "tpu-vm", "--hosts", "2", "--", *ARGUMENTS], "--hosts does nothing on tpu-vm"),
        (["--platform", "slurm", "--image", "x", "--", *ARGUMENTS], "--image does nothing on slurm"),
        (["--platform", "slurm", "--mount", "a:/b", "--", *ARGUMENTS], "--mount does nothing on slurm"),
        (["--platform", "skypilot", "--tpu-type", "x", "--", *ARGUMENTS], "--tpu-type does nothing on skypilot"),
        (["--platform", "gke", "--", "distill", "--config", BASE, "--workdir", "y"], "has no field"),
    ],
)
def test_what_would_go_wrong_there_is_said_of_a_dry_run_and_refused_at_submission(capsys, arguments, says):
    assert main(["launch", "--dry-run", *arguments]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("#")
    assert says in shown.err
    assert shown.err.startswith("note: ")
    assert main(["launch", *arguments]) == 2
    text = capsys.readouterr().err.strip()
    assert says in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("source", "volume", "fuse"),
    [
        ("filestore", {"persistentVolumeClaim": {"claimName": "filestore"}}, "false"),
        (
            "gs://outputs",
            {"csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": {"bucketName": "outputs"}}},
            "true",
        ),
    ],
)
def test_a_claim_or_a_bucket_is_mounted_in_every_pod(capsys, source, volume, fuse):
    job = yaml.safe_load(dry_run(capsys, "gke", "--mount", f"{source}:/mnt/s", command=SAMPLE))
    pod = job["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    assert pod["spec"]["volumes"] == [{"name": "shared", **volume}]
    assert pod["spec"]["containers"][0]["volumeMounts"] == [{"name": "shared", "mountPath": "/mnt/s"}]
    assert pod["metadata"]["annotations"] == {"gke-gcsfuse/volumes": fuse}


@pytest.mark.parametrize(
    ("platform", "source", "says"),
    [
        ("xpk", "lustre", "--storage lustre "),
        ("tpu-vm", "/mnt/disk", "mount=type=bind,source=/mnt/disk,target=/mnt/s\n"),
        ("tpu-vm", "10.0.0.2:/share", "device=:/share,volume-opt=o=addr=10.0.0.2\n"),
        ("skypilot", "gs://outputs", '  "/mnt/s":\n    source: "gs://outputs"\n    mode: MOUNT\n'),
    ],
)
def test_storage_outlives_the_containers_of_every_platform(capsys, platform, source, says):
    assert says in dry_run(capsys, platform, "--mount", f"{source}:/mnt/s", command=SAMPLE)


@pytest.mark.parametrize("platform", ["gke", "xpk", "tpu-vm", "skypilot"])
def test_a_container_without_storage_is_not_submitted(capsys, platform):
    assert "<MOUNT_" in dry_run(capsys, platform)
    assert main(["launch", "--platform", platform, "--", *ARGUMENTS]) == 2
    assert "--mount" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("platform", "mount"),
    [("gke", "claim"), ("gke", "gs://b"), ("gke", "claim:s"), ("gke", "/f:/s"), ("xpk", "gs://b:/s")],
)
def test_a_mount_that_cannot_be_is_one_line(capsys, platform, mount):
    assert main(["launch", "--platform", platform, "--dry-run", "--mount", mount, "--", *ARGUMENTS]) == 2
    assert "--mount must be SOURCE:PATH" in capsys.readouterr().err


def test_what_only_the_job_sees_is_not_looked_for(capsys):
    dry_run(capsys, "slurm", command=[*DISTILL, "--config.teacher=/s/base"])
    sweep = ["evaluate", "--config", "experiments/evaluate.py:tiny", "--workdir", "y", "--config.cascade=/s/c.json"]
    dry_run(capsys, "slurm", command=sweep)


def run_job(capsys, tmp_path, platform, codes, **environment) -> tuple[subprocess.CompletedProcess, list[str]]:
    """Runs the job where the command ends with `codes`, one an attempt; what it did, and its calls of gcloud."""
    logs = ["--logs", str(tmp_path / "logs")] if platform == "tpu-vm" else []
    script = dry_run(capsys, platform, "--restarts", str(len(codes) - 1), *logs)
    if platform == "skypilot":
        script = yaml.safe_load(script)["run"]
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
    for name, does in FAKES.items():
        fake = tmp_path / name
        fake.write_text(f"#!/bin/bash\ncd {shlex.quote(str(tmp_path))}\n{does}\n")
        fake.chmod(0o755)
    environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "", "SLURM_NTASKS": "1"}
    environment |= {"SKYPILOT_NODE_IPS": "", "SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0"}
    done = subprocess.run(
        ["bash", "-c", script], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    calls = tmp_path / "calls"
    return done, calls.read_text().splitlines() if calls.exists() else []


NEXT = "code=$(sed -n 1p codes); sed -i 1d codes"
FAKES = {
    "scontrol": "echo host",
    "srun": f"{NEXT}; exit $code",
    "imagen-video": f"{NEXT}; exit $code",
    "gcloud": f"""echo "$*" >> calls
case "$*" in *describe*) echo ACTIVE ;; *ssh*) {NEXT}; echo "imagen-video-exit $code" ;; esac""",
}
DELETE = "compute tpus queued-resources delete imagen-video --zone <ZONE> --project <PROJECT> --force --quiet"


@pytest.mark.parametrize("codes", [[0], [75, 0], [2], [75, 75]])
def test_a_slice_is_given_back_at_the_end_however_it_comes(capsys, tmp_path, codes):
    done, calls = run_job(capsys, tmp_path, "tpu-vm", codes)
    assert done.returncode == codes[-1]
    assert calls.count(DELETE) == 1
    assert "billed" not in done.stderr


def test_a_slice_that_is_kept_is_told_with_the_command_that_gives_it_back(capsys, tmp_path):
    done, calls = run_job(capsys, tmp_path, "tpu-vm", [0], KEEP="1")
    assert done.returncode == 0
    assert DELETE not in calls
    assert f"gcloud {DELETE}" in done.stderr


@pytest.mark.parametrize("platform", ["tpu-vm", "slurm", "skypilot"])
@pytest.mark.parametrize("codes", [[1, 75, 124, 137, 0], [75, 2], [125], [127], [1, 1]])
def test_the_command_is_run_again_as_train_itself_would(capsys, tmp_path, platform, codes):
    done, _ = run_job(capsys, tmp_path, platform, codes)
    assert (tmp_path / "codes").read_text() == ""
    used_up = codes == [1, 1]
    assert done.returncode == (75 if used_up and platform == "tpu-vm" else codes[-1])


@pytest.mark.parametrize("platform", ["tpu-vm", "slurm", "skypilot"])
@pytest.mark.parametrize("final", [2, 3, 4, 5, 125, 126, 127])
def test_what_would_end_the_same_way_is_not_run_again(capsys, tmp_path, platform, final):
    done, _ = run_job(capsys, tmp_path, platform, [final, 0])
    assert done.returncode == final
    assert (tmp_path / "codes").read_text() == "0\n"


def test_slurm_finds_the_folder_of_its_log(tmp_path, monkeypatch):
    fake = tmp_path / "sbatch"
    fake.write_text("#!/bin/sh\ntest -d logs/base\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    given = ["--partition", "p", "--gpus", "8", "--time", "1:00:00", "--logs", "logs/base"]
    assert main(["launch", "--platform", "slurm", *given, "--", *ARGUMENTS]) == 0
