"""X-ray classification: images a second, and how often it abstains from pictures it should and should not answer.

    python benchmarks/xray.py speed       --model DIR [--images 1000] [--kinds "1024 PNG" ...] [--heatmaps]
    python benchmarks/xray.py abstention  --model DIR --data ROOT [--each 150]

`speed` writes made-up radiographs of several sizes and formats and classifies each folder with one call. `abstention`
asks about the real pictures of ROOT (``xray``, ``ct-slices``, ``ct-volumes``), training pictures among them, and about
the kinds of `xray_kinds`, real lateral films among them, with and without the card's view classifier. It sets no limit:
those of the model's card were set on validation pictures, and none of the pictures of another kind took part in that.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from pneumoscope.cases.options import XrayOptions
from pneumoscope.cases.xray import classify_radiographs
from pneumoscope.inference.radiographs import CANNOT_SAY, NONE_OF_THESE, RadiographClassifier
from xray_kinds import first_kinds, fresh_kinds, some


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("speed", "abstention", "once"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--kinds", nargs="+", default=KINDS, metavar='"SIDE FORMAT"')
    parser.add_argument("--heatmaps", action="store_true")
    parser.add_argument("--each", type=int, default=150, help="real pictures of a kind at most")
    options = parser.parse_args()
    if options.what == "speed":
        speed(options)
    elif options.what == "once":
        once(options.model, options.data, options.heatmaps)
    elif options.data is None:
        parser.error("abstention needs --data")
    else:
        print(json.dumps(abstention(options.model, options.data, options.each)))


KINDS = ("320 JPEG", "1024 JPEG", "1024 PNG", "2500 JPEG", "2500 DICOM")
"""What `speed` times by default: rows and format; above 1024 rows there are 4 columns to 5 rows."""


def speed(options: argparse.Namespace) -> None:
    """Each kind once, in a process of its own, so that nothing is warm from the kind before."""
    for kind in options.kinds:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "in"
            place.mkdir()
            side, form = kind.split()
            images = options.images if form != "DICOM" else max(1, options.images // 5)
            shape = (int(side), int(side) if int(side) <= 1024 else int(side) * 4 // 5)
            for number, picture in enumerate(made_up(images, shape)):
                write(place / f"{number:05}", picture, form)
            call = [sys.executable, __file__, "once", "--model", str(options.model), "--data", str(place)]
            load = os.getloadavg()[0]
            done = subprocess.run(
                call + (["--heatmaps"] if options.heatmaps else []), check=True, capture_output=True, text=True
            )
        said = json.loads(done.stdout.splitlines()[-1])
        rate, each = said["pictures"] / said["seconds"], said["processor"] / said["pictures"]
        print(
            f"{said['pictures']} {form} of {shape[0]} x {shape[1]}, heat maps {options.heatmaps}: {rate:.1f} a second, "
            f"{1000 * each:.1f} ms of processor each, {said['whole']:.1f} s in all with model and report; "
            f"{os.cpu_count()} cores, load {load:.1f} before; two free cores: {2 / each:.0f} a second (estimate)",
            flush=True,
        )


def once(model: str, folder: Path, heatmaps: bool) -> None:
    """Classify a folder; print pictures, seconds, and seconds of processor with those of reading processes."""
    with tempfile.TemporaryDirectory() as out:
        settings = XrayOptions(model=model, heatmaps=heatmaps, device="cpu")
        begun, spent = time.perf_counter(), _processor()
        batch = classify_radiographs([folder], Path(out) / "out", settings)
        said = {
            "pictures": batch.counts()["answered"] + batch.counts()["abstained"],
            "seconds": batch.seconds["pictures"],
            "processor": _processor() - spent,
            "whole": time.perf_counter() - begun,
        }
    print(json.dumps(said))


def _processor() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def made_up(n: int, shape: tuple[int, int]) -> Iterator[np.ndarray]:
    """Grey pictures (rows, columns) as smooth as radiographs, with their noise: 8 bit."""
    rng = np.random.default_rng(0)
    smooth_ = cv2.resize(rng.random((24, 24), np.float32), shape[::-1], interpolation=cv2.INTER_CUBIC)
    noise = rng.normal(0, 2, shape).astype(np.float32)
    for number in range(n):
        grey = np.roll(smooth_, 7 * number, axis=1) * 230 + np.roll(noise, 13 * number, axis=0)
        yield np.clip(grey, 0, 255).astype(np.uint8)


def write(path: Path, picture: np.ndarray, form: str) -> None:
    """One picture as JPEG (quality 95), PNG, or DX of 12 bits."""
    if form != "DICOM":
        cv2.imwrite(f"{path}.{'jpg' if form == 'JPEG' else 'png'}", picture)
        return
    import pydicom
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.SeriesInstanceUID, data.StudyInstanceUID, data.Modality = generate_uid(), generate_uid(), "DX"
    data.Rows, data.Columns = picture.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PixelData = (picture.astype("<u2") * 16).tobytes()
    data.save_as(f"{path}.dcm", enforce_file_format=True)


def abstention(model: str | Path, data: Path, each: int) -> dict[str, dict[str, float]]:
    """Shares of each answer per kind of picture, and how often a class is named without the view classifier."""
    classifier, plain = (RadiographClassifier(model, device="cpu") for _ in range(2))
    plain.views = None
    own = {
        "X-ray, kermany (children)": some(data, "xray/kermany/**/*.jp*g", each),
        "X-ray, cohen (adults, COVID-19)": some(data, "xray/cohen-covid/*.*", each),
        "X-ray, hannover (adults, COVID-19)": some(data, "xray/hannover-covid/*.*", each),
        "X-ray, nih, no finding": some(data, "xray/nih-no-finding/*.*", each),
        "X-ray, nih, pneumonia": some(data, "xray/nih-pneumonia/*.*", each),
    }
    chests = [picture for pictures in own.values() for picture in pictures[:40]]
    found = {}
    for kinds in (own, first_kinds(data, chests, each), fresh_kinds(data, chests, each)):
        for name, pictures in kinds.items():
            squares = np.stack([classifier.recipe.make(picture) for picture in pictures])
            answers = [a.prediction for a in classifier.answer(squares)]
            shares = {verdict: answers.count(verdict) / len(answers) for verdict in (NONE_OF_THESE, CANNOT_SAY)}
            found[name] = {"pictures": len(answers), **{k: round(v, 3) for k, v in shares.items()}}
            found[name]["answered"] = round(1 - sum(shares.values()), 3)
            before = np.mean([a.answered for a in plain.answer(squares)])
            found[name]["answered_without_views"] = round(float(before), 3)
            print(f"{name}: {found[name]}", flush=True)
    return found


if __name__ == "__main__":
    main()
