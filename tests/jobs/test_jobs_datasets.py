"""Datasets checked and converted by several workers: as by one."""

import pytest

from pneumoscope.datasets.check import check_dataset
from pneumoscope.datasets.convert import LAYOUTS, convert_dataset
from pneumoscope.datasets.phantom.folder import write_phantom
from pneumoscope.jobs.machines import machines

pytestmark = pytest.mark.enable_socket
WHERE = [{"jobs": 2}, pytest.param({"on": "dask", "jobs": 2}, marks=pytest.mark.timeout(300))]


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """Three patients, one of whose scans is cut off."""
    root = tmp_path_factory.mktemp("phantom") / "set"
    write_phantom(root, "B", 3, size="tiny")
    broken = min(p for p in root.rglob("*.nii.gz") if p.parent.name in ("images", "imagesTr"))
    broken.write_bytes(broken.read_bytes()[:300])
    return root


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("where", WHERE, ids=str)
def test_a_check_by_several_workers(phantom, tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("distributed")
    alone = check_dataset("phantom", phantom)
    with machines(**where):
        assert check_dataset("phantom", phantom).as_dict() == alone.as_dict()
    assert alone.problems
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", LAYOUTS)
@pytest.mark.parametrize("where", WHERE, ids=str)
def test_a_conversion_by_several_workers(phantom, tmp_path, where, to):
    pytest.importorskip("distributed")
    alone = convert_dataset("phantom", phantom, tmp_path / "one", to=to)
    with machines(**where):
        more = convert_dataset("phantom", phantom, tmp_path / "two", to=to)
    assert (more.cases, more.failed, more.labels) == (alone.cases, alone.failed, alone.labels)
    assert len(alone.failed) == 1
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
