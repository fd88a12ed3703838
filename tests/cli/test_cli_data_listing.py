"""`pneumoscope data list|info`."""

import pytest

from pneumoscope.datasets.registry import DATASETS


def test_list_names_every_data_set(cli):
    rows = cli("data", "list", "--json").json
    assert [row["name"] for row in rows] == list(DATASETS)
    text = cli("data", "list").out
    assert all(name in text for name in DATASETS)


@pytest.mark.parametrize("name", DATASETS)
def test_info(cli, name):
    found = cli("data", "info", name, "--json").json
    assert found["licence"]
    assert found["citation"]
    assert found["home"]
    assert f"name: {name}" in cli("data", "info", name).out


def test_unknown_name(cli):
    cli("data", "info", "medsegg").refused("medsegg", "medseg")
