"""Nothing kept outlives what it was made of: a run resumed on changed data ends as a new one does, and says so."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up_hospitals import make_scan
from test_study_grows import part_of

from pneumoscope.datasets.case import Case, LabelledScan
from pneumoscope.datasets.radiographs import file_content
from pneumoscope.progress import Noted
from pneumoscope.recipes.settings import with_overrides
from pneumoscope.study.data import build_set
from pneumoscope.study.engine import run_study
from pneumoscope.study.transfer import StageMaker

pytestmark = pytest.mark.usefixtures("no_figures")

TABLES = (
    "per_case.csv", "untrained.csv", "matrix.csv", "forgetting.csv", "shift/calibration.csv", "shift/distances.csv",
)  # fmt: skip


def changed_case(case: Case, change: Callable[[LabelledScan], LabelledScan]) -> Case:
    return replace(case, load=lambda: change(case.load()))


def darker(k: int) -> Callable[[LabelledScan], LabelledScan]:
    """A scan whose infiltrate in slice k is as dark as lung: its masks stay."""

    def change(scan: LabelledScan) -> LabelledScan:
        hu = scan.volume.hu.copy()
        hu[:, :, k][scan.infiltrate.labels[:, :, k] > 0] = -850
        return replace(scan, volume=replace(scan.volume, hu=hu))

    return change


def other_mask(k: int) -> Callable[[LabelledScan], LabelledScan]:
    """A scan whose infiltrate mask lost a row of slice k."""

    def change(scan: LabelledScan) -> LabelledScan:
        labels = scan.infiltrate.labels.copy()
        row = np.flatnonzero(labels[:, :, k].any(axis=1))[0]
        labels[row, :, k] = 0
        return replace(scan, infiltrate=replace(scan.infiltrate, labels=labels))

    return change


def tables(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in TABLES}


def a_slice(folder: Path, part: str) -> tuple[str, int]:
    """Case and number of an infected slice of a part of the first set."""
    split = pd.read_csv(folder / "splits" / "phantom-A.csv")
    for row in split[split["part"] == part].itertuples():
        if make_scan(1, int(row.case[-1])).infiltrate.labels[:, :, row.slice].any():
            return row.case, int(row.slice)
    raise AssertionError("no infected slice")


@pytest.mark.parametrize(
    ("part", "change", "retrained"),
    [
        ("test", darker, []),
        ("train", other_mask, ["Tr1", "Tr1_R_2"]),
        pytest.param("test", other_mask, [], marks=pytest.mark.slow),
        pytest.param("train", darker, ["Tr1", "Tr1_R_2"], marks=pytest.mark.slow),
    ],
)
def test_a_resumed_study_on_changed_scans_ends_as_a_new_one(
    small, hospitals, tmp_path, part, change, retrained
) -> None:
    plan = part_of(small, 2, 2)
    run_study(plan, tmp_path / "kept", synthetic=True, device="cpu")
    before = tables(tmp_path / "kept")
    case, k = a_slice(tmp_path / "kept", part)
    hospitals[1] = [changed_case(c, change(k)) if c.case == case else c for c in hospitals[1]]
    noted = Noted()
    run_study(plan, tmp_path / "kept", synthetic=True, device="cpu", resume=True, progress=noted)
    run_study(plan, tmp_path / "new", synthetic=True, device="cpu")
    assert tables(tmp_path / "kept") == tables(tmp_path / "new")
    assert tables(tmp_path / "kept") != before
    run = json.loads((tmp_path / "kept" / "run.json").read_text())
    assert run["notes"] == noted.notes
    assert run["resumed"]
    again = [note.split(":")[0] for note in noted.notes if "trained again" in note]
    assert [name for name in again if name != "lungs"] == retrained
    assert [note for note in noted.notes if "predictions and scores of set 1" in note]
    assert noted.notes[0] in (tmp_path / "kept" / "report.html").read_text()
    again = Noted()
    run_study(plan, tmp_path / "kept", synthetic=True, device="cpu", resume=True, progress=again)
    assert again.notes == []
    assert tables(tmp_path / "kept") == tables(tmp_path / "new")


def test_an_average_depends_on_the_scans_it_was_chosen_on(small, hospitals, find_all_lungs, tmp_path) -> None:
    """The validation masks of the earlier set choose the share; no training sees them."""
    plan = with_overrides(part_of(small, 2, 2), ["strategy.name=averaging"])
    sets = {n: build_set(plan, plan.site(n), hospitals[n], tmp_path, lungs_for=find_all_lungs) for n in (1, 2)}

    def made():
        trainer = StageMaker(plan, sets, tmp_path, device="cpu", resume=True)
        return [trainer.make(stage.name) for stage in plan.stages.chain]

    made()
    mark = tmp_path / "stages" / "Tr1_R_2" / "done.json"
    before, written = json.loads(mark.read_text()), mark.stat().st_mtime_ns
    made()
    assert mark.stat().st_mtime_ns == written
    target = sets[1].slices.target.copy()
    target[sets[1].rows("val")] = 1 - (target[sets[1].rows("val")] > 0)
    sets[1] = replace(sets[1], slices=replace(sets[1].slices, target=target))
    made()
    assert json.loads(mark.read_text())["stamp"] != before["stamp"]


def test_a_picture_of_the_same_size_and_date_is_another_one(tmp_path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    date = path.stat().st_mtime_ns
    before = file_content(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(date, date))
    assert file_content(path) != before


@pytest.mark.slow
def test_scores_of_a_volume_study_follow_a_changed_test_mask(tmp_path, monkeypatch) -> None:
    import nibabel
    from test_study_volumes import MUELLER

    from pneumoscope.recipes.stages import build_volume_recipe

    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path / "cache"))
    plan = with_overrides(build_volume_recipe("mueller-2021-small"), MUELLER)
    out = tmp_path / "kept"
    run_study(plan, out, device="cpu", synthetic=True)
    before = (out / "per_case.csv").read_bytes()
    mask = sorted((out / "data" / "an2020" / "infiltrate").glob("*.nii.gz"))[0]
    image = nibabel.load(mask)
    data = np.asarray(image.dataobj).copy()
    data[: data.shape[0] // 2] = 0
    nibabel.save(nibabel.Nifti1Image(data, None, image.header), mask)
    noted = Noted()
    run_study(plan, out, device="cpu", synthetic=True, resume=True, progress=noted)
    shutil.copytree(out / "data", tmp_path / "new" / "data")
    run_study(plan, tmp_path / "new", device="cpu", synthetic=True)
    assert (out / "per_case.csv").read_bytes() == (tmp_path / "new" / "per_case.csv").read_bytes() != before
    assert not [note for note in noted.notes if "trained again" in note]
    assert [note for note in noted.notes if "scores are made again" in note], noted.notes


@pytest.mark.slow
def test_predictions_of_radiographs_follow_a_changed_picture(tmp_path) -> None:
    from made_up_radiographs import write_sets
    from PIL import Image
    from test_study_xray_run import small as small_xray

    roots, out = write_sets(tmp_path / "sets", children=12), tmp_path / "kept"
    run_study(small_xray(), out, data=roots, device="cpu")
    stage = out / "stages" / "Model_1_seed0"
    told = pd.read_csv(stage / "predictions.csv")
    dataset, case = told.loc[told["test"] == "Dataset_1", "case"].iloc[0].split("/", 1)
    path = next(p for p in Path(roots[dataset]).rglob("*") if p.is_file() and p.stem == Path(case).stem)
    at = path.stat()
    Image.fromarray(255 - np.asarray(Image.open(path).convert("L"))).save(path)
    os.utime(path, ns=(at.st_atime_ns, at.st_mtime_ns))
    noted = Noted()
    run_study(small_xray(), out, data=roots, device="cpu", resume=True, progress=noted)
    run_study(small_xray(), tmp_path / "new", data=roots, device="cpu")
    for name in ("per_case.csv", "matrix.csv", "remedies.csv"):
        assert (out / name).read_bytes() == (tmp_path / "new" / name).read_bytes(), name
    assert [note for note in noted.notes if note.startswith("Model_1_seed0:")]
