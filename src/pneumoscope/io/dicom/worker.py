"""The process that touches untrusted DICOM, started by `pneumoscope.io.dicom.read`.

It takes JSON requests on standard input, a line each, writes voxels to the file named in them, and answers with a line
of JSON on standard output. Limits are set before the first byte of DICOM is read, so that a decoder that crashes, hangs
or swells ends this process and nothing else. Replies carry no values that identify a patient, except the series UID,
which the parent turns into a keyed hash at once, and the ``series`` of a scan, which it hands back for SEG and SR.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import psutil
from numpy.typing import NDArray
from pydicom.uid import UID

from pneumoscope.errors import Finding, ReadError, is_of_machine
from pneumoscope.io.dicom.choice import choose, listing
from pneumoscope.io.dicom.geometry import Stack, Step, stack
from pneumoscope.io.dicom.header import read_header, refused
from pneumoscope.io.dicom.hounsfield import Hounsfield, radiograph_of
from pneumoscope.io.dicom.pixels import is_lossy, read_frame
from pneumoscope.io.dicom.results import make_report, make_segmentation, pack_series, source_of
from pneumoscope.io.dicom.search import index_of
from pneumoscope.io.dicom.series import Folder, Frame, frames_of, sort_out
from pneumoscope.io.kinds import Found, discover

_MAKERS = ("GE", "SIEMENS", "PHILIPS", "TOSHIBA", "CANON", "UIH", "UNITED IMAGING", "NEUSOFT", "HITACHI", "FUJIFILM")


def answer(request: dict[str, Any], out: BinaryIO | None) -> dict[str, Any]:
    """Do what the request asks; errors for the user come back as a document too.

    Args:
        request: ``path``, ``where`` (the input as the user wrote it), ``action`` (``read``, ``list``, ``index``,
            ``derive`` or ``radiograph``), and options.
        out: where voxels go, k by k, for ``read`` and ``radiograph``; where labels come from for ``derive``.
    """
    files: list[Found] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if request["action"] == "derive":
                assert out is not None
                return _derive(request, out)
            files = discover(Path(request["path"]))
            if request["action"] == "radiograph":
                assert out is not None
                return radiograph_of(read_header(files[0]), out, request.get("least_side"))
            folder = sort_out(files, any_modality=request["any_modality"])
            if request["action"] == "list":
                return {"series": listing(folder)}
            if request["action"] == "index":
                return index_of(folder, request["subjects"])
            assert out is not None
            return _read(request, folder, out)
    except ReadError as error:
        return {"error": {"message": error.message, "code": error.code, **_place(error.path, files, request)}}
    except MemoryError:
        text = f"needs more than {request['memory_mib']} MiB to decode; remove damaged files, or raise the limit"
        return {"error": {"message": text, "code": "IN-DCM-103", **_place(None, files, request)}}
    except RecursionError:
        text = "sequences are nested too deeply to be a real image; remove the file"
        return {"error": {"message": text, "code": "IN-DCM-042", **_place(None, files, request)}}


def _place(named: str | None, files: list[Found], request: dict[str, Any]) -> dict[str, str]:
    """What an error may print of where it arose, and the file itself, which it must not."""
    where, single = request["where"], len(files) == 1
    for found in files:
        if named is not None and f"{named} ".startswith(f"{found.name} "):
            return {"path": where if single else f"{where}, {named}", "file": str(found.path)}
    return {"path": where, "file": request["path"]}


def _read(request: dict[str, Any], folder: Folder, out: BinaryIO) -> dict[str, Any]:
    where = request["where"]
    uid, findings = choose(folder, request["series"], request["min_slices"], where)
    findings += _lost_files(folder, uid, request["fill_gaps"])
    frames = [frame for header in folder.slices[uid] for frame in frames_of(header)]
    _require_room(frames, request["max_voxels"], where)
    made = stack(frames, _same_pixels, where=where, fill_gaps=request["fill_gaps"], min_slices=request["min_slices"])
    headers = folder.slices[uid]
    notes = Counter(row for header in headers for row in header.notes)
    other_modality = request["any_modality"] and headers[0].text("Modality") not in ("CT", "")
    converter = Hounsfield(made.frames, where, any_values=other_modality, trusted=request["as_hu"])
    _write(made, converter, out)
    findings += made.findings + converter.conclude()
    findings += [Finding(f"IN-DCM-{row:03d}", f"{count} file(s) {_NOTES[row]}") for row, count in notes.items()]
    padded = {f.header.name for f in made.frames if f.header.pixels and f.layout.excess_bytes(f.header.pixels) > 1}
    if padded:
        note = f"{len(padded)} file(s) with padding behind their pixels, which was left out"
        findings.append(Finding("IN-DCM-030", note, "info"))
    if other_modality:
        findings.append(Finding("IN-DCM-041", "not a CT; read because any modality was allowed", "error"))
    rows, columns = made.frames[0].layout.shape
    return {
        "shape": [len(made.steps), rows, columns],
        "dtype": converter.dtype.name,
        "affine": made.affine.tolist(),
        "findings": [finding.as_dict() for finding in findings],
        "series_uid": uid or ".".join(sorted(header.text("SOPInstanceUID") for header in headers)),
        "source": _source(made),
        "series": pack_series(made),
    }


_NOTES = {
    4: "without preamble and DICM mark were read as plain datasets",
    5: "do not name their transfer syntax; it was inferred from the bytes and fits the pixels",
}


def _derive(request: dict[str, Any], labels: BinaryIO) -> dict[str, Any]:
    """SEGs and SR of masks on the series' own grid; which files were written."""
    about = {"models": request["models"], "version": request["version"]}
    source = source_of(
        request["series"], bytes.fromhex(request["key"]), deidentify=request["deidentify"], case=request["case"]
    )
    shape = request["shape"]
    segs = []
    for target, (file, names) in zip(request["segmentations"], request["structures"].items(), strict=True):
        segments = np.frombuffer(labels.read(int(np.prod(shape))), np.uint8).reshape(shape)
        segs.append(make_segmentation(source, file, names, segments, **about))
        segs[-1].save_as(target, enforce_file_format=True)
    report = make_report(source, segs, request["measured"], request["states"], **about)
    report.save_as(request["report"], enforce_file_format=True)
    return {"written": [*request["structures"], "report"]}


