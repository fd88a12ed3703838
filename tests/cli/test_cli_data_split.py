"""`pneumoscope data split`: a dataset in, folds out."""

import json

import pytest

from pneumoscope.datasets.phantom.folder import write_phantom
from tables import rows_of


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "A"
    write_phantom(folder, "A", 6, seed=1, size="tiny")
    return folder


def test_folds_of_a_data_set(cli, phantom, tmp_path):
    ran = cli("data", "split", "phantom", phantom, "-o", tmp_path / "out", "--folds", "3", "--seed", "4", "--json")
    assert ran.code == 0, ran
    assert ran.json == json.loads((tmp_path / "out" / "split.json").read_text())
    assert ran.json["seed"] == 4
    rows = rows_of(tmp_path / "out" / "folds.csv")
    tested = [row["case"] for row in rows if row["part"] == "test"]
    assert sorted(tested) == sorted({row["case"] for row in rows})
    assert (tmp_path / "out" / "splits" / "fold_2" / "phantom.csv").is_file()


def test_nnunets_file_there_and_back(cli, phantom, tmp_path):
    argv = ("data", "split", "phantom", phantom, "--folds", "3", "--no-validation")
    assert cli(*argv, "-o", tmp_path / "a", "--to", "nnunet").code == 0
    assert len(json.loads((tmp_path / "a" / "splits_final.json").read_text())) == 3
    again = cli(*argv, "-o", tmp_path / "b", "--from", tmp_path / "a" / "splits_final.json", "--to", "nnunet")
    assert again.code == 0, again
    assert (tmp_path / "a" / "splits_final.json").read_bytes() == (tmp_path / "b" / "splits_final.json").read_bytes()


def test_data_sets_that_may_share_patients(cli, phantom, tmp_path):
    argv = ("data", "split", "an2020", phantom, "--with", f"covid1920={phantom}", "--folds", "3")
    ran = cli(*argv, "-o", tmp_path / "a")
    assert ran.code == 0, ran
    assert "may leak: covid1920:* and an2020:*" in ran.out
    cli(*argv, "-o", tmp_path / "b", "--link-suspected").refused("3 folds need at least 3 patients")
    links = tmp_path / "links.csv"
    links.write_text("a,b\n" + "".join(f"an2020:*{n}*,covid1920:*{n}*\n" for n in ("no such case",)))
    assert cli(*argv, "-o", tmp_path / "c", "--links", links).code == 0


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--folds", "7"], "7 folds need at least 7 patients"), (["--by", "ma"], "20 scans of covid19ctseg"),
        (["--by", "age"], "age"), (["--to", "monai"], "monai"), (["--folds", "1"], "--folds"),
        (["--from", "nowhere.json"], "nowhere.json"), (["--links", "nowhere.csv"], "nowhere.csv"),
        (["--with", "phantom=x"], "twice"),
    ],
)  # fmt: skip
def test_unusable_calls(cli, phantom, tmp_path, argv, words):
    cli("data", "split", "phantom", phantom, "-o", tmp_path / "out", *argv).refused(words)
    assert not (tmp_path / "out").exists()
