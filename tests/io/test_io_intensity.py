"""Row 67: what is no HU is refused with the likeliest reason, and nothing that is HU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from border_files import AFFINE, chest, grid_of, nifti_bytes, save

from pneumoscope.errors import ReadError
from pneumoscope.geometry import Grid
from pneumoscope.io.intensity import check_content, clip_air, fill_nonfinite, guess_not_hu, require_hu
from pneumoscope.io.read import read_volume
from pneumoscope.volume import array_to_native

HU = chest((48, 40, 32)).astype(np.float64)


def windowed(low: float, high: float, top: float = 255) -> np.ndarray:
    return np.rint((np.clip(HU, low, high) - low) / (high - low) * top)


def normal(mean: float, spread: float) -> np.ndarray:
    return np.random.default_rng(0).normal(mean, spread, HU.shape)


NOT_HU: dict[str, tuple[str, np.ndarray]] = {
    "8 bit, mediastinal window": ("[-160, 240]", windowed(-160, 240)),
    "8 bit, lung window": ("[-1250, 250]", windowed(-1250, 250)),
    "8 bit, other lung window": ("[-1000, 400]", windowed(-1000, 400)),
    "8 bit, full range": ("[-1024, 3071]", windowed(-1024, 3071)),
    "8 bit with cubic overshoot": ("8-bit picture", windowed(-1000, 400) + normal(0, 3)),
    "shifted by 1024": ("+1024", HU + 1024),
    "shifted by 1024, padded with -2000": ("+1024", np.where(HU < -950, -2000, HU + 1024)),
    "shifted by 1000": ("+1024", HU + 1000),
    "uint16 wrap": ("unsigned", HU.astype(np.int16).astype(np.uint16)),
    "uint16 wrap, then the intercept": ("unsigned", HU.astype(np.int16).astype(np.uint16) - 1024.0),
    "min-max": ("normalised to [0, 1]", (HU - HU.min()) / (HU.max() - HU.min())),
    "-1 to 1": ("normalised to [-1, 1]", windowed(-1000, 400, 2) - 1),
    "z-score": ("normalised", (HU - HU.mean()) / HU.std()),
    "clipped to soft tissue": ("lung and air are lost", np.clip(HU, -160, 240)),
    "clipped to lung": ("no soft tissue", np.clip(HU, -970, -450)),
    "intercept twice": ("-1024", HU - 1024),
    "scaled to 16 bit": ("without a negative", windowed(-1000, 400, 30_000)),
    "a mask": ("a mask (values 0, 1, 2)", np.digitize(HU, [-900, -500])),
    "a picture of a mask": ("a mask (values 0, 255)", (HU > -500) * 255),
    "an MR template with a dark background": ("another scale", np.where(HU > -900, 6000 + 4 * HU, HU)),
    "an MR": ("neither lung nor air", normal(-50, 80)),
}

REAL_HU: dict[str, np.ndarray] = {
    "whole": HU, "clipped [-1024, 600]": np.clip(HU, -1024, 600), "clipped [-1000, 400]": np.clip(HU, -1000, 400),
    "clipped [-1250, 250]": np.clip(HU, -1250, 250), "lung only": HU[12:16, 16:24, 10:22],
    "lung without a vessel": normal(-850, 40), "dense lung": np.where(HU < -700, HU + 300, HU),
    "padded with -2000": np.where(HU < -950, -2000, HU),
    "padded with -3024, cubic overshoot": np.where(HU < -950, -3024, HU) + normal(0, 60),
    "padded with 0 outside the body": np.where(HU < -950, 0, HU), "metal": np.where(HU > 420, 30_000, HU),
    "mostly consolidated": np.where((HU > -900) & (HU < -700) & (normal(0, 1) < 1.5), 30, HU),
    "int16": HU.astype(np.int16),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_HU)
def test_names_what_is_not_hu(name: str) -> None:
    words, values = NOT_HU[name]
    assert words in (guess_not_hu(values) or "taken for HU")
    with pytest.raises(ReadError, match="intensity=") as caught:
        require_hu(values, family="IN-DCM")
    assert caught.value.code == "IN-DCM-067"


@pytest.mark.parametrize("name", REAL_HU)
def test_takes_what_is_hu(name: str) -> None:
    assert guess_not_hu(REAL_HU[name]) is None


def test_override(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii.gz", nifti_bytes(windowed(-1000, 400).astype(np.uint8)))
    with pytest.raises(ReadError, match=r"windowed to about \[-1000, 400\]") as caught:
        read_volume(path)
    assert caught.value.code == "IN-NII-067"
    assert read_volume(path, intensity="hu").hu.max() == windowed(-1000, 400).max()


def test_values_below_air_are_raised_and_counted(tmp_path: Path) -> None:
    hu = chest().astype(np.float32)
    hu[3, 2, 1], hu[4, 2, 1] = -3602, -1024.5
    volume = read_volume(save(tmp_path / "scan.nii", nifti_bytes(hu)))
    assert volume.hu.min() == -1024
    (finding,) = volume.findings
    assert (finding.code, finding.severity) == ("IN-NII-067", "info")
    assert finding.message.startswith("2 voxels")
    assert "-3602" in finding.message
    assert clip_air(np.zeros(3, np.float32)) == ()


@pytest.mark.parametrize("values", [np.full(9, 40.0), np.full(9, -1000.0), np.linspace(-1024, -950, 50)])
def test_nothing_in_it(values: np.ndarray) -> None:
    with pytest.raises(ReadError) as caught:
        check_content(values)
    assert caught.value.code == "IN-NII-068"


def test_a_little_tissue_is_content() -> None:
    assert check_content(np.array([-1000.0] * 900 + [40.0] * 5)) == ()
    (finding,) = check_content(np.array([-1000.0] * 900 + [40.0]))
    assert (finding.code, finding.severity) == ("IN-NII-068", "error")


def test_round_field_of_view_may_be_blank() -> None:
    hu = chest((40, 40, 6)).astype(np.float32)
    x, y = np.meshgrid(np.linspace(-1, 1, 40), np.linspace(-1, 1, 40), indexing="ij")
    hu[x**2 + y**2 > 1] = np.nan
    (finding,) = fill_nonfinite(hu, grid_of(hu))
    assert finding.code == "IN-NII-057"
    assert np.isfinite(hu).all()
    assert hu[0, 0, 0] == -1024


@pytest.mark.parametrize("codes", [("R", "A", "S"), ("S", "L", "P"), ("A", "I", "R")])
def test_a_lost_slice_is_found_along_any_axis(codes: tuple[str, str, str]) -> None:
    ras = chest((12, 14, 10)).astype(np.float32)
    ras[:, :, 4] = np.inf
    native = Grid(ras.shape, AFFINE).reorient(codes)
    stored = array_to_native(ras[::-1, ::-1], native)  # AFFINE is stored left and back
    with pytest.raises(ReadError, match="1 axial slices mostly blank"):
        fill_nonfinite(np.array(stored), native)
