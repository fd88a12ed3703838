"""Train, fine-tune and cross-validate on a user's own scans: an experiment with one site, run by `study.engine`.

The stages are the trainings: one, whose folder is the output folder itself, or one per fold. Patients are kept whole
in every split. What is reported of a model is what `segment` gives on the held-out scans, on their own grids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from pneumoscope.datasets.case import Case, content_of_scan
from pneumoscope.datasets.splits.folds import group_folds, group_members, members_of
from pneumoscope.io.files import write_json
from pneumoscope.jobs.lock import locks
from pneumoscope.jobs.machines import current, part_of
from pneumoscope.jobs.stamp import STARTED_FILE, stamp
from pneumoscope.metrics.overlap import count, dice
from pneumoscope.models.cards import CARD_FILE, find_model, read_card, write_card
from pneumoscope.models.options import ModelOptions
from pneumoscope.objects import Tabled, bars
from pneumoscope.plans.data import LungFinder, Parts, own_lungs
from pneumoscope.plans.plan import PLAN_FILE, OwnPlan, write_plan
from pneumoscope.plans.plan3d import VolumePlan
from pneumoscope.plans.setup import TrainingSetup, forecast_own, out_of_memory_advice, set_up
from pneumoscope.processes import peak_bytes
from pneumoscope.progress import NOTE, Progress
from pneumoscope.study.base import Modality
from pneumoscope.study.engine import Study
from pneumoscope.study.folder import open_folder
from pneumoscope.study.learners.base import start_stage
from pneumoscope.study.learners.networks import Network, NetworkTraining, card_of, train_config
from pneumoscope.study.options import StudyOptions
from pneumoscope.study.scores.table import Scores, kept_table, read_table, tidy

if TYPE_CHECKING:
    from torch import nn

    from pneumoscope.training.loop import FitResult


MODEL = "model"  # The one stage of a training without folds; it lies in the output folder itself
MARKERS = (STARTED_FILE, "summary.json", CARD_FILE)  # By these a training or cross-validation is known

PARTS = ("validation", "test")
WRITTEN = (
    "model.safetensors", PLAN_FILE, "last.ckpt", "previous.ckpt", "history.csv", "split.csv", "per_case.csv",
    "scores.csv", "intervals.csv", "run.json", "study.json", "environment.json", "done.json",
    *(f"{part}.{kind}" for part in PARTS for kind in ("csv", "json")),
)  # fmt: skip
"""What it writes beside these and the folders of folds."""


@dataclass(frozen=True, eq=False)
class OwnExperiment:
    """One site, the user's own."""

    recipe: ClassVar[str] = "training on own scans"

    training: OwnPlan | VolumePlan  # the plan
    splits: Mapping[str, Parts]  # by stage, the scans for training, validation and test
    max_minutes: float | None = None  # stop each training after the epoch in which this much time is spent


@dataclass(frozen=True, eq=False)
class OwnTraining(NetworkTraining):
    """A training by a plan; one whose data or plan changed is refused when it is resumed."""

    refuse: ClassVar[bool] = True

    plan: OwnPlan | VolumePlan  # see `OwnPlan` and `VolumePlan`
    setup: TrainingSetup  # its network and examples
    max_minutes: float | None  # as in `OwnExperiment`

    def fit(self, model: nn.Module, resume: bool, progress: Progress) -> FitResult:
        """See `NetworkTraining`; says first how long it will take."""
        write_plan(self.plan, self.own / PLAN_FILE)
        progress("forecast", 1, 1, forecast_own(self.plan, self.setup, self.config(model), self.max_minutes))
        return super().fit(model, resume, progress)


