from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pneumoscope.datasets.case import Case, CaseFiles
from pneumoscope.datasets.options import SplitOptions
from pneumoscope.datasets.public.covid19ctseg import MA_GROUPS, NAME, ma_folds
from pneumoscope.datasets.splits.draw import leaking
from pneumoscope.datasets.splits.files import read_nnunet_splits, slice_counts, write_folds, write_nnunet_splits
from pneumoscope.datasets.splits.folds import (
    Fold,
    Link,
    Member,
    as_table,
    group_folds,
    group_members,
    leaking_groups,
    members_of,
    read_links,
    slice_folds,
    untied,
)
from pneumoscope.errors import DatasetError, InputError


def member(ref, patient):
    dataset, case = ref.split(":")
    return Member(dataset, case, patient)


MEMBERS = st.lists(
    st.builds(Member, st.sampled_from("AB"), st.text("abc", min_size=1, max_size=3), st.sampled_from("pqrstuvw")),
    min_size=1, max_size=40, unique_by=lambda m: m.ref,
)  # fmt: skip
LINKS = st.lists(
    st.builds(Link, st.sampled_from(["A:a*", "A:b?", "B:abc", "A:*c"]), st.sampled_from(["B:a*", "B:*c", "A:ca"])),
    max_size=3,
)


@given(MEMBERS, LINKS, st.integers(2, 6), st.booleans(), st.integers(0, 5), st.randoms(use_true_random=False))
def test_no_group_is_on_two_sides_and_every_case_is_tested_once(members, links, k, validation, seed, order):
    groups = group_members(members, links)
    assume(len(set(groups.values())) >= k >= 2 + validation)
    folds = group_folds(groups, k, seed, validation=validation)
    assert len(folds) == k
    assert Counter(m for fold in folds for m in fold.test) == Counter(members)
    for fold in folds:
        assert leaking_groups(fold, groups) == []
        assert sorted((*fold.train, *fold.val, *fold.test)) == sorted(members)
        assert bool(fold.val) == validation
        people = [{(m.dataset, m.patient) for m in part} for part in fold.parts.values()]
        assert sum(map(len, people)) == len(set().union(*people))
    shuffled, shuffled_links = list(members), list(links)
    order.shuffle(shuffled)
    order.shuffle(shuffled_links)
    assert group_folds(group_members(shuffled, shuffled_links), k, seed, validation=validation) == folds


@given(MEMBERS, LINKS)
def test_groups_are_the_connected_components(members, links):
    networkx = pytest.importorskip("networkx")
    from fnmatch import fnmatchcase

    graph = networkx.Graph()
    graph.add_nodes_from(members)
    graph.add_edges_from((a, b) for a in members for b in members if (a.dataset, a.patient) == (b.dataset, b.patient))
    for link in links:
        graph.add_edges_from((a, b) for a in members for b in members
                             if fnmatchcase(a.ref, link.a) and fnmatchcase(b.ref, link.b))  # fmt: skip
    ours = group_members(members, links)
    parts = {frozenset(m for m in members if ours[m] == name) for name in ours.values()}
    theirs = {frozenset(part) for part in networkx.connected_components(graph)}
    assert parts == theirs


def test_folds_are_as_even_as_groups_allow():
    members = [Member("A", f"{p}{n}", p) for p, size in zip("abcdefg", (5, 3, 3, 2, 1, 1, 1), strict=True)
               for n in range(size)]  # fmt: skip
    for seed in range(5):
        sizes = sorted(len(fold.test) for fold in group_folds(group_members(members), 3, seed))
        assert sizes == [5, 5, 6]
    draws = {tuple(fold.test for fold in group_folds(group_members(members), 3, seed)) for seed in range(8)}
    assert len(draws) > 1


def test_patients_are_told_apart_by_data_set_and_tied_by_links():
    members = [member("A:1", "p"), member("A:2", "p"), member("B:1", "p"), member("B:2", "q"), member("C:9", "z")]
    assert list(group_members(members).values()) == ["A:p", "A:p", "B:p", "B:q", "C:z"]
    tied = group_members(members, [Link("B:2", "A:2"), Link("C:9", "B:2"), Link("D:*", "A:*")])
    assert list(tied.values()) == ["A:p", "A:p", "B:p", "A:p", "A:p"]


