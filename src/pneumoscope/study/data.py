"""The sets of a study: found or made, turned into slices, split into training, validation and test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.datasets.cache import open_cache
from pneumoscope.datasets.case import Case, LabelledScan, content_of_scan
from pneumoscope.datasets.slices import SliceStack
from pneumoscope.datasets.splits.draw import Shortage, balanced_draw, held_out_draw, leaking, patient_split
from pneumoscope.datasets.tensors import LungFinder, SliceRecipe, SliceSet, build_slice_set
from pneumoscope.errors import DatasetError, InputError
from pneumoscope.io.files import write_frame
from pneumoscope.jobs.stamp import content_of_arrays, content_of_table, stamp
from pneumoscope.preprocess.slices import HuWindow
from pneumoscope.progress import Progress, silent
from pneumoscope.recipes.schema import Experiment, Preprocessing, Site, Split
from pneumoscope.study.eight_bit import grey_slice_set, read_stacks, stack_of_case
from pneumoscope.volume import Mask, Volume

Scans = list[Case] | list[SliceStack]
"""The scans of a set: to be loaded one by one, or 8-bit slices that are here already."""

PHANTOM_FOLDER = Path("data") / "phantom"  # Where a study without data puts its synthetic sites


@dataclass(frozen=True, eq=False)
class StudyDataset:
    """One dataset, ready."""

    site: Site  # its description in the experiment
    slices: SliceSet  # every slice kept: those with lung, and for sets that teach the lung network those without
    split: pd.DataFrame  # table ``case,slice,patient,part`` over the slices with lung
    leaks: tuple[str, ...]  # patients that stand in more than one part
    name: str = ""  # what its files are called
    supplied: int = 0  # scans whose lungs the study's own network found
    # by name, for systems that load them; none for 8-bit slices
    scans: Mapping[str, Case] = field(default_factory=dict)
    lungs_for: LungFinder | None = None  # finds the lungs of scans without lung mask

    def rows(self, *parts: str) -> NDArray[np.intp]:
        """Indices into `slices` of a part of the split, or in order of several; of all without a name."""
        found = [self.slices.indices_of(self.split, part) for part in parts or ("train", "val", "test")]
        return found[0] if len(found) == 1 else np.sort(np.concatenate(found))

    @cached_property
    def content(self) -> str:
        """Sum over slices, masks, what is known of each slice, and the split."""
        slices = self.slices
        split = self.split.sort_values(["case", "slice"], kind="stable")[["case", "slice", "patient", "part"]]
        arrays = content_of_arrays(slices.images, slices.target, slices.lungs)
        table = content_of_table(slices.table)
        return stamp("set", revision=1, arrays=arrays, table=table, split=content_of_table(split))

    def scan_content(self, case: str) -> str:
        """Sum over a scan as systems that load it see it; read once."""
        if case not in self._scan_contents:
            self._scan_contents[case] = content_of_scan(self.scans[case].load())
        return self._scan_contents[case]

    @cached_property
    def _scan_contents(self) -> dict[str, str]:
        return {}


def require_data(recipe: str, data: Mapping[str, Any], synthetic: bool) -> None:
    """Ask for data, or for the word that none are meant: a run on made-up scans must not be taken for the paper's.

    Raises:
        InputError: neither is given, or both.
    """
    if data and synthetic:
        raise InputError("--data and --synthetic exclude each other; give the datasets, or run on synthetic scans")
    if not data and not synthetic:
        raise InputError(
            f"{recipe} needs its datasets, --data NAME=ROOT each (`pneumoscope study show {recipe}` names them), or "
            "--synthetic to run on synthetic scans"
        )


def roots_of(experiment: Experiment, data: Mapping[str, Path]) -> dict[int, Path]:
    """Which folder belongs to which set; empty when the study runs on synthetic sites.

    Args:
        data: ``name -> folder``; a name is a set's dataset (``medseg``) or its number (``2``). Sets of 8-bit slices
            share one root, ``slices``, or are named by their source (``coronacases``).

    Raises:
        InputError: a name fits no set, several sets, or some sets are given and others are not.
    """
    roots: dict[int, Path] = {}
    for name, root in data.items():
        sites = _sites_named(experiment, name, "--data", several=name == "slices")
        if not Path(root).exists():
            raise InputError(f"--data {name}: there is no such folder", path=root)
        roots |= {site.number: Path(root) for site in sites}
    missing = [f"{_names(s)[0]} (or {s.number})" for s in experiment.data.sites if s.number not in roots]
    if roots and missing:
        raise InputError(
            f"--data is missing for {', '.join(missing)}; give all sets, or --synthetic instead for synthetic scans"
        )
    return roots


def _names(site: Site) -> tuple[str, ...]:
    """What `--data` may call a set, the plainest name first."""
    own = (site.label,) if site.dataset == "slices" else ()
    return (*own, site.dataset, str(site.number))


def _sites_named(experiment: Experiment, name: str, option: str, *, several: bool = False) -> list[Site]:
    sites = [s for s in experiment.data.sites if name in _names(s)]
    if len(sites) != 1 and not (several and sites):
        known = ", ".join(f"{_names(s)[0]} (or {s.number})" for s in experiment.data.sites)
        raise InputError(f"{option} {name}: fits {len(sites)} sets of {experiment.recipe}, expected one of {known}")
    return sites


def has_mask(case: Case, classes: str = "infiltrate") -> bool:
    """Whether infiltrate (or ``lungs``) was annotated: 1060 of the 1110 scans of MosMed have no infiltrate."""
    return case.files is None or (case.files.lungs if classes == "lungs" else case.files.infiltrate) is not None


def lung_folders(experiment: Experiment, given: Mapping[str, str | Path]) -> dict[int, Path]:
    """Folders of lung masks made elsewhere, by set number; they are given by the name or number of a set.

    Raises:
        InputError: a name fits no set or several; the sets are 8-bit pictures, which have no grid to lay masks on.
    """
    if given and experiment.preprocessing.intensity == "grey8":
        raise InputError("--lungs is for scans in Hounsfield units; these sets are 8-bit pictures")
    return {_sites_named(experiment, name, "--lungs")[0].number: Path(folder) for name, folder in given.items()}


def find_cases(
    experiment: Experiment, roots: Mapping[int, Path], out: Path, progress: Progress = silent, *,
    lungs: Mapping[int, Path] | None = None,
) -> dict[int, Scans]:  # fmt: skip
    """The cases of each set, from the folders given or from synthetic sites made below `out`.

    Sets of 8-bit slices come as stacks, already read: they are small.

    Args:
        roots: folder by set number; none for synthetic sites.
        out: the study folder, where synthetic sites are made.
        lungs: folders of lung masks by set number, for sets without their own.

    Raises:
        InputError: a set without a case that fits its pattern.
        DatasetError: a case without a mask in its folder of lung masks.
    """
    from pneumoscope.datasets.formats.manifest import with_lung_masks
    from pneumoscope.datasets.registry import read_dataset

    grey = experiment.preprocessing.intensity == "grey8"
    found: dict[int, Scans] = {}
    for done, site in enumerate(experiment.data.sites, start=1):
        cases: Scans
        if roots and grey:
            cases = read_stacks(roots[site.number], site)
        elif roots:
            cases = [
                c for c in read_dataset(site.dataset, roots[site.number]) if fnmatch(c.case, site.cases) and has_mask(c)
            ]
        elif grey:
            cases = [stack_of_case(case) for case in _phantom_cases(experiment, site, out, progress)]
        else:
            cases = _phantom_cases(experiment, site, out, progress)
        if not cases:
            raise InputError(
                f"set {site.number} ({site.dataset}) has no case named {site.cases!r}", path=roots.get(site.number)
            )
        masks = (lungs or {}).get(site.number)
        found[site.number] = cases if masks is None else with_lung_masks(cases, masks)  # type: ignore[arg-type]
        progress("data", done, len(experiment.data.sites), f"set {site.number}: {len(cases)} scans")
    return found


def _phantom_cases(experiment: Experiment, site: Site, out: Path, progress: Progress) -> list[Case]:
    alike = [s for s in experiment.data.sites if s.phantom_site == site.phantom_site]
    name = f"{site.phantom_site}-{site.number}" if len(alike) > 1 else site.phantom_site
    return make_phantoms(experiment.data, site, out / PHANTOM_FOLDER / name, progress, alike.index(site))


def make_phantoms(data: Any, site: Any, folder: Path, progress: Progress, number: int = 0) -> list[Case]:
    """The synthetic scans that stand in for a set; those of each `number` are other patients."""
    from pneumoscope.datasets.phantom.folder import read_phantom, write_phantom

    write_phantom(
        folder, site.phantom_site, site.phantom_patients, seed=data.phantom_seed + number, size=data.phantom_size,
        progress=progress,
    )  # fmt: skip
    return read_phantom(folder)


def slice_recipe(preprocessing: Preprocessing, *, only_lung_slices: bool) -> SliceRecipe:
    """The preprocessing as the slice builder takes it."""
    return SliceRecipe(
        windows=tuple(HuWindow(low, high) for low, high in preprocessing.windows_hu),
        size=preprocessing.size,
        lung_channel=preprocessing.lung_channel,
        only_lung_slices=only_lung_slices,
        store="uint8" if preprocessing.store == "uint8" else "float16",
    )


class LungSource(Protocol):
    """Finds lungs where a set has none: of a scan in Hounsfield units, or of 8-bit pictures."""

    def __call__(self, volume: Volume) -> Mask:
        """The lungs of a scan."""

    def of_pictures(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Lungs (n, h, w) of pictures (n, 1, h, w)."""


