import json

import numpy as np
import pytest

from pneumoscope.datasets.case import Case
from pneumoscope.datasets.phantom.folder import write_phantom
from pneumoscope.errors import InputError, RunError
from pneumoscope.plans.data import split_by_plan, split_patients
from pneumoscope.plans.plan import OwnPlan, make_plan, read_plan, write_plan
from pneumoscope.plans.plan3d import VolumePlan
from pneumoscope.plans.setup import out_of_memory_advice
from tables import rows_of

QUICK = ("--epochs", "1", "--device", "cpu", "--precision", "fp32")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    write_phantom(folder, "A", 3, size="tiny")
    (folder / "phantom.json").unlink()  # a user's table of scans and masks
    return folder / "manifest.csv"


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "small.json"
    write_plan(OwnPlan(size=32, features=(4, 8), batch_size=8, augment=True), path)
    return path


def test_plan_only_writes_a_plan_that_can_be_given_back(cli, table, tmp_path):
    ran = cli("train", "--data", table, "-o", tmp_path / "m", "--plan-only", "--json", "--device", "cpu", "--epochs", 7)
    assert ran.code == 0, ran.err
    made = ran.json
    assert made.pop("dims") == "2d"
    assert made["epochs"] == 7
    assert made["size"] == 64  # no finer than the scans' own pixels
    assert made["reasons"]["epochs"] == "given by the user"
    assert "too long on a processor" in made["reasons"]["dims"]
    assert [p.name for p in (tmp_path / "m").iterdir()] == ["plan.json"]
    made |= {"windows_hu": ((-1000.0, 200.0),), "features": tuple(made["features"])}
    assert read_plan(tmp_path / "m" / "plan.json") == OwnPlan(**made)


def test_a_plan_on_volumes_is_printed_with_reasons_and_can_be_given_back(cli, table, tmp_path):
    options = ("--data", table, "-o", tmp_path / "m", "--plan-only", "--device", "cpu")
    ran = cli("train", *options, "--dims", "3d", "--batch-size", 3)
    assert ran.code == 0, ran.err
    lines = dict(line.split(" ", 1) for line in ran.out.splitlines())
    assert lines["dims"] == "3d (given by the user)"
    assert lines["batch_size"] == "3 (given by the user)"
    assert "thick" in lines["spacing_mm"]
    assert "GB free" in lines["patch"]
    assert "not finite" in lines["precision"]
    plan = read_plan(tmp_path / "m" / "plan.json")
    assert isinstance(plan, VolumePlan)
    assert plan.batch_size == 3
    again = cli(
        "train", *options, "--overwrite", "--plan", tmp_path / "m" / "plan.json", "--patch", "8x16x24", "--json"
    )
    assert again.json["patch"] == [8, 16, 24]
    assert again.json["spacing_mm"] == list(plan.spacing_mm)


def test_values_of_the_other_kind_of_plan_are_refused(cli, table, tmp_path):
    start = ("train", "--data", table, "-o", tmp_path / "m", "--plan-only")
    cli(*start, "--dims", "3d", "--size", 64).refused("--patch SLICESxROWSxCOLUMNS")
    cli(*start, "--dims", "2d", "--patch", "8x8x8").refused("--dims 3d")
    cli(*start, "--patch", "8x8").refused("is no box")
    cli(*start, "--patch", "8x8x8", "--size", "64").refused("--size is the edge of a slice")
    write_plan(OwnPlan(), tmp_path / "p.json")
    cli(*start, "--plan", tmp_path / "p.json", "--dims", "3d").refused("p.json is 2d")
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
def test_a_trained_model_segments(cli, table, plan, tmp_path):
    out = tmp_path / "model"
    ran = cli("train", "--data", table, "-o", out, "--plan", plan, *QUICK, "--json")
    assert ran.code == 0, ran.err
    assert "forecast:" in ran.err
    names = {path.name for path in out.iterdir()}
    assert {"model.safetensors", "card.json", "plan.json", "history.csv", "split.csv", "validation.csv"} <= names
    rows = rows_of(out / "split.csv")
    parts = {part: {r["patient"] for r in rows if r["part"] == part} for part in ("train", "val")}
    assert parts["train"]
    assert parts["val"]
    assert not parts["train"] & parts["val"]
    card = json.loads((out / "card.json").read_text())
    assert card["task"] == "infiltrate"
    assert card["numbers"]["held_out_scans"] == len(ran.json["validation"]) == len(parts["val"])
    assert "flatters" in card["numbers"]["chosen_on"]
    assert ran.json["test"] is None
    held = ran.json["validation"][0]
    case = next(r for r in rows_of(table) if r["case"] == held["case"])
    segmented = cli("segment", "-i", table.parent / case["image"], "-o", tmp_path / "out", "--model", out, "--fast",
                    "--lungs", table.parent / case["lungs"], "--device", "cpu", "--precision", "fp32")  # fmt: skip
    assert segmented.code == 0, segmented.err
    cli("train", "--data", table, "-o", out, "--plan", plan, *QUICK, "--quiet").refused("already holds a run")


