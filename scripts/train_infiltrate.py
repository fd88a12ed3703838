"""Cross-validate and train the infiltrate model, today's recipe beside the new one at equal steps.

python scripts/train_infiltrate.py fold  --recipe appearance --fold 0 --data ../shared/data --run RUN
python scripts/train_infiltrate.py table   --run RUN
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

import train_shipped as appearance
from fit_familiar import fit_scans, write_scan_space
from hounsfield_augment import HounsfieldAugment
from infiltrate_data import FRAME, SIZE, crop_of, equalised_of, hu_slices, target_of, towards_hu, unequalised
from infiltrate_folds import FOLDS, SCAN_FOLD, folds_of, read_rows, score_fold, stacks, summary
from pneumoscope.datasets.slices import SliceStack
from pneumoscope.inference.engines import predict_probability
from pneumoscope.inference.inputs import LungFrameInput
from pneumoscope.inference.out_of_distribution import ScanSpace, read_scan_space
from pneumoscope.models.cards import SHIPPED
from pneumoscope.models.unet import UNet, UNetConfig
from pneumoscope.models.weights import load_model, save_model
from pneumoscope.preprocess.slices import Appearance, HuWindow, LungCrop, window_channels
from pneumoscope.training.augment import SliceAugment
from pneumoscope.training.data import ArraySource, Batch, BatchSource
from pneumoscope.training.loop import fit
from pneumoscope.training.tasks import SegmentationTask, Task

BACK_FEATURES = (16, 32, 64, 96)
STEPS = 720
"""Of 12 slices of 144 x 192 each: the budget of a fold for every recipe."""


def train_appearance(data: Path, run: Path, fold: int) -> None:
    """One fold of the first recipe: equalised slices and lung mask."""
    all_stacks = stacks(data)
    of = folds_of(all_stacks)
    examples = appearance.Examples.none()
    for stack in all_stacks:
        if of[stack.patient] != fold:
            appearance.add_infiltrate(examples, stack, train=True)
    source = examples.source(appearance.INFILTRATE_AUGMENT)
    model = UNet(UNetConfig(2, 1, (16, 32, 64, 128, 256)))
    trained(model, source, run)
    save_model(run / "model", model, appearance.infiltrate_card(len(source), 0, 0), half=True)
    held_out = [stack for stack in all_stacks if of[stack.patient] == fold]
    score_fold("appearance", fold, held_out, lambda stack: predict_appearance(model, stack), run.parent / "dice.csv")


WINDOWS_HU = ((-1024.0, 400.0), (-1000.0, -500.0), (-500.0, 200.0))
WINDOWS = tuple(HuWindow(low, high) for low, high in WINDOWS_HU)
MEDSEG_REPEAT = 5
COARSE_STEPS, FINE_STEPS = 500, 500
"""At two thirds of the size and at full size; together the processor time of 720 steps at full size."""


SCAN_DATA = [
    {"name": "NSCLC-Radiomics LUNG1-001, tumour left out (TCIA)", "licence": "CC BY-NC 3.0"},
    {"name": "ACRIN-FLT-Breast 001, CPTAC-LSCC C3N-00247 (TCIA)", "licence": "CC BY"},
    {"name": "lesions painted on these scans (pneumoscope)", "licence": "as the scans"},
    {"name": "LIDC-IDRI LIDC-0050 (TCIA), only to bring equalised slices back to HU", "licence": "CC BY"},
    {"name": "COVID-19-NY-SBU, 8 slices (TCIA), only to bring equalised slices back to HU", "licence": "CC BY 4.0"},
]
LIMITS = [
    "Research software, not a medical device.",
    "Infiltrate was learnt from 8-bit slices of a dozen adults with COVID-19 and 45 single slices; their Hounsfield "
    "units are estimates.",
    "Three chests without pneumonia were in the training; small false finds in others are to be expected.",
    "Tumour, effusion, fibrosis, children and emphysema were not or hardly in the training data.",
    "Ground-glass and consolidation are not told apart; lesions lower than about 5 mm are smoothed away, as are those "
    "that lie flat on the diaphragm.",
]
FINAL_STEPS = 1200
FINAL_TRAINING = {
    "script": "scripts/train_infiltrate.py",
    "steps": "without the patients of fold 0: windows alone 545 at two thirds of the size and 545 at full size, with "
    f"the equalised channel 327; then with all patients 440 and {FINAL_STEPS}",
    "batch_size": 12,
    "loss": appearance.LOSS,
    "augmentation": asdict(HounsfieldAugment()),
}


def channels_of(hu: NDArray[np.generic], equalised: NDArray[np.generic]) -> NDArray[np.float32]:
    """What the network sees (n, c, h, w) of Hounsfield units and equalised slices (n, h, w)."""
    grey = equalised[:, None].astype(np.float32) / np.float32(255)
    return np.concatenate((window_channels(hu, WINDOWS), grey), axis=1)


@dataclass(frozen=True)
class HuSource:
    """Slices in Hounsfield units, shown through `WINDOWS`; the augmentation works on Hounsfield units.

    Attributes:
        slices: images (n, 2, h, w): HU, and the equalised slice of 0 to 255.
        shrink: factor on rows and columns, for the first, cheaper part of a training.
    """

    slices: ArraySource
    shrink: float = 1.0

    def __len__(self) -> int:
        return len(self.slices)

    def batch(self, indices: NDArray[np.int64], rng: np.random.Generator | None) -> Batch:
        """See `BatchSource.batch`."""
        drawn = self.slices.batch(indices, rng)
        x, target = drawn.x, drawn.y
        if self.shrink != 1:
            x = F.interpolate(x, scale_factor=self.shrink, mode="area")
            target = F.interpolate(target, scale_factor=self.shrink, mode="nearest-exact")
        return Batch(torch.from_numpy(channels_of(x[:, 0].numpy(), x[:, 1].numpy())), target, drawn.names)

    @property
    def content(self) -> str:
        """See `BatchSource.content`."""
        return f"{self.slices.content}|{WINDOWS_HU}|{self.shrink}"


@dataclass
class HuExamples:
    """Slices in Hounsfield units and equalised (n, *FRAME), targets (n, 1, *FRAME) and names, collected."""

    hu: list[NDArray[np.int16]] = field(default_factory=list)
    equalised: list[NDArray[np.uint8]] = field(default_factory=list)
    targets: list[NDArray[np.int8]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def add(
        self, name: str, slices: tuple[NDArray[np.int16], NDArray[np.uint8]], targets: NDArray[np.int8],
        every: int = 1, first: int = 0,
    ) -> None:  # fmt: skip
        """Every so-manieth slice of a scan, in HU and equalised."""
        hu, equalised = slices
        self.hu.append(hu[first::every])
        self.equalised.append(equalised[first::every])
        self.targets.append(targets[first::every])
        self.names += [f"{name}/{k}" for k in range(first, len(hu), every)]

    def scan_space(self) -> ScanSpace:
        """What scans look like: whole scans as they are, and all MedSeg slices as one."""
        scans: dict[str, list[NDArray[np.int16]]] = {}
        starts = np.cumsum([0, *(len(hu) for hu in self.hu)])
        for start, hu in zip(starts, self.hu, strict=False):
            name = self.names[start].partition("/")[0]
            if name in SCAN_FOLD or name.startswith("medseg"):
                scans.setdefault("medseg" if name.startswith("medseg") else name, []).append(hu)
        frames = {name: np.concatenate(parts) for name, parts in scans.items()}
        return fit_scans(frames, frames.pop("medseg"))

    def source(self, augment: HounsfieldAugment | None = None) -> HuSource:
        images = np.stack((np.concatenate(self.hu), np.concatenate(self.equalised)), axis=1).astype(np.int16)
        return HuSource(ArraySource(images, np.concatenate(self.targets), self.names, augment))


def hounsfield_examples(data: Path, run: Path, fold: int | None) -> HuExamples:
    """What the new recipe learns from; `fold` is left out (None leaves out nothing)."""
    back, _ = load_model(run / "back" / "model")
    all_stacks, out = stacks(data), HuExamples()
    of = folds_of(all_stacks)
    for stack in all_stacks:
        if of[stack.patient] != fold:
            shown, target = (towards_hu(stack, back), equalised_of(stack)), target_of(stack, crop_of(stack))
            for _ in range(MEDSEG_REPEAT if stack.source == "medseg" else 1):
                out.add(stack.case, shown, target)
    for scan in hu_slices(data):
        name, _, painted = scan.name.partition("+")
        if "/" in name or SCAN_FOLD[name] == fold:
            continue
        out.add(scan.name, (scan.hu, scan.equalised), scan.target, every=4 if painted else 1, first=int(painted or 0))
        estimated = unequalised(scan.equalised, back), scan.equalised
        out.add(f"{scan.name} equalised", estimated, scan.target, every=8 if painted else 4)
    return out


def train_hounsfield(data: Path, run: Path, fold: int) -> None:
    """One fold of the new recipe."""
    own = run / f"hounsfield-{fold}"
    examples = hounsfield_examples(data, run, fold)
    model = UNet(UNetConfig(len(WINDOWS) + 1, 1, (16, 32, 64, 128, 256)))
    for name, shrink, steps in (("coarse", 2 / 3, COARSE_STEPS), ("fine", 1.0, FINE_STEPS)):
        augmented, plain = (replace(examples.source(a), shrink=shrink) for a in (HounsfieldAugment(), None))
        trained(model, augmented, own / name, steps, val=plain)
    familiar = write_scan_space(own / "model", examples.scan_space())
    save_model(own / "model", model, hounsfield_card(len(examples.names)) | {"familiar": familiar}, half=True)
    all_stacks = stacks(data)
    of = folds_of(all_stacks)
    held_out = [stack for stack in all_stacks if of[stack.patient] == fold]
    back, _ = load_model(run / "back" / "model")
    score_fold("hounsfield", fold, held_out, lambda stack: predict_hounsfield(model, back, stack), run / "dice.csv")


def train_final(data: Path, run: Path, start: Path) -> None:
    """All patients and scans, from the weights of another model: no score of a slice is left, see the folds."""
    own, examples = run / "all", hounsfield_examples(data, run, None)
    model, _ = load_model(start)
    trained(model, examples.source(HounsfieldAugment()), own / "fine", FINAL_STEPS, val=examples.source(None))
    familiar = write_scan_space(own / "model", examples.scan_space())
    save_model(own / "model", model, hounsfield_card(len(examples.names)) | {"familiar": familiar}, half=True)


def publish(run: Path, fold: int, data: Path) -> None:
    """Write the model of a fold and its card into the package, with the numbers of `dice.csv` and `scans.json`."""
    source = run / f"hounsfield-{fold}" / "model"
    model, card = load_model(source)
    folder, scans = SHIPPED / "infiltrate", json.loads((run / "scans.json").read_text())["hounsfield"]
    rows = [row for row in read_rows(run / "dice.csv") if row[:2] == ["hounsfield", str(fold)]]
    unseen = [name for name in scans if SCAN_FOLD.get(name, fold) == fold]
    kept = [patient for patient, own in folds_of(stacks(data)).items() if own == fold]
    fresh = hounsfield_card(0) | {
        "kept_aside": {"patients": sorted(kept), "whole scans": [*unseen, "imlab id001 and id002"]},
        "training": FINAL_TRAINING,
        "numbers": {
            "metric": "Dice per scan with the readers' lung mask, patients kept aside",
            "dice": {row[3]: float(row[5]) for row in rows if row[2] != "medseg"},
            "dice_mean_medseg": summary(run / "dice.csv")["hounsfield"]["medseg"][0],
            "whole_scans_kept_aside": {name: scans[name] for name in unseen},
            "whole_scans_in_the_training": {name: row for name, row in scans.items() if name not in unseen},
        },
    }
    familiar = write_scan_space(folder, read_scan_space(source, card["familiar"]))
    save_model(folder, model, fresh | {"familiar": familiar}, half=True)


def predict_hounsfield(model: UNet, back: UNet, stack: SliceStack) -> NDArray[np.bool_]:
    """Infiltrate (n, h, w) as the new recipe finds it, inside the readers' lungs where there are any."""
    images = channels_of(towards_hu(stack, back), equalised_of(stack))
    found = crop_of(stack).paste(predict_probability(model, images, mirror=True)[:, 0]) >= 0.5
    return found if stack.lungs is None else found & (stack.lungs > 0)


