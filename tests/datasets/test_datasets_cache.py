from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pneumoscope.datasets import cache as array_cache
from pneumoscope.datasets.cache import ArrayCache, Entry, content_of, open_cache, read_entries, remembered_content
from pneumoscope.datasets.formats.manifest import load_scan, read_manifest_cases
from pneumoscope.datasets.phantom.folder import read_phantom, write_phantom
from pneumoscope.datasets.tensors import SliceRecipe, build_slice_set
from pneumoscope.errors import InputError
from pneumoscope.preprocess.slices import HuWindow

WINDOWS = (HuWindow(-1000, 0), HuWindow(-700, -450))
RECIPE = SliceRecipe(windows=WINDOWS, size=24)


@pytest.fixture
def cache(tmp_path):
    return ArrayCache(tmp_path / "cache")


def size_of(cache):
    return sum(entry.size_bytes for entry in read_entries(cache.folder))


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "A"
    write_phantom(folder, "A", 3, seed=2, size="tiny")
    return folder


@pytest.fixture
def own(phantom, tmp_path):
    """A copy of one case that a test may change, as a manifest."""
    import shutil

    shutil.copytree(phantom, tmp_path / "own")
    rows = (tmp_path / "own" / "manifest.csv").read_text().splitlines()
    (tmp_path / "own" / "manifest.csv").write_text("\n".join(rows[:2]) + "\n")
    return tmp_path / "own"


def numbers(n=4, value=1):
    return Entry({"a": np.full((n, 8), value, np.int16), "none": np.zeros((0, 3), np.float32)}, {"value": value})


def no_making():
    raise AssertionError("made again")


def same(one, two):
    pd.testing.assert_frame_equal(one.table, two.table)
    for name in ("images", "target", "lungs"):
        a, b = getattr(one, name), getattr(two, name)
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes(), name


def aged(folder, seconds=100):
    """Files and folders dated back."""
    at = time.time() - seconds
    for path in Path(folder).rglob("*"):
        os.utime(path, (at, at))


@pytest.fixture
def old_files(monkeypatch):
    """Stamps of files that a test has just written are believed, as if they had been there for long."""
    monkeypatch.setattr(array_cache, "RACY_NS", 0)


def test_an_entry_is_made_once_and_mapped(cache):
    first = cache.get("k1", numbers)
    again = ArrayCache(cache.folder).get("k1", no_making)
    for entry in (first, again):
        assert np.array_equal(entry.arrays["a"], numbers().arrays["a"])
        assert entry.arrays["none"].shape == (0, 3)
        assert entry.facts == {"value": 1}
        assert isinstance(entry.arrays["a"].base, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            entry.arrays["a"][0] = 2
    assert (cache.counts.hits, cache.counts.misses) == (0, 1)
    assert (cache.folder.stat().st_mode & 0o077) == 0


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "facts", "no json", "other shape"])
def test_damage_is_found_and_mended(cache, damage):
    cache.get("k1", numbers)
    home = cache.folder / "v1" / "k1"
    array, entry = home / "a.npy", home / "entry.json"
    if damage == "flip":
        raw = bytearray(array.read_bytes())
        raw[-3] ^= 1
        array.write_bytes(raw)
    elif damage == "cut":
        array.write_bytes(array.read_bytes()[:-5])
    elif damage == "gone":
        array.unlink()
    elif damage == "facts":
        entry.write_text(entry.read_text().replace('"value": 1', '"value": 2'))
    elif damage == "no json":
        entry.write_text("{")
    else:
        np.save(array, np.zeros((2, 16), np.int16))
    fresh = ArrayCache(cache.folder)
    assert fresh.get("k1", numbers).facts == {"value": 1}
    assert (fresh.counts.damaged, fresh.counts.misses) == (1, 1)
    assert np.array_equal(ArrayCache(cache.folder).get("k1", no_making).arrays["a"], numbers().arrays["a"])


