"""What holds for every executor: one process, several, Dask and (marked) SLURM."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from pneumoscope.errors import InputError, RunError
from pneumoscope.io.files import write_text
from pneumoscope.jobs.machines import Cluster, current, machines, part_of, read_cluster
from pneumoscope.jobs.run import Job, JobRun, Outcome, Step
from pneumoscope.jobs.slurm import slurm_cluster
from pneumoscope.jobs.stamp import DONE_FILE

distributed, dask = pytest.importorskip("distributed"), pytest.importorskip("dask")

pytestmark = pytest.mark.enable_socket


@pytest.fixture(scope="module")
def scheduler():
    """The address of a Dask cluster that somebody has started, as `dask scheduler` and `dask worker` do."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", memory_limit=0
    ) as cluster:
        yield cluster.scheduler_address.replace("tcp://", "dask://")


@pytest.fixture(
    params=[1, 2, "dask", pytest.param("slurm", marks=[pytest.mark.slurm, pytest.mark.timeout(600)])],
    ids=lambda value: f"local-{value}" if isinstance(value, int) else value,
)
def on(request, monkeypatch):
    """Keywords of `JobRun`, inside the machines of an executor."""
    if isinstance(request.param, int):
        yield {"side_by_side": request.param}
        return
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    where = request.getfixturevalue("scheduler") if request.param == "dask" else "slurm"
    settings = [] if request.param == "dask" else ["cpus=1", "memory=500MB", "walltime=00:10:00"]
    with machines(where, jobs=2, cluster=settings):
        yield {}


SIGNALS = {"vanishes": [signal.SIGKILL], "out of walltime": [signal.SIGTERM, signal.SIGKILL], "hangs": [signal.SIGSTOP]}
"""What becomes of a node: SLURM ends one that is out of time politely, and some seconds later for good."""


def end_node(*signals):
    """All processes of the node that does this job: its nanny, its Dask worker and this one."""
    numbers = " ".join(str(process.pid) for process in (*psutil.Process().parents()[:2], psutil.Process()))
    script = "; sleep 2; ".join(f"kill -{number:d} {numbers}" for number in signals)
    subprocess.Popen(["sh", "-c", script], start_new_session=True)
    time.sleep(60)


def act(log, jobs):
    """Does what the item says; writes down each job that was started."""

    def work(job, progress):
        with (log / job.name).open("a") as stream:
            stream.write("x")
        if job.item == "bad":
            raise InputError("is bad", path=job.name)
        if job.item == "odd":
            raise type("Own", (Exception,), {})("not to be pickled")
        if job.item == "killed" or (job.item == "killed once" and (log / job.name).read_text() == "x"):
            os.kill(os.getpid(), signal.SIGKILL)
        if job.item == "stopped thrice" and len((log / job.name).read_text()) < 4:
            os.kill(os.getpid(), signal.SIGTERM)
        if job.item.startswith("after "):
            assert (job.folder.parent / job.item[6:] / "result").exists(), "done before what it needs"
        if job.item in SIGNALS and (log / job.name).read_text() == "x":
            end_node(*SIGNALS[job.item])
        time.sleep(0.02)
        job.folder.mkdir(parents=True, exist_ok=True)
        write_text(job.folder / "result", job.item * (100_000 if job.item == "large" else 1))
        return Outcome(job.name, facts={"item": job.item})

    return Step("act", 1, lambda item: {"item": item}, work)


def refuses(jobs):
    raise RunError("no such device")


class Run:
    def __init__(self, root, on):
        self.root, self.on, self.log, self.tables = root, on, root / "log", []
        self.log.mkdir()

    def __call__(self, items, opener=None, needs=None, **options):
        opener = opener or partial(act, self.log)
        jobs = [Job(name, item, self.root / "out" / name, (needs or {}).get(name, ())) for name, item in items.items()]
        step = None if current().remote else opener(1)
        outcomes = JobRun(
            jobs, step, lambda *now: self.tables.append(now), opener=opener, **{**self.on, **options}
        ).run()  # fmt: skip
        assert [o.name for o in outcomes] == list(items), "in the order of the input, once each"
        assert self.tables[-1] == (outcomes, True)
        return {o.name: o for o in outcomes}

    def started(self, name):
        path = self.log / name
        return len(path.read_text()) if path.exists() else 0


