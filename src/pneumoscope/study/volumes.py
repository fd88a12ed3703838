"""Run an experiment on volumes: every model, its validation and test scans, the ensemble, the threshold, tables, page.

The folder is that of any study (see `study.base`), with ``folds.csv`` (each model's medians) and ``paper.csv`` (every
printed number beside ours) instead of ``forgetting.csv``. A killed study goes on with `resume=True` and ends with the
same weights and scores (CPU, same thread count); only times differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.datasets.case import Case, content_of_scan
from pneumoscope.errors import InputError
from pneumoscope.io.files import read_json, write_json, write_text
from pneumoscope.jobs.stamp import stamp
from pneumoscope.progress import NOTE
from pneumoscope.study.base import Study
from pneumoscope.study.data import require_data
from pneumoscope.study.folder import mark_of
from pneumoscope.study.forecast import peak_gigabytes
from pneumoscope.study.learners.threshold import fitted
from pneumoscope.study.learners.volume_training import VolumeModel, train_model
from pneumoscope.study.scores.volumes import (
    fold_medians,
    kept_epochs,
    paper_table,
    predict_labels,
    predictor,
    score_cases,
    subject_of,
    volume_matrix,
)
from pneumoscope.study.volumes_data import (
    VALIDATION,
    ModelJob,
    find_volume_cases,
    model_jobs,
    patients_on_both_sides,
    volume_recipe,
    write_splits,
)
from pneumoscope.volume import Volume

Labels = Callable[[Volume], NDArray[np.uint8]]
SCORES, SCORED = "scores.csv", "scored.json"


class VolumeStudy(Study):
    """Every model of a cross-validation, its ensemble and a threshold, scored on validation and test scans."""

    takes = frozenset({"synthetic"})

    def check(self) -> None:
        """See `Study`."""
        self.roots = {name: Path(root) for name, root in self.options.data.items()}
        require_data(self.experiment.recipe, self.roots, self.options.synthetic)
        self.contents: dict[tuple[str, str], str] = {}

    def prepare(self) -> None:
        """Find the scans, which test sets may lack, and deal them."""
        plan = self.experiment
        self.cases = find_volume_cases(plan, self.roots, self.folder, self.progress)
        self.jobs = model_jobs(plan, self.cases[plan.train_set.name])
        write_splits(self.jobs, plan.train_set.name, self.folder)
        self.left_out = [s.name for s in plan.data.sets if s.name not in self.cases]

    def mark(self) -> str:
        """See `Study`."""
        return mark_of([case.dataset for found in self.cases.values() for case in found])

    def make(self) -> None:
        """Train, predict and score model by model; the threshold first, so that its memory is its own."""
        from pneumoscope.datasets.cache import open_cache

        tests = {s.name: self.cases[s.name] for s in self.experiment.test_sets if s.name in self.cases}
        self.parts = self.baseline(self.jobs, tests) + self.models(self.jobs, tests, open_cache())
        self.lap("models")

    def baseline(self, jobs: Sequence[ModelJob], tests: Mapping[str, Sequence[Case]]) -> list[pd.DataFrame]:
        """The threshold, fitted on each model's training scans; first, so that its memory is its own."""
        if not self.experiment.scoring.baseline:
            return []
        parts = []
        classes = self.experiment.preparation.classes
        for job in (job for job in jobs if job.setting == "full"):
            own = self.folder / "stages" / f"threshold-{job.name}"
            taught = {"training": self._contents(job.train), "classes": classes}
            identity = self._identity({VALIDATION: job.val, **tests}, taught)

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
            identity = self._identity(sets, self._weights([model]))
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
        identity = self._identity(tests, self._weights(models))
        return [self._scored(own, whole, "ensemble", identity, self._of(models), dict(tests))]

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
        before = _stamp_of(own / SCORED) if self.resume else None
        if before == identity and (own / SCORES).is_file():
            return pd.read_csv(own / SCORES, dtype={"case": str, "patient": str})
        if before is not None:
            self.progress(NOTE, 1, 1, f"{own.name}: weights, data or settings changed; its scores are made anew")
        own.mkdir(parents=True, exist_ok=True)
        (own / SCORED).unlink(missing_ok=True)
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
        write_json(own / SCORED, {"stamp": identity, **cost})
        return pd.read_csv(own / SCORES, dtype={"case": str, "patient": str})  # as a resumed study reads it

    def score(self) -> dict[str, pd.DataFrame]:
        """Write per_case.csv, folds.csv, matrix.csv, matrix.json and paper.csv."""
        per_case = pd.concat(self.parts, ignore_index=True)
        folds = fold_medians(per_case)
        matrix = volume_matrix(per_case, folds)
        paper = paper_table(self.experiment, matrix, folds, kept_epochs(self.folder / "stages", self.jobs))
        steady = per_case.drop(columns="seconds")  # times would differ between a resumed run and another
        for table, name in ((steady, "per_case"), (folds, "folds"), (matrix, "matrix"), (paper, "paper")):
            text = table.to_csv(index=False, float_format="%.6f", lineterminator="\n")
            write_text(self.folder / f"{name}.csv", text)
        write_json(self.folder / "matrix.json", {"recipe": self.experiment.recipe,
                                                 "rows": matrix.to_dict(orient="records"),
                                                 "paper": paper.to_dict(orient="records")})  # fmt: skip
        return {"matrix": matrix, "paper": paper}

    def summary(self) -> dict[str, Any]:
        """Sets, models, and who stands on both sides of a split."""
        sets = [{"name": name, "scans": len(found), "patients": len({case.patient for case in found})}
                for name, found in self.cases.items()]  # fmt: skip
        leaks = {job.name: patients_on_both_sides(job) for job in self.jobs if job.setting == "full"}
        return {
            "sets": sets,
            "models": len(self.jobs),
            "split_by": self.experiment.folds.by,
            "folds_with_patients_on_both_sides": {name: found for name, found in leaks.items() if found},
        }

    def shown(self, tables: Mapping[str, pd.DataFrame]) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
        """Dice of the infection (or lungs) per k, method and test set."""
        matrix = tables["matrix"]
        rows = matrix[(matrix["structure"] == subject_of(matrix)) & (matrix["metric"] == "dice")]
        columns = ["test", "k", "setting", "n_cases", "median", "mean", "sd", "lowest", "highest"]
        names = ("scans", "folds", "method", "scored", "median dice", "mean", "sd", "lowest", "highest")
        return names, rows[columns].replace({"test": {VALIDATION: "validation"}}).to_numpy().tolist()

    def _identity(self, sets: Mapping[str, Sequence[Case]], made_by: Any) -> str:
        """Stamp of the scores of a model: what made it, the scans with their masks, and how they are scored."""
        contents = {name: self._contents(cases) for name, cases in sets.items()}
        scoring = [getattr(self.experiment.scoring, n) for n in ("overlap", "lesion_tolerance_mm", "lung_tolerance_mm")]
        return stamp("volume scores", revision=1, made_by=made_by, data=contents, scoring=scoring)

    @staticmethod
    def _weights(models: Sequence[VolumeModel]) -> list[list[str]]:
        from pneumoscope.models.cards import read_card

        return [[model.stamp, read_card(model.folder)["weights"]["sha256"]] for model in models]

    def _contents(self, cases: Sequence[Case]) -> list[list[str]]:
        """Name, patient and content of scans; each is read once."""
        for done, case in enumerate(cases, start=1):
            if (case.dataset, case.case) not in self.contents:
                self.contents[case.dataset, case.case] = content_of_scan(case.load())
                self.progress("comparing data", done, len(cases))
        return [[case.case, case.patient, self.contents[case.dataset, case.case]] for case in cases]


def _stamp_of(path: Path) -> str | None:
    """The stamp of kept scores; None where there are none."""
    try:
        return str(read_json(path)["stamp"])
    except (InputError, KeyError):
        return None
