"""X-ray classification: images a second, and how often it abstains from pictures it should and should not answer.

    python benchmarks/xray.py speed       --model DIR [--images 1000] [--side 1024] [--heatmaps]
    python benchmarks/xray.py abstention  --model DIR --data ROOT

`speed` writes made-up radiographs as JPEG and classifies them with one call. `abstention` asks about the real pictures
of ROOT (``xray``, ``ct-slices``, ``ct-volumes``), and about noise, drawings, and radiographs that were turned or
inverted. It sets no limit: those of the model's card were set on validation pictures of the training sources, and
none of the pictures of another kind took part in that.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from pneumoscope.cases.xray import XrayOptions, classify_radiographs
from pneumoscope.errors import PneumoscopeError
from pneumoscope.inference.radiographs import CANNOT_SAY, NONE_OF_THESE, RadiographClassifier
from pneumoscope.io import read_volume
from pneumoscope.io.radiograph import read_radiograph

EACH = 150


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("speed", "abstention"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--heatmaps", action="store_true")
    options = parser.parse_args()
    if options.what == "speed":
        speed(options)
    elif options.data is None:
        parser.error("abstention needs --data")
    else:
        print(json.dumps(abstention(options.model, options.data), indent=2))


def speed(options: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "in"
        place.mkdir()
        smooth = cv2.resize(rng.random((24, 24), np.float32), (options.side, options.side))
        for number in range(options.images):
            grey = np.roll(smooth, 7 * number, axis=1) * 230 + rng.normal(0, 4, smooth.shape)
            cv2.imwrite(str(place / f"{number:05}.jpg"), np.clip(grey, 0, 255).astype(np.uint8))
        load = os.getloadavg()[0]
        settings = XrayOptions(model=options.model, heatmaps=options.heatmaps, device="cpu")
        begun, spent = time.perf_counter(), time.process_time()
        batch = classify_radiographs([place], Path(folder) / "out", settings)
        whole = time.perf_counter() - begun
        print(
            f"{len(batch.rows)} JPEG of {options.side} x {options.side}, heat maps {options.heatmaps}: "
            f"{len(batch.rows) / batch.seconds['pictures']:.1f} images/s, {whole:.1f} s in all with model and report, "
            f"{time.process_time() - spent:.1f} s of processor; {os.cpu_count()} cores, load {load:.1f} before"
        )


def abstention(model: str | Path, data: Path) -> dict[str, dict[str, float]]:
    """Shares of each answer per kind of picture."""
    classifier = RadiographClassifier(model, device="cpu")
    found = {}
    for name, squares in kinds(classifier, data).items():
        answers = [a.prediction for a in classifier.answer(np.stack(squares))]
        shares = {verdict: answers.count(verdict) / len(answers) for verdict in (NONE_OF_THESE, CANNOT_SAY)}
        found[name] = {"pictures": len(answers), **{k: round(v, 3) for k, v in shares.items()}}
        found[name]["answered"] = round(1 - sum(shares.values()), 3)
    return found


def kinds(classifier: RadiographClassifier, data: Path) -> dict[str, list[np.ndarray]]:
    """Squares by kind."""
    rng = np.random.default_rng(4)

    def some(pattern: str) -> list[np.ndarray]:
        paths = sorted(data.glob(pattern))
        picked = [paths[int(i)] for i in rng.permutation(len(paths))[:EACH]]
        squares = []
        for path in picked:
            try:
                squares.append(classifier.square(read_radiograph(path)))
            except PneumoscopeError as problem:
                print(f"left out: {problem}")
        return squares

    own = {
        "kermany (children)": some("xray/kermany/**/*.jp*g"),
        "cohen (adults, COVID-19)": some("xray/cohen-covid/*.*"),
        "hannover (adults, COVID-19)": some("xray/hannover-covid/*.jpg"),
        "nih, no finding": some("xray/nih-no-finding/*.*"),
        "nih, pneumonia": some("xray/nih-pneumonia/*.*"),
    }
    chests = [square for squares in own.values() for square in squares[:40]]
    side = classifier.recipe.side
    drawn = [classifier.recipe.make(picture) for picture in (*drawings(rng, 60), *smooth(rng, 60))]
    return {
        **own,
        "CT slices, coronacases": some("ct-slices/coronacases/*/ct/*.png"),
        "CT slices, radiopaedia (spine up)": some("ct-slices/radiopaedia/*/ct/*.png"),
        "CT slices, medseg": some("ct-slices/medseg/ct/*.*"),
        "lateral projection of one real CT": [classifier.recipe.make(p) for p in projections(data, 0)],
        "frontal projection of one real CT": [classifier.recipe.make(p) for p in projections(data, 1)],
        "noise": [rng.integers(0, 256, (side, side)).astype(np.uint8) for _ in range(EACH)],
        "drawings and smooth noise": drawn,
        "turned by 90 degrees": [np.rot90(c).copy() for c in chests],
        "turned by 180 degrees": [np.rot90(c, 2).copy() for c in chests],
        "turned by 270 degrees": [np.rot90(c, 3).copy() for c in chests],
        "mirrored top to bottom": [c[::-1].copy() for c in chests],
        "black and white exchanged": [255 - c for c in chests],
        "mirrored left to right (not looked for)": [c[:, ::-1].copy() for c in chests],
        "upper left quarter only": [cv2.resize(c[: side // 2, : side // 2], (side, side)) for c in chests],
    }


def drawings(rng: np.random.Generator, n: int) -> list[np.ndarray]:
    """Plots in the way photographs come: curves, dots, chequers, contours, as matplotlib draws them."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    pictures = []
    for number in range(n):
        figure = plt.figure(figsize=(3, 3), dpi=64)
        axes = figure.add_subplot()
        if number % 4 == 0:
            axes.plot(rng.normal(size=50).cumsum())
        elif number % 4 == 1:
            axes.imshow(rng.random((8, 8)), cmap="gray")
        elif number % 4 == 2:
            axes.scatter(*rng.random((2, 60)), s=rng.uniform(5, 400, 60), c=rng.random(60), cmap="gray")
            axes.axis("off")
        else:
            axes.contourf(cv2.GaussianBlur(rng.normal(size=(40, 40)), (0, 0), 5), 20, cmap="gray")
            axes.axis("off")
        figure.canvas.draw()
        pictures.append(np.asarray(figure.canvas.buffer_rgba())[..., :3].mean(axis=2).astype(np.float32) / 255)
        plt.close(figure)
    return pictures


def smooth(rng: np.random.Generator, n: int) -> list[np.ndarray]:
    """Clouds of every size."""
    made = [cv2.GaussianBlur(rng.normal(size=(96, 96)), (0, 0), s) for s in rng.uniform(1, 14, n)]
    return [((m - m.min()) / np.ptp(m)).astype(np.float32) for m in made]


def projections(data: Path, axis: int) -> list[np.ndarray]:
    """A radiograph computed from a CT: the sum of attenuation along x (lateral, 0) or y (frontal, 1)."""
    scan = read_volume(data / "ct-volumes" / "nsclc-LUNG1-001")
    attenuation = np.clip(scan.hu / 1000 + 1, 0, None).sum(axis=axis)
    upright = attenuation.T[::-1, ::-1].astype(np.float32)
    rows = round(upright.shape[0] * scan.spacing_mm[2] / scan.spacing_mm[0])
    picture = cv2.resize(upright, (upright.shape[1], rows))
    low, high = np.percentile(picture, (0.5, 99.5))
    return [np.clip((picture - low) / (high - low), 0, 1).astype(np.float32)]


if __name__ == "__main__":
    main()