def _lost_files(folder: Folder, uid: str, fill_gaps: bool) -> list[Finding]:
    """Damaged files that may be slices of the series: refuse, or count them as missing slices."""
    folders = {header.found.path.parent for header in folder.slices[uid]}
    lost = [
        broken
        for broken in folder.broken
        if broken.series_uid == uid or (not broken.series_uid and broken.found.path.parent in folders)
    ]
    if not lost:
        return []
    if not fill_gaps:
        raise refused(lost[0].row, lost[0].message, lost[0].found)
    return [
        Finding(f"IN-DCM-{row:03d}", f"{count} damaged or empty file(s) treated as missing slices")
        for row, count in sorted(Counter(broken.row for broken in lost).items())
    ]


def _require_room(frames: list[Frame], max_voxels: int, where: str) -> None:
    voxels = sum(frame.layout.shape[0] * frame.layout.shape[1] for frame in frames)
    free_mib = psutil.virtual_memory().available >> 20
    need_mib = voxels * 10 >> 20  # int16 handed over, float32 in the volume, and one float32 copy to work with
    if voxels > max_voxels or need_mib > free_mib:
        raise refused(
            31,
            f"would be {voxels} voxels and need {need_mib} MiB; allowed are {max_voxels} voxels, {free_mib} MiB are "
            "free; give one series only, or use a larger machine",
            where,
        )


