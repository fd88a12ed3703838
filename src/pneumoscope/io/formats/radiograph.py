"""One radiograph in: PNG, JPEG, GIF, BMP, TIFF, WebP or DICOM, recognised by content, to a `Radiograph`.

Pictures are opened only after their size has been read from the header: nothing is decoded that is no radiograph's
size. What is refused and accepted is listed in docs/reference/input-codes.md under ``IN-XRY``.
"""

from __future__ import annotations

import io as streams
import warnings
import zlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import Finding, PneumoscopeError, ReadError
from pneumoscope.io.dicom.read import DicomReaders
from pneumoscope.io.kinds import case_name, files_below, sniff
from pneumoscope.io.stored import Place, names_failures, open_regular
from pneumoscope.volume import Radiograph

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

FAMILY = "IN-XRY"
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".dcm")
READABLE = "PNG, JPEG, TIFF, BMP, GIF, WebP or DICOM (CR, DX)"

MAX_BYTES = 512 * 2**20
BOMB_RATIO, BOMB_FLOOR_BYTES = 100, 64 * 2**20
"""A picture that unpacks more than 100-fold is refused once it is larger than 64 MiB."""

MIN_SIDE = 64  # Pixels; smaller pictures show no lung
MAX_PIXELS = 60_000_000  # Twice the largest detectors (about 4300 x 3500 would be 15 million)

_TAIL_BYTES = 4096
_BLOCK_ROWS = 256
COLOUR_SHARE, COLOUR_STEP = 0.02, 24 / 255
"""A picture is coloured when more than 2 % of its pixels have channels further apart than this."""


@names_failures
def read_radiograph(
    path: str | Path, *, case: str | None = None, least_side: int | None = None, readers: DicomReaders | None = None
) -> Radiograph:
    """One picture as grey levels in [0, 1], bone bright.

    8-bit pictures keep their levels (0 is 0, 255 is 1). Pictures of more bits and DICOM without a window are stretched
    between their 0.5 and 99.5 percentiles. Transparent parts become black; EXIF turns are followed; of several frames
    the first is taken.

    Args:
        case: name for outputs; by default the file's stem.
        least_side: when given, larger pictures are shrunk by a whole number while they are read, so that neither side
            falls below this: a JPEG is not even decoded in full. Sizes are checked and findings reported all the same.
        readers: of DICOM, kept from file to file; without them one is started and ended.

    Raises:
        ReadError: with an IN-XRY code (IN-DCM for damaged DICOM).
    """
    place = Place(Path(path), FAMILY)
    with open_regular(place) as stream:
        head = stream.read(4096)
        size = stream.seek(0, 2)
    if not head:
        raise place.error(81, "is empty (0 bytes), expected a picture; fetch it again")
    if size > MAX_BYTES:
        raise place.error(84, f"has {size >> 20} MiB, expected a picture of at most {MAX_BYTES >> 20} MiB")
    if head[128:132] == b"DICM":
        name = case or _name(place.path)
        with nullcontext(readers) if readers is not None else DicomReaders() as kept:
            return _read_dicom(Place(Path(name), FAMILY), kept.read(place.path, name, least_side))
    return _read_picture(place, case or _name(place.path), least_side)


def _read_dicom(place: Place, answer: tuple[NDArray[np.float32] | None, dict[str, Any]]) -> Radiograph:
    """The picture of a DICOM file; `place` is called after the case, for the file's name may be a patient's."""
    pixels, reply = answer
    require_size(place, *reply["stored_shape"])
    if pixels is None:
        raise place.error(82, "could not be read to its end; export it again")
    require_content(place, pixels)
    spacing = None if reply["spacing_mm"] is None else tuple(reply["spacing_mm"])
    findings = tuple(Finding(**finding) for finding in reply["findings"])
    return Radiograph(pixels, place.path.name, spacing, findings, {k: v for k, v in reply["source"].items() if v})


def require_size(place: Place, rows: int, columns: int) -> None:
    """Refuse what is smaller or larger than any radiograph: IN-XRY-083 and -084."""
    if min(rows, columns) < MIN_SIDE:
        raise place.error(83, f"has {rows} x {columns} pixels, expected at least {MIN_SIDE} along each side")
    if rows * columns > MAX_PIXELS:
        raise place.error(84, f"has {rows} x {columns} pixels, no radiograph has that many; make it smaller")


