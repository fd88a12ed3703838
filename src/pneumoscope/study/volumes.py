"""Studies on volumes: models of a cross-validation, their ensemble and a threshold, scored on all scans; the page."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pneumoscope.datasets.case import Case, content_of_scan
from pneumoscope.io.files import read_json, write_json
from pneumoscope.jobs.stamp import read_done, stamp
from pneumoscope.metrics.classification import Reliability
from pneumoscope.processes import peak_bytes
from pneumoscope.recipes.volumes import VolumeExperiment
from pneumoscope.reports.figures import data_uri, new_figure, png
from pneumoscope.study.base import Modality
from pneumoscope.study.data import require_data
from pneumoscope.study.folder import mark_of, stage_cards
from pneumoscope.study.learners.threshold import fitted
from pneumoscope.study.learners.volumes import VolumeModel, train_model
from pneumoscope.study.scores.table import Scores, forgetting, kept_table
from pneumoscope.study.scores.volumes import (
    NETWORKS,
    Labelled,
    fold_medians,
    headline,
    kept_epochs,
    method_scores,
    paper_table,
    predict_labels,
    predictor,
    score_cases,
    subject_of,
    volume_matrix,
    windows_of,
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
SCORED = "scored"
THRESHOLD = "threshold-"  # How the stages begin that fit a threshold on a model's training scans


class Volumes(Modality):
    """Scans in folds: networks on boxes of them, or on the whole scan."""

    title = "Volume study"
    measures = ("dice", "nsd")
    takes = frozenset({"synthetic"})

    def check(self) -> None:
        """See `Modality`."""
        self.roots = {name: Path(root) for name, root in self.options.data.items()}
        require_data(self.experiment.recipe, self.roots, self.options.synthetic)
        self.contents: dict[tuple[str, str], str] = {}
        self.trained: dict[str, VolumeModel] = {}

    def read(self) -> None:
        """Find the scans, which test sets may lack, and split them."""
        plan = self.experiment
        self.cases = find_volume_cases(plan, self.roots, self.folder, self.progress)
        jobs = model_jobs(plan, self.cases[plan.train_set.name])
        self.jobs = {job.name: job for job in jobs}
        self.tests = {s.name: self.cases[s.name] for s in plan.test_sets if s.name in self.cases}
        write_splits(jobs, plan.train_set.name, self.folder)
        absent = [s.name for s in plan.data.sets if s.name not in self.cases]
        self.left_out = [f"No data were given for {', '.join(absent)}"] if absent else []

    def mark(self) -> str:
        """See `Modality`."""
        return mark_of([case.dataset for found in self.cases.values() for case in found])

    def stages(self) -> dict[str, tuple[str, ...]]:
        """Thresholds first, so that their memory is their own; then all models, after folds their ensemble."""
        full = [job for job in self.jobs.values() if job.setting == "full"]
        names: dict[str, tuple[str, ...]] = {}
        if self.experiment.scoring.baseline:
            names |= {f"{THRESHOLD}{job.name}": () for job in full}
        for k in dict.fromkeys(job.k for job in self.jobs.values()):
            folds = tuple(job.name for job in full if job.k == k)
            names |= dict.fromkeys(folds, ())
            if self.experiment.scoring.ensemble and len(folds) > 1 and self.tests:
                names[f"ensemble-k{k}"] = folds
            names |= {job.name: () for job in self.jobs.values() if job.k == k and job.setting != "full"}
        return names

    def train(self, name: str) -> None:
        """Train a network; an ensemble has nothing of its own, and a threshold is fitted when it is scored."""
        if name in self.jobs:
            self.trained[name] = train_model(self.context, self.jobs[name])

    def score(self, name: str) -> pd.DataFrame:
        """See `Modality`; networks that no ensemble asks for again are let go."""
        stages = self.stages()
        if name.startswith(THRESHOLD):
            rows = self._threshold(name, self.jobs[name.removeprefix(THRESHOLD)])
        elif name in self.jobs:
            job = self.jobs[name]
            sets = {VALIDATION: job.val, **(self.tests if job.setting == "full" else {})}
            rows = self._networks(name, job, job.setting, [name], sets)
        else:
            job = ModelJob(name, self.jobs[stages[name][0]].k, 0, "ensemble", (), ())
            rows = self._networks(name, job, "ensemble", stages[name], self.tests)
        left = list(stages)[list(stages).index(name) + 1 :]
        for known in [n for n in self.trained if not any(n in stages[later] for later in left)]:
            del self.trained[known]
        return rows

    def _threshold(self, name: str, job: ModelJob) -> pd.DataFrame:
        """The threshold, fitted on a model's training scans."""
        classes, own = self.experiment.preparation.classes, self.folder / "stages" / name
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
        models = [self.trained[member] for member in members]
        own = models[0].folder if len(models) == 1 else self.folder / "stages" / name
        return self._scored(own, job, setting, self._identity(sets, self._weights(models)), self._of(models), sets)

    def _of(self, models: Sequence[VolumeModel]) -> Callable[[], tuple[Labels, float]]:
        """Makes the function that gives a scan's classes, and says how long the training took."""
        first = models[0]
        recipe = volume_recipe(self.experiment, first.phase, preprocessed=first.job.preprocessed)
        plan = windows_of(self.experiment, first.phase)

        def make() -> tuple[Labels, float]:
            members = [predictor(m.model, self.device, self.experiment.training.precision) for m in models]
            seconds = sum(float(read_done(model.folder).get("seconds", 0)) for model in models)
            return lambda volume: predict_labels(volume, members, recipe, plan), seconds

        return make

    def _scored(
        self, own: Path, job: ModelJob, setting: str, identity: str, make: Callable[[], tuple[Labels, float]],
        sets: Mapping[str, Sequence[Case]],
    ) -> pd.DataFrame:  # fmt: skip
        """Scores of a model on its scans, kept in its folder."""

        def score() -> tuple[pd.DataFrame, dict[str, Any]]:
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
            per_scan = float(table.drop_duplicates(["test", "case"])["seconds"].median())
            cost = {"training_seconds": round(training_seconds, 2), "seconds_per_scan": round(per_scan, 3),
                    "process_peak_gigabytes": round(peak_bytes() / 1e9, 3)}  # fmt: skip
            return table, {**cost, "reliability": reliabilities}

        return kept_table(own, SCORED, identity, score, resume=self.resume, progress=self.progress)

    def tables(self, per_case: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """``per_case``, ``folds`` (each model's medians), ``matrix`` and ``paper`` (printed numbers beside ours)."""
        folds = fold_medians(per_case)
        matrix = volume_matrix(per_case, folds)
        epochs = kept_epochs(self.folder / "stages", list(self.jobs.values()))
        paper = paper_table(self.experiment, matrix, folds, epochs)
        write_json(self.folder / "matrix.json", {"recipe": self.experiment.recipe,
                                                 "rows": matrix.to_dict(orient="records"),
                                                 "paper": paper.to_dict(orient="records")})  # fmt: skip
        steady = per_case.drop(columns="seconds")  # times would differ between a resumed run and another
        return {"per_case": steady, "folds": folds, "matrix": matrix, "paper": paper}

    def scores(self, per_case: pd.DataFrame) -> Scores:
        """See `Modality`; a stage is a method (``full-k5``): the mean over its models."""
        total: dict[tuple[str, str], Reliability] = {}
        for (stage, setting, k), _ in per_case.groupby(["stage", "setting", "k"], sort=False):
            kept = read_json(self.folder / "stages" / str(stage) / f"{SCORED}.json")["reliability"]
            for test, counts in kept.items():
                arrays = {key: np.asarray(counts[key]) for key in ("count", "said", "true")}
                one, cell = Reliability(**arrays, squared=float(counts["squared"])), (f"{setting}-k{k}", test)
                total[cell] = total[cell] + one if cell in total else one
        table = method_scores(per_case)
        return Scores(table, total, forgetting(table, {}, self.measures[0]))

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

    @staticmethod
    def page(experiment: Any, folder: Path) -> dict[str, Any]:
        """See `Modality`."""
        return volumes_page(experiment, folder)

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


COLOURS = {"full": "#0b6bcb", "no-augmentation": "#7a9cc0", "no-preprocessing": "#b58a3c", "plain": "#8a8f98",
           "ensemble": "#2e8540", "threshold": "#e8650a"}  # fmt: skip
SHORT = {"no-augmentation": "no\naugment.", "no-preprocessing": "no\nprepar."}


def volumes_page(experiment: VolumeExperiment, folder: Path) -> dict[str, Any]:
    """What the page shows; also draws `figures/`."""
    per_case, matrix = pd.read_csv(folder / "per_case.csv"), pd.read_csv(folder / "matrix.csv")
    paper = pd.read_csv(folder / "paper.csv")
    (folder / "figures").mkdir(exist_ok=True)
    pictures = {"dice": _dice_figure(per_case), "curves": _curves_figure(folder)}
    for name, picture in pictures.items():
        (folder / "figures" / f"{name}.png").write_bytes(picture)
    return {
        "section": "study_volumes.html",
        "research_only": "Methods compared on few scans: it does not show how a model performs on your patients.",
        "cards": stage_cards(folder, sorted(path.parent.name for path in folder.glob("stages/*/card.json"))),
        "rows": headline(matrix),
        "structures": _structures(matrix),
        "paper": paper.where(paper.notna(), None).to_dict(orient="records") if paper["ours"].notna().any() else [],
        "unmatched": int(paper["ours"].isna().sum()),
        "costs": _costs(folder),
        "pictures": {name: data_uri(picture) for name, picture in pictures.items()},
    }


def _structures(matrix: pd.DataFrame) -> list[dict[str, Any]]:
    """Median Dice of each structure in validation."""
    part = matrix[(matrix["test"] == VALIDATION) & (matrix["metric"] == "dice")]
    columns = ["k", "setting", "structure", "n_cases", "median", "fold_mean", "sd"]
    return [dict(zip(columns, row, strict=True)) for row in part[columns].itertuples(index=False)]


def _costs(folder: Path) -> list[dict[str, Any]]:
    """Training time, time per scan and peak of the process after each model, in the order they were run."""
    found = []
    for path in sorted(folder.glob("stages/*/scored.json"), key=lambda p: p.stat().st_mtime_ns):
        cost = read_json(path)
        cost = {name: cost[name] for name in ("training_seconds", "seconds_per_scan", "process_peak_gigabytes")}
        found.append({"stage": path.parent.name, **cost})
    return found


def _dice_figure(per_case: pd.DataFrame) -> bytes:
    """Dice of the infection (or lungs) per scan, a box per k, setting and test set."""
    subject = subject_of(per_case)
    rows = per_case[per_case["structure"] == subject]
    tests = list(dict.fromkeys(rows["test"]))
    figure = new_figure(3.4 * len(tests) + 0.8, 3.6)
    panels = figure.subplots(1, len(tests), squeeze=False, sharey=True)[0]
    for panel, test in zip(panels, tests, strict=True):
        part = rows[rows["test"] == test]
        cells = list(dict.fromkeys(zip(part["k"], part["setting"], strict=True)))
        cells.sort(key=lambda cell: (cell[0], list(COLOURS).index(cell[1])))
        for place, (k, setting) in enumerate(cells):
            values = part[(part["k"] == k) & (part["setting"] == setting)]["dice"].to_numpy()
            panel.boxplot(values, positions=[place], widths=0.6, showfliers=False,
                          medianprops={"color": COLOURS[setting], "lw": 2})  # fmt: skip
            panel.plot([place] * len(values), values, "o", ms=3, color=COLOURS[setting], alpha=0.5)
        names = [(f"{k}-fold\n" if k > 1 else "") + SHORT.get(s, s) for k, s in cells]
        panel.set_xticks(range(len(cells)), names, fontsize=6)
        panel.set_title("validation" if test == VALIDATION else test, fontsize=9)
        panel.set_ylim(-0.02, 1.02)
    panels[0].set_ylabel(f"Dice of {subject}, a dot per scan")
    figure.tight_layout()
    return png(figure)


def _curves_figure(folder: Path) -> bytes:
    """Training and validation loss of every model, a panel per setting (Mueller 2021, Figure 5)."""
    histories = {path.parent.name: pd.read_csv(path) for path in sorted(folder.glob("stages/*/history.csv"))}
    kinds = [s for s in NETWORKS if any(_setting(name) == s for name in histories)]
    figure = new_figure(3.4 * len(kinds) + 0.4, 3.0)
    for panel, kind in zip(figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0], kinds, strict=True):
        for name, history in histories.items():
            if _setting(name) == kind:
                panel.plot(history["epoch"], history["train_loss"], color="#c0392b", lw=0.9, alpha=0.7)
                panel.plot(history["epoch"], history["val_loss"], color="#1f9bb5", lw=0.9, alpha=0.7)
        panel.set_title(kind, fontsize=9)
        panel.set_xlabel("epoch")
        lines = panel.get_lines()[:2]
        panel.legend(lines, ["training", "validation"][: len(lines)], fontsize=7, frameon=False)
    figure.axes[0].set_ylabel("loss")
    figure.tight_layout()
    return png(figure)


def _setting(stage: str) -> str:
    return next((s for s in NETWORKS[1:] if stage.endswith(f"-{s}")), "full")
