from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib

import numpy as np
import pytest

from pneumoscope.errors import GeometryError, InputError
from pneumoscope.geometry import Grid
from pneumoscope.reports import view, view_data
from pneumoscope.reports.page import NOTICE
from pneumoscope.reports.view import Table, ViewScan, severity_table, write_case_view, write_change_view
from pneumoscope.reports.view_data import STEPS_HU, pack_mesh, pack_scan
from pneumoscope.severity.measure import measure
from pneumoscope.surfaces.mesh import build_mesh, joined
from pneumoscope.volume import INFILTRATE_LABEL, INFILTRATE_LABELS, LUNG_LABELS, Mask, Volume


def unpacked(packed):
    """HU and mask bytes as (i, j, k) arrays, as the page's script reads them."""
    shape = packed.grid.shape
    picture = np.frombuffer(zlib.decompress(packed.picture), np.uint8).reshape(shape, order="F")
    masks = np.frombuffer(zlib.decompress(packed.masks), np.uint8).reshape(shape, order="F")
    return STEPS_HU[picture], masks


def scan_on(grid, rng):
    hu = rng.uniform(-1100, 2000, grid.shape).astype(np.float32)
    return Volume(hu, grid, grid)


def test_the_steps_fit_a_byte_and_are_fine_where_it_matters():
    assert len(STEPS_HU) == 255
    assert (np.diff(STEPS_HU) > 0).all()
    assert np.diff(STEPS_HU[STEPS_HU <= -160]).max() == 10
    assert np.diff(STEPS_HU[(STEPS_HU >= -160) & (STEPS_HU <= 300)]).max() == 5
    assert np.diff(STEPS_HU).max() == 25


def test_a_small_scan_is_packed_voxel_by_voxel(rng):
    grid = Grid.from_spacing((7, 5, 40), (0.8, 0.8, 1.5))
    volume = scan_on(grid, rng)
    packed = pack_scan(volume, {})
    hu, masks = unpacked(packed)
    assert packed.grid == grid
    error = np.abs(hu - volume.hu)
    assert error.max() <= 13
    assert error[volume.hu < -160].max() <= 5.5
    assert error[(volume.hu > -160) & (volume.hu < 300)].max() <= 3
    assert masks.max() == 0
    assert "scan's own 0.8 × 0.8 × 1.5 mm" in packed.loss()


def test_values_beyond_the_steps_are_cut():
    grid = Grid.from_spacing((2, 1, 1), (1, 1, 1))
    volume = Volume(np.array([-3000, 9000], np.float32).reshape(2, 1, 1), grid, grid)
    assert unpacked(pack_scan(volume, {}))[0].ravel().tolist() == [-1100, 2000]


def test_masks_share_a_byte(rng):
    grid = Grid.from_spacing((6, 5, 4), (1, 1, 1))
    volume = scan_on(grid, rng)
    labels = {name: rng.integers(0, 3, grid.shape).astype(np.uint8) for name in ("infiltrate", "truth", "change")}
    lungs = rng.choice([0, 4, 7, 9], grid.shape).astype(np.uint8)
    masks = {name: Mask(array, grid, INFILTRATE_LABELS) for name, array in labels.items()}
    masks["lungs"] = Mask(lungs, grid, {4: "left lung", 7: "right lung", 9: "airway"})
    _, byte = unpacked(pack_scan(volume, masks))
    for name, shift in (("infiltrate", 2), ("truth", 4), ("change", 6)):
        np.testing.assert_array_equal(byte >> shift & 3, labels[name])
    np.testing.assert_array_equal(byte & 3, np.select([lungs == 7, lungs == 4], [1, 2], 0))


