"""Masks and measurements of a DICOM series as DICOM: a segmentation and a structured report that refer to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope._version import __version__
from pneumoscope.errors import InputError
from pneumoscope.geometry import LPS_TO_RAS, contiguous
from pneumoscope.io.dicom import read
from pneumoscope.io.dicom.deidentify import hashed_uid, mark_deidentified, pack_header, source_header, uid_key
from pneumoscope.io.dicom.geometry import Stack
from pneumoscope.io.dicom.read import ReadLimits, request_for
from pneumoscope.io.files import atomic_path
from pneumoscope.volume import Mask, Volume, present_labels, relabelled

SLAB = 16  # Slices that are handed on at a time

MOST_BYTES = 4 * 2**30
"""Address space of the process that writes; a SEG of 300 slices of 512 x 512 with four segments takes under 2 GiB."""


def write_dicom_results(
    volume: Volume,
    masks: Sequence[Mask],
    folder: str | Path,
    *,
    measured: Mapping[str, Mapping[str, float]],
    states: Sequence[str] = (),
    models: str = "",
    deidentify: bool = False,
) -> tuple[Path, ...]:
    """Write `seg.dcm` (lungs), `seg-infiltrate.dcm` and `report.dcm` into a folder.

    A SEG has one binary segment per named label that has voxels, on the series' own planes, and refers to the images
    it was made from; without such a label the SEG is not written. The SR (TID 1500, Comprehensive 3D) refers to the
    segments. All carry the patient of the source series, as DICOM wants it, unless `deidentify`.

    Args:
        volume: the scan, read from DICOM; its native grid is that of the series.
        masks: on the grid of `volume`; label names as in `pneumoscope.volume` (others are left out).
        measured: label name -> ``volume_ml``, ``share_percent``, ``mean_hu`` -> value.
        states: of the severity report.
        models: names of the models; empty for masks made elsewhere.
        deidentify: keep nothing that says who the patient is; UIDs become keyed hashes.

    Returns:
        The files; () when no mask has a voxel, because a segmentation without segments is no segmentation.

    Raises:
        InputError: the scan was read from another format.
        ReadError: IN-DCM-101 to -103, headers that cannot be used.
        GeometryError: a mask lies on another grid.
    """
    with ExitStack() as stack:
        stream, name = stack.enter_context(read.scratch())
        found: dict[str, list[str]] = {}
        for file, names, slabs in _segments(volume, masks):
            stream.writelines(slab.data for slab in slabs)
            found[file] = names
        if not found:
            return ()
        stream.flush()
        stream.seek(0)
        limits = ReadLimits(memory_mib=MOST_BYTES >> 20)
        targets = [Path(folder) / file for file in (*found, REPORT_FILE)]
        *segmentations, report = (str(stack.enter_context(atomic_path(path)).absolute()) for path in targets)
        request = request_for(folder, "derive", limits, False, volume.case) | {
            "out": name,
            "series": volume.series,
            "shape": list(volume.native.shape[::-1]),
            "structures": found,
            "measured": {k: {q: float(v) for q, v in values.items()} for k, values in measured.items()},
            "states": list(states),
            "models": models,
            "version": __version__,
            "key": uid_key().hex(),
            "deidentify": deidentify,
            "case": volume.case,
            "segmentations": segmentations,
            "report": report,
        }
        read.exchange(request, stream)
    return tuple(targets)


def _segments(volume: Volume, masks: Sequence[Mask]) -> Iterator[tuple[str, list[str], Iterator[NDArray[np.uint8]]]]:
    """For each mask with coded labels that have voxels: the SEG's file, the names of its segments, and their numbers.

    The numbers, from 1 in the order of the names, come as (k, rows, columns) in the series' own order, in slabs.
    """
    if volume.series is None:
        raise InputError("only a DICOM scan can have DICOM results; it was read from another format")
    for mask in masks:
        labels = [label for label in present_labels(mask.labels) if mask.names[label] in STRUCTURES]
        if labels:
            names = [mask.names[label] for label in labels]
            (file,) = {STRUCTURES[name].file for name in names}
            numbers = {label: n for n, label in enumerate(labels, start=1)}
            native = mask.to_native(volume.native).transpose(2, 1, 0)
            parts = range(0, len(native), SLAB)
            yield file, names, (contiguous(relabelled(native[k : k + SLAB], numbers)) for k in parts)


MAKER = "pneumoscope"
NOTICE = "Research software; not a medical device"
LUNG_FILE, INFILTRATE_FILE, REPORT_FILE = "seg.dcm", "seg-infiltrate.dcm", "report.dcm"
"""Two segmentations: infiltrate lies in lung, and readers that make one label map of a SEG refuse overlap."""

_SERIES_NUMBERS: Mapping[str, int] = {LUNG_FILE: 9001, REPORT_FILE: 9002, INFILTRATE_FILE: 9003}
"""Far from those scanners give."""

_CONTENT = {LUNG_FILE: ("LUNGS", "Lungs"), INFILTRATE_FILE: ("INFILTRATES", "Infiltrates")}
"""Content label, and what the series description says."""

Code3 = tuple[str, str, str]
_ANATOMY: Code3 = ("91723000", "SCT", "Anatomical Structure")
_ABNORMAL: Code3 = ("49755003", "SCT", "Morphologically Abnormal Structure")
_LUNG: Code3 = ("39607008", "SCT", "Lung")
_UNKNOWN_METHOD: Code3 = ("261665006", "SCT", "Unknown")
_RIGHT: Code3 = ("24028007", "SCT", "Right")
_LEFT: Code3 = ("7771000", "SCT", "Left")


@dataclass(frozen=True)
class Structure:
    """How a structure is coded."""

    # segmented property category and type
    category: Code3
    kind: Code3
    side: Code3 | None  # laterality, or None
    colour: tuple[float, float, float]  # CIELab (L*, a*, b*) recommended for display

    @property
    def file(self) -> str:
        """The segmentation that holds it."""
        return LUNG_FILE if self.category == _ANATOMY else INFILTRATE_FILE


STRUCTURES: Mapping[str, Structure] = {
    "right lung": Structure(_ANATOMY, _LUNG, _RIGHT, (62.0, -8.0, -33.0)),
    "left lung": Structure(_ANATOMY, _LUNG, _LEFT, (72.0, -25.0, -12.0)),
    "lung": Structure(_ANATOMY, _LUNG, None, (67.0, -16.0, -22.0)),
    "infiltrate": Structure(_ABNORMAL, ("409609008", "SCT", "Pulmonary infiltrate"), None, (62.0, 48.0, 45.0)),
    "ground-glass": Structure(_ABNORMAL, ("112120", "DCM", "Ground glass opacity"), None, (80.0, 12.0, 65.0)),
    "consolidation": Structure(_ABNORMAL, ("95436008", "SCT", "Pulmonary consolidation"), None, (48.0, 60.0, 40.0)),
}
"""By the names that `pneumoscope.volume` gives its labels."""

QUANTITIES: Mapping[str, tuple[Code3, Code3, Code3 | None]] = {
    "volume_ml": (("118565006", "SCT", "Volume"), ("ml", "UCUM", "milliliter"), None),
    "mean_hu": (
        ("112031", "DCM", "Attenuation Coefficient"),
        ("[hnsf'U]", "UCUM", "Hounsfield unit"),
        ("373098007", "SCT", "Mean"),
    ),
    "share_percent": (("share-of-lung", "99PNEUMOSCOPE", "Share of lung volume"), ("%", "UCUM", "Percent"), None),
}
"""What can be measured: concept, unit, derivation."""


@dataclass(frozen=True, eq=False)
class Source:
    """The series a result is about."""

    headers: Sequence[Any]  # pydicom datasets of the source images, one per file
    # (k, 3) LPS+ of the first pixel of every slice of the mask; None when slice k is image k
    positions_mm: NDArray[np.float64] | None
    directions: NDArray[np.float64]  # (2, 3) LPS+ along a row and down a column
    spacing_mm: tuple[float, float, float]  # between rows, between columns, between slices
    key: bytes  # makes UIDs of the results, with a patient's data kept or not
    deidentify: bool  # the headers carry no identity, the results shall not either
    case: str  # stands for the patient then

    def uid(self, *parts: str) -> str:
        """A UID of a result: the same for the same series, results and key."""
        return hashed_uid(self.key, "/".join((str(self.headers[0].SeriesInstanceUID), *parts)))


def pack_series(made: Stack) -> dict[str, Any]:
    """What `source_of` needs of a series, as JSON values; files in order of slices where each slice is one image."""
    files = {frame.header.name: frame.header for frame in made.frames}
    plain = all(step.weight in (0.0, 1.0) for step in made.steps)
    one_to_one = plain and len(files) == len(made.frames) == len(made.steps)
    order = [made.frames[s.above if s.weight else s.below].header.name for s in made.steps] if one_to_one else files
    headers = [pack_header(files[name]) for name in order]
    return {"headers": headers, "one_to_one": one_to_one, "slices": len(made.steps), "affine": made.affine.tolist()}


def source_of(packed: Mapping[str, Any], key: bytes, *, deidentify: bool, case: str) -> Source:
    """The source images of a volume that `pack_series` packed."""
    lps = LPS_TO_RAS @ np.array(packed["affine"])
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    one_to_one, series = packed["one_to_one"], str(packed["headers"][0]["name"])
    positions = lps[:3, 3] + np.arange(packed["slices"])[:, None] * lps[:3, 2]
    return Source(
        [source_header(header, key if deidentify else None, series) for header in packed["headers"]],
        None if one_to_one else positions,
        (lps[:3, :2] / spacing[:2]).T,
        (float(spacing[1]), float(spacing[0]), float(spacing[2])),
        key,
        deidentify,
        case,
    )


def make_segmentation(
    source: Source, file: str, names: Sequence[str], segments: NDArray[np.uint8], *, models: str, version: str
) -> Any:
    """A binary SEG with one segment per structure.

    Args:
        file: the `Structure.file` of all its segments.
        segments: (k, rows, columns) the number of each voxel's segment, from 1 in the order of `names`, 0 for none; no
            segment is empty.
        models: what found them, e.g. ``lungs, infiltrate``; empty for masks made elsewhere.
    """
    import highdicom as hd

    automatic = bool(models)
    algorithm = hd.AlgorithmIdentificationSequence(
        name=f"{MAKER} {models}"[:64] if automatic else "not stated: masks made elsewhere",
        version=version,
        family=_code(("123106", "DCM", "Artificial Intelligence") if automatic else _UNKNOWN_METHOD),
    )
    kind = hd.seg.SegmentAlgorithmTypeValues
    made_by = kind.AUTOMATIC if automatic else kind.SEMIAUTOMATIC
    described = [_describe(number, name, made_by, algorithm, source) for number, name in enumerate(names, start=1)]
    label, title = _CONTENT[file]
    content = "/".join(f"{name}:{np.count_nonzero(segments == n)}" for n, name in enumerate(names, start=1))
    seg = hd.seg.Segmentation(
        source_images=list(source.headers),
        pixel_array=segments,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=source.uid(f"{file}-series", version),
        series_number=_SERIES_NUMBERS[file],
        sop_instance_uid=source.uid(file, version, models, content),
        instance_number=1,
        manufacturer=MAKER,
        manufacturer_model_name=MAKER,
        software_versions=version,
        device_serial_number="0",
        content_label=label,
        content_description=NOTICE,
        series_description=f"{title}. {NOTICE}"[:64],
        **_planes(source, len(segments)),
    )
    if source.deidentify:
        mark_deidentified(seg, source.case)
    return seg


def _planes(source: Source, slices: int) -> dict[str, Any]:
    """Explicit planes where the mask's slices are not the series' images one by one."""
    import highdicom as hd

    if source.positions_mm is None:
        return {}
    assert len(source.positions_mm) == slices
    patient = hd.CoordinateSystemNames.PATIENT
    between_rows, between_columns, between_slices = source.spacing_mm
    return {
        "pixel_measures": hd.PixelMeasuresSequence((between_rows, between_columns), between_slices),
        "plane_orientation": hd.PlaneOrientationSequence(patient, tuple(source.directions.ravel().tolist())),
        "plane_positions": [hd.PlanePositionSequence(patient, tuple(at.tolist())) for at in source.positions_mm],
    }


def _describe(number: int, name: str, made_by: Any, algorithm: Any, source: Source) -> Any:
    import highdicom as hd
    from pydicom.sequence import Sequence as Items

    structure = STRUCTURES[name]
    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=_code(structure.category),
        segmented_property_type=_code(structure.kind),
        algorithm_type=made_by,
        algorithm_identification=algorithm,
        tracking_uid=source.uid("tracking", name),
        tracking_id=f"{MAKER} {name}",
        anatomic_regions=[_code(_LUNG)],
        display_color=hd.color.CIELabColor(*structure.colour),
    )
    if structure.side is not None:
        side = _code(structure.side)
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = Items([side])
    return description


def make_report(
    source: Source,
    segs: Sequence[Any],
    measured: Mapping[str, Mapping[str, float]],
    states: Sequence[str],
    *,
    models: str,
    version: str,
) -> Any:
    """A Comprehensive 3D SR after TID 1500 that refers to the SEGs and to the source images.

    Args:
        measured: structure -> quantity in `QUANTITIES` -> value; every segment has a group, with or without numbers.
        states: e.g. ``lung_incomplete``; written as qualitative evaluations of the first group.
    """
    from highdicom import sr

    device = sr.ObserverContext(
        observer_type=_code(("121007", "DCM", "Device")),
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=source.uid("device", version), name=MAKER, manufacturer_name=MAKER, model_name=(models or MAKER)[:64]
        ),
    )
    groups: list[Any] = []
    for seg in segs:
        for item in seg.SegmentSequence:
            name = str(item.SegmentLabel)
            groups.append(_group(source, seg, item, measured.get(name, {}), states if not groups else ()))
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=device),
        procedure_reported=_code(("24627-2", "LN", "CT Chest")),
        imaging_measurements=groups,
        title=_code(("126000", "DCM", "Imaging Measurement Report")),
    )
    report = sr.Comprehensive3DSR(
        evidence=[*segs, *source.headers],
        content=content,
        series_instance_uid=source.uid("sr-series", version),
        series_number=_SERIES_NUMBERS[REPORT_FILE],
        sop_instance_uid=source.uid(
            "sr", version, models, *(str(seg.SOPInstanceUID) for seg in segs), repr(sorted(measured.items()))
        ),
        instance_number=1,
        manufacturer=MAKER,
        series_description=f"Severity. {NOTICE}"[:64],
        is_complete=True,
    )
    if source.deidentify:
        mark_deidentified(report, source.case)
    return report


def _group(source: Source, seg: Any, segment: Any, values: Mapping[str, float], states: Sequence[str]) -> Any:
    """One segment's measurements."""
    from highdicom import sr

    name = str(segment.SegmentLabel)
    structure = STRUCTURES[name]
    side = {} if structure.side is None else {"laterality": _code(structure.side)}
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=source.uid("tracking", name), identifier=f"{MAKER} {name}"),
        referenced_segment=sr.ReferencedSegment(
            sop_class_uid=seg.SOPClassUID,
            sop_instance_uid=seg.SOPInstanceUID,
            segment_number=int(segment.SegmentNumber),
            source_series=sr.SourceSeriesForSegmentation(source.headers[0].SeriesInstanceUID),
        ),
        finding_type=_code(structure.kind),
        finding_category=_code(structure.category),
        finding_sites=[sr.FindingSite(anatomic_location=_code(_LUNG), **side)],
        measurements=[_measurement(quantity, value) for quantity, value in values.items()] or None,
        qualitative_evaluations=[
            sr.QualitativeEvaluation(
                name=_code(("state", "99PNEUMOSCOPE", "State of the result")),
                value=_code((state, "99PNEUMOSCOPE", state.replace("_", " "))),
            )
            for state in states
        ]
        or None,
    )


def _measurement(quantity: str, value: float) -> Any:
    from highdicom import sr

    concept, unit, derivation = QUANTITIES[quantity]
    how = None if derivation is None else _code(derivation)
    return sr.Measurement(name=_code(concept), value=float(f"{value:.6g}"), unit=_code(unit), derivation=how)


def _code(code: Code3) -> Any:
    from highdicom import sr

    return sr.CodedConcept(value=code[0], scheme_designator=code[1], meaning=code[2])