def test_suspected_overlaps_are_told_until_they_are_tied():
    members = [member("medseg:1", "1"), member("covid19ctseg:radiopaedia_4_85506_1", "r"),
               member("covid19ctseg:coronacases_001", "c")]  # fmt: skip
    (link,) = untied(members, group_members(members))
    assert "Radiopaedia" in link.reason
    tied = group_members(members, [link])
    assert untied(members, tied) == []
    assert len(set(tied.values())) == 2
    assert untied(members[:1], group_members(members[:1])) == []


def test_pictures_of_the_same_scans_are_tied_name_by_name():
    refs = [f"{d}:coronacases_00{n}" for d in ("slices", "covid19ctseg") for n in (1, 2)]
    members = [member(ref, ref[-1]) for ref in [*refs, "slices:coronacases_003"]]
    (link,) = untied(members, group_members(members))
    assert link.same_name
    tied = group_members(members, [link])
    assert len(set(tied.values())) == 3
    assert untied(members, tied) == []
    assert untied(members[:1] + members[3:4], group_members(members)) == []  # of other people


@pytest.mark.parametrize("text", ["medseg", "medseg:", ":x", ""])
def test_a_link_ties_cases_of_data_sets(text):
    with pytest.raises(DatasetError, match="a link ties patterns"):
        Link("medseg:*", text)


def test_links_from_a_table(tmp_path):
    path = tmp_path / "links.csv"
    path.write_text("a,b,reason\nmedseg:1,covid19ctseg:radiopaedia_4*,same scan\nA:1 ,B:2,\n")
    assert read_links(path) == [Link("medseg:1", "covid19ctseg:radiopaedia_4*", "same scan"), Link("A:1", "B:2")]
    for text in ("case,other\n1,2\n", "a,b\nmedseg,B:2\n", "a,b\nA:1\n"):
        path.write_text(text)
        with pytest.raises(DatasetError, match=r"links\.csv"):
            read_links(path)
    with pytest.raises(DatasetError, match="nowhere"):
        read_links(tmp_path / "nowhere.csv")
    path.write_bytes(b"a,b\n\xff\xfe,x\n")
    with pytest.raises(DatasetError, match="no CSV table"):
        read_links(path)


@pytest.mark.parametrize(("patients", "folds"), [(1, 3), (1, 5), (4, 5)])
def test_too_few_patients_are_one_clear_error(patients, folds):
    members = [Member("A", f"{n}-{m}", f"p{n}") for n in range(patients) for m in range(9)]
    with pytest.raises(DatasetError, match=f"{folds} folds need at least {folds} patients.*hold {patients} "):
        group_folds(group_members(members), folds)


def test_too_few_folds_are_refused():
    groups = group_members([Member("A", str(n), str(n)) for n in range(9)])
    with pytest.raises(DatasetError, match="at least 3 folds"):
        group_folds(groups, 2)
    assert len(group_folds(groups, 2, validation=False)) == 2
    with pytest.raises(DatasetError, match="at least 2 folds"):
        group_folds(groups, 1, validation=False)


def test_a_fold_is_valid_or_not_there():
    one, two = Member("A", "1", "p"), Member("A", "2", "q")
    with pytest.raises(DatasetError, match="two parts"):
        Fold((one,), (one, two))
    with pytest.raises(DatasetError, match="needs training and test"):
        Fold((), (one,))
    with pytest.raises(DatasetError, match="twice"):
        members_of([Case("A", "1", "p", "", "", "", lambda: None)] * 2)  # type: ignore[arg-type,return-value]


def test_slice_folds_test_every_slice_once_and_leak(make_table):
    table = make_table(100, 40, patients=4)
    folds = slice_folds(table, 5, seed=1)
    tested = pd.concat([fold[fold["part"] == "test"] for fold in folds])
    assert len(tested) == 100
    assert not tested.duplicated(["case", "slice"]).any()
    assert all(leaking(fold["part"], fold["patient"]) for fold in folds)
    pd.testing.assert_frame_equal(folds[2], slice_folds(table.sample(frac=1, random_state=3), 5, seed=1)[2])
    with pytest.raises(DatasetError, match="do not fill"):
        slice_folds(table[:4], 5)


