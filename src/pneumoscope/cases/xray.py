"""Classify many radiographs into one folder: one model load, files read side by side, bad ones listed, the rest done.

The folder gets `predictions.csv`, `<image>_heatmap.png` on the size of the picture as it lies on disk, `report.html`
and, last, `run.json`. Only a batch of small squares is in memory; a picture is read again for its heat map.
"""

from __future__ import annotations

import io
import time
from base64 import b64decode, b64encode
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pneumoscope.cases.batch import RUN_FILE, environment
from pneumoscope.cases.options import XrayOptions
from pneumoscope.errors import Finding, InputError, PneumoscopeError
from pneumoscope.inference.radiographs import (
    BATCH,
    METHODS,
    NONE_OF_THESE,
    Answer,
    Method,
    RadiographClassifier,
    heat,
    on_picture,
    overlay,
    radiograph_card,
    share_in_lung_box,
    with_findings_applied,
)
from pneumoscope.io.dicom.read import DicomReaders
from pneumoscope.io.files import atomic_path, prepare_folder, read_csv, require_no_other_run, write_csv, write_json
from pneumoscope.io.formats.radiograph import ListedRadiograph, list_radiographs, read_radiograph
from pneumoscope.jobs.lock import locks
from pneumoscope.jobs.machines import current, part_of
from pneumoscope.jobs.run import Job, JobRun, Outcome, Step, job_folder
from pneumoscope.jobs.stamp import content_of_files
from pneumoscope.models.cards import content_of_model
from pneumoscope.options import recorded
from pneumoscope.progress import Progress, silent
from pneumoscope.reports.xray import class_name, write_xray_page

__all__ = ["XrayBatch", "XrayOptions", "XrayRow", "classify_radiographs"]

TABLE, REPORT = "predictions.csv", "report.html"
FIRST_COLUMNS = ("image", "status", "prediction", "probability")
LAST_COLUMNS = (
    "reason", "distance", "upright", "features", "heatmap", "heat_class", "heat_in_lung_box", "lung_box_area",
    "findings", "error", "frontal",
)  # fmt: skip
THUMB_PX = 176


@locks("out")
def classify_radiographs(
    inputs: Sequence[str | Path],
    out: str | Path,
    options: XrayOptions | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress = silent,
) -> XrayBatch:
    """Classify pictures and folders of pictures, and write the folder, whose tables grow as pictures are done.

    Args:
        inputs: pictures or folders. What cannot be used becomes a failed row.
        out: refused when it holds a run, unless `overwrite` or `resume`.
        resume: keep the pictures that are done and unchanged, as are model and options.

    Raises:
        ModelError: the model cannot be used.
        InputError: no input, an unknown method, or `out` is in use. A picture that fails raises nothing.
    """
    options = options or XrayOptions()
    if not inputs:
        raise InputError("there is no image to classify; give an image or a folder of images")
    if options.method not in METHODS:
        raise InputError(f"no heat map is called {options.method!r}; expected {' or '.join(METHODS)}")
    started = time.perf_counter()
    folder = Path(out)
    opener = partial(_open, folder, options)
    step, card = None if current().remote else opener(1), radiograph_card(options.model)[1]
    seconds = {"model": time.perf_counter() - started}
    require_no_other_run(out, TABLE)
    prepare_folder(out, marker=RUN_FILE, overwrite=overwrite, resume=resume)
    (folder / RUN_FILE).unlink(missing_ok=True)
    if overwrite:
        _clear(folder)
    started = time.perf_counter()

    def batch_of(outcomes: Sequence[Outcome]) -> XrayBatch:
        times = {**seconds, "pictures": time.perf_counter() - started}
        rows = tuple(map(XrayRow.of, outcomes))
        return XrayBatch(rows, tuple(map(str, card["classes"])), times, bool(card.get("familiar")))

    def write(outcomes: Sequence[Outcome], finished: bool) -> None:
        done = sum(outcome.status == "done" for outcome in outcomes)
        state = {"finished": finished, "results": done, **current().recorded()}
        _write(folder, batch_of(outcomes), card, options, state)

    jobs = [Job(item.name, item, job_folder(folder, item.name)) for item in part_of(list_radiographs(inputs))]
    return batch_of(JobRun(jobs, step, write, opener=opener, resume=resume, what="pictures", progress=progress).run())


