"""Which of a user's patients teach, choose the epoch, and test; patients stay whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.case import Case, LabelledScan
from pneumoscope.datasets.splits.folds import group_members, members_of, share_fold
from pneumoscope.errors import DatasetError, InputError
from pneumoscope.inference.inputs import AppearanceInput, HuFrameInput, HuWindowInput, LungFrameInput, ModelInput
from pneumoscope.io.files import write_csv
from pneumoscope.plans.plan import OwnPlan, make_plan, plan_of_folder, read_plan, with_values
from pneumoscope.plans.plan3d import VolumePlan
from pneumoscope.plans.survey import TrainingPlan
from pneumoscope.preprocess.slices import resize_nearest, to_slices
from pneumoscope.progress import Progress, silent
from pneumoscope.study.data import has_mask
from pneumoscope.study.learners.slices import Slices
from pneumoscope.volume import Mask, Volume

TOLERATED = 0.03  # Difference between a share that was asked for and the one of the split that needs no word


@dataclass(frozen=True)
class Parts:
    """Cases by what they are for."""

    train: list[Case]  # to learn from
    val: list[Case]  # to choose the epoch on
    test: list[Case]  # scored once, at the end; may be empty

    @property
    def cases(self) -> list[Case]:
        """All of them."""
        return [*self.train, *self.val, *self.test]

    def write(self, path: Path) -> None:
        """``dataset,case,patient,part`` as a table."""
        parts = (("train", self.train), ("val", self.val), ("test", self.test))
        rows = [(c.dataset, c.case, c.patient, part) for part, cases in parts for c in cases]
        write_csv(path, ("dataset", "case", "patient", "part"), rows)

    def remark(self, plan: TrainingPlan) -> str:
        """What became of the shares of the plan where patients that stay whole do not allow them; else empty."""
        total = len(self.train) + len(self.val) + len(self.test)
        shares = (("validation_share", plan.validation_share, self.val), ("test_share", plan.test_share, self.test))
        return "; ".join(
            f"{name} {wanted:g} was asked for, {len(part)} of {total} scans ({len(part) / total:.2f}) were held out, "
            "as patients stay whole"
            for name, wanted, part in shares
            if abs(len(part) / total - wanted) > TOLERATED
        )


def split_by_plan(cases: Sequence[Case], plan: TrainingPlan) -> Parts:
    """The test patients are drawn first, then the others are split; without a test share as `split_patients`.

    Raises:
        InputError: too few patients.
    """
    if not plan.test_share:
        train, val = split_patients(cases, plan.validation_share, plan.seed)
        return Parts(train, val, [])
    patients = len(set(group_members(members_of(cases)).values()))
    if patients < 3:
        raise InputError(
            f"a test part beside training and validation needs at least 3 patients, there are {patients}; add some, "
            "fill in the column patient, or leave out --test-share"
        )
    rest, test = split_patients(cases, plan.test_share if patients > 3 else 1 / 3, plan.seed)
    train, val = split_patients(rest, plan.validation_share / (1 - plan.test_share), plan.seed)
    return Parts(train, val, test)


def split_patients(cases: Sequence[Case], share: float, seed: int) -> tuple[list[Case], list[Case]]:
    """Two parts, the second about `share` of the cases, as near as whole patients allow.

    Raises:
        InputError: all scans are of one patient.
    """
    groups = group_members(members_of(cases))
    patients = len(set(groups.values()))
    if patients < 2:
        raise InputError(
            f"{len(cases)} scans of one patient cannot be split into training and validation; add patients, or fill "
            "in the column patient of the table"
        )
    fold = share_fold(groups, share, seed)
    held = {member.case for member in fold.test}
    return [c for c in cases if c.case not in held], [c for c in cases if c.case in held]


LungFinder = Callable[[Volume], Mask]


def read_own_cases(data: Mapping[str, Path]) -> list[Case]:
    """Cases with an infiltrate mask, of every dataset given as ``name -> root`` (``manifest`` for a CSV).

    Raises:
        InputError: an unknown name, nothing with a mask, or two cases of one name.
    """
    from pneumoscope.datasets.registry import read_dataset

    cases = [case for name, root in data.items() for case in read_dataset(name, root) if has_mask(case)]
    if not cases:
        raise InputError("no scan has an infiltrate mask; list scans and masks in a CSV (case,image,lungs,infiltrate)")
    names = [case.case for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{len(twice)} case names occur twice over the datasets, first {twice[0]}; rename them")
    return sorted(cases, key=lambda case: case.case)


def data_roots(data: str | Path | Sequence[str | Path] | Mapping[str, str | Path]) -> dict[str, Path]:
    """Datasets by name from a manifest, ``NAME=ROOT``, several of these, or a mapping.

    Raises:
        InputError: a name is given twice.
    """
    if isinstance(data, Mapping):
        return {name: Path(root) for name, root in data.items()}
    roots: dict[str, Path] = {}
    for value in [data] if isinstance(data, (str, Path)) else data:
        name, equals, root = str(value).partition("=")
        name, root = (name, root) if equals and not Path(value).exists() else ("manifest", str(value))
        if name in roots:
            raise InputError(f"{name} is given twice as data; give each dataset once")
        roots[name] = Path(root)
    return roots


def plan_for(
    data: str | Path | Sequence[str | Path] | Mapping[str, str | Path],
    out: str | Path,
    *,
    plan: str | Path | None = None,
    device: str = "auto",
    dims: str = "auto",
    start: str | Path | None = None,
    overwrite: bool = False,
    **wanted: Any,
) -> tuple[list[Case], OwnPlan | VolumePlan]:
    """The cases of `data`, and the plan: from a file, the one in `out`, or a new one; what is `wanted` replaces values.

    Args:
        data: see `data_roots`.
        device: that is planned for.
        dims: ``auto``, ``2d`` or ``3d``.
        start: the model to start from.
        overwrite: make a new plan although `out` holds one.
        wanted: fields of the plan; None leaves the plan's value.

    Raises:
        InputError: data that cannot be read, a plan of other dimensions, or a plan in `out` for another start.
    """
    from pneumoscope.training.devices import pick_device

    roots = data_roots(data)
    if plan is not None:
        read = read_plan(plan)
        if dims not in ("auto", read.dims):
            raise InputError(f"the plan {Path(plan).name} is {read.dims}, but {dims} was asked for")
        return read_own_cases(roots), with_values(read, **wanted)
    kept = None if overwrite else plan_of_folder(out, wanted, dims=dims)
    cases = read_own_cases(roots)
    if kept is None:
        more = {} if start is None else {"start": start}
        return cases, make_plan(cases, device=pick_device(device).type, dims=dims, **more, **wanted)
    if kept.start != (None if start is None else str(start)):
        raise InputError(f"holds a plan that starts from {kept.start or 'new weights'}; use another folder", path=out)
    return cases, kept


def own_lungs(device: str, precision: str) -> LungFinder:
    """Finds lungs with the shipped model, for scans that come without; loaded on first use."""
    loaded: list[LungFinder] = []

    def find(volume: Volume) -> Mask:
        from pneumoscope.inference.segmenter import LungFinder as Shipped

        if not loaded:
            loaded.append(Shipped(device=device, precision=precision))
        return loaded[0](volume)

    return find


def case_slices(case: Case, scan: LabelledScan, preprocessing: ModelInput, lungs_for: LungFinder) -> Slices:
    """The slices of one scan that show lung; none where no lung is found.

    Raises:
        DatasetError: no infiltrate mask.
    """
    if scan.infiltrate is None:
        raise DatasetError(f"case {case.case!r} has no infiltrate mask; it cannot teach anything")
    lungs = scan.lungs if scan.lungs is not None else lungs_for(scan.volume)
    inside, stack = to_slices(lungs.labels) > 0, to_slices(scan.volume.hu)
    rows = np.flatnonzero(inside.any(axis=(1, 2)))
    fitted = preprocessing.fitted(inside)
    images = fitted.images(np.ascontiguousarray(stack[rows]), np.ascontiguousarray(inside[rows]))
    if images.dtype != np.uint8:
        images = np.rint(np.clip(np.asarray(images, np.float32), 0, 1) * 255).astype(np.uint8)
    target = _target(fitted, np.ascontiguousarray(to_slices(scan.infiltrate.labels)[rows] > 0))
    return np.asarray(images, np.uint8), target[:, None], [f"{case.case}/{row}" for row in rows]


def _target(fitted: ModelInput, infected: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The mask moved as the preprocessing moves the slice."""
    labels = infected.astype(np.uint8)
    if isinstance(fitted, (LungFrameInput, HuFrameInput)):
        assert fitted.crop is not None  # `fitted` was called
        size = fitted.size if isinstance(fitted, HuFrameInput) else fitted.appearance.size
        moved = fitted.crop.cut(resize_nearest(labels, size) * np.uint8(255), nearest=True)
        return (np.asarray(moved, np.uint8) > 127).astype(np.uint8)
    if isinstance(fitted, (HuWindowInput, AppearanceInput)):
        return np.ascontiguousarray(resize_nearest(labels, fitted.size))
    raise InputError(f"slices for {type(fitted).__name__} cannot be made")


def gather(
    cases: Sequence[Case], preprocessing: ModelInput, lungs_for: LungFinder, progress: Progress = silent
) -> Slices:
    """The slices of several scans, one scan in memory at a time: images 255 times the network's input, 1 = infiltrate.

    Raises:
        InputError: no slice shows lung, or none infiltrate.
    """
    parts = []
    for done, case in enumerate(cases, start=1):
        parts.append(case_slices(case, case.load(), preprocessing, lungs_for))
        progress("reading", done, len(cases), case.case)
    images, target = (np.concatenate([part[n] for part in parts]) for n in (0, 1))
    if not len(images) or not target.any():
        raise InputError(f"{len(cases)} scans hold {len(images)} slices with lung and no infiltrate on them")
    return images, target, [name for part in parts for name in part[2]]