def test_coarser_scans_keep_means_places_and_majorities(rng, monkeypatch):
    """13 x 11 x 9 voxels of 0.5 x 0.5 x 2 mm to blocks of 2 x 2 x 1, the last ones filled up."""
    monkeypatch.setattr(view_data, "VOXELS", 400)
    grid = Grid.from_spacing((13, 11, 9), (0.5, 0.5, 2.0), (-40.0, 20.0, 7.0))
    volume = scan_on(grid, rng)
    labels = rng.integers(0, 3, grid.shape).astype(np.uint8)
    packed = pack_scan(volume, {"infiltrate": Mask(labels, grid, INFILTRATE_LABELS)})
    hu, masks = unpacked(packed)
    assert packed.factors == (2, 2, 1)
    assert packed.grid.shape == (7, 6, 9)
    block = volume.hu[4:6, 6:8, 3]
    assert abs(hu[2, 3, 3] - block.mean()) <= 13
    assert abs(hu[6, 5, 8] - volume.hu[12, 10, 8]) <= 13
    np.testing.assert_allclose(packed.grid.world((2, 3, 3)), grid.world((4.5, 6.5, 3)))
    for index in np.ndindex(6, 5, 9):
        i, j, k = index
        part = labels[2 * i : 2 * i + 2, 2 * j : 2 * j + 2, k]
        shown = masks[index] >> 2 & 3
        assert (shown > 0) == (np.count_nonzero(part) >= 2)
        if shown:
            assert np.count_nonzero(part == shown) == max(np.count_nonzero(part == label) for label in (1, 2))
    assert "blocks of 2 × 2 × 1 voxels" in packed.loss()


def test_slabs_of_any_size_pack_the_same(rng, monkeypatch):
    monkeypatch.setattr(view_data, "VOXELS", 300)
    grid = Grid.from_spacing((9, 8, 41), (0.7, 0.7, 0.7))
    volume = scan_on(grid, rng)
    one = pack_scan(volume, {})
    monkeypatch.setattr(view_data, "_slabs", lambda shape, factors: iter([slice(None)]))
    other = pack_scan(volume, {})
    assert one.factors == other.factors == (3, 3, 3)
    np.testing.assert_array_equal(unpacked(one)[0], unpacked(other)[0])


def test_what_packs_badly_is_made_coarser(rng, monkeypatch):
    monkeypatch.setattr(view_data, "PACKED_BYTES", 20_000)
    grid = Grid.from_spacing((40, 40, 40), (1, 1, 1))
    packed = pack_scan(scan_on(grid, rng), {})
    assert packed.factors == (2, 2, 2)
    assert len(packed.picture) <= 20_000


def test_a_mesh_keeps_its_place_and_drops_small_pieces_only_when_it_must(monkeypatch):
    grid = Grid.from_spacing((30, 30, 30), (0.8, 0.8, 1.2), (-200.0, 10.0, 900.0))
    where = np.zeros(grid.shape, bool)
    where[2:18, 2:18, 2:18] = True
    big = build_mesh(where, grid)
    where[:] = False
    where[24:26, 24:26, 24:26] = True
    small = build_mesh(where, grid)
    packed = pack_mesh("infiltrate", joined([small, big]))
    vertices = np.frombuffer(zlib.decompress(packed.vertices), "<u2").reshape(-1, 3) / 65535
    placed = vertices * packed.size_mm + packed.low_mm
    np.testing.assert_allclose(placed, joined([small, big]).vertices_mm, atol=0.001)
    triangles = np.frombuffer(zlib.decompress(packed.triangles), "<u4").reshape(-1, 3)
    np.testing.assert_array_equal(triangles, joined([small, big]).triangles)
    assert packed.left_out_ml == 0
    monkeypatch.setattr(view_data, "TRIANGLES_SHOWN", len(big.triangles))
    fewer = pack_mesh("infiltrate", joined([small, big]))
    assert len(zlib.decompress(fewer.triangles)) == 12 * len(big.triangles)
    assert fewer.left_out_ml == pytest.approx(small.volume_ml)


@pytest.fixture
def case(rng):
    grid = Grid.from_spacing((12, 12, 12), (2, 2, 2))
    lungs, spot = (np.zeros(grid.shape, np.uint8) for _ in range(2))
    lungs[7:11, 2:10, 2:10], lungs[1:5, 2:10, 2:10] = 1, 2
    spot[8:10, 4:7, 4:7] = 1
    masks = Mask(lungs, grid, LUNG_LABELS), Mask(spot, grid, INFILTRATE_LABEL)
    return ViewScan("a case", scan_on(grid, rng), *masks, meshes={"infiltrate": build_mesh(spot > 0, grid)})


