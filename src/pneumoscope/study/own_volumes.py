"""A 3D U-Net on a user's own scans: network, boxes of the prepared scans, and the card that `segment` reads.

The network sees Hounsfield units alone, no lung mask: what it finds outside the lungs is cut off by `segment`, as for
every model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import psutil

from pneumoscope.datasets.case import Case
from pneumoscope.datasets.patches import PreparedVolume, VolumeRecipe, prepare
from pneumoscope.errors import InputError, ModelError, RunError
from pneumoscope.progress import Progress
from pneumoscope.study.own_plan3d import VolumePlan

if TYPE_CHECKING:
    from pneumoscope.models.unet3d import UNet3D
    from pneumoscope.study.own_setup import Setup
    from pneumoscope.training.augment3d import VolumeAugment

LABELS = {"0": "background", "1": "infiltrate"}
CHANCE = 0.2
"""Of each kind of variation of a box."""


def set_up_volumes(plan: VolumePlan, train: Sequence[Case], val: Sequence[Case], progress: Progress) -> Setup:
    """Network and boxes of a plan; prepared scans lie in the cache and are mapped from there.

    Raises:
        InputError: no training scan, or no validation scan, shows infiltrate.
        ModelError: the model to start from does not fit.
    """
    from pneumoscope.study.own_setup import Setup
    from pneumoscope.training.multiclass import MulticlassTask
    from pneumoscope.training.patches import PatchSource

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
    return Setup(model, MulticlassTask(tuple(LABELS.values()), plan.loss), *sources, card, said, "boxes")


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
    from pneumoscope.training.augment3d import VolumeAugment

    return VolumeAugment(
        scale=(0.85, 1.2), scale_p=CHANCE, rotate_deg=12.0, rotate_p=CHANCE, elastic_p=0.0, mirror_p=0.5,
        mirror_axes=(2,), brightness=(0.9, 1.1), brightness_p=CHANCE, contrast=(0.8, 1.25), contrast_p=CHANCE,
        gamma=(0.8, 1.25), gamma_p=CHANCE, noise=(0.0, 0.03), noise_p=CHANCE,
    )  # fmt: skip


LEAST_FREE_BYTES = 2**30
"""Memory that prepared scans must leave free, where no cache keeps them on disk."""


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
    from pneumoscope.models.unet3d import UNet3D, UNet3DConfig
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
    """As `inference.volumes.VolumeInput.from_card` reads it: half overlapping boxes, their middles trusted more."""
    return {
        "kind": "hu_volume",
        "window_hu": list(plan.window_hu),
        "spacing_mm": list(plan.spacing_mm),
        "normalise": "zscore" if plan.scale == "grey_zscore" else "unit",
        "grey_levels": 256 if plan.scale == "grey_zscore" else None,
        "patch": list(plan.patch),
        "overlap": [0.5, 0.5, 0.5],
        "blend": "gaussian",
    }
