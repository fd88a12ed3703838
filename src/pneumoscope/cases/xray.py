"""Classify many radiographs into one folder: one model load, files read side by side, bad ones listed, the rest done.

The folder gets `predictions.csv`, `<image>_heatmap.png` on the size of the picture as it lies on disk, `report.html`
and, last, `run.json`. Only a batch of small squares is in memory; a picture is read again for its heat map.
"""

from __future__ import annotations

import csv
import io
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pneumoscope.cases.batch import RUN_FILE, environment
from pneumoscope.errors import Finding, InputError, PneumoscopeError
from pneumoscope.inference.heatmaps import METHODS, Method, heat, on_picture, overlay, share_in_lung_box
from pneumoscope.inference.radiographs import (
    BATCH,
    DEFAULT_MODEL,
    NONE_OF_THESE,
    Answer,
    RadiographClassifier,
    heeded,
)
from pneumoscope.io.files import atomic_path, prepare_folder, write_json, write_text
from pneumoscope.io.kinds import case_name
from pneumoscope.io.radiograph import SUFFIXES, find_radiographs, read_radiograph
from pneumoscope.progress import Progress, silent

TABLE, REPORT = "predictions.csv", "report.html"
FIRST_COLUMNS = ("image", "status", "prediction", "probability")
LAST_COLUMNS = (
    "reason", "distance", "upright", "features", "heatmap", "heat_class", "heat_in_lung_box", "lung_box_area",
    "findings", "error",
)  # fmt: skip
THUMB_PX = 176
Status = Literal["answered", "abstained", "failed"]


@dataclass(frozen=True)
class XrayOptions:
    """How radiographs are classified.

    Attributes:
        model: a shipped name or a model folder.
        heatmaps: also write heat maps, for all but what is no frontal chest X-ray.
        method: ``grad-cam`` or ``occlusion``.
        device: see `RadiographClassifier`.
        threads: files read side by side.
    """

    model: str | Path = DEFAULT_MODEL
    heatmaps: bool = True
    method: Method = "grad-cam"
    device: str = "auto"
    threads: int = 2

    def as_dict(self) -> dict[str, Any]:
        """Plain values, the model's name instead of its path."""
        return {**asdict(self), "model": Path(self.model).name}


@dataclass(frozen=True)
class XrayRow:
    """What became of one picture.

    Attributes:
        image: its name in outputs; a keyed hash for DICOM.
        status: ``answered``, ``abstained`` or ``failed``.
        answer: None when it failed.
        findings: of the reader.
        heatmap: file name, "" without one.
        heat_class: class the heat map speaks for.
        heat_in_lung_box: share of the heat in the lung box; None without heat.
        lung_box_area: share of the picture that the box is; None without a heat map.
        error: the one line when it failed.
        exit_code: how a command with this picture alone ends.
        thumbnail: JPEG for the contact sheet.
        heat_thumbnail: likewise, of the heat map.
    """

    image: str
    status: Status
    answer: Answer | None = None
    findings: tuple[Finding, ...] = ()
    heatmap: str = ""
    heat_class: str = ""
    heat_in_lung_box: float | None = None
    lung_box_area: float | None = None
    error: str = ""
    exit_code: int = 0
    thumbnail: bytes = b""
    heat_thumbnail: bytes = b""

    def sentence(self) -> str:
        """One line for people."""
        if self.answer is None:
            return self.error
        if self.answer.reason:
            return f"{self.answer.prediction}: {self.answer.reason}"
        return f"{self.answer.prediction} ({self.answer.probability[self.answer.prediction]:.2f})"

    def values(self) -> dict[str, Any]:
        """Cells of `predictions.csv`, absent ones left out."""
        cells: dict[str, Any] = {"image": self.image, "status": self.status, "error": self.error}
        if self.answer is not None:
            answer = self.answer
            cells |= {"prediction": answer.prediction, "reason": answer.reason}
            cells |= {"probability": answer.probability[answer.leading]}
            cells |= {f"p_{name}": value for name, value in answer.probability.items()} | answer.scores
        cells |= {"heatmap": self.heatmap, "heat_class": self.heat_class}
        cells |= {"heat_in_lung_box": self.heat_in_lung_box, "lung_box_area": self.lung_box_area}
        return cells | {"findings": "; ".join(f"{f.code} {f.message}" for f in self.findings)}


