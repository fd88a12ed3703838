"""Lung masks from elsewhere: found under every name, laid on the scan, refused where they belong to another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pneumoscope.datasets.case import Case, LabelledScan
from pneumoscope.datasets.formats.manifest import PATTERNS, with_lung_masks
from pneumoscope.errors import DatasetError, PneumoscopeError
from pneumoscope.io.write import write_mask
from pneumoscope.volume import LUNG_LABELS, Mask


@pytest.fixture
def bare(tiny):
    """A case of site C, which stores no lungs, and its exact lungs."""
    made = tiny["C", 0]
    assert made.scan.lungs is None
    return Case("mosmed", "study_0255", "p", "C", "", "", load=lambda: made.scan), made


@pytest.mark.parametrize("pattern", PATTERNS)
def test_masks_are_found_and_laid_on_the_scan(bare, tmp_path, pattern):
    case, made = bare
    write_mask(made.lungs, tmp_path / pattern.format(case=case.case), made.scan.volume.native)
    (found,) = with_lung_masks([case], tmp_path)
    scan = found.load()
    assert isinstance(scan, LabelledScan)
    assert np.array_equal(scan.lungs.labels, made.lungs.labels)
    assert dict(scan.lungs.names) == dict(LUNG_LABELS)
    assert case.load().lungs is None, "the case itself is as it was"


def test_a_missing_mask_and_a_mask_of_another_scan(bare, tiny, tmp_path):
    case, made = bare
    other = replace(case, case="study_0256")
    write_mask(made.lungs, tmp_path / "study_0255.nii.gz", made.scan.volume.native)
    with pytest.raises(DatasetError, match=r"no lung mask of study_0256; expected study_0256\.nii\.gz"):
        with_lung_masks([case, other], tmp_path)
    with pytest.raises(DatasetError, match="no such folder"):
        with_lung_masks([case], tmp_path / "nothing")
    foreign: Mask = tiny["A", 0].lungs
    write_mask(foreign, tmp_path / "study_0256.nii.gz", tiny["A", 0].scan.volume.native)
    (_, wrong) = with_lung_masks([case, other], tmp_path)
    with pytest.raises(PneumoscopeError, match=r"study_0256.*64 x 64 x 13 voxels, its scan has 48 x 48 x 10"):
        wrong.load()
