"""The networks of one task, loaded: one, or several whose answers are averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pneumoscope.errors import ModelError
from pneumoscope.inference.engines import Engine, make_engine
from pneumoscope.inference.familiar import ScanSpace, read_scan_space
from pneumoscope.inference.inputs import ModelInput, input_from_card
from pneumoscope.inference.volumes import VOLUME_KINDS, VolumeInput, class_meanings
from pneumoscope.models.cards import find_model

ONE_OF_SLICES: Mapping[int, str] = {0: "background", 1: "infiltrate"}
"""Classes of a network on volumes whose card names none."""

_NUMBERS = {
    "threshold": (0.0, 1.0), "smallest_ml": (0.0, 1e4), "denser_than_lung_hu": (-1024.0, 3071.0),
    "smooth_z_mm": (0.0, 20.0), "dome_layer_mm": (0.0, 30.0),
}  # fmt: skip
"""Entries of a card that may be left out, and their bounds."""


@dataclass(frozen=True, eq=False)
class Member:
    """One network."""

    name: str  # of its folder, or the shipped name
    engine: Engine  # the network, ready to compute
    card: dict[str, Any]  # its card
    slices: ModelInput | None  # preprocessing of a network on slices, else None
    volumes: VolumeInput | None  # preprocessing of a network on volumes, else None
    scans: ScanSpace | None = None  # what training scans look like, where the card names it

    @property
    def infiltrate_class(self) -> int:
        """Which class of a network on volumes is infiltrate."""
        meaning = class_meanings(self.card.get("labels") or ONE_OF_SLICES)
        return next(number for number, name in meaning.items() if name == "infiltrate")


def load_members(models: Sequence[str | Path], **ready: Any) -> tuple[Member, ...]:
    """The infiltrate networks named, fit to be averaged.

    Args:
        models: shipped names or model folders, at least one.
        ready: engine, device and precision, see `engines.make_engine`.

    Raises:
        ModelError: a model is unknown, damaged, made for another task, or does not go with the others.
    """
    if not models:
        raise ModelError("there is no model to run; give at least one")
    members = tuple(_load_member(model, ready) for model in models)
    first = members[0]
    for other in members[1:]:
        if (other.volumes is None) != (first.volumes is None):
            raise ModelError(
                f"{first.name} and {other.name} cannot be averaged: one takes slices, the other volumes; give "
                "models of one kind"
            )
        if other.volumes is not None and (
            other.volumes != first.volumes or other.infiltrate_class != first.infiltrate_class
        ):
            raise ModelError(
                f"{first.name} and {other.name} cannot be averaged: networks on volumes need the same preprocessing "
                "(window, spacing, patch) and classes, such as the folds of one crossval"
            )
    return members


def _load_member(model: str | Path, ready: Mapping[str, Any]) -> Member:
    network, card = load_for(model, "infiltrate")
    fields = card.get("preprocessing")
    on_volumes = isinstance(fields, dict) and fields.get("kind") in VOLUME_KINDS
    folder = find_model(model)
    for name, (low, high) in _NUMBERS.items():
        value = card.get(name, low)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise ModelError(f"the card's {name} is {value!r:.40}, expected {low:g} to {high:g}", path=folder)
    try:
        volumes = VolumeInput.from_card(card) if on_volumes else None
        slices = None if on_volumes else input_from_card(card)
    except ModelError as problem:
        raise ModelError(problem.message, path=folder) from problem
    scans = read_scan_space(folder, card["familiar"]) if "familiar" in card else None
    return Member(folder.name, make_engine(network, **ready), card, slices, volumes, scans)


def load_for(model: str | Path, task: str) -> tuple[Any, dict[str, Any]]:
    """Network and card, refused when the card says another task."""
    from pneumoscope.models.weights import load_model

    folder = find_model(model)
    network, card = load_model(folder)
    if card.get("task") != task:
        raise ModelError(f"is a model for {card.get('task')!r}, expected one for {task!r}", path=folder)
    return network, card


def joint_card(members: Sequence[Member], external: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """The card of one network as it is; of several one that names them all.

    Their threshold is the mean of theirs, the other numbers are the largest of theirs. `external` are cards of models
    of other programs.
    """
    cards = [*(member.card for member in members), *external]
    if len(cards) == 1:
        return cards[0]
    licences = [text for card in cards for text in _texts(card.get("licence"))]
    limits = [text for card in cards for text in _texts(card.get("limits"))]
    return {
        "title": f"average of {len(cards)} models",
        "task": "infiltrate",
        "threshold": sum(float(card.get("threshold", 0.5)) for card in cards) / len(cards),
        **{
            name: max(float(card.get(name, 0.0)) for card in cards)
            for name in ("smallest_ml", "smooth_z_mm", "dome_layer_mm")
        },
        "licence": list(dict.fromkeys(licences)),
        "limits": list(dict.fromkeys(limits)),
        "members": [
            *({"name": m.name, "title": m.card.get("title"), "sha256": m.card["weights"]["sha256"]} for m in members),
            *external,
        ],
    }


def _texts(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(part) for part in value] if isinstance(value, (list, tuple)) else [str(value)]