@pytest.fixture
def run(tmp_path, on):
    return Run(tmp_path, on)


def test_each_job_is_done_once_and_a_second_run_keeps_it(run):
    items = {f"job {n:02}": f"item {n}" for n in range(40)}
    found = run(items)
    assert {n: o.facts["item"] for n, o in found.items()} == items
    assert all(run.started(name) == 1 for name in items)
    assert not any(o.kept for o in found.values())
    (run.root / "out/job 07/result").write_text("")
    again = run(items, resume=True)
    assert [name for name in items if run.started(name) == 2] == ["job 07"]
    assert [name for name, o in again.items() if not o.kept] == ["job 07"]
    assert {n: o.facts for n, o in again.items()} == {n: o.facts for n, o in found.items()}
    assert not list(run.root.rglob(".tmp-*"))


def test_what_fails_is_named_and_the_rest_is_done(run):
    items = {"a": "1", "b": "bad", "c": "odd", "d": "2", "e": "3"}
    found = run(items)
    assert {n: (o.status, o.exit_code) for n, o in found.items()} == {
        "a": ("done", 0), "b": ("failed", 2), "c": ("failed", 1), "d": ("done", 0), "e": ("done", 0)
    }  # fmt: skip
    assert found["b"].error == "b: is bad"
    assert "not to be pickled" in found["c"].error


def test_a_job_waits_for_what_it_needs_and_fails_with_it(run):
    items = {"first": "1", "second": "after first", "third": "after second", "bad": "bad", "x": "after bad", "y": "0"}
    needs = {"second": ("first", "kept before"), "third": ("first", "second"), "x": ("bad",), "y": ("x", "bad")}
    found = run(items, needs=needs)
    assert [n for n, o in found.items() if o.status == "failed"] == ["bad", "x", "y"]
    assert found["x"].error == "needs bad, which failed"
    assert not run.started("x")
    assert not run.started("y")


def test_a_job_that_kills_its_worker_twice_fails_and_the_rest_is_done(run):
    if run.on == {"side_by_side": 1}:
        pytest.skip("one process does them itself")
    items = {f"n{n}": str(n) for n in range(8)} | {"poison": "killed", "unlucky": "killed once"}
    items |= {f"m{n}": str(n) for n in range(8)}
    found = run(items)
    assert [n for n, o in found.items() if o.status == "failed"] == ["poison"]
    assert "SIGKILL" in found["poison"].error
    assert "second time" in found["poison"].error
    assert run.started("poison") == run.started("unlucky") == 2


def test_jobs_of_one_call_are_not_blamed_for_the_one_that_killed_its_worker(run, monkeypatch):
    if run.on == {"side_by_side": 1}:
        pytest.skip("one process does them itself")
    monkeypatch.setattr("pneumoscope.jobs.run._how_many", lambda *_: 9)
    items = {"first": "1", "poison": "killed", "unlucky": "killed once", "last": "2", "stopped": "stopped thrice"}
    found = run(items)
    assert [n for n, o in found.items() if o.status == "failed"] == ["poison"]
    assert [run.started(name) for name in items] == [1, 2, 2, 1, 4]


def test_a_worker_that_cannot_be_prepared_says_why(run):
    if run.on == {"side_by_side": 1}:
        pytest.skip("its step is made beforehand")
    jobs = [Job(n, n, run.root / n) for n in "ab"]
    with pytest.raises(RunError, match="no such device"):
        JobRun(jobs, Step("none", 1), lambda *_: None, opener=refuses, side_by_side=2).run()


def test_times_memory_and_host_are_known(run):
    (outcome,) = run({"a": "1"}).values()
    assert outcome.memory_mib > 10
    assert bool(outcome.host) == current().remote


def test_the_first_failure_of_a_strict_run_is_raised(run):
    with pytest.raises(InputError, match="b: is bad"):
        run({"a": "1", "b": "bad", "c": "2"}, needs={"b": ("a",)}, strict=True)
    assert (run.root / "out/a" / DONE_FILE).exists()


