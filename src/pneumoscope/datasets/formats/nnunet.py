"""nnU-Net's layout (imagesTr, labelsTr, dataset.json) as cases, and its ``splits_final.json``.

That file is a list of folds, each ``{"train": [case, ...], "val": [case, ...]}``. What nnU-Net calls ``val`` is what a
fold is scored on at the end, so it is our ``test``. It knows no third part: our validation cases are written as
training cases, and a file read here has none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pneumoscope.datasets.case import SAME_LABELS, Case, CaseFiles, LabelledScan, make_case
from pneumoscope.datasets.formats.decathlon import Description, files_of, read_description
from pneumoscope.datasets.formats.label_names import LabelMap, label_map, load_with_names
from pneumoscope.datasets.formats.layout import shown
from pneumoscope.datasets.splits.folds import Fold, Member
from pneumoscope.errors import DatasetError, InputError
from pneumoscope.io.files import read_csv, read_json, write_json
from pneumoscope.io.kinds import case_name

FILE = "splits_final.json"


def write_nnunet_splits(folds: Sequence[Fold], path: str | Path) -> None:
    """Write folds of one dataset, or of several whose case names differ.

    Raises:
        DatasetError: two cases of one name: nnU-Net knows cases by name only.
    """
    for fold in folds:
        names = [member.case for members in fold.parts.values() for member in members]
        if len(set(names)) < len(names):
            raise DatasetError("two datasets have a case of the same name; nnU-Net needs names that are unique")
    write_json(path, [
        {"train": sorted(m.case for m in (*fold.train, *fold.val)), "val": sorted(m.case for m in fold.test)}
        for fold in folds
    ])  # fmt: skip


def read_nnunet_splits(path: str | Path, members: Sequence[Member]) -> list[Fold]:
    """Read folds; every name must be a case of `members`. Cases that the file does not name take no part.

    Raises:
        DatasetError: the file cannot be read, has another layout, names a case that is not there or that two data
            sets have, or puts a case on both sides of a fold.
    """
    stored = read_json(path, expected=list, error=DatasetError, remedy="write nnU-Net's splits again")
    if not stored or not all(map(_is_fold, stored)):
        raise DatasetError('expected a list of folds like {"train": [case, ...], "val": [case, ...]}', path=path)
    by_case: dict[str, list[Member]] = {}
    for member in members:
        by_case.setdefault(member.case, []).append(member)
    folds = []
    for n, fold in enumerate(stored):
        for name in (*fold["train"], *fold["val"]):
            if len(by_case.get(name, ())) != 1:
                found = "two datasets have" if name in by_case else "the data do not hold"
                raise DatasetError(f"fold {n} names case {name!r}, which {found}", path=path)
        train, test = (tuple(by_case[name][0] for name in dict.fromkeys(fold[key])) for key in ("train", "val"))
        try:
            folds.append(Fold(train, test))
        except DatasetError as error:
            raise DatasetError(f"fold {n}: {error.message}", path=path) from error
    return folds


def _is_fold(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(key), list) and all(isinstance(name, str) for name in value[key])
        for key in ("train", "val")
    )


KIND = "nnU-Net's layout (imagesTr, labelsTr)"
SOURCES = "sources.csv"
_CHANNEL = re.compile(r"(.+)_(\d{4})")


class Files(NamedTuple):
    """The files of one case."""

    image: Path
    mask: Path | None = None
    lungs: Path | None = None


def read_nnunet_cases(
    root: str | Path, *, labels: Mapping[str, str] | None = None, channel: int | str | None = None
) -> list[Case]:
    """Training cases (source ``train``) and those of imagesTs (source ``test``).

    Args:
        root: the folder of the dataset, or one above that holds no other.
        labels: what names of ``dataset.json`` mean, where they are not known here: name -> one of
            `pneumoscope.datasets.formats.label_names.MEANINGS`.
        channel: number or name of the channel that is the CT; by default the only one, or the one called CT.

    Raises:
        DatasetError: no such folder, a damaged description, unknown label names, no channel that is a CT, scans
            without masks, masks without scans, fewer scans than the description counts, paths and links that lead out.
    """
    held = read_description(root, KIND)
    known = label_map(held.labels, labels, held.path)
    number = _channel(held, channel)
    listed = held.raw.get("dataset")
    pairs = _listed(held, listed, number) if isinstance(listed, dict) else _paired(held, "Tr", number)
    if not pairs and not (held.folder / "imagesTs").is_dir():
        raise DatasetError("holds no scans (imagesTr is empty); copy or unzip the rest", path=held.folder)
    expected = held.raw.get("numTraining")
    if isinstance(expected, int) and expected > len(pairs):
        raise DatasetError(
            f"counts {expected} training cases, {len(pairs)} are there: half a download? Copy or unzip the rest",
            path=held.path,
        )
    origins = read_sources(held.folder / SOURCES)
    cases = []
    for source, found in (("train", pairs), ("test", _paired(held, "Ts", number))):
        for name, files in found.items():
            cases.append(_case(held, known, origins.get(name, {}), source, name, files))
    return cases


def read_sources(path: Path) -> Mapping[str, Mapping[str, str]]:
    """Rows of a ``sources.csv`` of `data convert` by case; {} when there is none or it is another table."""
    try:
        return {row["case"]: row for row in read_csv(path, ("case",)) if row["case"]}
    except InputError:
        return {}


def _channel(held: Description, wanted: int | str | None) -> int:
    listed = ", ".join(f"{number} = {name}" for number, name in sorted(held.channels.items()))
    if wanted is not None:
        for number, name in held.channels.items():
            if str(wanted) in (str(number), name):
                return number
        raise DatasetError(f"has no channel {wanted!r}; it has {listed}", path=held.path)
    if len(held.channels) == 1:
        return next(iter(held.channels))
    found = [number for number, name in held.channels.items() if name.strip().lower() == "ct"]
    if len(found) != 1:
        raise DatasetError(
            f"has the channels {listed}, none or several called CT; say which (channel=)", path=held.path
        )
    return found[0]


def _paired(held: Description, part: str, number: int) -> dict[str, Files]:
    """Scan, mask and lung mask by case; masks are asked for in training only."""
    real = held.folder.resolve()
    images_of, labels_of = held.folder / f"images{part}", held.folder / f"labels{part}"
    files = files_of(images_of, held.ending, real)
    found = {
        match[1]: path
        for stem, path in files.items()
        if (match := _CHANNEL.fullmatch(stem)) and int(match[2]) == number
    }
    if files and not found:
        raise DatasetError(
            f"holds files without _{number:04d} in their names: the Decathlon's layout? Read it as decathlon",
            path=images_of,
        )
    masks = files_of(labels_of, held.ending, real)
    lungs = files_of(held.folder / f"lungs{part}", held.ending, real)
    bare = [name for name in found if name not in masks] if part == "Tr" else []
    if bare:
        raise DatasetError(f"{shown(bare)} without mask in labelsTr: half a download? Copy the rest", path=images_of)
    lost = [name for name in masks if name not in found]
    if lost:
        raise DatasetError(
            f"{shown(lost)} without scan in images{part}: half a download? Copy the rest", path=labels_of
        )
    return {name: Files(path, masks.get(name), lungs.get(name)) for name, path in found.items()}


def _listed(held: Description, listed: Mapping[str, object], number: int) -> dict[str, Files]:
    """Cases that the description lists itself (``dataset``), each with its images and label."""
    at = sorted(held.channels).index(number)
    found = {}
    for name, entry in listed.items():
        images = entry.get("images") if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or not isinstance(images, list) or len(images) <= at:
            raise DatasetError(f"lists case {name!r} without its images; write it again", path=held.path)
        found[name] = Files(held.inside(images[at]), held.inside(entry.get("label")))
    return found


def _case(held: Description, known: LabelMap, origin: Mapping[str, str], source: str, name: str, found: Files) -> Case:
    files = known.files(found.image, found.mask) if found.mask is not None else CaseFiles(found.image)
    if found.lungs is not None:
        files = replace(files, lungs=found.lungs, lung_labels=SAME_LABELS)
    title = case_name(name)
    about = {name: origin.get(name, "") for name in ("patient", "source", "licence", "citation", "date")}
    stated = {"source": source, "licence": held.licence, "citation": held.citation}
    about |= {name: about[name] or value for name, value in stated.items()}
    return make_case("nnunet", title, partial(_load, title, files, known), files, **about)


def _load(case: str, files: CaseFiles, known: LabelMap) -> LabelledScan:
    """The case; lungs beside the label map are of no side when their file says so."""
    if files.lungs is not None and files.lung_labels is SAME_LABELS:
        from pneumoscope.io.read import read_lungs

        known = replace(known, has_sides=dict(read_lungs(files.lungs).names) != {1: "lung"})
    return load_with_names(case, files, known)