def test_least_recently_used_goes_first(tmp_path):
    cache = ArrayCache(tmp_path / "c")
    cache.get("k0", partial(numbers, 1000))
    one = size_of(cache)
    cache.max_bytes = 3 * one + 100
    for key in ("k1", "k2"):
        cache.get(key, partial(numbers, 1000))
    held = cache.get("k0", no_making)  # used again: k1 is now the oldest
    cache.get("k3", partial(numbers, 1000))
    assert sorted(p.name for p in (tmp_path / "c" / "v1").iterdir()) == ["k0", "k2", "k3"]
    assert cache.counts.evicted == 1
    assert size_of(cache) <= cache.max_bytes
    cache.max_bytes = one + 100
    cache.get("k4", partial(numbers, 1000))
    assert [p.name for p in (tmp_path / "c" / "v1").iterdir()] == ["k4"]
    assert held.arrays["a"].sum() == 8000  # what is mapped stays readable
    cache.get("k5", partial(numbers, 3000))
    assert cache.counts.not_stored == 1
    assert [p.name for p in (tmp_path / "c" / "v1").iterdir()] == ["k4"]
    cache.clear()
    assert size_of(cache) == 0


def test_a_disk_that_fails_costs_no_result(cache, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    assert cache.get("k1", numbers).facts == {"value": 1}
    assert cache.counts.not_stored == 1
    assert list((cache.folder / "v1").iterdir()) == []


def test_what_a_killed_process_left_is_cleared_after_a_day(cache):
    left = cache.folder / "v1" / ".tmp-123-k1"
    left.mkdir()
    (left / "a.npy").write_bytes(b"half")
    ArrayCache(cache.folder)
    assert left.exists()
    aged(cache.folder, 2 * 24 * 3600)
    ArrayCache(cache.folder)
    assert not left.exists()
    assert cache.get("k1", numbers).facts == {"value": 1}


WORKER = """
import sys, time
from pathlib import Path
import numpy as np
from pneumoscope.datasets.cache import ArrayCache, Entry
folder, log, go = map(Path, sys.argv[1:4])
cache = ArrayCache(folder, max_bytes=40_000)
def make(n):
    with log.open("a") as stream:
        stream.write(f"{n}\\n")
    time.sleep(0.02)
    return Entry({"a": np.full((100, 10), n, np.int64)}, {"n": n})
print("ready", flush=True)
while not go.exists():
    time.sleep(0.005)
for turn in range(int(sys.argv[4])):
    for n in range(int(sys.argv[5])):
        entry = cache.get(f"k{n}", lambda: make(n))
        assert entry.facts["n"] == n and (entry.arrays["a"] == n).all(), (n, entry)
assert cache.counts.damaged == 0, cache.counts
"""


@pytest.mark.parametrize(("turns", "keys"), [(1, 4), (4, 12)])
def test_two_processes_share_a_folder(tmp_path, start, turns, keys):
    # Four entries fit: each is made once by either process. Twelve do not: both make and drop under each other's feet.
    log, go = tmp_path / "made.txt", tmp_path / "go"
    argv = [sys.executable, "-c", WORKER, str(tmp_path / "c"), str(log), str(go), str(turns), str(keys)]
    workers = [start(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    go.touch()
    for worker in workers:
        _, errors = worker.communicate()
        assert worker.returncode == 0, errors
    made = log.read_text().split()
    if keys == 4:
        assert sorted(made) == ["0", "1", "2", "3"]
    assert size_of(ArrayCache(tmp_path / "c")) <= 40_000
    assert not list((tmp_path / "c" / "v1").glob(".tmp-*"))


def test_slices_are_the_same_to_the_bit(phantom, cache, old_files):
    cases = read_phantom(phantom)
    plain = build_slice_set(cases, RECIPE)
    first = build_slice_set(cases, RECIPE, cache=cache)
    assert cache.counts.misses == 3
    unread = [replace(case, load=fails_to_load(case)) for case in cases]
    second = build_slice_set(unread, RECIPE, cache=cache)
    assert cache.counts.hits == 3
    same(plain, first)
    same(plain, second)


class Unread(partial):
    """A partial that looks like the one it was made of and fails when it is called."""

    def __call__(self, *args, **kwargs):
        raise AssertionError("the scan was read again")


def fails_to_load(case):
    return Unread(case.load.func, *case.load.args, **case.load.keywords)


def test_the_second_start_opens_no_scan(phantom, tmp_path):
    program = f"""
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from pneumoscope.datasets import cache as array_cache
array_cache.RACY_NS = 0
from pneumoscope.datasets.cache import ArrayCache
from pneumoscope.datasets.phantom.folder import read_phantom
from pneumoscope.datasets.tensors import SliceRecipe, build_slice_set
from pneumoscope.preprocess.slices import HuWindow
slices = build_slice_set(read_phantom({str(phantom)!r}), SliceRecipe((HuWindow(-1000, 0),), 24),
                         cache=ArrayCache({str(tmp_path / "c")!r}))
print(len(slices), sum(name.endswith(".nii.gz") for name in opened))
"""
    ran = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(2)
    ]
    assert ran[0][0] == ran[1][0]
    assert int(ran[0][1]) >= 9  # image, lungs and infiltrate of three cases
    assert ran[1][1] == "0"


def test_settings_make_other_entries(phantom, cache, old_files):
    cases = read_phantom(phantom)[:1]
    for recipe in (
        RECIPE,
        replace(RECIPE, size=20),
        replace(RECIPE, windows=WINDOWS[:1]),
        replace(RECIPE, lung_channel=False),
        replace(RECIPE, only_lung_slices=False),
        replace(RECIPE, store="uint8"),
    ):
        same(build_slice_set(cases, recipe, cache=cache), build_slice_set(cases, recipe))
    assert (cache.counts.misses, cache.counts.hits) == (6, 0)


@pytest.mark.parametrize("what", ["image", "lungs", "infiltrate"])
@pytest.mark.parametrize("hidden", [False, True])
def test_a_changed_file_never_gives_stale_slices(own, cache, old_files, what, hidden):
    import nibabel as nib

    (case,) = read_manifest_cases(own)
    build_slice_set([case], RECIPE, cache=cache)
    path = getattr(case.files, what)
    before = path.stat()
    image = nib.load(path)
    changed = np.asanyarray(image.dataobj).copy()
    changed[:] = np.roll(changed, 1, axis=1)
    nib.save(nib.Nifti1Image(changed, image.affine, image.header), path)
    if hidden:  # the same size and date as before
        raw = path.read_bytes()
        path.write_bytes(raw[: before.st_size].ljust(before.st_size, b"\0"))
        if what == "image" and len(raw) > before.st_size:
            path.write_bytes(raw)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_mtime_ns == before.st_mtime_ns
    expected = remembered_content(path, cache.folder / "nowhere", trust_stamps=False)
    assert remembered_content(path, cache.folder / "stamps") == expected
    cached_count = cache.counts.misses
    try:
        plain = build_slice_set([case], RECIPE)
    except InputError as error:  # the padded file is refused: so it must be through the cache
        with pytest.raises(type(error)):
            build_slice_set([case], RECIPE, cache=cache)
        return
    same(build_slice_set([case], RECIPE, cache=cache), plain)
    assert cache.counts.misses == cached_count + 1


def test_a_young_file_is_summed_every_time(own, cache):
    # Changed twice within one tick of the clock, a file may keep its stamp.
    path = own / "note.txt"
    path.write_text("one")
    first = remembered_content(path, cache.folder / "stamps")
    (memory,) = (cache.folder / "stamps").iterdir()
    assert [stamp for stamp, _ in json.loads(memory.read_text()).values()] == [None]
    forged = {"": [array_cache._file_state(path), json.loads(memory.read_text())[""][1]]}
    path.write_text("two")
    assert remembered_content(path, cache.folder / "stamps") != first
    forged[""][0] = array_cache._file_state(path)
    memory.write_text(json.dumps(forged))  # what a stamp that does not change would do
    assert remembered_content(path, cache.folder / "stamps") == first
    assert remembered_content(path, cache.folder / "stamps", trust_stamps=False) != first


def test_folders_are_summed_by_names_and_bytes(tmp_path, old_files):
    folder, stamps = tmp_path / "dicom", tmp_path / "stamps"
    (folder / "sub").mkdir(parents=True)
    for name in ("1.dcm", "sub/2.dcm"):
        (folder / name).write_text(name)
    sums = [remembered_content(folder, stamps)]
    assert remembered_content(folder, stamps) == sums[0]
    (folder / "sub" / "3.dcm").write_text("")
    sums.append(remembered_content(folder, stamps))
    (folder / "sub" / "3.dcm").rename(folder / "3.dcm")
    sums.append(remembered_content(folder, stamps))
    (folder / "1.dcm").write_text("x.dcm")
    sums.append(remembered_content(folder, stamps))
    assert len(set(sums)) == 4
    for damage in ("{", "[]", '{"1.dcm": 3}', '{"1.dcm": [null, 5]}'):
        for memory in stamps.iterdir():
            memory.write_text(damage)
        assert remembered_content(folder, stamps) == sums[-1]


def test_files_that_change_while_they_are_read_are_not_kept(own, cache, old_files):
    (case,) = read_manifest_cases(own)
    meddled = replace(case, load=partial(meddle, case.load.args[0], case.files.lungs))
    build_slice_set([meddled], RECIPE, cache=cache)
    assert (cache.counts.not_stored, list((cache.folder / "v1").iterdir())) == (1, [])


def meddle(ref, path):
    scan = load_scan(ref)
    path.write_bytes(path.read_bytes() + b" ")
    return scan


def test_what_cannot_be_named_is_made_each_time(phantom, own, cache, tmp_path):
    (case,) = read_manifest_cases(own)
    stamps = cache.folder / "stamps"
    named = content_of(case, stamps)
    assert named is not None
    assert content_of(replace(case, load=lambda: case.load()), stamps) is None
    assert content_of(replace(case, load=partial(load_scan, object())), stamps) is None
    assert content_of(replace(case, files=None), stamps) is None
    assert content_of(replace(case, files=replace(case.files, image=tmp_path / "x.mhd")), stamps) is None
    other_labels = replace(case, files=replace(case.files, infiltrate_labels={3: 1}))
    assert content_of(other_labels, stamps) != named
    assert content_of(replace(case, patient="q"), stamps) != named
    same(
        build_slice_set([replace(case, load=lambda: case.load())], RECIPE, cache=cache), build_slice_set([case], RECIPE)
    )
    assert cache.counts.misses == 0


def test_a_missing_file_is_the_readers_to_report(own, cache):
    (case,) = read_manifest_cases(own)
    case.files.image.unlink()
    with pytest.raises(InputError, match=case.files.image.name):
        build_slice_set([case], RECIPE, cache=cache)


def test_lungs_of_a_network_are_cached_under_its_name_only(own, cache, old_files):
    (case,) = read_manifest_cases(own)
    lungs = case.load().lungs
    without = replace(case, files=replace(case.files, lungs=None), load=partial(load_without_lungs, *case.load.args))
    asked = []

    def find(volume):
        asked.append(volume.case)
        return lungs

    plain = build_slice_set([without], RECIPE, lungs_for=find)
    for key, asks in ((None, 2), (None, 3), ("net-1", 4), ("net-1", 4), ("net-2", 5)):
        same(build_slice_set([without], RECIPE, lungs_for=find, cache=cache, lungs_key=key), plain)
        assert len(asked) == asks, key


def load_without_lungs(ref):
    return replace(load_scan(ref), lungs=None)


def test_where_the_cache_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("PNEUMOSCOPE_CACHE", raising=False)
    assert open_cache() is None, "a cache is a copy of patients' scans: only where it is asked for"
    assert not (tmp_path / "xdg").exists()
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", "on")
    assert open_cache().folder == tmp_path / "xdg" / "pneumoscope"
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path / "named"))
    assert open_cache().folder == tmp_path / "named"
    assert open_cache(tmp_path / "given").folder == tmp_path / "given"
    assert open_cache("off") is None
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", "off")
    assert open_cache() is None
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")  # such values are to be ignored
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", "on")
    assert open_cache().folder == tmp_path / ".cache" / "pneumoscope"
    monkeypatch.setenv("PNEUMOSCOPE_CACHE_GB", "0.5")
    assert open_cache(tmp_path).max_bytes == 2**29
    for wrong in ("-1", "much", "nan", "inf"):
        monkeypatch.setenv("PNEUMOSCOPE_CACHE_GB", wrong)
        with pytest.raises(InputError, match="positive number of GiB"):
            open_cache(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="set PNEUMOSCOPE_CACHE"):
        ArrayCache(tmp_path / "file" / "below")
