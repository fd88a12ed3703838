"""What a training on own data needs beside its plan: the network, what it learns from, and what its card will say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil

from pneumoscope.datasets.case import Case
from pneumoscope.datasets.tensors import PreparedVolume, VolumeRecipe, prepare
from pneumoscope.errors import InputError, ModelError, RunError
from pneumoscope.inference.inputs import HuWindowInput, ModelInput, input_from_card
from pneumoscope.plans.data import LungFinder, gather
from pneumoscope.plans.plan import OwnPlan
from pneumoscope.plans.plan3d import VolumePlan
from pneumoscope.plans.survey import TrainingPlan, memory_at_hand
from pneumoscope.preprocess.slices import HuWindow
from pneumoscope.processes import peak_bytes
from pneumoscope.progress import Progress
from pneumoscope.study.forecast import measure_step
from pneumoscope.study.learners.volumes import box_card

if TYPE_CHECKING:
    from torch import nn

    from pneumoscope.models.unet import UNet3D
    from pneumoscope.training.augment import VolumeAugment
    from pneumoscope.training.data import BatchSource
    from pneumoscope.training.tasks import Task


@dataclass(frozen=True, eq=False)
class TrainingSetup:
    """A training that could begin."""

    model: nn.Module  # the network, changed by training
    task: Task  # loss and scores
    # train, val: examples
    train: BatchSource
    val: BatchSource
    card: dict[str, Any]  # the fixed part of the model's card
    origin: str  # what the weights begin with, in words
    kind: str  # what an example is, in the plural: ``slices`` or ``boxes``


def set_up(
    plan: OwnPlan | VolumePlan, train: Sequence[Case], val: Sequence[Case], lungs_for: LungFinder, progress: Progress
) -> TrainingSetup:
    """Network and examples of a plan.

    Raises:
        InputError: data that teach nothing.
        ModelError: the model to start from does not fit.
    """
    return SET_UP[plan.dims](plan, train, val, lungs_for, progress)


def set_up_slices(
    plan: OwnPlan, train: Sequence[Case], val: Sequence[Case], lungs_for: LungFinder, progress: Progress
) -> TrainingSetup:
    """See `set_up`."""
    from pneumoscope.training.augment import SliceAugment
    from pneumoscope.training.data import ArraySource
    from pneumoscope.training.tasks import SegmentationTask

    model, preprocessing, card, said = start_of(plan)
    parts = [gather(cases, preprocessing, lungs_for, progress) for cases in (train, val)]
    augment = SliceAugment(image_channels=max(1, parts[0][0].shape[1] - 1)) if plan.augment else None
    train_slices, val_slices = ArraySource(*parts[0], augment), ArraySource(*parts[1])
    return TrainingSetup(model, SegmentationTask(plan.loss), train_slices, val_slices, card, said, "slices")


def start_of(plan: OwnPlan) -> tuple[nn.Module, ModelInput, dict[str, Any], str]:
    """Network on slices, preprocessing, the card's fixed part, and what the weights begin with, in words.

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
        raise ModelError("a plan on slices starts from a 2D U-Net for infiltrate; this is another model", path=folder)
    names = ("preprocessing", "threshold", "mirror", "denser_than_lung_hu", "smallest_ml")
    kept: dict[str, Any] = {name: card[name] for name in names if name in card}
    kept["started_from_licence"] = card.get("licence")
    return loaded, input_from_card(card), kept, f"weights of {folder.name} ({card['weights']['sha256'][:12]})"


LABELS = {"0": "background", "1": "infiltrate"}
CHANCE = 0.2  # Of each kind of variation of a box


def set_up_volumes(
    plan: VolumePlan, train: Sequence[Case], val: Sequence[Case], lungs_for: LungFinder, progress: Progress
) -> TrainingSetup:
    """Network and boxes of a plan; prepared scans lie in the cache and are mapped from there.

    Raises:
        InputError: no training scan, or no validation scan, shows infiltrate.
        ModelError: the model to start from does not fit.
    """
    from pneumoscope.training.data import PatchSource
    from pneumoscope.training.multiclass import MulticlassTask

    model, card, said = start_of_volumes(plan)
    parts = [_prepared(cases, recipe_of(plan), progress) for cases in (train, val)]
    for what, volumes in zip(("training", "validation"), parts, strict=True):
        if not any(len(volume.places) for volume in volumes):
            raise InputError(f"none of the {len(volumes)} {what} scans shows infiltrate at {plan.spacing_mm} mm")
    length = max(plan.validation_boxes, len(parts[1]))
    sources = (
        PatchSource(parts[0], plan.patch, plan.boxes, plan.foreground, variation() if plan.augment else None),
        PatchSource(parts[1], plan.patch, length, plan.foreground),
    )
    return TrainingSetup(model, MulticlassTask(tuple(LABELS.values()), plan.loss), *sources, card, said, "boxes")


SET_UP: Mapping[str, Callable[[Any, Sequence[Case], Sequence[Case], LungFinder, Progress], TrainingSetup]] = {
    "2d": set_up_slices, "3d": set_up_volumes,
}  # fmt: skip
"""By what the network looks at."""


def recipe_of(plan: VolumePlan) -> VolumeRecipe:
    """How scans are prepared for a plan, the same as `inference.volumes.VolumeInput` of its card does it."""
    return VolumeRecipe(
        clip_hu=plan.window_hu,
        scale=plan.scale,  # type: ignore[arg-type]
        spacing_mm=plan.spacing_mm,
        classes="infiltrate",
    )


