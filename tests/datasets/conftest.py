"""Small synthetic scans made once, and slice tables of known composition."""

from __future__ import annotations

import pandas as pd
import pytest

from pneumoscope.datasets.phantom.folder import PhantomScan, scan_patient


@pytest.fixture(scope="session")
def tiny() -> dict[tuple[str, int], PhantomScan]:
    """Four patients of each site: numbers 2 and 3 carry planted faults."""
    return {(site, n): scan_patient(site, n, seed=11, size="tiny") for site in "ABC" for n in range(4)}


@pytest.fixture(scope="session")
def small() -> dict[str, PhantomScan]:
    """One patient of each site at a size where noise and outlines can be told."""
    return {site: scan_patient(site, 0, seed=5, size="small") for site in "ABC"}


def slice_table(lung: int, infected: int, other: int = 0, patients: int = 9) -> pd.DataFrame:
    """`lung` slices with lung, `infected` of them with infiltrate, `other` without lung, dealt over patients."""
    rows = [
        (f"case{n % patients}", n // patients, f"p{n % patients}", n < lung, n < infected) for n in range(lung + other)
    ]
    return pd.DataFrame(rows, columns=["case", "slice", "patient", "has_lung", "has_infiltrate"])


@pytest.fixture
def make_table():
    return slice_table
