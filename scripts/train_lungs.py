"""Train the lung network that ships with pneumoscope: whole chests in 3D, with disease painted into them.

    python scripts/train_lungs.py prepare --data ../shared/data --run runs/lungs
    python scripts/train_lungs.py train   --data ../shared/data --run runs/lungs [--without LUNG1-001]
    python scripts/train_lungs.py publish --data ../shared/data --run runs/lungs

`prepare` writes references and painted chests into the run folder and skips what is there; `train` resumes. `--without`
leaves one scan out, for measuring on it. `publish` writes the model folder into the package.

Scans: `nsclc-LUNG1-001` (its own contours; NC), the three `reduced` scans (references from density, see `by_density`),
slices of Coronacases and Radiopaedia as stacks (NC), synthetic scans. `imlab` and `covid-ct-md` are for testing only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from lung_references import REDUCED, WORK_MM, airway, bodies, by_density, contours, with_gas, working
from painted_chest import (
    ACQUISITIONS,
    CLASSES,
    DISEASES,
    LEFT,
    RIGHT,
    SURROUNDINGS,
    Chest,
    on_grid,
)  # fmt: skip
from pneumoscope.datasets.phantom.folder import scan_patient
from pneumoscope.datasets.slices import read_slice_folder
from pneumoscope.datasets.tensors import PreparedVolume
from pneumoscope.geometry import Grid
from pneumoscope.inference.chest import ChestInput
from pneumoscope.inference.lungs import split_sides
from pneumoscope.io.read import read_volume
from pneumoscope.models.cards import SHIPPED
from pneumoscope.models.unet import UNet3D, UNet3DConfig
from pneumoscope.models.weights import save_model
from pneumoscope.preprocess.slices import to_slices
from pneumoscope.preprocess.spatial import coarse_size
from pneumoscope.training.augment import VolumeAugment
from pneumoscope.training.checkpoint import load_checkpoint
from pneumoscope.training.data import PatchSource
from pneumoscope.training.loop import TrainConfig, fit
from pneumoscope.training.multiclass import MulticlassTask

INPUT = ChestInput(5.5, smooth_voxels=0.8, labels=CLASSES)
PATCH = (56, 40, 56)
VARIANTS = {"scan": 240, "phantom": 2, "slices": 4}
HEALTHIER = range(25, 45)
"""Variants that are mostly without disease: what a normal abdomen looks like below a raised diaphragm."""
PLEURAL = ("effusion", "pneumothorax", "pneumonectomy", "white_lung")
"""Conditions drawn three times as often as the others from variant 45 on: what is lung and what is not, at equal HU."""
PAINT_MM = 3.0
PHANTOMS = 12
VALIDATION_EVERY = 24
LOSS = "held_dice_cross_entropy"
STAGES = [
    "612 steps of dice_cross_entropy at 2e-3 on 25 painted chests a scan (stopped in the fifth of eight epochs)",
    "510 steps of dice_balanced_cross_entropy at 2e-3 from the average of the first (stopped in the fourth epoch)",
    "400 steps at 1.5e-3 on 45 painted chests a scan, 20 mostly without disease, from the average of the second",
    "1300 steps at 1.5e-3 on 240 painted chests a scan, from the average of the third, which had batch "
    "normalisation; with the Dice of all classes fluid was never learnt",
    "3800 steps at 1.5e-3 from the average of the fourth, with the Dice of the classes that a box holds",
    "1000 steps at 5e-4 from the average of the fifth, without weights of classes",
    "the settings below from the average of the sixth; before them the trachea of ACRIN-FLT-001 was taught as lung",
]
"""How the shipped weights came about; each stage starts from the averaged weights of the one before (`--start`)."""
FEATURES = (16, 32, 64, 128)
TRAINING = TrainConfig(
    max_epochs=5, batch_size=2, learning_rate=4e-4, optimiser="adamw", weight_decay=1e-3, schedule="cosine",
    warmup_steps=40, ema=0.99, keep="last", clip_norm=1.0, device="cpu", precision="bf16", checkpoint_every_steps=20,
)  # fmt: skip
STEPS_PER_EPOCH = 100
AUGMENT = VolumeAugment(
    scale=(0.85, 1.2), scale_p=0.5, rotate_deg=12, rotate_p=0.5, elastic_alpha=(0, 500), elastic_p=0.3, mirror_p=0,
    brightness_p=0, contrast=(0.85, 1.15), contrast_p=0.3, gamma=(0.85, 1.2), gamma_p=0.2, noise=(0, 0.06), noise_p=0.3,
)  # fmt: skip


# -- chests -----------------------------------------------------------------------------------------------------


def real_scan(data: Path, name: str) -> Chest:
    """A real scan with its classes, cut to the chest."""
    if name in REDUCED:
        chest = working(read_volume(data / "ct-volumes" / "reduced" / f"{name}.nii.gz"))
        return Chest(chest.hu, by_density(chest.hu), WORK_MM)
    folder = data / "ct-volumes" / "nsclc-LUNG1-001"
    volume = read_volume(folder / "image")
    drawn = {k: to_slices(m) for k, m in contours(next((folder / "mask_rtstruct").iterdir()), volume).items()}
    classes = np.zeros(drawn["Lung-Right"].shape, np.int8)
    classes[drawn["GTV-1"]] = -1  # tumour, of which the contours of the lungs leave out most
    classes[drawn["Lung-Right"]], classes[drawn["Lung-Left"]] = RIGHT, LEFT
    chest = working(volume, classes)
    body = bodies(chest.hu)
    top = int(np.flatnonzero(chest.lung().any(axis=(1, 2)))[-1])
    tube = airway(chest.hu, body, min(top + 6, len(body) - 1))
    classes = with_gas(chest.hu, body, tube, ndimage.binary_dilation(tube), chest.classes.copy())
    return Chest(chest.hu, classes, WORK_MM)


def phantom(number: int) -> Chest:
    """A synthetic scan."""
    site, patient = "ABC"[number % 3], number // 3
    made = scan_patient(site, patient, seed=31, size="small")
    chest = working(made.scan.volume, np.ascontiguousarray(to_slices(made.lungs.labels)).astype(np.int8))
    body = bodies(chest.hu)
    none = np.zeros(body.shape, bool)
    return Chest(chest.hu, with_gas(chest.hu, body, none, none, chest.classes.copy()), WORK_MM)


def slice_stack(data: Path, source: str, number: int) -> Chest:
    """A stack of 8-bit slices brought towards Hounsfield units by the grey of its lungs and of its soft tissue."""
    stack = read_slice_folder(data / "ct-slices", source)[number]
    assert stack.lungs is not None
    lungs = stack.lungs > 0
    grey = stack.images.astype(np.float32)
    low, high = float(np.median(grey[lungs])), float(np.percentile(grey[~lungs & (grey > 60)], 50))
    hu = np.interp(grey, [0, max(low, 1), max(high, low + 20), 256], [-1024, -830, 30, 400]).astype(np.float32)
    spacing = (190.0 / len(hu), 350.0 / hu.shape[1], 350.0 / hu.shape[2])
    classes = split_sides(lungs, spacing[::-1])[0].astype(np.int8)
    shape = tuple(coarse_size(n, step, out) for n, step, out in zip(hu.shape, spacing, WORK_MM, strict=True))
    chest = on_grid(Chest(hu, classes, spacing), shape, WORK_MM)
    inner = ndimage.binary_erosion(bodies(chest.hu), np.ones((1, 9, 9)))
    unstated = (chest.classes == 0) & inner & (chest.hu < -400)
    return Chest(chest.hu, np.where(unstated, np.int8(-1), chest.classes), WORK_MM)


# -- painted variants -----------------------------------------------------------------------------------------


def sources(data: Path) -> Iterator[tuple[str, str, Any]]:
    """Name, kind and maker of every chest that teaches."""
    for name in ("LUNG1-001", *REDUCED):
        yield name, "scan", lambda name=name: real_scan(data, name)
    for number in range(PHANTOMS):
        yield f"phantom-{number}", "phantom", lambda number=number: phantom(number)
    for source, count in (("coronacases", 7), ("radiopaedia", 5)):
        for number in range(count):
            yield f"{source}-{number}", "slices", lambda s=source, n=number: slice_stack(data, s, n)


def around_lungs(chest: Chest, rng: np.random.Generator) -> Chest:
    """The chest cut to its lungs with 20 to 110 mm around, at random on each side."""
    box = []
    for axis in range(3):
        found = np.flatnonzero(chest.lung().any(axis=tuple({0, 1, 2} - {axis})))
        low, high = (int(rng.uniform(20, 110) / chest.spacing_mm[axis]) for _ in range(2))
        box.append(slice(max(0, int(found[0]) - low), int(found[-1]) + 1 + high))
    where = tuple(box)
    return Chest(chest.hu[where], chest.classes[where], chest.spacing_mm)


def variant(chest: Chest, kind: str, number: int, rng: np.random.Generator) -> Chest:
    """One painted chest on the network's grid, its size changed along each axis."""
    disease = 0.25 if kind == "scan" and number in HEALTHIER else 0.85
    often = np.array([3.0 if number >= HEALTHIER.stop and name in PLEURAL else 1.0 for name in DISEASES])
    chest = around_lungs(chest, rng)
    if rng.random() < 0.4 and kind != "slices":
        chest = SURROUNDINGS["raised_diaphragm"](chest, rng)
    if rng.random() < disease:
        chest = DISEASES[str(rng.choice(list(DISEASES), p=often / often.sum()))](chest, rng)
    if rng.random() < 0.35 * disease:
        chest = DISEASES[str(rng.choice(["pneumonia", "mass", "emphysema", "bulla", "white_lobe"]))](chest, rng)
    for name, share in (("bowel_gas", 0.4), ("contrast", 0.3), ("metal", 0.12)):
        if rng.random() < share and kind != "slices":
            chest = SURROUNDINGS[name](chest, rng)
    for name, share in (("noise", 0.25), ("thick_slices", 0.2), ("cut_field", 0.25), ("shifted_air", 0.15)):
        if rng.random() < share:
            chest = ACQUISITIONS[name](chest, rng)
    size = rng.uniform(0.88, 1.12) * rng.uniform(0.9, 1.1, 3)
    spacing = tuple(float(step * s) for step, s in zip(chest.spacing_mm, size, strict=True))
    chest = Chest(chest.hu, chest.classes, (spacing[0], spacing[1], spacing[2]))
    shape = tuple(coarse_size(n, step, INPUT.spacing_mm) for n, step in zip(chest.hu.shape, spacing, strict=True))
    return on_grid(chest, shape, (INPUT.spacing_mm,) * 3)


