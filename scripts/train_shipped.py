"""What the first infiltrate model learnt from: equalised slices; `train_infiltrate.py` compares with it."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.slices import SliceStack
from pneumoscope.inference.inputs import LungFrameInput
from pneumoscope.preprocess.slices import Appearance
from pneumoscope.training.augment import SliceAugment
from pneumoscope.training.data import ArraySource
from pneumoscope.training.loop import TrainConfig

TEST = frozenset({"coronacases_006", "radiopaedia_4"})
VALIDATION = frozenset({"coronacases_007"})
MEDSEG_EVERY = 8
"""Of the MedSeg slices (one a scan, in numerical order) the 0th of eight is for the test, the 4th for validation."""

FRAME = (144, 192)
APPEARANCE = Appearance()
INFILTRATE_TRAINING = TrainConfig(
    max_epochs=26, batch_size=12, learning_rate=2e-3, optimiser="adamw", weight_decay=1e-3, schedule="cosine",
    warmup_steps=80, ema=0.995, monitor="val_dice", clip_norm=1.0, device="auto", checkpoint_every_steps=40,
)  # fmt: skip
INFILTRATE_AUGMENT = SliceAugment(drop_channel=(1, 0.15))
LOSS = "pooled_dice_cross_entropy"


@dataclass
class Examples:
    """Network inputs and targets, collected."""

    images: list[NDArray[np.uint8]]
    targets: list[NDArray[np.int8]]
    names: list[str]

    @classmethod
    def none(cls) -> Examples:
        return cls([], [], [])

    def add(self, image: NDArray[np.uint8], target: NDArray[np.generic], name: str) -> None:
        """One example: image (c, h, w), target (1, h, w)."""
        self.images.append(image)
        self.targets.append(target.astype(np.int8))
        self.names.append(name)

    def source(self, augment: SliceAugment | None = None) -> ArraySource:
        return ArraySource(np.stack(self.images), np.stack(self.targets), self.names, augment)


# -- infiltrate -----------------------------------------------------------------------------------------------


def add_infiltrate(out: Examples, stack: SliceStack, *, train: bool) -> None:
    """The slices of a stack; MedSeg has no lung masks: its lung channel is zero, and in training it counts fourfold."""
    images, target = framed(stack)
    for k, name in enumerate(stack.slices):
        for _ in range(4 if stack.source == "medseg" and train else 1):
            out.add(images[k], target[k][None], f"{stack.case}/{name}")
    if train and stack.source != "medseg":
        for k, image in enumerate(healthy_mirrors(images, target)[::3]):
            out.add(image, np.zeros((1, *FRAME), np.int8), f"{stack.case}/mirror{k:03d}")


def framed(stack: SliceStack) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Network input (n, 2, *FRAME) and infiltrate (n, *FRAME) of a stack."""
    assert stack.infiltrate is not None
    if stack.source == "medseg":
        return framed_medseg(stack.images, stack.infiltrate > 0)
    assert stack.lungs is not None
    lungs = stack.lungs > 0
    way = LungFrameInput(FRAME, APPEARANCE).fitted(lungs)
    assert way.crop is not None
    target = way.crop.cut((stack.infiltrate > 0).astype(np.uint8), nearest=True)
    return way.of_equalised(stack.images, lungs), target.astype(np.uint8)


def framed_medseg(
    images: NDArray[np.uint8], infiltrate: NDArray[np.bool_]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """MedSeg slices are cut to the lungs already and were never equalised: fit them into the frame, equalise."""
    out = np.zeros((len(images), 2, *FRAME), np.uint8)
    target = np.zeros((len(images), *FRAME), np.uint8)
    equalise = cv2.createCLAHE(clipLimit=APPEARANCE.clip_limit, tileGridSize=(5, 6))
    for k, (image, mask) in enumerate(zip(images, infiltrate, strict=True)):
        h, w = image.shape
        scale = min(FRAME[0] / h, FRAME[1] / w)
        size = (round(w * scale), round(h * scale))
        top, left = (FRAME[0] - size[1]) // 2, (FRAME[1] - size[0]) // 2
        inside = np.s_[top : top + size[1], left : left + size[0]]
        shrunk = cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA)
        out[k, 0][inside] = equalise.apply(shrunk)
        target[k][inside] = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    return out, target


def healthy_mirrors(images: NDArray[np.uint8], target: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Slices made healthy: a side without infiltrate, mirrored over the other side.

    Every slice of the sets shows infiltrate; a network that never saw a healthy one would find some in each.
    """
    out = []
    middle = FRAME[1] // 2
    for image, mask in zip(images, target, strict=True):
        if np.count_nonzero(image[1].any(axis=0)) < 20:
            continue
        for half in (np.s_[:, :middle], np.s_[:, middle:]):
            if mask[half].any() or np.count_nonzero(image[1][half]) < 600:
                continue
            part = image[(slice(None), *half)]
            pair = (part, part[..., ::-1]) if half[1].start is None else (part[..., ::-1], part)
            out.append(np.concatenate(pair, axis=-1))
    return out


def infiltrate_card(examples: int, epochs: int, best_epoch: int) -> dict[str, Any]:
    return common_card("infiltrate", examples, epochs, best_epoch, INFILTRATE_TRAINING) | {
        "title": "COVID-19 and pneumonia infiltrate inside the lungs",
        "labels": {"0": "infiltrate"},
        "threshold": 0.5,
        "mirror": True,
        "denser_than_lung_hu": 120,
        "smallest_ml": 0.1,
        "preprocessing": {"kind": "lung_frame", "frame": list(FRAME), "appearance": asdict(APPEARANCE)},
    }


# -- cards -----------------------------------------------------------------------------------------------------


def common_card(task: str, examples: int, epochs: int, best_epoch: int, config: TrainConfig) -> dict[str, Any]:
    """What its card says of data, training and limits."""
    data = [
        {"name": "COVID-19-CT-Seg, Coronacases (Ma et al. 2020, zenodo 3757476)", "licence": "CC BY-NC-SA 4.0"},
        {"name": "COVID-19-CT-Seg, Radiopaedia (Ma et al. 2020, zenodo 3757476)", "licence": "CC BY-NC-SA 4.0"},
    ]
    data.append({"name": "MedSeg set 1 (medicalsegmentation.com, SIRM)", "licence": "free use with acknowledgement"})
    return {
        "task": task,
        "version": "1",
        "licence": "CC BY-NC-SA 4.0 (as the training data)",
        "training_data": data,
        "kept_aside": {"test": sorted(TEST), "validation": sorted(VALIDATION), "medseg": f"2 of {MEDSEG_EVERY} slices"},
        "training": {
            "script": "scripts/train_shipped.py",
            "examples": examples,
            "epochs": epochs,
            "best_epoch": best_epoch,
            "loss": LOSS,
            "augmentation": asdict(INFILTRATE_AUGMENT),
            "settings": {k: v for k, v in asdict(config).items() if k not in ("device", "max_minutes")},
        },
        "limits": [
            "Research software, not a medical device.",
            "Trained on 8-bit slices of a dozen adults with COVID-19, mid-chest, all showing infiltrate.",
            "Infiltrate of other causes, children, effusion, tumour and emphysema were not in the training data.",
            "Ground-glass and consolidation are not told apart.",
            "No healthy scan was in the training data: small false finds in healthy lung are to be expected.",
        ],
    }


def say(what: str, done: int, total: int, note: str = "") -> None:
    if note:
        print(f"{what}: {done} of {total}, {note}", file=sys.stderr, flush=True)
