"""What models on volumes say about a scan, on the scan's own grid, and how it is scored, one row per structure."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.datasets.case import Case, LabelledScan
from pneumoscope.datasets.patches import VolumeRecipe, prepare_image
from pneumoscope.experiments.volumes import VolumeExperiment
from pneumoscope.geometry import Grid
from pneumoscope.metrics.overlap import accuracy, count, dice, iou, precision, recall, specificity
from pneumoscope.metrics.surface import surface_scores
from pneumoscope.preprocess.slices import from_slices
from pneumoscope.preprocess.spatial import Resample
from pneumoscope.volume import Volume

if TYPE_CHECKING:
    from torch import nn

Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]
METRICS = ("dice", "iou", "sensitivity", "specificity", "accuracy", "precision", "nsd")
LUNGS = "lungs"
"""Both lungs together: a class of its own, or the mean of the two sides."""
KEYS = ("stage", "k", "fold", "setting", "test", "case", "patient", "structure")
COLUMNS = (*KEYS, *METRICS, "reference_ml", "predicted_ml", "seconds")
"""Of `per_case.csv`. ``seconds`` is the prediction of the whole scan, the same in each row of it."""


def predictor(model: nn.Module, device: str, precision: str) -> Predict:
    """Boxes (n, 1, d, h, w) to class probabilities (n, c, d, h, w), in the precision of the training."""
    import torch

    from pneumoscope.training.devices import make_fabric

    fabric = make_fabric(device, precision)  # type: ignore[arg-type]
    model.to(fabric.device).eval()

    def predict(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode(), fabric.autocast():
            logits = model(torch.from_numpy(boxes).to(fabric.device))
        found: NDArray[np.float32] = torch.softmax(logits.float(), 1).cpu().numpy()
        return found

    return predict


def predict_labels(
    volume: Volume,
    members: Sequence[Predict],
    recipe: VolumeRecipe,
    patch: tuple[int, int, int],
    overlap: Sequence[float],
) -> NDArray[np.uint8]:
    """Classes (i, j, k) on the scan's grid: the mean of the members' probabilities, carried back, the largest wins.

    Args:
        volume: the scan.
        members: one or several networks that share recipe and box.
        recipe: how the scan is prepared.
        patch: (d, h, w) of the windows.
        overlap: (d, h, w) share of a window that the next one covers again; where windows overlap they are averaged.
    """
    found, grid = _slid(volume, members, recipe, patch, overlap)
    best = np.zeros(volume.grid.shape, np.float32)
    labels = np.zeros(volume.grid.shape, np.uint8)
    for number in range(len(found)):
        there = from_slices(found[number])
        if grid != volume.grid:
            there, _ = Resample(volume.grid, fill_hu=float(number == 0)).move(there, grid)
        wins = there > best
        labels[wins] = number
        np.maximum(best, there, out=best)
    return labels


def infection_probability(
    volume: Volume,
    members: Sequence[Predict],
    recipe: VolumeRecipe,
    patch: tuple[int, int, int],
    overlap: Sequence[float],
) -> NDArray[np.float32]:
    """Probability (i, j, k) of the last class, infection, on the scan's grid; arguments as `predict_labels`.

    Outside of what the network was shown it is 0.
    """
    found, grid = _slid(volume, members, recipe, patch, overlap)
    there = from_slices(found[-1])
    return there if grid == volume.grid else Resample(volume.grid, fill_hu=0.0).move(there, grid)[0]


def _slid(
    volume: Volume,
    members: Sequence[Predict],
    recipe: VolumeRecipe,
    patch: tuple[int, int, int],
    overlap: Sequence[float],
) -> tuple[NDArray[np.float32], Grid]:
    """Class probabilities (c, d, h, w) of the prepared scan, and its grid."""
    from pneumoscope.inference.windows3d import WindowPlan, slide

    image, grid = prepare_image(volume, recipe)
    plan = WindowPlan(patch, tuple(overlap))  # type: ignore[arg-type]
    found: NDArray[np.float32] | None = None
    for slab in slide(image[None], members, plan):
        if found is None:
            found = np.empty((slab.probability.shape[0], *image.shape), np.float32)
        found[:, slab.start : slab.start + slab.probability.shape[1]] = slab.probability
    assert found is not None  # a scan has slices
    return found, grid


def structures(scan: LabelledScan, labels: NDArray[np.uint8] | None, classes: str) -> dict[str, Any]:
    """Name to (predicted, reference) boolean masks; lungs only where they are predicted and drawn."""
    if classes == "lungs":
        assert scan.lungs is not None  # `is_drawn` was asked
        return {LUNGS: (np.zeros(scan.lungs.labels.shape, bool) if labels is None else labels == 1, scan.lungs.any)}
    assert scan.infiltrate is not None  # `is_drawn` was asked
    infected = scan.infiltrate.labels > 0
    if labels is None:
        return {"infection": (np.zeros(infected.shape, bool), infected)}
    if classes == "infiltrate":
        return {"infection": (labels == 1, infected)}
    pairs = {"infection": (labels == 3, infected)}
    if scan.lungs is not None:  # as the paper's labels: infected lung is infection and not lung
        for name, label, side in (("left lung", 1, 2), ("right lung", 2, 1)):
            pairs[name] = (labels == label, (scan.lungs.labels == side) & ~infected)
    return pairs


def score_pair(
    found: NDArray[np.bool_], real: NDArray[np.bool_], affine: NDArray[np.float64], tolerance_mm: float
) -> dict[str, float]:
    """Overlap and surface scores of two masks (i, j, k) on a grid with this affine. Empty masks: see metrics."""
    counts = count(found, real)
    steps = np.asarray(affine[:3, :3])
    voxel_ml = float(abs(np.linalg.det(steps))) / 1000
    return {
        "dice": dice(counts),
        "iou": iou(counts),
        "sensitivity": recall(counts),
        "specificity": specificity(counts),
        "accuracy": accuracy(counts),
        "precision": precision(counts),
        "nsd": surface_scores(found, real, steps, tolerance_mm).nsd,
        "reference_ml": counts.referenced * voxel_ml,
        "predicted_ml": counts.predicted * voxel_ml,
    }


def score_cases(
    experiment: VolumeExperiment,
    cases: Sequence[Case],
    labels_of: Callable[[Volume], NDArray[np.uint8]],
    about: dict[str, Any],
    progress: Callable[[int, int], None],
) -> pd.DataFrame:
    """Predict and score scans one after the other; each is loaded once and let go.

    Args:
        experiment: classes and tolerances.
        cases: the scans.
        labels_of: classes of a scan on its own grid.
        about: stage, k, fold, setting, test.
        progress: told (done, of how many).
    """
    rows = []
    tolerances = experiment.scoring
    for done, case in enumerate(cases, start=1):
        scan = case.load()
        begun = time.perf_counter()
        labels = labels_of(scan.volume)
        seconds = time.perf_counter() - begun
        for name, (found, real) in structures(scan, labels, experiment.preparation.classes).items():
            tolerance = tolerances.lesion_tolerance_mm if name == "infection" else tolerances.lung_tolerance_mm
            scores = score_pair(found, real, scan.volume.grid.affine, tolerance)
            rows.append({**about, "case": case.case, "patient": case.patient, "structure": name, **scores,
                         "seconds": seconds})  # fmt: skip
        progress(done, len(cases))
    return pd.DataFrame(rows, columns=list(COLUMNS))
