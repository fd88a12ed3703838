"""nnU-Net's layout and the Medical Segmentation Decathlon's, as cases: ``dataset.json`` says what the labels are.

It is read without trust: paths in it must stay in its folder, labels may stand either way round. The Decathlon's zips
are full of ``._name`` files of macOS; they are in no list here, and entries that name them are passed over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pneumoscope.datasets.case import SAME_LABELS, Case, CaseFiles, LabelledScan, make_case
from pneumoscope.datasets.formats.label_names import LabelMap, label_map, load_with_names
from pneumoscope.datasets.formats.layout import (
    SCAN_SUFFIXES,
    entries_of,
    one_inside,
    refuse_links_out,
    require_folder,
    require_inside,
    shown,
)
from pneumoscope.errors import DatasetError, InputError
from pneumoscope.io.files import read_csv
from pneumoscope.io.kinds import case_name, suffix_of
from pneumoscope.io.read import read_lungs

NAME = "dataset.json"
MAX_DEPTH = 3
MAX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Description:
    """What a ``dataset.json`` says."""

    folder: Path  # where it lies
    labels: Mapping[str, tuple[int, ...]]  # name -> labels on disk (several for a region)
    channels: Mapping[int, str]  # channel number -> name
    ending: str  # suffix of the files, e.g. ``.nii.gz``
    # as stated, "" where not
    licence: str
    citation: str
    raw: Mapping[str, Any]  # all of it

    @property
    def path(self) -> Path:
        """The file itself."""
        return self.folder / NAME

    def inside(self, path: Any) -> Path:
        """A path of the description as a file below its folder; ``X.nii`` for ``X.nii.gz`` and the reverse will do.

        Raises:
            DatasetError: it leads out of the folder, or there is nothing.
        """
        if not isinstance(path, str) or not path.strip():
            raise DatasetError(f"names {path!r} where a file is expected; write it again", path=self.path)
        target = self.folder / path.strip()
        real = self.folder.resolve()
        if ".." in Path(path).parts or not target.parent.resolve().is_relative_to(real):
            raise DatasetError(f"names {path!r}, which leads out of its folder; copy the file into it", path=self.path)
        found = files_of(target.parent, suffix_of(target), real)
        stem = target.name.removesuffix(suffix_of(target))
        if stem not in found:
            raise DatasetError(
                f"names {path!r}, which is not there: half a download? Copy or unzip the rest", path=self.path
            )
        return found[stem]


def read_description(root: str | Path, kind: str) -> Description:
    """The description of the one dataset in a folder, at most three levels below it.

    Args:
        root: the dataset's folder or one above.

    Raises:
        DatasetError: no folder, no description, several, a damaged one.
    """
    start = Path(root)
    require_folder(start, f"{kind} with {NAME}")
    refuse_links_out(start)
    found = _search(start)
    if not found:
        raise DatasetError(f"holds no {NAME}; expected {kind}", path=start)
    if len(found) > 1:
        names = ", ".join(str(p.parent.relative_to(start)) for p in found[:4])
        raise DatasetError(f"holds {len(found)} datasets ({names} ...); name the folder of one", path=start)
    return _described(found[0])


def files_of(folder: Path, ending: str, real: Path) -> dict[str, Path]:
    """The files of a folder with an ending, by name without it; {} for a missing folder.

    For NIfTI both endings and folders called ``X.nii`` with one file in them count. Hidden files (``._x`` of macOS) do
    not. Links must stay below `real`.

    Raises:
        DatasetError: a link that leads out or nowhere, a folder ``X.nii`` without exactly one file, a name twice.
    """
    if not folder.is_dir():
        return {}
    endings = SCAN_SUFFIXES if ending in SCAN_SUFFIXES else (ending,)
    found: dict[str, Path] = {}
    for entry in entries_of(folder):
        if suffix_of(entry.name) not in endings:
            continue
        path = Path(entry.path)
        if entry.is_symlink():
            require_inside(path, real)
        stem = entry.name[: -len(suffix_of(entry.name))]
        if stem in found:
            raise DatasetError(f"is there twice, as {found[stem].name} and {path.name}; keep one", path=path)
        found[stem] = one_inside(path, real) if entry.is_dir() else path
    return found


def _search(start: Path) -> list[Path]:
    level = [start]
    for _ in range(MAX_DEPTH + 1):
        found = [folder / NAME for folder in level if (folder / NAME).is_file()]
        if found:
            return found
        level = [Path(e.path) for folder in level for e in entries_of(folder) if e.is_dir(follow_symlinks=False)]
    return []


def _described(path: Path) -> Description:
    try:
        data = path.read_bytes()
        held = json.loads(data) if len(data) <= MAX_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        said = str(error).split(":")[0]
        raise DatasetError(f"is no JSON or was cut off ({said}); fetch it again", path=path) from None
    if not isinstance(held, dict) or not isinstance(held.get("labels"), dict):
        raise DatasetError("is not a dataset description: expected JSON with labels", path=path)
    ending = held.get("file_ending") or ".nii.gz"
    if not isinstance(ending, str) or not ending.startswith("."):
        raise DatasetError(f"has the file ending {ending!r}, expected one like .nii.gz", path=path)
    return Description(
        path.parent,
        _labels(held["labels"], path),
        _channels(held.get("channel_names") or held.get("modality") or {"0": "CT"}, path),
        ending.lower(),
        _text(held.get("licence") or held.get("license")),
        _text(held.get("reference")),
        held,
    )


def _labels(labels: Mapping[str, Any], path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> labels, whichever of the two stands first: ``{"lung": 1}``, ``{"1": "lung"}``, ``{"lung": [1, 2]}``."""
    found: dict[str, tuple[int, ...]] = {}
    for key, value in labels.items():
        numbers = [_whole(item) for item in (value if isinstance(value, list) else [value])]
        if numbers and all(number is not None for number in numbers):
            name, several = key, tuple(number for number in numbers if number is not None)
        elif _whole(key) is not None and isinstance(value, str):
            name, several = value, (_whole(key) or 0,)
        else:
            raise DatasetError(f"has the label {key!r}: {value!r}, expected a name and whole numbers", path=path)
        found[name] = (*found.get(name, ()), *several)
    return found


