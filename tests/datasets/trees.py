"""Public datasets as they lie on people's disks, with synthetic scans inside: names, labels, headers and quirks.

Each ``make_X(root, variant=...)`` writes a tree below `root` and returns the folder a user would name. Scans are tiny
phantoms (`patient`), made once per session; their sites stand in for the hospitals: A for MedSeg and Radiopaedia,
B for Coronacases, C for MosMed. What a reader should give for a case is in `EXPECTED`.

For tests of any reader::

    TREES["medseg"](tmp_path)             # the plain tree; returns the folder
    EXPECTED["medseg"]("rp_1")            # LabelledScan: masks exactly, HU within 0.01
    make_covid19ctseg(tmp_path, variant="combined", cases=("coronacases_001",))

To add a set: a function here, an entry in `TREES` and, where the scan is a phantom, in `EXPECTED`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from trees_more import EXPECTED_MORE, N_PATIENTS, TREES_MORE, patient, save

from pneumoscope.datasets.case import LabelledScan
from pneumoscope.datasets.phantom.folder import PhantomScan
from pneumoscope.geometry import Grid
from pneumoscope.volume import INFILTRATE_LABEL, INFILTRATE_LABELS, LUNG_LABELS, Mask, Volume


def turned_round(grid: Grid, axis: int) -> Grid:
    """The header of somebody who believes that this voxel axis runs the other way."""
    affine = grid.affine.copy()
    last = [0, 0, 0]
    last[axis] = grid.shape[axis] - 1
    affine[:3, 3] = grid.world(last)
    affine[:3, axis] *= -1
    return Grid(grid.shape, affine)


def named(folder: Path, stem: str, style: str = "nii.gz", inner: str | None = None) -> Path:
    """Where a file of this stem lies: ``nii.gz``, ``nii``, or ``folder`` (a folder called X.nii.gz with one .nii)."""
    if style == "folder":
        return folder / f"{stem}.nii.gz" / f"{inner or stem}.nii"
    return folder / f"{inner or stem}.{style}"


# --- MedSeg set 2 -----------------------------------------------------------------------------------------------


def make_medseg(root: Path, *, variant: str = "plain", cases: Iterable[int] = range(1, 10)) -> Path:
    """Nine volumes ``rp_im``, ``rp_msk``, ``rp_lung_msk``.

    Variants: ``plain`` (.nii.gz), ``nii``, ``nested`` (rp_im/rp_im/1.nii.gz), ``folders`` (rp_im/1.nii.gz/1.nii),
    ``outer`` (everything inside a folder ``13521509``). Volume 2 has stray lung labels 3 and pleural effusion (3).
    """
    top = root / "13521509" if variant == "outer" else root
    style = {"nii": "nii", "folders": "folder"}.get(variant, "nii.gz")
    for number in cases:
        scan = patient("A", number).scan
        lungs, drawn = scan.lungs.labels.copy(), scan.infiltrate.labels.copy()
        if number == 2:
            lungs[:2, :2, :2] = 3
            drawn[-2:, -2:, -2:] = 3
        for name, array in (("rp_im", scan.volume.hu), ("rp_msk", drawn), ("rp_lung_msk", lungs)):
            folder = top / name / name if variant == "nested" else top / name
            save(named(folder, str(number), style), array, scan.volume.native)
    return root


def _expected_medseg(case: str) -> LabelledScan:
    return patient("A", int(case.removeprefix("rp_"))).scan


# --- MedSeg set 1 -----------------------------------------------------------------------------------------------

STACK_GRID = Grid.from_spacing((64, 64, 100), (5.2, 5.2, 1.0)).reorient(("L", "P", "S"))


def slice_of_stack(number: int) -> tuple[PhantomScan, int]:
    """Which slice of which phantom stands for a slice of the stack; the validation slices begin at 100."""
    made = patient("A", number)
    return made, (number // N_PATIENTS) % made.lungs.grid.shape[2]


def make_medseg_slices(root: Path, *, variant: str = "plain") -> Path:
    """100 slices ``tr_im``, ``tr_mask``, ``tr_lungmasks_updated`` and 10 ``val_im``.

    Variants: ``plain`` (.nii.gz), ``nii``, ``folders``, ``no-lungs``, ``no-validation``, ``identity`` (headers that
    are the unit matrix: the voxels lie L, P whatever it says).
    """
    style = {"nii": "nii", "folders": "folder"}.get(variant, "nii.gz")
    header = Grid(STACK_GRID.shape, np.eye(4)) if variant == "identity" else STACK_GRID
    stacks = {"tr_im": _stack("hu", 0, 100), "tr_mask": _stack("infiltrate", 0, 100)}
    if variant != "no-lungs":
        stacks["tr_lungmasks_updated"] = _stack("lungs", 0, 100)
    if variant != "no-validation":
        stacks["val_im"] = _stack("hu", 100, 110)
    for stem, array in stacks.items():
        shape = array.shape
        save(named(root, stem, style), array, Grid(shape, STACK_GRID.affine), Grid(shape, header.affine))
    (root / "Test-Images-Clinical-Details.csv").write_text("no,details\n")
    return root


def _stack(what: str, start: int, stop: int) -> np.ndarray:
    planes = []
    for number in range(start, stop):
        made, k = slice_of_stack(number)
        array = made.scan.volume.hu if what == "hu" else getattr(made.scan, what).labels
        planes.append(array[:, :, k])
    return np.stack(planes, axis=2)


def _expected_medseg_slices(case: str) -> LabelledScan:
    part, _, index = case.partition("_")
    made, k = slice_of_stack(int(index) + (100 if part == "val" else 0))
    native = STACK_GRID.crop((0, 0, int(index)), (64, 64, 1))
    grid = native.reorient(("R", "A", "S"))
    volume = Volume(made.scan.volume.hu[:, :, k : k + 1], grid, native, case)
    if part == "val":
        return LabelledScan(volume)
    lungs = Mask(made.scan.lungs.labels[:, :, k : k + 1], grid, LUNG_LABELS)
    return LabelledScan(volume, lungs, Mask(made.scan.infiltrate.labels[:, :, k : k + 1], grid, INFILTRATE_LABELS))


# --- COVID-19-CT-Seg --------------------------------------------------------------------------------------------

MA_KEYS = (
    "4_85506_1", "7_85703_0", "10_85902_1", "10_85902_3", "14_85914_0", "27_86410_0", "29_86490_1", "29_86491_1",
    "36_86526_0", "40_86625_0",
)  # fmt: skip
MA_CASES = (*(f"coronacases_{n:03d}" for n in range(1, 11)), *(f"radiopaedia_{key}" for key in MA_KEYS))
ZENODO = ("COVID-19-CT-Seg_20cases", "Lung_Mask", "Infection_Mask", "Lung_and_Infection_Mask")
KAGGLE = ("ct_scans", "lung_mask", "infection_mask", "lung_and_infection_mask")


def embedded_name(case: str) -> str:
    """The name inside the gzip member of a scan, which 7-Zip brings to light."""
    kind, _, key = case.partition("_")
    if kind == "radiopaedia":
        return f"radiopaedia_org_covid-19-pneumonia-{key}-dcm"
    odd = {"007": "coronacases_org_case007", "009": "case009", "010": "coronacases_org_case010"}
    return odd.get(key, f"coronacases_org_{key}")


def ma_scan(case: str) -> LabelledScan:
    """The phantom behind a case, as it lies in truth: Coronacases (L, A, S), Radiopaedia (L, P, S), one (L, P, I).

    Radiopaedia scans have been through 256 grey levels.
    """
    number = MA_CASES.index(case)
    scan = patient("B" if case.startswith("corona") else "A", number).scan
    codes = ("L", "A", "S") if case.startswith("corona") else ("L", "P", "S")
    codes = ("L", "P", "I") if case == "radiopaedia_7_85703_0" else codes
    start, shape = (0, 0, 0), scan.volume.grid.shape
    if case == "radiopaedia_14_85914_0":  # the one that is not square
        start, shape = (0, 11, 0), (shape[0], 41, shape[2])
    grid = scan.volume.grid.crop(start, shape)
    part = tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))
    hu = scan.volume.hu[part]
    hu = hu if case.startswith("corona") else to_grey(hu) * np.float32(1500 / 255) - np.float32(1250)
    volume = Volume(hu, grid, grid.reorient(codes), case)
    infiltrate = (scan.infiltrate.labels[part] > 0).astype(np.uint8)
    return LabelledScan(
        volume, Mask(scan.lungs.labels[part], grid, LUNG_LABELS), Mask(infiltrate, grid, INFILTRATE_LABEL)
    )


def ma_header(case: str, native: Grid) -> Grid:
    """The header the set gives this case: mirrored for Radiopaedia."""
    if case.startswith("corona"):
        return native
    header = turned_round(native, 1)
    return turned_round(header, 2) if case == "radiopaedia_7_85703_0" else header


def to_grey(hu: np.ndarray) -> np.ndarray:
    """Window [-1250, 250] HU on 0..255, as the Radiopaedia scans."""
    return np.clip(np.rint((hu + 1250) / 1500 * 255), 0, 255).astype(np.uint8)


def make_covid19ctseg(root: Path, *, variant: str = "zenodo", cases: Iterable[str] = MA_CASES) -> Path:
    """Scans and up to three folders of masks.

    Variants: ``zenodo``, ``nested`` (each folder in one of its own name), ``kaggle`` (ct_scans ..., plain .nii),
    ``sevenzip`` (names from inside the gzip members), ``mixed`` (long names for scans, short ones for masks),
    ``folders`` (coronacases_001.nii.gz/coronacases_org_001.nii), ``combined`` (the combined mask only), ``separate``
    (lungs and infection only), ``decimals`` (masks with fractions).
    """
    folders = KAGGLE if variant == "kaggle" else ZENODO
    style = {"kaggle": "nii", "sevenzip": "nii", "folders": "folder"}.get(variant, "nii.gz")
    long = variant in ("kaggle", "sevenzip", "mixed", "folders")
    for case in cases:
        scan = ma_scan(case)
        native = scan.volume.native
        image = scan.volume.hu if case.startswith("corona") else to_grey(scan.volume.hu)
        inner = f"coronacases_org_{case[-3:]}" if variant == "kaggle" and "corona" in case else embedded_name(case)
        arrays = {folders[0]: image.astype(np.int16), **_ma_masks(scan, folders, variant)}
        for folder, array in arrays.items():
            where = root / folder / folder if variant == "nested" else root / folder
            short = folder != folders[0] or not long
            save(named(where, case, style, None if short else inner), array, native, ma_header(case, native))
    if variant == "kaggle":
        (root / "metadata.csv").write_text("ct_scan,lung_mask,infection_mask,lung_and_infection_mask\n")
    return root


def _ma_masks(scan: LabelledScan, folders: tuple[str, ...], variant: str) -> dict[str, np.ndarray]:
    lungs = np.array([0, 2, 1], np.uint8)[scan.lungs.labels]  # left is 1 in this set
    infection = scan.infiltrate.labels
    masks = {folders[1]: lungs, folders[2]: infection, folders[3]: np.where(infection > 0, 3, lungs).astype(np.uint8)}
    if variant == "decimals":
        masks = {name: array.astype(np.float64) * 0.9 for name, array in masks.items()}
    kept = {"combined": folders[3:], "separate": folders[1:3]}.get(variant, folders[1:])
    return {name: masks[name] for name in kept}


# --- MosMed -----------------------------------------------------------------------------------------------------

MOSMED = {
    "CT-0": (1, 254), "CT-1": (255, 256, 304, 938), "CT-2": (939, 1063), "CT-3": (1064, 1108), "CT-4": (1109, 1110),
}  # fmt: skip
MOSMED_MASKED = (255, 256, 304)
MOSMED_COUNTS = {"CT-0": (1, 254), "CT-1": (255, 938), "CT-2": (939, 1063), "CT-3": (1064, 1108), "CT-4": (1109, 1110)}


def make_mosmed(root: Path, *, variant: str = "original") -> Path:
    """Twelve studies, three of them masked.

    Variants: ``original`` (COVID19_1110/studies/CT-0/study_0001.nii.gz, masks, workbook), ``beside`` (ct0 ... ct4
    beside masks), ``root`` (CT-0 ... CT-4 at the top), ``flat`` (all in studies, workbook), ``flat-bare`` (no
    workbook), ``nii``, ``main`` (the folder of a repository's archive, with a .csv).
    """
    tops = {"original": "COVID19_1110", "main": "MosMedData-Chest-CT-Scans-with-COVID-19-Related-Findings-main"}
    top = root / tops.get(variant, "")
    for category, numbers in MOSMED.items():
        for number in numbers:
            scan = patient("C", number).scan
            native = scan.volume.native
            folder = top / _mosmed_folder(variant, category)
            style = "nii" if variant == "nii" else "nii.gz"
            save(named(folder, f"study_{number:04d}", style), scan.volume.hu.astype(np.int16), native)
            if number in MOSMED_MASKED:
                save(named(top / "masks", f"study_{number:04d}_mask", style), scan.infiltrate.labels, native)
    if variant in ("original", "flat"):
        write_workbook(top / "dataset_registry.xlsx", registry_rows())
    if variant == "main":
        (top / "dataset_registry.csv").write_text("\n".join(",".join(row) for row in registry_rows()) + "\n")
    return root


def _mosmed_folder(variant: str, category: str) -> str:
    if variant == "beside":
        return category.lower().replace("-", "")
    if variant == "root":
        return category
    return "studies" if variant.startswith("flat") else f"studies/{category}"


def make_mosmed_empty(root: Path) -> Path:
    """The whole tree of 1110 studies and 50 masks with files of no bytes: enough to be listed."""
    (root / "masks").mkdir(parents=True)
    for category, (first, last) in MOSMED_COUNTS.items():
        folder = root / "studies" / category
        folder.mkdir(parents=True)
        for number in range(first, last + 1):
            (folder / f"study_{number:04d}.nii.gz").touch()
    for number in range(255, 305):
        (root / "masks" / f"study_{number:04d}_mask.nii.gz").touch()
    return root


def registry_rows() -> list[list[str]]:
    """The registry as published: paths begin with a slash, the last column is mostly empty, a cell has blanks."""
    rows = [["study_id", "category", "study_file", "mask_file"]]
    for category, numbers in MOSMED.items():
        for number in numbers:
            name = f"study_{number:04d}"
            mask = f"/masks/{name}_mask.nii.gz" if number in MOSMED_MASKED else ""
            rows.append([name, f" {category} ", f"/studies/{category}/{name}.nii.gz", mask])
    return rows


def write_workbook(path: Path, rows: list[list[str]]) -> Path:
    """What matters of an .xlsx as spreadsheet programs write it: shared strings, empty cells left out."""
    strings = sorted({cell for row in rows for cell in row if cell})
    cells = "".join(
        f'<row r="{r}">'
        + "".join(
            f'<c r="{chr(65 + c)}{r}" t="s"><v>{strings.index(cell)}</v></c>' for c, cell in enumerate(row) if cell
        )
        + "</row>"
        for r, row in enumerate(rows, start=1)
    )
    main = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    shared = "".join(f'<si><t xml:space="preserve">{escape(text)}</t></si>' for text in strings)
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("xl/worksheets/sheet1.xml", f"<worksheet {main}><sheetData>{cells}</sheetData></worksheet>")
        book.writestr("xl/sharedStrings.xml", f"<sst {main}>{shared}</sst>")
    return path


def _expected_mosmed(case: str) -> LabelledScan:
    number = int(case.removeprefix("study_"))
    scan = patient("C", number).scan
    return LabelledScan(scan.volume, None, scan.infiltrate if number in MOSMED_MASKED else None)


# --- COVID-19-20 and An et al. ----------------------------------------------------------------------------------

TRAIN_IDS = ("0003", "0012_0", "0012_1", "0247")
VALIDATION_IDS = ("0004", "0180_0", "0369_1")
AN_IDS = ("0000", "0003", "0004", "0012_0", "0012_1")


def _volume_scan(key: str) -> LabelledScan:
    """The phantom behind ``volume-covid19-A-<key>``: stored (L, P, S), in Hounsfield units."""
    scan = patient("B", int(key[:4]) + int(key[5:] or 0)).scan
    volume = scan.volume
    return LabelledScan(
        Volume(volume.hu, volume.grid, volume.grid.reorient(("L", "P", "S")), key), None, scan.infiltrate
    )


def make_covid1920(root: Path, *, variant: str = "original") -> Path:
    """Train with pairs in one folder, Validation without masks.

    Variants: ``original`` (COVID-19-20_v2/Train, Validation), ``flat`` (all in one folder).
    """
    top = root / "COVID-19-20_v2"
    for part, keys in (("Train", TRAIN_IDS), ("Validation", VALIDATION_IDS)):
        folder = top if variant == "flat" else top / part
        for key in keys:
            scan = _volume_scan(key)
            native = scan.volume.native
            save(folder / f"volume-covid19-A-{key}_ct.nii.gz", scan.volume.hu.astype(np.int16), native)
            if part == "Train":
                save(folder / f"volume-covid19-A-{key}_seg.nii.gz", scan.infiltrate.labels, native)
    return root


def make_an2020(root: Path, *, variant: str = "original") -> Path:
    """Scans without masks. Variants: ``original``, ``ct`` (re-pack with names that end in _ct)."""
    folder = root / "CT_Images_in_COVID-19_August_2020"
    for key in AN_IDS:
        scan = _volume_scan(key)
        stem = f"volume-covid19-A-{key}" + ("_ct" if variant == "ct" else "")
        save(folder / f"{stem}.nii.gz", scan.volume.hu.astype(np.int16), scan.volume.native)
    return root


def _expected_covid1920(case: str) -> LabelledScan:
    key = case.removeprefix("volume-covid19-A-")
    scan = _volume_scan(key)
    return LabelledScan(scan.volume, None, scan.infiltrate if key in TRAIN_IDS else None)


def _expected_an2020(case: str) -> LabelledScan:
    return LabelledScan(_volume_scan(case.removeprefix("volume-covid19-A-")).volume)


# --- all --------------------------------------------------------------------------------------------------------

TREES: dict[str, Callable[[Path], Path]] = {
    "medseg": make_medseg,
    "medseg-slices": make_medseg_slices,
    "covid19ctseg": make_covid19ctseg,
    "mosmed": make_mosmed,
    "covid1920": make_covid1920,
    "an2020": make_an2020,
    **TREES_MORE,
}
"""Builder of the plain tree by name of the dataset; gives the folder a user names."""

EXPECTED: dict[str, Callable[[str], LabelledScan]] = {
    "medseg": _expected_medseg,
    "medseg-slices": _expected_medseg_slices,
    "covid19ctseg": ma_scan,
    "mosmed": _expected_mosmed,
    "covid1920": _expected_covid1920,
    "an2020": _expected_an2020,
    **EXPECTED_MORE,
}
"""What the reader should give for a case of that tree, by name of the dataset."""
