"""Train the view classifier of the shipped model of radiographs, and write it into that model's folder and card.

    python scripts/train_views.py --data ROOT --run RUN

ROOT holds ``xray``, ``ct-volumes`` and ``ct-slices``. It learns from Kermany's and NIH's films, radiographs computed
from three whole CTs and from synthetic ones, and slices (`view_lessons`). Cohen's and Hannover's films choose the two
limits, which together refuse at most 1 % of them; one more CT shows what they let through. Other children and two CTs
are only asked about, real lateral films not even here but in `benchmarks/xray.py abstention`. About two minutes of one
core. `scripts/train_xray.py` writes the folder without it, so call this afterwards.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pneumoscope.datasets.radiographs import XrayCase, read_radiographs
from pneumoscope.errors import PneumoscopeError
from pneumoscope.inference.out_of_distribution import REASONS, VIEWS_FILE, Views, shrunk
from pneumoscope.inference.radiographs import RadiographClassifier
from pneumoscope.io.files import sha256, write_bytes
from pneumoscope.models.cards import SHIPPED, read_card, write_card
from pneumoscope.models.classifiers import ChestCNN, ChestCNNConfig
from pneumoscope.training.augment import SliceAugment
from pneumoscope.training.data import Batch
from pneumoscope.training.loop import TrainConfig, fit
from pneumoscope.training.tasks import ClassificationTask, PictureSource
from train_xray import report_epoch, rounded
from view_lessons import FRONTAL, LATERAL, OBLIQUE, Picture, as_film, computed, drawn, scans_of, synthetic, torn

SIDE, SEED, REFUSED = 40, 0, 0.01
AUGMENT = SliceAugment(
    rotate_deg=10.0, scale=(0.85, 1.2), shift=0.06, flip=0.5, gamma=(0.6, 1.6), contrast=(0.6, 1.4), brightness=0.12,
    noise=0.05, blur=0.3,
)  # fmt: skip
TAUGHT = ("nsclc-LUNG1-001", "reduced/LIDC-0050.nii.gz", "reduced/ACRIN-FLT-001.nii.gz")
CHOOSING = ("reduced/CPTAC-C3N-00247.nii.gz",)
ASKED = ("imlab/id001.nii.gz", "imlab/id002.nii.gz")
LICENCES = (
    ("kermany", "CC BY 4.0"), ("nih", "no restriction, with acknowledgement of the NIH Clinical Center"),
    ("NSCLC-Radiomics LUNG1-001 (TCIA)", "CC BY-NC 3.0"), ("LIDC-IDRI 0050 (TCIA)", "CC BY 3.0"),
    ("ACRIN-FLT-Breast 001 (TCIA)", "CC BY 3.0"), ("COVID-19-CT-Seg, Coronacases (slices)", "CC BY-NC-SA 4.0"),
    ("synthetic chests of this package", "Apache-2.0"),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Varied(PictureSource):
    """Pictures placed and shaded anew in each epoch; as they are for validation."""

    def batch(self, indices: NDArray[np.int64], rng: np.random.Generator | None) -> Batch:
        """See `PictureSource.batch`."""
        plain = super().batch(indices, rng)
        if rng is None:
            return plain
        moved = AUGMENT(Batch(plain.x, torch.zeros_like(plain.x), plain.names), rng)
        return Batch(moved.x.clamp(0, 1), plain.y, plain.names)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT")
    parser.add_argument("--run", type=Path, required=True, help="where squares and checkpoints are kept")
    parser.add_argument("--model", type=Path, default=SHIPPED / "xray", help="the model folder to write into")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--features", type=int, nargs="+", default=[8, 16, 32, 64])
    options = parser.parse_args(arguments)
    made = squares_of(options)
    config = ChestCNNConfig(classes=len(REASONS), features=tuple(options.features))
    torch.manual_seed(SEED)
    result = fit(
        net := ChestCNN(config), ClassificationTask(tuple(REASONS)),
        source_of(made, "train", Varied), source_of(made, "choose", PictureSource),
        TrainConfig(
            max_epochs=options.epochs, batch_size=64, learning_rate=2e-3, schedule="cosine", seed=SEED, keep="last",
            device="cpu", precision="fp32",
        ),
        options.run / "fit", resume=True, progress=report_epoch,
    )  # fmt: skip
    net.cpu().eval().half().float()  # as it is stored
    films = np.concatenate([made["choose: films of Cohen"], made["choose: films of Hannover"]])
    views = Views(net, SIDE, dict.fromkeys(REASONS, 0.5))
    ratios = views.frontal(views.probability(films))
    refused = int(REFUSED / len(ratios) * len(films))
    limits = {name: min(0.5, float(np.sort(values)[refused])) for name, values in ratios.items()}
    views = replace(views, limits=limits)
    numbers: dict[str, Any] = {}
    for name, pictures in made.items():
        part, _, kind = name.partition(": ")
        if part != "train":
            reasons = [views.reason(row) for row in views.probability(pictures)]
            found = {"pictures": len(pictures)} | {n: reasons.count(r) / len(reasons) for n, r in REASONS.items()}
            numbers.setdefault({"choose": "chosen_on", "ask": "never_used"}[part], {})[kind] = found
            print(name, rounded(found))
    taught = {kind: len(p) for name, p in made.items() for part, _, kind in [name.partition(": ")] if part == "train"}
    entry = {
        "file": VIEWS_FILE,
        "architecture": {"name": "chest_cnn", **asdict(config)},
        "parameters": sum(p.numel() for p in net.parameters()),
        "classes": list(REASONS),
        "side": SIDE,
        "limits": limits,
        "training_data": [dict(zip(("name", "licence"), pair, strict=True)) for pair in LICENCES],
        "training": {"script": "scripts/train_views.py", "epochs": result.epochs_run, "pictures": taught},
        "numbers": rounded(numbers),
    }
    write(options.model, net, entry)


def write(folder: Path, net: ChestCNN, entry: dict[str, Any]) -> None:
    """The weights into the model folder, the entry into its card."""
    from safetensors.torch import save

    state = {n: t.half() if t.is_floating_point() else t for n, t in net.state_dict().items()}
    write_bytes(folder / VIEWS_FILE, save({name: tensor.contiguous() for name, tensor in state.items()}))
    write_card(folder, {**read_card(folder), "views": entry | {"sha256": sha256(folder / VIEWS_FILE)}})


def source_of(made: dict[str, NDArray[np.uint8]], part: str, kind: type[PictureSource]) -> PictureSource:
    """The squares of a part, with the view that `_view` finds in the name of their kind."""
    groups = {name: squares for name, squares in made.items() if name.startswith(f"{part}: ")}
    labels = np.concatenate([np.full(len(s), _view(n)) for n, s in groups.items()])
    names = [f"{name} {i}" for name, squares in groups.items() for i in range(len(squares))]
    return kind(np.concatenate(list(groups.values())), np.arange(len(labels)), labels, names)


def _view(name: str) -> int:
    kind = name.partition(": ")[2]
    return 0 if kind.startswith(("films", "frontal")) else 1 if kind.startswith(("lateral", "oblique")) else 2


def squares_of(options: argparse.Namespace) -> dict[str, NDArray[np.uint8]]:
    """The squares of every kind (n, SIDE, SIDE), from ``squares.npz`` of the run when they were made before."""
    place = options.run / "squares.npz"
    if not place.is_file():
        options.run.mkdir(parents=True, exist_ok=True)
        recipe = RadiographClassifier(options.model, device="cpu").recipe
        squares: dict[str, NDArray[np.uint8]] = {}
        for name, pictures in lessons(options.data):
            squares[name] = shrunk(np.stack([recipe.make(np.clip(p, 0, 1)) for p in pictures]), SIDE)
            print(name, len(pictures), flush=True)
        np.savez(place, **squares)
    with np.load(place) as stored:
        return {name: stored[name] for name in stored.files}


def lessons(data: Path) -> Iterator[tuple[str, list[Picture]]]:
    """Pictures with their ``part: kind``."""
    rng, xray = np.random.default_rng(SEED), data / "xray"
    children = read_radiographs("kermany", xray / "kermany")
    names = np.random.default_rng(SEED).permutation(sorted({case.patient for case in children}))
    taught_names = set(names[: len(names) * 4 // 5].tolist())
    films = films_of([case for case in children if case.patient in taught_names], 300)
    films += [p for f in ("nih-no-finding", "nih-pneumonia") for p in files_of(xray / f, "*", 250)]
    strangers = films_of([case for case in children if case.patient not in taught_names], 300)
    cohen, hannover = files_of(xray / "cohen-covid", "*.*", 500), files_of(xray / "hannover-covid", "*.*", 500)
    taught, choosing, asked = (scans_of(data / "ct-volumes", names) for names in (TAUGHT, CHOOSING, ASKED))
    bodies = taught * 3 + synthetic(6)

    def vary(pictures: list[Picture], n: int) -> list[Picture]:
        return [as_film(pictures[i % len(pictures)], rng, films[int(rng.integers(len(films)))]) for i in range(n)]

    slices = [p for body in taught for p in body.slices(rng, 60)]
    coronacases = files_of(data / "ct-slices" / "coronacases", "*/ct/*.png", 100)
    yield "train: films as they are", films
    yield "train: films varied", vary(films, 1500)
    yield "train: frontal, computed", computed(bodies, FRONTAL, 350, rng, films)
    yield "train: lateral, computed", computed(bodies, LATERAL, 600, rng, films)
    yield "train: lateral, computed, as it is", computed(bodies, LATERAL, 100, rng, None)
    yield "train: oblique, computed", computed(bodies, OBLIQUE, 200, rng, films)
    yield "train: parts of films", [torn(films[int(rng.integers(len(films)))], rng) for _ in range(300)]
    yield "train: slices of CT", slices + coronacases + vary(slices + coronacases, 150)
    yield "train: drawings", [drawn(rng) for _ in range(80)]
    for part, scans, own, n in (("choose", choosing, cohen + hannover, 40), ("ask", asked, strangers, 60)):
        for name, degrees in (("frontal", FRONTAL), ("lateral", LATERAL), ("oblique", OBLIQUE)):
            yield f"{part}: {name}, computed", computed(scans, degrees, n, rng, None)
            yield f"{part}: {name}, computed, as films", computed(scans, degrees, n, rng, own)
        yield f"{part}: parts of films", [torn(own[int(rng.integers(len(own)))], rng) for _ in range(n)]
        yield f"{part}: slices of CT", [p for body in scans for p in body.slices(rng, n // len(scans))]
    yield "choose: films of Cohen", cohen
    yield "choose: films of Hannover", hannover
    yield "choose: slices of MedSeg", files_of(data / "ct-slices" / "medseg", "ct/*.*", 60)
    yield "ask: slices of Radiopaedia", files_of(data / "ct-slices" / "radiopaedia", "*/ct/*.png", 100)
    yield "ask: films of other children of Kermany's", strangers


def films_of(cases: list[XrayCase], n: int) -> list[Picture]:
    """Readable pictures of cases, drawn at random, at most 400 pixels a side."""
    found = []
    for i in np.random.default_rng(SEED).permutation(len(cases))[:n]:
        try:
            found.append(_small(cases[int(i)].load().pixels))
        except PneumoscopeError as problem:
            print(f"left out: {problem}")
    return found


def files_of(folder: Path, pattern: str, n: int) -> list[Picture]:
    """The same of the files below a folder."""
    from pneumoscope.io.formats.radiograph import SUFFIXES

    paths = sorted(p for p in folder.glob(pattern) if p.suffix.lower() in SUFFIXES)
    return films_of([XrayCase("", p.stem, "", "other", "", "", "", p) for p in paths], n)


def _small(picture: Picture) -> Picture:
    rows, columns = picture.shape
    scale = min(1.0, 400 / max(rows, columns))
    return cv2.resize(picture, (round(columns * scale), round(rows * scale)), interpolation=cv2.INTER_AREA)


if __name__ == "__main__":
    main()
