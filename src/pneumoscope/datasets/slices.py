"""Folders of single 8-bit CT slices, turned to the house view.

Read layouts, below a root that holds the sources or is one of them::

    coronacases/<patient>/{ct,lung,infection}/NNN.png     256 x 256, masks 0/255
    radiopaedia/<patient>/{ct,lung,infection}/NNN.png     the same, stored upside down (spine up)
    medseg/{ct,infection,classes}/N.{jpg,png}             one slice per scan, sizes vary, no lung masks

Whatever the source, slices come out as a radiologist hangs them: front of the chest up, the patient's right at the
left edge of the picture. How each source is stored was determined from the pictures: vertebra, liver and aortic arch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.formats.layout import natural
from pneumoscope.errors import DatasetError

PIXEL_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class SliceSource:
    """How one source is stored and whose it is."""

    name: str
    turn: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]  # stored picture (..., h, w) to house view
    licence: str
    citation: str
    flat: bool = False  # one folder for all scans instead of one per patient
    # leading ``_`` parts of a folder name that name the patient; scans that share them are one person
    # (``radiopaedia_10_85902_1`` and ``_3``)
    patient_parts: int = 2
    # of a flat folder, a picture that shows the slice of another one again, and that other one
    same_patient: Mapping[str, str] = field(default_factory=dict)


_MA = "Ma et al. 2020, COVID-19 CT Lung and Infection Segmentation Dataset, doi:10.5281/zenodo.3757476"
_MA_LICENCE = "CC BY-NC-SA 4.0 (also stated as CC BY 4.0; treated as non-commercial)"

SOURCES: Mapping[str, SliceSource] = {
    "coronacases": SliceSource("coronacases", lambda picture: picture, _MA_LICENCE, _MA),
    "radiopaedia": SliceSource("radiopaedia", lambda picture: picture[..., ::-1, :], _MA_LICENCE, _MA),
    "medseg": SliceSource(
        "medseg",
        lambda picture: picture.swapaxes(-1, -2),
        "free use with acknowledgement",
        "MedSeg, COVID-19 CT segmentation dataset, set 1 (images: SIRM), medicalsegmentation.com/covid19",
        flat=True,
        same_patient={"43": "10"},  # one picture rescaled, annotated twice: found by `data audit`, checked by eye
    ),
}


@dataclass(frozen=True, eq=False)
class SliceStack:
    """8-bit slices of one scan in the house view; neighbours in the stack are neighbours in the body, gaps occur."""

    case: str  # folder (or ``medseg-<N>``), unique within the source
    patient: str  # scans of one person share it
    images: NDArray[np.uint8]  # (n, h, w) uint8 grey values; not Hounsfield units
    lungs: NDArray[np.uint8] | None  # (n, h, w) uint8, 1 = lung (without sides), or None where none are stored
    # (n, h, w) uint8, 1 = infiltrate, or 1 = ground-glass and 2 = consolidation where distinguished; None where nobody
    # annotated
    infiltrate: NDArray[np.uint8] | None
    source: str  # key of `SOURCES`
    slices: tuple[str, ...]  # file stems, e.g. ``("000", "001")``

    @property
    def dataset(self) -> str:
        """``slices-<source>``; ``phantom-<site>`` for synthetic ones."""
        return self.source if self.source.startswith("phantom") else f"slices-{self.source}"


@dataclass(frozen=True)
class SliceScan:
    """One scan of a source before its pictures are opened."""

    # as in `SliceStack`
    case: str
    patient: str
    slices: tuple[str, ...]
    source: str  # key of `SOURCES`
    folder: Path  # of the scan; of the whole source where that is flat

    def read(self) -> SliceStack:
        """Open the pictures.

        Raises:
            DatasetError: pictures and masks that do not pair or differ in size, damaged ones, masks with other values
                than expected.
        """
        known, folder = SOURCES[self.source], self.folder
        images = _stack(folder / "ct", self.slices)
        lungs = None if known.flat else _masks(folder / "lung", self.slices, images.shape)
        if known.flat and (folder / "classes").is_dir():
            drawn: NDArray[np.uint8] | None = _stack(folder / "classes", self.slices)
            if drawn is not None and drawn.max() > 2:
                raise DatasetError(
                    "holds classes above 2; expected 0, 1 = ground-glass, 2 = consolidation", path=folder
                )
            _require_shape(drawn, images.shape, folder / "classes" / self.slices[0])
        else:
            drawn = _masks(folder / "infection", self.slices, images.shape)
        image, *masks = (None if a is None else np.ascontiguousarray(known.turn(a)) for a in (images, lungs, drawn))
        assert image is not None
        return SliceStack(self.case, self.patient, image, masks[0], masks[1], known.name, self.slices)


def slice_scans(root: str | Path, source: str) -> list[SliceScan]:
    """The scans of one source, in natural order of the folder names; no picture is opened.

    Raises:
        DatasetError: unknown source, missing folder, no scans.
    """
    if source not in SOURCES:
        raise DatasetError(f"unknown slice source {source!r}; known are {', '.join(SOURCES)}")
    known = SOURCES[source]
    folder = Path(root) / source if (Path(root) / source).is_dir() else Path(root)
    if not folder.is_dir():
        raise DatasetError(f"is not a folder; expected the slices of {source}", path=folder)
    if known.flat:
        stems = _stems(folder / "ct")
        return [
            SliceScan(f"{source}-{stem}", f"{source}-{known.same_patient.get(stem, stem)}", (stem,), source, folder)
            for stem in stems
        ]
    scans = sorted((p for p in folder.iterdir() if (p / "ct").is_dir()), key=lambda p: natural(p.name))
    if not scans:
        raise DatasetError(f"holds no <patient>/ct folders; expected the slices of {source}", path=folder)
    parts = known.patient_parts
    return [SliceScan(p.name, "_".join(p.name.split("_")[:parts]), tuple(_stems(p / "ct")), source, p) for p in scans]


def read_slice_folder(root: str | Path, source: str) -> list[SliceStack]:
    """Read all scans of one source.

    Args:
        root: the folder named like the source, or the one that holds it.
        source: key of `SOURCES`.

    Returns:
        One stack per scan, in natural order of the folder names (MedSeg: one slice per stack, each counted as a
        patient of its own, but for those known to be one picture; a few patients gave more than one slice).

    Raises:
        DatasetError: unknown source, missing folder, no scans, pictures and masks that do not pair or differ in size,
            masks with other values than expected.
    """
    return [scan.read() for scan in slice_scans(root, source)]


def _masks(folder: Path, stems: tuple[str, ...], shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """Masks stored as 0/255: 1 where above 127; None without a folder. One stored as 0/1 would be empty: refused."""
    if not folder.is_dir():
        return None
    stack = _stack(folder, stems)
    _require_shape(stack, shape, folder)
    if 0 < stack.max() <= 127:
        raise DatasetError(f"holds masks with values up to {stack.max()}; expected 0 and 255", path=folder)
    return (stack > 127).astype(np.uint8)


def _require_shape(stack: NDArray[np.uint8] | None, shape: tuple[int, ...], path: Path) -> None:
    if stack is not None and stack.shape != shape:
        raise DatasetError(f"masks measure {stack.shape}, their pictures {shape} (slices, rows, columns)", path=path)


def _stack(folder: Path, stems: tuple[str, ...]) -> NDArray[np.uint8]:
    from PIL import Image

    pictures = []
    for stem in stems:
        path = next((folder / f"{stem}{s}" for s in PIXEL_SUFFIXES if (folder / f"{stem}{s}").is_file()), None)
        if path is None:
            raise DatasetError(f"has no picture {stem!r}, which the folder ct has", path=folder)
        try:
            with Image.open(path) as picture:
                pictures.append(np.asarray(picture.convert("L")))
        except (OSError, SyntaxError) as error:
            raise DatasetError(f"is not a readable picture: {error}", path=path) from error
    if len({p.shape for p in pictures}) > 1:
        raise DatasetError("holds pictures of different sizes; expected one size per scan", path=folder)
    return np.stack(pictures)


def _stems(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DatasetError("is missing; expected a folder of slices", path=folder)
    pictures = (p for p in folder.iterdir() if p.suffix.lower() in PIXEL_SUFFIXES and not p.name.startswith("."))
    stems = sorted((p.stem for p in pictures), key=natural)
    if not stems:
        raise DatasetError("holds no .png or .jpg slices", path=folder)
    return stems