def _whole(value: Any) -> int | None:
    """A label number from 0 to 255, also as text; None for anything else."""
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value.strip()[:9])
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255 else None


def _channels(channels: Any, path: Path) -> dict[int, str]:
    if isinstance(channels, dict) and channels:
        found = {_whole(key): str(value) for key, value in channels.items()}
        if None not in found:
            return {key: value for key, value in found.items() if key is not None}
    raise DatasetError('has no usable channel names, expected {"0": "CT"}', path=path)


def _text(value: Any) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""


DECATHLON_KIND = "the Decathlon's layout (imagesTr, labelsTr)"


def read_decathlon_cases(root: str | Path, *, labels: Mapping[str, str] | None = None) -> list[Case]:
    """The cases listed as ``training`` (source ``train``) and ``test`` (source ``test``, without masks).

    Args:
        root: the folder of the task, or one above that holds no other.
        labels: what names of ``dataset.json`` mean, where they are not known here (see `read_nnunet_cases`).

    Raises:
        DatasetError: no such folder, a damaged description, unknown label names, files that are listed and not
            there, paths and links that lead out.
    """
    held = read_description(root, DECATHLON_KIND)
    known = label_map(held.labels, labels, held.path)
    cases = []
    for part, source in (("training", "train"), ("test", "test")):
        entries = held.raw.get(part) or []
        if not isinstance(entries, list):
            raise DatasetError(f"has no list of scans in {part}; write it again", path=held.path)
        for entry in entries:
            image, mask = _entry(entry, held)
            if Path(image).name.startswith("._"):
                continue
            if mask is None and source == "train":
                raise DatasetError(f"lists the training scan {image!r} without a mask", path=held.path)
            cases.append(
                _decathlon_case(held, known, source, held.inside(image), None if mask is None else held.inside(mask))
            )
    if not cases:
        raise DatasetError("lists no scan (training and test are empty); is it the Decathlon's?", path=held.path)
    return cases


def _entry(entry: Any, held: Description) -> tuple[str, str | None]:
    if isinstance(entry, str):
        return entry, None
    if isinstance(entry, dict) and isinstance(entry.get("image"), str):
        return entry["image"], entry.get("label")
    raise DatasetError(f"lists {entry!r} where a scan is expected", path=held.path)


def _decathlon_case(held: Description, known: LabelMap, source: str, image: Path, mask: Path | None) -> Case:
    name = case_name(image)
    files = known.files(image, mask) if mask is not None else CaseFiles(image)
    load = partial(load_with_names, name, files, known)
    return make_case("decathlon", name, load, files, source=source, licence=held.licence, citation=held.citation)


NNUNET_KIND = "nnU-Net's layout (imagesTr, labelsTr)"
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
    held = read_description(root, NNUNET_KIND)
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
            cases.append(_nnunet_case(held, known, origins.get(name, {}), source, name, files))
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


def _nnunet_case(
    held: Description, known: LabelMap, origin: Mapping[str, str], source: str, name: str, found: Files
) -> Case:
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
        known = replace(known, has_sides=dict(read_lungs(files.lungs).names) != {1: "lung"})
    return load_with_names(case, files, known)
