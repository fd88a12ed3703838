"""The runner: each job once, what is done and unchanged is kept, tables after every kind of ending."""

import json
import logging
import os
import signal
import time
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import pytest

from pneumoscope.errors import InputError, RunError
from pneumoscope.jobs import executor
from pneumoscope.jobs.executor import Executor
from pneumoscope.jobs.run import FOLDER, Job, JobRun, Outcome, Step, _on_workers, job_folder
from pneumoscope.jobs.stamp import DONE_FILE
from pneumoscope.progress import FORECAST, OverJobs, silent


def lengths(log, settings, jobs):
    """Counts the letters of text files; writes down which job ran."""

    def work(job, progress):
        with log.open("a") as stream:
            stream.write(f"{job.name} ")
        text = job.item.read_text()
        if text == "bad":
            raise InputError("is bad", path=job.item)
        if text == "interrupt":
            raise KeyboardInterrupt
        if text == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if text == "full":
            raise OSError(28, "No space left on device")
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / "n.txt").write_text(str(len(text)))
        return Outcome(job.name, facts={"n": len(text)}, seconds={"work": 1.0})

    return Step("lengths", 1, lambda path: {"text": path.read_bytes().hex(), "settings": settings}, work)


def cannot_start(jobs):
    if jobs > 1:
        raise RunError("no such device")
    return lengths(Path(os.devnull), {}, 1)


class Run:
    def __init__(self, root):
        self.root, self.log, self.tables = root, root / "log", []

    def __call__(self, settings=None, opener=None, **options):
        files = sorted(self.root.glob("*.txt"))
        jobs = [Job(f.stem, f, self.root / "out" / f.stem) for f in files]
        self.log.write_text("")
        opener = opener or partial(lengths, self.log, settings or {})
        options = {"step": opener(1), "opener": opener, **options}
        outcomes = JobRun(jobs, write=lambda so_far, end: self.tables.append(([*so_far], end)), **options).run()
        return {o.name: o for o in outcomes}

    @property
    def ran(self):
        return self.log.read_text().split()


@pytest.fixture
def run(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name * 4)
    return Run(tmp_path)


def test_resumed_jobs_are_kept_with_their_facts(run):
    first = run()
    assert run.ran == ["a", "b", "c"]
    again = run(resume=True)
    assert run.ran == []
    assert {n: o.facts for n, o in again.items()} == {n: o.facts for n, o in first.items()}
    assert all(o.kept and not o.seconds for o in again.values())
    assert run.tables[-1] == ([*again.values()], True)
    run()
    assert run.ran == ["a", "b", "c"], "only a resumed run keeps"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda run: (run.root / "b.txt").write_text("other"), "b (text changed)"),
        (lambda run: (run.root / "out/b/n.txt").unlink(), "b (n.txt is missing or was changed)"),
        (lambda run: (run.root / "out/b/n.txt").write_text(""), "b (n.txt is missing or was changed)"),
        (lambda run: (run.root / "out/b" / DONE_FILE).write_text("{}"), ""),
        (lambda run: (run.root / "out/b" / DONE_FILE).write_text("[" * 99999), ""),
        (lambda run: (run.root / "out/b" / DONE_FILE).unlink(), ""),
    ],
)
def test_what_was_changed_is_done_again_and_named(run, caplog, change, why):
    run()
    change(run)
    with caplog.at_level(logging.WARNING):
        again = run(resume=True)
    assert run.ran == ["b"]
    assert [n for n, o in again.items() if o.kept] == ["a", "c"]
    assert why in caplog.text


@pytest.mark.parametrize("when", [0, 4_000_000_000], ids=["1970", "2096"])
def test_clocks_do_not_count(run, when):
    run()
    for path in run.root.rglob("*"):
        os.utime(path, (when, when))
    run(resume=True)
    assert run.ran == []
    (run.root / "b.txt").write_text("BBBB")  # as long as before, and of the same time
    os.utime(run.root / "b.txt", (when, when))
    run(resume=True)
    assert run.ran == ["b"]


def test_other_settings_do_every_job_again(run, caplog):
    run({"window": 1})
    run({"window": 2}, resume=True)
    assert run.ran == ["a", "b", "c"]
    assert "settings changed" in caplog.text


@pytest.mark.parametrize("other", [{"facts": 3, "parts": 5}, {"facts": {}}, {"facts": {"n": 5}}, {"files": {}}])
def test_a_damaged_mark_is_none(run, other):
    run()
    mark = run.root / "out/b" / DONE_FILE
    mark.write_text(json.dumps({**json.loads(mark.read_text()), **other}))
    assert run(resume=True)["b"].facts == {"n": 4}
    assert run.ran == ["b"]


def test_a_failed_job_stops_no_other_and_is_tried_again(run):
    (run.root / "b.txt").write_text("bad")
    first = run()
    assert [(o.status, o.exit_code) for o in first.values()] == [("done", 0), ("failed", 2), ("done", 0)]
    assert "b.txt: is bad" in first["b"].error
    (run.root / "b.txt").write_text("good now")
    assert run(resume=True)["b"].facts == {"n": 8}
    assert run.ran == ["b"]


def test_a_full_disk_is_named(run):
    (run.root / "b.txt").write_text("full")
    outcome = run()["b"]
    assert "the disk is full" in outcome.error
    assert "internal" not in outcome.error