@dataclass(frozen=True)
class XrayBatch:
    """All pictures of a run, in their order.

    Attributes:
        rows: one per picture, and per input that could not be used.
        classes: of the model.
        seconds: wall time by step.
        checked: whether the model knows what is familiar to it.
    """

    rows: tuple[XrayRow, ...]
    classes: tuple[str, ...]
    seconds: dict[str, float]
    checked: bool

    def counts(self) -> dict[str, int]:
        """Pictures by status."""
        found = Counter(row.status for row in self.rows)
        return {name: found[name] for name in ("answered", "abstained", "failed")}  # type: ignore[index]

    def mean_heat(self) -> dict[str, float | None]:
        """Mean share of the heat in the lung box, and of the picture that the box is; None without heat maps."""
        pairs = [(r.heat_in_lung_box, r.lung_box_area) for r in self.rows if r.heat_in_lung_box is not None]
        if not pairs:
            return {"heat_in_lung_box": None, "lung_box_area": None}
        share, area = np.mean(np.array(pairs, np.float64), axis=0)
        return {"heat_in_lung_box": float(share), "lung_box_area": float(area)}

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "classes": list(self.classes),
            "checked_for_familiarity": self.checked,
            "counts": self.counts(),
            **self.mean_heat(),
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "images": [row.values() for row in self.rows],
        }


def classify_radiographs(
    inputs: Sequence[str | Path],
    out: str | Path,
    options: XrayOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = silent,
) -> XrayBatch:
    """Classify pictures and folders of pictures, and write the folder.

    Args:
        inputs: pictures or folders. What cannot be used becomes a failed row.
        out: refused when it holds a run, unless `overwrite`.
        options: see `XrayOptions`.
        overwrite: write over a run.
        progress: called per batch.

    Raises:
        ModelError: the model cannot be used.
        InputError: no input, an unknown method, or `out` is in use. A picture that fails raises nothing.
    """
    options = options or XrayOptions()
    if not inputs:
        raise InputError("there is no picture to classify; give a picture or a folder of pictures")
    if options.method not in METHODS:
        raise InputError(f"no heat map is called {options.method!r}; expected {' or '.join(METHODS)}")
    begun = time.perf_counter()
    classifier = RadiographClassifier(options.model, device=options.device)
    seconds = {"model": time.perf_counter() - begun}
    folder = prepare_folder(out, marker=RUN_FILE, overwrite=overwrite)
    (folder / RUN_FILE).unlink(missing_ok=True)
    if overwrite:
        _clear(folder)
    begun = time.perf_counter()
    rows: list[XrayRow] = []
    found = _listed(inputs)
    with ThreadPoolExecutor(max(1, options.threads)) as pool:
        work = partial(_guarded, work=partial(_read, classifier=classifier))
        waiting: deque[list[Future[_Read | XrayRow]]] = deque()
        for part in _batches(found):  # the next pictures are read while the network works on these
            waiting.append([pool.submit(work, item) for item in part])
            if len(waiting) > 1:
                rows += _batch(waiting.popleft(), classifier, folder, options, pool)
                progress("pictures", len(rows), len(found))
        rows += _batch(waiting.popleft(), classifier, folder, options, pool)
        progress("pictures", len(rows), len(found))
    seconds["pictures"] = time.perf_counter() - begun
    batch = XrayBatch(tuple(rows), classifier.classes, seconds, classifier.familiar is not None)
    _write(folder, batch, classifier, options)
    return batch


