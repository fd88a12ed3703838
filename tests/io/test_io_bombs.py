"""Files that are small and unpack to far more than a scan: refused from what they announce, in little memory."""

from __future__ import annotations

import bz2
import gzip
import json
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import dicom_making as making
import numpy as np
import pytest
from border_files import nifti_bytes
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import UID

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are measured on Linux")

ALLOWED_MIB = 300
MIB = 2**20
MEASURE = """
import json, resource, sys
from pathlib import Path
from pneumoscope.errors import PneumoscopeError
from pneumoscope.geometry import Grid
from pneumoscope.io.read import read_mask, read_volume
from pneumoscope.io.formats.radiograph import read_radiograph

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) >> 10

scan = Grid.from_spacing((64, 64, 32), (1, 1, 1))
read = {"scan": read_volume, "mask": read_mask, "picture": read_radiograph}
read["its mask"] = lambda path: read_mask(path, scan=scan)
sound, result = Path(sys.argv[1]), {}
read["scan"](sound), read["mask"](sound.with_name("sound-mask.nii")), read["picture"](sound.with_name("sound.png"))
for name, (kind, path) in json.loads(sys.argv[2]).items():
    Path("/proc/self/clear_refs").write_text("5")
    before, told = peak(), "read"
    try:
        read[kind](path)
    except PneumoscopeError as error:
        told = error.code
    result[name] = (told, peak() - before)
children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
print(json.dumps([result, children]))
"""


def zeros(n_mib: int) -> bytes:
    """So many MiB of zeros as gzip, 1000 times smaller."""
    return gzip.compress(bytes(16 * MIB), 9) * (n_mib // 16)


def nifti(shape: tuple[int, int, int], dtype: str, *, data: int | None = None) -> Callable[[Path], None]:
    """A header of that shape and so many MiB of zeros, gzipped when the name says so."""

    def write(path: Path) -> None:
        small = nifti_bytes(np.zeros((2, 2, 2), dtype))
        header = bytearray(small[:352])
        header[42:48] = np.array(shape, "<i2").tobytes()
        n_mib = int(np.prod(shape)) * np.dtype(dtype).itemsize // MIB if data is None else data
        packed = path.name.endswith(".gz")
        path.write_bytes(gzip.compress(header) + zeros(n_mib) if packed else bytes(header) + bytes(n_mib * MIB))

    return write


def nrrd(encoding: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        head = (
            "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 512 512 512\n"
            "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\nendian: little\n"
            f"encoding: {encoding}\n\n"
        )
        path.write_bytes(head.encode() + (zeros(256) if encoding == "gzip" else bz2.compress(bytes(256 * MIB), 1)))

    return write


def metaimage(path: Path) -> None:
    head = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = True\n"
        "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 1 1 1\nDimSize = 512 512 512\n"
        "ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    engine = zlib.compressobj(9)
    blocks = [engine.compress(bytes(16 * MIB)) for _ in range(16)]
    path.write_bytes(head.encode() + b"".join(blocks) + engine.flush())


def deflated(path: Path) -> None:
    """8 frames of 4096 x 4096."""
    data = making.make_enhanced(1)
    data.file_meta.TransferSyntaxUID = UID(making.DEFLATED)
    data.Rows = data.Columns = 4096
    data.NumberOfFrames = 8
    data.PixelData = bytes(256 * MIB)
    data.save_as(path, enforce_file_format=True)


def run_length(path: Path) -> None:
    """1000 frames of 512 x 512 that hold nothing."""
    data = making.make_enhanced(1)
    data.file_meta.TransferSyntaxUID = UID(making.RLE)
    data.Rows = data.Columns = 512
    data.NumberOfFrames = 1000
    data.PixelData = encapsulate([making.coded(np.zeros((512, 512), np.uint16), making.RLE, 16)] * 1000)
    data["PixelData"].is_undefined_length = True
    data.save_as(path, enforce_file_format=True)


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("scan.nii", "w") as member:
        member.write(nifti_bytes(np.zeros((2, 2, 2), np.int16))[:352])
        for _ in range(16):
            member.write(bytes(16 * MIB))


def picture(mode: str) -> Callable[[Path], None]:
    return lambda path: Image.new(mode, (8000, 7000)).save(path)


BOMBS: dict[str, tuple[str, str, Callable[[Path], None], str]] = {
    "a mask of 1024 cubed": ("mask", "a.nii.gz", nifti((1024, 1024, 1024), "u1"), "IN-NII-055"),
    "a mask of far more voxels than its scan": ("its mask", "a.nii.gz", nifti((512, 512, 256), "u1"), "IN-NII-054"),
    "an empty mask of eight bytes a voxel": ("mask", "a.nii.gz", nifti((256, 512, 512), "f8"), "read"),
    "a scan of 0.25 MiB": ("scan", "a.nii.gz", nifti((512, 512, 512), "i2"), "IN-NII-055"),
    "a header that lies": ("scan", "a.nii", nifti((1000, 1000, 1000), "i2", data=1), "IN-NII-051"),
    "a packed header that lies": ("mask", "a.nii.gz", nifti((600, 600, 700), "u1", data=16), "IN-NII-051"),
    "NRRD, gzip": ("scan", "a.nrrd", nrrd("gzip"), "IN-ITK-055"),
    "NRRD, bzip2": ("scan", "a.nrrd", nrrd("bzip2"), "IN-ITK-051"),
    "MetaImage": ("scan", "a.mha", metaimage, "IN-ITK-055"),
    "deflated DICOM": ("scan", "a.dcm", deflated, "IN-DCM-031"),
    "DICOM of many empty frames": ("scan", "a.dcm", run_length, "IN-DCM-032"),
    "zip": ("scan", "a.zip", zipped, "IN-ZIP-071"),
    "PNG": ("picture", "a.png", picture("L"), "IN-XRY-086"),
    "PNG in colour": ("picture", "a.png", picture("RGB"), "IN-XRY-084"),
    "PNG of 16 bits": ("picture", "a.png", picture("I;16"), "IN-XRY-084"),
    "TIFF": ("picture", "a.tiff", lambda path: Image.new("RGBA", (7000, 7000)).save(path, compression="tiff_deflate"),
             "IN-XRY-084"),
}  # fmt: skip
RESULT_MIB = {"an empty mask of eight bytes a voxel": 64, "PNG": 54 * 5}
"""What the result itself takes where there is one."""


def test_bombs_cost_little(tmp_path: Path) -> None:
    from border_files import chest, scan_file

    sound = scan_file(tmp_path, "sound.nii")
    (tmp_path / "sound-mask.nii").write_bytes(nifti_bytes((chest() > 0).astype(np.uint8)))
    Image.fromarray(np.arange(70 * 80).reshape(70, 80).astype(np.uint8)).save(tmp_path / "sound.png")
    files = {}
    for number, (name, (kind, file, write, _)) in enumerate(BOMBS.items()):
        path = tmp_path / str(number) / file
        path.parent.mkdir()
        write(path)
        assert path.stat().st_size < 9 * MIB
        files[name] = (kind, str(path))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(sound), json.dumps(files)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result, children_mib = json.loads(done.stdout)
    assert {name: told for name, (told, _) in result.items()} == {name: bomb[3] for name, bomb in BOMBS.items()}
    assert {n: mib for n, (_, mib) in result.items() if mib > ALLOWED_MIB + RESULT_MIB.get(n, 0)} == {}
    assert children_mib < ALLOWED_MIB + 150, "the reading process with its libraries"
