"""The lung network of a study: it learns from the sets that have lung masks and supplies those of the others.

The paper does the same with one sentence of description (2022b, section 1). It is trained at the moment the first scan
without a mask is met, and never when all sets have masks. Whether its masks help is shown by asking every stage
about the test slices of such a set once more with an empty lung channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope import components
from pneumoscope.datasets.tensors import SliceSet, concatenate
from pneumoscope.errors import InputError
from pneumoscope.io.files import write_frame
from pneumoscope.metrics.overlap import count, dice
from pneumoscope.progress import Progress, silent
from pneumoscope.recipes.schema import Experiment
from pneumoscope.study.data import StudyDataset, build_set, find_cases, set_names
from pneumoscope.study.learners.base import Predictor, StudyContext
from pneumoscope.study.learners.slices import StageJob, TrainedModel, preprocessing_card, train_stage
from pneumoscope.study.scores.predictions import read_predictions
from pneumoscope.volume import Mask, Volume

if TYPE_CHECKING:
    from pneumoscope.inference.segmenter import LungFinder

LUNG_STAGE = "lungs"  # Name of the lung network's stage folder
EVERY_NTH_EMPTY_SLICE = 8  # Of the slices without lung every eighth validates, the others train


SURE, SMALLEST_SHARE = 0.5, 0.005
"""In pictures: probability from which a pixel is lung, and the share of the picture below which a piece is none."""


@dataclass
class LungSupply(StudyContext):
    """Finds the lungs of a scan; trains its network when first asked, on those of `sets` that `lung.sites` names."""

    _model: TrainedModel | None = None
    _finder: LungFinder | None = None

    @property
    def model_folder(self) -> Path:
        """Where the network lies once it is trained."""
        return self.stage_folder(LUNG_STAGE)

    def network(self) -> TrainedModel:
        """The trained network.

        Raises:
            InputError: a set that should teach it has no lung masks itself.
        """
        if self._model is None:
            self._model = self._train()
        return self._model

    def __call__(self, volume: Volume) -> Mask:
        """The lungs of a scan on its grid: 1 = right, 2 = left."""
        from pneumoscope.inference.inputs import input_from_card
        from pneumoscope.inference.lungs import LungRules, find_lungs

        lung = self.experiment.lung
        if lung.supply == "shipped":
            return self._shipped(volume)
        trained = self.network()
        rules = LungRules(
            aerated_hu=lung.aerated_hu,
            aerated_probability=lung.aerated_probability,
            dense_probability=lung.dense_probability,
            closing_mm=lung.closing_mm,
            smallest_ml=lung.smallest_ml,
        )
        preprocessing = input_from_card({"preprocessing": preprocessing_card(self.experiment, lung_channel=False)})
        compute: dict[str, Any] = {"device": self.device, "precision": self.experiment.training.precision}
        mask, _ = find_lungs(volume, trained.model, preprocessing, rules=rules, **compute)
        return mask

    def _shipped(self, volume: Volume) -> Mask:
        """The lungs by the model that `segment` uses."""
        from pneumoscope.inference.segmenter import LungFinder

        if self._finder is None:
            self._finder = LungFinder(device=self.device, precision=self.experiment.training.precision)
        return self._finder(volume)

    def of_pictures(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Lungs (n, h, w) of 8-bit pictures (n, 1, h, w), 1 = lung, sides not distinguished; small pieces are dropped.

        Without Hounsfield units there is no air to place the edge by: the network's own edge is taken.
        """
        from scipy import ndimage

        found = self.network().predict(images, device=self.device, precision=self.experiment.training.precision)
        lungs = np.zeros(found[:, 0].shape, np.uint8)
        for k, plane in enumerate(found[:, 0] >= SURE):
            lungs[k] = ndimage.binary_fill_holes(components.without_small(plane, SMALLEST_SHARE * plane.size, 4))
        return lungs

    def _train(self) -> TrainedModel:
        absent = [n for n in self.experiment.lung.sites if n not in self.sets]
        if absent:
            raise InputError(
                f"set {absent[0]} holds scans without lung masks, but should teach the lung network (lung.sites); "
                "give it lung masks or name other sets with --set lung.sites=..."
            )
        train, val = self._slices("train"), self._slices("val")
        experiment = self.experiment
        job = StageJob(
            name=LUNG_STAGE,
            in_channels=len(experiment.preprocessing.windows_hu),
            out_channels=1,
            features=experiment.lung.features,
            budget=experiment.lung.budget,
            start=None,
            task="lungs",
        )
        channels = slice(0, job.in_channels)
        return train_stage(
            self,
            job,
            (train.images[:, channels], _lung(train.lungs), _names(train)),
            (val.images[:, channels], _lung(val.lungs), _names(val)),
        )

    def _slices(self, part: str) -> SliceSet:
        """Slices of a part of the teaching sets and, of the same patients, slices without lung; evenly thinned."""
        chosen = []
        for number in self.experiment.lung.sites:
            study_set = self.sets[number]
            rows = study_set.rows(part)
            patients = set(study_set.slices.table["patient"].iloc[rows])
            table = study_set.slices.table
            empty = np.flatnonzero(~table["has_lung"].to_numpy(bool) & table["patient"].isin(patients).to_numpy())
            validates = np.arange(len(empty)) % EVERY_NTH_EMPTY_SLICE == 0
            rows = np.concatenate([rows, empty[validates] if part == "val" else empty[~validates]])
            most = max(1, self.experiment.lung.max_slices // len(self.experiment.lung.sites))
            chosen.append(study_set.slices.select(np.sort(rows)[evenly(len(rows), most)]))
        return concatenate(chosen)


def evenly(n: int, most: int) -> NDArray[np.intp]:
    """Indices of at most `most` of `n` things, evenly spaced."""
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).round().astype(np.intp)


