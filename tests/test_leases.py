"""The lock of a folder over machines: a live holder is respected, a dead one is not, and no clock is believed."""

import contextlib
import fcntl
import json
import os
import threading
import time

import pytest

from imagen_video_jax import leases, storage
from imagen_video_jax.errors import UserError

OTHER = {"pid": 7, "host": "other", "boot": "another start of another machine", "token": "x", "beat": 3}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(leases, "BEAT", 0.1)
    monkeypatch.setattr(leases, "_SETTLE", 0.1)


@contextlib.contextmanager
def another_machine(path):
    """Keeps its note up; its number rises."""
    done = threading.Event()

    def beat():
        number = 0
        while not done.wait(0.02):
            number += 1
            path.write_text(json.dumps(OTHER | {"beat": number}).ljust(512))

    path.write_text(json.dumps(OTHER).ljust(512))
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("clock", [0, 2**31])
def test_another_machine_that_lives_is_respected_and_a_dead_one_is_not_whatever_the_clock(tmp_path, monkeypatch, clock):
    monkeypatch.setattr(time, "time", lambda: clock)
    with another_machine(tmp_path / ".lock"):
        with pytest.raises(UserError, match=r"in use by another process .pid 7 on other"):
            storage.directory_lock(tmp_path).__enter__()
        os.utime(tmp_path / ".lock", (clock, clock))
    with storage.directory_lock(tmp_path):
        assert leases.read(tmp_path / ".lock")["pid"] == os.getpid()
    assert leases.read(tmp_path / ".lock") is None


def test_a_dead_holder_on_this_machine_is_replaced_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "is_kept", lambda *_: pytest.fail("the kernel knows that it is dead"))
    for content in (json.dumps(OTHER | {"boot": leases.boot_id()}), "pid 12 on an older version", "", "[1]"):
        (tmp_path / ".lock").write_text(content)
        with storage.directory_lock(tmp_path):
            pass


def test_where_the_file_system_has_no_locks_the_lease_alone_does(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with storage.directory_lock(tmp_path):
        with pytest.raises(UserError, match=f"in use by another process .pid {os.getpid()} "):
            storage.directory_lock(tmp_path).__enter__()
        time.sleep(0.3)  # it is still the first one's
    with storage.directory_lock(tmp_path):
        pass
    (tmp_path / ".lock").write_text(json.dumps(OTHER | {"boot": leases.boot_id()}).ljust(512))
    with storage.directory_lock(tmp_path):
        pass


def test_of_two_that_begin_at_once_one_wins(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_flock", lambda *_: None)
    results = []

    def hold():
        try:
            with storage.directory_lock(tmp_path):
                time.sleep(0.5)
            results.append("held")
        except UserError:
            results.append("refused")

    threads = [threading.Thread(target=hold) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["held", "refused"]


def test_a_holder_learns_that_it_was_taken_over(tmp_path, capsys):
    lost, path = threading.Event(), tmp_path / ".lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    with leases.kept(path, descriptor, alone=True, lost=lost.set):
        path.write_text(json.dumps(OTHER).ljust(512))
        assert lost.wait(10)
    os.close(descriptor)
    assert "was taken over by pid 7 on other" in capsys.readouterr().err
    assert leases.read(path) == OTHER  # and leaves the other's note alone
