"""How to train on a user's own scans: a plan made from their sizes, the machine and its free memory.

A plan is a small JSON file (`plan.json`) that can be read, changed and given back. Every value carries its reason.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.datasets.case import Case
from pneumoscope.errors import InputError
from pneumoscope.io.files import write_json

LOOKED_AT = 5
"""Scans that are loaded for a plan, evenly spaced."""

PIXEL_MM = {"cpu": 2.0, "other": 1.25}
"""Pixel size aimed at: on a processor alone the finer one takes 2.5 times as long."""

FEATURES = {"cpu": (16, 32, 64, 128), "other": (32, 64, 128, 256)}
WINDOW_HU = (-1000.0, 200.0)


@dataclass(frozen=True, kw_only=True)
class OwnPlan:
    """What a training on own data does; every field may be changed in the file.

    Attributes:
        size: edge of the square slice the network sees, pixels.
        windows_hu: one input channel each, scaled to [0, 1].
        features: filters per level of the U-Net.
        batch_size: slices a step.
        epochs: at most.
        patience: epochs without a better validation Dice after which training stops.
        learning_rate: of Adam; falls along a cosine.
        loss: see `training.losses.LOSSES`.
        augment: show slices moved, mirrored and in another light each time.
        validation_share: of the patients.
        precision: ``auto``, ``fp32`` or ``bf16``.
        seed: of weights, order, augmentation and split.
        start: model folder or shipped model the weights begin with; its size, windows and features are then used.
        reasons: why each value is what it is; for the reader only.
    """

    size: int = 256
    windows_hu: tuple[tuple[float, float], ...] = (WINDOW_HU,)
    features: tuple[int, ...] = FEATURES["cpu"]
    batch_size: int = 8
    epochs: int = 60
    patience: int = 12
    learning_rate: float = 1e-3
    loss: str = "pooled_dice_cross_entropy"
    augment: bool = True
    validation_share: float = 0.25
    precision: str = "auto"
    seed: int = 0
    start: str | None = None
    reasons: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (8 <= self.size <= 2048 and self.batch_size >= 1 and self.epochs >= 1 and self.patience >= 1):
            raise InputError(
                "a plan needs size from 8 to 2048 and batch_size, epochs and patience of at least 1, got "
                f"{self.size}, {self.batch_size}, {self.epochs}, {self.patience}"
            )
        if not (0 < self.validation_share < 1 and self.learning_rate > 0):
            raise InputError(
                f"validation_share lies in (0, 1) and learning_rate is positive, got {self.validation_share}, "
                f"{self.learning_rate}"
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def read_plan(path: str | Path) -> OwnPlan:
    """A plan from its file; fields that are left out keep their defaults.

    Raises:
        InputError: no JSON object, an unknown field, or a value of another kind.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise InputError(f"cannot be read as a plan ({problem}); write one with --plan-only", path=path) from problem
    known = {item.name for item in fields(OwnPlan)}
    if not isinstance(content, dict) or not set(content) <= known:
        strange = sorted(set(content) - known) if isinstance(content, dict) else [type(content).__name__]
        raise InputError(
            f"is no plan: {', '.join(strange)} is unknown; fields are {', '.join(sorted(known))}", path=path
        )
    try:
        if "windows_hu" in content:
            content["windows_hu"] = tuple((float(a), float(b)) for a, b in content["windows_hu"])
        if "features" in content:
            content["features"] = tuple(int(f) for f in content["features"])
        return OwnPlan(**content)
    except (TypeError, ValueError) as problem:
        raise InputError(f"holds a value of the wrong kind ({problem})", path=path) from problem


def write_plan(plan: OwnPlan, path: str | Path) -> None:
    """Write a plan to its file."""
    write_json(path, plan.as_dict())


def make_plan(cases: Sequence[Case], *, device: str, start: str | Path | None = None, **wanted: Any) -> OwnPlan:
    """A plan from the scans and the machine.

    Args:
        cases: of which `LOOKED_AT` are loaded.
        device: ``cpu`` plans smaller.
        start: the model whose weights are gone on with.
        wanted: values that the user gave; None is left to the plan.
    """
    from pneumoscope.study.forecast import available_gigabytes

    kind = "cpu" if device == "cpu" else "other"
    given = {name: value for name, value in wanted.items() if value is not None}
    chosen = np.unique(np.linspace(0, len(cases) - 1, min(LOOKED_AT, len(cases))).astype(int))
    grids = [cases[n].load().volume.grid for n in chosen]
    fov = float(np.median([max(g.shape[0] * g.spacing_mm[0], g.shape[1] * g.spacing_mm[1]) for g in grids]))
    matrix = int(np.median([max(g.shape[:2]) for g in grids]))
    wished = round(fov / PIXEL_MM[kind] / 32) * 32
    size = max(32, min(wished, int(np.ceil(matrix / 16)) * 16, 512))
    reasons = {
        "size": f"field of view {fov:.0f} mm at {PIXEL_MM[kind]} mm a pixel, not above the scans' {matrix} pixels",
        "features": f"for {'a processor' if kind == 'cpu' else 'a graphics card'}",
        "windows_hu": "one window from air to soft tissue",
    }
    plan = OwnPlan(size=size, features=FEATURES[kind], reasons=reasons)
    if start is not None:
        plan = _from_model(plan, start)
    free = available_gigabytes()
    fitting = [n for n in (32, 16, 8, 4, 2) if step_gigabytes(plan, n) < min(free, 64) / 3]
    batch = min(fitting[0] if fitting else 1, 16 if kind == "cpu" else 32)
    why = f"a step of it takes about {step_gigabytes(plan, batch):.1f} of {free:.1f} GB free"
    plan = replace(plan, batch_size=batch, reasons={**plan.reasons, "batch_size": why})
    given_reasons = dict.fromkeys(given, "given by the user")
    return replace(plan, **given, reasons={**plan.reasons, **given_reasons})


def _from_model(plan: OwnPlan, start: str | Path) -> OwnPlan:
    """The plan with what the model of the start fixes."""
    from pneumoscope.models.cards import find_model, read_card

    card = read_card(find_model(start))
    rate = "a tenth of that of new weights, so that little is lost at first"
    kind = card.get("preprocessing", {}).get("kind")
    reasons = {"learning_rate": rate, "features": "of the model it starts from"}
    reasons |= dict.fromkeys(("size", "windows_hu"), f"of its preprocessing, {kind}")
    frame = card.get("preprocessing", {})
    size = int(max(frame.get("frame", [frame.get("size", plan.size)])))
    return replace(
        plan, start=str(start), learning_rate=plan.learning_rate / 10, size=size,
        features=tuple(card["architecture"].get("features", plan.features)), reasons={**plan.reasons, **reasons},
    )  # fmt: skip


def step_gigabytes(plan: OwnPlan, batch: int) -> float:
    """About what a step holds: layers' outputs forwards and backwards in 4 bytes, weights with Adam's two averages."""
    pixels = plan.size**2
    outputs = sum(10 * f * pixels / 4**level for level, f in enumerate(plan.features))
    weights = sum(40 * f * f for f in plan.features)
    return (batch * outputs * 2 * 4 + weights * 16) / 1e9