class OwnData(Modality):
    """A network on slices or on volumes by a plan, trained once or in folds."""

    measures = ("dice",)

    def check(self) -> None:
        """See `Modality`."""
        self.plan = plan = self.experiment.training
        self.precision = plan.precision if plan.dims == "2d" else "auto"  # what `segment` takes, however it was trained
        self.lungs_for: LungFinder = own_lungs(self.device, self.precision)
        self.trained: dict[str, Network] = {}

    def open(self, out: str | Path) -> Path:
        """See `Modality`; of an earlier run only what it wrote is removed."""
        folds = [path.name for path in Path(out).glob("fold-*") if (path / STARTED_FILE).is_file()]
        folder, _ = open_folder(
            out, resume=self.resume, overwrite=self.options.overwrite, markers=MARKERS, written=(*WRITTEN, *folds)
        )
        if MODEL not in self.experiment.splits:
            every = next(iter(self.experiment.splits.values())).cases
            scans = sorted([case.dataset, case.case, case.patient] for case in every)
            parts = {"plan": self.plan.shaping(), "folds": len(self.experiment.splits), "scans": scans}
            wanted = stamp("crossval", revision=1, **parts)
            start_stage(folder, wanted, parts, resume=self.resume, progress=self.progress, refuse=True)
            write_plan(self.plan, folder / PLAN_FILE)
        return folder

    def read(self) -> None:
        """Nothing: each training reads its own scans."""

    def stages(self) -> dict[str, tuple[str, ...]]:
        """See `Modality`; of folds only those of this run's part."""
        return dict.fromkeys(part_of(list(self.experiment.splits)), ())

    def stage_folder(self, name: str) -> Path:
        """See `Modality`."""
        return self.folder if name == MODEL else self.folder / name

    def train(self, name: str) -> None:
        """See `Modality`.

        Raises:
            InputError: data that teach nothing, or that changed since a resumed training was started.
            RunError: memory ran out; the message says what to change.
        """
        if self.by_workers:
            return
        plan, parts, own = self.plan, self.experiment.splits[name], self.stage_folder(name)
        with out_of_memory_advice(plan):
            setup = set_up(plan, parts.train, parts.val, self.lungs_for, self.progress)
            config = train_config(
                plan, max_epochs=plan.epochs, schedule="cosine", monitor="val_dice", device=self.device,
                max_minutes=self.experiment.max_minutes,
            )  # fmt: skip
            training = OwnTraining(
                own, "own training", _shaping(plan, setup), lambda: (setup.model, setup.origin), None,
                lambda model: setup.task, setup.train, setup.val, lambda model: config,
                lambda result, origin: _card(own.resolve().name, plan, setup, result, origin, parts.train),
                plan, setup, self.experiment.max_minutes,
            )  # fmt: skip
            self.trained[name] = training.run(resume=self.resume, progress=self.progress)
        parts.write(own / "split.csv")
        if remark := parts.remark(plan):
            self.progress(NOTE, 1, 1, remark)

    def score(self, name: str) -> pd.DataFrame:
        """See `Modality`; a row per held-out scan, by part."""
        parts, own, tables = self.experiment.splits[name], self.stage_folder(name), {}
        for part, cases in zip(PARTS, (parts.val, parts.test), strict=True):
            if cases:
                tables[part] = self._scored(own, part, cases)
        card = read_card(own)
        write_card(own, {**card, "numbers": numbers_of(tables["validation"], tables.get("test"))})
        return pd.concat([table.assign(stage=name, test=part) for part, table in tables.items()], ignore_index=True)

    def _scored(self, own: Path, part: str, cases: Sequence[Case]) -> pd.DataFrame:
        if self.by_workers:
            return read_table(own / f"{part}.csv")
        scans = [[case.case, case.patient, content_of_scan(case.load())] for case in cases]
        weights = read_card(own)["weights"]["sha256"]
        wanted = stamp("own scores", revision=1, weights=weights, scans=scans, precision=self.precision)
        with out_of_memory_advice(self.plan):
            return kept_table(
                own, part, wanted,
                lambda: (score_own(own, cases, self.device, self.precision, self.lungs_for, self.progress, part), {}),
                resume=self.resume, progress=self.progress,
            )  # fmt: skip

    def tables(self, per_case: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """Of folds ``per_case``, and `summary.json`; nothing of a part of them, or of a single training."""
        self.per_case = per_case.drop(columns="stage")
        if MODEL in self.experiment.splits:
            return {}
        self.per_case = table = self.per_case.drop(columns="test")
        table.insert(0, "fold", per_case["stage"].str.removeprefix("fold-").astype(int))
        if current().part != (1, 1):
            return {}
        write_json(
            self.folder / "summary.json",
            {
                "folds": len(self.experiment.splits),
                "scans": len(table),
                "mean_dice": float(table["dice"].mean()),
                "sd_dice": float(table["dice"].std(ddof=0)),
                "mean_dice_by_fold": table.groupby("fold")["dice"].mean().tolist(),
                "chosen_on": ON_FOLDS,
            },
        )
        return {"per_case": table}

    def scores(self, per_case: pd.DataFrame) -> Scores:
        """See `Modality`; with one site nothing is forgotten."""
        return Scores(tidy(per_case, self.measures), {}, None)

    def summary(self) -> dict[str, Any]:
        """See `Modality`."""
        return {"scans": {name: {part: len(cases) for part, cases in vars(parts).items()}
                          for name, parts in self.experiment.splits.items()}}  # fmt: skip

    def shown(self, tables: Mapping[str, pd.DataFrame]) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
        """See `Modality`."""
        columns = ["case", "dice", "reference_ml", "predicted_ml"]
        return columns, self.per_case[columns].to_numpy().tolist()

    def facts(self) -> dict[str, Any]:
        """See `Modality`."""
        if MODEL not in self.experiment.splits:
            return {}
        return {"numbers": read_card(self.folder)["numbers"], "peak_gigabytes": round(peak_bytes() / 1e9, 2),
                "seconds": self.trained[MODEL].seconds}  # fmt: skip


def _shaping(plan: OwnPlan | VolumePlan, setup: TrainingSetup) -> dict[str, Any]:
    """All that shapes the weights."""
    return {
        "plan": plan.shaping(),
        "training_data": setup.train.content,
        "validation_data": setup.val.content,
        "starting_weights": read_card(find_model(plan.start))["weights"]["sha256"] if plan.start else None,
    }


def _card(
    name: str, plan: OwnPlan | VolumePlan, setup: TrainingSetup, result: FitResult, origin: str, train: Sequence[Case]
) -> dict[str, Any]:
    """What `card.json` says beside the architecture, the checksum and the scores."""
    return card_of(
        name,
        f"trained on {len(train)} own scans",
        result,
        origin,
        {f"val_dice_of_{setup.kind}": result.best_value, "seed": plan.seed},
        task="infiltrate",
        licence=sorted({case.licence for case in train}),
        training_data={"scans": len(train), "patients": len({case.patient for case in train}),
                       "sets": sorted({case.dataset for case in train})},
        limits=["Tested on the few scans held out at training only.", "Research software, not a medical device."],
        **{"labels": {"1": "infiltrate"}, **setup.card},
    )  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class OwnResult(Tabled):
    """A trained model; its table is the scores of the scans held out."""

    folder: Path  # with model, card, history and plan; what ``segment --model`` takes
    scores: pd.DataFrame  # ``case,patient,dice,reference_ml,predicted_ml`` of the validation scans
    test: pd.DataFrame | None  # likewise of the test scans; None where none were held out for it
    chosen_on: str  # which scans the epoch was chosen on, in words
    epochs: int  # epochs trained
    stopped_by: str  # see `training.loop.FitResult`
    seconds: float  # of training in this process

    def _numbers(self) -> dict[str, str]:
        means = self.to_frame().groupby("part", sort=False)["dice"].mean()
        return {"epochs": str(self.epochs), **{f"mean Dice, {part}": f"{value:.3f}" for part, value in means.items()},
                "folder": str(self.folder)}  # fmt: skip

    def _draw(self, axes: Sequence[Any]) -> None:
        rows = self.to_frame()
        bars(axes[0], dict(zip(rows["case"] + ", " + rows["part"], rows["dice"], strict=True)), "Dice")
        axes[0].set_xlim(0, 1)

    def to_frame(self) -> pd.DataFrame:
        """A row per scan held out: ``part`` (validation or test) and the columns of `scores`."""
        parts = zip(PARTS, (self.scores, self.test), strict=True)
        return pd.concat([rows.assign(part=part) for part, rows in parts if rows is not None], ignore_index=True)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the frames, and their rows as ``scores``."""
        names = ("folder", "chosen_on", "epochs", "stopped_by", "seconds")
        return {**{name: getattr(self, name) for name in names}, "scores": self.to_frame().to_dict(orient="records")}


@locks("out")
def train_own(
    train: Sequence[Case],
    val: Sequence[Case],
    plan: OwnPlan | VolumePlan,
    out: str | Path,
    *,
    test: Sequence[Case] = (),
    max_minutes: float | None = None,
    **options: Any,
) -> OwnResult:
    """Train one model by a plan.

    Args:
        train, val: cases with infiltrate masks; for a network on slices lungs are found where a case has none.
        plan: see `OwnPlan` and `VolumePlan`.
        test: cases that are scored once, when the model is finished, and chose nothing.
        max_minutes: stop after the epoch in which this much time is spent; the best model so far is kept, and a resumed
            training continues.
        options: ``device``, ``resume``, ``overwrite`` and ``progress`` of `StudyOptions`.

    Raises:
        InputError: data that teach nothing, a folder that holds another model, or a resumed training whose data or plan
            changed.
        RunError: memory ran out; the message says what to change.
    """
    splits = {MODEL: Parts(list(train), list(val), list(test))}
    own = OwnData(OwnExperiment(plan, splits, max_minutes), StudyOptions(**options))
    folder = Study(own).run(out).folder
    card = read_card(folder)
    tables = {part: table.drop(columns="test").reset_index(drop=True) for part, table in own.per_case.groupby("test")}
    return OwnResult(
        folder, tables["validation"], tables.get("test"), card["numbers"]["chosen_on"], card["training"]["epochs_run"],
        card["training"]["stopped_by"], own.trained[MODEL].seconds,
    )  # fmt: skip


@locks("out")
def crossval_own(
    cases: Sequence[Case], plan: OwnPlan | VolumePlan, out: str | Path, *, folds: int = 5,
    max_minutes: float | None = None, **options: Any,
) -> pd.DataFrame:  # fmt: skip
    """k trainings, each judged on the patients it has not seen; every scan is scored once.

    Folds are trained where `pneumoscope.jobs.machines` says; of a part of them no tables are written.

    The weights of a fold are chosen on the same scans it is judged by: with few epochs to choose from this flatters a
    little, and is said in `summary.json`.

    Args:
        cases, plan, out: as in `train_own`.
        folds: each holds out other patients.
        max_minutes, options: as in `train_own`; the time is that of a fold.

    Returns:
        ``fold,case,patient,dice,reference_ml,predicted_ml``, as written to `per_case.csv`.

    Raises:
        DatasetError: fewer patients than folds.
    """
    splits = {}
    for number, fold in enumerate(group_folds(group_members(members_of(cases)), folds, plan.seed, validation=False), 1):
        held = {member.case for member in fold.test}
        train, val = [c for c in cases if c.case not in held], [c for c in cases if c.case in held]
        splits[f"fold-{number}"] = Parts(train, val, [])
    options = {"jobs": current().jobs or 1, **options}
    own = OwnData(OwnExperiment(plan, splits, max_minutes), StudyOptions(**options))
    Study(own).run(out)
    return own.per_case


ON_VALIDATION = "the epoch was chosen on the very scans scored here, which flatters a little; --test-share avoids it"
ON_TEST = "the epoch was chosen on other patients; these were scored once, at the end"
ON_FOLDS = "the epoch of each fold was chosen on the scans it is scored on, which flatters a little"


def score_own(
    folder: Path, cases: Sequence[Case], device: str, precision: str, lungs_for: LungFinder, progress: Progress,
    what: str = "validation",
) -> pd.DataFrame:  # fmt: skip
    """Dice per scan of what `segment` gives with this model, on the scan's own grid."""
    from pneumoscope.inference.segmenter import Segmenter

    segmenter = Segmenter(ModelOptions(model=folder, device=device, precision=precision))  # type: ignore[arg-type]
    rows = []
    for done, case in enumerate(cases, start=1):
        scan = case.load()
        assert scan.infiltrate is not None  # `read_own_cases` asked
        lungs = scan.lungs if scan.lungs is not None else lungs_for(scan.volume)
        found = segmenter.run(scan.volume, lungs).infiltrate.labels > 0
        counts = count(found, scan.infiltrate.labels > 0)
        voxel = scan.volume.grid.voxel_volume_ml
        rows.append((case.case, case.patient, dice(counts), counts.referenced * voxel, counts.predicted * voxel))
        progress(what, done, len(cases))
    return pd.DataFrame(rows, columns=["case", "patient", "dice", "reference_ml", "predicted_ml"])


def numbers_of(validation: pd.DataFrame, test: pd.DataFrame | None) -> dict[str, Any]:
    """The numbers of a model's card: of the test scans where there are any, and what the epoch was chosen on."""
    scored, chosen_on = (validation, ON_VALIDATION) if test is None else (test, ON_TEST)
    numbers: dict[str, Any] = {
        "held_out_scans": len(scored),
        "mean_dice": float(scored["dice"].mean()),
        "lowest_dice": float(scored["dice"].min()),
        "highest_dice": float(scored["dice"].max()),
        "chosen_on": chosen_on,
    }
    if test is not None:
        numbers |= {"validation_scans": len(validation), "validation_mean_dice": float(validation["dice"].mean())}
    return numbers