def prepare(data: Path, run: Path) -> None:
    """Write the variants, first one of each chest and so on, so that a training can start on part of them."""
    folder = run / "variants"
    folder.mkdir(parents=True, exist_ok=True)
    chests: dict[str, Chest] = {}
    known = list(sources(data))
    for number in range(max(VARIANTS.values())):
        for name, kind, make in known:
            path = folder / f"{name}_{number:03d}.npz"
            if number >= VARIANTS[kind] or path.exists():
                continue
            if name not in chests:
                kept = run / "references" / f"{name}.npz"
                kept.parent.mkdir(exist_ok=True)
                if not kept.exists():
                    made = make()
                    np.savez_compressed(kept, hu=np.rint(made.hu).astype(np.int16), classes=made.classes)
                stored = np.load(kept)
                whole = Chest(stored["hu"].astype(np.float32), stored["classes"], WORK_MM)
                sizes = (coarse_size(n, step, PAINT_MM) for n, step in zip(whole.hu.shape, WORK_MM, strict=True))
                chests[name] = on_grid(whole, tuple(sizes), (PAINT_MM,) * 3)
            seed = [number, *name.encode()]
            painted = variant(chests[name], kind, number, np.random.default_rng(seed))
            partial = path.with_suffix(".part")
            with partial.open("wb") as file:
                np.savez_compressed(file, hu=np.rint(painted.hu).astype(np.int16), classes=painted.classes)
            partial.rename(path)


