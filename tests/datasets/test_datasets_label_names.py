from __future__ import annotations

from pathlib import Path

import pytest

from pneumoscope.datasets.formats.label_names import MEANINGS, SYNONYMS, label_map
from pneumoscope.errors import DatasetError

HERE = Path("dataset.json")


def test_names_of_other_tools_are_known():
    found = label_map({"background": [0], "Left_Lung": [1], "lung-right": [2], "COVID-19 infection": [3]}, None, HERE)
    assert found.lung_labels == {1: 2, 2: 1}
    assert found.infiltrate_labels == {3: 1}
    assert found.ignored_labels == {1, 2, 3}  # in one file, labels of one kind are passed over in the other
    assert found.has_sides


def test_kinds_are_told_apart_only_where_nothing_else_is_there():
    kinds = label_map({"GGO": [4], "Consolidation": [2]}, None, HERE)
    assert kinds.infiltrate_labels == {4: 1, 2: 2}
    mixed = label_map({"GGO": [1], "Consolidation": [2], "infiltrate": [3]}, None, HERE)
    assert mixed.infiltrate_labels == {1: 1, 2: 1, 3: 1}
    parent = label_map({"GGO": [1], "Consolidation": [2], "infiltrate": [1, 2]}, None, HERE)
    assert parent.infiltrate_labels == {1: 1, 2: 2}  # a region over both kinds


def test_regions_that_lie_in_each_other():
    found = label_map({"lung": [1, 2, 3], "infection": [3]}, None, HERE)
    assert found.lung_labels == {1: 1, 2: 1, 3: 1}
    assert found.infiltrate_labels == {3: 1}
    assert not found.has_sides
    sided = label_map({"lungs": [1, 2, 3], "right lung": [1], "left lung": [2, 3]}, None, HERE)
    assert sided.lung_labels == {1: 1, 2: 2, 3: 2}


def test_what_is_neither_is_ignored_and_masks_without_a_kind_are_none():
    found = label_map({"infiltrate": [1], "pleural effusion": [3]}, None, HERE)
    assert found.ignored_labels == {3}
    files = found.files(Path("a"), Path("b"))
    assert (files.lungs, files.infiltrate) == (None, Path("b"))


def test_an_unknown_name_says_how_to_map_it():
    with pytest.raises(DatasetError) as caught:
        label_map({"background": [0], "Trübung": [1, 4]}, None, HERE)
    message = str(caught.value)
    assert message.startswith("dataset.json: has a label 'Trübung' (1, 4)")
    assert "labels={'Trübung': 'infiltrate'}" in message
    assert all(meaning in message for meaning in MEANINGS)
    assert label_map({"Trübung": [1]}, {"trübung": "infiltrate"}, HERE).infiltrate_labels == {1: 1}


def test_the_users_word_beats_ours():
    assert label_map({"lesion": [1]}, {"lesion": "ignore"}, HERE).infiltrate_labels == {}
    with pytest.raises(DatasetError, match="cannot mean 'fog'; expected one of right lung"):
        label_map({"lesion": [1]}, {"lesion": "fog"}, HERE)


def test_a_label_cannot_be_on_both_sides():
    with pytest.raises(DatasetError, match="label 3 is right and left lung at once"):
        label_map({"right lung": [1, 3], "left lung": [2, 3]}, None, HERE)


def test_background_is_background_whatever_it_is_called():
    assert label_map({"nothing at all": [0], "infiltrate": [1]}, None, HERE).infiltrate_labels == {1: 1}


def test_every_synonym_means_something_and_one_thing():
    assert set(SYNONYMS.values()) == set(MEANINGS)
    assert all(name == name.strip() and name for name in SYNONYMS)