def require_content(place: Place, pixels: NDArray[np.float32]) -> None:
    """Refuse one grey level everywhere: IN-XRY-086."""
    if float(np.ptp(pixels)) < 2 / 255:
        raise place.error(86, "holds one grey level everywhere; it shows nothing")


def find_radiographs(path: str | Path) -> list[Path]:
    """The pictures at or below a path, sorted by name: by suffix, or DICOM by its mark whatever it is called.

    Hidden files, what operating systems leave behind and `DICOMDIR` are passed over.

    Raises:
        ReadError: IN-XRY-081, nothing there or no picture in the folder.
    """
    start = Path(path)
    place = Place(start, FAMILY)
    if start.is_dir():
        found = sorted(p for p in files_below(start) if p.suffix.lower() in SUFFIXES or _has_mark(p))
        if not found:
            raise place.error(81, f"is a folder without a picture; expected {READABLE}")
        return found
    if not start.exists():
        raise place.error(81, "no such file or folder; check the path")
    return [start]


def _has_mark(path: Path) -> bool:
    """Whether a file of another name, or of none, is DICOM: they are often called after their UID. No DICOMDIR."""
    return path.name.upper() != "DICOMDIR" and sniff(path)[0] == "dicom"


@dataclass(frozen=True)
class ListedRadiograph:
    """One input."""

    name: str  # its own in the outputs
    path: Path  # where it lies
    problem: PneumoscopeError | None = None  # why it cannot be used, when that is known already


def list_radiographs(inputs: Sequence[str | Path]) -> list[ListedRadiograph]:
    """Every picture once, with a name of its own; inputs that are none, with what is wrong."""
    found: list[ListedRadiograph] = []
    seen: set[Path] = set()
    for given in inputs:
        try:
            paths = find_radiographs(given)
        except PneumoscopeError as problem:
            found.append(ListedRadiograph(_name(Path(given)) or "input", Path(given), problem))
            continue
        for path in paths:
            if path.resolve() not in seen:
                seen.add(path.resolve())
                found.append(ListedRadiograph(_name(path), path))
    return _named_apart(found)


def _name(path: Path) -> str:
    """The file's stem; for DICOM a keyed hash, because its name may be a patient's."""
    if sniff(path)[0] == "dicom":
        from pneumoscope.io.dicom.search import single

        return single(path, None).case.replace("ct-", "xr-", 1)
    return case_name(path.with_suffix("") if path.suffix.lower() in SUFFIXES else path)


def _named_apart(found: Sequence[ListedRadiograph]) -> list[ListedRadiograph]:
    """Names of their own, also where a file system does not tell upper from lower case."""
    taken: set[str] = set()
    result = []
    for item in found:
        name, number = item.name, 1
        while name.casefold() in taken:
            number += 1
            name = f"{item.name}-{number}"
        taken.add(name.casefold())
        result.append(replace(item, name=name))
    return result


def _read_picture(place: Place, case: str, least_side: int | None) -> Radiograph:
    from PIL import Image, UnidentifiedImageError

    with open_regular(place) as stream:
        data = stream.read()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(streams.BytesIO(data), formats=FORMATS)
            pixels, findings = _decoded(picture, data, place, least_side)
            kind = str(picture.format)
    except ReadError:
        raise
    except UnidentifiedImageError:
        raise place.error(81, f"cannot be read as an image; expected {READABLE}") from None
    except Image.DecompressionBombError:
        raise place.error(84, "has more pixels than any radiograph; make it smaller") from None
    except Exception as error:  # Pillow raises nearly everything for damaged files
        raise place.error(82, f"is damaged or cut off ({type(error).__name__}); fetch or export it again") from None
    require_content(place, pixels)
    return Radiograph(pixels, case, None, tuple(findings), {"format": kind})


