"""Train, fine-tune and cross-validate on a user's own scans: from cases to a model folder that `segment` takes.

Patients are kept whole in every split. What is reported of a model is what `segment` gives on the held-out scans, on
their own grids.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pneumoscope.datasets.case import Case
from pneumoscope.datasets.folds import group_folds
from pneumoscope.datasets.groups import group_members, members_of
from pneumoscope.errors import InputError, ModelError, RunError
from pneumoscope.inference.inputs import HuWindowInput, ModelInput, input_from_card
from pneumoscope.io.files import prepare_folder, write_json, write_text
from pneumoscope.metrics.overlap import count, dice
from pneumoscope.preprocess.windows import HuWindow
from pneumoscope.progress import Progress, silent
from pneumoscope.study.folder import fingerprint
from pneumoscope.study.forecast import available_gigabytes, peak_gigabytes
from pneumoscope.study.own_data import LungFinder, OwnSlices, gather, own_lungs
from pneumoscope.study.own_plan import OwnPlan, step_gigabytes, write_plan
from pneumoscope.study.stages import BEGUN_FILE, is_marked

if TYPE_CHECKING:
    from torch import nn

RUN_FILE = "run.json"


@dataclass(frozen=True, eq=False)
class OwnResult:
    """A trained model.

    Attributes:
        folder: with model, card, history and plan; what ``segment --model`` takes.
        scores: ``case,patient,dice,reference_ml,predicted_ml`` of the held-out scans.
        epochs: epochs trained.
        stopped_by: see `training.loop.FitResult`.
        seconds: of training in this process.
    """

    folder: Path
    scores: pd.DataFrame
    epochs: int
    stopped_by: str
    seconds: float


def split_patients(cases: Sequence[Case], share: float, seed: int) -> tuple[list[Case], list[Case]]:
    """Training and validation cases; patients stay whole.

    Raises:
        InputError: all scans are of one patient.
    """
    members = members_of(cases)
    groups = group_members(members)
    patients = len(set(groups.values()))
    if patients < 2:
        raise InputError(
            f"{len(cases)} scans of one patient cannot be split into training and validation; add patients, or fill "
            "in the column patient of the table"
        )
    fold = group_folds(groups, min(patients, max(2, round(1 / share))), seed, validation=False)[0]
    held = {member.case for member in fold.test}
    return [c for c in cases if c.case not in held], [c for c in cases if c.case in held]


def train_own(
    train: Sequence[Case],
    val: Sequence[Case],
    plan: OwnPlan,
    out: str | Path,
    *,
    device: str = "auto",
    max_minutes: float | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> OwnResult:
    """Train one model by a plan.

    Args:
        train, val: cases with infiltrate masks; lungs are found where a case has none.
        plan: see `OwnPlan`.
        out: the model folder.
        device: to train on.
        max_minutes: stop after the epoch in which this much time is spent; the best model so far is kept.
        resume: go on with the training in `out`, which must be the same.
        overwrite: begin anew over the model in `out`.
        progress: told about every part; ``forecast`` once before training.

    Raises:
        InputError: data that teach nothing, or a folder that holds another model.
        RunError: memory ran out; the message says what to change.
    """
    from pneumoscope.training.data import ArraySource
    from pneumoscope.training.loop import fit
    from pneumoscope.training.tasks import SegmentationTask

    folder = prepare_folder(out, marker=BEGUN_FILE, overwrite=overwrite, resume=resume)
    with out_of_memory_advice(plan):
        model, preprocessing, card, said = start_of(plan)
        lungs_for = own_lungs(device, plan.precision)
        parts = [gather(cases, preprocessing, lungs_for, progress) for cases in (train, val)]
        augment = _augment(plan, parts[0].images.shape[1])
        sources = [ArraySource(p.images, p.target, p.names, augment if p is parts[0] else None) for p in parts]
        identity = fingerprint({**plan.as_dict(), "reasons": None, "data": [s.fingerprint() for s in sources]})
        go_on = resume and is_marked(folder / BEGUN_FILE, identity)
        if resume and not go_on and (folder / BEGUN_FILE).is_file():
            raise InputError("was begun with another plan or other data; use --overwrite to begin anew", path=folder)
        if not go_on:
            for path in (*folder.glob("*.ckpt"), folder / "history.csv"):
                path.unlink(missing_ok=True)
        write_json(folder / BEGUN_FILE, {"identity": identity})
        write_plan(plan, folder / "plan.json")
        _write_split(train, val, folder / "split.csv")
        config = _train_config(plan, device, max_minutes)
        progress("forecast", 1, 1, forecast_own(plan, parts, config, max_minutes))
        task = SegmentationTask(plan.loss)
        result = fit(model, task, sources[0], sources[1], config, folder, resume=go_on, progress=progress)
    full = _save(folder, model, card, plan, result, said, train)
    scores = score_own(folder, val, device, plan.precision, lungs_for, progress)
    _finish(folder, full, scores, result)
    return OwnResult(folder, scores, result.epochs_run, result.stopped_by, result.seconds)


def start_of(plan: OwnPlan) -> tuple[nn.Module, ModelInput, dict[str, Any], str]:
    """Network, preprocessing, the card's fixed part, and what the weights begin with, in words.

    Raises:
        ModelError: the model to start from is for another task, or not a network on slices.
    """
    import torch

    from pneumoscope.models.cards import find_model
    from pneumoscope.models.unet import UNet, UNetConfig
    from pneumoscope.models.weights import load_model

    if plan.start is None:
        torch.manual_seed(plan.seed)
        windows = tuple(HuWindow(low, high) for low, high in plan.windows_hu)
        model = UNet(UNetConfig(len(windows) + 1, 1, plan.features))
        fields = {"kind": "hu_windows", "size": plan.size, "windows_hu": [list(w) for w in plan.windows_hu],
                  "lung_channel": True}  # fmt: skip
        preprocessing: Any = HuWindowInput(plan.size, windows)
        return model, preprocessing, {"preprocessing": fields, "threshold": 0.5}, "new weights"
    folder = find_model(plan.start)
    loaded, stored = load_model(folder)
    card: dict[str, Any] = dict(stored)
    if card.get("task") != "infiltrate" or not isinstance(loaded, UNet) or loaded.config.out_channels > 2:
        raise ModelError("fine-tuning starts from a 2D U-Net for infiltrate; this is another model", path=folder)
    names = ("preprocessing", "threshold", "mirror", "denser_than_lung_hu", "smallest_ml")
    kept: dict[str, Any] = {name: card[name] for name in names if name in card}
    kept["started_from_licence"] = card.get("licence")
    return loaded, input_from_card(card), kept, f"weights of {folder.name} ({card['weights']['sha256'][:12]})"


def _augment(plan: OwnPlan, channels: int) -> Any:
    from pneumoscope.training.augment import SliceAugment

    return SliceAugment(image_channels=max(1, channels - 1)) if plan.augment else None


def _train_config(plan: OwnPlan, device: str, max_minutes: float | None) -> Any:
    from pneumoscope.training.loop import TrainConfig

    return TrainConfig(
        max_epochs=plan.epochs,
        batch_size=plan.batch_size,
        learning_rate=plan.learning_rate,
        schedule="cosine",
        patience=plan.patience,
        monitor="val_dice",
        seed=plan.seed,
        device=device,
        precision=plan.precision,  # type: ignore[arg-type]
        max_minutes=max_minutes,
    )


def forecast_own(plan: OwnPlan, parts: Sequence[OwnSlices], config: Any, max_minutes: float | None) -> str:
    """Time and memory to expect, in a sentence, from two measured steps on a copy of the network."""
    import torch

    from pneumoscope.training.devices import make_fabric

    model, *_ = start_of(plan)
    fabric = make_fabric(config.device, config.precision)
    model.to(fabric.device)
    rows = np.resize(np.arange(len(parts[0].images)), plan.batch_size)
    images = torch.from_numpy(parts[0].images[rows].astype(np.float32) / np.float32(255)).to(fabric.device)
    seconds = []
    for _ in range(2):
        begun = time.perf_counter()
        with fabric.autocast():
            loss = model(images).float().square().mean()
        loss.backward()
        seconds.append(time.perf_counter() - begun)
    steps = -(-len(parts[0].images) // plan.batch_size)
    epoch = min(seconds) * (1.3 * steps + 0.5 * len(parts[1].images) / plan.batch_size)
    minutes = epoch * plan.epochs / 60
    limit = f", stopped after {max_minutes:g}" if max_minutes is not None and max_minutes < minutes else ""
    return (
        f"{len(parts[0].images)} training and {len(parts[1].images)} validation slices, at most {plan.epochs} epochs "
        f"of {steps} steps: up to about {minutes:.1f} minutes{limit}; a step about "
        f"{step_gigabytes(plan, plan.batch_size):.1f} GB, this process so far {peak_gigabytes():.1f} GB, "
        f"{available_gigabytes():.1f} GB free"
    )


@contextmanager
def out_of_memory_advice(plan: OwnPlan) -> Iterator[None]:
    """Turn a machine that is out of memory into advice."""
    try:
        yield
    except (MemoryError, RuntimeError) as problem:
        text = str(problem).lower()
        if not isinstance(problem, MemoryError) and "out of memory" not in text and "allocate memory" not in text:
            raise
        fewer, smaller = max(1, plan.batch_size // 2), max(32, plan.size * 3 // 4 // 16 * 16)
        raise RunError(
            f"out of memory with batches of {plan.batch_size} slices of {plan.size} pixels; use --batch-size {fewer}, "
            f"or --size {smaller}, or fewer scans at a time"
        ) from problem


def score_own(
    folder: Path, cases: Sequence[Case], device: str, precision: str, lungs_for: LungFinder, progress: Progress
) -> pd.DataFrame:
    """Dice per scan of what `segment` gives with this model, on the scan's own grid."""
    from pneumoscope.inference.segment import Segmenter

    segmenter = Segmenter(folder, device=device, precision=precision)  # type: ignore[arg-type]
    rows = []
    for done, case in enumerate(cases, start=1):
        scan = case.load()
        assert scan.infiltrate is not None  # `read_own_cases` asked
        lungs = scan.lungs if scan.lungs is not None else lungs_for(scan.volume)
        found = segmenter.run(scan.volume, lungs).infiltrate.labels > 0
        counts = count(found, scan.infiltrate.labels > 0)
        voxel = scan.volume.grid.voxel_volume_ml
        rows.append((case.case, case.patient, dice(counts), counts.referenced * voxel, counts.predicted * voxel))
        progress("validation", done, len(cases))
    return pd.DataFrame(rows, columns=["case", "patient", "dice", "reference_ml", "predicted_ml"])