@pytest.mark.slow
def test_finetune_starts_from_the_shipped_model(cli, table, tmp_path):
    ran = cli("finetune", "--data", table, "-o", tmp_path / "m", "--max-minutes", "0.001", *QUICK, "--json")
    assert ran.code == 0, ran.err
    card = json.loads((tmp_path / "m" / "card.json").read_text())
    assert card["started_from"].startswith("weights of infiltrate")
    assert card["preprocessing"]["kind"] == "hu_frame"
    assert ran.json["plan"]["learning_rate"] == pytest.approx(1e-4)


@pytest.mark.slow
def test_crossval_scores_every_scan_once(cli, table, plan, tmp_path):
    ran = cli("crossval", "--data", table, "-o", tmp_path / "cv", "--folds", 2, "--plan", plan, *QUICK)
    assert ran.code == 0, ran.err
    rows = rows_of(tmp_path / "cv" / "per_case.csv")
    assert sorted(r["case"] for r in rows) == sorted(r["case"] for r in rows_of(table))
    assert json.loads((tmp_path / "cv" / "summary.json").read_text())["folds"] == 2
    assert "mean Dice over 3 scans" in ran.out
    assert "flatters" in ran.out


@pytest.mark.slow
def test_a_test_part_is_scored_at_the_end_and_chooses_nothing(cli, table, plan, tmp_path):
    out = tmp_path / "m"
    ran = cli("train", "--data", table, "-o", out, "--plan", plan, "--test-share", "0.3", *QUICK, "--json")
    assert ran.code == 0, ran.err
    parts = {row["part"]: row["case"] for row in rows_of(out / "split.csv")}
    assert sorted(parts) == ["test", "train", "val"]
    assert [row["case"] for row in rows_of(out / "test.csv")] == [parts["test"]]
    assert [row["case"] for row in rows_of(out / "validation.csv")] == [parts["val"]]
    numbers = json.loads((out / "card.json").read_text())["numbers"]
    assert numbers["mean_dice"] == pytest.approx(ran.json["test"][0]["dice"])
    assert numbers["validation_mean_dice"] == pytest.approx(ran.json["validation"][0]["dice"])
    assert "scored once" in numbers["chosen_on"]


def test_what_cannot_be_trained_on_is_refused(cli, table, tmp_path):
    only = tmp_path / "one.csv"
    rows = rows_of(table)

    def line(row):
        files = [str(table.parent / row[name]) if row[name] else "" for name in ("image", "lungs", "infiltrate")]
        return ",".join([row["case"], *files, "same"])

    only.write_text("\n".join(["case,image,lungs,infiltrate,patient", *map(line, rows)]) + "\n")
    cli("train", "--data", only, "-o", tmp_path / "m", *QUICK, "--quiet").refused("scans of one patient")
    bare = tmp_path / "bare.csv"
    bare.write_text("case,image\n" + "\n".join(f"{r['case']},{table.parent / r['image']}" for r in rows) + "\n")
    cli("train", "--data", bare, "-o", tmp_path / "m", *QUICK, "--quiet").refused("no scan has an infiltrate mask")


def test_a_plan_with_a_strange_field_is_refused(cli, table, tmp_path):
    (tmp_path / "p.json").write_text('{"epoch": 3}')
    cli("train", "--data", table, "-o", tmp_path / "m", "--plan", tmp_path / "p.json").refused("epoch is unknown")
    (tmp_path / "p.json").write_text('{"size": 3}')
    with pytest.raises(InputError, match="size is 3 in the plan, expected from 8"):
        read_plan(tmp_path / "p.json")


