"""Signals in small processes without JAX: each prints a line, gets signals, and ends."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from malora_jax import shutdown

RESUMES = 'Stopped by SIGTERM; the same command resumes from what was saved.\n'
STARTS_AGAIN = 'Stopped by SIGTERM; the same command starts again.\n'
INTERRUPTED = 'Interrupted; the same command resumes from what was saved.\n'


def start(program: str, is_resumable: bool = True, **options) -> subprocess.Popen:
    """Start a process, and return it once it has printed its first line."""
    head = 'import os, signal, sys, time\nfrom malora_jax import shutdown\n'
    head += f'shutdown.install_handlers({is_resumable})\n'
    process = subprocess.Popen(
        [sys.executable, '-u', '-c', head + textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    assert process.stdout.readline() == 'ready\n'
    return process


def end(process: subprocess.Popen, *numbers: int, pause: float = 0.05) -> tuple[int, str, str]:
    """Send signals to a process, and return its exit status, stdout and stderr."""
    for number in numbers:
        process.send_signal(number)
        time.sleep(pause)
    out, errors = process.communicate(timeout=30)
    return process.returncode, out, errors


WAITS = "print('ready'); time.sleep(30)"


def test_sigterm_ends_a_command_that_resumes_with_status_0():
    assert end(start(WAITS), signal.SIGTERM) == (0, RESUMES, '')


def test_sigterm_ends_another_command_with_status_143():
    assert end(start(WAITS, is_resumable=False), signal.SIGTERM) == (143, '', STARTS_AGAIN)


def test_ctrl_c_ends_a_command_with_status_130():
    assert end(start(WAITS), signal.SIGINT) == (130, '', INTERRUPTED)
    line = 'Interrupted; the same command starts again.\n'
    assert end(start(WAITS, is_resumable=False), signal.SIGINT) == (130, '', line)


def test_a_long_call_into_a_library_does_not_delay_the_end():
    """Python's own signal handlers would wait until the call returns."""
    program = """
        import hashlib
        print('ready', flush=True)
        hashlib.pbkdf2_hmac('sha256', b'', b'', 200_000_000)
    """
    process = start(program)
    started = time.monotonic()
    assert end(process, signal.SIGTERM) == (0, RESUMES, '')
    assert time.monotonic() - started < 20


def test_deferred_signals_are_noted_and_the_first_one_counts():
    program = """
        with shutdown.defer_signals(signal.SIGTERM, signal.SIGINT):
            print('ready', flush=True)
            while not shutdown.requested_signal():
                time.sleep(0.01)
            first = shutdown.requested_signal()
        print(first, flush=True)
        time.sleep(0.2)
        shutdown.exit_process(5, 'saved')
    """
    numbers = [signal.SIGINT, *[signal.SIGTERM] * 3]
    assert end(start(program), *numbers) == (5, '2\n', 'saved\n')


def test_a_signal_that_is_not_deferred_ends_at_once():
    program = """
        with shutdown.defer_signals(signal.SIGTERM):
            print('ready', flush=True)
            time.sleep(30)
    """
    assert end(start(program), signal.SIGINT) == (130, '', INTERRUPTED)


def test_no_signal_changes_the_status_once_the_process_is_ending():
    """Cleanup functions still run, once each."""
    program = """
        def clean():
            print('ready', flush=True)
            time.sleep(0.5)
        shutdown.register_cleanup(clean)
        shutdown.exit_process(7, 'done')
    """
    assert end(start(program), signal.SIGTERM, signal.SIGINT) == (7, '', 'done\n')


def test_a_storm_of_signals_while_it_ends():
    program = """
        shutdown.register_cleanup(lambda: time.sleep(0.3))
        print('ready', flush=True)
        time.sleep(30)
    """
    storm = [signal.SIGTERM, signal.SIGINT] * 100
    assert end(start(program), *storm, pause=0.001) == (0, RESUMES, '')