def _write_split(train: Sequence[Case], val: Sequence[Case], path: Path) -> None:
    parts = (("train", train), ("val", val))
    lines = [f"{c.dataset},{c.case},{c.patient},{part}" for part, cases in parts for c in cases]
    write_text(path, "\n".join(["dataset,case,patient,part", *lines]) + "\n")


def _save(
    folder: Path, model: nn.Module, card: Mapping[str, Any], plan: OwnPlan, result: Any, said: str,
    train: Sequence[Case],
) -> dict[str, Any]:  # fmt: skip
    from pneumoscope.models.weights import save_model

    about = {
        "title": f"trained on {len(train)} own scans",
        "task": "infiltrate",
        "labels": {"1": "infiltrate"},
        "licence": sorted({case.licence for case in train}),
        **card,
        "started_from": said,
        "training_data": {"scans": len(train), "patients": len({case.patient for case in train}),
                          "sets": sorted({case.dataset for case in train})},
        "training": {"epochs_run": result.epochs_run, "best_epoch": result.best_epoch, "stopped_by": result.stopped_by,
                     "val_dice_of_slices": result.best_value, "seed": plan.seed},
        "limits": ["Tested on the few scans held out at training only.", "Research software, not a medical device."],
    }  # fmt: skip
    return save_model(folder, model, about)


