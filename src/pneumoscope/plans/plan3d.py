"""How to train a 3D U-Net on a user's own scans: spacing, box and depth from the data, sizes from the memory.

In the spirit of nnU-Net's planner (Isensee et al. 2021, Nature Methods 18), with fewer rules, each said in the plan:

- Voxels are as large as the median scan's, but within a slice not finer than `PIXEL_MM`. Thick slices: where they lie
  more than three pixels apart, the distance is that which a tenth of the scans go below, and pixels are not finer
  than a quarter of it, because the network halves all three axes alike.
- The box begins as the whole median scan; its longest side in mm is shortened until a step fits into memory.
- There is a halving as long as the box's shortest side keeps 4 voxels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, ClassVar

from pneumoscope.errors import InputError, ModelError
from pneumoscope.plans.survey import MOST_GIGABYTES, WINDOW_HU, Survey, TrainingPlan, memory_at_hand

Triple = tuple[int, int, int]

PIXEL_MM = {"cpu": 2.0, "other": 1.25}  # Finest voxel side within a slice that is aimed at

FIRST_WIDTH = {"cpu": 8, "other": 32}
WIDEST = 320
LEVELS = {"cpu": 4, "other": 5}
MOST_VOXELS = {"cpu": 48 * 64 * 64, "other": 192 * 160 * 160}
"""Of a box: on a processor the time of a step is the bound and not memory."""

STEP = 8  # Sides of a box are multiples of this
THICK = 3.0  # Slices more than so many pixels apart are thick


@dataclass(frozen=True, kw_only=True)
class VolumePlan(TrainingPlan):
    """A plan for a network on volumes; see `TrainingPlan` for what it shares."""

    dims: ClassVar[str] = "3d"

    batch_size: int = 2
    epochs: int = 100
    patience: int = 20
    spacing_mm: tuple[float, float, float] = (2.0, 2.0, 2.0)  # (i, j, k) voxel size scans are resampled to
    window_hu: tuple[float, float] = WINDOW_HU  # values outside are clipped
    # ``unit`` spreads the window over [0, 1]; ``grey_zscore`` as `datasets.tensors.VolumeRecipe` has it
    scale: str = "unit"
    patch: Triple = (64, 64, 64)  # slices, rows and columns of the box the network sees
    features: tuple[int, ...] = (16, 32, 64, 128)  # filters per level; n levels halve the box n - 1 times
    loss: str = "dice_cross_entropy"  # see `training.multiclass.LOSSES`
    foreground: float = 0.5  # share of boxes that are laid around a voxel with infiltrate
    boxes: int = 100  # in an epoch
    validation_boxes: int = 24  # the same ones after every epoch

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.patch) != 3 or min(self.patch) < 4 or len(self.spacing_mm) != 3 or min(self.spacing_mm) <= 0:
            raise InputError(
                f"a plan on volumes needs a patch of three sides of at least 4 voxels and three positive spacings, got "
                f"{self.patch}, {self.spacing_mm}"
            )
        if min(self.boxes, self.validation_boxes) < 1 or not 0 <= self.foreground <= 1:
            raise InputError(
                "a plan on volumes needs boxes and validation_boxes of at least 1 and foreground in [0, 1], got "
                f"{self.boxes}, {self.validation_boxes}, {self.foreground}"
            )
        if self.scale not in ("unit", "grey_zscore"):
            raise InputError(f"scale is unit or grey_zscore, got {self.scale!r}")
        most = 2 ** (len(self.features) - 1)
        if prod(max(1, side // most) for side in self.patch) < 2:
            raise InputError(
                f"a patch of {'x'.join(map(str, self.patch))} is too small for {len(self.features)} levels; enlarge it "
                "or take an entry off features"
            )

    def step_gigabytes(self, batch: int | None = None) -> float:
        """About what a step holds: layers' outputs and their gradients in 4 bytes, weights with Adam's two averages.

        Measured beside it: see the test.
        """
        voxels, n = prod(self.patch), self.batch_size if batch is None else batch
        outputs = sum(OUTPUTS * f * voxels / 8**level for level, f in enumerate(self.features))
        weights = sum(27 * 9 * f * f for f in self.features)
        return (n * outputs * 4 + weights * 16) / 1e9

    def advice(self) -> str:
        """See `TrainingPlan.advice`."""
        smaller = "x".join(str(max(8, side * 3 // 4 // STEP * STEP)) for side in self.patch)
        box = "x".join(str(side) for side in self.patch)
        return (
            f"with batches of {self.batch_size} boxes of {box} voxels; use --patch {smaller}"
            + (f", or --batch-size {self.batch_size // 2}" if self.batch_size > 1 else "")
            + ", or close other programs"
        )


OUTPUTS = 16  # Tensors of a level's width and size that a step holds at its height, forwards and backwards together


def plan_volumes(seen: Survey, scans: int, *, device: str, **wanted: Any) -> VolumePlan:
    """A plan on volumes from the scans and the available memory.

    Args:
        device: ``cpu`` plans smaller.
        wanted: values that the user gave, of fields of the plan; they go before what would be planned.
    """
    kind = "cpu" if device == "cpu" else "other"
    spacing, why_spacing = _spacing(seen, kind)
    whole = whole_box(seen, spacing)
    free = min(memory_at_hand(device), MOST_GIGABYTES)
    batch = wanted.get("batch_size") or 2
    patch, why_patch = wanted.get("patch"), "given by the user"
    if patch is None:
        patch, why_patch = _fit(whole, spacing, batch, kind, free)
    features = widths(patch, kind)
    per_epoch = max(16, 4 * scans) if kind == "cpu" else max(250, 8 * scans)
    reasons = {
        "spacing_mm": why_spacing,
        "patch": why_patch,
        "features": f"the shortest side of the box can be halved {len(features) - 1} times, and {features[0]} filters "
        f"suit {'a processor' if kind == 'cpu' else 'a graphics card'}",
        "batch_size": "two boxes a step, as memory goes into the size of the box",
        "boxes": f"for {scans} scans on {'a processor' if kind == 'cpu' else 'a graphics card'}",
        "foreground": "every other box is laid around infiltrate, which fills little of a scan",
        "window_hu": "from air to soft tissue",
        "patience": "Dice of boxes goes up and down more than that of slices",
    }
    plan = VolumePlan(
        spacing_mm=spacing, patch=patch, features=features, batch_size=batch, boxes=per_epoch,
        validation_boxes=max(16, min(64, scans)), reasons=reasons,
    )  # fmt: skip
    if kind == "cpu":
        why = "3D convolutions in bf16 gave gradients that are not finite on a processor"
        plan = replace(plan, precision="fp32", reasons={**plan.reasons, "precision": why})
    said = f"a step takes about {plan.step_gigabytes():.1f} of {free:.1f} GB free"
    return replace(plan, reasons={**plan.reasons, "patch": f"{plan.reasons['patch']}; {said}"})


def _spacing(seen: Survey, kind: str) -> tuple[tuple[float, float, float], str]:
    """Target spacing (i, j, k) in mm, and why."""
    pixel, slices = float(max(seen.spacing_mm[:2])), seen.spacing_mm[2]
    said = f"median of {seen.scans} scans {pixel:.2f} mm in slices {slices:.2f} mm apart"
    if slices > THICK * pixel:
        slices = seen.finest_slice_mm
        said += f", thick: a tenth of the scans go below {slices:.2f} mm"
    side = max(pixel, PIXEL_MM[kind])
    if side > pixel:
        said += f"; within a slice {side:g} mm to save time"
    if slices / 4 > side:
        side = slices / 4
        said += f"; pixels of a quarter of that, {side:.2f} mm, as all axes are halved alike"
    through = max(slices, side)
    return (round(side, 3), round(side, 3), round(through, 3)), said


def whole_box(seen: Survey, spacing: tuple[float, float, float]) -> Triple:
    """Slices, rows and columns of the median scan at that spacing."""
    i, j, k = (max(1, round(n * own / new)) for n, own, new in zip(seen.shape, seen.spacing_mm, spacing, strict=True))
    return k, j, i


def widths(patch: Triple, kind: str) -> tuple[int, ...]:
    """Filters per level for a box: another level as long as its shortest side keeps 4 voxels."""
    levels = 2
    while levels < LEVELS[kind] and min(patch) // 2**levels >= 4:
        levels += 1
    return tuple(min(WIDEST, FIRST_WIDTH[kind] * 2**level) for level in range(levels))


def _fit(
    whole: Triple, spacing: tuple[float, float, float], batch: int, kind: str, free_gigabytes: float
) -> tuple[Triple, str]:
    """The largest box that fits, and why."""
    sides = [max(STEP, n // STEP * STEP if n % STEP < STEP // 2 else n // STEP * STEP + STEP) for n in whole]
    in_mm = (spacing[2], spacing[1], spacing[0])

    def too_large(box: Triple) -> bool:
        plan = VolumePlan(patch=box, features=widths(box, kind), batch_size=batch)
        return prod(box) > MOST_VOXELS[kind] or plan.step_gigabytes() > free_gigabytes / 3

    shrunk = False
    while too_large((sides[0], sides[1], sides[2])) and max(sides) > STEP:
        longest = max((n for n in range(3) if sides[n] > STEP), key=lambda n: sides[n] * in_mm[n])
        sides[longest] -= STEP
        shrunk = True
    size = " x ".join(f"{side * mm:.0f}" for side, mm in zip(sides, in_mm, strict=True))
    held = "the largest that fits" if shrunk else "the whole scan"
    said = f"slices, rows, columns: {held}, {size} mm of {whole[0]} x {whole[1]} x {whole[2]} voxels"
    return (sides[0], sides[1], sides[2]), said


def plan_from_volumes_model(plan: VolumePlan, start: str | Path, card: dict[str, Any]) -> VolumePlan:
    """The plan with what the model of the start fixes.

    Raises:
        ModelError: the model's preprocessing is not one that is trained here.
    """
    fields = card["preprocessing"]
    try:
        grey, normalise = fields.get("grey_levels"), fields.get("normalise", "unit")
        scale = {(None, "unit"): "unit", (256, "zscore"): "grey_zscore"}[grey, normalise]
        low, high = fields["window_hu"]
        (i, j, k), (d, h, w) = fields["spacing_mm"], fields["patch"]
    except (KeyError, TypeError, ValueError) as problem:
        raise ModelError(
            f"its preprocessing {fields!r} is not one of `train --dims 3d`; start from such a model", path=start
        ) from problem
    rate = "a tenth of that of new weights, so that little is lost at first"
    kept = dict.fromkeys(("spacing_mm", "window_hu", "scale", "features", "patch"), "of the model it starts from")
    user = {name: why for name, why in plan.reasons.items() if why == "given by the user"}
    return replace(
        plan,
        start=str(start),
        learning_rate=plan.learning_rate / 10,
        spacing_mm=(float(i), float(j), float(k)),
        window_hu=(float(low), float(high)),
        scale=scale,
        patch=(int(d), int(h), int(w)),
        features=tuple(card["architecture"]["features"]),
        reasons={**plan.reasons, "learning_rate": rate, **kept, **user},
    )
