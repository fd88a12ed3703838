import json

import pytest

from pneumoscope.errors import InputError
from pneumoscope.recipes.papers.maganaris_2022b import four_channel
from pneumoscope.recipes.settings import with_overrides
from pneumoscope.study.folder import read_experiment, start, write_environment


def test_the_folder_holds_the_whole_experiment_and_every_number(tmp_path):
    start(four_channel(), tmp_path / "run")
    assert read_experiment(tmp_path / "run") == four_channel()
    written = json.loads((tmp_path / "run" / "experiment.json").read_text())
    assert all(row["source"] for row in written["numbers"])
    assert {"key", "value", "unit", "source"} == set(written["numbers"][0])


def test_a_folder_that_holds_a_study_is_refused_without_a_flag(tmp_path):
    start(four_channel(), tmp_path)
    with pytest.raises(InputError, match="already holds a run"):
        start(four_channel(), tmp_path)
    with pytest.raises(InputError, match="give one of them"):
        start(four_channel(), tmp_path, resume=True, overwrite=True)


def test_resuming_with_other_settings_is_refused_and_says_what_differs(tmp_path):
    start(four_channel(), tmp_path)
    start(four_channel(), tmp_path, resume=True)
    other = with_overrides(four_channel(), ["stages.retrain.max_epochs=7"])
    with pytest.raises(InputError, match=r"other settings \(stages\.retrain\.max_epochs: 50 -> 7\)"):
        start(other, tmp_path, resume=True)
    assert read_experiment(tmp_path) == four_channel()


def test_resuming_an_empty_folder_begins(tmp_path):
    start(four_channel(), tmp_path / "new", resume=True)
    assert read_experiment(tmp_path / "new") == four_channel()


def test_overwriting_removes_what_a_study_wrote_and_nothing_else(tmp_path):
    start(four_channel(), tmp_path)
    (tmp_path / "stages" / "Tr1").mkdir(parents=True)
    (tmp_path / "stages" / "Tr1" / "done.json").write_text("{}")
    (tmp_path / "matrix.csv").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    start(four_channel(), tmp_path, overwrite=True)
    assert not (tmp_path / "stages").exists()
    assert not (tmp_path / "matrix.csv").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_overwriting_a_folder_that_is_no_study_removes_nothing(tmp_path):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "mine.txt").write_text("mine")
    start(four_channel(), tmp_path, overwrite=True)
    assert (tmp_path / "stages" / "mine.txt").read_text() == "mine"


def test_unreadable_studies_are_named(tmp_path):
    with pytest.raises(InputError, match="holds no study"):
        read_experiment(tmp_path)
    (tmp_path / "experiment.json").write_text("{")
    with pytest.raises(InputError, match="no valid JSON"):
        read_experiment(tmp_path)


def test_the_environment_names_no_host_and_no_user(tmp_path):
    import getpass
    import platform

    write_environment(tmp_path, device="cpu", precision="fp32", threads=2)
    text = (tmp_path / "environment.json").read_text()
    read = json.loads(text)
    assert read["packages"]["torch"]
    assert (read["device"], read["precision"], read["threads"]) == ("cpu", "fp32", 2)
    assert platform.node() not in json.dumps([v for k, v in read.items() if k != "packages"]) or not platform.node()
    assert str(tmp_path) not in text
    assert f'"{getpass.getuser()}"' not in text