def test_out_of_memory_gives_advice_and_other_errors_pass():
    for error in (MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")):
        with pytest.raises(RunError, match="--batch-size 4"), out_of_memory_advice(OwnPlan(batch_size=8)):
            raise error
    volumes = VolumePlan(patch=(32, 64, 64), batch_size=2)
    with pytest.raises(RunError, match="--patch 24x48x48, or --batch-size 1"), out_of_memory_advice(volumes):
        raise MemoryError
    with pytest.raises(RuntimeError, match="mat1"), out_of_memory_advice(OwnPlan()):
        raise RuntimeError("mat1 and mat2 shapes")


def test_patients_stay_whole_and_small_memory_makes_small_batches(table, monkeypatch):
    cases = [Case("toy", f"c{n}", f"p{n // 2}", "", "", "", lambda: None) for n in range(10)]
    train, val = split_patients(cases, 0.25, 0)
    assert not {c.patient for c in train} & {c.patient for c in val}
    parts = split_by_plan(cases, OwnPlan(test_share=0.2))
    sides = [{c.patient for c in part} for part in (parts.train, parts.val, parts.test)]
    assert all(sides)
    assert sum(map(len, sides)) == 5
    assert len(set.union(*sides)) == 5
    with pytest.raises(InputError, match="at least 3 patients"):
        split_by_plan(cases[:4], OwnPlan(test_share=0.2))
    assert OwnPlan().step_gigabytes(8) > 3 * OwnPlan().step_gigabytes(2) * 0.9
    from pneumoscope.plans.data import read_own_cases
    from pneumoscope.study import forecast

    own = read_own_cases({"manifest": table})
    monkeypatch.setattr(forecast, "available_gigabytes", lambda: 0.02)
    small = make_plan(own, device="cpu").batch_size
    monkeypatch.setattr(forecast, "available_gigabytes", lambda: 64.0)
    assert make_plan(own, device="cpu").batch_size == 16 > small


@pytest.mark.parametrize("change", ["image", "infiltrate"])
def test_a_training_on_own_scans_that_changed_is_refused(cli, tmp_path, change):
    """What the network sees has changed: other grey values, or another mask, under the same names."""
    import nibabel

    write_phantom(tmp_path / "own", "A", 3, size="tiny")
    (tmp_path / "own" / "phantom.json").unlink()
    table = tmp_path / "own" / "manifest.csv"
    (tmp_path / "p.json").write_text(json.dumps({"size": 32, "features": [4, 8], "batch_size": 8}))
    quick = ("--data", table, "--plan", tmp_path / "p.json", "--epochs", 1, "--device", "cpu", "--precision", "fp32")
    for verb in ("train", "crossval"):
        folds = ("--folds", 2) if verb == "crossval" else ()
        assert cli(verb, *quick, *folds, "-o", tmp_path / verb).code == 0
        assert cli(verb, *quick, *folds, "-o", tmp_path / verb, "--resume").code == 0
    row = rows_of(table)[0]
    path = tmp_path / "own" / row[change]
    image = nibabel.load(path)
    data = np.asarray(image.dataobj).copy()
    lungs = np.asarray(nibabel.load(tmp_path / "own" / row["lungs"]).dataobj)
    inside = lungs > 0
    inside[..., : int(np.argmax(inside.any(axis=(0, 1)))) + 1] = False  # but for the lowest slice
    data[inside] = 1 - (data[inside] > 0) if change == "infiltrate" else data[inside] + 300
    nibabel.save(nibabel.Nifti1Image(data, None, image.header), path)
    for verb in ("train", "crossval"):
        folds = ("--folds", 2) if verb == "crossval" else ()
        again = cli(verb, *quick, *folds, "-o", tmp_path / verb, "--resume", "--quiet")
        again.refused("data changed since", "--overwrite")


def small_memory(monkeypatch, gigabytes):
    monkeypatch.setattr("pneumoscope.study.forecast.available_gigabytes", lambda: gigabytes)


@pytest.mark.parametrize("verb", ["train", "finetune", "crossval"])
def test_a_resumed_training_keeps_its_plan_whatever_memory_is_free(cli, table, tmp_path, monkeypatch, verb):
    quick = ("--data", table, "--epochs", 1, "--device", "cpu", "--precision", "fp32")
    small_memory(monkeypatch, 0.02)
    if verb == "finetune":  # of a small network; the shipped one is among the slow tests
        assert cli("train", *quick, "--size", 32, "-o", tmp_path / "small").code == 0
    quick += {"train": ("--size", 32), "crossval": ("--size", 32, "--folds", 2),
              "finetune": ("--from", tmp_path / "small")}[verb]  # fmt: skip
    assert cli(verb, *quick, "-o", tmp_path / "m").code == 0
    plan = read_plan(tmp_path / "m" / "plan.json")
    small_memory(monkeypatch, 64.0)
    ran = cli(verb, *quick, "-o", tmp_path / "m", "--resume")
    assert ran.code == 0, ran
    assert read_plan(tmp_path / "m" / "plan.json") == plan
    ran = cli(verb, "--data", table, "--device", "cpu", "-o", tmp_path / "m", "--resume", *quick[8:])
    assert ran.code == 0, ran  # what the plan holds need not be given again
    again = (verb, *quick, "-o", tmp_path / "m", "--quiet")
    cli(*again, "--resume", "--batch-size", 7).refused("batch_size", "7", "plan.json")
    cli(*again).refused("already holds a run")
    cli(*again, "--resume", "--overwrite").refused("one of them")


def test_plan_only_never_touches_the_plan_of_a_training(cli, table, tmp_path):
    quick = ("--data", table, *QUICK, "--size", 32)
    for verb, more in (("train", ()), ("crossval", ("--folds", 2))):
        out = tmp_path / verb
        assert cli(verb, *quick, *more, "-o", out).code == 0
        before = (out / "plan.json").read_bytes()
        other = ("--data", table, "--device", "cpu", "--epochs", 9, "--plan-only")
        for flags in ((), ("--overwrite",)):
            cli(verb, *other, *more, "-o", out, *flags, "--quiet").refused("plan")
        assert (out / "plan.json").read_bytes() == before
        shown = cli(verb, "--data", table, "--plan-only", "--resume", *more, "-o", out, "--json")
        assert shown.json["epochs"] == 1
        assert (out / "plan.json").read_bytes() == before


@pytest.mark.parametrize("verb", ["train", "crossval"])
def test_a_folder_that_holds_a_plan_alone_is_trained_by_it(cli, table, tmp_path, verb):
    out, more = tmp_path / "m", ("--folds", 2) if verb == "crossval" else ()
    assert cli(verb, "--data", table, "-o", out, *QUICK, "--size", 48, "--plan-only", *more).code == 0
    cli(verb, "--data", table, "-o", out, *QUICK, "--plan-only", *more, "--quiet").refused("already holds")
    edited = {**json.loads((out / "plan.json").read_text()), "size": 32, "features": [4, 8]}
    (out / "plan.json").write_text(json.dumps(edited))
    ran = cli(verb, "--data", table, "-o", out, "--device", "cpu", *more)
    assert ran.code == 0, ran
    assert read_plan(out / "plan.json").size == 32
    card = json.loads(next(out.rglob("card.json")).read_text())
    assert card["preprocessing"]["size"] == 32


def test_overwrite_leaves_nothing_of_an_earlier_training(cli, table, tmp_path):
    quick, out = ("--data", table, *QUICK, "--size", 32), tmp_path / "m"
    assert cli("crossval", *quick, "-o", out, "--folds", 3).code == 0
    (out / "fold-3" / "mine.txt").write_text("mine")
    assert cli("crossval", *quick, "-o", out, "--folds", 2, "--overwrite").code == 0
    assert sorted(p.name for p in out.glob("fold-*")) == ["fold-1", "fold-2"]
    assert cli("train", *quick, "-o", out, "--overwrite").code == 0
    assert not list(out.glob("fold-*"))
    assert not (out / "per_case.csv").exists()
    cli("crossval", *quick, "-o", out, "--folds", 2, "--resume", "--quiet").refused("folds", "--overwrite")


@pytest.mark.parametrize("verb", ["train", "crossval"])
def test_files_of_the_user_survive_in_the_output_folder(cli, table, tmp_path, verb):
    """Also those that are called like what other studies write."""
    out, more = tmp_path / "m", ("--folds", 2) if verb == "crossval" else ()
    mine = {out / name: name for name in ("notes.json", "predictions.json", "cost.json", "mine.ckpt", "fold-7/a.json")}
    for path, text in mine.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    quick = ("--data", table, *QUICK, "--size", 32, *more, "-o", out)
    for flags in ((), ("--resume",), ("--overwrite",)):
        assert cli(verb, *quick, *flags).code == 0
        assert {path: path.read_text() for path in mine} == mine


def test_a_training_that_ran_out_of_time_continues_when_resumed(cli, table, tmp_path):
    quick, out = ("--data", table, "--size", 32, "--device", "cpu", "--precision", "fp32"), tmp_path / "m"
    short = cli("train", *quick, "--epochs", 3, "--max-minutes", "0.0001", "-o", out, "--json").json
    assert (short["epochs"], short["stopped_by"]) == (1, "max_minutes")
    said = cli("train", *quick, "--epochs", 3, "--max-minutes", "0.0001", "-o", tmp_path / "said").out
    assert "(1 epoch, stopped by --max-minutes; continue with --resume)" in said
    longer = cli("train", *quick, "-o", out, "--resume", "--json").json
    assert (longer["epochs"], longer["stopped_by"]) == (3, "max_epochs")
    assert cli("train", *quick, "--epochs", 3, "-o", tmp_path / "whole").code == 0
    for name in ("model.safetensors", "validation.csv"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pneumoscope.training.loop.fit", None)  # a finished one is not trained again
        assert cli("train", *quick, "-o", out, "--resume", "--json").json == {**longer}


def test_a_fall_back_to_the_older_checkpoint_is_in_run_json_and_on_stderr(cli, table, tmp_path):
    quick, out = ("--data", table, *QUICK, "--size", 32), tmp_path / "m"
    assert cli("train", *quick, "-o", out, "--epochs", 2).code == 0
    (out / "done.json").unlink()  # as if it was killed before it was marked
    last = out / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1])
    ran = cli("train", "--data", table, "--device", "cpu", "-o", out, "--resume")
    assert ran.code == 0, ran
    notes = json.loads((out / "run.json").read_text())["notes"]
    said = [note for note in notes if "last.ckpt is damaged" in note and "went back to previous.ckpt" in note]
    assert len(said) == 1
    assert f"note: {said[0]}" in ran.err


