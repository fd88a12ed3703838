from dataclasses import replace

import numpy as np
import pytest

from pneumoscope.errors import InputError
from pneumoscope.progress import Noted
from pneumoscope.recipes.settings import with_overrides
from pneumoscope.study.data import build_set
from pneumoscope.study.scores.predictions import predict_stage, prediction_file, prediction_stamp, read_predictions
from pneumoscope.study.scores.slices import Scorer


class Bright:
    """Stands in for a stage: the second window is the probability."""

    def __init__(self, folder):
        self.name, self.folder, self.sha256, self.scans = "Tr1", folder, "ab" * 32, 0

    loads_scans = False

    def inputs(self, study_set, rows):
        return study_set.slices.images[rows]

    def predict_scan(self, images, **told):
        self.scans += 1
        return images[:, 1].astype(np.float32) / 255, told["site"]


@pytest.fixture
def sets(small, hospitals, tmp_path, find_all_lungs):
    return {n: build_set(small, small.site(n), hospitals[n], tmp_path, lungs_for=find_all_lungs) for n in (1, 3)}


def test_answers_come_back_row_by_row(small, sets, tmp_path):
    stage = Bright(tmp_path / "Tr1")
    predict_stage(small, stage, sets)
    for number, study_set in sets.items():
        kept = read_predictions(stage.folder, number)
        for part in ("val", "test"):
            rows = study_set.rows(part)
            here = kept.of(part)
            assert np.array_equal(here.probability, study_set.slices.images[rows, 1])
            table = study_set.slices.table.iloc[rows]
            for name in ("case", "slice", "patient"):
                assert here.__dict__[name].tolist() == table[name].tolist()
            assert set(here.expert.tolist()) == {number}
            assert np.array_equal(here.found(0.5), study_set.slices.images[rows, 1] >= 128)
        assert "train" not in kept.part


def changed(study_set, name):
    """The same set with one voxel of an array of its slices changed."""
    array = getattr(study_set.slices, name).copy()
    array[study_set.rows("test")[0]].flat[0] += 1  # a view: the first value of the first test slice
    return replace(study_set, slices=replace(study_set.slices, **{name: array}))


@pytest.mark.parametrize("name", ["images", "target", "lungs"])
def test_predictions_of_other_scans_or_masks_are_made_anew_and_said(small, sets, tmp_path, name):
    stage, notes = Bright(tmp_path / "Tr1"), Noted()
    predict_stage(small, stage, sets, progress=notes)
    once, before = stage.scans, read_predictions(stage.folder, 1)
    assert notes.notes == []
    sets[1] = changed(sets[1], name)
    predict_stage(small, stage, sets, progress=notes)
    assert once < stage.scans < 2 * once  # set 3 is as it was
    assert read_predictions(stage.folder, 1).stamp != before.stamp
    assert len(notes.notes) == 1
    assert "of set 1 are made again" in notes.notes[0]
    again = with_overrides(small, ["training.precision=bf16"])
    predict_stage(again, stage, {3: sets[3]}, progress=notes)
    assert "of set 3 are made again" in notes.notes[1]


def test_scores_of_kept_predictions_follow_the_scan(small, sets, tmp_path):
    stage = Bright(tmp_path / "Tr1")
    predict_stage(small, stage, sets)
    Scorer(small, sets).stage(stage, stage.folder)
    darker = sets[1].slices.images.copy()
    darker[:, 1] = 0
    sets[1] = replace(sets[1], slices=replace(sets[1].slices, images=darker))
    rows = Scorer(small, sets).stage(stage, stage.folder)  # without a new `predict_stage`
    assert rows.loc[rows["test"] == 1, "tp"].sum() == 0
    assert rows.loc[rows["test"] == 3, "tp"].sum() > 0


def test_a_stage_on_volumes_depends_on_the_whole_scan(small, sets, tmp_path):
    """A voxel that no slice of the study shows still is part of the scan that such a stage loads."""
    stage = Bright(tmp_path / "Tr1")
    stage.loads_scans = True
    before = prediction_stamp(small, stage, sets[1])
    scan = sets[1].scans["s1p0"].load()
    hu = scan.volume.hu.copy()
    hu[0, 0, 0] += 1
    other = replace(scan, volume=replace(scan.volume, hu=hu))
    scans = {**sets[1].scans, "s1p0": replace(sets[1].scans["s1p0"], load=lambda: other)}
    assert prediction_stamp(small, stage, replace(sets[1], scans=scans)) != before
    assert prediction_stamp(small, stage, replace(sets[1])) == before


def test_predictions_are_made_once_per_stamp(small, sets, tmp_path):
    stage = Bright(tmp_path / "Tr1")
    predict_stage(small, stage, sets)
    once = stage.scans
    predict_stage(small, stage, sets)
    assert stage.scans == once
    stage.sha256 = "cd" * 32
    predict_stage(small, stage, sets)
    assert stage.scans == 2 * once
    path = prediction_file(stage.folder, 1)
    path.write_bytes(path.read_bytes()[:100])  # a damaged file is made again, and refused where it is read
    with pytest.raises(InputError, match="resume the study"):
        read_predictions(stage.folder, 1)
    predict_stage(small, stage, {1: sets[1]})
    assert read_predictions(stage.folder, 1).stamp == prediction_stamp(small, stage, sets[1])