def volumes(run: Path, without: str | None) -> tuple[list[PreparedVolume], list[PreparedVolume]]:
    """Variants for training and for validation, ready for the loop."""
    train, val = [], []
    for path in sorted((run / "variants").glob("*.npz")):
        name, number = path.stem.rsplit("_", 1)
        if name == without or int(number) >= max(VARIANTS.values()):
            continue
        stored = np.load(path)
        image = INPUT.curve(stored["hu"].astype(np.float32))
        grid = Grid.from_spacing(image.shape[::-1], (INPUT.spacing_mm,) * 3)
        places = np.zeros((0, 3), np.int32)
        volume = PreparedVolume(path.stem, name, image, stored["classes"], places, grid, -1.0)
        (val if int(number) % VALIDATION_EVERY == VALIDATION_EVERY - 1 else train).append(volume)
    return train, val


def train(run: Path, without: str | None, start: Path | None) -> tuple[UNet3D, Any, int]:
    """Train, or resume; the run lies beside the variants. `start` is a run whose averaged weights are begun with."""
    known, held = volumes(run, without)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = UNet3D(UNet3DConfig(1, len(CLASSES), FEATURES, norm="instance", order="conv-norm-relu"))
    if start is not None:
        first = load_checkpoint(start)
        assert first is not None
        own = model.state_dict()  # batch normalisation's running statistics have no place here
        model.load_state_dict({name: value for name, value in first.state["average"].items() if name in own})
    task = MulticlassTask(CLASSES, LOSS)
    result = fit(
        model, task, PatchSource(known, PATCH, 2 * STEPS_PER_EPOCH, augment=AUGMENT),
        PatchSource(held, PATCH, len(held)), TRAINING,
        run / (f"{start.name}-next" if start else f"without-{without}" if without else "all"), resume=True,
        progress=say,
    )  # fmt: skip
    return model, result, len(known)


