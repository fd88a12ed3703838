"""Stages that nobody trains here: a model as it is, or the masks that one made.

The system of such a stage is ``external:MODEL``, with what `segment --model` takes, or ``predictions:DIR`` with a mask
per case. `score_study` makes a study of nothing but these: a transfer matrix without training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.registry import DATASETS
from pneumoscope.errors import InputError, no_such
from pneumoscope.inference.external import Access
from pneumoscope.io.kinds import case_name
from pneumoscope.jobs.stamp import content_of_files, is_done, mark_done, mark_started, stamp, what_changed
from pneumoscope.models.options import ModelOptions
from pneumoscope.progress import NOTE
from pneumoscope.recipes.papers.transfer import transfer_systems
from pneumoscope.recipes.schema import Experiment, Site, Stage
from pneumoscope.recipes.settings import OUR_CHOICE, all_from, revise
from pneumoscope.recipes.stages import PREDICTIONS, split_external
from pneumoscope.study.learners.base import Learner, ScanPredictor, ScanSlices, scan_of
from pneumoscope.volume import Volume

if TYPE_CHECKING:
    from pneumoscope.study.data import StudyDataset

GIVEN = OUR_CHOICE + "as given in the call"


class ExternalLearner(Learner):
    """Takes models and masks as they are; nothing is trained."""

    def make(self, stage: Stage) -> ExternalStage:
        """Note in the stage's folder what it is; the model is loaded when the first scan is predicted."""
        study, own = self.study, self.study.stage_folder(stage.name)
        labels = labels_of(stage.name, study.labels)
        kind = split_external(self.system)[0]
        parts = {"masks" if kind == PREDICTIONS else "model": content_of_system(self.system), "labels": labels}
        wanted = stamp("external stage", revision=3, **parts)
        if not (study.resume and is_done(own, wanted)):
            changed = ", ".join(what_changed(own, **parts)) if study.resume else ""
            if changed:
                study.progress(NOTE, 1, 1, f"{stage.name}: {changed} changed; it is predicted and scored again")
            mark_started(own, wanted, **parts)
            mark_done(own, wanted)
        access = Access(study.trust, labels=labels)
        names = {site.number: site.label for site in study.experiment.data.sites}
        return ExternalStage(stage.name, own, wanted, False, self.system, access, names)


def labels_of(stage: str, given: Sequence[str]) -> tuple[str, ...]:
    """What the labels of one stage mean: ``STAGE:LABEL=MEANING`` of its own and ``LABEL=MEANING`` of all."""
    own = tuple(pair.removeprefix(f"{stage}:") for pair in given if pair.startswith(f"{stage}:"))
    return (*(pair for pair in given if ":" not in pair.partition("=")[0]), *own)


def content_of_system(system: str) -> str:
    """Hex SHA-256 over the model or the masks of a system.

    Raises:
        InputError: no such folder of masks.
    """
    from pneumoscope.inference.external import content_of

    kind, path = split_external(system)
    if kind != PREDICTIONS:
        return content_of(path)
    if not Path(path).is_dir():
        raise InputError("no such folder of masks; expected one mask per case", path=path)
    return content_of_files([path])


def require_external(stages: Sequence[Stage], access: Access) -> None:
    """Open what the external ones among the stages name, so that nothing is written where one cannot be used.

    Raises:
        ModelError: no such model, damaged, or not to be read without trust.
        InputError: no such folder of masks, or its program is not installed.
    """
    from pneumoscope.inference.segmenter import Segmenter

    for stage in stages:
        kind, path = split_external(stage.system)
        if kind:
            content_of_system(stage.system)
        if kind and kind != PREDICTIONS:
            labels = labels_of(stage.name, access.labels)
            Segmenter(ModelOptions(model=path, device="cpu", trust=access.trust, label=labels))


def require_masks(experiment: Experiment, roots: Mapping[int, Path]) -> None:
    """See that the folders of masks have one of every case of every set; nothing is loaded.

    Raises:
        InputError: a case without mask, or with two.
    """
    from pneumoscope.cases.quantify import mask_file
    from pneumoscope.study.data import find_cases

    systems = (split_external(stage.system) for stage in experiment.stages.chain)
    folders = [path for kind, path in systems if kind == PREDICTIONS]
    for number, cases in find_cases(experiment, roots, Path()).items() if folders and roots else ():
        for folder in folders:
            for case in cases:
                mask_file(case.case, masks_of_set(folder, experiment.site(number).label))


