"""Train the model of radiographs that ships with pneumoscope, and write its folder with the card.

    python scripts/train_xray.py --data kermany=ROOT --data cohen=ROOT --data hannover=ROOT --data nih=ROOT --run RUN

Patients and copies of one picture stay on one side. The training part teaches; the validation part stops, sets the
temperature and the limits of what is familiar; the test part is asked once, at the end. The same is done again without
each source of ``--held-out``: what that twin says of the source it never saw is the held-out number of the card.
Healthy adults (``nih``) teach the class normal, so that being a child is not what makes a chest normal; adults with
another pneumonia teach nothing and are only asked about. A stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fit_familiar import fit_familiar, write_familiar
from pneumoscope.datasets.radiographs import PictureRecipe
from pneumoscope.inference.radiographs import BATCH, RadiographClassifier
from pneumoscope.models.cards import SHIPPED
from pneumoscope.models.classifiers import ChestCNN, ChestCNNConfig
from pneumoscope.models.weights import load_model, save_model
from pneumoscope.training.loop import TrainConfig, fit
from pneumoscope.training.tasks import ClassificationTask
from temperature import fit_temperature, nll
from xray_lessons import (
    AUGMENT,
    CLASSES,
    SEED,
    Pictures,
    gather,
    licences,
    share_out,
    source_of,
)
from xray_numbers import numbers_of

LICENCE = (
    "CC BY-NC-SA 4.0, for research: Cohen et al.'s pictures carry a licence each, some non-commercial, some not "
    "stated, and their table is CC BY-NC-SA 4.0; the other sets (CC BY 4.0, CC BY 3.0, NIH with acknowledgement) ask "
    "for less"
)
LIMITS = [
    "Research software, not a medical device.",
    "It has not been shown that this model sees COVID-19: bacterial pneumonia is of children of one hospital, covid19 "
    "of adults of two other collections. Part of a good test number within these sources is the ability to tell "
    "hospitals and ages apart: see the regression on thumbnails beside it, and the numbers of sources never seen.",
    "Healthy adults of a hospital that it never saw must be expected to be called covid19: the twin that had not seen "
    "NIH's called nearly all of them so (numbers, unseen_sources, nih).",
    "Adults with a pneumonia whose cause is not told are called covid19 as often as normal: it does not tell COVID-19 "
    "from another pneumonia in adults.",
    "Viral pneumonia other than COVID-19, tuberculosis, effusion, heart failure and tumours are no class.",
    "Films of a hospital that it never saw often get no answer; those that it does answer are no more trustworthy.",
    "A picture mirrored left to right is not noticed.",
    "Abstention was tested on CT slices, projections of CT, photographs, drawings, noise, turned or inverted "
    "radiographs and real lateral films. It is not complete; "
    "docs/decisions/0017-when-an-x-ray-gets-no-answer.md has the rates.",
]
INPUTS = {
    "whole": {},
    "lung_box": {"view": "lung_box"},
    "equalised": {"equalise": "clahe"},
    "all": {"view": "lung_box", "equalise": "clahe"},
}
"""What is shown, as in the X-ray study's remedies."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", action="append", required=True, metavar="NAME=ROOT")
    parser.add_argument("--run", type=Path, required=True, help="where squares, checkpoints and numbers are kept")
    parser.add_argument("--out", type=Path, default=SHIPPED / "xray", help="the model folder to write")
    parser.add_argument(
        "--held-out", nargs="*", default=["hannover", "cohen", "nih"], help="sources left out of a twin each"
    )
    parser.add_argument("--twins-only", action="store_true", help="only the twins: for choosing settings")
    parser.add_argument("--input", choices=sorted(INPUTS), default="equalised")
    parser.add_argument("--side", type=int, default=160)
    parser.add_argument("--features", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--per-class", type=int, default=400, help="pictures of a class at most")
    parser.add_argument("--no-unknown", action="store_true", help="pneumonia whose cause is not told teaches nothing")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    roots: dict[str, list[Path]] = {}
    for entry in options.data:
        name, _, root = entry.partition("=")
        roots.setdefault(name, []).append(Path(root))
    pictures = gather(roots, PictureRecipe(side=options.side, **INPUTS[options.input]), options.run)
    numbers: dict[str, Any] = {} if options.twins_only else teach(pictures, "", options, options.out)
    numbers["unseen_sources"] = {}
    for source in [*options.held_out, ""]:
        if not options.twins_only:  # after every twin: what is known stands in the card
            card = json.loads((options.out / "card.json").read_text(encoding="utf-8"))
            save_model(options.out, load_model(options.out)[0], {**card, "numbers": rounded(numbers)}, half=False)
        if source:
            twin = teach(pictures, source, options, options.run / f"twin_{source}")
            unseen = {key: twin[key] for key in ("unseen", "healthy_adults") if key in twin}
            numbers["unseen_sources"][source] = unseen | {"in_source_accuracy": twin["in_source"]["accuracy"]}
    print(json.dumps(rounded(numbers), indent=2))


def teach(pictures: Pictures, without: str, options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Train, set temperature and limits on validation, write the folder, and ask about the rest."""
    parts = share_out(pictures, without, options.per_class)
    torch.manual_seed(SEED)
    net = ChestCNN(ChestCNNConfig(classes=len(CLASSES), features=tuple(options.features)))
    if options.no_unknown:
        parts = replace(parts, unknown=parts.unknown[:0])
    train = source_of(pictures, parts, "train")
    config = TrainConfig(
        max_epochs=options.epochs, batch_size=32, learning_rate=2e-3, schedule="cosine", seed=SEED,
        device=options.device,
    )  # fmt: skip
    place = options.run / (f"without_{without}" if without else "all")
    result = fit(
        net, ClassificationTask(CLASSES), train, source_of(pictures, parts, "val"), config, place,
        resume=True, progress=report_epoch,
    )  # fmt: skip
    net.cpu().eval()
    squares = {part: pictures.squares(parts.rows[part]) for part in ("train", "val")}
    logits, features = zip(*(answers_of(net, squares[part]) for part in ("train", "val")), strict=True)
    temperature = fit_temperature(logits[1], parts.labels["val"])
    known = fit_familiar(
        (squares["train"], features[0], parts.labels["train"]),
        (squares["val"], features[1]),
        sources=pictures.sources(parts.rows["val"]),
    )
    card = {
        "title": "Frontal chest radiographs: normal, bacterial pneumonia, COVID-19",
        "task": "radiograph",
        "version": "1",
        "licence": LICENCE,
        "classes": list(CLASSES),
        "input": {"recipe": vars(pictures.made.recipe), "range": [0, 1]},
        "temperature": temperature,
        "familiar": write_familiar(out, known),
        "training_data": licences(pictures, parts),
        "split": {"by": "patient and copies", "seed": SEED, **{p: len(r) for p, r in parts.rows.items()},
                  "untold_cause": len(parts.unknown)},
        "training": {
            "script": "scripts/train_xray.py", "epochs": result.epochs_run, "best_epoch": result.best_epoch,
            "optimiser": config.optimiser, "learning_rate": config.learning_rate, "schedule": config.schedule,
            "batch_size": config.batch_size, "augmentation": vars(AUGMENT),
            "drawn": "classes, and sources within a class, equally often; pneumonia of untold cause as half bacterial, "
            "half covid19",
        },
        "limits": LIMITS,
    }  # fmt: skip
    save_model(out, net, card)
    found = numbers_of(RadiographClassifier(out, device="cpu"), pictures, parts, without)
    return found | {"validation_nll": {"before": nll(logits[1], parts.labels["val"]),
                                       "after": nll(logits[1], parts.labels["val"], temperature)}}  # fmt: skip


def report_epoch(what: str, done: int, of: int, note: str = "") -> None:
    """One line an epoch."""
    if note:
        print(f"{what} {done}/{of} {note}", flush=True)


def answers_of(net: ChestCNN, squares: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits and pooled features, in fp32 on the processor."""
    logits, features = [], []
    with torch.inference_mode():
        for start in range(0, len(squares), BATCH):
            maps = net.features(torch.from_numpy(squares[start : start + BATCH, None].astype(np.float32) / 255))
            logits.append(net.classify(maps).numpy())
            features.append(maps.mean(dim=(2, 3)).numpy())
    return np.concatenate(logits), np.concatenate(features)


def rounded(value: Any) -> Any:
    """Numbers to four digits, for the card."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