def hounsfield_card(examples: int) -> dict[str, Any]:
    """Card of the new recipe."""
    card = appearance.infiltrate_card(examples, 0, 0)
    del card["denser_than_lung_hu"]  # density is what this model sees
    return card | {
        "version": "2",
        "threshold": 0.4,
        "smallest_ml": 0.5,
        "smooth_z_mm": 4.0,
        "dome_layer_mm": 10.0,
        "preprocessing": {
            "kind": "hu_frame",
            "frame": list(FRAME),
            "size": SIZE,
            "windows_hu": WINDOWS_HU,
            "appearance": asdict(Appearance()),
        },
        "training_data": [*card["training_data"], *SCAN_DATA],
        "kept_aside": {"whole scans": ["COVID-CT-MD normal002 and P002", "imlab id001 and id002"]},
        "limits": LIMITS,
    }


@dataclass(frozen=True)
class HounsfieldTask:
    """Regression of Hounsfield units / 1000; lung and its surroundings count fourfold."""

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """See `Task.loss`."""
        weight = 1 + 3 * ((batch.y > -1000) & (batch.y < -150)).float()
        return (weight * (output.float() - batch.y / 1000).abs()).sum() / weight.sum()

    def counts(self, output: Tensor, batch: Batch) -> Tensor:
        """Sum of absolute errors in lung, in HU, and voxels."""
        lung = (batch.y > -1000) & (batch.y < -150)
        return torch.stack([((1000 * output.float() - batch.y).abs() * lung).sum(), lung.sum()]).double()

    def scores(self, counts: Tensor) -> Mapping[str, float]:
        """Mean absolute error in lung in HU."""
        return {"hu": float(counts[0] / counts[1].clamp(min=1))}