def variation() -> VolumeAugment:
    """Boxes turned, scaled, mirrored left to right and in another light; no elastic deformation, which is slow."""
    from pneumoscope.training.augment import VolumeAugment

    return VolumeAugment(
        scale=(0.85, 1.2), scale_p=CHANCE, rotate_deg=12.0, rotate_p=CHANCE, elastic_p=0.0, mirror_p=0.5,
        mirror_axes=(2,), brightness=(0.9, 1.1), brightness_p=CHANCE, contrast=(0.8, 1.25), contrast_p=CHANCE,
        gamma=(0.8, 1.25), gamma_p=CHANCE, noise=(0.0, 0.03), noise_p=CHANCE,
    )  # fmt: skip


LEAST_FREE_BYTES = 2**30  # Memory that prepared scans must leave free, where no cache keeps them on disk


def _prepared(cases: Sequence[Case], recipe: VolumeRecipe, progress: Progress) -> list[PreparedVolume]:
    from pneumoscope.datasets.cache import open_cache

    cache, volumes = open_cache(), []
    for done, case in enumerate(cases, start=1):
        volumes.append(prepare(case, recipe, cache))
        if cache is None and psutil.virtual_memory().available < LEAST_FREE_BYTES:
            raise RunError(
                f"{done} of {len(cases)} prepared scans leave less than 1 GiB of memory; set PNEUMOSCOPE_CACHE to a "
                "folder, where they are kept on disk, or give fewer scans"
            )
        progress("reading", done, len(cases), case.case)
    return volumes


def start_of_volumes(plan: VolumePlan) -> tuple[UNet3D, dict[str, Any], str]:
    """Network, the card's fixed part, and what the weights begin with, in words.

    Raises:
        ModelError: the model to start from is not a 3D U-Net that tells infiltrate from all else.
    """
    import torch

    from pneumoscope.inference.volumes import class_meanings
    from pneumoscope.models.cards import find_model
    from pneumoscope.models.unet import UNet3D, UNet3DConfig
    from pneumoscope.models.weights import load_model

    card: dict[str, Any] = {"preprocessing": preprocessing_card(plan), "labels": LABELS, "threshold": 0.5}
    if plan.start is None:
        torch.manual_seed(plan.seed)
        config = UNet3DConfig(1, len(LABELS), plan.features, norm="instance", order="conv-norm-relu")
        return UNet3D(config), card, "new weights"
    folder = find_model(plan.start)
    model, stored = load_model(folder)
    fits = stored.get("task") == "infiltrate" and isinstance(model, UNet3D) and model.config.out_channels == 2
    if not fits or class_meanings(stored.get("labels") or {}) != {0: "background", 1: "infiltrate"}:
        raise ModelError(
            "a plan on volumes starts from a 3D U-Net of two classes, background and infiltrate, such as "
            "`train --dims 3d` makes; this is another model", path=folder,
        )  # fmt: skip
    card |= {name: stored[name] for name in ("threshold", "smallest_ml") if name in stored}
    card["started_from_licence"] = stored.get("licence")
    return model, card, f"weights of {folder.name} ({stored['weights']['sha256'][:12]})"


def preprocessing_card(plan: VolumePlan) -> dict[str, Any]:
    """Of the model: half overlapping boxes, their middles trusted more."""
    return box_card(recipe_of(plan), plan.patch, (0.5, 0.5, 0.5), "gaussian")


def forecast_own(plan: TrainingPlan, setup: TrainingSetup, config: Any, max_minutes: float | None) -> str:
    """Time and memory to expect, in a sentence, from measured steps."""
    from pneumoscope.training.devices import pick_device

    device = str(pick_device(config.device))
    drawing, computing = measure_step(
        setup.model, setup.task, setup.train, plan.batch_size, device=config.device, precision=config.precision, steps=1
    )
    steps, looks = (-(-len(source) // plan.batch_size) for source in (setup.train, setup.val))
    epoch = steps * (drawing + computing) + looks * (drawing + 0.4 * computing)
    minutes = epoch * plan.epochs / 60
    limit = f", stopped after {max_minutes:g}" if max_minutes is not None and max_minutes < minutes else ""
    return (
        f"{len(setup.train)} training and {len(setup.val)} validation {setup.kind}, at most {plan.epochs} epochs of "
        f"{steps} steps of {drawing + computing:.2f} s: up to about {minutes:.1f} minutes{limit}; a step about "
        f"{plan.step_gigabytes():.2g} GB{_measured(device)}, this process so far {peak_bytes() / 1e9:.1f} GB, "
        f"{memory_at_hand(device):.1f} GB free"
    )


def _measured(device: str) -> str:
    """What the timed steps held on the graphics card; nothing elsewhere, where the process's peak says it."""
    if not device.startswith("cuda"):
        return ""
    import torch

    return f" ({torch.cuda.max_memory_allocated(device) / 1e9:.1f} measured)"


@contextmanager
def out_of_memory_advice(plan: TrainingPlan) -> Iterator[None]:
    """Turn a machine that is out of memory into advice.

    Raises:
        RunError: instead of what torch or numpy say.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as problem:
        text = str(problem).lower()
        if not isinstance(problem, MemoryError) and "out of memory" not in text and "allocate memory" not in text:
            raise
        raise RunError(f"out of memory {plan.advice()}") from problem
