"""Scans and masks in: a path of any readable kind, recognised by content, or an image of another library (nibabel,
SimpleITK, MONAI, TorchIO, an array with an affine), to a `Volume` or a `Mask`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import Finding, InputError, InputTypeError, ReadError
from pneumoscope.geometry import LPS_TO_RAS, Grid
from pneumoscope.io import intensity as hounsfield
from pneumoscope.io.archive import Unpacked, extracted
from pneumoscope.io.contents import DicomPlace, ScanRef, contents_of
from pneumoscope.io.dicom.read import read_dicom
from pneumoscope.io.formats.nifti import read_nifti
from pneumoscope.io.formats.nrrd_metaimage import read_metaimage, read_nrrd
from pneumoscope.io.kinds import READABLE, Kind, case_name, is_scan_name, require_kind, suffix_of
from pneumoscope.io.masks import CODE as MASK_CODE
from pneumoscope.io.masks import in_house_order, labels_of, require_threshold
from pneumoscope.io.stored import Place, Stored, laid_out, names_failures
from pneumoscope.volume import LUNG_LABEL, LUNG_LABELS, Mask, Volume, is_named, present_labels

Intensity = Literal["auto", "hu"]

MOST_LABELS = 25  # A mask with more labels than that holds grey levels


@names_failures
def read_volume(
    path: str | Path | Stored, *, series: str | None = None, intensity: Intensity = "auto", case: str | None = None
) -> Volume:
    """A chest CT in Hounsfield units, RAS+ float32.

    Voxels below -1024 HU are raised to -1024, blank voxels outside the body become air; both leave a finding.

    Args:
        path: .nii, .nii.gz, .nrrd, .mha, .mhd, a DICOM file or folder, a folder with one image, or a zip of one; or
            an image that is read already.
        series: which DICOM series of a study: ``best`` (None) by the rules of `pneumoscope.io.dicom.choice`, a number
            in the list of its series, or a SeriesInstanceUID.
        intensity: ``auto`` refuses values that do not look like HU, ``hu`` takes them as HU unchecked.
        case: name for outputs; by default the file's stem, for DICOM a name of the reader's that hides the patient.

    Raises:
        ReadError: with a code of docs/reference/input-codes.md.
        InputError: an unknown `intensity`, or `series` for something that is not DICOM.
    """
    if intensity not in ("auto", "hu"):
        raise InputError(f'intensity must be "auto" or "hu", got {intensity!r}')
    if series == "all":
        raise InputError("all series are many scans, expected one: best, a number or a SeriesInstanceUID")
    if isinstance(path, Stored):
        return _to_volume(path, Path(path.format), intensity, case or "scan")
    start = Path(path)
    if start.is_dir():
        return _read_folder(start, series, intensity, case)
    kind = require_kind(start)
    if kind == "zip":
        return _read_zip(start, series, intensity, case)
    return _read_file(start, kind, series, intensity, case)


def read_listed(scan: ScanRef, intensity: Intensity = "auto") -> Volume:
    """A scan that a listing found, as `read_volume` reads it; a zip that the listing unpacked is not unpacked again."""
    if scan.unpacked is not None:
        return _read_zip(scan.path, scan.series, intensity, scan.case, scan.unpacked)
    return read_volume(scan.path, series=scan.series, intensity=intensity, case=scan.case)


@names_failures
def read_mask(
    path: str | Path | Stored,
    names: Mapping[int, str] | None = None,
    *,
    threshold: float | None = None,
    scan: Grid | None = None,
) -> Mask:
    """Labels of a .nii, .nii.gz, .nrrd, .mha or .mhd file.

    Rules, in this order:

    1. With `threshold`, voxels above it become label 1 (interpolated masks: 127 for those made from 0/255).
    2. Values within 0.01 of a whole number are rounded; other fractions, NaN, and values outside 0..255 are refused.
    3. When the only values are 0 and 255, 255 means label 1, unless `names` knows a label 255.

    An empty mask is a mask without labels, not an error. The names are `names`, else those our own files carry, else
    ``label 1`` and so on.

    Args:
        path: the file, or a folder called ``X.nii`` that holds one; or an image that is read already.
        names: label numbers that are allowed, and what they mean.
        scan: the grid of its scan, when that is known: a mask of more than twice its voxels is refused unread.

    Raises:
        ReadError: IN-MSK-069 for labels; IN-NII and IN-ITK codes for the file.
    """
    start = Path(path.format if isinstance(path, Stored) else path)
    stored = path if isinstance(path, Stored) else read_stored_mask(start, scan)
    labels = labels_of(stored, threshold, names or {}, start)
    present = present_labels(labels)
    known = names if names is not None else stored.labels
    if known is None:
        known = {v: f"label {v}" for v in present or [1]}
    unknown = [v for v in present if v not in known]
    if unknown:
        expected = ", ".join(f"{k} = {v}" for k, v in sorted(known.items()))
        raise ReadError(
            f"holds the labels {unknown[:8]}, expected 0, {expected}; relabel it", code=MASK_CODE, path=start
        )
    return Mask.from_native(laid_out(labels, stored.grid, np.uint8), stored.grid, {k: known[k] for k in sorted(known)})


def read_stored_mask(start: Path, scan: Grid | None = None) -> Stored:
    """A mask's file, or a folder called ``X.nii`` that holds one, checked in form."""
    kind = "nifti" if start.is_dir() else require_kind(start)
    if kind in ("dicom", "zip"):
        raise ReadError("expected a mask as .nii, .nii.gz, .nrrd or .mha; convert it", code=MASK_CODE, path=start)
    return read_stored(start, kind, sparse=True, scan=scan)


