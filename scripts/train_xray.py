"""Train the model of radiographs that ships with pneumoscope, and write its folder with the card.

    python scripts/train_xray.py --data kermany=ROOT --data cohen=ROOT --data hannover=ROOT --data nih=ROOT --run RUN

Patients and copies of one picture stay on one side. The training part teaches; the validation part stops, sets the
temperature and the limits of what is familiar; the test part is asked once, at the end. The same is done again without
each source of ``--held-out``: what that twin says of the source it never saw is the held-out number of the card.
Healthy adults (``nih``) teach the class normal, so that being a child is not what makes a chest normal; adults with
another pneumonia teach nothing and are only asked about.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pneumoscope.datasets.xray.case import XrayCase, read_radiographs
from pneumoscope.datasets.xray.draw import draw, split
from pneumoscope.datasets.xray.duplicates import find_pairs, patient_groups, take_prints
from pneumoscope.datasets.xray.pictures import PictureRecipe, PictureSet, build_pictures
from pneumoscope.inference.familiar import fit_familiar, write_familiar
from pneumoscope.inference.radiographs import BATCH, CANNOT_SAY, NONE_OF_THESE, RadiographClassifier
from pneumoscope.metrics.classification import score_confusion
from pneumoscope.metrics.temperature import expected_error, fit_temperature, nll, softmax_at
from pneumoscope.models.cards import SHIPPED
from pneumoscope.models.chest_cnn import ChestCNN, ChestCNNConfig
from pneumoscope.models.weights import load_model, save_model
from pneumoscope.training.classification import ClassificationTask, PictureSource
from pneumoscope.training.loop import TrainConfig, fit

CLASSES = ("normal", "bacterial", "covid19")
TEST_SHARE, VALIDATION_SHARE, SEED = 0.2, 0.125, 0
"""Katsamenis et al. 2020, section 3.2."""

LIMITS = [
    "Research software, not a medical device.",
    "Normal and bacterial are mostly children of one hospital, covid19 adults of other collections: a good test number "
    "within these sources is partly the ability to tell hospitals and ages apart.",
    "Viral pneumonia other than COVID-19, tuberculosis, effusion, heart failure and tumours are no class.",
    "A picture mirrored left to right is not noticed.",
    "Abstention was tested on CT slices, noise, drawings and turned or inverted radiographs; it is not complete.",
]


@dataclass(frozen=True, eq=False)
class Pictures:
    """All pictures and their squares."""

    cases: list[XrayCase]
    groups: list[str]
    made: PictureSet


@dataclass(frozen=True, eq=False)
class Parts:
    """Rows and class numbers by part."""

    rows: dict[str, NDArray[np.int64]]
    labels: dict[str, NDArray[np.int64]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", action="append", required=True, metavar="NAME=ROOT")
    parser.add_argument("--run", type=Path, required=True, help="where squares, checkpoints and numbers are kept")
    parser.add_argument("--out", type=Path, default=SHIPPED / "xray", help="the model folder to write")
    parser.add_argument("--held-out", nargs="*", default=["hannover"], help="sources left out of a twin each")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--features", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--per-class", type=int, default=None, help="pictures of a class at most; default: all")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    roots: dict[str, list[Path]] = {}
    for entry in options.data:
        name, _, root = entry.partition("=")
        roots.setdefault(name, []).append(Path(root))
    pictures = gather(roots, PictureRecipe(side=options.side), options.run)
    folder, numbers = teach(pictures, "all", "", options, options.out)
    numbers["held_out"] = {}
    for source in options.held_out:
        _, twin = teach(pictures, f"without_{source}", source, options, options.run / f"twin_{source}")
        numbers["held_out"][source] = twin["unseen"]
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    save_model(folder, load_model(folder)[0], {**card, "numbers": numbers}, half=False)
    print(json.dumps(numbers, indent=2))


def gather(roots: dict[str, list[Path]], recipe: PictureRecipe, run: Path) -> Pictures:
    """Every readable picture; patients joined where they share one."""
    cases = [case for name in sorted(roots) for root in roots[name] for case in read_radiographs(name, root)]
    prints = take_prints(cases)
    pairs = find_pairs(prints)
    groups = patient_groups(cases, pairs)
    kept = [i for i in range(len(cases)) if i not in prints.unreadable]
    print(f"{len(kept)} pictures, {len(prints.unreadable)} unreadable, {len(pairs)} pairs that are one")
    cases = [cases[i] for i in kept]
    return Pictures(cases, [groups[i] for i in kept], build_pictures(cases, recipe, run / "squares"))


def share_out(pictures: Pictures, without: str, per_class: int | None) -> Parts:
    """Rows of each part without one data set and without whoever shares a group with it."""
    gone = {g for c, g in zip(pictures.cases, pictures.groups, strict=True) if c.dataset == without}
    own = [i for i, group in enumerate(pictures.groups) if group not in gone]
    cases, groups = [pictures.cases[i] for i in own], [pictures.groups[i] for i in own]
    drawn = draw(cases, CLASSES, (per_class,) * len(CLASSES), SEED)
    where = split(drawn, cases, groups, by="group", test_share=TEST_SHARE, validation_share=VALIDATION_SHARE, seed=SEED)
    rows = np.asarray(own, np.int64)[drawn.rows]
    return Parts(
        {part: rows[where == part] for part in ("train", "val", "test")},
        {part: drawn.labels[where == part] for part in ("train", "val", "test")},
    )


def teach(
    pictures: Pictures, name: str, without: str, options: argparse.Namespace, out: Path
) -> tuple[Path, dict[str, Any]]:
    """Train, set temperature and limits on validation, write the folder, and ask about the rest."""
    parts = share_out(pictures, without, options.per_class)
    torch.manual_seed(SEED)
    net = ChestCNN(ChestCNNConfig(classes=len(CLASSES), features=tuple(options.features)))
    sources = [source_of(pictures, parts, part) for part in ("train", "val")]
    config = TrainConfig(
        max_epochs=options.epochs, batch_size=32, learning_rate=1e-3, schedule="plateau", patience=10, seed=SEED,
        device=options.device,
    )  # fmt: skip
    result = fit(net, ClassificationTask(CLASSES), *sources, config, options.run / name, resume=True)
    net.cpu().eval()
    squares = {part: np.asarray(pictures.made.pixels[rows]) for part, rows in parts.rows.items()}
    logits, features = zip(*(answers_of(net, squares[part]) for part in ("train", "val")), strict=True)
    temperature = fit_temperature(logits[1], parts.labels["val"])
    known = fit_familiar((squares["train"], features[0], parts.labels["train"]), (squares["val"], features[1]))
    card = {
        "title": "Frontal chest radiographs: normal, bacterial pneumonia, COVID-19",
        "task": "radiograph",
        "version": "1",
        "licence": "for research only, as the most restricted of the training data (see training_data)",
        "classes": list(CLASSES),
        "input": {"recipe": vars(pictures.made.recipe), "range": [0, 1]},
        "temperature": temperature,
        "familiar": write_familiar(out, known),
        "training_data": licences(pictures, parts),
        "split": {"by": "patient and copies", "seed": SEED, **{p: len(r) for p, r in parts.rows.items()}},
        "training": {
            "script": "scripts/train_xray.py", "epochs": result.epochs_run, "best_epoch": result.best_epoch,
            "optimiser": config.optimiser, "learning_rate": config.learning_rate, "batch_size": config.batch_size,
        },
        "limits": LIMITS,
    }  # fmt: skip
    save_model(out, net, card)
    classifier = RadiographClassifier(out, device=options.device)
    numbers = {
        "in_source": scored(classifier, squares["test"], parts.labels["test"]),
        "validation_nll": {"before": nll(logits[1], parts.labels["val"]),
                           "after": nll(logits[1], parts.labels["val"], temperature)},
    }  # fmt: skip
    used = set(np.concatenate(list(parts.rows.values())).tolist())
    taught = {pictures.groups[i] for i in used}
    free = [i for i, group in enumerate(pictures.groups) if group not in taught]
    unseen = [
        i for i in free if without and pictures.cases[i].dataset == without and pictures.cases[i].label in CLASSES
    ]
    if unseen:
        labels = np.array([CLASSES.index(pictures.cases[i].label) for i in unseen])
        numbers["unseen"] = scored(classifier, np.asarray(pictures.made.pixels[unseen]), labels)
    sick = [i for i in free if pictures.cases[i].label == "pneumonia"]
    if sick:
        numbers["adults_with_other_pneumonia"] = said(classifier, np.asarray(pictures.made.pixels[sick]))
    return out, numbers


def source_of(pictures: Pictures, parts: Parts, part: str) -> PictureSource:
    """A part as the training loop wants it."""
    names = [f"{pictures.cases[i].dataset}/{pictures.cases[i].case}" for i in parts.rows[part]]
    return PictureSource(pictures.made.pixels, parts.rows[part], parts.labels[part], names, pictures.made.digest)


def answers_of(net: ChestCNN, squares: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits and pooled features, in fp32 on the processor."""
    logits, features = [], []
    with torch.inference_mode():
        for start in range(0, len(squares), BATCH):
            maps = net.features(torch.from_numpy(squares[start : start + BATCH, None].astype(np.float32) / 255))
            logits.append(net.classify(maps).numpy())
            features.append(maps.mean(dim=(2, 3)).numpy())
    return np.concatenate(logits), np.concatenate(features)


