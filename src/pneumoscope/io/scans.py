"""Which scans a path means: one file, a DICOM folder, a folder of scans, or a CSV manifest. The one search for all."""

from __future__ import annotations

import csv
import io
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from pneumoscope.errors import InputError
from pneumoscope.io.contents import DicomPlace, ScanRef, contents_of
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
from pneumoscope.io.stored import Place, open_regular
from pneumoscope.progress import Progress, silent

REQUIRED = ("case", "image")
OPTIONAL = ("lungs", "infiltrate", "patient", "date", "source")
MANIFEST_COLUMNS = (*REQUIRED, *OPTIONAL)
PATHS = ("case", "image", "lungs", "infiltrate")
"""Columns that do not come out again: paths may say too much, and the case has a column of its own."""

MAX_BYTES = 64 * 2**20


def read_manifest(path: str | Path) -> list[ScanRef]:
    """The scans a CSV manifest lists, in its order. Cells are stripped; all columns but paths are kept in `columns`.

    Cells stand between commas, semicolons or tabs.

    Paths count from the manifest's folder. Each image must exist (file or folder), masks must be files.

    Raises:
        InputError: not such a table, a row without case or image, a path to nothing or to a pipe, a repeated case
            name, or no row at all. The message names the line.
    """
    place = Place(Path(path), "IN-NII")
    with open_regular(place) as stream:
        raw = stream.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise InputError(f"is larger than {MAX_BYTES >> 20} MiB, expected a list of scans", path=path)
    try:
        text = raw.decode("utf-8-sig")
        if first := re.match(r"sep=.\r?\n", text):  # Excel's own line
            text = text[first.end() :]
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=_separator(text), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"is no CSV table in UTF-8 ({error}); save it again as such", path=path) from None
    titles = [cell.strip() for cell in rows[0]] if rows else []
    header = [title.lower() for title in titles]
    missing = [name for name in REQUIRED if name not in header]
    if missing or len(set(header) & {*MANIFEST_COLUMNS}) != sum(name in MANIFEST_COLUMNS for name in header):
        raise InputError(
            f"has the columns {', '.join(header[:12]) or 'none'}; expected case,image and any of "
            f"{','.join(OPTIONAL)}, each once",
            path=path,
        )
    refs: list[ScanRef] = []
    lines: dict[str, int] = {}
    for number, cells in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in cells):
            continue
        own = zip(titles, cells, strict=False)
        columns = tuple((name, cell.strip()) for name, cell in own if name and name.lower() not in PATHS)
        ref = replace(_row(Path(path), number, header, cells), columns=columns)
        if ref.case in lines:
            raise InputError(f"line {number}: case {ref.case!r} stands in line {lines[ref.case]} too", path=path)
        lines[ref.case] = number
        refs.append(ref)
    if not refs:
        raise InputError("lists no scan; expected at least one line below the column names", path=path)
    return refs


def is_manifest(path: Path) -> bool:
    """Whether a file begins with the columns of a manifest."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        first = stream.readline(10_000).decode("utf-8-sig", "replace")
        if first.startswith("sep="):
            first = stream.readline(10_000).decode("utf-8-sig", "replace")
    return set(REQUIRED) <= {cell.strip().strip('"').lower() for cell in first.split(_separator(first))}


def _separator(text: str) -> str:
    """What stands between the cells of the first line: a comma, or the semicolon or tab of other spreadsheets."""
    first = text.partition("\n")[0]
    return max(",;\t", key=first.count)


def _row(path: Path, number: int, header: list[str], cells: list[str]) -> ScanRef:
    if len(cells) > len(header):
        raise InputError(f"line {number} has {len(cells)} cells, expected {len(header)}", path=path)
    row = {name: cell.strip() for name, cell in zip(header, cells, strict=False)}
    empty = [name for name in REQUIRED if not row.get(name)]
    if empty:
        raise InputError(f"line {number} has no {' and no '.join(empty)}", path=path)

    def resolve(column: str) -> Path | None:
        cell = row.get(column)
        if not cell:
            return None
        target = path.parent / cell
        try:
            mode = target.stat().st_mode
        except (OSError, ValueError):
            raise InputError(f"line {number}: {column} {cell!r} does not exist", path=path) from None
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise InputError(f"line {number}: {column} {cell!r} is neither a file nor a folder", path=path)
        return target

    image = resolve("image")
    assert image is not None
    return ScanRef(
        case=case_name(row["case"].replace("/", ":")),  # a name, no path
        path=image,
        lungs=resolve("lungs"),
        infiltrate=resolve("infiltrate"),
        patient=row.get("patient") or None,
        date=row.get("date") or None,
        source=row.get("source") or None,
    )


MANIFEST = "manifest.csv"


@dataclass(frozen=True)
class Listing:
    """What a search found."""

    scans: tuple[ScanRef, ...]  # one entry per case, in the order given, names unique
    passed: Mapping[str, int] = field(default_factory=dict)  # what was passed over, in words, and how often

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
        series: of each DICOM study ``best`` (by the rules of `pneumoscope.io.dicom.choice`), ``all`` (a case each), a
            number in the list of its series, or a SeriesInstanceUID.
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


_NOUN = re.compile(r"\b(scan|mask|image|link|file)s\b")  # The noun that is counted, in the words of what was ignored


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
    from pneumoscope.io.archive import Unpacked

    unpacked = Unpacked(path)
    refs, _ = _of_path(unpacked.folder, "all")
    kept = unpacked if unpacked.stays() else None
    if len(refs) <= 1:
        return [ScanRef(case_name(path), path, unpacked=kept)]
    name = case_name(path)
    return [replace(ref, path=path, case=f"{name}-{n}", unpacked=kept) for n, ref in enumerate(refs, start=1)]


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