def _decoded(
    picture: ImageFile, data: bytes, place: Place, least_side: int | None
) -> tuple[NDArray[np.float32], list[Finding]]:
    """Grey levels, once the size in the header is one of a radiograph, and what was odd."""
    from PIL import ImageOps

    columns, rows = picture.size
    require_size(place, rows, columns)
    size = 4 if picture.mode in ("I", "F") else 2 if picture.mode.startswith("I") else len(picture.getbands())
    unpacked = rows * columns * size
    if unpacked > max(BOMB_FLOOR_BYTES, BOMB_RATIO * len(data)):
        raise place.error(84, f"unpacks {unpacked // len(data)}-fold to {unpacked >> 20} MiB, no radiograph does")
    findings: list[Finding] = []
    frames = getattr(picture, "n_frames", 1)
    if frames > 1:
        findings.append(place.note(87, f"holds {frames} frames; the first was taken"))
    kind = str(picture.format)
    cut_off = place.error(82, "is cut off: its end is missing; fetch or export it again")
    if not _ends_well(kind, data):
        raise cut_off
    if least_side and kind == "JPEG":
        picture.draft(None, (least_side, least_side))
    picture.load()
    if kind == "PNG" and _ends_black(picture) and not _png_is_whole(data, rows):
        raise cut_off
    pixels, coloured = _grey(ImageOps.exif_transpose(_shrunk(picture, least_side)))
    if coloured > COLOUR_SHARE:
        findings.append(place.note(85, f"{coloured:.0%} of the picture is coloured; radiographs are grey"))
    return pixels, findings


def _ends_well(kind: str, data: bytes) -> bool:
    """Whether the mark of the format's end is there: decoders fill in what is missing without a word."""
    if kind == "PNG":
        return b"IEND" in data[-_TAIL_BYTES:]
    if kind == "JPEG":
        return b"\xff\xd9" in data[-_TAIL_BYTES:]
    return True


def _ends_black(picture: Image) -> bool:
    """Whether the last row is 0 throughout, as rows are that were never decoded."""
    columns, rows = picture.size
    return not any(picture.crop((0, rows - 1, columns, rows)).tobytes())


def _shrunk(picture: Image, least_side: int | None) -> Image:
    """Boxes of whole pixels averaged; pictures of more than 8 bits, and with transparency, stay as they are."""
    factor = min(picture.size) // least_side if least_side else 1
    return picture.reduce(factor) if factor > 1 and picture.mode in ("L", "RGB") else picture


def _png_is_whole(data: bytes, rows: int) -> bool:
    """Whether the compressed rows of a PNG are all there; Pillow leaves missing ones black."""
    bits = data[24] * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(data[25], 1)
    if data[28]:  # interlaced: rows lie in seven passes, Pillow finds a missing one
        return True
    columns = int.from_bytes(data[16:20], "big")
    expected, got, at = rows * (1 + (columns * bits + 7) // 8), 0, 8
    engine = zlib.decompressobj()
    try:
        while at + 8 <= len(data) and got < expected and not engine.eof:
            length = int.from_bytes(data[at : at + 4], "big")
            if data[at + 4 : at + 8] == b"IDAT":
                got += len(engine.decompress(data[at + 8 : at + 8 + length], expected - got))
            at += 12 + length
    except zlib.error:
        return False
    return got >= expected


def _grey(picture: Image) -> tuple[NDArray[np.float32], float]:
    """(rows, columns) in [0, 1] and the share of pixels that are coloured."""
    if picture.mode in ("1", "L"):
        return np.asarray(picture.convert("L")).astype(np.float32) / np.float32(255), 0.0
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture).astype(np.float32)
        low, high = (float(v) for v in np.percentile(values[np.isfinite(values)], (0.5, 99.5)))
        stretched = (values - low) / (high - low) if high > low else np.zeros_like(values)
        return np.asarray(np.clip(np.nan_to_num(stretched), 0, 1)).astype(np.float32), 0.0
    if picture.mode == "RGB":
        red, green, blue = (np.asarray(band) for band in picture.split())
        if np.array_equal(red, green) and np.array_equal(red, blue):
            return red.astype(np.float32) / np.float32(255), 0.0
    return _grey_of_colours(picture)


def _grey_of_colours(picture: Image) -> tuple[NDArray[np.float32], float]:
    """As `_grey`, block by block: colours take four bytes a pixel as stored and sixteen as numbers."""
    columns, rows = picture.size
    grey = np.empty((rows, columns), np.float32)
    coloured = 0
    for top in range(0, rows, _BLOCK_ROWS):
        block = picture.crop((0, top, columns, min(rows, top + _BLOCK_ROWS)))
        channels = np.asarray(block.convert("RGBA"), np.uint8)
        colours = channels[..., :3].astype(np.float32) / 255 * (channels[..., 3:].astype(np.float32) / 255)
        coloured += int(np.count_nonzero(np.ptp(colours, axis=2) > COLOUR_STEP))
        grey[top : top + _BLOCK_ROWS] = colours @ np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
    return np.clip(grey, 0, 1, out=grey), coloured / grey.size