def train_back(data: Path, run: Path) -> None:
    """The network that takes equalised frames back to Hounsfield units; it never sees a mask."""
    scans = [scan for seed in (0, 2) for scan in hu_slices(data, seed)]
    names = [f"{scan.name}/{k}" for scan in scans for k in range(len(scan.hu))]
    images = np.concatenate([scan.equalised for scan in scans])[:, None]
    targets = np.concatenate([scan.hu for scan in scans])[:, None]
    turn = SliceAugment(rotate_deg=10, gamma=(1, 1), contrast=(1, 1), brightness=0, noise=0.02, blur=0)
    model = UNet(UNetConfig(1, 1, BACK_FEATURES))
    trained(model, ArraySource(images, targets, names, turn), run, 500, task=HounsfieldTask())
    save_model(run / "model", model, {"task": "equalised slices to Hounsfield units"})


@dataclass(frozen=True)
class Few:
    """24 examples over the whole of a source: an epoch's check that costs next to nothing; nothing is chosen by it."""

    of: BatchSource

    def __len__(self) -> int:
        return min(24, len(self.of))

    def batch(self, indices: NDArray[np.int64], rng: np.random.Generator | None) -> Batch:
        """See `BatchSource.batch`."""
        return self.of.batch(np.linspace(0, len(self.of) - 1, len(self)).astype(int)[indices], None)

    @property
    def content(self) -> str:
        """See `BatchSource.content`."""
        return self.of.content


