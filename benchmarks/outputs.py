"""Segment one scan and open every file of its case with another program: what opens it, what it holds, how large it is.

    python benchmarks/outputs.py SCAN [-o OUT]

SimpleITK reads the masks, highdicom the SEG and SR, VTK's readers (those of ParaView) the surfaces, the volume
and the point tables, Chromium the pages. Exits with 1 when a file of the interface is missing or does not open.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def by_itk(path: Path) -> str:
    import SimpleITK

    image = SimpleITK.ReadImage(str(path))
    return f"SimpleITK: {image.GetSize()} voxels of {tuple(round(s, 3) for s in image.GetSpacing())} mm"


def by_highdicom(path: Path) -> str:
    import highdicom as hd

    if path.name == "seg.dcm":
        seg = hd.seg.segread(path)
        return f"highdicom: {', '.join(str(s.SegmentLabel) for s in seg.SegmentSequence)}; {seg.NumberOfFrames} frames"
    report = hd.sr.srread(path)
    return f"highdicom: {len(report.content.get_volumetric_roi_measurement_groups())} measurement groups"


def by_vtk(path: Path) -> str:
    from vtkmodules.vtkIOGeometry import vtkGLTFReader, vtkSTLReader
    from vtkmodules.vtkIOInfovis import vtkDelimitedTextReader
    from vtkmodules.vtkIOXML import vtkXMLImageDataReader, vtkXMLPolyDataReader

    kinds: dict[str, Any] = {
        ".stl": vtkSTLReader, ".vtp": vtkXMLPolyDataReader, ".vti": vtkXMLImageDataReader, ".glb": vtkGLTFReader,
        ".csv": vtkDelimitedTextReader,
    }  # fmt: skip
    reader = kinds[path.suffix]()
    reader.SetFileName(str(path))
    if path.suffix == ".csv":
        reader.SetHaveHeaders(True)
        reader.DetectNumericColumnsOn()
    reader.Update()
    found = reader.GetOutput()
    if path.suffix == ".glb":
        return f"VTK: {found.GetNumberOfBlocks()} block(s)"
    if path.suffix == ".csv":
        return f"VTK: {found.GetNumberOfRows()} points"
    return f"VTK: {found.GetNumberOfPoints()} points"


def by_chromium(path: Path) -> str:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        return "not opened: no Chromium here"
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "page.png"
        options = ["--headless=new", "--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1400,1200"]
        subprocess.run(
            [browser, *options, f"--screenshot={picture}", path.resolve().as_uri()],
            capture_output=True, timeout=240, check=True,
        )  # fmt: skip
        return f"Chromium without DNS: a picture of {picture.stat().st_size >> 10} KiB"


def by_json(path: Path) -> str:
    return f"json: {len(json.loads(path.read_text(encoding='utf-8')))} entries"


def by_pillow(path: Path) -> str:
    from PIL import Image

    with Image.open(path) as picture:
        return f"Pillow: {picture.size}"


FILES: dict[str, Callable[[Path], str]] = {
    "lungs.nii.gz": by_itk,
    "infiltrate.nii.gz": by_itk,
    "probability.nii.gz": by_itk,
    "report.json": by_json,
    "report.html": by_chromium,
    "view.html": by_chromium,
    "points/*.csv": by_vtk,
    "mesh/*.stl": by_vtk,
    "mesh/*.glb": by_vtk,
    "surfaces.vtp": by_vtk,
    "volume.vti": by_vtk,
    "render.png": by_pillow,
    "seg.dcm": by_highdicom,
    "report.dcm": by_highdicom,
}


def main() -> int:
    """Print a table; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan")
    parser.add_argument("-o", "--out", type=Path)
    arguments = parser.parse_args()
    out = arguments.out or Path(tempfile.mkdtemp(prefix="outputs-"))
    begun = time.perf_counter()
    command = [sys.executable, "-m", "pneumoscope", "segment", "-i", arguments.scan, "-o", str(out)]
    subprocess.run([*command, "--probability", "--save", "points,vti,mesh", "--overwrite", "--quiet"], check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall = time.perf_counter() - begun
    print(f"segment: {wall:.0f} s wall, {used.ru_utime:.0f} s of processor, peak {used.ru_maxrss >> 10} MiB")
    (case,) = [p for p in out.iterdir() if p.is_dir()]
    failed = 0
    for pattern, opens in FILES.items():
        paths = sorted(case.glob(pattern))
        if not paths:
            failed += 1
            print(f"{pattern:20} MISSING")
        for path in paths:
            try:
                said = opens(path)
            except Exception as problem:
                failed += 1
                said = f"DOES NOT OPEN: {type(problem).__name__}: {str(problem)[:120]}"
            name = path.relative_to(case).as_posix()
            print(f"{name:28} {path.stat().st_size / 1e6:8.2f} MB  {said}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
