"""Faults planted one by one are found, and nothing else is; copies are known whatever was done to them."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from defects import Draft, clean, plant, score, write
from scipy import ndimage

from grids import all_axis_codes, build_grid
from pneumoscope.cases.audit import audit_dataset
from pneumoscope.cases.options import AuditOptions
from pneumoscope.datasets.audit.anatomy import FLIPS, best_flip, look
from pneumoscope.datasets.audit.case import RawCase, RawMask, differences, judge_case
from pneumoscope.datasets.audit.duplicates import content_hash, find_duplicates, fingerprint, similarity
from pneumoscope.datasets.audit.infiltrate import Scene, infiltrate_pieces
from pneumoscope.datasets.audit.repair import file_index, repair_case
from pneumoscope.datasets.audit.rules import COLUMNS, KINDS, REPAIRS, AuditFinding, AuditRules, ranked, spotted
from pneumoscope.datasets.case import Case
from pneumoscope.geometry import Grid, reorient_array
from pneumoscope.volume import Volume, array_to_native
from tables import rows_of


def raw_of(made, **changes):
    """A phantom scan as `read_raw` would give it."""
    scan = made.scan

    def raw(mask):
        if mask is None:
            return None
        return RawMask(mask.labels, mask.grid, scan.volume.native, {n: n for n in mask.names}, frozenset(mask.names))

    case = Case("phantom", scan.volume.case, scan.volume.case, "", "", "", lambda: scan)
    return RawCase(case, scan.volume, raw(scan.lungs), raw(scan.infiltrate), **changes)


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """Per site a folder with planted faults, what was planted, the audit of it with a cleaned copy, and sums before."""
    done = {}

    def audit(site):
        if site not in done:
            root = tmp_path_factory.mktemp(site)
            planted = plant(root / "data", site, size="tiny", untouched=4)
            before = sums(root / "data")
            result = audit_dataset("manifest", root / "data", root / "out", AuditOptions(fix=root / "fixed"))
            done[site] = root, planted, result, before
        return done[site]

    return audit


@pytest.mark.parametrize("site", ["A", pytest.param("B", marks=pytest.mark.slow), "C"])
def test_every_planted_fault_is_found_and_nothing_else(site, audited):
    _, planted, result, _ = audited(site)
    scored = score(planted, result.findings)
    assert scored.missed == ()
    assert [(f.case, f.kind, f.detail) for f in scored.wrong] == []
    assert len(planted) >= (10 if site == "C" else 21)  # 52 in all, of 16 kinds
    assert len({fault.kind for fault in planted}) >= (9 if site == "C" else 15)


@pytest.mark.slow
@pytest.mark.parametrize("site", ["A", "B", "C"])
def test_planted_faults_at_a_size_where_slices_are_near(site, tmp_path):
    planted = plant(tmp_path / "data", site, size="small", untouched=4)
    scored = score(planted, audit_dataset("manifest", tmp_path / "data", tmp_path / "out").findings)
    assert (scored.missed, scored.wrong) == ((), ())


def test_the_score_counts_what_is_wrong():
    """A finding of the right case and another kind, or at another place, is a miss and a false alarm."""
    place = (10.0, 0.0, 0.0)
    found = AuditFinding("c", "speck", "warning", "", slice=0, voxels=3, centre_mm=place)
    planted = [replace_planted(centre_mm=place), replace_planted(centre_mm=(20.0, 0.0, 0.0))]
    scored = score(planted, [found, replace(found, kind="in-bone")])
    assert (len(scored.found), len(scored.missed), len(scored.wrong)) == (1, 1, 1)
    assert (scored.precision, scored.recall) == (0.5, 0.5)


def replace_planted(**changes):
    from defects import Planted

    return replace(Planted("c", "x", "speck"), **changes)


def test_clean_scans_and_faults_of_the_phantom_itself(tiny):
    """`scan_patient` plants a speck into every third patient and infiltrate without lung into every fourth."""
    for (site, number), made in tiny.items():
        found = [f.kind for f in judge_case(raw_of(made)).findings]
        if not made.faults:
            assert found == [], (site, number)
        elif site != "C":
            assert found == [{"speck": "speck", "no-lung": "no-lung-slice"}[made.faults[0].kind]], (site, number)


def test_specks_inside_the_lung_need_fine_voxels():
    """Three pixels of 0.7 x 0.7 x 1 mm alone in the lung; beside a lesion they are crumbs, counted together."""
    grid = Grid.from_spacing((60, 60, 12), (0.7, 0.7, 1.0))
    lung = np.ones(grid.shape, bool)
    drawn = np.zeros(grid.shape, bool)
    drawn[5:20, 5:20, 3:9] = True
    drawn[40:43, 40, 5] = True  # alone
    drawn[23, 10, 5] = drawn[23, 14, 5] = True  # 2 mm from the lesion
    scene = Scene(Volume(np.full(grid.shape, -700, np.float32), grid, grid), lung, None)
    found = list(infiltrate_pieces("c", drawn, scene, AuditRules()))
    assert [(f.kind, f.voxels, f.severity) for f in found] == [("speck", 3, "warning"), ("crumbs", 2, "note")]
    assert found[0].slice == 5
    assert found[0].centre_mm == pytest.approx((41 * 0.7, 28.0, 5.0))
    assert found[0].volume_ml == pytest.approx(3 * 0.49 / 1000)
    coarse = Grid.from_spacing(grid.shape, (4.0, 4.0, 4.0))
    scene = Scene(Volume(np.full(grid.shape, -700, np.float32), coarse, coarse), lung, None)
    assert [f.kind for f in infiltrate_pieces("c", drawn, scene, AuditRules())] == []


def test_empty_masks_are_no_fault_of_their_own(tiny):
    made = tiny["A", 0]
    raw = raw_of(made)
    empty = replace(raw, infiltrate=replace(raw.infiltrate, labels=np.zeros_like(raw.infiltrate.labels)))
    assert judge_case(empty).findings == []
    lungless = judge_case(replace(raw, lungs=replace(raw.lungs, labels=np.zeros_like(raw.lungs.labels))))
    assert [f.kind for f in lungless.findings] == ["empty-lungs"]


def test_pictures_are_never_judged_by_density(tiny):
    raw = raw_of(tiny["A", 0], hounsfield=False, why_not="8-bit pictures", sized=False)
    judged = judge_case(raw, stacked=False)
    assert {f.kind for f in judged.findings} <= {"speck", "crumbs"}  # pixels have no size, so these go by number
    assert {"in-air", "in-bone", "single-slice"} <= set(judged.not_judged)


def test_single_slices_are_not_held_against_a_chest(tiny):
    """A slice of the belly has an empty lung mask by right."""
    raw = raw_of(tiny["A", 0])
    volume = raw.volume
    grid = volume.grid.crop((0, 0, 0), (*volume.grid.shape[:2], 1))
    part = Volume(np.ascontiguousarray(volume.hu[:, :, :1]), grid, grid)
    cut = {
        name: replace(getattr(raw, name), labels=getattr(raw, name).labels[:, :, :1] * 0, grid=grid)
        for name in ("lungs", "infiltrate")
    }
    judged = judge_case(replace(raw, volume=part, **cut))
    assert judged.findings == []
    assert "mirrored, foreign and empty masks" in judged.not_judged


def test_the_lung_is_seen_by_density(tiny):
    for made in tiny.values():
        anatomy = look(made.scan.volume)
        exact = anatomy.thin(made.lungs.labels > 0)
        overlap = 2 * (exact & anatomy.lung).sum() / (exact.sum() + anatomy.lung.sum())
        assert overlap > 0.85
        assert anatomy.air_hu < -850


def test_the_simplest_mirroring_wins():
    score_of = dict.fromkeys(FLIPS, 0.5)
    assert best_flip(score_of) == (False, False, False)
    assert best_flip({**score_of, (True, False, False): 0.6, (True, True, True): 0.6}) == (True, False, False)


# --- copies ----------------------------------------------------------------------------------------------------------


def test_content_is_known_in_all_48_orders(rng):
    hu = rng.integers(-1000, 400, (5, 6, 7)).astype(np.float32)
    grid = build_grid(shape=(5, 6, 7))
    hashes = {content_hash(reorient_array(hu, *grid.reorientation(codes))) for codes in all_axis_codes()}
    assert len(hashes) == 1
    other = hu.copy()
    other[2, 3, 4] += 1
    assert content_hash(other) not in hashes
    cube = rng.integers(0, 9, (4, 4, 4)).astype(np.float32)
    assert content_hash(cube) == content_hash(cube[::-1].transpose(2, 0, 1))


def near_copies(hu):
    """What happens to scans that are passed on."""
    return {
        "resampled": ndimage.zoom(hu, (0.8, 0.8, 1.0), order=1),
        "shown in a window": np.clip((hu + 1250) / 1500, 0, 1) * 255 - 1000,
        "mirrored and in steps of 16 HU": np.rint(hu[::-1] / 16) * 16,
    }


def test_near_copies_are_told_from_other_patients(small):
    scans = {site: made.scan.volume.hu for site, made in small.items()}
    prints = {site: _print(hu) for site, hu in scans.items()}
    limit = AuditRules().near_correlation
    for site, hu in scans.items():
        for what, copy in near_copies(hu).items():
            assert similarity(prints[site].blocks, _print(copy).blocks) > limit, (site, what)
    assert max(similarity(prints[a].blocks, prints[b].blocks) for a, b in ("AB", "AC", "BC")) < limit - 0.005


def _print(hu, case="c", dataset="", patient="p"):
    grid = Grid.from_spacing(hu.shape, (1.0, 1.0, 1.0))
    return fingerprint(Volume(np.ascontiguousarray(hu, np.float32), grid, grid), dataset=dataset, case=case,
                       patient=patient)  # fmt: skip


def test_copies_within_and_across_sets(small):
    hu = small["A"].scan.volume.hu
    known = _print(hu, "first", patient="p1")
    found = find_duplicates([known, _print(hu[:, ::-1], "second", patient="p1"), _print(hu, "third", patient="p2")])
    assert [(f.case, f.kind, f.severity) for f in found] == [
        ("second", "duplicate-scan", "error"),
        ("third", "duplicate-patient", "error"),
    ]
    (across,) = find_duplicates([_print(hu, "mine")], [_print(hu, "theirs", dataset="other (folder)")])
    assert across.kind == "duplicate-scan"
    assert "theirs of other (folder)" in across.detail


# --- reader against model --------------------------------------------------------------------------------------------


def test_differences_between_reader_and_model():
    grid = Grid.from_spacing((40, 40, 20), (2.0, 2.0, 2.0))
    lung = np.ones(grid.shape, bool)
    drawn, found = np.zeros(grid.shape, bool), np.zeros(grid.shape, bool)
    probability = np.zeros(grid.shape, np.uint8)
    drawn[2:8, 2:8, 2:8] = True  # seen by the model as well
    found[3:9, 3:9, 3:9] = True
    found[20:26, 20:26, 5:11] = True  # not drawn
    found[30:32, 5:35, 5:7] = True  # a vessel: thin
    found[12:16, 30:34, 12:14] = True  # small
    probability[found] = 240
    probability[20:26, 20:26, 5:11] = 250
    drawn[30:38, 30:38, 14:19] = True  # not seen
    rows = list(differences("c", drawn, found, probability, lung, grid, AuditRules()))
    assert [(f.kind, f.slice is not None, f.voxels) for f in rows] == [
        ("missing-annotation", True, 216),
        ("unseen-lesion", True, 320),
    ]
    assert rows[0].confidence == pytest.approx(250 / 255)
    assert rows[0].centre_mm == pytest.approx((45.0, 45.0, 15.0))
    nothing = np.zeros_like(drawn)
    assert list(differences("c", nothing, nothing, probability * 0, lung, grid, AuditRules())) == []


# --- repair ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codes", [("R", "A", "S"), ("L", "P", "I"), ("P", "I", "R"), ("S", "L", "A")])
def test_indices_in_the_order_of_the_file(codes, rng):
    native = build_grid(codes, tilt_degrees=(5.0, -3.0, 2.0))
    stored = rng.integers(0, 255, native.shape)
    turned = reorient_array(stored, *native.reorientation(("R", "A", "S")))
    where = np.argwhere(turned > 100)
    index = file_index(where, native)
    assert (stored[tuple(index.T)] == turned[tuple(where.T)]).all()
    assert native.world(index) == pytest.approx(native.reorient(("R", "A", "S")).world(where))


def test_repairs_can_be_switched(tmp_path):
    made = clean("A", 0, "tiny", 21)
    raw = raw_of(made)
    labels = raw.lungs.labels.copy()
    labels[:] = np.array([0, 2, 1], np.uint8)[labels]
    raw = replace(raw, lungs=replace(raw.lungs, labels=labels))
    kept = repair_case(raw, kinds=())
    assert (kept.changes, [f.kind for f in kept.left]) == ([], ["swapped-sides"])
    mended = repair_case(raw, kinds=("swapped-sides",))
    assert mended.left == []
    assert np.array_equal(mended.lungs, made.scan.lungs.labels)
    assert sum(len(c.where) for c in mended.changes) == np.count_nonzero(labels)
    assert np.array_equal(raw.lungs.labels, labels)  # the arrays that came in are as they were


@pytest.mark.parametrize("site", ["A", "C"])
def test_the_cleaned_copy_is_clean_and_the_log_is_complete(site, audited):
    root, _, first, before = audited(site)
    assert sums(root / "data") == before
    again = audit_dataset("manifest", root / "fixed", root / "out2")
    mended = set(first.summary["repairs"]["voxels"]) & set(REPAIRS)
    left = {f.kind for f in again.findings} & mended
    allowed = {"undeclared-label"} if site == "A" else {"no-lung-slice", "outside-lung"}
    assert left <= allowed & set(first.summary["repairs"]["left"])
    assert "speck" in mended - left
    logged = rows_of(root / "fixed" / "changes.csv")
    assert count_of(logged) == differing(root)
    assert {row["kind"] for row in logged} <= {*REPAIRS, "not-carried"}


def sums(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}


def count_of(rows):
    """(case, mask) -> {(i, j, k): (from, to)}, the last of several changes of a voxel winning, the first its origin."""
    out = {}
    for row in rows:
        voxels = out.setdefault((row["case"], row["mask"]), {})
        at = tuple(int(row[axis]) for axis in "ijk")
        first = voxels.get(at, (int(row["from"]), 0))[0]
        voxels[at] = (first, int(row["to"]))
    return {key: {at: change for at, change in voxels.items() if change[0] != change[1]} for key, voxels in out.items()}


def differing(root):
    """The same, told by another reader from the files themselves."""
    out = {}
    for row in rows_of(root / "fixed" / "manifest.csv"):
        for mask in ("lungs", "infiltrate"):
            if row[mask]:
                old = np.asanyarray(nib.load(root / "data" / f"{row['case']}-{mask}.nii.gz").dataobj)
                new = np.asanyarray(nib.load(root / "fixed" / row[mask]).dataobj)
                where = np.argwhere(old != new)
                if len(where):
                    out[row["case"], mask] = {
                        tuple(map(int, at)): (int(old[tuple(at)]), int(new[tuple(at)])) for at in where
                    }
    return out


def test_the_log_names_places_on_grids_that_lie_askew(tmp_path, rng):
    """Stored sagittally, tilted: i, j, k point into the mask's own file, x, y, z into the patient."""
    native = build_grid(("P", "I", "R"), shape=(14, 15, 16), spacing_mm=(2.0, 3.0, 2.5), tilt_degrees=(6.0, -4.0, 3.0))
    grid = native.reorient(("R", "A", "S"))
    hu = rng.integers(-1000, 300, grid.shape).astype(np.float32)
    drawn = np.zeros(grid.shape, np.uint8)
    drawn[3:11, 3:11, 3:11] = 1
    drawn[5, 6, 7] = drawn[6, 6, 7] = 9
    draft = Draft("askew", Volume(hu, grid, native), hu, None, drawn, drawn * 0, "p", "", rng)
    write(tmp_path / "data", [draft])
    audit_dataset("manifest", tmp_path / "data", tmp_path / "out", AuditOptions(fix=tmp_path / "fixed"))
    rows = rows_of(tmp_path / "fixed" / "changes.csv")
    assert [(row["from"], row["to"], row["kind"]) for row in rows] == [("9", "0", "undeclared-label")] * 2
    stored = array_to_native(drawn, native)
    for row in rows:
        at = tuple(int(row[axis]) for axis in "ijk")
        assert stored[at] == 9
        assert native.world(at) == pytest.approx([float(row[axis]) for axis in "xyz"], abs=0.006)


