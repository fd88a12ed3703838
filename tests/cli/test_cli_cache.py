"""`pneumoscope cache`: what it holds is shown and removed; off unless asked for."""

import numpy as np
import pytest

from pneumoscope.datasets.cache import ArrayCache, Entry


@pytest.fixture
def filled(tmp_path):
    cache = ArrayCache(tmp_path / "cache")
    for key in ("aa", "bb"):
        cache.get(key, lambda: Entry({"hu": np.zeros((4, 5, 6), np.float32)}))
    (tmp_path / "cache" / "stamps" / "1.json").write_text("{}")
    return tmp_path / "cache"


def test_it_is_off_and_empty_by_default_and_looking_makes_nothing(cli, tmp_path, monkeypatch):
    monkeypatch.delenv("PNEUMOSCOPE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shown = cli("cache", "show", "--json").json
    assert (shown["used_by_runs"], shown["entries"]) == (False, 0)
    assert shown["folder"] == str(tmp_path / "pneumoscope")
    assert cli("cache", "clear", "--json").json["removed"] == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("named", [True, False])
def test_entries_are_shown_and_removed(cli, filled, monkeypatch, named):
    more = () if named else ("--folder", filled)
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(filled) if named else "off")
    shown = cli("cache", "show", "--json", *more).json
    assert (shown["used_by_runs"], shown["entries"], shown["folder"]) == (named, 2, str(filled))
    assert shown["last_use"]
    assert "entries: 2" in cli("cache", "show", *more).out
    assert cli("cache", "clear", *more).out == f"2 entries removed from {filled}\n"
    assert not list(filled.rglob("*.npy"))
    assert not list((filled / "stamps").iterdir())
    assert cli("cache", "show", "--json", *more).json["entries"] == 0


def test_files_that_are_no_cache_stay(cli, tmp_path):
    (tmp_path / "scan.nii.gz").write_bytes(b"mine")
    assert cli("cache", "clear", "--folder", tmp_path).code == 0
    assert (tmp_path / "scan.nii.gz").read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nii.gz"]
