"""The pictures of an X-ray study: read, copies found, drawn, split, made square; all kept in the study folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.audit.duplicates import Pair, Prints, find_pairs, patient_groups, take_prints
from pneumoscope.datasets.radiographs import (
    PictureRecipe,
    PictureSet,
    XrayCase,
    build_pictures,
    file_content,
    read_radiographs,
)
from pneumoscope.datasets.splits.draw import leaking, select_radiographs, split_radiographs
from pneumoscope.errors import DatasetError, InputError
from pneumoscope.io.files import atomic_path, parse_json
from pneumoscope.progress import Progress, silent
from pneumoscope.recipes.xray import XrayExperiment

RESNET = "resnet50"  # Name under which a file of published weights is given beside the datasets

PRINTS_FILE = "prints.npz"


@dataclass(frozen=True, eq=False)
class ImagePool:
    """Every picture that can take part."""

    cases: tuple[XrayCase, ...]  # readable pictures of all sets
    groups: tuple[str, ...]  # of each, see `datasets.splits.draw`
    pairs: tuple[Pair, ...]  # pictures that are one
    unreadable: tuple[tuple[str, str], ...]  # name and reason of those left out

    def at(self, rows: Iterable[Any]) -> list[XrayCase]:
        """The pictures of rows."""
        return [self.cases[int(i)] for i in rows]

    def names(self, rows: Iterable[Any]) -> list[str]:
        """Dataset and name of each row."""
        return [f"{case.dataset}/{case.case}" for case in self.at(rows)]

    def sources(self, rows: Iterable[Any]) -> NDArray[np.str_]:
        """Source of each row."""
        return np.array([case.source or case.dataset for case in self.at(rows)], dtype=np.str_)

    def group_of(self, rows: NDArray[np.int64]) -> NDArray[np.str_]:
        """Group of each row."""
        return np.array([self.groups[int(i)] for i in rows], dtype=np.str_)


@dataclass(frozen=True, eq=False)
class SplitSet:
    """A dataset of the study: drawn and split."""

    name: str  # ``Dataset_0``, ``Dataset_1`` or ``adults``
    rows: NDArray[np.int64]  # places in the pool (n,)
    labels: NDArray[np.int64]  # class numbers (n,)
    parts: NDArray[np.str_]  # ``train``, ``val`` or ``test`` (n,)
    classes: tuple[str, ...]  # names of the classes
    notes: tuple[str, ...]  # what was asked for and was not there
    leaking_groups: tuple[str, ...]  # with pictures in several parts: none in a split by group

    def part(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and labels of one part."""
        here = self.parts == name
        return self.rows[here], self.labels[here]


def check_roots(experiment: XrayExperiment, data: Mapping[str, str | Path]) -> tuple[dict[str, Path], Path | None]:
    """Folders by set name, and the file of ResNet-50's weights where one is given.

    Raises:
        InputError: a name that the study does not use, or a set that it cannot do without.
    """
    wanted = experiment.data
    known = list(dict.fromkeys([wanted.children, *wanted.covid, wanted.adults]))
    strangers = [name for name in data if name not in (*known, RESNET)]
    if strangers:
        raise InputError(
            f"--data {strangers[0]}: {experiment.recipe} reads {', '.join(known)}, and {RESNET}=FILE for Model_3"
        )
    if wanted.children not in data or not any(name in data for name in wanted.covid):
        raise InputError(
            f"{experiment.recipe} needs --data {wanted.children}=ROOT and at least one of "
            + ", ".join(f"--data {name}=ROOT" for name in wanted.covid)
        )
    file = Path(data[RESNET]) if RESNET in data else None
    if file is not None and not file.is_file():
        raise InputError(f"no such file; --data {RESNET}= takes a .pth or .safetensors file", path=file)
    return {name: Path(root) for name, root in data.items() if name != RESNET}, file


def list_cases(roots: Mapping[str, Path]) -> list[XrayCase]:
    """The pictures of all sets, in order of set and path; none is opened.

    Raises:
        DatasetError: a folder that is not its dataset.
    """
    return [case for name in sorted(roots) for case in read_radiographs(name, roots[name])]


def read_pool(
    experiment: XrayExperiment, cases: Sequence[XrayCase], folder: Path, progress: Progress = silent
) -> ImagePool:
    """Look at every picture once, and find those that are one.

    Raises:
        DatasetError: not one picture can be read.
    """
    prints = _prints(cases, folder / "data" / PRINTS_FILE, progress)
    kept = [i for i in range(len(cases)) if i not in prints.unreadable]
    if not kept:
        raise DatasetError("not one picture of the datasets can be read")
    place = {old: new for new, old in enumerate(kept)}
    readable = [cases[i] for i in kept]
    pairs = [
        Pair(place[p.a], place[p.b], p.correlation, p.equal)
        for p in find_pairs(prints, experiment.split.correlation)
        if p.a in place and p.b in place
    ]
    unreadable = tuple((f"{cases[i].dataset}/{cases[i].case}", why) for i, why in sorted(prints.unreadable.items()))
    return ImagePool(tuple(readable), tuple(patient_groups(readable, pairs)), tuple(pairs), unreadable)


