"""The X-ray recipe: the paper's numbers, what cannot be built."""

import pytest

from pneumoscope.errors import InputError
from pneumoscope.recipes import settings as access
from pneumoscope.recipes.registry import ALL_RECIPES, RECIPES, XRAY_RECIPES, build_any
from pneumoscope.recipes.stages import VOLUME_RECIPES
from pneumoscope.recipes.xray import XrayExperiment


@pytest.fixture(scope="module")
def experiment() -> XrayExperiment:
    found = build_any("katsamenis-2020")
    assert isinstance(found, XrayExperiment)
    return found


def test_the_papers_numbers(experiment):
    """Sections 3.2, 4.1 and 4.2, read once more by hand."""
    values = {row["key"]: row["value"] for row in access.describe(experiment)}
    assert values["data.per_class_1"] == (544, 500, 456)
    assert values["split.test_share"] == 0.2
    assert values["split.validation_share"] == 0.125
    assert values["pictures.side"] == 224
    training = ("batch_size", "max_epochs", "patience", "learning_rate", "fine_rate", "plateau_epochs", "last_layers")
    assert [values[f"training.{key}"] for key in training] == [20, 500, 10, 1e-3, 1e-4, 5, 11]
    accuracy = {row.name: row.accuracy for row in experiment.paper}
    assert accuracy == {"Model_1": 0.9232, "Model_2": 0.9565, "Model_3": 0.9766}
    assert experiment.paper_row("Model_3").f1 == 0.9761
    assert experiment.paper_row("Model_0") is None
    assert any("Figure 3" in note for note in experiment.notes)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["data.per_class_1=5,5"], "one length"),
        (["data.classes_0=normal,viral", "data.per_class_0=none"], "as many classes"),
        (["training.stages=Model_2"], "Model_0"),
        (["training.stages=Model_9"], "expected one of"),
        (["honest.lung_box=0.8,0.2,0.1,0.9"], "top < bottom"),
        (["honest.networks=magic"], "expected one of"),
        (["split.by=patients"], "group, image"),
    ],
)
def test_refusals(experiment, settings, words):
    with pytest.raises(InputError, match=words):
        access.with_overrides(experiment, settings)


def test_studies_of_ct_and_of_radiographs_are_told_apart():
    assert set(RECIPES) | set(VOLUME_RECIPES) | set(XRAY_RECIPES) == set(ALL_RECIPES)
    names = ("maganaris-2022b", "mueller-2021", "katsamenis-2020")
    classes = [type(build_any(name)).__name__ for name in names]
    assert classes == ["Experiment", "VolumeExperiment", "XrayExperiment"]
    with pytest.raises(InputError, match="katsamenis-2020"):
        build_any("katsamenis-2021")