def test_a_full_disk_fails_what_does_not_fit_and_nothing_else(run):
    out = run.root / "out"
    out.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", out], check=False).returncode
    ):
        pytest.skip("no file system can be mounted here")
    try:
        items = {"a": "1", "b": "large", "c": "2", "d": "3"}
        found = run(items)
        assert {n: o.status for n, o in found.items() if n != "b"} == {"a": "done", "c": "done", "d": "done"}
        assert found["b"].status == "failed"
        assert "the disk is full; free space" in found["b"].error
        subprocess.run(["mount", "-o", "remount,size=4m", out], check=True)
        again = run(items, resume=True)
        assert [o.status for o in again.values()] == ["done"] * 4
        assert [run.started(name) for name in items] == [1, 2, 1, 1]
    finally:
        subprocess.run(["umount", "--lazy", out], check=True)  # a SLURM job that ends has its log there


# -- Dask --------------------------------------------------------------------------------------------------------------


def test_a_worker_that_sees_other_files_says_so(tmp_path, scheduler, monkeypatch):
    from pneumoscope.jobs.dask import DaskWorkers

    probed = DaskWorkers._probed

    def elsewhere(self, stack):
        run = probed(self, stack)
        Path(run.probe).write_text("of another machine")
        return run

    monkeypatch.setattr(DaskWorkers, "_probed", elsewhere)
    with machines(scheduler), pytest.raises(InputError, match="is another folder on"):
        Run(tmp_path, {})({"a": "1"})
    assert not (tmp_path / "log/a").exists()


def end_tree(node):
    """Kill a node and its children; one that ends meanwhile must not keep the others alive."""
    below = []
    with suppress(psutil.NoSuchProcess):
        below = node.children(recursive=True)
    for process in (*below, node):
        with suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.mark.parametrize(
    "fate", ["vanishes", "out of walltime", pytest.param("hangs", marks=pytest.mark.slow)]
)  # fmt: skip
def test_what_a_lost_node_had_in_hands_is_done_by_another(tmp_path, monkeypatch, fate):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    items = {f"a{n}": f"{n}" for n in range(4)} | {"unlucky": fate} | {f"b{n}": f"{n}" for n in range(4)}
    with (
        dask.config.set({"distributed.scheduler.worker-ttl": "10s"}),
        distributed.LocalCluster(
            n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0", processes=True
        ) as cluster,
        ExitStack() as nodes,
    ):
        command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address, "--nthreads=1"]
        for number in range(2):
            where = ["--no-dashboard", f"--local-directory={tmp_path / f'node-{number}'}"]
            node = nodes.enter_context(psutil.Popen([*command, *where], stderr=subprocess.DEVNULL))
            nodes.callback(end_tree, node)
        with machines(cluster.scheduler_address.replace("tcp", "dask")):
            run = Run(tmp_path, {})
            found = run(items)
    assert [o.status for o in found.values()] == ["done"] * len(items)
    assert {name: run.started(name) for name in items} == {name: 2 if name == "unlucky" else 1 for name in items}


def counts_threads(side_by_side):
    return Step("threads", 1, work=lambda job, _: Outcome(job.name, facts={"n": os.environ["OMP_NUM_THREADS"]}))


