"""The cleaned copy keeps the voxels of every scan, whatever files hold them, and shares no byte with its source."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from pneumoscope.cases.audit import audit_dataset
from pneumoscope.cases.options import AuditOptions
from pneumoscope.errors import InputError
from tables import rows_of

SIZE = (16, 15, 14)  # i, j, k


def scan(seed, dtype=sitk.sitkInt16, direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)):
    """A little body of its own noise: no two seeds share a slice."""
    hu = np.full(SIZE[::-1], -1000.0)
    hu[:, 3:12, 3:13] = np.random.default_rng(seed).integers(-900, 200, (SIZE[2], 9, 10))
    image = sitk.Cast(sitk.GetImageFromArray(hu), dtype)
    image.SetSpacing((5.0, 8.0, 12.0))
    image.SetOrigin((-70.0, 30.0 * seed, -500.0))
    image.SetDirection(direction)
    return image


def mask_of(image, label=1):
    labels = np.zeros(SIZE[::-1], np.uint8)
    labels[4:9, 5:9, 5 : 8 + label] = label
    mask = sitk.GetImageFromArray(labels)
    mask.CopyInformation(image)
    return mask


def detached(folder, image, stem="image", raw=None, compress=False):
    """`stem`.mhd with its voxels in a second file, renamed to `raw` as people do."""
    folder.mkdir(parents=True, exist_ok=True)
    header = folder / f"{stem}.mhd"
    sitk.WriteImage(image, str(header), useCompression=compress)
    if raw:
        data = folder / f"{stem}.{'zraw' if compress else 'raw'}"
        data.rename(folder / raw)
        header.write_text(header.read_text().replace(data.name, raw))
    return header


def big_endian(folder, image):
    header = detached(folder, image)
    header.write_text(header.read_text().replace("MSB = False", "MSB = True"))
    raw = folder / "image.raw"
    raw.write_bytes(np.frombuffer(raw.read_bytes(), "<i2").astype(">i2").tobytes())
    return header


def mha_with_its_voxels_elsewhere(folder, image):
    return detached(folder, image).rename(folder / "image.mha")


def single(name):
    def write(folder, image):
        folder.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(folder / name))
        return folder / name

    return write


def folder_of_one(folder, image):
    detached(folder / "scan", image, raw="voxels.bin")
    return folder / "scan"


WRITERS = {
    "two files": detached, "another stem": lambda folder, image: detached(folder, image, raw="voxels.bin"),
    "packed": lambda folder, image: detached(folder, image, raw="other.zraw", compress=True),
    "big endian": big_endian, "mha without voxels": mha_with_its_voxels_elsewhere, "mha": single("image.mha"),
    "nrrd": single("image.nrrd"), "nii": single("image.nii"), "nii.gz": single("image.nii.gz"),
    "folder": folder_of_one,
}  # fmt: skip


def table_of(root, rows):
    with (root / "manifest.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, ("case", "image", "lungs", "infiltrate"))
        table.writeheader()
        table.writerows(rows)


def bytes_below(root):
    return {p.relative_to(root): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()}


def copied(root, tmp_path, **options):
    audit_dataset("manifest", root, tmp_path / "out", AuditOptions(fix=tmp_path / "fixed"), **options)
    return {row["case"]: row for row in rows_of(tmp_path / "fixed" / "manifest.csv")}


def readable(path: Path) -> str:
    return str(next(path.glob("*.mhd"))) if path.is_dir() else str(path)


def same_image(copy, source):
    mine, theirs = (sitk.ReadImage(readable(path)) for path in (copy, source))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mine), sitk.GetArrayFromImage(theirs))
    assert mine.GetPixelID() == theirs.GetPixelID()
    for what in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(mine, what)(), getattr(theirs, what)(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", WRITERS)
def test_every_copy_holds_the_voxels_of_its_own_source(tmp_path, kind):
    root, rows, sources = tmp_path / "data", [], {}
    turned = (0, 1, 0, -1, 0, 0, 0, 0, 1)
    second = scan(2, sitk.sitkInt16 if kind == "big endian" else sitk.sitkFloat32, turned)
    for case, image in {"P1": scan(1), "P2": second}.items():
        sources[case] = WRITERS[kind](root / case, image)
        mask = root / case / "mask.mhd"
        sitk.WriteImage(mask_of(image, int(case[1])), str(mask))
        rows.append({"case": case, "image": sources[case].relative_to(root), "infiltrate": mask.relative_to(root)})
    table_of(root, rows)
    before = bytes_below(root)
    written = copied(root, tmp_path)
    for case, source in sources.items():
        same_image(tmp_path / "fixed" / written[case]["image"], source)
        labels = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "fixed" / written[case]["infiltrate"])))
        assert set(np.unique(labels)) == {0, int(case[1])}
    for path in (tmp_path / "fixed").rglob("*"):
        if path.is_file():
            with path.open("r+b") as stream:
                stream.write(b"edited by hand")
    assert bytes_below(root) == before


def test_one_folder_with_several_scans(tmp_path):
    """`a.mhd` names `b.raw` and `b.mhd` names `a.raw`: only the headers say whose voxels are whose."""
    root = tmp_path / "data"
    a, b = detached(root, scan(1), "a", "b.raw"), detached(root / "other", scan(2), "b", "a.raw")
    b, _ = b.rename(root / "b.mhd"), (root / "other" / "a.raw").rename(root / "a.raw")
    table_of(root, [{"case": "a", "image": "a.mhd"}, {"case": "b", "image": "b.mhd"}])
    written = copied(root, tmp_path)
    same_image(tmp_path / "fixed" / written["a"]["image"], a)
    same_image(tmp_path / "fixed" / written["b"]["image"], b)


def test_names_that_are_one_on_some_disks_are_refused_before_any_work(tmp_path):
    root = tmp_path / "data"
    for name in ("case", "CASE"):
        detached(root / f"of-{name}", scan(len(name)))
    table_of(root, [{"case": name, "image": f"of-{name}/image.mhd"} for name in ("case", "CASE")])
    with pytest.raises(InputError, match="both be written as 'case'"):
        copied(root, tmp_path)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "fixed").exists()


def test_no_file_of_an_earlier_copy_stays(tmp_path):
    root = tmp_path / "data"
    folder_of_one(root, scan(1))
    table_of(root, [{"case": "P1", "image": "scan"}])
    copied(root, tmp_path)
    for path in (root / "scan").iterdir():
        path.unlink()
    sitk.WriteImage(scan(2), str(root / "scan" / "image.nrrd"))
    written = copied(root, tmp_path, overwrite=True)
    assert [p.name for p in (tmp_path / "fixed" / written["P1"]["image"]).iterdir()] == ["image.nrrd"]