def card(variants: int, epochs: int) -> dict[str, Any]:
    """The model card."""
    return {
        "task": "lungs",
        "version": "2",
        "title": "Lungs, airways and gas on chest CT, in 3D",
        "licence": "CC BY-NC-SA 4.0 (as the training data)",
        "training_data": [
            {"name": "NSCLC-Radiomics LUNG1-001 (TCIA), whole scan", "licence": "CC BY-NC 3.0"},
            {"name": "LIDC-IDRI-0050 (TCIA), whole scan", "licence": "CC BY 3.0"},
            {"name": "ACRIN-FLT-Breast 001 (TCIA), whole scan", "licence": "CC BY 3.0"},
            {"name": "CPTAC-LSCC C3N-00247 (TCIA), whole scan", "licence": "CC BY 4.0"},
            {"name": "COVID-19-CT-Seg, Coronacases and Radiopaedia, 12 stacks (zenodo 3757476)",
             "licence": "CC BY-NC-SA 4.0"},
            {"name": f"synthetic scans, {PHANTOMS} patients (pneumoscope phantom)", "licence": "CC0-1.0"},
        ],
        "never_used": ["COVID-CT-MD (P002, normal002)", "imlab id001 and id002", "MedSeg slices"],
        "labels": {str(n): name for n, name in enumerate(CLASSES)},
        "preprocessing": INPUT.as_card() | {"patch": list(PATCH)},
        "training": {
            "script": "scripts/train_lungs.py",
            "painted_chests": variants,
            "epochs": epochs,
            "stages": STAGES,
            "steps_per_epoch": STEPS_PER_EPOCH,
            "loss": LOSS,
            "augmentation": asdict(AUGMENT),
            "settings": {k: v for k, v in asdict(TRAINING).items() if k not in ("device", "max_minutes")},
        },
        "limits": [
            "Research software, not a medical device.",
            "Four real chests and a dozen partial stacks of adults; all other disease is painted into them.",
            "Whether a homogeneous white side is consolidated lung or fluid is decided by shape and a few HU.",
        ],
    }  # fmt: skip


def say(what: str, done: int, total: int, note: str = "") -> None:
    if note:
        print(f"{what}: {done} of {total}, {note}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prepare", "train", "publish"))
    parser.add_argument("--data", type=Path, required=True, help="folder with ct-volumes and ct-slices")
    parser.add_argument("--run", type=Path, default=Path("runs/lungs"))
    parser.add_argument("--start", type=Path, default=None, help="a run to start from the averaged weights of")
    parser.add_argument("--without", default=None, help="a scan to leave out, e.g. LUNG1-001")
    options = parser.parse_args()
    if options.what == "prepare":
        prepare(options.data, options.run)
        return
    model, result, variants = train(options.run, options.without, options.start)
    if options.what == "publish":
        save_model(SHIPPED / "lungs", model, card(variants, result.epochs_run), half=True)


if __name__ == "__main__":
    main()
