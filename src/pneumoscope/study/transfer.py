"""Transfer studies: stages one after the other on slices (or by another system), each scored on every set.

`LEARNERS` and `StageMaker` are the one place where a stage meets its learner and what it cost is noted.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pneumoscope.errors import InputError
from pneumoscope.inference.external import Access
from pneumoscope.io.files import write_json
from pneumoscope.progress import FORECAST
from pneumoscope.recipes.stages import NEIGHBOURS, SLICES, THRESHOLD, is_own_learner, split_external
from pneumoscope.study import figures
from pneumoscope.study.analysis.acceptance import guard_study, renew_verdict, require_limit
from pneumoscope.study.analysis.calibration import has_probabilities, study_cells, write_shift
from pneumoscope.study.analysis.comparison import Compared, compare_retraining
from pneumoscope.study.base import Modality
from pneumoscope.study.data import StudyDataset, lung_folders, require_data, roots_of
from pneumoscope.study.folder import Meter, mark_of, note_cost
from pneumoscope.study.forecast import forecast, needs
from pneumoscope.study.learners.base import Learner, Predictor, StudyContext
from pneumoscope.study.learners.external import require_external, require_masks
from pneumoscope.study.learners.strategies import SliceLearner
from pneumoscope.study.learners.threshold import ThresholdLearner
from pneumoscope.study.learners.volumes import VolumeLearner
from pneumoscope.study.lungs import LUNG_STAGE, lung_effect, open_sets, write_lung_effect
from pneumoscope.study.scores.matrix import FORMULAS, Matrix, lineages_of, transfer, untrained_f1
from pneumoscope.study.scores.predictions import predict_stage, reliability_of
from pneumoscope.study.scores.slices import Scorer, ranked_slice
from pneumoscope.study.scores.systems import write_systems
from pneumoscope.study.scores.table import Scores, forgetting, rounds_of, write_table
from pneumoscope.study.transfer_page import transfer_page


class Transfer(Modality):
    """A chain of trainings over several sites; slices and scans as `learners` see them."""

    title = "Transfer study"
    measures = ("f1", "dice", "nsd")
    takes = frozenset({"lungs", "accept_if_forgetting_below", "synthetic"})

    def check(self) -> None:
        """See `Modality`."""
        options, plan = self.options, self.experiment
        self.roots = roots_of(plan, {name: Path(root) for name, root in options.data.items()})
        self.masks = lung_folders(plan, options.lungs)
        require_data(plan.recipe, options.data, options.synthetic)
        if options.accept_if_forgetting_below is not None:
            require_limit(options.accept_if_forgetting_below)
        if not self.resume:
            require_external(plan.stages.chain, Access(options.trust, labels=options.labels))
            require_masks(plan, self.roots)

    def read(self) -> None:
        """Read every set, those that teach the lung network first, as the others may need it."""
        self.sets: dict[int, StudyDataset] = open_sets(
            self.experiment, self.folder, self.roots, masks=self.masks, device=self.device, resume=self.resume,
            progress=self.progress,
        )  # fmt: skip

    def mark(self) -> str:
        """See `Modality`."""
        return mark_of(name for study_set in self.sets.values() for name in study_set.slices.table["dataset"].unique())

    def stages(self) -> dict[str, tuple[str, ...]]:
        """See `Modality`."""
        plan = self.experiment
        return {stage.name: tuple(needs(plan, stage.name)) for stage in plan.stages.chain}

    def train(self, name: str) -> None:
        """See `Modality`."""
        self.maker.resume = self.resume
        self.maker.make(name)

    def score(self, name: str) -> pd.DataFrame:
        """Predict every validation and test slice of all sets, and score them; after this no network is needed."""
        model = self.maker.models[name]
        predict_stage(self.experiment, model, self.sets, device=self.device, progress=self.progress)
        return self.scorer.stage(model, model.folder)

    @cached_property
    def maker(self) -> StageMaker:
        """Makes the stages, and knows those made."""
        return StageMaker(**vars(replace(self.context, sets=self.sets)))

    @cached_property
    def scorer(self) -> Scorer:
        """Scores the stages."""
        return Scorer(self.experiment, self.sets, self.device, self.progress)

    def side_by_side(self, jobs: int) -> int:
        """As many as memory holds; says how long the trainings will take."""
        self.expected = forecast(self.experiment, self.sets, device=self.device, jobs=jobs)
        self.progress(FORECAST, 1, 1, self.expected.sentence())
        return self.expected.jobs

    def tables(self, per_case: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """``matrix``; calibration, appearance, missed lesions and figures are written beside."""
        experiment, folder, models = self.experiment, self.folder, self.maker.models
        effect = lung_effect(experiment, models, self.sets, device=self.device, progress=self.progress)
        write_lung_effect(effect, folder)
        untrained = self.scorer.untrained()
        write_table(untrained, folder / "untrained.csv")
        write_table(per_case, folder / "per_case.csv")
        self.cells = cells = Matrix(experiment, per_case)
        matrix, common, rounds = cells.table(), cells.table(common=True), rounds_of(experiment.scoring)
        self.forgotten = forgotten = forgetting(cells.common, lineages_of(experiment), "f1", **rounds)
        gains = transfer(experiment, common, forgotten, untrained_f1(untrained))
        write_matrix_json(cells, folder, forgotten, gains, untrained_f1(untrained))
        write_systems(cells, folder)
        write_shift(cells, folder, self.sets, self.progress)
        self._draw(per_case, matrix)
        return {"matrix": matrix}

    def scores(self, per_case: pd.DataFrame) -> Scores:
        """See `Modality`."""
        scoring = self.experiment.scoring
        kept = study_cells(self.experiment, self.folder)
        calibrated = {
            (cell.stage, str(cell.test)): reliability_of(cell.voxels.total("test"), scoring.calibration_bins)
            for cell in kept
            if has_probabilities(cell)
        }
        return Scores(self.cells.tidy, calibrated, self.forgotten, rounds_of(scoring), self.cells.means)

    def judge(self) -> str:
        """See `Modality`; a limit of an earlier run of this folder is applied again."""
        limit = self.options.accept_if_forgetting_below
        if limit is None:
            renew_verdict(self.folder, self.experiment)
            return ""
        refused = [s for s in guard_study(self.folder, self.experiment, limit)["stages"] if not s["accepted"]]
        sentences = " ".join(stage["sentence"] for stage in refused)
        return f"{', '.join(stage['stage'] for stage in refused)} refused. {sentences}" if refused else ""

    @classmethod
    def compare(cls, folders: Sequence[Path]) -> Compared:
        """By what each way of retraining gains and loses; where nothing is retrained, cell by cell."""
        return compare_retraining(folders, cls.measures)

    @staticmethod
    def page(experiment: Any, folder: Path) -> dict[str, Any]:
        """See `Modality`."""
        return transfer_page(experiment, folder)

    def shown(self, tables: Mapping[str, pd.DataFrame]) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
        """The matrix with the test sets' names; beside it the paper's values where there are any."""
        matrix = tables["matrix"]
        names = {site.number: site.label for site in self.experiment.data.sites}
        titles = {"name": "stage and test set", "site": "test set", "f1": "f1", "f1_low": "low", "f1_high": "high"}
        titles |= {"paper_f1": "paper"} if matrix["paper_f1"].notna().any() else {}
        return list(titles.values()), matrix.assign(site=matrix["test"].map(names))[list(titles)].to_numpy().tolist()

    def _draw(self, per_case: pd.DataFrame, matrix: pd.DataFrame) -> None:
        (self.folder / "figures").mkdir(exist_ok=True)
        for name, model in self.maker.models.items():
            number = self.experiment.stage(name).site or self.experiment.data.sites[0].number
            own = per_case[(per_case["stage"] == name) & (per_case["test"] == number)].reset_index(drop=True)
            examples = []
            for kind, percentile in (("good", figures.GOOD_PERCENTILE), ("bad", figures.BAD_PERCENTILE)):
                position = ranked_slice(own, percentile)
                if position is not None:
                    title = f"{name} on set {number}, {kind} example (rank {percentile:.0f} %)"
                    examples.append(self._example(model, number, position, title, own))
            if examples:
                figures.write_examples(examples, self.folder / "figures" / f"examples_{name}.png")
        figures.redraw(self.experiment, self.folder, matrix, best_epochs(self.folder))

    def _example(self, model: Predictor, number: int, position: int, title: str, own: pd.DataFrame) -> figures.Example:
        study_set = self.sets[number]
        row = study_set.rows("test")[position]
        found = self.scorer.predict(model, number, np.array([row]))[0]
        image = study_set.slices.as_float32(np.array([row]))[0, 0]
        f1 = float(own["f1"].to_numpy()[position])
        return figures.Example(image, study_set.slices.target[row] > 0, found, f"{title}: F1 {f1:.3f}")

    def summary(self) -> dict[str, Any]:
        """See `Modality`."""
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
        stages = {name: {"trained_now": model.trained_now} for name, model in self.maker.models.items()}
        return {"sets": sets, "stages": stages, "forecast": asdict(self.expected)}


def best_epochs(folder: Path) -> dict[str, int]:
    """The epoch whose weights each trained stage kept, from the cards on disk, the lung network included."""
    from pneumoscope.models.cards import read_card

    cards = sorted((folder / "stages").glob("*/card.json"), key=lambda p: (p.parent.name != LUNG_STAGE, p.parent.name))
    return {card.parent.name: int(read_card(card.parent)["training"]["best_epoch"]) for card in cards}


def write_matrix_json(
    cells: Matrix, folder: Path, forgotten: pd.DataFrame, gains: list[dict[str, Any]], untrained: Mapping[int, float]
) -> None:
    """Write matrix.json: matrix and forgetting with their formulas; missing numbers are null."""
    write_json(
        folder / "matrix.json",
        {
            "recipe": cells.experiment.recipe,
            "rows": cells.table().to_dict(orient="records"),
            "forgetting": forgotten.to_dict(orient="records"),
            "transfer": gains,
            "untrained_f1": dict(untrained),
            "best_stage": cells.best_stage(),
            "differences": cells.differences(),
            "formulas": dict(FORMULAS),
        },
    )


LEARNERS: Mapping[str, type[Learner]] = {SLICES: SliceLearner, NEIGHBOURS: SliceLearner, THRESHOLD: ThresholdLearner}
"""By system; all other systems are recipes on volumes, or ``MODULE:CLASS``, a learner of the user's own."""


