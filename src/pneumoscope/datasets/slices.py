"""Folders of slices as stacks and as cases: single 8-bit CT slices, and what `data convert --to slices` writes.

Read layouts, below a root that holds the sources or is one of them::

    coronacases/<patient>/{ct,lung,infection}/NNN.png     256 x 256, masks 0/255
    radiopaedia/<patient>/{ct,lung,infection}/NNN.png     the same, stored upside down (spine up)
    medseg/{ct,infection,classes}/N.{jpg,png}             one slice per scan, sizes vary, no lung masks

Whatever the source, slices come out as a radiologist hangs them: front of the chest up, the patient's right at the
left edge of the picture. How each source is stored was determined from the pictures: vertebra, liver and aortic arch.

Pictures are not Hounsfield units and have no known size. A case still needs a volume, so the grey values 0..255 stand
in `Volume.hu` and a grid of 1 mm in all directions stands for the unknown one; `Volume.source` and two findings say so.
Slices that the makers of a set left out are not put back as blank ones: index k is the k-th picture from the feet, and
its name is in ``source["pictures"]``. Exports (``slices.json``) hold whole scans in Hounsfield units, as they were.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pneumoscope.datasets.case import Case, LabelledScan, make_case
from pneumoscope.datasets.formats.layout import natural, refuse_links_out, require_folder
from pneumoscope.errors import DatasetError, Finding, PneumoscopeError
from pneumoscope.geometry import Grid
from pneumoscope.io.files import write_json
from pneumoscope.preprocess.slices import from_slices, to_slices
from pneumoscope.volume import INFILTRATE_LABEL, INFILTRATE_LABELS, LUNG_LABEL, Mask, Volume

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
            DatasetError: pictures and masks that do not pair, differ in size, are damaged, or have unexpected values.
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
    """The scans of one source in `root` or in the folder named like it, in natural order; no picture is opened.

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
    """Read all scans of one source; see `slice_scans` and `SliceScan.read`.

    MedSeg has one slice per stack, each counted as a patient of its own, but for those known to be one picture.
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


NOT_HU = Finding(
    "IN-SET-131",
    "8-bit pictures: grey values from 0 to 255, not Hounsfield units; densities and thresholds in HU mean nothing here",
    "error",
)
NO_SIZE = Finding(
    "IN-SET-132",
    "pixel size and slice distance are unknown; 1 mm stands in, so that millilitres are thousands of voxels",
)


def read_slice_cases(root: str | Path) -> list[Case]:
    """The scans of one or several sources, or of an export; pictures are opened when a case is loaded.

    Args:
        root: a folder that holds ``coronacases``, ``radiopaedia`` or ``medseg``, or is one of them by its name; or a
            folder of `data convert --to slices`.

    Raises:
        DatasetError: none of these, no pictures, a link that leads out.
    """
    folder = Path(root)
    expected = f"folders {', '.join(SOURCES)} of 8-bit slices, or slices written by data convert"
    require_folder(folder, expected)
    refuse_links_out(folder)
    if (folder / DESCRIPTION).is_file():
        return read_slice_export(folder)
    sources = [name for name in SOURCES if (folder / name).is_dir()]
    if not sources:
        sources = [name for name in (folder.name, folder.resolve().name) if name in SOURCES][:1]
    if not sources:
        raise DatasetError(f"holds no {expected}; the folder's name tells how its pictures are turned", path=folder)
    scans = [scan for source in sources for scan in slice_scans(folder, source)]
    return [
        make_case(
            "slices", s.case, partial(load_slices, s), patient=s.patient, source=s.source,
            licence=SOURCES[s.source].licence, citation=SOURCES[s.source].citation,
        )
        for s in scans
    ]  # fmt: skip


def load_slices(scan: SliceScan) -> LabelledScan:
    """The pictures of a scan as a volume that is no scan: see the top of this module, and `SliceScan.read`."""
    stack = scan.read()
    n, rows, columns = stack.images.shape
    grid = Grid.from_spacing((columns, rows, n), (1.0, 1.0, 1.0))
    source = {
        "format": "8-bit pictures",
        "values": "grey, 0 to 255, not Hounsfield units",
        "spacing": "unknown; 1 mm stands in",
        "pictures": " ".join(stack.slices),
    }
    native = grid.reorient(("L", "P", "S"))
    hu = from_slices(stack.images).astype(np.float32)
    volume = Volume(hu, grid, native, stack.case, (NOT_HU, NO_SIZE, *_gaps(stack.slices)), source)
    lungs = None if stack.lungs is None else Mask(from_slices(stack.lungs), grid, LUNG_LABEL)
    with_kinds = SOURCES[scan.source].flat and (scan.folder / "classes").is_dir()
    names = INFILTRATE_LABELS if with_kinds else INFILTRATE_LABEL
    drawn = None if stack.infiltrate is None else Mask(from_slices(stack.infiltrate), grid, names)
    return LabelledScan(volume, lungs, drawn)


def _gaps(names: tuple[str, ...]) -> tuple[Finding, ...]:
    """What is known of slices that are not there."""
    if len(names) < 2:
        return ()
    text = "pictures without infiltrate may have been left out: neighbours here need not be neighbours in the body"
    if all(name.isdecimal() for name in names):
        numbers = [int(name) for name in names]
        gaps = sum(after - before > 1 for before, after in pairwise(numbers))
        if gaps:
            text = f"the numbers of the pictures have {gaps} gaps; {text}"
    return (Finding("IN-SET-133", text, "info"),)


DESCRIPTION = "slices.json"
TABLE = "slices.csv"
TABLE_COLUMNS = ("case", "slice", "patient", "source", "z_mm", "lung_pixels", "infiltrate_pixels")
OFFSET_HU = 1024
FORMAT, VERSION = "pneumoscope slices", 1
ABOUT = ("patient", "source", "date", "licence", "citation")

CONVENTIONS = {
    "format": FORMAT,
    "version": VERSION,
    "hu": f"stored value of hu/NNN.png - {OFFSET_HU}",
    "view": "rows from the front of the chest to the back, columns from the patient's right to left; 000 is the lowest",
    "grid": "affine: voxel (column from the patient's left, row from the back, slice) to mm, RAS+",
}


def write_case_slices(case: Case, scan: LabelledScan, name: str, root: Path) -> tuple[dict[str, Any], list[list[Any]]]:
    """Write one case below `root`; gives its entry of ``slices.json`` and its rows of ``slices.csv``."""
    volume = scan.volume
    stack = to_slices(volume.hu)
    masks = {"lungs": scan.lungs, "infiltrate": scan.infiltrate}
    labels = {what: None if mask is None else to_slices(mask.labels) for what, mask in masks.items()}
    for what in ("hu", *(what for what, mask in masks.items() if mask is not None)):
        (root / name / what).mkdir(parents=True)
    off, rows = 0.0, []
    for k, hu in enumerate(stack):
        stored = np.clip(np.rint(hu) + OFFSET_HU, 0, 65535).astype(np.uint16)
        off = max(off, float(np.abs(stored.astype(np.float32) - OFFSET_HU - hu).max()))
        _save(stored, root / name / "hu" / f"{k:03d}.png")
        marked: list[Any] = []
        for what, planes in labels.items():
            marked.append("" if planes is None else int(np.count_nonzero(planes[k])))
            if planes is not None:
                _save(planes[k], root / name / what / f"{k:03d}.png")
        middle = volume.grid.world([(volume.grid.shape[0] - 1) / 2, (volume.grid.shape[1] - 1) / 2, k])
        rows.append([name, k, case.patient, case.source, round(float(middle[2]), 3), *marked])
    grids = {"grid": volume.grid, "native": volume.native}
    entry = {
        "case": name,
        **{key: getattr(case, key) for key in ("dataset", *ABOUT)},
        "slices": len(stack),
        **{key: {"shape": list(grid.shape), "affine": grid.affine.tolist()} for key, grid in grids.items()},
        **{what: None if m is None else {str(n): v for n, v in m.names.items()} for what, m in masks.items()},
        "rounded_hu": off,
    }
    return entry, rows


def write_description(root: Path, entries: list[dict[str, Any]]) -> None:
    """Write ``slices.json``; a folder without it is no export."""
    write_json(root / DESCRIPTION, {**CONVENTIONS, "cases": entries})


def read_slice_export(root: str | Path) -> list[Case]:
    """The cases of an export, as they were before.

    Raises:
        DatasetError: no export, a damaged one, or one of a newer version.
    """
    path = Path(root) / DESCRIPTION
    try:
        held = json.loads(path.read_bytes())
        entries = held["cases"]
        if held["format"] != FORMAT or held["version"] > VERSION or not isinstance(entries, list) or not entries:
            raise ValueError(f"format {held['format']!r}, version {held['version']!r}")
        return [_exported_case(entry, Path(root)) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, PneumoscopeError) as error:
        said = " ".join(f"{type(error).__name__} {error}".split())
        raise DatasetError(f"is not a description of exported slices ({said}); convert again", path=path) from None


def _exported_case(entry: Mapping[str, Any], root: Path) -> Case:
    name = entry["case"]
    if Path(name).name != name or name in ("", ".", ".."):
        raise ValueError(f"case {name!r}")
    grid, native = (Grid(entry[key]["shape"], entry[key]["affine"]) for key in ("grid", "native"))
    stated = {what: entry[what] for what in ("lungs", "infiltrate")}
    names = {
        what: None if known is None else {int(n): str(v) for n, v in known.items()} for what, known in stated.items()
    }
    about = {key: str(entry[key]) for key in ABOUT}
    return make_case("slices", name, partial(_load_export, root / name, grid, native, names), None, **about)


def _load_export(folder: Path, grid: Grid, native: Grid, names: Mapping[str, Mapping[int, str] | None]) -> LabelledScan:
    hu = from_slices(_pictures(folder / "hu", grid, np.uint16)).astype(np.float32) - np.float32(OFFSET_HU)
    source = {"format": "PNG slices"}
    volume = Volume(hu, grid, native, folder.name, (), source)
    masks = {
        what: None if known is None else Mask(from_slices(_pictures(folder / what, grid, np.uint8)), grid, known)
        for what, known in names.items()
    }
    return LabelledScan(volume, masks["lungs"], masks["infiltrate"])


def _pictures(folder: Path, grid: Grid, dtype: type[np.generic]) -> NDArray[Any]:
    """Pictures 000.png, 001.png ... of the size and type the description says, (k, h, w)."""
    columns, rows, slices = grid.shape
    stack = np.empty((slices, rows, columns), dtype)
    for k in range(slices):
        path = folder / f"{k:03d}.png"
        try:
            with Image.open(path) as picture:
                plane = np.asarray(picture)
        except (OSError, SyntaxError) as error:
            reason = "is missing" if not path.exists() else f"is not a readable picture ({error})"
            raise DatasetError(f"{reason}; half a download? Copy the rest, or convert again", path=path) from None
        if plane.shape != (rows, columns) or plane.dtype != dtype:
            raise DatasetError(
                f"is {plane.dtype} of {plane.shape}, expected {np.dtype(dtype)} of {(rows, columns)}; a program has "
                "changed it: convert again",
                path=path,
            )
        stack[k] = plane
    return stack


def _save(plane: NDArray[Any], path: Path) -> None:
    Image.fromarray(np.ascontiguousarray(plane)).save(path, compress_level=3)