def test_an_interrupt_leaves_the_tables_of_what_is_done(run):
    (run.root / "b.txt").write_text("interrupt")
    with pytest.raises(KeyboardInterrupt):
        run()
    outcomes, finished = run.tables[-1]
    assert [o.name for o in outcomes] == ["a"]
    assert not finished
    assert not (run.root / "out/b" / DONE_FILE).exists()
    (run.root / "b.txt").write_text("on")
    run(resume=True)
    assert run.ran == ["b", "c"]


def test_side_by_side_gives_the_same_and_a_killed_worker_is_named(run):
    one = {n: o.facts for n, o in run().items()}
    assert {n: o.facts for n, o in run(side_by_side=2).items()} == one
    (run.root / "b.txt").write_text("killed")
    found = run(side_by_side=2)
    assert "SIGKILL" in found["b"].error
    assert "memory" in found["b"].error
    assert {n: o.facts for n, o in found.items() if n != "b"} == {n: one[n] for n in "ac"}


def hurried(log, jobs):
    executor.CALL_SECONDS = 0.0
    return lengths(log, {}, jobs)


def test_jobs_that_take_longer_than_those_before_are_given_back(run, monkeypatch):
    """Else a call of 256 short jobs, when long ones follow, is an hour without a word while other workers are idle."""
    calls, start = [], executor.LocalWorkers.start
    monkeypatch.setattr("pneumoscope.jobs.run._how_many", lambda *_: 9)
    monkeypatch.setattr(executor.LocalWorkers, "start", lambda *given: calls.append(len(given[1])) or start(*given))
    found = run(opener=partial(hurried, run.log), side_by_side=2)
    assert {n: o.facts for n, o in found.items()} == {n: {"n": 4} for n in "abc"}
    assert run.ran == ["a", "b", "c"]
    assert calls == [3, 2, 1]


def test_a_forecast_counts_what_is_left(run, monkeypatch):
    said = []
    monkeypatch.setattr("pneumoscope.jobs.run.LONG_SECONDS", 0)
    run(side_by_side=2, progress=lambda *now: said.append(now))
    assert [now[-1] for now in said if now[0] == FORECAST] == ["3 cases, about 1 min on 2 workers"]


def halfway(jobs):
    def work(job, progress):
        for what, done, total in (("a part", 1, 1), (job.name, 1, 2)):
            progress(what, done, total)
        time.sleep(0.5)
        return Outcome(job.name)

    return Step("halfway", 1, work=work)


def test_the_bar_moves_while_workers_are_at_their_jobs(run, monkeypatch):
    said = []
    monkeypatch.setattr("pneumoscope.jobs.run.LOOK_SECONDS", 0.05)
    run(opener=halfway, side_by_side=2, progress=lambda *now: said.append(now))
    done = [now[1] for now in said if now[0] == "cases"]
    assert ("cases", 1, 3, "a, b") in said
    assert done == sorted(done)
    assert len(done) > 4, done
    assert done[-1] == 3


def test_the_bar_does_not_go_back_when_one_of_several_jobs_ends():
    said = []
    bar = OverJobs(lambda what, done, total, note="": said.append((round(done, 3), note)), "cases", 3, {})
    bar.side_by_side({"a": 0.9, "b": 0.75})
    bar.end(1, "a")
    bar.side_by_side({"b": 0.75, "c": 0.0})
    bar.end(2, "c")
    bar.end(3, "b")
    assert said == [(1.65, "a, b"), (1.65, "a"), (1.75, "b, c"), (2, "c"), (3, "b")]


def test_a_worker_that_cannot_start_says_why(run):
    with pytest.raises(RunError, match="no such device"):
        run(opener=cannot_start, side_by_side=2)


@pytest.mark.parametrize("name", ["\u80ba" * 85, "M\udcfcller", "..", "a/b, c"])
def test_a_job_of_any_name_has_a_folder(tmp_path, name):
    folder = job_folder(tmp_path, name)
    folder.mkdir(parents=True)
    assert folder.parent.resolve() == (tmp_path / FOLDER).resolve() == folder.resolve().parent
    assert folder != job_folder(tmp_path, f"{name}.")


@pytest.mark.parametrize("files", [0, 1])
def test_only_marks_of_files_wait_for_the_disk(tmp_path, monkeypatch, files):
    synced = []
    monkeypatch.setattr("pneumoscope.io.files._sync", synced.append)

    def work(job, progress):
        for number in range(files):
            job.folder.mkdir(parents=True)
            (job.folder / f"{number}").touch()
        return Outcome(job.name, facts={"n": 1})

    JobRun([Job("a", "a", tmp_path / "a")], Step("k", 1, lambda item: {}, work), lambda *_: None).run()
    assert (tmp_path / "a" / DONE_FILE).is_file()
    assert len(synced) == 2 * files


class Fickle(Executor):
    """A worker that is not seen at the second look."""

    looks = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def width(self):
        self.looks += 1
        return int(self.looks != 2)

    def start(self, jobs, again):
        assert self.looks != 2, "the last look said that nobody is there"
        future = Future()
        future.set_result(([Outcome(job.name) for job in jobs], 1.0))
        return future

    def outcomes(self, future):
        return future.result()


def test_no_job_is_given_to_a_worker_that_left_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr("pneumoscope.jobs.run.LOOK_SECONDS", 0)
    jobs = [Job(name, name, tmp_path / name, marked=False) for name in "abc"]
    found = list(_on_workers(jobs, Fickle(), False, OverJobs(silent, "cases", len(jobs), {})))
    assert [outcome.name for outcome in found] == ["a", "b", "c"]
