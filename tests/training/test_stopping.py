"""Being asked to stop: at once where nothing is lost, else at the next step; a second request ends the process."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from imagen_video_jax.commands.process import stop_on_sigterm, until_sigterm
from imagen_video_jax.errors import DONE, STOPPED_AFTER_SAVING, UserError
from imagen_video_jax.training.stopping import Stop, StopNow


def signal_soon(seconds: float = 0.2) -> None:
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM)).start()


def test_waiting_for_data_ends_at_once_and_a_step_does_not():
    with stop_on_sigterm() as stop:
        signal_soon()
        began = time.monotonic()
        with pytest.raises(StopNow), stop.at_once():
            threading.Event().wait(30)  # a queue whose other end is stuck
        assert time.monotonic() - began < 10
        assert stop()
    with stop_on_sigterm() as stop:
        signal_soon()
        time.sleep(0.5)
        assert stop()
        with pytest.raises(StopNow), stop.at_once():
            pytest.fail("began although it was asked to stop")


def test_native_code_is_left_behind_in_its_thread():
    with stop_on_sigterm() as stop:
        signal_soon()
        with pytest.raises(StopNow):
            stop.run(lambda: time.sleep(2))
        assert stop.left_running


def test_a_result_or_an_error_comes_out_of_the_thread():
    stop = Stop()
    assert stop.run(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        stop.run(lambda: 1 // 0)
    assert not stop.left_running
    assert Stop(also=lambda: True)()


def test_a_second_signal_ends_the_process_but_an_echo_of_the_first_does_not():
    code = (
        "import time\nfrom imagen_video_jax.commands.process import stop_on_sigterm\n"
        "with stop_on_sigterm() as stop:\n  print('ready', flush=True)\n"
        "  while not stop(): time.sleep(0.01)\n  print('asked', flush=True)\n  time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGTERM)  # the scheduler told the watchdog too
        time.sleep(1.2)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, STOPPED_AFTER_SAVING), (signal.SIGINT, 130)])
def test_work_that_can_be_run_again_ends_at_once_wherever_it_is(number, code):
    script = (
        "import signal, time\nfrom imagen_video_jax.commands.process import until_sigterm\n"
        # Whoever runs the tests in the background may have had interrupts ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def work():\n  print('ready', flush=True)\n  time.sleep(60)\n"
        "until_sigterm(work)"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(20) == code
        assert process.stderr.read() == "stopped; run the same command again to go on\n"


def test_an_interrupt_of_the_work_itself_and_its_errors_come_out():
    for error in (KeyboardInterrupt, UserError("wrong")):
        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            until_sigterm(lambda error=error: (_ for _ in ()).throw(error))
    assert until_sigterm(lambda: None) == DONE