def read_lungs(path: str | Path | Stored, *, scan: Grid | None = None) -> Mask:
    """A lung mask; labels 1 and 2 without names in the file are taken as right and left, the house order.

    A mask with label 1 only stays a lung of no side. Masks of programs with another order must be relabelled before.

    Raises:
        ReadError: see `read_mask`.
    """
    return in_house_order(read_mask(path, scan=scan), LUNG_LABELS, LUNG_LABEL)


def read_mask_or_probability(
    path: str | Path | Stored,
    threshold: float | None,
    read: Callable[..., Mask] | None = None,
    *,
    scan: Grid | None = None,
) -> Mask:
    """A mask of labels as `read_mask` takes it; one of probabilities or grey levels is cut at the threshold.

    Labels stay what they are, whatever the threshold. More than `MOST_LABELS` of them without names are grey levels.

    Args:
        threshold: voxels above it become label 1; None refuses fractions.

    Raises:
        InputError: a threshold outside [0, 255).
        ReadError: see `read_mask`.
    """
    if threshold is None:
        return (read or read_mask)(path, scan=scan)
    require_threshold(threshold)
    try:
        mask = (read or read_mask)(path, scan=scan)
        if len(mask.names) <= MOST_LABELS or is_named(mask.names):
            return mask
    except ReadError as problem:
        if problem.code != MASK_CODE:
            raise
    return read_mask(path, threshold=threshold, scan=scan)


@names_failures
def read_stored(path: Path, kind: Kind, *, sparse: bool = False, scan: Grid | None = None) -> Stored:
    """One NIfTI, NRRD or MetaImage file, checked in form; `sparse` and `scan` as in `read_nifti`."""
    if kind == "nifti":
        return read_nifti(path, sparse=sparse, scan=scan)
    read = read_nrrd if kind == "nrrd" else read_metaimage
    return read(path, sparse=sparse, scan=scan)


def _read_file(path: Path, kind: Kind, series: str | None, intensity: Intensity, case: str | None) -> Volume:
    if kind == "dicom":
        volume = read_dicom(path, series=series, case=case, as_hu=intensity == "hu")
        try:
            content = hounsfield.check_content(volume.hu, family="IN-DCM", path=volume.case)
            if intensity == "auto":
                hounsfield.require_hu(volume.hu, family="IN-DCM", path=volume.case)
        except ReadError as error:
            error.file = str(path)
            raise
        return volume.with_findings(*content)
    if series not in (None, "best"):
        raise InputError("a series can be chosen in DICOM only; leave it out for this file", path=path)
    return _to_volume(read_stored(path, kind), path, intensity, case or case_name(path))


def _to_volume(stored: Stored, path: Path, intensity: Intensity, case: str) -> Volume:
    family = "IN-NII" if stored.format == "NIfTI" else "IN-ITK"
    place = Place(path, family)
    if min(stored.grid.shape) < 2:
        raise place.error(
            59, f"is a single slice ({stored.grid.shape}), which has no volume to measure; give the whole scan"
        )
    with np.errstate(all="ignore"):  # what does not fit float32 becomes infinite and is caught below
        hu = laid_out(stored.values(), stored.grid, np.float32)
    findings = stored.findings + hounsfield.fill_nonfinite(hu, stored.grid, family=family, path=path)
    findings += hounsfield.check_content(hu, family=family, path=path)
    if stored.scale_is_broken:
        if hounsfield.guess_not_hu(hu):
            raise place.error(
                58, "its slope or intercept is NaN or infinite and the raw values are no HU; export again"
            )
        findings += (place.note(58, "a slope or intercept that is not finite was passed over: raw values are HU"),)
    elif intensity == "auto":
        hounsfield.require_hu(hu, family=family, path=path)
    findings += hounsfield.clip_air(hu, family=family)
    return Volume.from_native(hu, stored.grid, case=case, findings=findings, source={"format": stored.format})