def _open(folder: Path, options: XrayOptions, jobs: int) -> Step:
    """Load the model; pictures are read by threads, the next ones while the network works on these."""
    classifier = RadiographClassifier(options.model, device=options.device)
    model = content_of_model(options.model)
    ways = {"heatmaps": options.heatmaps, "method": options.method, "device": classifier.device.type}

    def made_of(item: ListedRadiograph) -> dict[str, Any]:
        return {"picture": content_of_files([item.path]), "name": item.name, "model": model, "options": ways}

    def stream(jobs: Iterator[Job], progress: Progress) -> Iterator[Outcome]:
        with DicomReaders() as readers, ThreadPoolExecutor(max(1, options.threads)) as pool:
            work = partial(_guarded, work=partial(_read, classifier=classifier, readers=readers))
            draw = partial(_with_heat, classifier=classifier, readers=readers, folder=folder, method=options.method)
            waiting: deque[list[Future[_Read | XrayRow]]] = deque()
            while True:
                part = [job.item for job in islice(jobs, 2 * BATCH)]
                for item in part:
                    (folder / _heatmap_name(item.name)).unlink(missing_ok=True)
                if part:
                    waiting.append([pool.submit(work, item) for item in part])
                if len(waiting) > 1 or not part:
                    if not waiting:
                        return
                    for row in _batch(waiting.popleft(), classifier, pool, draw if options.heatmaps else None):
                        yield row.outcome(folder)

    return Step("xray predict", 1, made_of, stream=stream)


def _heatmap_name(image: str) -> str:
    return f"{image}_heatmap.png"


def _clear(folder: Path) -> None:
    """Take away the heat maps of the run before, as its table names them: the new run may have other pictures."""
    with suppress(InputError):
        for name in (row.get("heatmap", "") for row in read_csv(folder / TABLE)):
            if name.endswith("_heatmap.png") and Path(name).name == name:
                (folder / name).unlink(missing_ok=True)


@dataclass(frozen=True, eq=False)
class _Read:
    item: ListedRadiograph
    square: NDArray[np.uint8]
    findings: tuple[Finding, ...]
    thumbnail: bytes


def _batch(
    reading: Sequence[Future[_Read | XrayRow]],
    classifier: RadiographClassifier,
    pool: ThreadPoolExecutor,
    draw: Callable[[XrayRow, _Read | XrayRow], XrayRow] | None,
) -> list[XrayRow]:
    """Ask about a few pictures that are being read, and draw their heat maps, in their order."""
    read = [picture.result() for picture in reading]
    good = [r for r in read if isinstance(r, _Read)]
    answers = classifier.answer(np.stack([r.square for r in good])) if good else []
    rows: list[XrayRow] = []
    asked = iter([with_findings_applied(a, r.findings) for a, r in zip(answers, good, strict=True)])
    for item in read:
        if isinstance(item, XrayRow):
            rows.append(item)
            continue
        answer = next(asked)
        status: Status = "answered" if answer.answered else "abstained"
        rows.append(XrayRow(item.item.name, status, answer, item.findings, thumbnail=item.thumbnail))
    return rows if draw is None else list(pool.map(draw, rows, read))


def _guarded(item: ListedRadiograph, work: Callable[[ListedRadiograph], _Read]) -> _Read | XrayRow:
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


def _read(item: ListedRadiograph, classifier: RadiographClassifier, readers: DicomReaders) -> _Read:
    least = max(classifier.least_side, THUMB_PX)
    picture = read_radiograph(item.path, case=item.name, least_side=least, readers=readers)
    grey = np.rint(_fitted(picture.pixels) * 255).astype(np.uint8)
    return _Read(item, classifier.square(picture), picture.findings, _jpeg(grey))


