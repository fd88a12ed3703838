"""Run an experiment on volumes: every model, its validation and test scans, the ensemble, the threshold, tables, page.

The folder is that of any study (see `study.base`), with ``folds.csv`` (each model's medians) and ``paper.csv`` (every
printed number beside ours) instead of ``forgetting.csv``. A killed study goes on with `resume=True` and ends with the
same weights and scores (CPU, same thread count); only times differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pneumoscope.datasets.cache import open_cache
from pneumoscope.datasets.case import Case, content_of_scan
from pneumoscope.errors import InputError
from pneumoscope.io.files import read_json, write_frame, write_json
from pneumoscope.jobs.stamp import stamp
from pneumoscope.metrics.calibration import Reliability
from pneumoscope.progress import NOTE
from pneumoscope.study.base import Study
from pneumoscope.study.data import require_data
from pneumoscope.study.folder import mark_of
from pneumoscope.study.forecast import peak_gigabytes
from pneumoscope.study.learners.threshold import fitted
from pneumoscope.study.learners.volume_training import VolumeModel, train_model
from pneumoscope.study.scores.table import INTERVAL_ROUNDS, write_scores
from pneumoscope.study.scores.volumes import (
    Labelled,
    fold_medians,
    kept_epochs,
    method_scores,
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

Labels = Callable[[Volume], Labelled]
SCORES, SCORED = "scores.csv", "scored.json"


class VolumeStudy(Study):
    """Every model of a cross-validation, its ensemble and a threshold, scored on validation and test scans."""

    takes = frozenset({"synthetic"})

    def check(self) -> None:
        """See `Study`."""
        self.roots = {name: Path(root) for name, root in self.options.data.items()}
        require_data(self.experiment.recipe, self.roots, self.options.synthetic)
        self.contents: dict[tuple[str, str], str] = {}
        self.trained: dict[str, VolumeModel] = {}
        self.parts: dict[str, pd.DataFrame] = {}

    def prepare(self) -> None:
        """Find the scans, which test sets may lack, and deal them."""
        plan = self.experiment
        self.cases = find_volume_cases(plan, self.roots, self.folder, self.progress)
        jobs = model_jobs(plan, self.cases[plan.train_set.name])
        self.jobs = {job.name: job for job in jobs}
        self.tests = {s.name: self.cases[s.name] for s in plan.test_sets if s.name in self.cases}
        write_splits(jobs, plan.train_set.name, self.folder)
        self.left_out = [s.name for s in plan.data.sets if s.name not in self.cases]

    def mark(self) -> str:
        """See `Study`."""
        return mark_of([case.dataset for found in self.cases.values() for case in found])

    def stages(self) -> dict[str, tuple[str, ...]]:
        """Thresholds first, so that their memory is their own; then all models, after folds their ensemble."""
        full = [job for job in self.jobs.values() if job.setting == "full"]
        names: dict[str, tuple[str, ...]] = {}
        if self.experiment.scoring.baseline:
            names |= {f"threshold-{job.name}": () for job in full}
        for k in dict.fromkeys(job.k for job in self.jobs.values()):
            folds = tuple(job.name for job in full if job.k == k)
            names |= dict.fromkeys(folds, ())
            if self.experiment.scoring.ensemble and len(folds) > 1 and self.tests:
                names[f"ensemble-k{k}"] = folds
            names |= {job.name: () for job in self.jobs.values() if job.k == k and job.setting != "full"}
        return names

    def make_stage(self, name: str) -> None:
        """Train, predict and score a stage."""
        if name.startswith("threshold-"):
            self.parts[name] = self._threshold(self.jobs[name.removeprefix("threshold-")])
        elif name in self.jobs:
            job = self.jobs[name]
            sets = {VALIDATION: job.val, **(self.tests if job.setting == "full" else {})}
            self.parts[name] = self._networks(name, job, job.setting, [name], sets)
        else:
            members = list(self.stages()[name])
            job = ModelJob(name, self.jobs[members[0]].k, 0, "ensemble", (), ())
            self.parts[name] = self._networks(name, job, "ensemble", members, self.tests)
            self.trained.clear()
        self.lap("models")

    def _threshold(self, job: ModelJob) -> pd.DataFrame:
        """The threshold, fitted on a model's training scans."""
        classes, own = self.experiment.preparation.classes, self.folder / "stages" / f"threshold-{job.name}"
        sets = {VALIDATION: job.val, **self.tests}
        identity = self._identity(sets, {"training": self._contents(job.train), "classes": classes})

        def make() -> tuple[Labels, float]:
            since = time.perf_counter()
            labels_of, values = fitted(classes, job.train)
            write_json(own / "threshold.json", values)
            return lambda volume: (labels_of(volume), None), time.perf_counter() - since

        scores = self._scored(own, job, "threshold", identity, make, sets)
        return scores[scores["structure"] == subject_of(scores)]

    def _networks(
        self, name: str, job: ModelJob, setting: str, members: Sequence[str], sets: Mapping[str, Sequence[Case]]
    ) -> pd.DataFrame:
        """One model, or the mean of several."""
        models = [self._model(member) for member in members]
        own = models[0].folder if len(models) == 1 else self.folder / "stages" / name
        return self._scored(own, job, setting, self._identity(sets, self._weights(models)), self._of(models), sets)

    def _model(self, name: str) -> VolumeModel:
        """A model, trained once."""
        if name in self.trained:
            return self.trained[name]
        model = train_model(
            self.experiment, self.jobs[name], self.folder, open_cache(), device=self.device, resume=self.resume,
            progress=self.progress,
        )  # fmt: skip
        if any(name in needed for needed in self.stages().values()):  # an ensemble asks for it again
            self.trained[name] = model
        return model

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
            self.progress(NOTE, 1, 1, f"{own.name}: weights, data or settings changed; its scores are recomputed")
        own.mkdir(parents=True, exist_ok=True)
        (own / SCORED).unlink(missing_ok=True)
        labels_of, training_seconds = make()
        parts, reliabilities = [], {}
        for test, cases in sets.items():
            about = {"stage": own.name, "k": job.k, "fold": job.fold, "setting": setting, "test": test}

            def tell(done: int, total: int, test: str = test) -> None:
                self.progress(f"{own.name} on {test}", done, total)

            table, calibrated = score_cases(self.experiment, cases, labels_of, about, tell)
            parts.append(table)
            reliabilities[test] = asdict(calibrated)
        table = pd.concat(parts, ignore_index=True)
        write_frame(own / SCORES, table)
        per_scan = float(table.drop_duplicates(["test", "case"])["seconds"].median())
        cost = {"training_seconds": round(training_seconds, 2), "seconds_per_scan": round(per_scan, 3),
                "process_peak_gigabytes": round(peak_gigabytes(), 3)}  # fmt: skip
        write_json(own / SCORED, {"stamp": identity, **cost, "reliability": reliabilities})
        return pd.read_csv(own / SCORES, dtype={"case": str, "patient": str})  # as a resumed study reads it

    def score(self) -> dict[str, pd.DataFrame]:
        """Write per_case.csv, folds.csv, matrix.csv, matrix.json and paper.csv."""
        per_case = pd.concat(self.parts.values(), ignore_index=True)
        folds = fold_medians(per_case)
        matrix = volume_matrix(per_case, folds)
        paper = paper_table(
            self.experiment, matrix, folds, kept_epochs(self.folder / "stages", list(self.jobs.values()))
        )
        steady = per_case.drop(columns="seconds")  # times would differ between a resumed run and another
        for table, name in ((steady, "per_case"), (folds, "folds"), (matrix, "matrix"), (paper, "paper")):
            write_frame(self.folder / f"{name}.csv", table)
        write_json(self.folder / "matrix.json", {"recipe": self.experiment.recipe,
                                                 "rows": matrix.to_dict(orient="records"),
                                                 "paper": paper.to_dict(orient="records")})  # fmt: skip
        write_scores(self.folder, method_scores(per_case), {}, self._reliabilities(), n=INTERVAL_ROUNDS)
        return {"matrix": matrix, "paper": paper}

    def _reliabilities(self) -> dict[tuple[str, str], Reliability]:
        """Calibration by method and test, over all models of the method."""
        total: dict[tuple[str, str], Reliability] = {}
        for table in self.parts.values():
            own = self.folder / "stages" / str(table["stage"].iloc[0])
            method = f"{table['setting'].iloc[0]}-k{table['k'].iloc[0]}"
            for test, kept in read_json(own / SCORED)["reliability"].items():
                arrays = {key: np.asarray(kept[key]) for key in ("count", "said", "true")}
                one = Reliability(**arrays, squared=float(kept["squared"]))
                total[method, test] = total[method, test] + one if (method, test) in total else one
        return total

    def summary(self) -> dict[str, Any]:
        """Sets, models, and who stands on both sides of a split."""
        sets = [{"name": name, "scans": len(found), "patients": len({case.patient for case in found})}
                for name, found in self.cases.items()]  # fmt: skip
        leaks = {job.name: patients_on_both_sides(job) for job in self.jobs.values() if job.setting == "full"}
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
        return stamp("volume scores", revision=2, made_by=made_by, data=contents, scoring=scoring)

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
