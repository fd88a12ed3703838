"""Run an experiment on volumes: every model, its validation and test scans, the ensemble, the threshold, tables, page.

The folder is that of any study (see `study.run`), with ``folds.csv`` (each model's medians) and ``paper.csv`` (every
printed number beside ours) instead of ``forgetting.csv``. A killed study goes on with `resume=True` and ends with the
same weights and scores (CPU, same thread count); only times differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.datasets.case import Case
from pneumoscope.experiments.volume_recipes import build_volume_recipe
from pneumoscope.experiments.volumes import VolumeExperiment
from pneumoscope.io.files import write_json, write_text
from pneumoscope.jobs.lock import locks
from pneumoscope.progress import Progress, silent
from pneumoscope.study.folder import fingerprint, write_environment
from pneumoscope.study.forecast import peak_gigabytes
from pneumoscope.study.stages import is_marked
from pneumoscope.study.volumes_baseline import fitted
from pneumoscope.study.volumes_data import (
    VALIDATION,
    ModelJob,
    find_volume_cases,
    model_jobs,
    patients_on_both_sides,
    volume_recipe,
    write_splits,
)
from pneumoscope.study.volumes_folder import begin_volumes
from pneumoscope.study.volumes_score import predict_labels, predictor, score_cases
from pneumoscope.study.volumes_tables import (
    fold_medians,
    kept_epochs,
    paper_table,
    subject_of,
    volume_matrix,
)
from pneumoscope.study.volumes_train import VolumeModel, train_model
from pneumoscope.volume import Volume

Labels = Callable[[Volume], NDArray[np.uint8]]
SCORES, SCORED = "scores.csv", "scored.json"


@dataclass(frozen=True, eq=False)
class VolumeStudyResult:
    """What a study on volumes found, and where it lies.

    Attributes:
        folder: the study folder.
        experiment: as it was run.
        matrix: the table of `matrix.csv`.
        paper: the table of `paper.csv`.
        report: the page to open.
    """

    folder: Path
    experiment: VolumeExperiment
    matrix: pd.DataFrame
    paper: pd.DataFrame
    report: Path


@locks("out")
def run_volume_study(
    experiment: VolumeExperiment | str,
    out: str | Path,
    *,
    data: Mapping[str, str | Path] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    progress: Progress = silent,
) -> VolumeStudyResult:
    """Run an experiment or a recipe on volumes into a study folder.

    Args:
        experiment: a recipe's name or an experiment of your own making.
        out: the study folder.
        data: ``data set name -> folder``; the training set is needed, test sets that are not given are left out. None
            runs on synthetic scans made in `out`.
        resume: go on with the study in `out`.
        overwrite: begin anew over the study in `out`.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        progress: told about every part.

    Raises:
        InputError: the folder holds another study, or data are missing.
        RunError: a training failed; the study can be resumed.
    """
    from pneumoscope.datasets.cache import open_cache
    from pneumoscope.study.volumes_report import write_volume_report

    plan = build_volume_recipe(experiment) if isinstance(experiment, str) else experiment
    roots = {name: Path(root) for name, root in (data or {}).items()}
    folder = begin_volumes(plan, out, resume=resume, overwrite=overwrite)
    study = _Study(plan, folder, resume, device, progress)
    study.note_environment()
    cases = find_volume_cases(plan, roots, folder, progress)
    jobs = model_jobs(plan, cases[plan.train_set.name])
    write_splits(jobs, plan.train_set.name, folder)
    tests = {s.name: cases[s.name] for s in plan.test_sets if s.name in cases}
    parts = study.baseline(jobs, tests) + study.models(jobs, tests, open_cache())
    matrix, paper = study.tables(parts, jobs)
    study.note_summary(jobs, cases, synthetic=not roots)
    return VolumeStudyResult(folder, plan, matrix, paper, write_volume_report(folder))


class _Study:
    """The moving parts of one study."""

    def __init__(
        self, experiment: VolumeExperiment, folder: Path, resume: bool, device: str, progress: Progress
    ) -> None:
        self.experiment, self.folder, self.resume = experiment, folder, resume
        self.device, self.progress = device, progress
        self.costs: list[dict[str, Any]] = []

    def note_environment(self) -> None:
        """Write what the study runs on."""
        import torch

        from pneumoscope.training.devices import pick_device, pick_precision

        device = pick_device(self.device)
        precision = pick_precision(self.experiment.training.precision, device)  # type: ignore[arg-type]
        write_environment(self.folder, device=device.type, precision=precision, threads=torch.get_num_threads())

    def baseline(self, jobs: Sequence[ModelJob], tests: Mapping[str, Sequence[Case]]) -> list[pd.DataFrame]:
        """The threshold, fitted on each model's training scans; first, so that its memory is its own."""
        if not self.experiment.scoring.baseline:
            return []
        parts = []
        classes = self.experiment.preparation.classes
        for job in (job for job in jobs if job.setting == "full"):
            own = self.folder / "stages" / f"threshold-{job.name}"
            names = [case.case for case in (*job.train, *job.val)]
            identity = fingerprint({"threshold": names, "tests": self._names(tests), "scoring": self._scoring()})

            def make(job: ModelJob = job, own: Path = own) -> tuple[Labels, float]:
                begun = time.perf_counter()
                labels_of, values = fitted(classes, job.train)
                write_json(own / "threshold.json", values)
                return labels_of, time.perf_counter() - begun

            parts.append(self._scored(own, job, "threshold", identity, make, {VALIDATION: job.val, **tests}))
        return [part[part["structure"] == subject_of(part)] for part in parts]

    def models(self, jobs: Sequence[ModelJob], tests: Mapping[str, Sequence[Case]], cache: Any) -> list[pd.DataFrame]:
        """Train, predict and score every model; after the last fold of a k its ensemble."""
        parts: list[pd.DataFrame] = []
        together: list[VolumeModel] = []
        for place, job in enumerate(jobs):
            model = train_model(
                self.experiment, job, self.folder, cache, device=self.device, resume=self.resume,
                progress=self.progress,
            )  # fmt: skip
            sets = {VALIDATION: job.val, **(tests if job.setting == "full" else {})}
            identity = self._identity([model], tests)
            parts.append(self._scored(model.folder, job, job.setting, identity, self._of([model]), sets))
            if job.setting == "full":
                together.append(model)
            last = place + 1 == len(jobs) or jobs[place + 1].k != job.k or jobs[place + 1].setting != "full"
            if last and together:
                parts += self._ensemble(together, tests)
                together = []
        return parts

    def _ensemble(self, models: list[VolumeModel], tests: Mapping[str, Sequence[Case]]) -> list[pd.DataFrame]:
        """The mean of the fold models on the test sets; there is none for a single model."""
        if not self.experiment.scoring.ensemble or len(models) < 2 or not tests:
            return []
        job = models[0].job
        own = self.folder / "stages" / f"ensemble-k{job.k}"
        whole = ModelJob(own.name, job.k, 0, "ensemble", (), ())
        return [self._scored(own, whole, "ensemble", self._identity(models, tests), self._of(models), dict(tests))]

    def _of(self, models: Sequence[VolumeModel]) -> Callable[[], tuple[Labels, float]]:
        """Makes the function that gives a scan's classes, and says how long the training took."""
        first, scoring = models[0], self.experiment.scoring
        recipe = volume_recipe(self.experiment, first.phase, preprocessed=first.job.preprocessed)
        i, j, k = first.phase.size
        overlap = tuple(reversed(scoring.overlap))

        def make() -> tuple[Labels, float]:
            members = [predictor(m.model, self.device, self.experiment.training.precision) for m in models]
            seconds = sum(model.seconds for model in models)
            return lambda volume: predict_labels(volume, members, recipe, (k, j, i), overlap), seconds

        return make

    def _scored(
        self, own: Path, job: ModelJob, setting: str, identity: str, make: Callable[[], tuple[Labels, float]],
        sets: Mapping[str, Sequence[Case]],
    ) -> pd.DataFrame:  # fmt: skip
        """Scores of a model on its scans; taken from its folder when a resumed study finds them whole."""
        if self.resume and is_marked(own / SCORED, identity) and (own / SCORES).is_file():
            return pd.read_csv(own / SCORES, dtype={"case": str, "patient": str})
        own.mkdir(parents=True, exist_ok=True)
        labels_of, training_seconds = make()
        parts = []
        for test, cases in sets.items():
            about = {"stage": own.name, "k": job.k, "fold": job.fold, "setting": setting, "test": test}

            def tell(done: int, total: int, test: str = test) -> None:
                self.progress(f"{own.name} on {test}", done, total)

            parts.append(score_cases(self.experiment, cases, labels_of, about, tell))
        table = pd.concat(parts, ignore_index=True)
        write_text(own / SCORES, table.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
        per_scan = float(table.drop_duplicates(["test", "case"])["seconds"].median())
        cost = {"training_seconds": round(training_seconds, 2), "seconds_per_scan": round(per_scan, 3),
                "process_peak_gigabytes": round(peak_gigabytes(), 3)}  # fmt: skip
        write_json(own / SCORED, {"identity": identity, **cost})
        return pd.read_csv(own / SCORES, dtype={"case": str, "patient": str})  # as a resumed study reads it

    def tables(self, parts: Sequence[pd.DataFrame], jobs: Sequence[ModelJob]) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Write per_case.csv, folds.csv, matrix.csv, matrix.json and paper.csv."""
        per_case = pd.concat(parts, ignore_index=True)
        folds = fold_medians(per_case)
        matrix = volume_matrix(per_case, folds)
        paper = paper_table(self.experiment, matrix, folds, kept_epochs(self.folder / "stages", jobs))
        steady = per_case.drop(columns="seconds")  # times would differ between a resumed run and another
        for table, name in ((steady, "per_case"), (folds, "folds"), (matrix, "matrix"), (paper, "paper")):
            text = table.to_csv(index=False, float_format="%.6f", lineterminator="\n")
            write_text(self.folder / f"{name}.csv", text)
        write_json(self.folder / "matrix.json", {"recipe": self.experiment.recipe,
                                                 "rows": matrix.to_dict(orient="records"),
                                                 "paper": paper.to_dict(orient="records")})  # fmt: skip
        return matrix, paper

    def note_summary(self, jobs: Sequence[ModelJob], cases: Mapping[str, Sequence[Case]], *, synthetic: bool) -> None:
        """Write study.json: sets, models, who stands on both sides of a split."""
        sets = [{"name": name, "scans": len(found), "patients": len({case.patient for case in found})}
                for name, found in cases.items()]  # fmt: skip
        leaks = {job.name: patients_on_both_sides(job) for job in jobs if job.setting == "full"}
        write_json(
            self.folder / "study.json",
            {
                "sets": sets,
                "left_out": [s.name for s in self.experiment.data.sets if s.name not in cases],
                "models": len(jobs),
                "split_by": self.experiment.folds.by,
                "folds_with_patients_on_both_sides": {name: found for name, found in leaks.items() if found},
                "synthetic": synthetic,
            },
        )

    def _identity(self, models: Sequence[VolumeModel], tests: Mapping[str, Sequence[Case]]) -> str:
        from pneumoscope.models.cards import read_card

        sums = [read_card(model.folder)["weights"]["sha256"] for model in models]
        val = [case.case for case in models[0].job.val]
        return fingerprint({"weights": sums, "val": val, "tests": self._names(tests), "scoring": self._scoring()})

    def _scoring(self) -> dict[str, Any]:
        scoring = self.experiment.scoring
        return {name: getattr(scoring, name) for name in ("overlap", "lesion_tolerance_mm", "lung_tolerance_mm")}

    @staticmethod
    def _names(tests: Mapping[str, Sequence[Case]]) -> dict[str, list[str]]:
        return {name: [case.case for case in cases] for name, cases in tests.items()}