def _lung(lungs: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, h, w) labels to (n, 1, h, w): lung of either side."""
    return (lungs > 0).astype(np.uint8)[:, None]


def _names(slices: SliceSet) -> list[str]:
    return [f"{case} slice {k}" for case, k in zip(slices.table["case"], slices.table["slice"], strict=True)]


def open_sets(
    experiment: Experiment, folder: Path, roots: Mapping[int, Path], *, masks: Mapping[int, Path] | None = None,
    **context: Any,
) -> dict[int, StudyDataset]:  # fmt: skip
    """Read every set, those that teach the lung network first, as the others may need it.

    Args:
        folder: the study folder; splits and the lung network are there or are written.
        roots: folder by set number; none for synthetic sites.
        masks: folders of lung masks made elsewhere, by set number.
        context: ``device``, ``resume`` (True by default) and ``progress``, see `StudyContext`.
    """
    sets: dict[int, StudyDataset] = {}
    lungs = LungSupply(experiment, sets, folder, **{"resume": True, **context})
    progress = lungs.progress
    cases = find_cases(experiment, roots, folder, progress, lungs=masks)
    teachers, names = experiment.lung.sites, set_names(experiment, cases)
    for site in sorted(experiment.data.sites, key=lambda s: (s.number not in teachers, s.number)):
        found = cases[site.number]
        sets[site.number] = build_set(
            experiment, site, found, folder, name=names[site.number], lungs_for=lungs, progress=progress
        )
    return sets


LUNG_EFFECT_FILE = "supplied_lungs.csv"
COLUMNS = ("stage", "test", "n_patients", "dice_with", "dice_without", "difference")


def lung_effect(
    experiment: Experiment,
    models: Mapping[str, Predictor],
    sets: Mapping[int, StudyDataset],
    *,
    device: str = "auto",
    progress: Progress = silent,
) -> pd.DataFrame:
    """One row per stage and set with supplied lungs: mean over patients of Dice with and without the lung channel.

    Stages that are not shown it (on volumes) have none. No rows where every set came with lung masks, or where networks
    see no lung channel. Patients without infiltrate are left out.
    """
    rows = []
    supplied = [number for number, study_set in sorted(sets.items()) if study_set.supplied]
    if experiment.preprocessing.lung_channel and supplied:
        shown = {name: model for name, model in models.items() if model.sees_lungs}
        for done, (name, model) in enumerate(shown.items(), start=1):
            rows += [_row(experiment, name, model, number, sets[number], device) for number in supplied]
            progress("without supplied lungs", done, len(shown), name)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def write_lung_effect(table: pd.DataFrame, folder: Path) -> None:
    """Write `supplied_lungs.csv`; an earlier one is removed when there is nothing to say."""
    path = folder / LUNG_EFFECT_FILE
    if table.empty:
        path.unlink(missing_ok=True)
    else:
        write_frame(path, table)


def _row(
    experiment: Experiment, name: str, model: Predictor, number: int, study_set: StudyDataset, device: str
) -> dict[str, object]:
    tested = study_set.slices.select(study_set.rows("test"))  # a copy of the set's
    tested.images[:, len(experiment.preprocessing.windows_hu) :] = 0
    emptied = replace(study_set, slices=tested, split=study_set.split[study_set.split["part"] == "test"])
    truth, table = emptied.slices.target > 0, emptied.slices.table
    cases, patients = table["case"].to_numpy(str), table["patient"].to_numpy(str)
    without = np.zeros(truth.shape, bool)
    for case in dict.fromkeys(cases):
        here = cases == case
        images = model.inputs(emptied, np.flatnonzero(here))
        p, _ = model.predict_scan(images, site=number, device=device, precision=experiment.training.precision)
        without[here] = p >= experiment.scoring.threshold
    with_lungs = read_predictions(model.folder, number).of("test").found(experiment.scoring.threshold)
    both = [mean_dice(found, truth, patients) for found in (with_lungs, without)]
    n = len(set(patients[np.asarray(truth.any(axis=(1, 2)))]))
    return dict(zip(COLUMNS, (name, number, n, *both, both[0] - both[1]), strict=True))


def mean_dice(found: NDArray[np.bool_], truth: NDArray[np.bool_], patients: NDArray[np.str_]) -> float:
    """Mean over patients with infiltrate of the Dice of all their slices together; NaN when there is none."""
    scores = []
    for patient in dict.fromkeys(patients):
        here = patients == patient
        if truth[here].any():
            scores.append(dice(count(found[here], truth[here])))
    return float(np.mean(scores)) if scores else float("nan")
