"""Signals held back, and children that do not outlive their parents."""

import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from pneumoscope import processes
from pneumoscope.preprocess.slices import each_in_threads
from pneumoscope.processes import death_of, signals_held


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_held_signal_takes_effect_at_the_end(number):
    class Came(Exception):
        pass

    def handler(*_):
        raise Came

    steps = []

    def held(times):
        with signals_held() as stop:
            assert not stop()
            for _ in range(times):
                signal.raise_signal(number)
            assert stop()
            steps.append("done")

    before = signal.signal(number, handler)
    try:
        with pytest.raises(Came):
            held(1)
        assert steps == ["done"]
        with pytest.raises(Came):
            held(2)
        assert steps == ["done"], "a second signal takes effect at once"
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals_held() as stop:
            signal.raise_signal(signal.SIGINT)
            assert not stop()
    finally:
        signal.signal(signal.SIGINT, before)


PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time\\nfrom pneumoscope.processes import end_with_parent\\n"
    "end_with_parent()\\nprint('up', flush=True)\\ntime.sleep(600)"], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""


def test_a_child_whose_parent_is_gone_before_it_looks_ends():
    """A worker that was just being started when its parent was killed has another parent already."""
    code = "import time; from pneumoscope.processes import end_with_parent; end_with_parent(2**22); time.sleep(60)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 1


def test_a_child_ends_soon_after_its_parent_was_killed(until):
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        try:
            os.kill(parent.pid, signal.SIGKILL)
            until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            pass
        finally:
            if child.is_running():
                child.kill()


class Ended:
    """What a pool leaves of a process."""

    def __init__(self, exitcode):
        self.exitcode = exitcode

    def join(self, seconds):
        pass


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        ([-9], "was killed (SIGKILL), most often because memory ran out"),
        ([0, -15, -11], "crashed (SIGSEGV)"),
        ([None, 1], "could not start, or ended with status 1"),
        ([-15], "was stopped (SIGTERM)"),
        ([0], "without a reason"),
    ],
)
def test_the_end_of_a_worker_has_a_reason(codes, words):
    assert death_of([Ended(code) for code in codes]).endswith(words)


def test_a_status_that_another_thread_is_still_taking_is_waited_for():
    class Late(Ended):
        looks = 0

        @property
        def exitcode(self):
            self.looks += 1
            return None if self.looks < 5 else -9

        @exitcode.setter
        def exitcode(self, code):
            pass

    assert "SIGKILL" in death_of([Late(None)])


def test_a_limit_on_address_space_is_the_likeliest_reason(monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda kind: (512 << 20, -1))
    assert death_of([Ended(1)]).endswith("most likely for want of address space (512 MiB by ulimit -v)")


def test_processes_side_by_side_share_the_processors(monkeypatch):
    """`segment --jobs 4` on eight processors: a worker's own threads are two, not four."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(processes, "_sharing", 1)
    assert processes.processors() == 8
    processes.share_processors(4)
    assert processes.processors() == 2
    threads, all_here = set(), threading.Barrier(2, timeout=10)

    def note(_):
        threads.add(threading.get_ident())
        all_here.wait()

    each_in_threads(note, range(8))
    assert len(threads) == 2
    processes.share_processors(100)
    assert processes.processors() == 1