def _finish(folder: Path, card: Mapping[str, Any], scores: pd.DataFrame, result: Any) -> None:
    """Validation table, and its numbers in the card."""
    from pneumoscope.models.cards import CARD_FILE

    write_text(folder / "validation.csv", scores.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
    numbers = {"held_out_scans": len(scores), "mean_dice": float(scores["dice"].mean()),
               "lowest_dice": float(scores["dice"].min()), "highest_dice": float(scores["dice"].max())}  # fmt: skip
    write_json(folder / CARD_FILE, {**card, "numbers": numbers})
    write_json(folder / RUN_FILE, {"numbers": numbers, "seconds": round(result.seconds, 1),
                                   "peak_gigabytes": round(peak_gigabytes(), 2)})  # fmt: skip


def crossval_own(
    cases: Sequence[Case], plan: OwnPlan, out: str | Path, *, folds: int = 5, overwrite: bool = False,
    resume: bool = False, **options: Any,
) -> pd.DataFrame:  # fmt: skip
    """k trainings, each judged on the patients it has not seen; every scan is scored once.

    The weights of a fold are chosen on the same scans it is judged by: with few epochs to choose from this flatters a
    little, and is said in `summary.json`.

    Returns:
        ``fold,case,patient,dice,reference_ml,predicted_ml``, as written to `per_case.csv`.

    Raises:
        DatasetError: fewer patients than folds.
    """
    folder = prepare_folder(out, marker="plan.json", overwrite=overwrite, resume=resume)
    dealt = group_folds(group_members(members_of(cases)), folds, plan.seed, validation=False)
    write_plan(plan, folder / "plan.json")
    parts = []
    for number, fold in enumerate(dealt, start=1):
        held = {member.case for member in fold.test}
        train, val = [c for c in cases if c.case not in held], [c for c in cases if c.case in held]
        result = train_own(train, val, plan, folder / f"fold-{number}", overwrite=overwrite, resume=resume, **options)
        parts.append(result.scores.assign(fold=number))
    table = pd.concat(parts, ignore_index=True)
    table = table[["fold", *[name for name in table.columns if name != "fold"]]]
    write_text(folder / "per_case.csv", table.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
    by_fold = table.groupby("fold")["dice"].mean()
    write_json(
        folder / "summary.json",
        {
            "folds": folds,
            "scans": len(table),
            "mean_dice": float(table["dice"].mean()),
            "sd_dice": float(table["dice"].std(ddof=0)),
            "mean_dice_by_fold": by_fold.tolist(),
            "chosen_on": "the epoch of each fold was chosen on the scans it is scored on",
        },
    )
    return table


def with_values(plan: OwnPlan, **given: Any) -> OwnPlan:
    """The plan with the values that are not None; they carry the user's reason."""
    values = {name: value for name, value in given.items() if value is not None}
    return replace(plan, **values, reasons={**plan.reasons, **dict.fromkeys(values, "given by the user")})
