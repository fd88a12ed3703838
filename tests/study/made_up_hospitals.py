"""Three small made-up hospitals that a study can run on in seconds."""

import numpy as np

from pneumoscope.datasets.case import Case, LabelledScan
from pneumoscope.geometry import Grid
from pneumoscope.recipes.papers.maganaris_2022b import four_channel_demo
from pneumoscope.recipes.settings import with_overrides
from pneumoscope.volume import INFILTRATE_LABEL, LUNG_LABELS, Mask, Volume

SMALL = (
    "preprocessing.size=32",
    "network.features=4,8",
    "lung.features=4,8",
    "lung.budget.max_epochs=2",
    "lung.smallest_ml=0",
    "stages.first.max_epochs=2",
    "stages.retrain.max_epochs=1",
    "split.train_slices=8",
    "split.validation_slices=4",
    "scoring.interval_resamples=50",
    "training.batch_size=4",
    "training.precision=fp32",
)


def make_scan(site, number, *, lungs=True, size=32, slices=12):
    """Two ellipses of lung in an ellipse of body, a blob of infiltrate in the middle slices; site 2 is noisy."""
    rng = np.random.default_rng([site, number])
    x, y = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size), indexing="ij")
    hu = np.full((size, size, slices), -1000.0, np.float32)
    lung, spot = np.zeros(hu.shape, np.uint8), np.zeros(hu.shape, np.uint8)
    hu[(x / 0.9) ** 2 + (y / 0.7) ** 2 < 1] = 40
    for k, height in enumerate(np.linspace(-1.2, 1.2, slices)):
        for label, centre in ((1, 0.4), (2, -0.4)):
            reach = max(1e-6, 1 - height**2) ** 0.5
            inside = ((x - centre) / (0.32 * reach)) ** 2 + (y / (0.5 * reach)) ** 2 < 1
            lung[:, :, k][inside] = label
            hu[:, :, k][inside] = -850
            if abs(height) < 0.5:
                blob = inside & (((x - centre) / 0.18) ** 2 + ((y + 0.2) / 0.18) ** 2 < 1)
                spot[:, :, k][blob] = 1
                hu[:, :, k][blob] = -500
    hu += rng.normal(0, 60 if site == 2 else 10, hu.shape).astype(np.float32)
    grid = Grid.from_spacing(hu.shape, (10.0, 10.0, 20.0))
    volume = Volume(hu, grid, grid, case=f"s{site}p{number}")
    mask = Mask(lung, grid, dict(LUNG_LABELS)) if lungs else None
    return LabelledScan(volume, mask, Mask(spot, grid, dict(INFILTRATE_LABEL)))


def make_cases(site, patients=4, **options):
    """Cases of one hospital."""
    return [
        Case(
            dataset="phantom",
            case=f"s{site}p{n}",
            patient=f"patient {site}{n}",
            source="ABC"[site - 1],
            licence="CC0",
            citation="none",
            load=lambda n=n: make_scan(site, n, **options),
        )
        for n in range(patients)
    ]


def three_hospitals():
    """Cases of all three; the third has no lung masks."""
    return {1: make_cases(1), 2: make_cases(2), 3: make_cases(3, lungs=False)}


def small_experiment():
    """The demo's experiment, as small as it gets."""
    return with_overrides(four_channel_demo(), SMALL)
