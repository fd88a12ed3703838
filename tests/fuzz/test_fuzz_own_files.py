"""Mutants of our own files: a result or one of our own errors that names the file; nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import run

MODULE = Path(__file__).with_name("own_targets.py")
COUNTS = {"card": 500, "tensors": 300, "checkpoint": 300, "study": 400, "results": 500}


@pytest.mark.parametrize("target", [name for name in COUNTS if name != "study"])  # running a study takes 11 s
def test_some_mutants(target: str) -> None:
    run(MODULE, target, 40)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "count"), COUNTS.items())
def test_two_thousand_mutants(target: str, count: int) -> None:
    run(MODULE, target, count, start=1000)
