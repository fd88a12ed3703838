"""Damaged bytes anywhere: a volume, or one of our own errors, soon; nothing else."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from border_files import chest, grid_of, nifti_bytes

from pneumoscope.errors import PneumoscopeError
from pneumoscope.io import read_mask, read_volume, write_volume
from pneumoscope.volume import Volume

MUTANTS = int(os.environ.get("PNEUMOSCOPE_FUZZ", "80"))


def seeds(folder: Path) -> dict[str, bytes]:
    hu = chest((8, 7, 6))
    volume = Volume.from_native(hu, grid_of(hu))
    for suffix in (".nii.gz", ".nrrd", ".mha"):
        write_volume(volume, folder / f"seed{suffix}")
    (folder / "seed.nii").write_bytes(nifti_bytes(hu))
    with zipfile.ZipFile(folder / "seed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/scan.nii", nifti_bytes(hu))
        archive.writestr("notes.txt", b"hello")
    return {path.name.removeprefix("seed"): path.read_bytes() for path in sorted(folder.glob("seed.*"))}


def mutant(data: bytes, rng: np.random.Generator) -> bytes:
    """One to eight changes, most of them in the header: bytes, whole numbers, cuts, insertions, doubling."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        reach = min(len(changed), 420) if rng.random() < 0.7 else len(changed)
        if not reach:
            break
        at = int(rng.integers(0, reach))
        kind = rng.integers(0, 6)
        if kind == 0:
            changed[at] = rng.integers(0, 256)
        elif kind == 1:
            changed[at : at + 4] = rng.bytes(4)
        elif kind == 2:
            changed[at : at + 2] = rng.choice([b"\xff\xff", b"\0\0", b"\xff\x7f", b"\0\x80"])
        elif kind == 3:
            del changed[at : at + int(rng.integers(1, 40))]
        elif kind == 4:
            changed[at:at] = rng.bytes(int(rng.integers(1, 40)))
        else:
            changed[at] ^= 1 << int(rng.integers(0, 8))
    return bytes(changed)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha", ".zip"])
@pytest.mark.parametrize("intensity", ["auto", "hu"])
def test_mutants(tmp_path: Path, suffix: str, intensity: str) -> None:
    data = seeds(tmp_path)[suffix]
    rng = np.random.default_rng(len(suffix) + len(intensity))
    path = tmp_path / f"mutant{suffix}"
    outcomes = {"read": 0, "refused": 0}
    for _ in range(MUTANTS):
        path.write_bytes(mutant(data, rng))
        for read in (lambda: read_volume(path, intensity=intensity), lambda: read_mask(path)):  # type: ignore[arg-type, return-value]
            try:
                read()
                outcomes["read"] += 1
            except PneumoscopeError as error:
                outcomes["refused" if "\n" not in str(error) else "in several lines"] += 1
    assert outcomes["refused"] > MUTANTS / 2