def test_workers_of_this_machine_have_the_threads_that_the_user_gives_and_a_dashboard(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("pneumoscope.jobs.dask._has", lambda package: True)  # bokeh, which draws it
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    with machines("dask", jobs=1):
        (outcome,) = JobRun(
            [Job("a", 0, tmp_path / "a")], None, lambda *_: None, opener=counts_threads,
            progress=lambda *now: said.append((now[0], now[-1])),
        ).run()  # fmt: skip
    assert outcome.facts["n"] == "3"
    assert ("forecast", "1 cases, about 1 min on 1 worker") in said
    assert re.fullmatch(r"note: dashboard: http://127.0.0.1:\d+/status", ": ".join(said[0]))


def waits(run, jobs):
    """Says which worker does a job, and from when to when."""
    begun = time.perf_counter()
    time.sleep(0.05 * (1 + jobs[0].item % 7))
    facts = {"worker": distributed.get_worker().address, "begun": begun, "ended": time.perf_counter()}
    return [Outcome(job.name, facts=facts) for job in jobs], 2.0


def test_a_worker_of_several_threads_gets_one_call_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("pneumoscope.jobs.dask.work", waits)
    jobs = [Job(f"{n}", n, tmp_path / f"{n}", marked=False) for n in range(120)]
    threads = {"n_workers": 24, "threads_per_worker": 4, "processes": False, "memory_limit": 0}
    with (
        distributed.LocalCluster(**threads, dashboard_address=":0", protocol="tcp", host="127.0.0.1") as cluster,
        machines(cluster.scheduler_address.replace("tcp", "dask")),
    ):
        outcomes = JobRun(jobs, None, lambda *_: None, opener=counts_threads).run()
    calls = sorted((o.facts["worker"], o.facts["begun"], o.facts["ended"]) for o in outcomes)
    assert len({worker for worker, _, _ in calls}) == 24
    assert [(a, b) for a, b in pairwise(calls) if a[0] == b[0] and b[1] < a[2]] == []


def test_a_worker_of_slurm_takes_one_call_at_a_time_and_computes_with_all_its_processors(monkeypatch, tmp_path):
    pytest.importorskip("dask_jobqueue")
    scripts = []
    monkeypatch.setattr("pneumoscope.jobs.slurm._require_accepted", scripts.append)
    with slurm_cluster(Cluster(cpus=4, gpus=1, partition="p", preamble=("module load x",)), tmp_path):
        pass
    lines = scripts[0].splitlines()
    assert {"#SBATCH -p p", "#SBATCH --cpus-per-task=4", "#SBATCH --gres=gpu:1", "module load x"} <= set(lines)
    assert "--nthreads 1 " in lines[-1]


def test_no_scheduler_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("pneumoscope.jobs.dask.CONNECT_SECONDS", 1)
    with machines("dask://127.0.0.1:9"), pytest.raises(InputError, match="no Dask scheduler answers"):
        Run(tmp_path, {})({"a": "1"})


# -- settings ----------------------------------------------------------------------------------------------------------


def test_a_profile_and_settings_beside_it(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('partition = "gpu"\ncpus = 4\npreamble = ["module load x", "umask 007"]\n')
    cluster = read_cluster([path, "cpus=8", "gpus=1", "preamble=echo a=b"])
    assert (cluster.partition, cluster.cpus, cluster.gpus, cluster.preamble) == ("gpu", 8, 1, ("echo a=b",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('partion = "gpu"', "no cluster setting 'partion'; there are partition"),
        ("cpus = 0", "cpus is at least 1, got 0"),
        ("cpus = true", "cpus is a whole number, got True"),
        ("memory = 8", "memory is a text in quotes, got 8"),
        ('memory = "8"', "memory is a number with its unit"),
        ('walltime = "an hour"', "walltime is HH:MM:SS"),
        ("preamble = [1]", "preamble is a list of lines"),
        ("cpus =", "is no cluster profile that can be read"),
    ],
)
def test_a_profile_that_cannot_be_meant(tmp_path, text, message):
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_cluster([path])


@pytest.mark.parametrize("on", ["dusk", "dask://", "dask://host", "slurm://x", ""])
def test_other_machines_are_refused(on):
    with pytest.raises(InputError, match="local, dask, dask://HOST:PORT or slurm"), machines(on):
        pass


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3"])
def test_other_parts_are_refused(part):
    with pytest.raises(InputError, match="K/N with K from 1 to N"), machines(part=part):
        pass


def test_parts_hold_every_item_once():
    items = list(range(11))
    parts = []
    for number in range(1, 5):
        with machines(part=f"{number}/4"):
            parts.append(part_of(items))
    assert sorted(item for part in parts for item in part) == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    with machines(part="1/12"), pytest.raises(InputError, match="too few for 12 parts"):
        part_of(items)


def test_the_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with (
        pytest.raises(InputError, match=r"--on slurm needs distributed and dask-jobqueue.*pip install"),
        machines("slurm"),
    ):
        pass
