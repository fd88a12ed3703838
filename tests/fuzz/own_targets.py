"""Files of our own that come back to us, for the fuzz harness: models, checkpoints, studies and case folders.

Half of the mutants of files that carry their own sum get it again, so that what lies behind the sum is tried as well.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import harness
import torch

from pneumoscope.errors import InputError, PneumoscopeError
from pneumoscope.inference.inputs import load_members
from pneumoscope.inference.radiographs import RadiographClassifier
from pneumoscope.io.files import sha256
from pneumoscope.models.cards import SEAL, read_card, seal, verify, write_card
from pneumoscope.models.unet import UNet, UNetConfig
from pneumoscope.models.weights import load_model, save_model
from pneumoscope.training.checkpoint import LAST, PREVIOUS, load_checkpoint, save_checkpoint

for room in ("inference", "study", "viewer"):
    sys.path.insert(0, str(Path(__file__).parents[1] / room))
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "scripts")]

CHECKPOINT_HEAD = len(b"PNEUMOSCOPE-CKPT 1\n") + 64 + 1


def models(name: str) -> Callable[[Path], Sequence[Path]]:
    """A network for scans and one for radiographs; mutated are the files of that name."""

    def make(folder: Path) -> Sequence[Path]:
        from xray_models import make_model

        make_model(folder / "xray")
        torch.manual_seed(0)
        shown = {"kind": "hu_windows", "size": 32, "windows_hu": [[-970, -150], [-1000, 200]], "lung_channel": True}
        more = {"threshold": 0.4, "smallest_ml": 0.05, "denser_than_lung_hu": 120, "licence": "CC0", "mirror": True}
        save_model(
            folder / "ct", UNet(UNetConfig(3, 1, (2, 4))), {"task": "infiltrate", "preprocessing": shown, **more}
        )
        return sorted(folder.rglob(name))

    return make


def load(path: Path) -> None:
    """Everything that a verb does with a model before it sees a scan."""
    report = verify(path.parent)
    if path.parent.name == "xray":
        RadiographClassifier(path.parent, device="cpu")
    else:
        load_members([path.parent], device="cpu", engine="torch", precision="fp32")
    assert report.ok, "a model was loaded whose sums do not fit"


def load_with_right_sums(path: Path) -> None:
    """Tensors that are not what was saved, under a card that says they are."""
    sound = path.parent / "sound.json"
    if not sound.exists():
        sound.write_bytes((path.parent / "card.json").read_bytes())
    (path.parent / "card.json").write_bytes(sound.read_bytes())
    card = read_card(path.parent)
    for entry in (card["weights"], card.get("familiar", {})):
        if entry.get("file") == path.name:
            entry["sha256"] = sha256(path)
    write_card(path.parent, card)
    load_model(path.parent)
    load(path)


STRANGE = (
    None, True, -1, 0, 7, 0.5, 1e300, -1e300, 10**18, "", "x", "nan", "..", "\0", "x" * 5000, [], {}, [[]], [None],
    ["x"], [1e9], {"kind": []}, [[[[[[[[[[]]]]]]]]]],
)  # fmt: skip
"""Values that no entry of ours has, or only few."""


def other_values(data: bytes) -> tuple[bytes, Callable[[bytes], bytes]]:
    """Sound JSON of other values; the mutated bytes serve as the seed only. A card gets its sum again."""

    def changed(seed: bytes) -> bytes:
        if not data.startswith(b"{"):
            return seed
        rng, value = random.Random(seed), json.loads(data)
        for _ in range(rng.choice((1, 1, 2, 5))):
            _alter(value, rng)
        if SEAL in value:
            value[SEAL] = seal(value)
        return json.dumps(value).encode()

    return data, changed


def _alter(value: Any, rng: random.Random) -> None:
    """One entry, anywhere, gone, exchanged for another or for something strange."""
    containers = [value]
    for item in containers:
        inside = item.values() if isinstance(item, dict) else item
        containers += [part for part in inside if isinstance(part, dict | list) and part]
    item = rng.choice(containers)
    if not item:
        return
    key = rng.choice(list(item) if isinstance(item, dict) else range(len(item)))
    match rng.randrange(4):
        case 0:
            del item[key]
            return
        case 1:
            other = rng.choice(containers)
            item[key] = json.loads(json.dumps(rng.choice(list(other.values() if isinstance(other, dict) else other))))
        case _:
            item[key] = rng.choice(STRANGE)


def checkpoint(folder: Path) -> Sequence[Path]:
    state = {
        "model": {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)},
        "epoch": 4,
        "best": [0.5, None, "x"],
    }
    save_checkpoint(folder, {"optimizer": {0: state}, "rng": torch.get_rng_state()[:64], "config": {"rate": 1e-3}})
    (folder / PREVIOUS).unlink(missing_ok=True)  # there is nothing to fall back to
    return [folder / LAST]


def resealed_checkpoint(data: bytes) -> tuple[bytes, Callable[[bytes], bytes]]:
    def sealed(payload: bytes) -> bytes:
        return b"PNEUMOSCOPE-CKPT 1\n" + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload

    return data[CHECKPOINT_HEAD:], sealed


def study(folder: Path) -> Sequence[Path]:
    """The smallest study there is, run once: 11 s."""
    from made_up_hospitals import small_experiment, three_hospitals

    from pneumoscope.study import lungs
    from pneumoscope.study.engine import run_study

    cases, made = three_hospitals(), folder / "study"
    lungs.find_cases = lambda *args, **options: cases
    if not made.exists():
        run_study(small_experiment(), made, synthetic=True)
    tables = [made / name for name in ("per_case.csv", "matrix.csv", "run.json")]
    return [made / name for name in ("experiment.json", "study.json", "matrix.json")] + tables


def report(path: Path) -> None:
    """What `study report` and the viewer do with a study folder."""
    from pneumoscope.study.report import write_report

    shown(path.parent.parent, "/show/study")
    write_report(path.parent)


def results(folder: Path) -> Sequence[Path]:
    """A run of two cases, one of them compared, and a study; small, and every entry that a page shows."""
    from test_viewer import write_result

    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    write_result(out / "a", "case-a", 2.5, ("lung_incomplete",))
    write_result(out / "b", "case-b", 60.0)
    (out / "cases.csv").write_text('case,status,error\ncase-a,done,\nbroken,failed,"ends, too early"\nother,failed,\n')
    (out / "change").mkdir()
    (out / "change" / "change.json").write_text(json.dumps({"baseline": "a", "followup": "b", "ml": [1.5, -2.0]}))
    (out / "study").mkdir()
    (out / "study" / "experiment.json").write_text(json.dumps({"recipe": "maganaris-2022b", "n": 3}))
    (out / "study" / "matrix.csv").write_text("name,f1\nTr1_R_None_Te1,0.70321\nTr2_R_2_Te1,0.5\n")
    names = ("a/report.json", "cases.csv", "change/change.json", "study/experiment.json", "study/matrix.csv")
    return [out / name for name in names]


def look(path: Path) -> None:
    """Every page of the viewer over the run, and the case as one of a comparison."""
    from pneumoscope.cases.followup import read_timepoint

    root = next(parent for parent in path.parents if parent.name == "out")
    shown(root, "/", "/?sort=share_percent&order=down", "/show/a", "/show/b", "/show/study", "/show/change")
    if path.name == "report.json":
        try:
            read_timepoint(path.parent)
        except PneumoscopeError as error:
            if "segment it again" not in str(error) and "is missing" not in str(error):
                raise


def shown(root: Path, *pages: str) -> None:
    """Ask for pages; a page that says a file cannot be read counts as refused.

    Raises:
        InputError: as our readers would; any other error of the application comes through as it is.
    """
    from starlette.testclient import TestClient

    from pneumoscope.viewer.app import make_app
    from pneumoscope.viewer.guard import RequestGuard

    guard = RequestGuard(("127.0.0.1:8765",), "fuzz")
    client = TestClient(make_app(root, guard), base_url="http://127.0.0.1:8765")
    client.get(f"/?token={guard.token}")
    refused = False
    for page in pages:
        answer = client.get(page)
        assert answer.status_code in (200, 404), f"{page}: {answer.status_code}"
        refused |= "is damaged" in answer.text or "cannot be read" in answer.text
    if refused:
        raise InputError("a page says that a file cannot be read", path=root)


def head_of_tensors(data: bytes) -> harness.Spans:
    """The length and the JSON of a safetensors file by its commas, and as often the numbers behind them."""
    stop = min(8 + int.from_bytes(data[:8], "little"), len(data))
    marks = [8, *(at for at in range(8, stop) if data[at : at + 1] in b",{}:"), stop]
    return [(0, 8), *pairwise(marks), *((at, len(data)) for at in range(stop, len(data), 40))]


def lines_of(data: bytes) -> harness.Spans:
    """Every line, not only those of a header."""
    starts = [0, *(at + 1 for at, byte in enumerate(data) if byte == 10)]
    return [(a, b) for a, b in zip(starts, [*starts[1:], len(data)], strict=True) if b > a]


def parts_of(data: bytes) -> harness.Spans:
    """Between the marks of JSON and CSV."""
    marks = [0, *(at for at, byte in enumerate(data) if byte in b'{}[]:,"\n'), len(data)]
    return [(a, b) for a, b in pairwise(marks) if b > a]


TARGETS = {
    "card": harness.Target(models("card.json"), load, lines_of, other_values),
    "tensors": harness.Target(models("*.safetensors"), load_with_right_sums, head_of_tensors),
    "checkpoint": harness.Target(
        checkpoint, lambda path: load_checkpoint(path.parent), harness.words(200), resealed_checkpoint
    ),
    "study": harness.Target(study, report, lines_of, other_values),
    "results": harness.Target(results, look, parts_of, other_values),
}
