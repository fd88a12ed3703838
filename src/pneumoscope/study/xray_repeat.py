"""One draw and split of an X-ray study: its mitigations, who is trained on under each, who tests; the predictions.

A mitigation (``as paper`` is the paper's own input) says what is shown, how sources are mixed, and who else is trained
on. It must keep what it promises on new sources; that the accuracy on the same sources stays high says nothing.

Tests of the paper's classifier:

- ``Dataset_1``: its own test part: the same sources as in training.
- ``healthy adults`` and ``adults, other pneumonia``: NIH, from before the pandemic; whoever is called COVID-19 there is
  called so wrongly. Nobody of them, or of their groups, teaches anything.
- ``unseen <source>``: all COVID-19 pictures of a source that took no part in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.datasets.radiographs import PictureRecipe
from pneumoscope.datasets.splits.draw import write_radiograph_split
from pneumoscope.recipes.xray import XrayExperiment
from pneumoscope.study import xray_data as data

OWN_TEST, HEALTHY, SICK, UNSEEN = "Dataset_1", "healthy adults", "adults, other pneumonia", "unseen"
"""Names of the tests; `UNSEEN` is followed by the source."""

Rows = NDArray[np.int64]

AS_PAPER = "as paper"


@dataclass(frozen=True)
class Mitigation:
    """One way of showing and mixing pictures."""

    name: str  # ``as paper`` or a name of `recipes.xray.ARMS`
    about: str  # in words
    recipe: PictureRecipe  # what is shown
    balanced: bool = False  # every source of a class is drawn equally often, and every class
    adults: bool = False  # healthy adults from before the pandemic are learnt as normal


def plain_recipe(experiment: XrayExperiment) -> PictureRecipe:
    """The input of the paper's networks."""
    fit = cast(Literal["stretch", "pad"], experiment.pictures.fit)
    top, bottom, left, right = experiment.honest.lung_box
    return PictureRecipe(
        side=experiment.pictures.side,
        fit=fit,
        clip_limit=experiment.honest.clahe_limit,
        tiles=experiment.honest.clahe_tiles,
        lung_box=(top, bottom, left, right),
        corner=experiment.honest.corner_share,
    )


def views(experiment: XrayExperiment) -> dict[str, PictureRecipe]:
    """What the source probe is shown: with the chest, and without."""
    plain = plain_recipe(experiment)
    return {
        "whole picture": plain,
        "lungs cut out": replace(plain, view="no_lungs"),
        "four corners": replace(plain, view="corners"),
        "border cut off": replace(plain, border=experiment.honest.border),
        "equalised": replace(plain, equalise="clahe"),
        "lung box only": replace(plain, view="lung_box"),
        "lung box, equalised": replace(plain, view="lung_box", equalise="clahe"),
    }


def all_mitigations(experiment: XrayExperiment) -> dict[str, Mitigation]:
    """The paper's way and every remedy, by name."""
    plain, honest = plain_recipe(experiment), experiment.honest
    boxed = replace(plain, view="lung_box", equalise="clahe")
    arms = (
        Mitigation(AS_PAPER, "the whole picture, as the paper", plain),
        Mitigation(
            "border", f"the outer {honest.border:.0%} of each edge cut off", replace(plain, border=honest.border)
        ),
        Mitigation("equalised", "local histogram equalisation (CLAHE)", replace(plain, equalise="clahe")),
        Mitigation("lung_box", "only the fixed box where the lungs lie", replace(plain, view="lung_box")),
        Mitigation("balanced", "every source of a class equally often", plain, balanced=True),
        Mitigation("adults", "healthy adults of a third hospital trained as normal", plain, adults=True),
        Mitigation("all", "lung box, equalised, balanced, with healthy adults", boxed, balanced=True, adults=True),
    )
    return {arm.name: arm for arm in arms}


