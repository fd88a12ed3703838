"""A threshold on Hounsfield units as a stage: what any network must beat, on the same scans.

Its two values are those of `volumes_baseline`, fitted on the stage's training scans. A stage that starts from an
earlier one carries nothing over: there are no weights, so plain retraining is a new fit on the new set, and ``joint``
one on all sets seen.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import InputError
from pneumoscope.experiments.schema import Experiment, Stage
from pneumoscope.io.files import read_json, write_json
from pneumoscope.jobs.stamp import is_done, mark_done, stamp
from pneumoscope.progress import Progress, silent
from pneumoscope.study import volumes_baseline as baseline
from pneumoscope.study.answers import ScanSlices, scan_of
from pneumoscope.study.data import StudySet
from pneumoscope.study.stages import start_stage
from pneumoscope.study.system_volumes import scans_of

THRESHOLD_FILE = "threshold.json"


@dataclass(frozen=True, eq=False)
class ThresholdStage:
    """A fitted threshold; see `answers.StageModel`.

    Attributes:
        name, folder, sha256, trained_now: as there.
        bounds: infection lies between these two values.
    """

    name: str
    folder: Path
    sha256: str
    trained_now: bool
    bounds: tuple[float, float]

    @property
    def loads_scans(self) -> bool:
        """Always."""
        return True

    @property
    def sees_lungs(self) -> bool:
        """It finds the air spaces itself."""
        return False

    def inputs(self, study_set: StudySet, rows: NDArray[np.intp]) -> ScanSlices:
        """The scan that these slices are of."""
        return scan_of(study_set, rows)

    def predict_scan(
        self, images: ScanSlices, *, site: int, device: str, precision: str
    ) -> tuple[NDArray[np.float32], int]:
        """1 where the threshold finds infection, 0 elsewhere."""
        return images.cut(baseline.threshold_labels(images.volume, self.bounds, 1)), 0


def make_threshold_stage(
    experiment: Experiment,
    stage: Stage,
    sets: Mapping[int, StudySet],
    folder: Path,
    *,
    resume: bool = False,
    progress: Progress = silent,
) -> ThresholdStage:
    """Fit the threshold of a stage, or take it from its folder."""
    own = folder / "stages" / stage.name
    scans = scans_of(experiment, sets, stage, "train")
    way = [baseline.AIR_HU, baseline.CLOSING_MM, baseline.SMOOTHING_MM, baseline.FIT_SCANS]
    parts = {
        "training_data": [[number, case, sets[number].scan_content(case)] for number, case in scans],
        "settings": {"low": baseline.LOW_HU, "high": baseline.HIGH_HU, "way": way},
    }
    wanted = stamp("threshold stage", revision=1, **parts)
    bounds = _kept(own) if resume and is_done(own, wanted) else None
    if bounds is not None:
        progress(stage.name, 1, 1, "taken from the folder")
        return ThresholdStage(stage.name, own, _sum(bounds, way), False, bounds)
    start_stage(own, wanted, parts, resume=resume, progress=progress)
    begun = time.perf_counter()
    bounds = baseline.fit_threshold([sets[number].scans[case] for number, case in scans])
    seconds = round(time.perf_counter() - begun, 1)
    write_json(own / THRESHOLD_FILE, {"low_hu": bounds[0], "high_hu": bounds[1], "scans": [case for _, case in scans]})
    mark_done(own, wanted, seconds=seconds)
    progress(stage.name, 1, 1, f"{bounds[0]:g} to {bounds[1]:g} HU")
    return ThresholdStage(stage.name, own, _sum(bounds, way), True, bounds)


def _kept(own: Path) -> tuple[float, float] | None:
    """The values in the folder; None where they cannot be read."""
    try:
        kept = read_json(own / THRESHOLD_FILE)
        return float(kept["low_hu"]), float(kept["high_hu"])
    except (InputError, ValueError, KeyError, TypeError):
        return None


def _sum(bounds: tuple[float, float], way: list[float]) -> str:
    return stamp("threshold", revision=1, bounds=bounds, way=way)