def trained(
    model: UNet, source: BatchSource, run: Path, steps: int = STEPS, *, val: BatchSource | None = None,
    task: Task | None = None, **settings: Any,
) -> None:  # fmt: skip
    """Fit for a number of steps, resuming; the average of the last step is kept."""
    torch.manual_seed(0)
    config = replace(appearance.INFILTRATE_TRAINING, keep="last", **settings)
    epochs = max(1, round(steps / -(-len(source) // config.batch_size)))
    task = task or SegmentationTask(appearance.LOSS)
    config = replace(config, max_epochs=epochs, monitor="val_loss")
    fit(model, task, source, Few(val or source), config, run, resume=True, progress=appearance.say)


def predict_appearance(model: UNet, stack: SliceStack) -> NDArray[np.bool_]:
    """Infiltrate (n, h, w) as the first recipe finds it, inside the readers' lungs where there are any."""
    size = stack.images.shape[1:]
    if stack.lungs is None:
        images, _ = appearance.framed(stack)
        crop = LungCrop((0, size[0], 0, size[1]), appearance.FRAME, (size[0], size[1]))
        return crop.paste(predict_probability(model, images, mirror=True)[:, 0]) >= 0.5
    lungs = stack.lungs > 0
    way = LungFrameInput(appearance.FRAME, appearance.APPEARANCE).fitted(lungs)
    probability = predict_probability(model, way.of_equalised(stack.images, lungs), mirror=True)[:, 0]
    return (way.back(probability, (size[0], size[1])) >= 0.5) & lungs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("back", "fold", "final", "publish", "table"))
    parser.add_argument("--recipe", choices=("appearance", "hounsfield"), default="hounsfield")
    parser.add_argument("--fold", type=int, choices=range(FOLDS), default=0)
    parser.add_argument("--data", type=Path, help="folder with ct-slices and ct-volumes")
    parser.add_argument("--start", type=Path, default=SHIPPED / "infiltrate", help="model that `final` goes on")
    parser.add_argument("--run", type=Path, required=True, help="folder for checkpoints and tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "table":
        for recipe, row in summary(options.run / "dice.csv").items():
            print(recipe, row)
        return
    if options.what == "back":
        train_back(options.data, options.run / "back")
        return
    if options.what == "final":
        train_final(options.data, options.run, options.start)
        return
    if options.what == "publish":
        publish(options.run, options.fold, options.data)
        return
    if options.recipe == "hounsfield":
        train_hounsfield(options.data, options.run, options.fold)
        return
    train_appearance(options.data, options.run / f"{options.recipe}-{options.fold}", options.fold)


if __name__ == "__main__":
    sys.exit(main())
