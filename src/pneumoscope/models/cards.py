"""Model cards without torch: which models are here, what their cards say, whether their weights are whole.

A model is a folder with `card.json` and the weights file that the card names with its size and SHA-256. The card
carries its own sum as well (`SEAL`, see `seal`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pneumoscope.errors import ModelError, no_such
from pneumoscope.io.files import jsonable, read_json, sha256, write_json

CARD_FILE = "card.json"
FORMAT = 2  # Layout of the card that this version writes and reads
SEAL = "card_sha256"  # Entry of the card with its own sum
_FILE_NAME = re.compile(r"\w[\w. -]{0,99}")  # Of a file in the model folder itself

CHANGED = "was changed after it was written (its SHA-256 does not fit); copy the model folder again"

SHIPPED = Path(__file__).parent / "shipped"  # Models that come with the package, one folder each


@dataclass(frozen=True)
class VerifyReport:
    """What the checksums of a model folder say."""

    model: Path  # folder of the model
    file: str  # name of the weights file in the card
    expected_sha256: str  # what the card says
    found_sha256: str | None  # of the file as it is, or None when it is absent
    expected_bytes: int | None  # size in the card, or None when the card gives none
    found_bytes: int | None  # size of the file, or None when it is absent
    # other files that are not as they were written: the card itself, what else it names with a sum
    changed: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the weights are the ones that the card describes, and the card is as it was written."""
        return self.found_sha256 == self.expected_sha256 and not self.changed

    def sentence(self) -> str:
        """One line for people."""
        if self.found_sha256 is None:
            return f"{self.file} is absent; copy the model folder again"
        if self.found_sha256 != self.expected_sha256:
            return (
                f"{self.file} is damaged: {self.found_bytes} bytes with SHA-256 {self.found_sha256[:12]}..., the card "
                f"says {self.expected_bytes} bytes and {self.expected_sha256[:12]}...; copy the model folder again"
            )
        if self.changed:
            return f"{', '.join(self.changed)} {CHANGED}"
        return f"{self.file} is whole ({self.found_bytes} bytes, SHA-256 {self.expected_sha256[:12]}...)"

    def as_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {**asdict(self), "model": str(self.model), "ok": self.ok}


def shipped_models(root: Path | None = None) -> list[str]:
    """Names of the models that come with the package, sorted; empty when there are none."""
    root = SHIPPED if root is None else root
    return sorted(card.parent.relative_to(root).as_posix() for card in root.glob(f"**/{CARD_FILE}"))


def find_model(name_or_dir: str | Path, *, root: Path | None = None) -> Path:
    """The folder of a model given by a shipped model's name or by its own folder; an existing folder goes first.

    Raises:
        ModelError: neither a folder with a card nor a shipped name; the message lists the names.
    """
    root = SHIPPED if root is None else root
    folder = Path(name_or_dir)
    if (folder / CARD_FILE).is_file():
        return folder
    names = shipped_models(root)
    if str(name_or_dir) in names:
        return root / str(name_or_dir)
    if folder.is_dir():
        raise ModelError(
            f"is a folder without {CARD_FILE}; expected a model folder or a shipped name ({', '.join(names)})",
            path=folder,
        )
    raise ModelError(f"{no_such('model', name_or_dir, names)}; or give a folder with {CARD_FILE} and its weights")


def content_of_model(name_or_dir: str | Path) -> str:
    """Hex SHA-256 of a model's card, which holds the sums of all that belongs to it; of no model, of its name."""
    try:
        return sha256(find_model(name_or_dir) / CARD_FILE)
    except ModelError:
        return hashlib.sha256(str(name_or_dir).encode()).hexdigest()


def read_card(path: str | Path) -> dict[str, Any]:
    """The card of a model folder as it was written.

    Raises:
        ModelError: no readable card, an entry is missing, it was written by another version, or changed afterwards.
    """
    card = _parsed(Path(path))
    if card[SEAL] != seal(card):
        raise ModelError(CHANGED, path=Path(path) / CARD_FILE)
    return card


def write_card(path: str | Path, card: Mapping[str, Any]) -> dict[str, Any]:
    """Write the card of a model folder with its own sum; every card is written here.

    Returns:
        The card as `read_card` gives it.
    """
    sealed = {**jsonable({name: value for name, value in card.items() if name != SEAL})}
    sealed[SEAL] = seal(sealed)
    write_json(Path(path) / CARD_FILE, sealed)
    return sealed


def seal(card: Mapping[str, Any]) -> str:
    """Hex SHA-256 of a card's entries but `SEAL`: of their JSON with sorted names and no blanks, in UTF-8.

    Thresholds, preprocessing and limits shape results as the weights do, so a card changed by hand is another model.
    """
    entries = {name: value for name, value in card.items() if name != SEAL}
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _parsed(folder: Path) -> dict[str, Any]:
    """A card with the parts that every card has, whether or not its sum is right."""
    card: dict[str, Any] = read_json(folder / CARD_FILE, error=ModelError, remedy="copy the model folder again")

    def refusal(message: str) -> ModelError:
        return ModelError(message, path=folder / CARD_FILE)

    missing = [name for name in ("format", "architecture", "weights") if name not in card]
    if missing:
        raise refusal(f"lacks {', '.join(missing)}; expected the card of a pneumoscope model")
    if card["format"] != FORMAT:
        newer = isinstance(card["format"], int) and card["format"] > FORMAT
        what = "update pneumoscope" if newer else "train the model again"
        raise refusal(f"has format {str(card['format'])[:20]}, this version reads {FORMAT}; {what}")
    weights = card["weights"]
    if not isinstance(weights, dict) or not all(isinstance(weights.get(key), str) for key in ("file", "sha256")):
        raise refusal("names no weights file with its SHA-256; copy the model folder again")
    if not _FILE_NAME.fullmatch(weights["file"]):
        raise refusal(f"names weights outside the model folder ({weights['file'][:80]}); refused")
    if not isinstance(card["architecture"], dict) or not isinstance(card.get(SEAL), str):
        raise refusal("lacks an architecture or its own SHA-256; copy the model folder again")
    return card


def verify(path: str | Path) -> VerifyReport:
    """Compare a model folder with the sums in its card, and the card with its own; reads whole files, loads nothing.

    Raises:
        ModelError: the card cannot be read (see `read_card`). Absent, damaged or changed files are in the report.
    """
    folder = Path(path)
    card = _parsed(folder)
    weights = card["weights"]
    others = [v for k, v in card.items() if k != "weights" and isinstance(v, dict) and {"file", "sha256"} <= v.keys()]
    changed = [str(other["file"]) for other in others if _sum(folder, other["file"]) != other["sha256"]]
    file = folder / weights["file"]
    return VerifyReport(
        model=folder,
        file=weights["file"],
        expected_sha256=weights["sha256"],
        found_sha256=_sum(folder, weights["file"]),
        expected_bytes=weights.get("bytes"),
        found_bytes=file.stat().st_size if file.is_file() else None,
        changed=(*([CARD_FILE] if card[SEAL] != seal(card) else []), *changed),
    )


def _sum(folder: Path, name: object) -> str | None:
    """Of a file in the model folder itself; None when there is none."""
    inside = isinstance(name, str) and _FILE_NAME.fullmatch(name) and (folder / name).is_file()
    return sha256(folder / str(name)) if inside else None
