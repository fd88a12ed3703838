"""Train the lung model that ships with pneumoscope from 2D slices and synthetic scans.

    python scripts/train_shipped.py lungs  --data ../shared/data/ct-slices --run runs/lungs
    python scripts/train_shipped.py score  --data ../shared/data/ct-slices

The first trains (resuming when it was stopped) and writes the model folder into the package with its card; `score`
rates the shipped model on the patients kept aside. Patients are kept apart: none is on two sides. The infiltrate model
is trained by `train_infiltrate.py`, which has the examples of its first version from here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pneumoscope.datasets.phantom import scan_patient
from pneumoscope.datasets.slices import SliceStack, read_slice_folder
from pneumoscope.inference.inputs import AppearanceInput, LungFrameInput, input_from_card
from pneumoscope.inference.slices import predict_probability
from pneumoscope.metrics.overlap import count, dice
from pneumoscope.models.cards import SHIPPED
from pneumoscope.models.unet import UNet, UNetConfig
from pneumoscope.models.weights import load_model, save_model
from pneumoscope.preprocess.appearance import Appearance
from pneumoscope.preprocess.slices import to_slices
from pneumoscope.training.augment import SliceAugment
from pneumoscope.training.data import ArraySource
from pneumoscope.training.loop import TrainConfig, fit
from pneumoscope.training.tasks import SegmentationTask

TEST = frozenset({"coronacases_006", "radiopaedia_4"})
VALIDATION = frozenset({"coronacases_007"})
MEDSEG_EVERY = 8
"""Of the MedSeg slices (one a scan, in numerical order) the 0th of eight is for the test, the 4th for validation."""

LUNG_SIZE = 128
FRAME = (144, 192)
APPEARANCE = Appearance()
WINDOWS_HU = ((-1024.0, 2000.0), (-1024.0, 600.0), (-1250.0, 250.0), (-1024.0, 3071.0))
"""The synthetic scans are shown through each of these, as the slice sets were made through several."""

LUNG_TRAINING = TrainConfig(
    max_epochs=6, batch_size=16, learning_rate=2e-3, optimiser="adamw", weight_decay=1e-3, schedule="cosine",
    warmup_steps=60, ema=0.99, monitor="val_dice", clip_norm=1.0, device="auto", checkpoint_every_steps=40,
)  # fmt: skip
LUNG_AUGMENT = SliceAugment(
    rotate_deg=20, scale=(0.7, 1.4), shift=0.12, gamma=(0.6, 1.6), contrast=(0.6, 1.4), brightness=0.15, noise=0.08
)
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


def stacks(data: Path) -> list[SliceStack]:
    """All stacks of the three sources."""
    return [stack for name in ("coronacases", "radiopaedia", "medseg") for stack in read_slice_folder(data, name)]


def part_of(stack: SliceStack) -> str:
    """train, val or test: by patient, the same for both models."""
    if stack.source == "medseg":
        place = medseg_place(stack)
        return {0: "test", 4: "val"}.get(place % MEDSEG_EVERY, "train")
    if stack.patient in TEST:
        return "test"
    return "val" if stack.patient in VALIDATION else "train"


_medseg_order: list[str] = []


def medseg_place(stack: SliceStack) -> int:
    return _medseg_order.index(stack.case)


def remember_medseg(all_stacks: Iterable[SliceStack]) -> None:
    """The order of the MedSeg scans by their number."""
    numbers = [stack.case for stack in all_stacks if stack.source == "medseg"]
    _medseg_order[:] = sorted(numbers, key=lambda case: int("".join(c for c in case if c.isdigit())))


# -- lungs ----------------------------------------------------------------------------------------------------


def lung_examples(data: Path, part: str) -> Examples:
    """Slices of one part at 128 x 128; the training part with synthetic scans and slices without lungs added."""
    out = Examples.none()
    shrink = AppearanceInput(LUNG_SIZE, APPEARANCE)
    rng = np.random.default_rng(0)
    for stack in stacks(data):
        if stack.lungs is None or part_of(stack) != part:
            continue
        lungs = stack.lungs > 0
        images = shrink.of_equalised(stack.images)
        for k, name in enumerate(stack.slices):
            out.add(images[k], small_mask(lungs[k]), f"{stack.case}/{name}")
            if part == "train" and k % 6 == 0:
                filled = fill_lungs(stack.images[k], lungs[k], rng)
                empty = np.zeros((1, LUNG_SIZE, LUNG_SIZE), np.int8)
                out.add(shrink.of_equalised(filled[None])[0], empty, f"{stack.case}/{name} filled")
    if part == "train":
        for image, target, name in phantom_slices():
            out.add(image, target, name)
    return out


def small_mask(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask (h, w) as (1, 128, 128): pixels more than half covered."""
    return (cv2.resize(mask.astype(np.float32), (LUNG_SIZE, LUNG_SIZE), interpolation=cv2.INTER_AREA) > 0.5)[None]


