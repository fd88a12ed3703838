"""The shipped models on real scans: needs the scans, see `real_data`."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from pneumoscope.cases.segment import segment_cases
from pneumoscope.io.read import read_mask
from pneumoscope.io.scans import find_scans

pytestmark = pytest.mark.real


def load_benchmark():
    """`benchmarks/lungs.py`, for its reading of RTSTRUCT."""
    path = Path(__file__).parents[2] / "benchmarks" / "lungs.py"
    spec = importlib.util.spec_from_file_location("benchmark_lungs", path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # it reads its references from the module beside it
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def dice(a, b) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


@pytest.mark.timeout(900)
def test_a_real_dicom_scan_gives_masks_on_its_grid(real_data, tmp_path):
    series = real_data / "ct-volumes" / "nsclc-LUNG1-001" / "image"
    batch = segment_cases(find_scans(series), tmp_path / "out")
    (case,) = batch.cases
    assert case.status == "done", case.error
    folder = tmp_path / "out" / case.case

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series)))
    scan = reader.Execute()
    for name in ("lungs", "infiltrate"):
        mask = sitk.ReadImage(str(folder / f"{name}.nii.gz"))
        assert mask.GetSize() == scan.GetSize()
        assert np.allclose(mask.GetSpacing(), scan.GetSpacing(), atol=1e-5)
        assert np.allclose(mask.GetOrigin(), scan.GetOrigin(), atol=1e-3)
        assert np.allclose(mask.GetDirection(), scan.GetDirection(), atol=1e-6)

    benchmark = load_benchmark()
    _, volume, reference, counted = next(benchmark.scans(real_data / "ct-volumes"))
    lungs = read_mask(folder / "lungs.nii.gz")
    assert dice(lungs.any & counted, reference["both"] & counted) >= 0.97
    assert dice(lungs.of("right lung") & counted, reference["right"] & counted) >= 0.96
    assert dice(lungs.of("left lung") & counted, reference["left"] & counted) >= 0.96
    assert lungs.grid.is_same_space(volume.grid)


@pytest.mark.timeout(600)
def test_lungs_of_coarse_scans(real_data, tmp_path):
    folder = real_data / "ct-volumes" / "imlab"
    scans = [scan for scan in find_scans(folder) if not scan.case.endswith("-msk")]
    batch = segment_cases(scans, tmp_path / "out")
    for case in batch.cases:
        assert case.status == "done", case.error
        found = read_mask(tmp_path / "out" / case.case / "lungs.nii.gz")
        truth = read_mask(folder / f"{case.case}-msk.nii.gz", threshold=127)
        assert dice(found.any, truth.any) >= 0.95


def test_a_chest_whose_corners_hold_the_table_keeps_both_lungs(real_data):
    """-887 HU in the corners made any lung above it plain gas: 988 of 4 465 ml were found."""
    from pneumoscope.inference.segmenter import LungFinder
    from pneumoscope.io.read import read_volume

    volume = read_volume(real_data / "ct-volumes" / "reduced" / "CPTAC-C3N-00247.nii.gz")
    lungs = LungFinder()(volume)
    aerated = load_benchmark().threshold_baseline(volume)
    assert np.count_nonzero(lungs.any & aerated) > 0.97 * np.count_nonzero(aerated)
    assert lungs.volume_ml("right lung") > 2000
    assert lungs.volume_ml("left lung") > 1500
