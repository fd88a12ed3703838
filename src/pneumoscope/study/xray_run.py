"""Run an X-ray study: pictures, draws, baselines, networks, probes, tables, figures, report; resumable.

All tests are asked after all choices were made on the validation part. What cannot be run (Model_3 without its file,
adults without their set, a source that cannot be left out) is left out and said, never replaced.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from pneumoscope.errors import InputError
from pneumoscope.experiments.access import describe, differences, to_json
from pneumoscope.experiments.xray_schema import XrayExperiment
from pneumoscope.io.files import read_json, write_json, write_text
from pneumoscope.jobs.lock import locks
from pneumoscope.progress import Noted, Progress, silent
from pneumoscope.study import xray_data
from pneumoscope.study.folder import EXPERIMENT_FILE, open_folder, write_environment, write_run
from pneumoscope.study.xray_arms import AS_PAPER, all_arms, plain_recipe
from pneumoscope.study.xray_figures import draw_all
from pneumoscope.study.xray_honest import baselines, held_out, probes
from pneumoscope.study.xray_nets import Job, stage_folder, train_job
from pneumoscope.study.xray_report import read_xray_experiment, write_xray_report
from pneumoscope.study.xray_scores import matrix, probe_means, remedies
from pneumoscope.study.xray_trial import Trial, make_trial, write_splits


@dataclass(frozen=True, eq=False)
class XrayResult:
    """What an X-ray study found.

    Attributes:
        folder: the study folder.
        experiment: as it was run.
        matrix: the table of `matrix.csv`.
        remedies: the table of `remedies.csv`.
        left_out: what was not run, and why.
        report: the page to open.
        seconds: wall time by part.
    """

    folder: Path
    experiment: XrayExperiment
    matrix: pd.DataFrame
    remedies: pd.DataFrame
    left_out: tuple[str, ...]
    report: Path
    seconds: dict[str, float]


@locks("out")
def run_xray_study(
    experiment: XrayExperiment,
    out: str | Path,
    *,
    data: Mapping[str, str | Path] | None = None,
    synthetic: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    progress: Progress = silent,
) -> XrayResult:
    """Run an X-ray study into a folder.

    Args:
        experiment: the study.
        out: the study folder.
        data: folder by data set name; ``resnet50`` names the file of Model_3's published weights.
        synthetic: refused; there are no synthetic radiographs.
        resume: continue the study in `out`; what was made of the same pictures, settings and weights is kept. More
            repeats may be asked for.
        overwrite: start again over the study in `out`.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        progress: told about every part.

    Raises:
        InputError: the folder holds another study, or data are missing or too few.
        RunError: a training failed; the study can be resumed.
    """
    if synthetic:
        raise InputError(f"{experiment.recipe} has no synthetic radiographs to run on; give its data sets with --data")
    return _Study(experiment, device, Noted(progress)).run(out, data or {}, resume=resume, overwrite=overwrite)


def _begin(experiment: XrayExperiment, out: str | Path, *, resume: bool, overwrite: bool) -> Path:
    """Make `out` a folder of this study, as `study.folder.begin` does for CT."""
    folder, kept = open_folder(out, resume=resume, overwrite=overwrite)
    if kept:
        changed = [
            line
            for line in differences(read_xray_experiment(folder), experiment)
            if not line.startswith("training.repeats:")
        ]
        if changed:
            raise InputError(
                f"holds a study with other settings ({'; '.join(changed[:4])}); resume with the settings it was "
                "started with, use --overwrite, or another folder",
                path=folder,
            )
    write_json(folder / EXPERIMENT_FILE, {**to_json(experiment), "numbers": describe(experiment)})
    return folder


class _Study:
    """The moving parts of one study."""

    def __init__(self, experiment: XrayExperiment, device: str, progress: Noted) -> None:
        self.experiment, self.device, self.progress = experiment, device, progress
        self.left_out: list[str] = []
        self.resume = False
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def _lap(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] = round(self.seconds.get(part, 0.0) + now - self._since, 2)
        self._since = now

    def run(self, out: str | Path, given: Mapping[str, str | Path], *, resume: bool, overwrite: bool) -> XrayResult:
        """See `run_xray_study`."""
        experiment, self.resume = self.experiment, resume
        roots, weights = xray_data.check_roots(experiment, given)
        cases = xray_data.list_cases(roots)  # before anything is written
        folder = _begin(experiment, out, resume=resume, overwrite=overwrite)
        self._note_environment(folder)
        pool = xray_data.read_pool(experiment, cases, folder, self.progress)
        trials = [make_trial(experiment, pool, repeat) for repeat in range(experiment.training.repeats)]
        for trial in trials:
            write_splits(trial, folder / "splits")
        self._note_left_out(trials[0], roots, weights)
        rows = [part.rows for t in trials for part in (t.one, t.adults) if part is not None]
        few = np.unique(np.concatenate([*rows, *(t.sick for t in trials)]))
        plain = plain_recipe(experiment) if trials[0].zero is not None else None
        supply = xray_data.Supply(pool, folder / "data", few, plain, self.progress)
        self._lap("reading")
        said, told = [], []
        for trial in trials:
            said.append(baselines(trial, supply, self.progress))
            told.append(probes(trial, supply, self.progress))
            self._lap("baselines and probes")
            for job in self._jobs(trial, folder, weights):
                said.append(
                    train_job(job, trial, supply, folder, device=self.device, progress=self.progress),
                )
                self._lap(f"{job.name}")
        return self._finish(folder, trials, supply, pd.concat(said, ignore_index=True), pd.concat(told))

    def _note_environment(self, folder: Path) -> None:
        import torch

        from pneumoscope.training.devices import pick_device, pick_precision

        device = pick_device(self.device)
        precision = pick_precision(cast(Any, self.experiment.training.precision), device)
        write_environment(folder, device=device.type, precision=precision, threads=torch.get_num_threads())

    def _note_left_out(self, trial: Trial, roots: Mapping[str, Path], weights: Path | None) -> None:
        stages = self.experiment.training.stages or ()
        if "Model_3" in stages and weights is None:
            from pneumoscope.models.published import PUBLISHED

            known = PUBLISHED["resnet50"]
            self.left_out.append(
                f"Model_3: no file of ImageNet weights was given; fetch {next(iter(known.files))} from {known.home} "
                f"and give --data {xray_data.RESNET}=FILE"
            )
        if trial.adults is None:
            name = self.experiment.data.adults
            why = "has too few patients" if name in roots else f"was not given (--data {name}=ROOT)"
            self.left_out.append(f"healthy adults and the remedies that learn from them: {name} {why}")
        for source in trial.covid_sources:
            if source not in held_out(trial):
                self.left_out.append(f"COVID-19 of {source} held out: too few pictures are left without it")

    def _jobs(self, trial: Trial, folder: Path, weights: Path | None) -> list[Job]:
        """Every network of a trial, those first that others begin with."""
        arms, honest = all_arms(self.experiment), self.experiment.honest
        stages = self.experiment.training.stages or ()
        plain = arms[AS_PAPER]
        zero = Job("Model_0", plain)
        jobs = [zero] if "Model_0" in stages else []
        if "Model_1" in stages:
            jobs.append(Job("Model_1", plain))
        if "Model_2" in stages:
            jobs.append(Job("Model_2", plain, start=stage_folder(folder, zero, trial)))
        if "Model_3" in stages and weights is not None:
            jobs.append(Job("Model_3", plain, weights=weights))
        if honest.network_draws is not None and trial.repeat >= honest.network_draws:
            return jobs
        chosen = [arms[name] for name in honest.networks or () if trial.adults is not None or not arms[name].adults]
        jobs += [Job("Model_1", arm) for arm in chosen]
        if honest.held_out_networks:
            strict = [arm for arm in chosen if arm.name == "all"]
            jobs += [Job("Model_1", arm, without=s) for arm in (plain, *strict) for s in held_out(trial)]
        return jobs

    def _finish(
        self, folder: Path, trials: list[Trial], supply: xray_data.Supply, per_case: pd.DataFrame, told: pd.DataFrame
    ) -> XrayResult:
        """Tables, figures, page."""
        for line in self.left_out:
            self.progress("left out", 1, 1, line)
        cells, what_is_left = matrix(per_case, self.experiment), remedies(per_case, told, self.experiment)
        for name, found in (
            ("per_case", per_case),
            ("matrix", cells),
            ("remedies", what_is_left),
            ("probes", told),
        ):
            text = found.to_csv(index=False, float_format="%.6f", lineterminator="\n")
            write_text(folder / f"{name}.csv", text)
        draw_all(self.experiment, folder, trials[0], supply, per_case, what_is_left)
        self._lap("tables and figures")
        write_run(folder, self.progress.notes, resumed=self.resume, synthetic=False)
        write_json(folder / "study.json", self._summary(folder, trials, cells, what_is_left, told))
        report = write_xray_report(folder)
        return XrayResult(
            folder, self.experiment, cells, what_is_left, tuple(self.left_out), report, dict(self.seconds)
        )

    def _summary(
        self, folder: Path, trials: list[Trial], cells: pd.DataFrame, table: pd.DataFrame, told: pd.DataFrame
    ) -> dict[str, Any]:
        """What the page says beside the figures."""
        pool = trials[0].pool
        timing = {path.parent.name: read_json(path) for path in sorted(folder.glob("stages/*/timing.json"))}
        return {
            "pool": {
                "pictures": len(pool.cases),
                "patients": len({case.patient for case in pool.cases}),
                "groups": len(set(pool.groups)),
                "copies": len(pool.pairs),
                "unreadable": [list(pair) for pair in pool.unreadable[:50]],
            },
            "sets": [_set_row(trial, part) for trial in trials for part in _sets(trial)],
            "left_out": self.left_out,
            "matrix": cells.to_dict(orient="records"),
            "remedies": table.to_dict(orient="records"),
            "probes": probe_means(told).to_dict(orient="records"),
            "timing": timing,
            "seconds": self.seconds,
            "notes": self.progress.notes,
        }


def _sets(trial: Trial) -> list[xray_data.SplitSet]:
    return [part for part in (trial.zero, trial.one, trial.adults) if part is not None]


def _set_row(trial: Trial, part: xray_data.SplitSet) -> dict[str, Any]:
    return {
        "name": part.name,
        "seed": trial.repeat,
        "classes": {name: int((part.labels == i).sum()) for i, name in enumerate(part.classes)},
        "parts": {name: int((part.parts == name).sum()) for name in ("train", "val", "test")},
        "groups": len(set(trial.pool.group_of(part.rows).tolist())),
        "torn_groups": len(part.torn),
        "notes": list(part.notes),
    }