def build_set(
    experiment: Experiment, site: Site, cases: Scans, folder: Path, *, name: str = "",
    lungs_for: LungFinder | LungSource, progress: Progress = silent,
) -> StudyDataset:  # fmt: skip
    """Read one set into slices and split it; the split is written, or compared with the one written before.

    `name` is that of `set_names`; without one, what the set would be called alone.

    Raises:
        DatasetError: the set cannot be read or split.
        InputError: the split of a resumed study differs: the data have changed; or the set cannot teach anything.
    """
    grey = experiment.preprocessing.intensity == "grey8"
    read = _grey_slices if grey else _hu_slices
    name = name or _plain_name(site, cases)
    slices, supplied = read(experiment, site, cases, lungs_for, progress)  # type: ignore[arg-type, operator]
    split = draw_split(slices.table, experiment.split, unfit=unfit_patients(slices, experiment.split.judged_pixels))
    rows = split.sort_values(["case", "slice"], kind="stable")[["case", "slice", "patient", "part"]]
    keep_split(rows, folder / "splits" / f"{name}.csv")
    scans: dict[str, Case] = {} if grey else {c.case: _in_hounsfield_units(c, site) for c in cases}  # type: ignore[arg-type]
    leaks = tuple(leaking(split["part"], split["patient"]))
    study_set = StudyDataset(site, slices, split, leaks, name, supplied, scans, lungs_for)
    learns = experiment.split.by != "none"
    if learns and not (slices.target[study_set.rows("train")] > 0).any():
        raise InputError(
            f"set {site.number} ({name}) has no infiltrate in its {len(study_set.rows('train'))} training slices; "
            "there is nothing to learn from it: check its masks, or split with another split.seed"
        )
    return study_set


