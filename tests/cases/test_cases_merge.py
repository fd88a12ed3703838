"""Parts of a run put together: the same bytes as the whole, and everything that does not fit refused."""

import json
import shutil

import numpy as np
import pytest

from pneumoscope.cases.merge import merge_parts
from pneumoscope.cli.app import run
from pneumoscope.datasets.phantom.folder import scan_patient
from pneumoscope.errors import InputError
from pneumoscope.io.write import write_mask, write_volume
from tables import rows_of


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Seven scans, one of which is no scan, in an order that is not the alphabet's, with columns of their own."""
    root = tmp_path_factory.mktemp("scans")
    made = scan_patient("B", 0, size="tiny")
    native = made.scan.volume.native
    write_mask(made.lungs, root / "lungs.nii.gz", native)
    write_mask(made.scan.truth, root / "infiltrate.nii.gz", native)
    write_volume(made.scan.volume, root / "scan.nii.gz")
    (root / "bad.nii.gz").write_bytes(b"no scan")
    lines = ["case,image,lungs,infiltrate,ward"]
    for number in np.random.default_rng(1).permutation(7):
        image = "bad.nii.gz" if number == 3 else "scan.nii.gz"
        lines.append(f's{number},{image},lungs.nii.gz,infiltrate.nii.gz,"ward {number}, left"')
    (root / "cases.csv").write_text("\n".join(lines) + "\n")
    return root / "cases.csv"


def quantify(table, out, *more):
    return run(["quantify", "-i", str(table), "-o", str(out), "--fast", "-q", *more])


@pytest.fixture(scope="module")
def made(table, tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    assert quantify(table, root / "whole") == 1
    for number in (1, 2, 3):
        quantify(table, root / f"part-{number}", "--part", f"{number}/3")
    return root


def contents(folder):
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != "run.json"}


def test_parts_in_any_order_are_the_whole(made, table, tmp_path, capsys):
    out = tmp_path / "merged"
    assert run(["merge", str(out), *(str(made / f"part-{n}") for n in (2, 3, 1)), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(out), "parts": 3, "rows": 7, "failed": 1}
    assert contents(out) == contents(made / "whole")
    whole, merged = (json.loads((folder / "run.json").read_text()) for folder in (made / "whole", out))
    assert [case["case"] for case in merged["cases"]] == [case["case"] for case in whole["cases"]]
    assert [merged[name] for name in ("scans", "results", "options")] == [7, 6, whole["options"]]
    assert "part" not in merged
    quantify(table, out, "--resume")  # finds everything done
    assert sum(case["kept"] for case in json.loads((out / "run.json").read_text())["cases"]) == 6
    assert contents(out) == contents(made / "whole")


@pytest.mark.enable_socket
def test_two_dask_workers_make_the_whole(made, table, tmp_path, capfd):
    pytest.importorskip("distributed")
    assert quantify(table, tmp_path / "out", "--on", "dask", "--jobs", "2") == 1
    assert contents(tmp_path / "out") == contents(made / "whole")
    state = json.loads((tmp_path / "out/run.json").read_text())
    assert state["on"] == "dask"
    assert all(case["host"] and case["memory_mib"] > 10 for case in state["cases"])
    assert capfd.readouterr().err == "error: 1 of 7 scans failed; see " + str(tmp_path / "out/cases.csv") + "\n"


def test_parts_that_do_not_fit_are_refused(made, table, tmp_path):
    one, two, three = (made / f"part-{n}" for n in (1, 2, 3))
    quantify(table, tmp_path / "other", "--part", "2/3", "--threshold", "0.5")
    quantify(table, tmp_path / "half", "--part", "2/2")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(two, unfinished)
    state = json.loads((two / "run.json").read_text())
    (unfinished / "run.json").write_text(json.dumps({**state, "finished": False}))
    for parts, message in (
        ([one, three], "part 2/3 is missing"),
        ([one, one, two, three], "part 1/3 is given twice"),
        ([one, tmp_path / "other", three], "their options differ"),
        ([one, tmp_path / "half"], "not of one run"),
        ([one, unfinished, three], "is not finished"),
        ([one, made / "whole"], "was not made with --part"),
        ([tmp_path / "none"], "is no folder"),
        ([one, tmp_path], "not of one verb"),
    ):
        with pytest.raises(InputError, match=message):
            merge_parts(tmp_path / "out", parts)
        assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="is both a part and where to write"):
        merge_parts(one, [one, two, three])


def test_a_case_of_two_parts_is_refused(made, tmp_path):
    shutil.copytree(made / "part-1", tmp_path / "again")
    changed = next((tmp_path / "again").glob("*/report.json"))
    changed.write_text("{}")
    whole = [made / "whole", tmp_path / "again"]
    for part in whole:
        state = json.loads((part / "run.json").read_text())
        state.pop("part", None)
        (tmp_path / part.name).mkdir(exist_ok=True)
        (tmp_path / part.name / "run.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="is in two of the parts"):
        merge_parts(tmp_path / "out", [made / "whole", tmp_path / "again"])


def test_evaluations_are_put_together_and_finished_by_the_verb(made, tmp_path):
    call = ["evaluate", "-i", str(made / "whole"), "-r", str(made / "whole"), "-q", "-o"]
    assert run([*call, str(tmp_path / "whole")]) == 0
    for part in ("1/2", "2/2"):
        assert run([*call, str(tmp_path / part[0]), "--part", part]) == 0
    part = {row["case"] for row in rows_of(tmp_path / "1/per_case.csv")}
    whole = {row["case"] for row in rows_of(tmp_path / "whole/per_case.csv")}
    assert part < whole
    assert len(part) == len(whole) / 2
    assert run(["merge", str(tmp_path / "out"), str(tmp_path / "1"), str(tmp_path / "2")]) == 0
    assert run([*call, str(tmp_path / "out"), "--resume"]) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_folds_are_put_together_whatever_their_machines_were(tmp_path):
    for number in (1, 2):
        fold = tmp_path / f"part-{number}" / f"fold-{number}"
        fold.mkdir(parents=True)
        (fold / "model.safetensors").write_text(f"of fold {number}")
        for name in ("plan.json", "study.json", "scores.csv"):
            (fold.parent / name).write_text(f"by machine {number}")
    assert run(["merge", str(tmp_path / "out"), str(tmp_path / "part-1"), str(tmp_path / "part-2")]) == 0
    assert {name: data.decode() for name, data in contents(tmp_path / "out").items()} == {
        "fold-1/model.safetensors": "of fold 1",
        "fold-2/model.safetensors": "of fold 2",
        "plan.json": "by machine 1",
    }