def learner_class(system: str) -> type[Learner]:
    """The learner of a system.

    Raises:
        InputError: ``MODULE:CLASS`` names no learner that can be imported.
    """
    if split_external(system)[0]:
        from pneumoscope.study.learners.external import ExternalLearner

        return ExternalLearner
    if not is_own_learner(system):
        return LEARNERS.get(system, VolumeLearner)
    module, _, name = system.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as problem:
        raise InputError(
            f"system {system}: cannot be imported ({problem}); expected MODULE:CLASS with the module on PYTHONPATH"
        ) from problem
    if not (isinstance(found, type) and issubclass(found, Learner)):
        raise InputError(f"system {system}: is no subclass of pneumoscope.study.learners.base.Learner")
    return found


@dataclass
class StageMaker(StudyContext):
    """Makes the stages of a study, each by the learner of its system; attributes as of `StudyContext`."""

    _learners: dict[str, Learner] = field(default_factory=dict)

    def make(self, name: str) -> Predictor:
        """One stage; the stages it starts from, and the one whose training it shares, must be made before it."""
        system, own = self.experiment.stage(name).system, self.stage_folder(name)
        stopped = own.is_dir() and self.resume
        if system not in self._learners:
            self._learners[system] = learner_class(system)(self, system)
        with Meter() as meter:
            made = self._learners[system].make(self.experiment.stage(name))
        if made.trained_now:
            note_cost(own, "training", {**meter.as_dict(), "resumed": stopped})
        self.models[name] = made
        return made
