"""What a training on own data needs beside its plan: the network, what it learns from, and what its card will say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pneumoscope.datasets.case import Case
from pneumoscope.errors import ModelError
from pneumoscope.inference.inputs import HuWindowInput, ModelInput, input_from_card
from pneumoscope.preprocess.windows import HuWindow
from pneumoscope.progress import Progress
from pneumoscope.study.own_data import LungFinder, gather
from pneumoscope.study.own_plan import OwnPlan
from pneumoscope.study.own_plan3d import VolumePlan

if TYPE_CHECKING:
    from torch import nn

    from pneumoscope.training.data import BatchSource
    from pneumoscope.training.tasks import Task


@dataclass(frozen=True, eq=False)
class Setup:
    """A training that could begin.

    Attributes:
        model: the network, changed by training.
        task: loss and scores.
        train, val: examples.
        card: the fixed part of the model's card.
        said: what the weights begin with, in words.
        kind: what an example is, in the plural: ``slices`` or ``boxes``.
    """

    model: nn.Module
    task: Task
    train: BatchSource
    val: BatchSource
    card: dict[str, Any]
    said: str
    kind: str


def set_up(
    plan: OwnPlan | VolumePlan, train: Sequence[Case], val: Sequence[Case], lungs_for: LungFinder, progress: Progress
) -> Setup:
    """Network and examples of a plan.

    Raises:
        InputError: data that teach nothing.
        ModelError: the model to start from does not fit.
    """
    if isinstance(plan, VolumePlan):
        from pneumoscope.study.own_volumes import set_up_volumes

        return set_up_volumes(plan, train, val, progress)
    return _set_up_slices(plan, train, val, lungs_for, progress)


def _set_up_slices(
    plan: OwnPlan, train: Sequence[Case], val: Sequence[Case], lungs_for: LungFinder, progress: Progress
) -> Setup:
    from pneumoscope.training.augment import SliceAugment
    from pneumoscope.training.data import ArraySource
    from pneumoscope.training.tasks import SegmentationTask

    model, preprocessing, card, said = start_of(plan)
    parts = [gather(cases, preprocessing, lungs_for, progress) for cases in (train, val)]
    augment = SliceAugment(image_channels=max(1, parts[0].images.shape[1] - 1)) if plan.augment else None
    sources = [ArraySource(p.images, p.target, p.names, augment if p is parts[0] else None) for p in parts]
    return Setup(model, SegmentationTask(plan.loss), sources[0], sources[1], card, said, "slices")


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
