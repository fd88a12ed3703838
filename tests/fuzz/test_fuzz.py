"""Mutants of everything that is read, files of others and our own: a result or one of our own errors; nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import run

READERS, OWN = (Path(__file__).with_name(f"{name}_targets.py") for name in ("reader", "own"))
COUNTS = {
    READERS: {"nifti": 450, "itk": 450, "zip": 250, "dicom": 400, "radiograph": 450},
    OWN: {"card": 500, "tensors": 300, "checkpoint": 300, "study": 400, "results": 500},
}


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("module", "count"), [(READERS, 12), (OWN, 40)], ids=["readers", "own"])
def test_some_mutants(module: Path, count: int) -> None:
    run(module, [name for name in COUNTS[module] if name != "study"], count)  # running a study takes 11 s


@pytest.mark.slow
@pytest.mark.parametrize(("module", "target"), [(m, t) for m, targets in COUNTS.items() for t in targets])
def test_two_thousand_mutants(module: Path, target: str) -> None:
    run(module, [target], COUNTS[module][target], start=1000)
