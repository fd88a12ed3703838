"""Which scans a path means: one file, a DICOM folder, a folder of scans, or a CSV manifest. The one search for all."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from pneumoscope.errors import InputError
from pneumoscope.io.contents import DicomPlace, contents_of
from pneumoscope.io.kinds import (
    NO_PICTURES,
    PICTURES,
    READABLE,
    case_name,
    files_below,
    is_scan_name,
    require_kind,
    short_hash,
    suffix_of,
)
from pneumoscope.io.scan_ref import ScanRef, is_manifest, read_manifest
from pneumoscope.progress import Progress, silent

MANIFEST = "manifest.csv"


@dataclass(frozen=True)
class Listing:
    """What a search found.

    Attributes:
        scans: one entry per case, in the order given, names unique.
        passed: what was passed over, in words, and how often.
    """

    scans: tuple[ScanRef, ...]
    passed: Mapping[str, int] = field(default_factory=dict)

    @property
    def ignored(self) -> int:
        """How many files, links and series were passed over."""
        return sum(self.passed.values())

    def sentence(self) -> str:
        """``12 scans, 2 masks beside their scans and 1 other file ignored; first: chest_01``."""
        scans = f"{len(self.scans)} scan{'s' if len(self.scans) != 1 else ''}"
        ignored = f", {_in_words(self.passed)} ignored" if self.ignored else ""
        return f"{scans}{ignored}" + (f"; first: {self.scans[0].case}" if len(self.scans) > 1 else "")


def find_scans(paths: str | Path | Sequence[str | Path], *, series: str = "best") -> list[ScanRef]:
    """The scans that one or several paths mean, one case each; `list_scans` also counts what was passed over.

    Raises:
        ReadError: a path that does not exist or a file that is no image.
        InputError: nothing found, or a manifest that is not usable.
    """
    return list(list_scans(paths, series=series).scans)


def list_scans(
    paths: str | Path | Sequence[str | Path], *, series: str = "best", progress: Progress = silent
) -> Listing:
    """As `find_scans`, with what was passed over.

    A file and a zip are one case each. A ``.csv`` file is a manifest, so is ``manifest.csv`` in a folder that is given.
    In any other folder every image is a case, and every DICOM study is one, however its files are spread over folders.
    Passed over are masks beside their scans, folders named after masks, images among DICOM slices, what this program
    wrote, files of operating systems, and links to what is listed anyway; other links are followed.
    Images in folders are recognised by name and not opened, so a damaged one is listed, and refused by `read_volume`.

    Args:
        paths: what the user gave.
        series: of each DICOM study ``best`` (by the rules of `pneumoscope.io.dicom.choice`), ``all`` (a case each), a
            number in the list of its series, or a SeriesInstanceUID.
        progress: called per folder that is searched.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise InputError(f"no scan was given; expected {READABLE}, a folder of those or a CSV manifest")
    found: list[ScanRef] = []
    passed: Counter[str] = Counter()
    seen: set[tuple[Path, str | None]] = set()
    for number, path in enumerate(map(Path, given), start=1):
        manifest = path / MANIFEST if path.is_dir() else path
        if suffix_of(path) == ".csv" or (path.is_dir() and is_manifest(manifest)):
            found += [ref for row in read_manifest(manifest) for ref in _of_row(row, series)]
            continue
        refs, left = _of_path(path, series, progress)
        if not refs:
            hidden = any("DICOM" in what for what in left)  # its name may be a patient's
            words = f"; {_in_words(left)} ignored" if left.total() else ""
            pictures = path.is_dir() and any(suffix_of(p) in PICTURES for p in islice(files_below(path), 1000))
            message = f"holds no scan, expected {READABLE}{words}" + f"; {NO_PICTURES}" * pictures
            raise InputError(message, path=f"input {number}" if hidden else path, file=path)
        passed += left
        for ref in refs:
            key = ref.path.resolve(), ref.series
            passed["scans given twice"] += key in seen
            if key not in seen:
                seen.add(key)
                found.append(ref)
    return Listing(tuple(_with_unique_names(found)), {what: count for what, count in passed.items() if count})


_NOUN = re.compile(r"\b(scan|mask|image|link|file)s\b")
"""The noun that is counted, in the words of what was ignored."""


