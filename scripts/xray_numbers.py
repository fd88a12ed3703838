"""The numbers in the card of the shipped model of radiographs, with a regression on thumbnails beside each of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.radiographs import thumbnails
from pneumoscope.inference.radiographs import CANNOT_SAY, NONE_OF_THESE, Answer, RadiographClassifier
from pneumoscope.metrics.classification import score_confusion, softmax_at
from pneumoscope.recipes.papers.katsamenis_2020 import chest_xray
from pneumoscope.study.learners.logistic import Logistic, choose_logistic
from temperature import expected_error
from xray_lessons import CLASSES, Parts, Pictures, strangers

NORMAL, COVID = CLASSES.index("normal"), CLASSES.index("covid19")


def numbers_of(classifier: RadiographClassifier, pictures: Pictures, parts: Parts, without: str) -> dict[str, Any]:
    """Everything that can be asked of one model: its test part, adults, who it never saw."""
    plain = _baseline(pictures, parts)
    rows, labels = parts.rows["test"], parts.labels["test"]
    sources = np.array(pictures.sources(rows))
    squares = pictures.squares(rows)
    found: dict[str, Any] = {"in_source": scored(classifier, plain, squares, labels)}
    found["in_source"]["no_class_named_by_source"] = {
        str(s): told(classifier, plain, squares[sources == s], None)["no_class_named"] for s in np.unique(sources)
    }
    adults = (sources == "nih") & (labels == NORMAL)
    if adults.any():
        found["healthy_adults"] = told(classifier, plain, squares[adults], NORMAL)
    free = strangers(pictures, parts)
    unseen = [i for i in free if without and pictures.cases[i].dataset == without]
    for label in sorted({pictures.cases[i].label for i in unseen} & set(CLASSES)):
        chosen = [i for i in unseen if pictures.cases[i].label == label]
        found["unseen"] = {"class": label, **told(classifier, plain, pictures.squares(chosen), CLASSES.index(label))}
    for name, label in (("adults_with_other_pneumonia", "pneumonia"), ("children_with_viral_pneumonia", "viral")):
        chosen = [i for i in free if pictures.cases[i].label == label][:200]
        if chosen:
            found[name] = told(classifier, plain, pictures.squares(chosen), None)
    return found


def scored(
    classifier: RadiographClassifier, plain: Logistic, squares: NDArray[np.uint8], labels: NDArray[np.int64]
) -> dict[str, Any]:
    """Accuracy and macro F1 as if every picture were answered, calibration, and what abstention does."""
    probability = softmax_at(classifier.raw(squares)[0], classifier.temperature)
    answers = classifier.answer(squares)
    kept = [a.prediction == CLASSES[y] for a, y in zip(answers, labels, strict=True) if a.answered]
    return {
        "pictures": len(labels),
        **_agreement(labels, probability.argmax(axis=1)),
        "expected_calibration_error": expected_error(probability, labels),
        "no_class_named": 1 - len(kept) / len(answers),
        "accuracy_where_named": float(np.mean(kept)) if kept else None,
        "thumbnails": _agreement(labels, _shown(plain, squares).argmax(axis=1)),
    }


def _agreement(truth: NDArray[np.int64], said: NDArray[np.intp]) -> dict[str, Any]:
    matrix = np.bincount(truth * len(CLASSES) + said, minlength=len(CLASSES) ** 2).reshape(len(CLASSES), -1)
    found = score_confusion(matrix, CLASSES)
    recall = {name: float(matrix[i, i] / matrix[i].sum()) for i, name in enumerate(CLASSES) if matrix[i].sum()}
    return {"accuracy": found.accuracy, "macro_f1": found.f1, "found": recall}


def told(
    classifier: RadiographClassifier, plain: Logistic, squares: NDArray[np.uint8], truth: int | None
) -> dict[str, Any]:
    """Share of each leading class as if every picture were answered, and what is said with abstention."""
    answers = classifier.answer(squares)
    leading = [a.leading for a in answers]
    shares = {name: leading.count(name) / len(answers) for name in CLASSES}
    thumbs = np.bincount(_shown(plain, squares).argmax(axis=1), minlength=len(CLASSES)) / len(answers)
    named = [a.prediction for a in answers if a.answered]
    found: dict[str, Any] = {
        "pictures": len(answers),
        "if_all_were_answered": shares,
        "thumbnails": dict(zip(CLASSES, thumbs.tolist(), strict=True)),
        "said": said(answers),
        "no_class_named": 1 - len(named) / len(answers),
    }
    if truth is not None:
        found["right"] = shares[CLASSES[truth]]
        found["right_where_named"] = named.count(CLASSES[truth]) / len(named) if named else None
    return found


def said(answers: list[Answer]) -> dict[str, float]:
    """Share of each answer."""
    names = [a.prediction for a in answers]
    return {name: names.count(name) / len(names) for name in (*CLASSES, CANNOT_SAY, NONE_OF_THESE)}


def _baseline(pictures: Pictures, parts: Parts) -> Logistic:
    """A regression on 16 x 16 thumbnails of the same squares and parts, as in the X-ray study."""
    honest = chest_xray().honest
    shown = {part: thumbnails(pictures.squares(parts.rows[part]), honest.thumbnail) for part in ("train", "val")}
    train, val = ((shown[part], parts.labels[part]) for part in ("train", "val"))
    return choose_logistic(train, val, len(CLASSES), honest.penalties)


def _shown(plain: Logistic, squares: NDArray[np.uint8]) -> NDArray[np.float64]:
    return plain.probability(thumbnails(squares, chest_xray().honest.thumbnail))
