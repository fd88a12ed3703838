"""`pneumoscope study run|report` for radiographs: what is refused, and one run from the command line to the page."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "study"))
from made_up_radiographs import write_sets

NAME = "katsamenis-2020"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["run", NAME, "-o", "{out}"], "needs --data kermany=ROOT"),
        (["run", NAME, "-o", "{out}", "--data", "mosmed=x"], "reads kermany, cohen, hannover, nih"),
        (["run", NAME, "-o", "{out}", "--accept-if-forgetting-below", "0.1"], "another kind"),
        (["run", "maganaris-2022b", "-o", "{out}", "--seeds", "2"], "studies of radiographs"),
        (["run", NAME, "-o", "{out}", "--data", "kermany={out}x", "--data", "cohen={out}x"], "no such folder"),
    ],
)
def test_refusals(cli, tmp_path, argv, words):
    cli("study", *(arg.format(out=tmp_path / "out") for arg in argv)).refused(words)
    assert not (tmp_path / "out").exists(), "a refused call left a folder behind"


@pytest.mark.slow
def test_baselines_only_from_the_command_line(cli, tmp_path):
    roots = write_sets(tmp_path / "sets", children=8, covid=6, adults=6)
    data = [part for name, root in roots.items() for part in ("--data", f"{name}={root}")]
    settings = ["training.stages=none", "honest.networks=none", "honest.held_out_networks=false", "pictures.side=24"]
    changes = [part for text in (*settings, "honest.penalties=0.1") for part in ("--set", text)]
    out = tmp_path / "run"
    ran = cli("study", "run", NAME, "-o", out, "--seeds", "1", *data, *changes, "--json")
    assert ran.code == 0, ran.err
    assert {row["model"] for row in ran.json["remedies"]} == {"thumbnails", "corners", "no lungs"}
    assert not any("Model_3" in line for line in ran.json["left_out"]), "nobody asked for it"
    assert {path.name for path in (out / "stages").iterdir()} == {"baselines_seed0"}
    cli("study", "run", NAME, "-o", out, *data).refused("already holds a run")
    (out / "report.html").unlink()
    assert "report.html" in cli("study", "report", out).out
    assert (out / "report.html").is_file()