def _hu_slices(
    experiment: Experiment, site: Site, cases: list[Case], lungs_for: LungFinder, progress: Progress
) -> tuple[SliceSet, int]:
    """Slices of scans in Hounsfield units, and for how many scans lungs were supplied."""
    teaches_lungs = site.number in experiment.lung.sites
    recipe = slice_recipe(experiment.preprocessing, only_lung_slices=not teaches_lungs)
    found: list[str] = []

    def find_lungs(volume: Volume) -> Mask:
        found.append(volume.case)
        return lungs_for(volume)

    slices = build_slice_set(
        [_in_hounsfield_units(case, site) for case in cases],
        recipe,
        lungs_for=find_lungs,
        progress=lambda done, total: progress(f"reading set {site.number}", done, total),
        cache=open_cache(),
    )
    return slices, len(found)


def _grey_slices(
    experiment: Experiment, site: Site, stacks: list[SliceStack], lungs_for: LungSource, progress: Progress
) -> tuple[SliceSet, int]:
    """Slices of 8-bit pictures, and for how many scans lungs were supplied."""
    slices = grey_slice_set(
        stacks, experiment.preprocessing, lungs_for=lungs_for.of_pictures, progress=progress,
        what=f"reading set {site.number}",
    )  # fmt: skip
    return slices, sum(stack.lungs is None for stack in stacks)


def _in_hounsfield_units(case: Case, site: Site) -> Case:
    """The case, refusing when it is loaded what cannot be Hounsfield units: air is far below 0."""

    return replace(case, load=partial(_load_hu, case.load, case.case, site.number))


