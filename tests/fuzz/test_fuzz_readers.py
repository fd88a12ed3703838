"""Mutants of everything that is read: a result or one of our own errors, soon; nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import run

MODULE = Path(__file__).with_name("reader_targets.py")
COUNTS = {"nifti": 450, "itk": 450, "zip": 250, "dicom": 400, "radiograph": 450}


@pytest.mark.parametrize("target", COUNTS)
def test_some_mutants(target: str) -> None:
    run(MODULE, target, 12)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "count"), COUNTS.items())
def test_two_thousand_mutants(target: str, count: int) -> None:
    run(MODULE, target, count, start=1000)