@pytest.fixture
def ma_members():
    cases = [case for group in MA_GROUPS for case in group]
    return [Member(NAME, case, "_".join(case.split("_")[:2])) for case in cases]


def test_the_published_folds(ma_members):
    assert len({case for group in MA_GROUPS for case in group}) == 20
    assert all(sum(case.startswith("coronacases") for case in group) == 2 for group in MA_GROUPS)
    small, large = ma_folds(ma_members), ma_folds(ma_members, "80/20")
    assert [(len(f.train), len(f.val), len(f.test)) for f in small] == [(4, 0, 16)] * 5
    for a, b, group in zip(small, large, MA_GROUPS, strict=True):
        assert (a.train, a.test) == (b.test, b.train)
        assert {m.case for m in a.train} == set(group)
    groups = group_members(ma_members)
    assert [leaking_groups(fold, groups) for fold in large] == [
        [], [], [f"{NAME}:radiopaedia_10", f"{NAME}:radiopaedia_29"], [],
        [f"{NAME}:radiopaedia_10", f"{NAME}:radiopaedia_29"],
    ]  # fmt: skip
    with pytest.raises(DatasetError, match=r"missing .'coronacases_001'"):
        ma_folds([m for m in ma_members if m.case != "coronacases_001"])
    with pytest.raises(DatasetError, match=r"not among them .'x'"):
        ma_folds([*ma_members, Member(NAME, "x", "x")])
    with pytest.raises(DatasetError, match="20/80 and 80/20"):
        ma_folds(ma_members, "50/50")


def test_nnunet_splits_there_and_back(tmp_path, ma_members):
    folds = group_folds(group_members(ma_members), 5, validation=False)
    write_nnunet_splits(folds, tmp_path / "splits_final.json")
    stored = json.loads((tmp_path / "splits_final.json").read_text())
    assert [set(fold) for fold in stored] == [{"train", "val"}] * 5
    assert sorted(case for fold in stored for case in fold["val"]) == sorted(m.case for m in ma_members)
    assert read_nnunet_splits(tmp_path / "splits_final.json", ma_members) == folds
    with_val = group_folds(group_members(ma_members), 5)
    write_nnunet_splits(with_val, tmp_path / "splits_final.json")
    assert all(len(fold["train"]) + len(fold["val"]) == 20 for fold in
               json.loads((tmp_path / "splits_final.json").read_text()))  # fmt: skip
    same_name = Fold((Member("A", "1", "p"),), (Member("B", "1", "p"),))
    with pytest.raises(DatasetError, match="unique"):
        write_nnunet_splits([same_name], tmp_path / "x.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not json", "is damaged"),
        ("[]", "expected a list of folds"),
        ('{"train": [], "val": []}', "expected a list"),
        ('[{"train": ["a"]}]', "expected a list of folds"),
        ('[{"train": [1], "val": ["b"]}]', "expected a list of folds"),
        ('[{"train": ["a"], "val": ["x"]}]', "fold 0 names case 'x', which the data do not hold"),
        ('[{"train": ["a"], "val": ["c"]}]', "fold 0 names case 'c', which two datasets have"),
        ('[{"train": ["a", "b"], "val": ["b"]}]', "fold 0: 1 cases stand in two parts"),
        ('[{"train": ["a"], "val": []}]', "fold 0: a fold needs"),
    ],
)
def test_unusable_nnunet_splits(tmp_path, text, words):
    members = [member("A:a", "a"), member("A:b", "b"), member("A:c", "c"), member("B:c", "c")]
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(DatasetError, match=words):
        read_nnunet_splits(tmp_path / "s.json", members)


def stored_case(folder, name, patient, slices, dataset="A", axes=(0, 1, 2)):
    """A case whose scan is a header with nothing readable behind it: loading it fails."""
    shape = np.array([3, 4, slices])[list(axes)]
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for column, axis in enumerate(axes):
        affine[axis, column] = -1.0
    path = folder / f"{dataset}-{name}.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros(shape, np.int16), affine), path)

    def load():
        raise AssertionError("loaded")

    return Case(dataset, name, patient, "", "", "", load, files=CaseFiles(path))


