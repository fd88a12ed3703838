"""Squares of radiographs, draws and splits: made by hand, never leaking, the same whatever the order."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumoscope.datasets.radiographs import MID_GREY, PictureRecipe, XrayCase, build_pictures, corners, thumbnails
from pneumoscope.datasets.splits.draw import leaking, select_radiographs, split_radiographs, write_radiograph_split
from pneumoscope.errors import DatasetError, InputError, ReadError
from tables import rows_of


def case(name: str, label: str = "normal", patient: str = "", path: Path = Path("x.png")) -> XrayCase:
    return XrayCase("radiographs", name, patient or name, label, "here", "CC0", "none", path)


def ramp(rows: int = 80, columns: int = 120) -> np.ndarray:
    return np.tile(np.linspace(0, 1, columns, dtype=np.float32), (rows, 1))


def test_stretch_fills_the_square_and_pad_keeps_proportions():
    stretched = PictureRecipe(side=24).make(ramp())
    assert stretched.shape == (24, 24)
    assert stretched.dtype == np.uint8
    assert (np.diff(stretched.mean(axis=0)) > 0).all(), "left to right stays left to right"
    padded = PictureRecipe(side=24, fit="pad").make(np.ones((80, 120), np.float32))
    assert (padded[4:20] == 255).all()
    assert (padded[:4] == 0).all()
    assert (padded[20:] == 0).all()


def test_border_and_views_show_what_they_say():
    pixels = np.zeros((100, 100), np.float32)
    pixels[:10], pixels[-10:], pixels[:, :10], pixels[:, -10:] = 1, 1, 1, 1
    assert PictureRecipe(side=40, border=0.1).make(pixels).max() == 0
    box = (0.2, 0.8, 0.3, 0.7)
    assert PictureRecipe(side=40, view="lung_box", lung_box=box).make(pixels).max() == 0
    hidden = PictureRecipe(side=40, view="no_lungs", lung_box=box).make(pixels)
    assert (hidden[8:32, 12:28] == MID_GREY).all()
    assert hidden[0, 0] == 255
    only = PictureRecipe(side=40, view="corners", corner=0.125)
    shown = only.make(pixels)
    assert (shown[:5, :5] == PictureRecipe(side=40).make(pixels)[:5, :5]).all()
    assert (shown[5:-5] == MID_GREY).all()


@pytest.mark.parametrize("equalise", ["global", "clahe"])
def test_equalising_takes_a_brightness_away(equalise):
    rng = np.random.default_rng(0)
    dark = (rng.random((64, 64)) * 0.2).astype(np.float32)
    recipe = PictureRecipe(side=64, equalise=equalise, clip_limit=40.0)
    plain = PictureRecipe(side=64)
    before = abs(float(plain.make(dark).mean()) - float(plain.make(dark + np.float32(0.7)).mean()))
    after = abs(float(recipe.make(dark).mean()) - float(recipe.make(dark + np.float32(0.7)).mean()))
    assert after < before / 20


@pytest.mark.parametrize(
    "bad",
    [
        {"side": 2}, {"border": 0.5}, {"fit": "crop"}, {"view": "lungs"}, {"lung_box": (0.8, 0.2, 0, 1)},
        {"equalise": "x"},
    ],
)  # fmt: skip
def test_nonsense_is_refused(bad):
    with pytest.raises(InputError):
        PictureRecipe(**bad)


def test_features_by_hand():
    squares = np.zeros((2, 32, 32), np.uint8)
    squares[0, :16], squares[1, -4:, -4:] = 255, 255
    small = thumbnails(squares, 2)
    assert small.tolist() == [[1, 1, 0, 0], [0, 0, 0, pytest.approx(1 / 16)]]
    found = corners(squares, 4, 1)
    assert found.tolist() == [[1, 1, 0, 0], [0, 0, 0, 1]]


def grey(path: Path, level: int) -> None:
    """One level but for the last rows: pictures of one level are refused."""
    pixels = np.full((70, 90 + level % 3), level, np.uint8)
    pixels[-20:] = 255
    Image.fromarray(pixels).save(path)


def test_pictures_are_made_once_and_again_when_something_changes(tmp_path):
    paths = []
    for n in range(3):
        paths.append(tmp_path / f"{n}.png")
        grey(paths[-1], 40 * n + 10)
    cases = [case(f"c{n}", path=path) for n, path in enumerate(paths)]
    seen: list[int] = []
    recipe, folder = PictureRecipe(side=16), tmp_path / "cache"

    def count(what: str, done: int, total: int, note: str = "") -> None:
        seen.append(done)

    first = build_pictures(cases, recipe, folder, progress=count)
    assert first.pixels[:, 0, 0].tolist() == [10, 50, 90]
    assert seen == [1, 2, 3]
    again = build_pictures(cases, recipe, folder, progress=count)
    assert seen == [1, 2, 3], "made again"
    assert again.digest == first.digest
    assert build_pictures(cases, replace(recipe, border=0.1), folder).digest != first.digest
    grey(paths[1], 200)
    changed = build_pictures(cases, recipe, folder)
    assert changed.pixels[:, 0, 0].tolist() == [10, 200, 90]
    broken = folder / "v1" / changed.digest[:40] / "pixels.npy"
    broken.write_bytes(broken.read_bytes()[:200])
    assert build_pictures(cases, recipe, folder).pixels[:, 0, 0].tolist() == [10, 200, 90]
    paths[2].unlink()
    with pytest.raises(ReadError, match="cannot be opened"):
        build_pictures(cases, recipe, folder)
    with pytest.raises(InputError, match="no picture"):
        build_pictures([], recipe, folder)


def people(n: int, label: str, pictures: int = 2) -> list[XrayCase]:
    return [case(f"{label}{p:03d}_{i}", label, f"{label}{p:03d}") for p in range(n) for i in range(pictures)]


EVERYBODY = people(30, "normal") + people(20, "bacterial", 3) + people(12, "covid19", 4)
CLASSES = ("normal", "bacterial", "covid19")


def test_draw_takes_as_many_as_asked_whatever_the_order():
    drawn = select_radiographs(EVERYBODY, CLASSES, (20, 30, 48), 7)
    assert Counter(drawn.labels.tolist()) == {0: 20, 1: 30, 2: 48}
    assert drawn.notes == ()
    turned = EVERYBODY[::-1]
    other = select_radiographs(turned, CLASSES, (20, 30, 48), 7)
    assert {EVERYBODY[i].case for i in drawn.rows} == {turned[i].case for i in other.rows}
    assert {EVERYBODY[i].case for i in select_radiographs(EVERYBODY, CLASSES, (20, 30, 48), 8).rows} != {
        EVERYBODY[i].case for i in drawn.rows
    }


def test_too_few_pictures_are_said_or_refused():
    drawn = select_radiographs(EVERYBODY, CLASSES, (20, 30, 456), 0)
    assert drawn.notes == ("class covid19 has 48 pictures, 456 were asked for: all were taken",)
    with pytest.raises(DatasetError, match="48 pictures, 456 were asked for"):
        select_radiographs(EVERYBODY, CLASSES, (20, 30, 456), 0, shortage="error")
    with pytest.raises(DatasetError, match="class covid19 has no picture"):
        select_radiographs(people(5, "normal"), ("normal", "covid19"), (None, None), 0)


@pytest.mark.parametrize("seed", range(5))
def test_no_group_on_two_sides(seed):
    groups = [c.patient for c in EVERYBODY]
    for place in (0, 61, 121):  # patients of two classes who share a picture are one
        groups = [groups[61] if g == groups[place] else g for g in groups]
    drawn = select_radiographs(EVERYBODY, CLASSES, (None, None, None), seed)
    own = [groups[i] for i in drawn.rows]
    parts = split_radiographs(drawn, EVERYBODY, groups, by="group", test_share=0.2, validation_share=0.125, seed=seed)
    assert leaking(parts, own) == []
    for number in range(3):
        shares = Counter(parts[drawn.labels == number].tolist())
        assert set(shares) == {"train", "val", "test"}
        assert 0.1 <= shares["test"] / sum(shares.values()) <= 0.3
    by_image = split_radiographs(
        drawn, EVERYBODY, groups, by="image", test_share=0.2, validation_share=0.125, seed=seed
    )
    assert len(leaking(by_image, own)) > 10, "the paper's split leaks, and is said to"
    assert Counter(by_image[drawn.labels == 0].tolist()) == {"train": 42, "test": 12, "val": 6}


@pytest.mark.parametrize("by", ["group", "image"])
def test_a_class_of_one_patient_cannot_be_split(by):
    cases = people(9, "normal") + people(1, "covid19", 2)
    drawn = select_radiographs(cases, ("normal", "covid19"), (None, None), 0)
    with pytest.raises(DatasetError, match=r"class covid19 has [12] .*at least 3"):
        split_radiographs(
            drawn, cases, [c.patient for c in cases], by=by, test_share=0.2, validation_share=0.125, seed=0
        )


def test_three_patients_are_enough():
    cases = people(3, "normal", 1) + people(3, "covid19", 9)
    drawn = select_radiographs(cases, ("normal", "covid19"), (None, None), 0)
    parts = split_radiographs(
        drawn, cases, [c.patient for c in cases], by="group", test_share=0.2, validation_share=0.1, seed=0
    )
    for number in range(2):
        assert set(parts[drawn.labels == number]) == {"train", "val", "test"}


def test_a_split_file_names_everybody_once(tmp_path):
    cases = people(4, "normal")
    write_radiograph_split(tmp_path / "s.csv", cases, [c.patient for c in cases], ["train"] * 7 + ["test"])
    rows = rows_of(tmp_path / "s.csv")
    assert len(rows) == 8
    assert {"case", "slice", "patient", "part"} <= set(rows[0])
    assert rows[-1]["part"] == "test"
