"""The readers of scans, masks and radiographs, for the fuzz harness."""

from __future__ import annotations

import atexit
import gzip
import sys
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import harness
import numpy as np
from PIL import Image
from pydicom.data import get_testdata_file

sys.path.insert(0, str(Path(__file__).parents[1] / "io"))
import dicom_making as making
from border_files import chest, grid_of, nifti_bytes

from pneumoscope.errors import ReadError
from pneumoscope.io.dicom import read as dicom
from pneumoscope.io.dicom import read as reading
from pneumoscope.io.dicom.read import DicomReaders, _Child
from pneumoscope.io.formats.radiograph import read_radiograph
from pneumoscope.io.read import read_mask, read_volume
from pneumoscope.io.write import write_volume
from pneumoscope.volume import Volume

HU = chest((8, 7, 6))


def read_both(path: Path) -> None:
    """As a scan, taken as HU so that bent values come further, and as a mask."""
    with suppress(ReadError):
        read_mask(path)
    read_volume(path, intensity="hu")


def written(*suffixes: str) -> Callable[[Path], Sequence[Path]]:
    def make(folder: Path) -> Sequence[Path]:
        volume = Volume.from_native(HU, grid_of(HU))
        paths = [folder / f"scan{suffix}" for suffix in suffixes]
        for path in paths:
            if path.suffix == ".nii":
                path.write_bytes(nifti_bytes(HU))
            else:
                write_volume(volume, path)
        return paths

    return make


def gunzipped(data: bytes) -> tuple[bytes, Callable[[bytes], bytes]]:
    if data.startswith(b"\x1f\x8b"):
        return gzip.decompress(data), lambda inside: gzip.compress(inside, 1)
    return data, lambda inside: inside


def zipped(folder: Path) -> Sequence[Path]:
    paths = [folder / "nifti.zip", folder / "dicom.zip"]
    with zipfile.ZipFile(paths[0], "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/scan.nii", nifti_bytes(HU))
        archive.writestr("notes.txt", b"hello")
    series = making.save(making.make_series(4), folder / "series")
    with zipfile.ZipFile(paths[1], "w") as archive:
        for path in sorted(series.iterdir()):
            archive.write(path, path.name)
    return paths


SAMPLES = ("CT_small.dcm", "693_J2KI.dcm", "MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm")
SYNTAXES = (making.EXPLICIT, making.BIG, making.DEFLATED, "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.70")


def slices(folder: Path) -> Sequence[Path]:
    made = [making.code_as(making.make_slice(0), syntax) for syntax in SYNTAXES] + [making.make_enhanced(3)]
    making.save(made, folder)
    for name in SAMPLES:
        (folder / name).write_bytes(Path(get_testdata_file(name)).read_bytes())
    return sorted(folder.glob("*.dcm"))


class KeptProcess:
    """The real reading process with its real limits, kept from file to file: starting one takes half a second."""

    def __init__(self) -> None:
        self._child = _Child()

    def exchange(self, request: dict[str, Any], stream: BinaryIO | None) -> dict[str, Any]:
        """What `reading.exchange` does."""
        if not self._child.alive:
            self._child.close()
            self._child = _Child()
        reply = self._child.ask(request)
        if stream is not None:
            self._child._picture.seek(0)
            stream.write(self._child._picture.read())
            stream.flush()
        return reply

    def close(self) -> None:
        self._child.close()


def read_slices(path: Path) -> None:
    global _kept
    if _kept is None:
        _kept = KeptProcess()
        atexit.register(_kept.close)
        reading.exchange = _kept.exchange
    dicom.read_dicom(path, min_slices=1, any_modality=True)


_kept: KeptProcess | None = None
_readers = DicomReaders()
atexit.register(_readers.__exit__, None, None, None)


def pictures(folder: Path) -> Sequence[Path]:
    levels = np.add.outer(np.arange(70), np.arange(66) * 2).astype(np.uint8)
    levels[10:20, 10:30] = 250
    paths = []
    for name in ("grey.png", "grey.jpg", "grey.gif", "grey.bmp", "grey.tiff", "grey.webp"):
        paths.append(folder / name)
        Image.fromarray(levels).save(paths[-1])
    paths.append(folder / "deep.png")
    Image.fromarray(levels.astype(np.uint16) * 200).save(paths[-1])
    slice_ = making.make_slice(0, hu=np.kron(making.hu_of(0), np.ones((6, 6), np.int16)))
    slice_.Modality = "DX"
    making.save([slice_], folder, lambda n: "dx.dcm")
    return [*paths, folder / "dx.dcm"]


def fields_of_picture(data: bytes) -> harness.Spans:
    if data.startswith(b"\x89PNG"):
        return harness.chunks(data)
    return harness.dicom_elements(data) if data[128:132] == b"DICM" else harness.words(200)(data)


def resealed(data: bytes) -> tuple[bytes, Callable[[bytes], bytes]]:
    return harness.png_with_right_sums(data) if data.startswith(b"\x89PNG") else (data, lambda inside: inside)


TARGETS = {
    "nifti": harness.Target(written(".nii", ".nii.gz"), read_both, harness.words(352), gunzipped),
    "itk": harness.Target(written(".nrrd", ".mha"), read_both),
    "zip": harness.Target(zipped, lambda path: read_volume(path, intensity="hu"), harness.records),
    "dicom": harness.Target(slices, read_slices, harness.dicom_elements),
    "radiograph": harness.Target(
        pictures, lambda path: read_radiograph(path, readers=_readers), fields_of_picture, resealed
    ),
}
