"""How to train on a user's own scans: a plan made from their sizes, the machine and its free memory.

A plan is a small JSON file (`plan.json`) that can be read, changed and given back. Every value carries its reason.
Plans are for a network on slices (`OwnPlan`, ``dims`` 2d) or on volumes (`plan3d.VolumePlan`, 3d).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np

from pneumoscope.datasets.case import Case
from pneumoscope.errors import InputError
from pneumoscope.io.files import read_json, write_json
from pneumoscope.jobs.stamp import STARTED_FILE
from pneumoscope.plans.plan3d import VolumePlan, plan_from_volumes_model, plan_volumes
from pneumoscope.plans.survey import MOST_GIGABYTES, WINDOW_HU, Survey, TrainingPlan, memory_at_hand, require, survey

PIXEL_MM = {"cpu": 2.0, "other": 1.25}
"""Pixel size aimed at: on a processor alone the finer one takes 2.5 times as long."""

FEATURES = {"cpu": (16, 32, 64, 128), "other": (32, 64, 128, 256)}

LEAST_SLICES, THIN_MM = 48, 2.5
"""Scans speak for a network on volumes from so many slices on, no further apart than this."""

GIVEN = "given by the user"

PLAN_FILE = "plan.json"  # In the folder of a training


@dataclass(frozen=True, kw_only=True)
class OwnPlan(TrainingPlan):
    """A plan for a network on slices; see `TrainingPlan` for what it shares."""

    dims: ClassVar[str] = "2d"

    size: int = 256  # edge of the square slice the network sees, pixels
    windows_hu: tuple[tuple[float, float], ...] = (WINDOW_HU,)  # one input channel each, scaled to [0, 1]
    features: tuple[int, ...] = FEATURES["cpu"]  # filters per level of the U-Net
    loss: str = "pooled_dice_cross_entropy"  # see `training.losses.LOSSES`

    def __post_init__(self) -> None:
        super().__post_init__()
        require("size", 8 <= self.size <= 2048, self.size, "from 8 to 2048")
        require("features", bool(self.features) and min(self.features) >= 1, self.features, "numbers of at least 1")
        sound = bool(self.windows_hu) and all(low < high for low, high in self.windows_hu)
        require("windows_hu", sound, self.windows_hu, "pairs of a lower and a higher value")

    def step_gigabytes(self, batch: int | None = None) -> float:
        """See `TrainingPlan`: layers' outputs forwards and backwards in 4 bytes, weights with Adam's two averages."""
        pixels, n = self.size**2, self.batch_size if batch is None else batch
        outputs = sum(10 * f * pixels / 4**level for level, f in enumerate(self.features))
        weights = sum(40 * f * f for f in self.features)
        return (n * outputs * 2 * 4 + weights * 16) / 1e9

    def advice(self) -> str:
        """See `TrainingPlan.advice`."""
        fewer, smaller = max(1, self.batch_size // 2), max(32, self.size * 3 // 4 // 16 * 16)
        return (
            f"with batches of {self.batch_size} slices of {self.size} pixels; use --batch-size {fewer}, "
            f"or --size {smaller}, or fewer scans at a time"
        )


def read_plan(path: str | Path) -> OwnPlan | VolumePlan:
    """A plan from its file; fields that are left out keep their defaults, ``dims`` is then 2d.

    Raises:
        InputError: no JSON object, an unknown field, or a value of another kind.
    """
    content = read_json(path, remedy="write one with --plan-only")
    dims = content.pop("dims", "2d")
    if dims not in ("2d", "3d"):
        raise InputError(f"dims is 2d or 3d, got {dims!r}", path=path)
    kind: type[OwnPlan | VolumePlan] = VolumePlan if dims == "3d" else OwnPlan
    known = {field.name for field in fields(kind)}
    if strange := sorted(set(content) - known):
        raise InputError(
            f"is no {dims} plan: {', '.join(strange)} is unknown; fields are {', '.join(sorted(known))}", path=path
        )
    try:
        return msgspec.convert(content, kind)
    except InputError as problem:
        raise InputError(problem.message, path=path) from problem
    except (msgspec.ValidationError, OverflowError) as problem:
        raise InputError(f"holds a value of the wrong kind ({problem})", path=path) from problem


def plan_of_folder(out: str | Path, given: Mapping[str, Any], *, dims: str = "auto") -> OwnPlan | VolumePlan | None:
    """The plan that lies in an output folder; None where there is none.

    A training that was started keeps its plan, whatever memory is free now. A folder that holds a plan alone (of
    ``--plan-only``, and perhaps edited) has not been started: values that are given replace its own.

    Args:
        given: values of the call; None is left to the plan.
        dims: ``2d``, ``3d`` or ``auto``; what the call asks for.

    Raises:
        InputError: the plan cannot be read, or differs from the call where it must not.
    """
    path = Path(out) / PLAN_FILE
    if not path.is_file():
        return None
    plan = read_plan(path)
    if dims not in ("auto", plan.dims):
        raise InputError(f"is a plan for {plan.dims}, and {dims} was asked for; use another folder", path=path)
    started = (Path(out) / STARTED_FILE).is_file()
    for name, value in given.items():
        now = getattr(plan, name, None)
        if started and value is not None and value != now:
            raise InputError(
                f"a training was started here with {name} {now!r}, and {value!r} was asked for; resume it without, or "
                "use --overwrite to start again",
                path=path,
            )
    return plan if started else with_values(plan, **given)


def write_plan(plan: TrainingPlan, path: str | Path) -> None:
    """Write a plan to its file."""
    write_json(path, plan.as_dict())


def make_plan(
    cases: Sequence[Case], *, device: str, start: str | Path | None = None, dims: str = "auto", **wanted: Any
) -> OwnPlan | VolumePlan:
    """A plan from the scans and the machine.

    Args:
        cases: of which `survey.EXAMINED` are loaded.
        device: ``cpu`` plans smaller.
        start: the model whose weights it starts from; it also says whether slices or volumes.
        dims: ``2d``, ``3d``, or ``auto``: slices, unless there is a graphics card and the scans are thin and deep.
        wanted: values that the user gave; None is left to the plan.

    Raises:
        InputError: a value that such a plan does not have.
        ModelError: the model to start from is unknown.
    """
    from pneumoscope.models.cards import find_model, read_card

    given = {name: value for name, value in wanted.items() if value is not None}
    card = None if start is None else read_card(find_model(start))
    seen = survey(cases)
    dims, why = _dims(dims, seen, device, card, given)
    _require_fields(dims, given)
    plan: OwnPlan | VolumePlan
    if dims == "3d":
        plan = plan_volumes(seen, len(cases), device=device, **given)
        plan = replace(plan, reasons={"dims": why, **plan.reasons, **dict.fromkeys(given, GIVEN)})
        if card is not None and start is not None:
            plan = plan_from_volumes_model(plan, start, card)
    else:
        plan = _plan_slices(seen, device, start, card)
        plan = replace(plan, reasons={"dims": why, **plan.reasons})
    return replace(plan, **given, reasons={**plan.reasons, **dict.fromkeys(given, GIVEN)})


def _dims(
    wanted: str, seen: Survey, device: str, card: dict[str, Any] | None, given: dict[str, Any]
) -> tuple[str, str]:
    """Slices or volumes, and why."""
    if card is not None:
        on_volumes = "volume" in str((card.get("preprocessing") or {}).get("kind"))
        return ("3d" if on_volumes else "2d"), "of the model it starts from"
    if wanted != "auto":
        return wanted, GIVEN
    for name, dims in (("patch", "3d"), ("size", "2d")):
        if name in given:
            return dims, f"as --{name} was given"
    slices, apart = seen.shape[2], seen.spacing_mm[2]
    found = f"median of {slices} slices {apart:.2f} mm apart"
    if device == "cpu":
        return "2d", f"slices: a network on volumes takes too long on a processor; {found}, --dims 3d tries it"
    if slices < LEAST_SLICES or apart > THIN_MM:
        return "2d", f"slices: {found}, and volumes pay from {LEAST_SLICES} slices at most {THIN_MM} mm apart on"
    return "3d", f"volumes: {found}, and there is a graphics card"


def _require_fields(dims: str, given: dict[str, Any]) -> None:
    """Refuse what a plan of these dims does not have, in the words of the command line."""
    if dims == "3d" and "size" in given:
        raise InputError("--size is the edge of a slice; a plan on volumes has --patch SLICESxROWSxCOLUMNS")
    if dims == "2d" and "patch" in given:
        raise InputError("--patch is the box of a plan on volumes; one on slices has --size, or add --dims 3d")


def _plan_slices(seen: Survey, device: str, start: str | Path | None, card: dict[str, Any] | None) -> OwnPlan:
    kind = "cpu" if device == "cpu" else "other"
    wished = round(seen.field_mm / PIXEL_MM[kind] / 32) * 32
    size = max(32, min(wished, int(np.ceil(seen.matrix / 16)) * 16, 512))
    reasons = {
        "size": f"field of view {seen.field_mm:.0f} mm at {PIXEL_MM[kind]} mm a pixel, not above the scans' "
        f"{seen.matrix} pixels",
        "features": f"for {'a processor' if kind == 'cpu' else 'a graphics card'}",
        "windows_hu": "one window from air to soft tissue",
    }
    plan = OwnPlan(size=size, features=FEATURES[kind], reasons=reasons)
    if start is not None and card is not None:
        plan = _from_model(plan, start, card)
    free = memory_at_hand(device)
    fitting = [n for n in (32, 16, 8, 4, 2) if plan.step_gigabytes(n) < min(free, MOST_GIGABYTES) / 3]
    batch = min(fitting[0] if fitting else 1, 16 if kind == "cpu" else 32)
    why = f"a step of it takes about {plan.step_gigabytes(batch):.1f} of {free:.1f} GB free"
    return replace(plan, batch_size=batch, reasons={**plan.reasons, "batch_size": why})


def _from_model(plan: OwnPlan, start: str | Path, card: dict[str, Any]) -> OwnPlan:
    """The plan with what the model of the start fixes."""
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


def with_values(plan: OwnPlan | VolumePlan, **given: Any) -> OwnPlan | VolumePlan:
    """The plan with the values that are not None; they carry the user's reason.

    Raises:
        InputError: a value that such a plan does not have.
    """
    values = {name: value for name, value in given.items() if value is not None}
    _require_fields(plan.dims, values)
    return replace(plan, **values, reasons={**plan.reasons, **dict.fromkeys(values, GIVEN)})