def _with_heat(
    row: XrayRow,
    read: _Read | XrayRow,
    *,
    classifier: RadiographClassifier,
    readers: DicomReaders,
    folder: Path,
    method: Method,
) -> XrayRow:
    """The row with its heat map written; untouched for what is no frontal chest X-ray."""
    if isinstance(read, XrayRow) or row.answer is None or row.answer.prediction == NONE_OF_THESE:
        return row
    wanted = row.answer.leading
    try:
        pixels = read_radiograph(read.item.path, case=row.image, readers=readers).pixels
        rows, columns = pixels.shape
        laid = on_picture(heat(classifier, read.square, wanted, method), classifier.recipe, (rows, columns))
        drawn = overlay(pixels, laid)
        name = _heatmap_name(row.image)
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
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(stream, format="JPEG", quality=80)
    return stream.getvalue()


def _write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG", compress_level=3)


def _write(
    folder: Path, batch: XrayBatch, card: Mapping[str, Any], options: XrayOptions, state: Mapping[str, Any]
) -> None:
    columns = (*FIRST_COLUMNS, *(f"p_{name}" for name in batch.classes), *LAST_COLUMNS)
    rows = [{name: _cell(cell) for name, cell in row.values().items()} for row in batch.rows]
    write_csv(folder / TABLE, columns, rows)
    write_xray_page(folder / REPORT, batch.rows, batch.as_dict(), card, options.method)
    facts = {k: v for k, v in batch.as_dict().items() if k != "images"}
    about = {**environment(), **state, "options": recorded(options), "weights_sha256": card["weights"]["sha256"]}
    write_json(folder / RUN_FILE, {**about, **facts})


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


Status = Literal["answered", "abstained", "failed"]


@dataclass(frozen=True)
class XrayRow:
    """What became of one picture."""

    image: str  # its name in outputs; a keyed hash for DICOM
    status: Status  # ``answered``, ``abstained`` or ``failed``
    answer: Answer | None = None  # None when it failed
    findings: tuple[Finding, ...] = ()  # of the reader
    heatmap: str = ""  # file name, "" without one
    heat_class: str = ""  # class the heat map speaks for
    heat_in_lung_box: float | None = None  # share of the heat in the lung box; None without heat
    lung_box_area: float | None = None  # share of the picture that the box is; None without a heat map
    error: str = ""  # the one line when it failed
    exit_code: int = 0  # how a command with this picture alone ends
    thumbnail: bytes = b""  # JPEG for the contact sheet
    heat_thumbnail: bytes = b""  # likewise, of the heat map
    kept: bool = False  # whether it was resumed from an earlier run

    def outcome(self, folder: Path) -> Outcome:
        """The row as what became of a job."""
        if self.status == "failed":
            return Outcome(self.image, "failed", error=self.error, exit_code=self.exit_code)
        facts = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("image", "kept")}
        facts["answer"] = None if self.answer is None else asdict(self.answer)
        facts["findings"] = [asdict(finding) for finding in self.findings]
        facts |= {name: b64encode(facts[name]).decode() for name in _PICTURES}
        return Outcome(self.image, facts=facts, files=(folder / self.heatmap,) if self.heatmap else ())

    @classmethod
    def of(cls, outcome: Outcome) -> XrayRow:
        """The row of an outcome, of this run or an earlier one."""
        if outcome.status == "failed":
            return cls(outcome.name, "failed", error=outcome.error or "", exit_code=outcome.exit_code)
        facts = dict(outcome.facts)
        facts["answer"] = None if facts["answer"] is None else Answer(**facts["answer"])
        facts["findings"] = tuple(Finding(**finding) for finding in facts["findings"])
        facts |= {name: b64decode(facts[name]) for name in _PICTURES}
        return cls(outcome.name, **facts, kept=outcome.kept)

    def sentence(self) -> str:
        """One line for people."""
        if self.answer is None:
            return self.error
        if self.answer.reason:
            return f"{self.answer.prediction}: {self.answer.reason}"
        return f"{class_name(self.answer.prediction)} ({self.answer.probability[self.answer.prediction]:.2f})"

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


_PICTURES = ("thumbnail", "heat_thumbnail")


@dataclass(frozen=True)
class XrayBatch:
    """All pictures of a run, in their order."""

    rows: tuple[XrayRow, ...]  # one per picture, and per input that could not be used
    classes: tuple[str, ...]  # of the model
    seconds: dict[str, float]  # wall time by step
    checked: bool  # whether the model knows what is familiar to it

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