def test_whoever_handles_a_signal_decides_what_it_does():
    program = """
        heard = []
        signal.signal(signal.SIGTERM, lambda *_: heard.append('mine'))
        print('ready', flush=True)
        while not heard:
            time.sleep(0.01)
        time.sleep(0.1)
        shutdown.exit_process(4, 'mine')
    """
    assert end(start(program), signal.SIGTERM) == (4, '', 'mine\n')


def test_ctrl_c_can_be_caught_again_and_again():
    program = """
        with shutdown.interruptible():
            for _ in range(2):
                try:
                    print('ready', flush=True)
                    time.sleep(30)
                except KeyboardInterrupt:
                    pass
        print('ready', flush=True)
        time.sleep(30)
    """
    process = start(program)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == 'ready\n'
    assert end(process, signal.SIGINT) == (130, '', INTERRUPTED)


def test_ctrl_c_that_was_caught_does_not_end_the_command_later():
    """This holds even if the listening thread does not run before the handler returns."""
    program = """
        sys.setswitchinterval(60)
        try:
            with shutdown.interruptible():
                print('ready', flush=True)
                while True:
                    pass
        except KeyboardInterrupt:
            pass
        time.sleep(0.2)
        shutdown.exit_process(7)
    """
    assert end(start(program), signal.SIGINT) == (7, '', '')


def test_a_background_job_ignores_ctrl_c():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = start(WAITS)
    finally:
        signal.signal(signal.SIGINT, before)
    assert end(process, signal.SIGINT, signal.SIGTERM) == (0, RESUMES, '')


def test_a_forked_worker_can_be_terminated_alone():
    """The worker dies and the command continues, as lm_eval needs when it ends its pool."""
    program = """
        import multiprocessing
        with multiprocessing.get_context('fork').Pool(2) as pool:
            assert pool.map(abs, [-1, -2]) == [1, 2]
        pool.join()
        print('ready', flush=True)
        time.sleep(0.2)
        shutdown.exit_process(6)
    """
    assert end(start(program)) == (6, '', '')


# Programs of a child process and of the parent that ends before it.

CHILD = """
import os, time
from malora_jax import shutdown
shutdown.install_handlers(True)
import signal
with shutdown.defer_signals(signal.SIGTERM):
    os.write(1, b'ready\\n')  # In one piece: two children share the pipe.
    while not shutdown.requested_signal():
        time.sleep(0.01)
shutdown.exit_process(0, 'saved')
"""
PARENT = """
import subprocess, sys, os, time
from malora_jax import shutdown
with shutdown.parent_pipe() as (descriptor, environment):
    children = [
        subprocess.Popen(
            [sys.executable, '-c', CHILD],
            env={**os.environ, **environment},
            pass_fds=[descriptor],
        )
        for _ in range(2)
    ]
    time.sleep(30)
"""


def test_children_stop_when_their_parent_is_killed():
    process = subprocess.Popen(
        [sys.executable, '-u', '-c', PARENT.replace('CHILD', repr(CHILD))],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert [process.stdout.readline() for _ in range(2)] == ['ready\n'] * 2
    process.kill()
    # The output ends only when the children, which hold the pipe, have ended too.
    started = time.monotonic()
    out = process.communicate(timeout=30)[0].splitlines()
    assert time.monotonic() - started < 20
    assert sorted(out) == ['The process that started this one has ended.'] * 2 + ['saved'] * 2


# Programs that are not commands.


def test_a_program_hears_of_sigterm_only_within_watched():
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with pytest.raises(shutdown.Preempted) as caught, shutdown.raise_on_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert caught.value.code == 0
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert not shutdown.requested_signal()


def test_a_program_defers_as_a_command_does():
    with shutdown.raise_on_sigterm():
        with shutdown.defer_signals(signal.SIGTERM):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            assert shutdown.requested_signal() == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)  # A later signal changes nothing.
        time.sleep(0.01)
