"""What the shipped model of radiographs learns from: sources in equal shares, patients and copies on one side."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pneumoscope.datasets.audit.duplicates import find_pairs, patient_groups, take_prints
from pneumoscope.datasets.radiographs import (
    PictureRecipe,
    PictureSet,
    XrayCase,
    build_pictures,
    pictures_content,
    read_radiographs,
)
from pneumoscope.datasets.splits.draw import Selection, split_radiographs
from pneumoscope.io.files import write_json
from pneumoscope.study.xray_repeat import balance
from pneumoscope.training.augment import SliceAugment
from pneumoscope.training.data import Batch
from pneumoscope.training.tasks import PictureSource

CLASSES = ("normal", "bacterial", "covid19")
PARTS = ("train", "val", "test")
TEST_SHARE, VALIDATION_SHARE, SEED = 0.2, 0.125, 0
"""Katsamenis et al. 2020, section 3.2."""

SHARES = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0.5, 0.5]], np.float32)
"""What is taught of a picture by its number: a class, or a pneumonia whose cause is not told."""

AUGMENT = SliceAugment(
    rotate_deg=6.0, scale=(0.9, 1.12), shift=0.04, flip=0.0, gamma=(0.7, 1.4), contrast=(0.75, 1.3),
    brightness=0.08, noise=0.03, blur=0.4,
)  # fmt: skip
"""Never mirrored: the heart lies left."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """All pictures and their squares; a group is what must stay on one side."""

    cases: list[XrayCase]
    groups: list[str]
    made: PictureSet

    def squares(self, rows: NDArray[np.int64] | list[int]) -> NDArray[np.uint8]:
        """(n, side, side) of rows."""
        return np.asarray(self.made.pixels[np.asarray(rows, np.int64)])

    def sources(self, rows: NDArray[np.int64]) -> list[str]:
        """Dataset of each row."""
        return [self.cases[int(i)].dataset for i in rows]


@dataclass(frozen=True, eq=False)
class Parts:
    """Rows and class numbers by part."""

    rows: dict[str, NDArray[np.int64]]
    labels: dict[str, NDArray[np.int64]]
    unknown: NDArray[np.int64]
    """Rows that teach as well: pneumonia of a cause that is not told, so half bacterial, half covid19, not normal."""


def gather(roots: dict[str, list[Path]], recipe: PictureRecipe, run: Path) -> Pictures:
    """Every readable picture; patients joined where they share one."""
    cases = [case for name in sorted(roots) for root in roots[name] for case in read_radiographs(name, root)]
    notes = run / f"groups_{pictures_content(cases, recipe)[:16]}.json"
    if not notes.is_file():
        prints = take_prints(cases)
        pairs = find_pairs(prints)
        print(
            f"{len(cases)} pictures, {len(prints.unreadable)} unreadable, {len(pairs)} pairs that are one", flush=True
        )
        found = patient_groups(cases, pairs)
        write_json(notes, [None if i in prints.unreadable else group for i, group in enumerate(found)])
    groups = json.loads(notes.read_text(encoding="utf-8"))
    cases = [case for case, group in zip(cases, groups, strict=True) if group is not None]
    return Pictures(cases, [g for g in groups if g is not None], build_pictures(cases, recipe, run / "squares"))


def even_draw(cases: list[XrayCase], per_class: int | None, seed: int) -> Selection:
    """At most `per_class` pictures of a class, its sources in shares as equal as their sizes allow."""
    rng = np.random.default_rng([seed, 21])
    taken: list[tuple[int, int]] = []
    for number, name in enumerate(CLASSES):
        cells: dict[str, list[int]] = {}
        for place, case in enumerate(cases):
            if case.label == name:
                cells.setdefault(case.dataset, []).append(place)
        left = per_class if per_class is not None else len(cases)
        for done, (_, own) in enumerate(sorted(cells.items(), key=lambda cell: (len(cell[1]), cell[0]))):
            size = min(len(own), left // (len(cells) - done))  # a small source leaves its rest to the larger ones
            left -= size
            taken += [(own[int(i)], number) for i in rng.permutation(len(own))[:size]]
    rows, labels = (np.array(values, np.int64) for values in zip(*sorted(taken), strict=True))
    return Selection(rows, labels, CLASSES, ())


def share_out(pictures: Pictures, without: str, per_class: int | None) -> Parts:
    """Rows of each part without one dataset and without whoever shares a group with it."""
    gone = {g for c, g in zip(pictures.cases, pictures.groups, strict=True) if c.dataset == without}
    own = [i for i, group in enumerate(pictures.groups) if group not in gone]
    cases, groups = [pictures.cases[i] for i in own], [pictures.groups[i] for i in own]
    drawn = even_draw(cases, per_class, SEED)
    where = split_radiographs(
        drawn, cases, groups, by="group", test_share=TEST_SHARE, validation_share=VALIDATION_SHARE, seed=SEED
    )
    rows = np.asarray(own, np.int64)[drawn.rows]
    asked = set(np.asarray(groups)[drawn.rows[where != "train"]].tolist())
    sick = sorted({g for c, g in zip(cases, groups, strict=True) if c.label == "pneumonia"} - asked)
    chosen = {sick[int(i)] for i in np.random.default_rng([SEED, 22]).permutation(len(sick))[: len(sick) // 2]}
    unknown = [i for i, c, g in zip(own, cases, groups, strict=True) if c.label == "pneumonia" and g in chosen]
    return Parts(
        {part: rows[where == part] for part in PARTS},
        {part: drawn.labels[where == part] for part in PARTS},
        np.asarray(unknown, np.int64),
    )


def strangers(pictures: Pictures, parts: Parts) -> list[int]:
    """Rows of patients who are in no part and taught nothing."""
    known = {pictures.groups[int(i)] for rows in (*parts.rows.values(), parts.unknown) for i in rows}
    return [i for i, group in enumerate(pictures.groups) if group not in known]


@dataclass(frozen=True, eq=False)
class Varied(PictureSource):
    """Pictures that are turned, moved and shaded a little anew in each epoch; as they are for validation."""

    def batch(self, indices: NDArray[np.int64], rng: np.random.Generator | None) -> Batch:
        """See `PictureSource.batch`."""
        plain = super().batch(indices, rng)
        y = torch.from_numpy(SHARES[self.labels[indices]])
        if rng is None:
            return Batch(plain.x, y, plain.names)
        moved = AUGMENT(Batch(plain.x, torch.zeros_like(plain.x), plain.names), rng)
        return Batch(moved.x.clamp(0, 1), y, plain.names)


def source_of(pictures: Pictures, parts: Parts, part: str) -> PictureSource:
    """A part as the training loop wants it; in training, sources of a class and classes are equally frequent."""
    rows, labels = parts.rows[part], parts.labels[part]
    if part == "train":
        places = balance(labels, pictures.sources(rows), SEED)
        rows, labels = (
            np.concatenate([rows[places], parts.unknown]),
            np.concatenate([labels[places], np.full(len(parts.unknown), len(CLASSES))]),
        )
    names = [f"{pictures.cases[int(i)].dataset}/{pictures.cases[int(i)].case}" for i in rows]
    kind = Varied if part == "train" else PictureSource
    return kind(pictures.made.pixels, rows, labels, names, pictures.made.digest)


def licences(pictures: Pictures, parts: Parts) -> list[dict[str, Any]]:
    """Datasets that taught or chose, with licence, citation and number of pictures."""
    found: dict[tuple[str, str, str], int] = {}
    for i in np.concatenate([parts.rows["train"], parts.rows["val"], parts.unknown]):
        case = pictures.cases[int(i)]
        key = case.dataset, case.licence, case.citation
        found[key] = found.get(key, 0) + 1
    return [
        dict(zip(("name", "licence", "citation", "pictures"), (*k, n), strict=True)) for k, n in sorted(found.items())
    ]