def _in_words(passed: Mapping[str, int]) -> str:
    def worded(what: str, n: int) -> str:
        return f"{n} {what}" if n > 1 else f"1 {_NOUN.sub(lambda found: found[1], what, count=1)}"

    counts = [worded(what, n) for what, n in passed.items() if n]
    return " and ".join(", ".join(counts).rsplit(", ", 1))


def _of_path(path: Path, series: str, progress: Progress = silent) -> tuple[list[ScanRef], Counter[str]]:
    """The cases of one input, names not yet unique, and what was skipped."""
    asked = None if series in ("best", "all") else series
    if not path.is_dir():
        kind = require_kind(path)
        if kind == "dicom":
            from pneumoscope.io.dicom.search import single

            return [single(path, asked)], Counter()
        if kind == "zip" and series == "all":
            return _of_zip(path), Counter()
        return [ScanRef(case_name(path), path, series=asked)], Counter()
    inside = contents_of(path, progress)
    places = [place for place in inside.found if isinstance(place, DicomPlace)]
    studies: dict[Path, list[ScanRef]] = {}
    if places:
        from pneumoscope.io.dicom.search import studies_of

        studies, left = studies_of(places, series)
        inside.passed += left
    refs: list[ScanRef] = []
    for item in inside.found:
        refs += studies[item.path] if isinstance(item, DicomPlace) else [ScanRef(case_name(item), item, series=asked)]
    return refs, inside.passed


def _of_zip(path: Path) -> list[ScanRef]:
    """Every series of the study in a zip."""
    from pneumoscope.io.archive import extracted

    with extracted(path) as folder:
        refs, _ = _of_path(folder, "all")
    if len(refs) <= 1:
        return [ScanRef(case_name(path), path)]
    return [replace(ref, path=path, case=f"{case_name(path)}-{n}") for n, ref in enumerate(refs, start=1)]


def _of_row(row: ScanRef, series: str) -> list[ScanRef]:
    """The cases of a manifest's row; its name stays, with a number where ``all`` makes several cases of it."""
    if not row.path.is_dir():
        return [row]
    found = [ref for ref in _of_path(row.path, series)[0] if ref.series is not None]
    if len(found) > 1 and series != "all":  # the reader refuses the row and lists what is there
        return [row]
    names = [row.case] if len(found) == 1 else [f"{row.case}-{n}" for n in range(1, len(found) + 1)]
    return [
        replace(row, case=name, path=ref.path, series=ref.series, identity=ref.identity, findings=ref.findings)
        for name, ref in zip(names, found, strict=True)
    ] or [row]


def _with_unique_names(refs: Sequence[ScanRef]) -> list[ScanRef]:
    """Names that are different on every file system: by their folders where stems repeat, else by a short hash.

    Of names that differ only in case or normal form the plainest stays; no name depends on how many others there are.
    """
    clashes = Counter(_folded(ref.case) for ref in refs)
    folders: dict[str, set[Path]] = {}
    for ref in refs:
        folders.setdefault(_folded(ref.case), set()).add(ref.path.parent)
    named = [
        replace(ref, case=case_name(f"{ref.path.parent.name}_{ref.case}"))
        if clashes[_folded(ref.case)] > 1 and len(folders[_folded(ref.case)]) > 1 and is_scan_name(ref.path)
        else ref  # a DICOM folder's parent may carry the patient's name
        for ref in refs
    ]
    taken: dict[str, int] = {}
    for index in sorted(range(len(named)), key=lambda n: _plainness(named[n])):
        case = named[index].case
        while _folded(case) in taken:
            case = f"{named[index].case}-{_mark(named[index], len(taken) if case != named[index].case else 0)}"
        taken[_folded(case)] = index
        named[index] = replace(named[index], case=case)
    return named


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def _plainness(ref: ScanRef) -> tuple[bool, int, int, str, str]:
    name = ref.path.name
    changed = unicodedata.normalize("NFC", name) != name
    return changed, sum(map(str.isupper, name)), len(name), name, str(ref.path)


def _mark(ref: ScanRef, again: int) -> str:
    """A short hash of where the scan lies; keyed for DICOM, whose folders may carry names of patients."""
    where = f"{ref.path.parent.name}/{ref.path.name}" + (f"/{ref.path}/{ref.series}/{again}" if again else "")
    if is_scan_name(ref.path):
        return short_hash(where)
    from pneumoscope.io.dicom.deidentify import case_name as hashed

    return hashed(f"{where}/{ref.path.parent.parent.name}").removeprefix("ct-")[:6]