def _load_hu(load: Callable[[], LabelledScan], case: str, site: int) -> LabelledScan:
    scan = load()
    low, high = float(scan.volume.hu.min()), float(scan.volume.hu.max())
    if low >= 0:
        raise InputError(
            f"case {case} of set {site} has values from {low:g} to {high:g}: no Hounsfield units (air "
            "is near -1000); convert it, or give 8-bit slices to a recipe that takes them, such as transfer-slices"
        )
    return scan


def unfit_patients(slices: SliceSet, least_pixels: int) -> set[str]:
    """Patients with fewer infected pixels than that in all: a score on them is chance."""
    pixels = np.count_nonzero(slices.target, axis=(1, 2))
    by_patient = pd.Series(pixels).groupby(slices.table["patient"].astype(str).to_numpy()).sum()
    return set(by_patient.index[by_patient < least_pixels])


def set_names(experiment: Experiment, cases: Mapping[int, Scans]) -> dict[int, str]:
    """What the files of each set are called, by number: its dataset, ``phantom-C`` for synthetic scans of site C.

    The scans themselves say what they are, whatever set they stand in for. Sets of one name are numbered.
    """
    names = {site.number: _plain_name(site, cases[site.number]) for site in experiment.data.sites}
    often = Counter(names.values())
    return {number: f"{name}-{number}" if often[name] > 1 else name for number, name in names.items()}


def _plain_name(site: Site, cases: Scans) -> str:
    kind = cases[0].dataset
    if kind == "phantom" or kind.startswith("phantom-"):
        sources = {case.source.removeprefix("phantom-") for case in cases}
        return f"phantom-{sources.pop()}" if len(sources) == 1 else "phantom"
    return kind if kind.startswith("slices-") else site.dataset


def draw_split(table: pd.DataFrame, split: Split, *, unfit: Collection[str] = ()) -> pd.DataFrame:
    """Parts of the slices with lung, by slice as the paper or by patient.

    Patients that are `unfit` to be judged by train only; by slice they are treated like any other.
    """
    rows = table[table["has_lung"].astype(bool)]
    if split.by == "none":
        return rows[["case", "slice", "patient"]].assign(part="test").reset_index(drop=True)
    if split.by == "slice":
        shortage = cast(Shortage, split.shortage)
        sizes = (split.train_slices, split.validation_slices, split.seed)
        if split.held_out_share:
            return held_out_draw(rows, split.held_out_share, *sizes, shortage=shortage)
        return balanced_draw(rows, *sizes, shortage=shortage)
    drawn = split.train_slices + split.validation_slices
    kept = 1 - split.patient_test_share
    shares = {"train": kept * split.train_slices / drawn, "val": kept * split.validation_slices / drawn}
    aside = rows["patient"].astype(str).isin(set(unfit))
    fit = rows.loc[~aside, "patient"].nunique()
    if fit < 3:
        raise DatasetError(
            f"a split by patient needs at least 3 patients to judge by, there are {fit}"
            + (f" with {split.judged_pixels} or more infected pixels (split.judged_pixels)" if aside.any() else "")
            + "; give more patients, or split by slice with --set split.by=slice"
        )
    parts = patient_split(rows[~aside], {**shares, "test": split.patient_test_share}, split.seed)
    if aside.any():
        only_train = rows.loc[aside, ["case", "slice", "patient"]].assign(part="train")
        parts = pd.concat([parts, only_train]).sort_values(["case", "slice"], kind="stable").reset_index(drop=True)
    assert not leaking(parts["part"], parts["patient"])
    return parts


def keep_split(split: pd.DataFrame, path: Path) -> None:
    """Write who is in which part, or see that the table which is there says the same, in whatever order.

    Raises:
        InputError: it differs: the data have changed since the study was started.
    """
    if not path.is_file():
        write_frame(path, split)
        return
    columns, before = [str(name) for name in split], pd.DataFrame()
    with suppress(OSError, ValueError):
        before = pd.read_csv(path, dtype=str, keep_default_na=False)
    now = split.astype(str).sort_values(columns, ignore_index=True)
    if list(before) != columns or not before.sort_values(columns, ignore_index=True).equals(now):
        raise InputError(
            "differs from the split of the data as they are now: cases, patients or lung masks have changed since the "
            "study was started; use --overwrite to start again",
            path=path,
        )