@dataclass(frozen=True, eq=False)
class ExternalStage(ScanPredictor):
    """A model, or a folder of masks, as a stage."""

    system: str  # ``external:MODEL`` or ``predictions:DIR``
    access: Access  # how the model is opened, and what the labels of a model or of masks mean
    sets: Mapping[int, str]  # number of a set -> its label; masks of a set may lie in a folder of that name

    @cached_property
    def _models(self) -> dict[str, Any]:
        """The segmenter by device, once it is loaded."""
        return {}

    def inputs(self, study_set: StudyDataset, rows: NDArray[np.intp]) -> ScanSlices:
        """The scan that these slices are of, under the name of its case."""
        case = str(study_set.slices.table["case"].iloc[int(rows[0])])
        shown = scan_of(study_set, rows)
        return replace(shown, volume=replace(shown.volume, case=case))

    def predict_scan(
        self, images: ScanSlices, *, site: int, device: str, precision: str
    ) -> tuple[NDArray[np.float32], int]:
        """See `Predictor`; of masks, those of the set `site`."""
        kind, path = split_external(self.system)
        if kind != PREDICTIONS:
            return super().predict_scan(images, site=site, device=device, precision=precision)
        from pneumoscope.cases.quantify import mask_of_case

        mask = mask_of_case(images.volume, masks_of_set(path, self.sets[site]), self.access.labels)
        return images.cut(mask.any.astype(np.float32)), 0

    def probability(self, volume: Volume, device: str) -> NDArray[Any]:
        """The model's; 0 and 1 where it gives labels only."""
        path = split_external(self.system)[1]
        if device not in self._models:
            from pneumoscope.inference.segmenter import Segmenter

            options = ModelOptions(model=path, device=device, trust=self.access.trust, label=self.access.labels)
            self._models[device] = Segmenter(options)
        found = self._models[device].run(volume)
        if found.probability is None:
            return found.infiltrate.any.astype(np.float32)
        return np.asarray(found.probability, np.float32) / np.float32(255)


def masks_of_set(folder: str, label: str) -> Path:
    """Where the masks of a set lie: in the folder of its label, or beside those of all other sets."""
    own = Path(folder) / label
    return own if own.is_dir() else Path(folder)


def score_experiment(
    data: Mapping[str, str],
    models: Mapping[str, str],
    predictions: Mapping[str, str],
    trained_on: Mapping[str, str] = MappingProxyType({}),
) -> Experiment:
    """The study of `score_study`: every model on every patient of every set, in Hounsfield units.

    Args:
        data: name of a set -> folder. The name is a reader's (`pneumoscope data list`), or ``READER:LABEL`` where
            several sets have one reader.
        models: name of a row -> what `segment --model` takes.
        predictions: name of a row -> folder of masks.
        trained_on: name of a row -> labels of the sets that it was trained on, in order, with commas. A row that was
            trained on those of an earlier row and one more is that row retrained.

    Raises:
        InputError: no set, no row, a row twice, no such reader, or no such row or set in `trained_on`.
    """
    rows = [*((name, f"external:{model}") for name, model in models.items()),
            *((name, f"{PREDICTIONS}:{folder}") for name, folder in predictions.items())]  # fmt: skip
    if not data or not rows:
        raise InputError(
            "there is nothing to score; give --data SET=ROOT, and --model NAME=MODEL or --predictions NAME=DIR"
        )
    twice = [name for name, _ in rows if [n for n, _ in rows].count(name) > 1 or case_name(name) != name]
    if twice:
        raise InputError(f"{twice[0]!r} cannot name a row; give each model a name of its own, of letters and digits")
    sites = []
    for number, name in enumerate(data, start=1):
        reader, _, label = name.partition(":")
        if reader not in DATASETS:
            raise InputError(f"--data {name}: {no_such('dataset', reader, DATASETS)}")
        sites.append(
            all_from(GIVEN, Site, number=number, dataset=reader, label=label or reader, cases="*", phantom_site="A",
                     phantom_patients=3)
        )  # fmt: skip
    base = transfer_systems()
    learnt = _learnt(trained_on, [name for name, _ in rows], [site.label for site in sites])
    before = {name: next((b for b, _ in rows if learnt[b] and learnt[b] == learnt[name][:-1]), None) for name in learnt}
    order = sorted(rows, key=lambda row: len(learnt[row[0]]))  # a row stands behind the one that it started from
    chain = tuple(
        all_from(GIVEN, Stage, name=name, site=(learnt[name] or [0])[-1], start=before[name], system=system)
        for name, system in (rows if not any(before.values()) else order)
    )
    return replace(
        base,
        recipe="score",
        title="Models as they are, each on every set; nothing is trained",
        citation="our own",
        notes=("Nothing is trained: every patient of every set is tested on, and no set is a model's own.",),
        data=replace(base.data, sites=tuple(sites)),
        split=revise(base.split, OUR_CHOICE + "nothing is trained", by="none"),
        lung=replace(revise(base.lung, OUR_CHOICE + "nothing is trained", supply="shipped"), sites=(1,)),
        stages=replace(base.stages, chain=chain),
    )


def _learnt(trained_on: Mapping[str, str], rows: Sequence[str], labels: Sequence[str]) -> dict[str, list[int]]:
    """The numbers of the sets that each row was trained on; none where nothing is said.

    Raises:
        InputError: no such row, no such set, or a set twice.
    """
    for name, given in trained_on.items():
        sets = [label.strip() for label in given.split(",")]
        wrong = next((label for label in sets if labels.count(label) != 1 or sets.count(label) > 1), None)
        wrong = name if name not in rows else wrong
        if wrong is not None:
            what, known = ("row", rows) if name not in rows else ("set", labels)
            raise InputError(
                f"--trained-on {name}={given}: there is no {what} {wrong!r}, or it is there twice; the {what}s "
                f"are {', '.join(known)}"
            )
    return {
        name: [1 + list(labels).index(label.strip()) for label in trained_on[name].split(",")]
        if name in trained_on else [] for name in rows
    }  # fmt: skip