@pytest.fixture
def stored_cases(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    own = [stored_case(folder, f"c{n}", f"p{n // 2}", 3 + n, axes=(2, 0, 1) if n == 1 else (0, 1, 2)) for n in range(8)]
    return [*own, stored_case(folder, "c0", "x", 5, dataset="B")]


def test_slices_are_counted_from_headers_along_the_body(stored_cases, tiny):
    assert slice_counts(stored_cases) == {"A": {f"c{n}": 3 + n for n in range(8)}, "B": {"c0": 5}}
    scan = tiny["A", 0].scan
    single = replace(stored_cases[0], files=replace(stored_cases[0].files, part=2))
    assert slice_counts([single]) == {"A": {"c0": 1}}
    loaded = Case("A", "1", "1", "", "", "", lambda: scan)
    assert slice_counts([loaded]) == {"A": {"1": scan.volume.grid.shape[2]}}


def test_folds_are_written_and_the_same_whatever_the_order(stored_cases, tmp_path):
    (tmp_path / "links.csv").write_text("a,b,reason\nB:c0,A:c7,the same scan\n")
    plan = SplitOptions(folds=4, links=tmp_path / "links.csv")
    summary = write_folds(stored_cases, plan, tmp_path / "out")
    files = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert files == ["folds.csv", "split.json", *(f"splits/fold_{n}/{name}.csv" for n in range(4) for name in "AB")]
    assert (summary["cases"], summary["groups"], summary["unit"]) == (9, 4, "cases")
    assert summary["links"][0]["reason"] == "the same scan"
    tested = Counter()
    for n in range(4):
        table = pd.read_csv(tmp_path / "out" / "splits" / f"fold_{n}" / "A.csv", dtype={"case": str, "patient": str})
        assert not leaking(table["part"], table["patient"])
        assert len(table) == sum(3 + n for n in range(8))
        tested.update(table.loc[table["part"] == "test", "case"].unique())
        other = pd.read_csv(tmp_path / "out" / "splits" / f"fold_{n}" / "B.csv", dtype={"case": str, "patient": str})
        assert other["part"].unique().tolist() == table.loc[table["case"] == "c7", "part"].unique().tolist()
    assert tested == Counter(f"c{n}" for n in range(8))
    random.Random(1).shuffle(stored_cases)
    write_folds(stored_cases, plan, tmp_path / "again")
    for name in files:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    with pytest.raises(InputError, match="already holds"):
        write_folds(stored_cases, plan, tmp_path / "out")


def test_splits_by_slice_say_that_they_leak(stored_cases, tmp_path):
    summary = write_folds(stored_cases, SplitOptions(by="slice", folds=3), tmp_path / "out")
    assert summary["unit"] == "slices"
    assert all("A:p3" in fold["leaking_groups"] for fold in summary["folds"])
    assert sum(fold["test"] for fold in summary["folds"]) == sum(3 + n for n in range(8)) + 5
    assert not (tmp_path / "out" / "folds.csv").exists()


def test_a_file_of_nnunets_is_judged_for_leaks(stored_cases, tmp_path):
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps([{"train": ["c1", "c2", "c3"], "val": ["c4", "c5"]}, {"train": ["c2"], "val": ["c3"]}]))
    summary = write_folds(stored_cases[:8], SplitOptions(splits_file=path), tmp_path / "out")
    assert summary["by"] == "file"
    assert [fold["leaking_groups"] for fold in summary["folds"]] == [[], ["A:p1"]]
    table = pd.read_csv(tmp_path / "out" / "folds.csv")
    assert table[table["fold"] == 1]["part"].tolist() == ["train", "test"]


def test_plans_that_make_no_sense():
    for plan in ({"by": "age"}, {"to": "monai"}, {"by": "slice", "to": "nnunet"}):
        with pytest.raises(InputError):
            SplitOptions(**plan)
    with pytest.raises(DatasetError, match="no case"):
        write_folds([], SplitOptions(), "nowhere")


def test_a_case_whose_slices_are_unknown_is_named():
    fold = Fold((Member("A", "1", "p"),), (Member("A", "2", "q"),))
    assert as_table(fold, "A", {"1": 2, "2": 1})["part"].tolist() == ["train", "train", "test"]
    with pytest.raises(DatasetError, match="A:2"):
        as_table(fold, "A", {"1": 2})
