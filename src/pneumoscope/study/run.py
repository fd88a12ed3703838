"""Run an experiment: sets, lung masks, stages, scores, tables, figures, report, in a folder that can be gone on with.

The order is the paper's: all trainings first, then every stage on every test set, once. Everything is written under a
temporary name and renamed, so a study killed at any moment is gone on with by `resume=True` and ends with the same
tables (CPU, same thread count).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pneumoscope.experiments.registry import build_recipe
from pneumoscope.experiments.schema import Experiment
from pneumoscope.io.files import write_json, write_text
from pneumoscope.jobs.lock import locks
from pneumoscope.progress import FORECAST, Noted, Progress, silent
from pneumoscope.reports.figures import marked
from pneumoscope.study import figures
from pneumoscope.study.answers import StageModel
from pneumoscope.study.data import (
    StudySet,
    build_set,
    find_cases,
    lung_folders,
    require_data,
    roots_of,
    set_names,
)
from pneumoscope.study.folder import begin, mark_of, mark_tables, write_environment, write_run
from pneumoscope.study.forecast import Forecast, forecast
from pneumoscope.study.forgetting import FORMULAS, forgetting_table, transfer
from pneumoscope.study.guard import renew_verdict
from pneumoscope.study.lung_effect import lung_effect, write_lung_effect
from pneumoscope.study.lungs import LUNG_STAGE, LungSupply
from pneumoscope.study.matrix import Matrix, untrained_f1
from pneumoscope.study.predictions import predict_stage
from pneumoscope.study.report import write_report
from pneumoscope.study.scoring import Scorer, ranked_slice, write_per_case
from pneumoscope.study.shift import write_shift
from pneumoscope.study.systems import StageMaker
from pneumoscope.study.systems_table import write_systems


@dataclass(frozen=True, eq=False)
class StudyResult:
    """What a study found, and where it lies.

    Attributes:
        folder: the study folder.
        experiment: as it was run.
        matrix: the table of `matrix.csv`.
        forgetting: the table of `forgetting.csv`.
        transfer: per retrained stage backward and forward transfer and gains, as in `matrix.json`.
        report: the page to open.
        seconds: wall time by part.
        case_folder: the case that the demo segments after the study.
    """

    folder: Path
    experiment: Experiment
    matrix: pd.DataFrame
    forgetting: pd.DataFrame
    transfer: list[dict[str, Any]]
    report: Path
    seconds: dict[str, float]
    case_folder: Path | None = None


@locks("out")
def run_study(
    experiment: Experiment | str,
    out: str | Path,
    *,
    data: Mapping[str, str | Path] | None = None,
    synthetic: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    jobs: int = 1,
    lungs: Mapping[str, str | Path] | None = None,
    progress: Progress = silent,
) -> StudyResult:
    """Run an experiment or a recipe into a study folder.

    Args:
        experiment: a recipe's name or an experiment of your own making.
        out: the study folder.
        data: ``data set name or set number -> folder``, for all sets.
        synthetic: run on synthetic sites made in `out` instead; every table, figure and page then says so.
        resume: continue the study in `out`; what was made of the same data, settings and weights is kept, the rest is
            made anew and named in ``notes`` of `run.json`.
        overwrite: start again over the study in `out`.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        jobs: processes that train stages which do not wait for each other; fewer where memory does not hold them.
        lungs: ``data set name or set number -> folder of lung masks`` for sets without their own, see
            `pneumoscope.datasets.lung_masks`; where none are given, `lung.supply` of the experiment decides.
        progress: told about every part.

    Raises:
        InputError: the folder holds another study, data are missing, or a set cannot be read.
        RunError: a training failed; the study can be resumed.
    """
    plan = build_recipe(experiment) if isinstance(experiment, str) else experiment
    roots = roots_of(plan, {name: Path(root) for name, root in (data or {}).items()})
    masks = lung_folders(plan, lungs or {})
    require_data(plan.recipe, data or {}, synthetic)
    folder = begin(plan, out, resume=resume, overwrite=overwrite)
    study = _Study(plan, folder, resume, device, Noted(progress))
    study.note_environment()
    study.prepare(roots, masks)
    with marked(study.mark()):
        study.train(roots, masks, study.foresee(jobs))
        study.predict()
        return study.score()


def open_sets(
    experiment: Experiment,
    folder: Path,
    roots: Mapping[int, Path],
    *,
    device: str = "auto",
    resume: bool = True,
    masks: Mapping[int, Path] | None = None,
    progress: Progress = silent,
) -> dict[int, StudySet]:
    """Read every set, those that teach the lung network first, as the others may need it.

    Args:
        experiment: the study.
        folder: the study folder; splits and the lung network are there or are written.
        roots: folder by set number; none for synthetic sites.
        device: for the lung network.
        resume: take a finished lung network from the folder.
        masks: folders of lung masks made elsewhere, by set number.
        progress: told about every set.
    """
    sets: dict[int, StudySet] = {}
    lungs = LungSupply(experiment, sets, folder, device=device, resume=resume, progress=progress)
    cases = find_cases(experiment, roots, folder, progress, lungs=masks)
    teachers, names = experiment.lung.sites, set_names(experiment, cases)
    for site in sorted(experiment.data.sites, key=lambda s: (s.number not in teachers, s.number)):
        found = cases[site.number]
        sets[site.number] = build_set(
            experiment, site, found, folder, name=names[site.number], lungs_for=lungs, progress=progress
        )
    return sets


class _Study:
    """The moving parts of one study."""

    def __init__(self, experiment: Experiment, folder: Path, resume: bool, device: str, progress: Noted) -> None:
        self.experiment, self.folder, self.resume = experiment, folder, resume
        self.device, self.progress = device, progress
        self.sets: dict[int, StudySet] = {}
        self.models: dict[str, StageModel] = {}
        self.expected: Forecast | None = None
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def _lap(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] = round(now - self._since, 2)
        self._since = now

    def note_environment(self) -> None:
        """Write what the study runs on."""
        import torch

        from pneumoscope.training.devices import pick_device, pick_precision

        device = pick_device(self.device)
        precision = pick_precision(self.experiment.training.precision, device)  # type: ignore[arg-type]
        write_environment(self.folder, device=device.type, precision=precision, threads=torch.get_num_threads())

    def prepare(self, roots: Mapping[int, Path], masks: Mapping[int, Path]) -> None:
        """Read every set, those that teach the lung network first, as the others may need it."""
        self.sets = open_sets(
            self.experiment,
            self.folder,
            roots,
            device=self.device,
            resume=self.resume,
            masks=masks,
            progress=self.progress,
        )
        self._lap("reading and lungs")

    def foresee(self, jobs: int) -> int:
        """Measure a few steps, tell what is to be expected, and return how many processes memory holds."""
        self.expected = forecast(self.experiment, self.sets, device=self.device, jobs=jobs)
        self.progress(FORECAST, 1, 1, self.expected.sentence())
        self._lap("forecast")
        return self.expected.jobs

    def train(self, roots: Mapping[int, Path], masks: Mapping[int, Path], jobs: int) -> None:
        """All stages in the order of the chain; with several jobs each as soon as those it needs are there."""
        if jobs > 1:
            from pneumoscope.study.parallel import train_in_parallel

            train_in_parallel(
                self.experiment,
                self.folder,
                roots,
                masks,
                jobs=jobs,
                device=self.device,
                progress=self.progress,
            )
        maker = StageMaker(
            self.experiment,
            self.sets,
            self.folder,
            device=self.device,
            resume=self.resume or jobs > 1,
            progress=self.progress,
        )
        for stage in self.experiment.stages.chain:
            self.models[stage.name] = maker.make(stage.name)
        self._lap("training")

    def predict(self) -> None:
        """What every stage says about every validation and test slice; from here on no network is needed."""
        for model in self.models.values():
            predict_stage(self.experiment, model, self.sets, device=self.device, progress=self.progress)
        effect = lung_effect(self.experiment, self.models, self.sets, device=self.device, progress=self.progress)
        write_lung_effect(effect, self.folder)
        self._lap("predicting")

    def score(self) -> StudyResult:
        """Score, write tables, draw, report."""
        experiment, folder = self.experiment, self.folder
        scorer = Scorer(experiment, self.sets, self.device, self.progress)
        rows = {name: scorer.stage(model, model.folder) for name, model in self.models.items()}
        untrained = scorer.untrained()
        write_per_case(untrained, folder / "untrained.csv")
        per_case = pd.concat(rows.values(), ignore_index=True)
        write_per_case(per_case, folder / "per_case.csv")
        self._lap("scoring")
        cells = Matrix(experiment, per_case)
        matrix, common = cells.table(), cells.table(common=True)
        forgotten = forgetting_table(experiment, common)
        gains = transfer(experiment, common, untrained_f1(untrained))
        write_tables(cells, folder, matrix, forgotten, gains, untrained_f1(untrained))
        write_systems(cells, folder)
        write_shift(cells, folder, self.sets, self.progress)
        self._lap("calibration and appearance")
        self._draw(scorer, rows, matrix)
        self._lap("tables and figures")
        mark_tables(folder, self.mark() or "real")
        write_json(folder / "study.json", self._summary())
        write_run(folder, self.progress.notes, resumed=self.resume, synthetic=bool(self.mark()))
        renew_verdict(folder, experiment)
        report = write_report(folder)
        return StudyResult(folder, experiment, matrix, forgotten, gains, report, dict(self.seconds))

    def _draw(self, scorer: Scorer, rows: Mapping[str, pd.DataFrame], matrix: pd.DataFrame) -> None:
        (self.folder / "figures").mkdir(exist_ok=True)
        for name, model in self.models.items():
            number = self.experiment.stage(name).site
            own = rows[name][rows[name]["test"] == number].reset_index(drop=True)
            examples = []
            for kind, percentile in (("good", figures.GOOD_PERCENTILE), ("bad", figures.BAD_PERCENTILE)):
                position = ranked_slice(own, percentile)
                if position is not None:
                    title = f"{name} on set {number}, {kind} example (rank {percentile:.0f} %)"
                    examples.append(self._example(scorer, model, number, position, title, own))
            if examples:
                figures.write_examples(examples, self.folder / "figures" / f"examples_{name}.png")
        figures.redraw(self.experiment, self.folder, matrix, best_epochs(self.folder))

    def _example(
        self, scorer: Scorer, model: StageModel, number: int, position: int, title: str, own: pd.DataFrame
    ) -> figures.Example:
        study_set = self.sets[number]
        row = study_set.rows("test")[position]
        found = scorer.predict(model, number, np.array([row]))[0]
        image = study_set.slices.as_float32(np.array([row]))[0, 0]
        f1 = float(own["f1"].to_numpy()[position])
        return figures.Example(image, study_set.slices.target[row] > 0, found, f"{title}: F1 {f1:.3f}")

    def _summary(self) -> dict[str, Any]:
        """What the report says about the sets and the run, beside the tables."""
        sets = []
        for number, study_set in sorted(self.sets.items()):
            table = study_set.slices.table
            lung = table[table["has_lung"].astype(bool)]
            parts = study_set.split["part"].value_counts()
            sets.append(
                {
                    "number": number,
                    "name": study_set.name,
                    "scans": int(table["case"].nunique()),
                    "patients": int(table["patient"].nunique()),
                    "lung_slices": len(lung),
                    "infiltrate_slices": int(lung["has_infiltrate"].sum()),
                    **{f"{part}_slices": int(parts.get(part, 0)) for part in ("train", "val", "test")},
                    "patients_in_several_parts": len(study_set.leaks),
                    "lung_masks_supplied": study_set.supplied,
                }
            )
        stages = {name: {"trained_now": model.trained_now} for name, model in self.models.items()}
        return {
            "sets": sets,
            "stages": stages,
            "synthetic": all(study_set.synthetic for study_set in self.sets.values()),
            "mark": self.mark(),
            "notes": self.progress.notes,
            "seconds": self.seconds,
            "forecast": self.expected.as_dict() if self.expected else None,
        }

    def mark(self) -> str:
        """What tables and figures say of the data: empty for real ones."""
        return mark_of("phantom" if study_set.synthetic else study_set.name for study_set in self.sets.values())


def best_epochs(folder: Path) -> dict[str, int]:
    """The epoch whose weights each trained stage kept, from the cards on disk, the lung network included."""
    from pneumoscope.models.cards import read_card

    cards = sorted((folder / "stages").glob("*/card.json"), key=lambda p: (p.parent.name != LUNG_STAGE, p.parent.name))
    return {card.parent.name: int(read_card(card.parent)["training"]["best_epoch"]) for card in cards}


def write_tables(
    cells: Matrix,
    folder: Path,
    matrix: pd.DataFrame,
    forgotten: pd.DataFrame,
    gains: list[dict[str, Any]],
    untrained: Mapping[int, float],
) -> None:
    """Write matrix.csv, matrix.json and forgetting.csv. Missing numbers are empty in CSV and null in JSON."""
    for table, name in ((matrix, "matrix.csv"), (forgotten, "forgetting.csv")):
        write_text(folder / name, table.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
    write_json(
        folder / "matrix.json",
        {
            "recipe": cells.experiment.recipe,
            "rows": matrix.to_dict(orient="records"),
            "forgetting": forgotten.to_dict(orient="records"),
            "transfer": gains,
            "untrained_f1": dict(untrained),
            "best_stage": cells.best_stage(),
            "differences": cells.differences(),
            "formulas": dict(FORMULAS),
        },
    )
