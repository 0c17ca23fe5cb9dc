"""Where numbers go: every scalar reaches TensorBoard, and a disk that is full stops no training."""

import errno
import math
import os

import pytest
from tensorboardX.proto.event_pb2 import Event

from imagen_video_jax.training import metrics
from imagen_video_jax.training.metrics import MetricsWriter, read_rows


def events_of(workdir) -> list[Event]:
    """The records of the one file: length (8 bytes), its check (4), the event, its check (4)."""
    (path,) = (workdir / "tensorboard").iterdir()
    data, events = path.read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def test_every_finite_number_is_a_scalar_of_its_kind(tmp_path):
    writer = MetricsWriter(tmp_path, start_step=0)
    writer.write(1, {"loss": 0.5, "rate": float("nan")})
    writer.write(2, {"loss": 0.25}, kind="held_out")
    writer.close()
    first, *events = events_of(tmp_path)
    assert first.file_version == "brain.Event:2"
    found = [(event.step, value.tag, value.simple_value) for event in events for value in event.summary.value]
    assert found == [(1, "train/loss", 0.5), (2, "held_out/loss", 0.25)]


@pytest.fixture
def full_disk(monkeypatch):
    """Once called, nothing can be written for TensorBoard, and no file anew."""

    def fill():
        def write(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(metrics.RecordWriter, "write", write)
        monkeypatch.setattr(metrics.storage, "write_text", write)

    return fill


def test_a_full_disk_is_said_once_and_the_rows_go_on(tmp_path, full_disk, capsys):
    writer = MetricsWriter(tmp_path, start_step=0)
    writer.write(1, {"loss": 1.0})
    full_disk()
    for step in range(2, 40):  # more than any queue holds
        writer.write(step, {"loss": 1.0})
    writer.cut_after(3)
    writer.write(4, {"loss": 2.0})
    writer.close()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "tensorboard" in said
    assert "training goes on" in said
    assert read_rows(tmp_path / "metrics.jsonl")[-1]["loss"] == 2.0


def test_what_cannot_be_written_at_the_end_stops_nothing(tmp_path):
    """/dev/full takes nothing: each flush fails, also that of closing."""
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    writer = MetricsWriter(tmp_path, start_step=0)
    writer._file.close()
    writer._file = open("/dev/full", "a")
    writer.write(1, {"loss": 1.0})
    writer.cut_after(0)
    writer._file.close()
    writer._file = open("/dev/full", "a")
    writer._board._file._writer.close()
    writer._board._file._writer = open("/dev/full", "wb")
    writer._board._flushed = math.inf
    writer.write(1, {"loss": 1.0})
    writer.close()