def _prints(cases: Sequence[XrayCase], path: Path, progress: Progress) -> Prints:
    """Prints from the study folder when the same files gave them, else taken and kept."""
    listed = [f"{c.dataset}/{c.case}|{_content(c.path)}" for c in cases]
    try:
        with np.load(path, allow_pickle=False) as held:
            if held["listed"].tolist() == listed:
                unreadable = {int(k): v for k, v in parse_json(str(held["unreadable"])).items()}
                return Prints(tuple(held["digests"].tolist()), held["small"], unreadable)
    except (OSError, ValueError, KeyError, EOFError):
        pass
    prints = take_prints(cases, lambda done, total: progress("looking for copies", done, total))
    with atomic_path(path) as temporary:
        np.savez(
            temporary,
            listed=np.array(listed),
            digests=np.array(prints.digests),
            small=prints.small,
            unreadable=np.array(json.dumps(prints.unreadable)),
        )
    return prints


def _content(path: Path) -> str:
    try:
        return file_content(path)
    except OSError:
        return "absent"


def dataset_1(experiment: XrayExperiment, pool: ImagePool, repeat: int) -> SplitSet:
    """Children without COVID-19 and adults with it: section 3.2 of the paper."""
    data, positive = experiment.data, experiment.data.classes_1[-1]
    own = [
        i
        for i, case in enumerate(pool.cases)
        if (case.dataset == data.children and case.label != positive)
        or (case.dataset in data.covid and case.label == positive)
    ]
    return _make(experiment, pool, "Dataset_1", own, data.classes_1, data.per_class_1, repeat)


def dataset_0(experiment: XrayExperiment, pool: ImagePool, repeat: int, later: SplitSet) -> SplitSet:
    """Children with their three classes, without patients whom `later` tests or validates on (``data.apart``)."""
    data = experiment.data
    kept_out = set(pool.group_of(later.rows[later.parts != "train"])) if data.apart else set()
    own = [i for i, c in enumerate(pool.cases) if c.dataset == data.children and pool.groups[i] not in kept_out]
    counts = data.per_class_0 or (None,) * len(data.classes_0)
    return _make(experiment, pool, "Dataset_0", own, data.classes_0, counts, repeat)


def adults(experiment: XrayExperiment, pool: ImagePool, repeat: int) -> SplitSet | None:
    """The control set: healthy adults, split so that a remedy may learn from some and be tested on others."""
    own = [i for i, case in enumerate(pool.cases) if case.dataset == experiment.data.adults and case.label == "normal"]
    if len({pool.groups[i] for i in own}) < 3:
        return None
    share = 1 - experiment.honest.adults_train
    return _make(experiment, pool, "adults", own, ("normal",), (None,), repeat, control_share=share)


def _make(
    experiment: XrayExperiment,
    pool: ImagePool,
    name: str,
    own: Sequence[int],
    classes: Sequence[str],
    counts: Sequence[int | None],
    repeat: int,
    *,
    control_share: float | None = None,
) -> SplitSet:
    """Draw and split; with a `control_share` that much is test, by group whatever the study does."""
    settings, seed = experiment.split, experiment.split.seed + repeat
    chosen = pool.at(own)
    shortage = cast(Literal["all", "error"], experiment.data.shortage)
    drawn = select_radiographs(chosen, classes, counts, seed, shortage=shortage)
    parts = split_radiographs(
        drawn,
        chosen,
        [pool.groups[i] for i in own],
        by=cast(Literal["group", "image"], settings.by if control_share is None else "group"),
        test_share=settings.test_share if control_share is None else control_share,
        validation_share=settings.validation_share,
        seed=seed,
    )
    rows = np.asarray(own, np.int64)[drawn.rows]
    leaking_groups = tuple(leaking(parts, pool.group_of(rows)))
    return SplitSet(name, rows, drawn.labels, parts, drawn.classes, drawn.notes, leaking_groups)


@dataclass(eq=False)
class ImageCache:
    """Squares of the pool's pictures, made when they are first asked for."""

    pool: ImagePool  # the pictures
    folder: Path  # where the arrays are kept
    few: NDArray[np.int64]  # the rows that recipes are made of,
    # but for this one, which is made of all (Dataset_0 is shown so); None: there is no such recipe
    plain: PictureRecipe | None
    progress: Progress = silent
    _made: dict[PictureRecipe, tuple[PictureSet, NDArray[np.int64]]] = field(default_factory=dict)

    def get(self, recipe: PictureRecipe, rows: NDArray[np.int64]) -> tuple[PictureSet, NDArray[np.int64]]:
        """The squares of a recipe, and where in them the pool's `rows` lie."""
        if recipe not in self._made:
            held = np.arange(len(self.pool.cases)) if recipe == self.plain else self.few
            made = build_pictures(self.pool.at(held), recipe, self.folder, progress=self.progress)
            place = np.full(len(self.pool.cases), -1, np.int64)
            place[held] = np.arange(len(held))
            self._made[recipe] = made, place
        made, place = self._made[recipe]
        where = place[rows]
        assert (where >= 0).all(), "a picture was asked for that the study does not use"
        return made, where


def licences(pool: ImagePool, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Datasets of some rows with licence, citation and number of pictures, for model cards."""
    found: dict[tuple[str, str, str], int] = {}
    for case in pool.at(rows):
        key = case.dataset, case.licence, case.citation
        found[key] = found.get(key, 0) + 1
    names = ("dataset", "licence", "citation")
    return [{**dict(zip(names, key, strict=True)), "pictures": n} for key, n in sorted(found.items())]