def balance(labels: NDArray[np.int64], sources: Sequence[str], seed: int) -> NDArray[np.int64]:
    """Places (some several times, some never) so that classes, and sources within a class, are equally frequent.

    The largest class keeps its size. Each picture of a source is taken equally often, give or take one.
    """
    rng = np.random.default_rng([seed, 13])
    named = np.asarray(sources, dtype=np.str_)
    target = int(np.bincount(labels).max())
    taken: list[NDArray[np.int64]] = []
    for label in np.unique(labels):
        cells = [np.flatnonzero((labels == label) & (named == s)) for s in np.unique(named[labels == label])]
        for cell in cells:
            wanted = max(1, target // len(cells))
            whole, rest = divmod(wanted, len(cell))
            taken += [np.tile(cell, whole), np.sort(rng.permutation(cell)[:rest])]
    return np.concatenate(taken)


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """What a classifier learns from."""

    # train, train_labels: rows of the pool, some perhaps several times
    train: Rows
    train_labels: Rows
    # val, val_labels: rows that stop and choose
    val: Rows
    val_labels: Rows


@dataclass(frozen=True, eq=False)
class Repeat:
    """A draw and split."""

    experiment: XrayExperiment  # the study
    pool: data.ImagePool  # all pictures
    number: int  # which draw, from 0
    one: data.SplitSet  # Dataset_1
    zero: data.SplitSet | None  # Dataset_0; None where Model_0 is not asked for
    adults: data.SplitSet | None  # healthy adults; None without that set
    sick: Rows  # rows of adults with another pneumonia

    @property
    def seed(self) -> int:
        """Of this repeat's trainings."""
        return self.experiment.training.seed + self.number

    @property
    def covid_sources(self) -> list[str]:
        """Sources of the last class, the one of the pandemic."""
        positive = self.one.rows[self.one.labels == len(self.one.classes) - 1]
        return sorted(set(self.pool.sources(positive).tolist()))

    @cached_property
    def held_out(self) -> list[str]:
        """Sources of COVID-19 that can be left out: there are others, with pictures to train on and to stop by."""
        plain, positive, found = all_mitigations(self.experiment)[AS_PAPER], len(self.one.classes) - 1, []
        for source in self.covid_sources:
            rest = self.training_set(plain, source)
            if (rest.train_labels == positive).any() and (rest.val_labels == positive).any():
                found.append(source)
        return found

    def training_set(self, arm: Mitigation, without: str = "") -> TrainingSet:
        """What teaches under a remedy, without the pictures and the groups of one source."""
        kept = self._may_teach(without)
        rows = {part: [self.one.part(part)] for part in ("train", "val")}
        if arm.adults and self.adults is not None:
            for part in rows:
                own, labels = self.adults.part(part)
                rows[part].append((own, np.full_like(labels, self.one.classes.index("normal"))))
        found = []
        for part in ("train", "val"):
            own = np.concatenate([r for r, _ in rows[part]])
            labels = np.concatenate([y for _, y in rows[part]])
            stays = np.array([int(i) in kept for i in own], bool)
            own, labels = own[stays], labels[stays]
            if arm.balanced and part == "train":
                taken = balance(labels, self.pool.sources(own).tolist(), self.seed)
                own, labels = own[taken], labels[taken]
            found += [own, labels]
        return TrainingSet(*found)

    def _may_teach(self, without: str) -> set[int]:
        rows = np.concatenate([self.one.rows, self.adults.rows if self.adults is not None else self.one.rows[:0]])
        if not without:
            return set(rows.tolist())
        out = self.pool.sources(rows) == without
        banned = set(self.pool.group_of(rows[out]).tolist())
        groups = self.pool.group_of(rows)
        return {int(i) for i, group in zip(rows, groups, strict=True) if group not in banned}

    def kept_test(self) -> tuple[Rows, Rows]:
        """Dataset_0's test rows and labels of classes that Dataset_1 has too, of nobody who is trained on there.

        What a network trained on Dataset_0 and retrained on Dataset_1 has kept.
        """
        assert self.zero is not None
        rows, labels = self.zero.part("test")
        names = [self.zero.classes[int(y)] for y in labels]
        teaching = set(self.pool.group_of(self.one.rows[self.one.parts != "test"]).tolist())
        groups = self.pool.group_of(rows)
        stays = np.array(
            [n in self.one.classes and g not in teaching for n, g in zip(names, groups, strict=True)], bool
        )
        known = [self.one.classes.index(name) for name, stay in zip(names, stays, strict=True) if stay]
        return rows[stays], np.array(known, np.int64)

    def tests_of(self, model: str, without: str = "") -> dict[str, tuple[Rows, Rows]]:
        """Rows and labels of every test of a classifier; see `tests`."""
        if model == "Model_0" and self.zero is not None:
            return {self.zero.name: self.zero.part("test")}
        kept = self.kept_test() if model == "Model_2" and self.zero is not None else None
        return {**self.tests(without), **({self.zero.name: kept} if kept and self.zero and len(kept[0]) else {})}

    def tests(self, without: str = "") -> dict[str, tuple[Rows, Rows]]:
        """Rows and labels by test; label -1 is a class that the classifier does not know."""
        found = {}
        if not without:
            found[OWN_TEST] = self.one.part("test")
        else:
            rows = self.one.rows[self.pool.sources(self.one.rows) == without]
            found[f"{UNSEEN} {without}"] = rows, np.full(len(rows), len(self.one.classes) - 1, np.int64)
        if self.adults is not None:
            rows, _ = self.adults.part("test")
            found[HEALTHY] = rows, np.full(len(rows), self.one.classes.index("normal"), np.int64)
        if len(self.sick):
            found[SICK] = self.sick, np.full(len(self.sick), -1, np.int64)
        return found


def make_repeat(experiment: XrayExperiment, pool: data.ImagePool, repeat: int) -> Repeat:
    """Draw and split; a function of experiment, pictures and number."""
    one = data.dataset_1(experiment, pool, repeat)
    with_zero = {"Model_0", "Model_2"} & set(experiment.training.stages or ())
    zero = data.dataset_0(experiment, pool, repeat, one) if with_zero else None
    healthy = data.adults(experiment, pool, repeat) if "normal" in one.classes else None
    taught = set(pool.group_of(healthy.rows[healthy.parts != "test"]).tolist()) if healthy is not None else set()
    sick = [
        i
        for i, case in enumerate(pool.cases)
        if case.dataset == experiment.data.adults and case.label == "pneumonia" and pool.groups[i] not in taught
    ]
    return Repeat(experiment, pool, repeat, one, zero, healthy, np.array(sick, np.int64))


def write_splits(repeat: Repeat, folder: str | Path) -> list[str]:
    """Write `splits/<set>_seed<n>.csv`; returns the file names."""
    written = []
    for part in (repeat.zero, repeat.one, repeat.adults):
        if part is None:
            continue
        name = f"{part.name}_seed{repeat.number}.csv"
        cases = repeat.pool.at(part.rows)
        groups = repeat.pool.group_of(part.rows).tolist()
        write_radiograph_split(Path(folder) / name, cases, groups, part.parts.tolist())
        written.append(name)
    return written


def table(
    repeat: Repeat,
    model: str,
    arm: str,
    without: str,
    said: Mapping[str, NDArray[np.floating[Any]]],
    classes: tuple[str, ...],
) -> pd.DataFrame:
    """One row per picture and test: who it is, and what was said.

    Args:
        said: probabilities (n, classes) by test, in the order of `Repeat.tests`.
    """
    frames = []
    tests = repeat.tests_of(model, without)
    for name, probability in said.items():
        rows, labels = tests[name]
        cases = repeat.pool.at(rows)
        frames.append(
            pd.DataFrame(
                {
                    "model": model,
                    "arm": arm,
                    "without": without,
                    "seed": repeat.number,
                    "test": name,
                    "case": repeat.pool.names(rows),
                    "patient": [c.patient for c in cases],
                    "group": repeat.pool.group_of(rows),
                    "source": repeat.pool.sources(rows),
                    "label": [classes[int(y)] if y >= 0 else c.label for y, c in zip(labels, cases, strict=True)],
                    "said": [classes[int(k)] for k in probability.argmax(axis=1)],
                    "confidence": probability.max(axis=1).round(6),
                    **{f"p{k}": probability[:, k].round(6) for k in range(probability.shape[1])},
                }
            )
        )
    return pd.concat(frames, ignore_index=True)