# --- tables ----------------------------------------------------------------------------------------------------------


def test_findings_as_a_table():
    grid = Grid.from_spacing((4, 5, 6), (1.0, 2.0, 3.0))
    where = np.array([[1, 1, 2], [2, 1, 2], [1, 1, 3]])
    small = spotted("b", "speck", "warning", 'odd, "quoted"', where, grid)
    whole = AuditFinding("a", "mirrored-mask", "error", "mirrored")
    rows = [finding.row() for finding in ranked([small, whole])]
    assert ",".join(COLUMNS) == ",".join(rows[0]) == "case,slice,kind,voxels,volume_ml,x,y,z,severity,detail"
    assert [row["case"] for row in rows] == ["a", "b"]
    assert (rows[0]["slice"], rows[0]["x"], rows[0]["volume_ml"]) == ("", "", "")
    assert (str(rows[1]["slice"]), rows[1]["x"], rows[1]["y"], rows[1]["z"]) == ("2", "1.33", "2.00", "7.00")
    assert (str(rows[1]["voxels"]), rows[1]["volume_ml"], rows[1]["detail"]) == ("3", "0.0180", 'odd, "quoted"')


def test_every_threshold_has_a_reason_and_every_kind_a_sentence():
    lines = inspect.getsource(AuditRules).splitlines()
    for name in AuditRules.__dataclass_fields__:
        at = next(n for n, line in enumerate(lines) if line.startswith(f"    {name}: "))
        assert "#" in lines[at] or lines[at - 1].startswith("    # "), name
    for kind in KINDS.values():
        assert kind.meaning.endswith("."), kind