def _same_pixels(first: Frame, second: Frame) -> bool:
    one, two = (read_frame(frame.header, frame.layout, frame.index).values for frame in (first, second))
    scales = {(frame.slope, frame.intercept) for frame in (first, second)}
    return len(scales) == 1 and bool(np.array_equal(one, two))


def _write(made: Stack, converter: Hounsfield, out: BinaryIO) -> None:
    """Decode in order and write slice by slice; at most two slices are held for interpolation."""
    held: dict[int, NDArray[np.generic]] = {}

    def get(index: int) -> NDArray[np.generic]:
        if index not in held:
            while len(held) > 1:
                held.pop(min(held))
            frame = made.frames[index]
            held[index] = converter.slice(frame, read_frame(frame.header, frame.layout, frame.index))
        return held[index]

    for step in made.steps:
        out.write(np.ascontiguousarray(_blend(step, get)).tobytes())
    out.flush()


def _blend(step: Step, get: Any) -> NDArray[np.generic]:
    if step.weight == 0.0 or step.weight == 1.0:
        plain: NDArray[np.generic] = get(step.above if step.weight else step.below)
        return plain
    below, above = get(step.below), get(step.above)
    mixed = below * np.float32(1 - step.weight) + above * np.float32(step.weight)
    return (np.rint(mixed) if below.dtype.kind == "i" else mixed).astype(below.dtype)


def _source(made: Stack) -> dict[str, str]:
    """Plain facts for reports; free text of the file is reduced to known words."""
    first = made.frames[0]
    maker = first.header.text("Manufacturer").upper()
    facts = {
        "format": "DICOM",
        "files": str(len({frame.header.name for frame in made.frames})),
        "transfer_syntax": UID(first.header.syntax).name,
        "kernel": first.kernel,
        "manufacturer": next((known for known in _MAKERS if maker.startswith(known)), "other" if maker else ""),
        "slice_thickness_mm": "" if first.thickness_mm is None else f"{first.thickness_mm:g}",
        "lossy": "yes" if any(is_lossy(frame.header) for frame in made.frames) else "no",
    }
    return {name: value for name, value in facts.items() if value}


def limit_process(memory_mib: int, seconds: int, file_bytes: int) -> None:
    """Bound address space, processor time and written bytes of this process; no core files.

    Nothing happens where the system has no such limits (Windows): the parent's wall clock remains.
    """
    try:
        import resource
    except ImportError:
        return
    wanted = (
        (resource.RLIMIT_AS, memory_mib << 20),
        (resource.RLIMIT_CPU, seconds + 1),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_CORE, 0),
    )
    for kind, value in wanted:
        hard = resource.getrlimit(kind)[1]
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (most, hard))
        except (ValueError, OSError):  # some systems refuse a limit on address space
            continue


def trouble(error: Exception) -> dict[str, Any]:
    """The reply for what no reader foresaw: a failure of the machine, or class and place (messages quote values)."""
    if isinstance(error, OSError) and is_of_machine(error):
        return {"failure": [error.errno or 0, error.strerror or type(error).__name__]}
    spot = traceback.extract_tb(error.__traceback__)[-1]
    return {"crash": f"{type(error).__name__} at {Path(spot.filename).name}:{spot.lineno}"}


def main() -> int:
    """Answer requests, a line each, until standard input ends; limits are set again for every one."""
    for line in sys.stdin:
        request = json.loads(line)
        spent = int(time.process_time()) + 1
        limit_process(request["memory_mib"], spent + request["wall_s"], request["max_voxels"] * 4)
        json.dump(_answered(request), sys.stdout)
        sys.stdout.write("\n")
        sys.stdout.flush()
    return 0


def _answered(request: dict[str, Any]) -> dict[str, Any]:
    try:
        if request["out"] is None:
            return answer(request, None)
        with Path(request["out"]).open("r+b") as out:
            return answer(request, out)
    except Exception as error:
        return trouble(error)