HOSTILE_PLANS = {
    "nested": "[" * 20000, "nan": '{"learning_rate": NaN}', "infinite": '{"learning_rate": 1e999}',
    "huge": '{"epochs": ' + "9" * 400 + "}", "text": '{"epochs": "ten"}', "fraction": '{"epochs": 1.5}',
    "true": '{"epochs": true}', "list": "[]", "null": '{"features": null}', "windows": '{"windows_hu": [[200, -1000]]}',
    "negative seed": '{"seed": -1}', "large seed": '{"seed": 4294967296}', "share": '{"validation_share": 1.0}',
    "shares": '{"validation_share": 0.5, "test_share": 0.5}', "precision": '{"precision": "fp16"}',
    "features": '{"features": [4, -8]}', "dims": '{"dims": 3}', "patch": '{"dims": "3d", "patch": [8, 8]}',
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_PLANS)
def test_a_damaged_plan_is_named(tmp_path, name):
    path = tmp_path / "plan.json"
    path.write_text(HOSTILE_PLANS[name])
    with pytest.raises(InputError) as caught:
        read_plan(path)
    assert caught.value.path == str(path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("share", [0.1, 0.25, 0.4, 0.5, 0.75, 0.9])
def test_the_share_that_was_asked_for_is_the_share_that_is_held_out(share):
    cases = [Case("toy", f"c{n:03d}", f"p{n:03d}", "", "", "", lambda: None) for n in range(40)]
    for seed in range(3):
        train, val = split_patients(cases, share, seed)
        assert len(val) == round(40 * share)
        assert len(train) + len(val) == 40
    parts = split_by_plan(cases, OwnPlan(validation_share=0.4, test_share=0.3))
    assert [len(part) for part in (parts.train, parts.val, parts.test)] == [12, 16, 12]
    assert parts.remark(OwnPlan(validation_share=0.4, test_share=0.3)) == ""


def test_a_share_that_whole_patients_do_not_allow_is_remarked():
    cases = [Case("toy", f"c{n}", f"p{n % 3}", "", "", "", lambda: None) for n in range(12)]
    plan = OwnPlan(validation_share=0.1)
    parts = split_by_plan(cases, plan)
    assert len(parts.val) == 4
    assert parts.remark(plan) == (
        "validation_share 0.1 was asked for, 4 of 12 scans (0.33) were held out, as patients stay whole"
    )


def test_a_patient_with_a_comma_keeps_the_table_whole(tmp_path):
    cases = [Case("toy", f'c"{n}', "Doe, Jane" if n < 2 else f"p{n}", "", "", "", lambda: None) for n in range(6)]
    parts = split_by_plan(cases, OwnPlan())
    parts.write(tmp_path / "split.csv")
    rows = rows_of(tmp_path / "split.csv")
    assert {row["patient"] for row in rows} == {"Doe, Jane", *(f"p{n}" for n in range(2, 6))}
    assert {tuple(row) for row in rows} == {("dataset", "case", "patient", "part")}