def parts_of(html, kind):
    return re.findall(rf'<script type="{kind}" id="([^"]+)">(.*?)</script>', html, re.DOTALL)


def test_the_page_holds_everything_and_names_its_one_script(tmp_path, case):
    write_case_view(tmp_path / "v.html", case, measure(case.volume, case.lungs, case.infiltrate), notes=["A note."])
    html = (tmp_path / "v.html").read_text(encoding="utf-8")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', html)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    directives = dict(part.strip().split(" ", 1) for part in policy.replace("&#39;", "'").split(";"))
    assert directives["default-src"] == "'none'"
    assert directives["script-src"] == f"'sha256-{digest}'"
    assert directives["connect-src"] == "'none'"
    assert [name for name, _ in parts_of(html, "text/plain")] == [
        "picture-0", "masks-0", "vertices-0-0", "triangles-0-0",
    ]  # fmt: skip
    for _, payload in parts_of(html, "text/plain"):
        zlib.decompress(base64.b64decode(payload, validate=True))
    ((_, facts),) = parts_of(html, "application/json")
    assert json.loads(facts)["shape"] == [12, 12, 12]
    assert json.loads(facts)["scans"][0]["start"] == [8, 5, 4]
    assert NOTICE in html
    assert "A note." in html
    assert not re.findall(r"(?:src|href)=\"(?!data:)", html)
    assert " style=" not in html


def test_the_table_says_what_cannot_be_measured(case):
    table = severity_table(measure(case.volume, case.lungs, case.infiltrate))
    assert table.head == ("", "Right lung", "Left lung", "Both")
    assert table.rows[0] == ("Volume", "2.0\u00a0ml", "2.0\u00a0ml", "4.1\u00a0ml")
    unsided = Mask((case.lungs.labels > 0).astype(np.uint8), case.lungs.grid, {1: "lung"})
    table = severity_table(measure(case.volume, unsided, case.infiltrate))
    assert table.rows[0][1] == "sides not known"
    with pytest.raises(InputError, match="a table of 2 columns"):
        Table(("", "a"), (("only one",),))


def test_two_scans_share_one_resolution(tmp_path, case, rng, monkeypatch):
    """The second packs badly and is made coarser; the first follows, or their slices would not match."""
    flat = Volume(np.zeros(case.volume.grid.shape, np.float32), case.volume.grid, case.volume.grid)
    calm = ViewScan("calm", flat, case.lungs, case.infiltrate)
    monkeypatch.setattr(view_data, "PACKED_BYTES", 2_000)
    change = Mask.empty(case.volume.grid, {1: "new"})
    packed = view._pack([calm, case], change)
    assert packed[0].factors == packed[1].factors == (2, 2, 2)
    write_change_view(tmp_path / "v.html", calm, case, change, Table(("",), ()))
    names = [name for name, _ in parts_of((tmp_path / "v.html").read_text(encoding="utf-8"), "text/plain")]
    made = [f"{what}-0-{n}" for n in range(3) for what in ("vertices", "triangles")]  # both lungs and the infiltrate
    assert names == ["picture-0", "masks-0", *made, "picture-1", "masks-1", "vertices-1-0", "triangles-1-0"]


def test_scans_and_masks_of_other_grids_are_refused(tmp_path, case):
    other = Grid.from_spacing((12, 12, 12), (2, 2, 3))
    moved = ViewScan("moved", Volume(case.volume.hu, other, other), case.lungs, case.infiltrate)
    change = Mask.empty(case.volume.grid, {1: "new"})
    with pytest.raises(GeometryError, match="the follow-up lies on another grid"):
        write_change_view(tmp_path / "v.html", case, moved, change, Table(("",), ()))
    with pytest.raises(GeometryError, match="the mask change"):
        write_change_view(tmp_path / "v.html", case, case, Mask.empty(other, {}), Table(("",), ()))
    assert not list(tmp_path.iterdir())