def _read_folder(folder: Path, series: str | None, intensity: Intensity, case: str | None) -> Volume:
    """A folder that holds one scan, DICOM or an image, by the search that also lists scans."""
    inside = contents_of(folder)
    images = [item for item in inside.found if not isinstance(item, DicomPlace)]
    has_dicom = len(images) < len(inside.found)
    if has_dicom and (not images or series not in (None, "best")):
        volume = _read_file(folder, "dicom", series, intensity, case)
        if not inside.beside:
            return volume
        kinds = ", ".join(sorted({suffix_of(p) for p in inside.beside}))  # their names may be the patient's
        count = f"{len(inside.beside)} other image(s) ({kinds})"
        note = f"{count} beside the DICOM slices passed over; to read one, give its own path"
        return volume.with_findings(Finding("IN-DCM-044", note))
    if len(images) == 1 and not has_dicom:
        image = images[0] if images[0] != folder else next(p for p in sorted(folder.iterdir()) if is_scan_name(p))
        return read_volume(image, series=series, intensity=intensity, case=case or case_name(images[0]))
    names = ", ".join([p.name for p in images[:4]] + ["a DICOM series"] * has_dicom)
    kinds = "scans" if has_dicom else "images"
    found = f"{len(images) + has_dicom} {kinds} ({names})" if images else "no image"
    raise ReadError(
        f"is a folder with {found}, expected one scan: {READABLE}",
        code="IN-NII-053",
        path=(case or "DICOM folder") if has_dicom else folder,
        file=folder,
    )


@names_failures
def _read_zip(
    path: Path, series: str | None, intensity: Intensity, case: str | None, unpacked: Unpacked | None = None
) -> Volume:
    with extracted(path, unpacked) as folder:
        name = case or case_name(path)
        try:
            return _read_folder(folder, series, intensity, name)
        except InputError as error:
            inside = (error.path or "").removeprefix(str(folder)).removeprefix(name).strip("/, ")
            where = f"{path}, {inside}" if inside else str(path)
            message = error.message.replace(str(folder), str(path))
            raise type(error)(message, code=error.code, path=where, file=path) from None


Image = TypeVar("Image", Volume, Mask)

ACCEPTED = "a path, a nibabel or SimpleITK image, a MONAI or TorchIO image, or (array, affine)"


def source_of(image: Any, what: str, kind: type) -> str | Path | Stored:
    """What the readers take for a path or for another library's image (`ACCEPTED`); the voxels are not copied.

    `what` it is for (``the scan``) and our own class that would be taken too, `kind`, stand in messages.

    Raises:
        InputTypeError: anything else.
        InputError: an image that is not three-dimensional, or has several values a voxel.
    """
    if isinstance(image, (str, Path)):
        return image
    if isinstance(image, (tuple, list)) and len(image) == 2 and np.shape(image[1]) == (4, 4):
        array, affine, name = _array_of(image[0], what), _array_of(image[1], what), "array"
    elif type(image).__module__.startswith("SimpleITK"):
        (array, affine), name = _of_sitk(image, what), "SimpleITK image"
    elif hasattr(image, "affine") and hasattr(image, "dataobj"):
        array, affine, name = np.asanyarray(image.dataobj), image.affine, "nibabel image"
    elif hasattr(image, "affine") and (hasattr(image, "detach") or hasattr(image, "numpy")):
        array, affine, name = _array_of(image, what), _array_of(image.affine, what), "tensor"
        array = array[0] if array.ndim == 4 and len(array) == 1 else array
    else:
        needs = ""
        if isinstance(image, (tuple, list)) and len(image) == 2:
            needs = f"; the affine has shape {np.shape(image[1])}, expected (4, 4)"
        elif hasattr(image, "__array__") and not isinstance(image, (Volume, Mask)):
            needs = "; an array alone does not say where it lies: give (array, affine)"
        raise InputTypeError(f"{what} is of type {type(image).__name__}, expected {kind.__name__}, {ACCEPTED}{needs}")
    array = array[..., 0] if array.ndim == 4 and array.shape[-1] == 1 else array
    if array.ndim != 3 or array.dtype.kind not in "biuf":
        raise InputError(f"{what} has shape {array.shape} of {array.dtype}, expected one number a voxel, (i, j, k)")
    return Stored(array.astype(np.uint8) if array.dtype.kind == "b" else array, Grid(array.shape, affine), name)


def made_of(kind: type[Image], image: Any, **options: Any) -> Image:
    """One of our images from another's; `options` are those of `read_volume` or `read_mask`."""
    if isinstance(image, kind) and not options:
        return image
    read: Callable[..., Any] = read_volume if issubclass(kind, Volume) else read_mask
    made: Image = read(source_of(image, "the image", kind), **options)
    return made


def _array_of(values: Any, what: str) -> NDArray[Any]:
    """Numbers as a NumPy array; of a tensor on any device, without its gradient and bfloat16 widened."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
    try:
        return np.asarray(values.numpy() if hasattr(values, "numpy") else values)
    except ValueError as error:
        raise InputError(f"{what} holds no array: {error}") from None


def _of_sitk(image: Any, what: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
    import SimpleITK as sitk  # noqa: N813

    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(
            f"{what} is a SimpleITK image of size {image.GetSize()}, expected (i, j, k) and one value each"
        )
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return np.asarray(sitk.GetArrayFromImage(image).transpose(2, 1, 0)), LPS_TO_RAS @ affine
