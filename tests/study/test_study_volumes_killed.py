"""SIGKILL to `study run` of both recipes on volumes, in a process of its own, and the end of an undisturbed study."""

import os
import signal
import subprocess
import sys
import time

import pytest

MUELLER = ["data.sets.covid19ctseg.phantom_patients=3", "data.sets.an2020.phantom_patients=1", "network.features=2,4",
           "phases.fit.steps=2", "phases.fit.max_epochs=40", "phases.fit.patience=none", "phases.fit.size=16,16,8",
           "folds.k=2", "folds.ablation=false", "training.validation_boxes=1"]  # fmt: skip
BRESSEM = ["data.sets.ricord.phantom_patients=3", "data.sets.covid19ctseg.phantom_patients=1",
           "data.sets.mosmed.phantom_patients=1", "network.features=2,4,4,2,2", "training.validation_boxes=1",
           "phases.low.max_epochs=2", *(f"phases.{p}.max_epochs=40" for p in ("decoder", "high")),
           *(f"phases.{p}.{v}" for p in ("decoder", "low", "high") for v in ("size=16,16,8", "steps=2"))]  # fmt: skip
STUDIES = {
    "mueller-2021-small": (MUELLER, ("k2-f1", "k2-f2")),
    "bressem-2021-small": (BRESSEM, ("split-decoder", "split-low", "split-high")),
}


def study(start, recipe, folder, settings, *more):
    """The command as a user gives it, one thread, a cache of the study's own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PNEUMOSCOPE_CACHE": str(folder.parent / "cache")}
    command = [sys.executable, "-m", "pneumoscope", "study", "run", recipe, "-o", str(folder), "--device", "cpu",
               "--synthetic"]  # fmt: skip
    return start(
        [*command, *(part for s in settings for part in ("--set", s)), *more],
        env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def complete(process):
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said.decode()[-2000:]


def rows(path):
    return len(path.read_text().splitlines()) - 1 if path.is_file() else 0


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("recipe", STUDIES)
def test_killed_by_the_system_ends_to_the_bit_like_an_undisturbed_study(recipe, tmp_path, start):
    """Killed in the middle of the first and of the last training; weights, histories and scores are compared."""
    settings, stages = STUDIES[recipe]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    cut_short = []
    for stage in (stages[0], stages[-1]):
        process = study(start, recipe, killed, settings, *(["--resume"] if killed.is_dir() else []))
        history, done = (killed / "stages" / stage / name for name in ("history.csv", "done.json"))
        deadline = time.monotonic() + 400
        while rows(history) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert rows(history) >= 2
        cut_short.append(not done.is_file())
    assert all(cut_short), "the trainings were over before the signal came; make them longer"
    complete(study(start, recipe, killed, settings, "--resume"))
    complete(study(start, recipe, whole, settings))
    names = ["per_case.csv", "folds.csv", "matrix.csv"]
    names += [f"stages/{stage}/{name}" for stage in stages for name in ("model.safetensors", "history.csv")]
    for name in names:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