def fill_lungs(image: NDArray[np.uint8], lungs: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The slice with its lungs painted like the tissue around them: a body without lungs."""
    grown = cv2.dilate(lungs.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    ring = (cv2.dilate(grown.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0) & ~grown
    if not ring.any():
        return image
    tissue = rng.choice(image[ring], size=int(grown.sum()))
    out = image.copy()
    out[grown] = cv2.blur(tissue.reshape(-1, 1), (1, 3))[:, 0]
    return out


def phantom_slices() -> Iterator[tuple[NDArray[np.uint8], NDArray[np.bool_], str]]:
    """Slices of synthetic scans of all three sites, neck and belly included, with their exact lungs."""
    for site in "ABC":
        for patient in range(3):
            scan = scan_patient(site, patient, seed=20, size="small")
            stack, lungs = to_slices(scan.scan.volume.hu), to_slices(scan.lungs.labels) > 0
            appearance = Appearance(window_hu=WINDOWS_HU[("ABC".index(site) + patient) % len(WINDOWS_HU)])
            images = AppearanceInput(LUNG_SIZE, appearance).images(stack, None)
            for k in range(len(stack)):
                yield images[k], small_mask(lungs[k]), f"phantom {site}{patient}/{k:03d}"  # type: ignore[misc]


def train_lungs(data: Path, run: Path) -> None:
    train, val = lung_examples(data, "train"), lung_examples(data, "val")
    torch.manual_seed(0)
    model = UNet(UNetConfig(1, 1, (16, 32, 64, 96, 128)))
    result = fit(
        model, SegmentationTask(LOSS), train.source(LUNG_AUGMENT), val.source(), LUNG_TRAINING, run, resume=True,
        progress=say,
    )  # fmt: skip
    card = common_card("lungs", len(train.names), result.epochs_run, result.best_epoch, LUNG_TRAINING) | {
        "title": "Lungs on chest CT",
        "labels": {"0": "lung"},
        "preprocessing": {"kind": "appearance", "size": LUNG_SIZE, "appearance": APPEARANCE.as_dict()},
    }
    publish("lungs", model, card, data)


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
        "preprocessing": {"kind": "lung_frame", "frame": list(FRAME), "appearance": APPEARANCE.as_dict()},
    }


# -- cards, scores --------------------------------------------------------------------------------------------


def common_card(task: str, examples: int, epochs: int, best_epoch: int, config: TrainConfig) -> dict[str, Any]:
    """What both cards say."""
    lungs = task == "lungs"
    data = [
        {"name": "COVID-19-CT-Seg, Coronacases (Ma et al. 2020, zenodo 3757476)", "licence": "CC BY-NC-SA 4.0"},
        {"name": "COVID-19-CT-Seg, Radiopaedia (Ma et al. 2020, zenodo 3757476)", "licence": "CC BY-NC-SA 4.0"},
    ]
    data.append(
        {"name": "synthetic scans, sites A, B and C (pneumoscope phantom)", "licence": "CC0-1.0"}
        if lungs
        else {"name": "MedSeg set 1 (medicalsegmentation.com, SIRM)", "licence": "free use with acknowledgement"}
    )
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
            "augmentation": asdict(LUNG_AUGMENT if lungs else INFILTRATE_AUGMENT),
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


def publish(name: str, model: UNet, card: dict[str, Any], data: Path) -> None:
    """Write the shipped folder, score it as a user would load it, and write the numbers into the card."""
    folder = SHIPPED / name
    save_model(folder, model, card, half=True)
    save_model(folder, model, card | {"numbers": score(name, data)}, half=True)


def score(name: str, data: Path) -> dict[str, Any]:
    """Dice of a shipped lung model on the stacks kept aside, per scan over all its slices, at 256 x 256."""
    model, card = load_model(SHIPPED / name)
    way = input_from_card(card)
    rows: dict[str, dict[str, float]] = {"test": {}, "val": {}}
    for stack in stacks(data):
        if stack.lungs is None or part_of(stack) == "train":
            continue
        p = predict_probability(model, way.of_equalised(stack.images), mirror=bool(card.get("mirror", False)))[:, 0]
        found = way.back(p, stack.images.shape[1:]) >= 0.5
        rows[part_of(stack)][stack.case] = round(dice(count(stack.lungs > 0, found)), 4)
    return {"metric": "Dice per scan", "test": rows["test"], "validation": rows["val"]}


def say(what: str, done: int, total: int, note: str = "") -> None:
    if note:
        print(f"{what}: {done} of {total}, {note}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("lungs", "score"))
    parser.add_argument("--data", type=Path, required=True, help="folder with coronacases, radiopaedia, medseg")
    parser.add_argument("--run", type=Path, default=None, help="run folder for checkpoints")
    options = parser.parse_args()
    remember_medseg(stacks(options.data))
    if options.what == "score":
        print(json.dumps({"lungs": score("lungs", options.data)}, indent=2))
        return
    train_lungs(options.data, options.run or Path("runs") / "lungs")


if __name__ == "__main__":
    main()
