"""Mutated files end in a volume or in our own error, nothing else, and soon."""

from __future__ import annotations

import random
import time
from pathlib import Path

import dicom_making as making
import pytest
from pydicom.data import get_testdata_file

from pneumoscope.errors import PneumoscopeError
from pneumoscope.io.dicom import read_dicom

SEEDS = {
    "CT_small": Path(get_testdata_file("CT_small.dcm")),
    "693_J2KI": Path(get_testdata_file("693_J2KI.dcm")),
    "MR_small_RLE": Path(get_testdata_file("MR_small_RLE.dcm")),
    "MR_small_jpeg_ls_lossless": Path(get_testdata_file("MR_small_jpeg_ls_lossless.dcm")),
}


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A few flipped, removed, doubled or overwritten stretches, most of them in the header."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        if not changed:
            break
        end = len(changed) if rng.random() < 0.2 else min(len(changed), 4000)
        at = rng.randrange(max(1, end))
        kind = rng.random()
        if kind < 0.5:
            changed[at] = rng.randrange(256)
        elif kind < 0.7:
            changed[at : at + 4] = rng.choice(
                [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\xfe\xff\0\xe0"]
            )
        elif kind < 0.8:
            del changed[at : at + rng.randint(1, 64)]
        elif kind < 0.9:
            changed[at:at] = changed[at : at + rng.randint(1, 64)]
        else:
            del changed[max(1, len(changed) - rng.randint(1, 3000)) :]
    return bytes(changed)


def outcome(path: Path, **options: bool) -> str:
    """ "volume", or the code and the whole message of our error; any other exception fails the test."""
    try:
        volume = read_dicom(path, min_slices=1, **options)
    except PneumoscopeError as error:
        return f"{error.code} {error}"
    return "volume" if volume.hu.size < 1 << 26 else "too large"


def assert_allowed(outcomes: list[str]) -> None:
    assert [told for told in outcomes if told != "volume" and not told.startswith("IN-DCM-")] == []
    assert [told for told in outcomes if "\n" in told] == []


@pytest.mark.parametrize(("name", "count"), [("CT_small", 250), ("MR_small_RLE", 80)])
def test_mutated_files(name: str, count: int, tmp_path: Path, in_process: None) -> None:
    rng = random.Random(20240229)
    whole = SEEDS[name].read_bytes()
    outcomes = []
    for number in range(count):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(mutate(whole, rng))
        start = time.monotonic()
        outcomes.append(outcome(path, any_modality=name != "CT_small"))
        assert time.monotonic() - start < 5
        path.unlink()
    assert_allowed(outcomes)
    assert 0 < outcomes.count("volume") < count


def test_mutated_slices_of_a_series_in_the_real_process(tmp_path: Path) -> None:
    """A whole series with one bad slice and codecs that may crash: the parent only ever sees one error."""
    rng = random.Random(4)
    outcomes = []
    for number in range(3):
        slices = [making.code_as(data, "1.2.840.10008.1.2.4.90") for data in making.make_series()]
        folder = making.save(slices, tmp_path / str(number))
        target = folder / "IM0005.dcm"
        data = bytearray(target.read_bytes())
        for _ in range(20):
            data[rng.randrange(len(data) - 300, len(data))] = rng.randrange(256)
        target.write_bytes(data)
        outcomes.append(outcome(folder))
    assert_allowed(outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEDS)
def test_many_more_mutations(name: str, tmp_path: Path) -> None:
    """In the real process: a codec that crashes must not take the tests with it."""
    rng = random.Random(5)
    path = tmp_path / "a.dcm"
    outcomes = []
    for _ in range(60):
        path.write_bytes(mutate(SEEDS[name].read_bytes(), rng))
        outcomes.append(outcome(path, any_modality=True))
    assert_allowed(outcomes)