def _clear(folder: Path) -> None:
    """Take away the heat maps of the run before, as its table names them: the new run may have other pictures."""
    try:
        with (folder / TABLE).open(encoding="utf-8", newline="") as stream:
            names = [row.get("heatmap") or "" for row in csv.DictReader(stream)]
    except (OSError, UnicodeDecodeError, csv.Error):
        return
    for name in names:
        if name.endswith("_heatmap.png") and Path(name).name == name:
            (folder / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class _Listed:
    name: str
    path: Path
    problem: PneumoscopeError | None = None


def _listed(inputs: Sequence[str | Path]) -> list[_Listed]:
    """Every picture once, with a name of its own; inputs that are none, with what is wrong."""
    found: list[_Listed] = []
    seen: set[Path] = set()
    for given in inputs:
        try:
            paths = find_radiographs(given)
        except PneumoscopeError as problem:
            found.append(_Listed(_name(Path(given)) or "input", Path(given), problem))
            continue
        for path in paths:
            if path.resolve() not in seen:
                seen.add(path.resolve())
                found.append(_Listed(_name(path), path))
    return _named_apart(found)


def _name(path: Path) -> str:
    """The file's stem; for DICOM a keyed hash, because its name may be a patient's."""
    from pneumoscope.io.scans import dicom_case

    try:
        with path.open("rb") as stream:
            is_dicom = stream.read(132)[128:] == b"DICM"
        if is_dicom:
            return dicom_case([path])
    except (OSError, PneumoscopeError):
        pass
    return case_name(path.with_suffix("") if path.suffix.lower() in SUFFIXES else path)


def _named_apart(found: Sequence[_Listed]) -> list[_Listed]:
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


def _batches(found: Sequence[_Listed]) -> Iterator[Sequence[_Listed]]:
    for start in range(0, len(found), 2 * BATCH):
        yield found[start : start + 2 * BATCH]


@dataclass(frozen=True, eq=False)
class _Read:
    item: _Listed
    square: NDArray[np.uint8]
    findings: tuple[Finding, ...]
    thumbnail: bytes


def _batch(
    reading: Sequence[Future[_Read | XrayRow]],
    classifier: RadiographClassifier,
    folder: Path,
    options: XrayOptions,
    pool: ThreadPoolExecutor,
) -> list[XrayRow]:
    """Ask about a few pictures that are being read, and draw their heat maps, in their order."""
    read = [picture.result() for picture in reading]
    good = [r for r in read if isinstance(r, _Read)]
    answers = classifier.answer(np.stack([r.square for r in good])) if good else []
    rows: list[XrayRow] = []
    asked = iter([heeded(a, r.findings) for a, r in zip(answers, good, strict=True)])
    for item in read:
        if isinstance(item, XrayRow):
            rows.append(item)
            continue
        answer = next(asked)
        status: Status = "answered" if answer.answered else "abstained"
        rows.append(XrayRow(item.item.name, status, answer, item.findings, thumbnail=item.thumbnail))
    if not options.heatmaps:
        return rows
    drawn = partial(_with_heat, classifier=classifier, folder=folder, method=options.method)
    return list(pool.map(drawn, rows, read))


def _guarded(item: _Listed, work: Callable[[_Listed], _Read]) -> _Read | XrayRow:
    """The picture read, or a failed row: whatever is wrong with one file stays with it."""
    try:
        if item.problem is not None:
            raise item.problem
        return work(item)
    except PneumoscopeError as problem:
        return XrayRow(item.name, "failed", error=str(problem), exit_code=problem.exit_code)
    except MemoryError:
        return XrayRow(item.name, "failed", error="out of memory; use fewer --jobs", exit_code=1)
    except Exception as problem:
        said = f"internal fault, {type(problem).__name__}: {' '.join(str(problem).split())}"
        return XrayRow(item.name, "failed", error=said, exit_code=1)


def _read(item: _Listed, classifier: RadiographClassifier) -> _Read:
    picture = read_radiograph(item.path, case=item.name)
    grey = np.rint(_fitted(picture.pixels) * 255).astype(np.uint8)
    return _Read(item, classifier.square(picture), picture.findings, _jpeg(grey))


def _with_heat(
    row: XrayRow, read: _Read | XrayRow, *, classifier: RadiographClassifier, folder: Path, method: Method
) -> XrayRow:
    """The row with its heat map written; untouched for what is no frontal chest X-ray."""
    if isinstance(read, XrayRow) or row.answer is None or row.answer.prediction == NONE_OF_THESE:
        return row
    wanted = row.answer.leading
    try:
        pixels = read_radiograph(read.item.path, case=row.image).pixels
        rows, columns = pixels.shape
        laid = on_picture(heat(classifier, read.square, wanted, method), classifier.recipe, (rows, columns))
        drawn = overlay(pixels, laid)
        name = f"{row.image}_heatmap.png"
        _write_png(folder / name, drawn)
    except (PneumoscopeError, OSError, MemoryError) as problem:
        said = str(problem) or "out of memory"
        return XrayRow(row.image, "failed", error=f"its heat map could not be made: {said}", exit_code=1)
    share, area = share_in_lung_box(laid)
    return replace(
        row, heatmap=name, heat_class=wanted, heat_in_lung_box=share, lung_box_area=area,
        heat_thumbnail=_jpeg(_fitted(drawn)),
    )  # fmt: skip


def _fitted(pixels: NDArray[Any]) -> NDArray[Any]:
    """Shrunk so that the longer side is at most `THUMB_PX`, proportions kept."""
    import cv2

    rows, columns = pixels.shape[:2]
    scale = min(1.0, THUMB_PX / max(rows, columns))
    size = max(1, round(columns * scale)), max(1, round(rows * scale))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))


def _jpeg(picture: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(stream, format="JPEG", quality=80)
    return stream.getvalue()


def _write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG", compress_level=3)


def _write(folder: Path, batch: XrayBatch, classifier: RadiographClassifier, options: XrayOptions) -> None:
    from pneumoscope.reports.xray import write_xray_page

    columns = (*FIRST_COLUMNS, *(f"p_{name}" for name in batch.classes), *LAST_COLUMNS)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in batch.rows:
        cells = row.values()
        writer.writerow([_cell(cells.get(name)) for name in columns])
    write_text(folder / TABLE, text.getvalue())
    write_xray_page(folder / REPORT, batch.rows, batch.as_dict(), classifier.card, options.method)
    facts = {k: v for k, v in batch.as_dict().items() if k != "images"}
    weights = classifier.card["weights"]["sha256"]
    write_json(folder / RUN_FILE, {**environment(), "options": options.as_dict(), "weights_sha256": weights, **facts})


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