def scored(classifier: RadiographClassifier, squares: NDArray[np.uint8], labels: NDArray[np.int64]) -> dict[str, Any]:
    """Accuracy and macro F1 of all pictures as if every one were answered, calibration, and what abstention does."""
    probability = softmax_at(classifier.raw(squares)[0], classifier.temperature)
    matrix = np.bincount(labels * len(CLASSES) + probability.argmax(axis=1), minlength=len(CLASSES) ** 2)
    found = score_confusion(matrix.reshape(len(CLASSES), -1), CLASSES)
    answers = classifier.answer(squares)
    kept = [(a.prediction == CLASSES[y]) for a, y in zip(answers, labels, strict=True) if a.answered]
    return {
        "pictures": len(labels),
        "accuracy": found.accuracy,
        "macro_f1": found.f1,
        "expected_calibration_error": expected_error(probability, labels),
        "accuracy_of_answered": float(np.mean(kept)) if kept else None,
        **said(classifier, squares),
    }


def said(classifier: RadiographClassifier, squares: NDArray[np.uint8]) -> dict[str, float]:
    """Share of each answer."""
    answers = [a.prediction for a in classifier.answer(squares)]
    return {name: answers.count(name) / len(answers) for name in (*CLASSES, CANNOT_SAY, NONE_OF_THESE)}


def licences(pictures: Pictures, parts: Parts) -> list[dict[str, Any]]:
    """Data sets that taught or chose, with licence, citation and number of pictures."""
    found: dict[tuple[str, str, str], int] = {}
    for i in np.concatenate([parts.rows["train"], parts.rows["val"]]):
        case = pictures.cases[int(i)]
        key = case.dataset, case.licence, case.citation
        found[key] = found.get(key, 0) + 1
    return [
        dict(zip(("name", "licence", "citation", "pictures"), (*k, n), strict=True)) for k, n in sorted(found.items())
    ]


if __name__ == "__main__":
    main()
