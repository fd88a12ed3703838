import numpy as np
import pytest

from pneumoscope.errors import InputError
from pneumoscope.study.data import build_set
from pneumoscope.study.predictions import predict_stage, prediction_file, read_predictions
from pneumoscope.study.stages import TrainedModel


class Bright:
    """Stands in for a stage: the second window is the probability."""

    def __init__(self, folder):
        self.name, self.folder, self.sha256, self.scans = "Tr1", folder, "ab" * 32, 0

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


def test_answers_are_made_once_per_weights(small, sets, tmp_path):
    stage = Bright(tmp_path / "Tr1")
    predict_stage(small, stage, sets)
    once = stage.scans
    predict_stage(small, stage, sets)
    assert stage.scans == once
    stage.sha256 = "cd" * 32
    predict_stage(small, stage, sets)
    assert stage.scans == 2 * once
    path = prediction_file(stage.folder, 1)
    path.write_bytes(path.read_bytes()[:100])  # a damaged file is made anew, and refused where it is read
    with pytest.raises(InputError, match="resume the study"):
        read_predictions(stage.folder, 1)
    predict_stage(small, stage, {1: sets[1]})
    assert read_predictions(stage.folder, 1).sha256 == stage.sha256


def test_half_is_exactly_half(tmp_path):
    p = np.array([0.4999, 0.5, 0.5001], np.float32)
    stored = np.floor(p * 255 + 0.5).astype(np.uint8)
    assert (stored >= 127.5).tolist() == [False, True, True]


def test_a_network_answers_for_infiltrate(small, tmp_path):
    from pneumoscope.study.stages import StageJob, new_model

    network = new_model(small, StageJob("x", 4, 2, (4, 8), small.stages.first, None, "infiltrate"))
    model = TrainedModel("x", tmp_path, network, "", trained_now=True)
    images = np.random.default_rng(0).integers(0, 255, (3, 4, 17, 16), dtype=np.uint8)
    found, who = model.predict_scan(images, site=2, device="cpu", precision="fp32")
    assert found.shape == (3, 17, 16)
    assert who == 0
