"""Readers of radiograph sets: names, classes, patients, junk, both generations of every table, and bad trees."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumoscope.datasets.audit.duplicates import find_pairs, patient_groups, take_prints
from pneumoscope.datasets.public.cohen import article_of, label_of
from pneumoscope.datasets.radiographs import READERS, XrayCase, read_radiographs
from pneumoscope.errors import DatasetError, ReadError


def picture(path: Path, seed: int = 0, side: int = 96, mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (9, 9), dtype=np.uint8))
    coarse.resize((side, side), Image.Resampling.BICUBIC).convert(mode).save(path)
    return path


def kaggle(root: Path) -> Path:
    names = {
        "train/NORMAL": ["IM-0115-0001.jpeg", "NORMAL2-IM-0832-0001-0002.jpeg", "IM-0115-0002.jpeg"],
        "train/PNEUMONIA": ["person1_bacteria_1.jpeg", "person1_bacteria_2.jpeg", "person447_virus_921_1.jpeg"],
        "test/PNEUMONIA": ["person1_virus_6.jpeg"],
        "test/NORMAL": ["IM-0011-0001-0002.jpeg"],
        "val/PNEUMONIA": ["person1946_bacteria_4874.jpeg"],
    }
    tree = root / "chest_xray"
    for n, (folder, files) in enumerate(names.items()):
        for m, name in enumerate(files):
            picture(tree / folder / name, 10 * n + m, mode="RGB" if m == 1 else "L")
            picture(tree / "chest_xray" / folder / name, 10 * n + m)  # the second, nested tree
            (tree / "__MACOSX" / folder).mkdir(parents=True, exist_ok=True)
            (tree / "__MACOSX" / folder / f"._{name}").write_bytes(b"junk")
        (tree / folder / ".DS_Store").write_bytes(b"junk")
        (tree / folder / "Thumbs.db").write_bytes(b"junk")
    return root


def mendeley(root: Path) -> Path:
    for folder, name in (
        ("train/NORMAL", "NORMAL-28501-0001.jpeg"),
        ("train/PNEUMONIA", "BACTERIA-7422-0001.jpeg"),
        ("train/PNEUMONIA", "BACTERIA-7422-0002.jpeg"),
        ("test/PNEUMONIA", "VIRUS-7422-0001.jpeg"),
    ):
        picture(root / "chest_xray" / folder / name, len(name))
    return root


EARLY = """patientid,offset,finding,view,modality,folder,filename,license, url,
2,0,COVID-19,PA,X-ray,images,a.jpg,CC BY,u,
2,3,"COVID-19, ARDS",AP Supine,X-ray,images,b.jpg ,CC BY,u,
3,,SARS,PA,X-ray,images,c.png,,u,
4,,COVID-19,L,X-ray,images,lateral.jpg,,u,
5,,COVID-19,Axial,CT,images,ct.jpg,,u,
6,,COVID-19,PA,X-ray,images,not-here.jpg,,u,
7,,Streptococcus,AP,X-ray,images,d.png,,u,
"""
LATE = """patientid,finding,view,modality,folder,filename,license,Unnamed: 29
p-2a,Pneumonia/Viral/COVID-19,PA,X-ray,images,a.jpg,CC BY,
p-3,Pneumonia/Viral/Herpes ,AP Erect,X-ray,images,b.jpg,,
p-4,No finding,AP,X-ray,images,c.png,,
p-5,todo,PA,X-ray,images,d.png,,
p-6,Tuberculosis,PA,X-ray,images,lateral.jpg,,
"""


def cohen(root: Path, table: str) -> Path:
    for n, name in enumerate(("a.jpg", "b.jpg", "c.png", "d.png", "lateral.jpg", "ct.jpg")):
        picture(root / "images" / name, n)
    (root / "metadata.csv").write_text(table)
    return root


def hannover(root: Path) -> Path:
    for n in range(3):
        picture(root / "png" / f"abc{n}.png", n)
    (root / "data.csv").write_text(
        "image_id,patient_id,admission_offset,modality,projection\n"
        "abc0,7,0,CR,pa\nabc1,7,3,CR,ap\nabc2,8,0,CT,axial\nmissing,9,0,CR,ap\n"
    )
    return root


def nih(root: Path) -> Path:
    for n, name in enumerate(("00000001_000.png", "00000001_001.png", "00000002_000.png")):
        picture(root / "images_001" / "images" / name, n)
    (root / "Data_Entry_2017.csv").write_text(
        "Image Index,Finding Labels,Follow-up #,Patient ID,View Position\n"
        "00000001_000.png,No Finding,0,1,PA\n"
        "00000001_001.png,Pneumonia|Effusion,1,1,AP\n"
        "00000002_000.png,Hernia,0,2,PA\n"
    )
    return root


def radiographs(root: Path) -> Path:
    picture(root / "x" / "one.png")
    picture(root / "y" / "one.png", 5)
    (root / "radiographs.csv").write_text(
        "\ufeffimage, label,patient,source\nx/one.png,normal,P1,here\ny/one.png,mine,,there\n", encoding="utf-8"
    )
    return root


TREES = {
    "kermany": kaggle, "cohen": lambda root: cohen(root, LATE), "hannover": hannover, "nih": nih,
    "radiographs": radiographs,
}  # fmt: skip


def test_there_is_a_tree_for_every_reader():
    assert set(TREES) == set(READERS)


@pytest.mark.parametrize("name", READERS)
def test_the_contract(name, tmp_path, monkeypatch):
    root = TREES[name](tmp_path / name)
    with monkeypatch.context() as patch:
        patch.setattr(XrayCase, "load", lambda self: pytest.fail("listing opens no picture"))
        cases = read_radiographs(name, root)
    assert cases
    assert len({c.case for c in cases}) == len(cases)
    for case in cases:
        assert case.dataset == name
        assert case.patient.startswith(f"{name}:")
        assert case.licence
        assert case.citation
        assert case.label
        assert case.load().pixels.shape == (96, 96)


@pytest.mark.parametrize("name", READERS)
def test_bad_trees_are_one_line(name, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.zip").write_bytes(b"PK\x03\x04")
    for bad in ("empty", "nothing", "file.zip"):
        with pytest.raises(DatasetError) as refused:
            read_radiographs(name, tmp_path / bad)
        assert "\n" not in str(refused.value)
    if name != "radiographs":  # a table may name files wherever they lie
        root = TREES[name](tmp_path / "tree")
        inside = next(p for p in root.rglob("*") if p.suffix in (".png", ".jpeg", ".jpg"))
        inside.with_name("zz.png").symlink_to(picture(tmp_path / "outside.png"))
        with pytest.raises(DatasetError, match="link out of"):
            read_radiographs(name, root)


def test_kermany_kaggle_names_parts_and_nested_copy(tmp_path):
    cases = {c.case: c for c in read_radiographs("kermany", kaggle(tmp_path))}
    assert len(cases) == 9, "the nested copy is the same pictures"
    assert Counter(c.label for c in cases.values()) == {"normal": 4, "bacterial": 3, "viral": 2}
    assert Counter(c.part for c in cases.values()) == {"train": 6, "test": 2, "val": 1}
    assert cases["train_IM-0115-0001"].patient == cases["train_IM-0115-0002"].patient == "kermany:im-0115"
    assert cases["train_NORMAL2-IM-0832-0001-0002"].patient == "kermany:normal2-im-0832"
    assert cases["test_person1_virus_6"].patient == cases["train_person1_bacteria_1"].patient, "kept together: safe"


def test_kermany_mendeley(tmp_path):
    cases = read_radiographs("kermany", mendeley(tmp_path))
    assert Counter(c.label for c in cases) == {"normal": 1, "bacterial": 2, "viral": 1}
    assert {c.patient for c in cases} == {"kermany:id28501", "kermany:id7422"}


def test_kermany_names_that_tell_nothing_or_lie(tmp_path):
    picture(tmp_path / "a" / "train" / "PNEUMONIA" / "unknown.jpeg")
    with pytest.raises(DatasetError, match="neither bacteria nor virus"):
        read_radiographs("kermany", tmp_path / "a")
    picture(tmp_path / "b" / "train" / "NORMAL" / "person3_virus_3.jpeg")
    with pytest.raises(DatasetError, match="lies in NORMAL and is called viral"):
        read_radiographs("kermany", tmp_path / "b")


def test_cohen_early_table(tmp_path):
    cases = read_radiographs("cohen", cohen(tmp_path, EARLY))
    assert [(c.path.name, c.label, c.patient) for c in cases] == [
        ("a.jpg", "covid19", "cohen:2"),
        ("b.jpg", "covid19", "cohen:2"),
        ("c.png", "viral", "cohen:3"),
        ("d.png", "bacterial", "cohen:7"),
    ]
    assert cases[0].licence.startswith("CC BY")


def test_cohen_late_table(tmp_path):
    cases = read_radiographs("cohen", cohen(tmp_path, LATE))
    assert [(c.path.name, c.label) for c in cases] == [
        ("a.jpg", "covid19"), ("b.jpg", "viral"), ("c.png", "normal"), ("lateral.jpg", "other"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("finding", "label"),
    [
        ("COVID-19, ARDS", "covid19"), ("ARDS", "other"), ("Pneumonia/Viral/COVID-19", "covid19"),
        ("Pneumonia/Bacterial/Staphylococcus/MRSA", "bacterial"), ("Pneumonia/Fungal/Pneumocystis", "pneumonia"),
        ("Pneumonia", "pneumonia"), ("Pneumonia/Viral/Influenza/H1N1", "viral"), ("No Finding", "normal"),
        ("Unknown", None), ("todo", None),
    ],
)  # fmt: skip
def test_cohen_findings(finding, label):
    assert label_of(finding) == label


def test_cohen_without_table_needs_a_telling_name(tmp_path):
    picture(tmp_path / "cohen-covid" / "1-s2.0-S09-gr2_lrg-a.jpg")
    picture(tmp_path / "cohen-covid" / "1-s2.0-S09-gr2_lrg-b.jpg", 1)
    cases = read_radiographs("cohen", tmp_path / "cohen-covid")
    assert {c.label for c in cases} == {"covid19"}
    assert len({c.patient for c in cases}) == 1
    picture(tmp_path / "other" / "a.jpg")
    with pytest.raises(DatasetError, match=r"no metadata\.csv"):
        read_radiographs("cohen", tmp_path / "other")


def test_articles_are_told_by_name():
    assert article_of("nejmoa2001191_f1-PA") == article_of("nejmoa2001191_f4") == "nejmoa2001191"
    assert article_of("nejmc2001573_f1a") != article_of("nejmoa2001191_f4")
    first, second = "01E392EE-69F9-4E33-BFCE-E5C968654078", "03BF7561-A9BA-4C3C-B8A0-D3E585F73F3C"
    assert article_of(first) != article_of(second)


def test_a_web_page_under_the_name_of_the_table(tmp_path):
    cohen(tmp_path, "<!DOCTYPE html>\n<html><body>not found</body></html>\n")
    with pytest.raises(DatasetError, match="has no column patientid"):
        read_radiographs("cohen", tmp_path)


def test_hannover_and_nih(tmp_path):
    cases = read_radiographs("hannover", hannover(tmp_path / "h"))
    assert [(c.case, c.patient, c.view) for c in cases] == [("abc0", "hannover:7", "PA"), ("abc1", "hannover:7", "AP")]
    cases = read_radiographs("nih", nih(tmp_path / "n"))
    assert [(c.label, c.patient, c.view) for c in cases] == [
        ("normal", "nih:00000001", "PA"),
        ("pneumonia", "nih:00000001", "AP"),
        ("other", "nih:00000002", "PA"),
    ]
    picture(tmp_path / "nih-no-finding" / "00000009_000.jpg")
    assert read_radiographs("nih", tmp_path / "nih-no-finding")[0].label == "normal"


def test_own_table_names_stay_apart(tmp_path):
    cases = read_radiographs("radiographs", radiographs(tmp_path))
    assert [c.case for c in cases] == ["one", "one-3"]
    assert [c.patient for c in cases] == ["radiographs:P1", "radiographs:row3"]
    (tmp_path / "radiographs.csv").write_text("image,label\nnowhere.png,normal\n")
    with pytest.raises(DatasetError, match=r"line 2: image 'nowhere\.png' does not exist"):
        read_radiographs("radiographs", tmp_path)


def test_duplicates_are_found_across_sets_and_join_patients(tmp_path):
    picture(tmp_path / "a" / "train" / "NORMAL" / "IM-0001-0001.png", 1)
    picture(tmp_path / "a" / "train" / "NORMAL" / "IM-0002-0001.png", 2)
    picture(tmp_path / "a" / "train" / "PNEUMONIA" / "person3_virus_3.png", 3)
    picture(tmp_path / "b" / "00000007_000.png", 2)  # the same pixels in another set
    whole = Image.open(tmp_path / "a" / "train" / "PNEUMONIA" / "person3_virus_3.png")
    framed = Image.new("L", (140, 120), 0)  # the same picture, resized, framed in black, as JPEG
    framed.paste(whole.resize((110, 110)), (15, 5))
    (tmp_path / "c-no-finding").mkdir()
    framed.save(tmp_path / "c-no-finding" / "00000008_000.jpg", quality=85)
    (tmp_path / "b").rename(tmp_path / "b-no-finding")
    cases = [
        *read_radiographs("kermany", tmp_path / "a"),
        *read_radiographs("nih", tmp_path / "b-no-finding"),
        *read_radiographs("nih", tmp_path / "c-no-finding"),
    ]
    pairs = find_pairs(take_prints(cases), 0.98)
    named = {(cases[p.a].path.stem, cases[p.b].path.stem): p.equal for p in pairs}
    assert named == {("IM-0002-0001", "00000007_000"): True, ("person3_virus_3", "00000008_000"): False}
    groups = dict(zip((c.patient for c in cases), patient_groups(cases, pairs), strict=True))
    assert groups["kermany:im-0002"] == groups["nih:00000007"]
    assert groups["kermany:person3"] == groups["nih:00000008"]
    assert len(set(groups.values())) == 3


def test_unreadable_pictures_are_listed_and_equal_nothing(tmp_path):
    root = radiographs(tmp_path)
    for name in ("x/one.png", "y/one.png"):
        (root / name).write_bytes(b"no picture")
    prints = take_prints(read_radiographs("radiographs", root))
    assert sorted(prints.unreadable) == [0, 1]
    assert find_pairs(prints) == []
    with pytest.raises(ReadError):
        read_radiographs("radiographs", root)[0].load()
