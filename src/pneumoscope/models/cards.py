"""Model cards without torch: which models are here, what their cards say, whether their weights are whole.

A model is a folder with `card.json` and the weights file that the card names with its size and SHA-256.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pneumoscope.errors import ModelError
from pneumoscope.io.files import sha256

CARD_FILE = "card.json"
FORMAT = 1
"""Newest layout of the card that this version reads."""

SHIPPED = Path(__file__).parent / "shipped"
"""Models that come with the package, one folder each."""


@dataclass(frozen=True)
class VerifyReport:
    """What the checksum of a model's weights says.

    Attributes:
        model: folder of the model.
        file: name of the weights file in the card.
        expected_sha256: what the card says.
        found_sha256: of the file as it is, or None when it is absent.
        expected_bytes: size in the card, or None when the card gives none.
        found_bytes: size of the file, or None when it is absent.
    """

    model: Path
    file: str
    expected_sha256: str
    found_sha256: str | None
    expected_bytes: int | None
    found_bytes: int | None

    @property
    def ok(self) -> bool:
        """Whether the weights are the ones that the card describes."""
        return self.found_sha256 == self.expected_sha256

    def sentence(self) -> str:
        """One line for people."""
        if self.found_sha256 is None:
            return f"{self.file} is absent; copy the model folder again"
        if self.ok:
            return f"{self.file} is whole ({self.found_bytes} bytes, SHA-256 {self.expected_sha256[:12]}...)"
        return (
            f"{self.file} is damaged: {self.found_bytes} bytes with SHA-256 {self.found_sha256[:12]}..., "
            f"the card says {self.expected_bytes} bytes and {self.expected_sha256[:12]}...; copy the model folder again"
        )

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
    known = f"one of {', '.join(names)}" if names else "no model is shipped with this version"
    what = f"is a folder without {CARD_FILE}" if folder.is_dir() else "is neither a model folder nor a shipped model"
    raise ModelError(
        f"{what}; expected a folder with {CARD_FILE} and its weights, or a shipped name ({known})", path=folder
    )


def read_card(path: str | Path) -> dict[str, Any]:
    """The card of a model folder, checked for the parts that every card has.

    Raises:
        ModelError: no readable card, an entry is missing, or it was written by a newer version.
    """
    folder = Path(path)
    try:
        card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
    except OSError as problem:
        raise ModelError(
            f"holds no readable {CARD_FILE} ({problem.strerror}); expected a model folder", path=folder
        ) from problem
    except ValueError as problem:
        raise ModelError(f"{CARD_FILE} is not JSON ({problem}); copy the model folder again", path=folder) from problem
    missing = [name for name in ("format", "architecture", "weights") if not isinstance(card, dict) or name not in card]
    if missing:
        raise ModelError(
            f"{CARD_FILE} lacks {', '.join(missing)}; expected the card of a pneumoscope model", path=folder
        )
    if not isinstance(card["format"], int) or card["format"] > FORMAT:
        raise ModelError(
            f"the card has format {card['format']}, this version reads {FORMAT}; update pneumoscope", path=folder
        )
    weights = card["weights"]
    if not isinstance(weights, dict) or not all(isinstance(weights.get(key), str) for key in ("file", "sha256")):
        raise ModelError(
            f"{CARD_FILE} names no weights file with its SHA-256; copy the model folder again", path=folder
        )
    if Path(weights["file"]).name != weights["file"]:
        raise ModelError(
            f"{CARD_FILE} names weights outside the model folder ({weights['file']}); refused", path=folder
        )
    return card


def verify(path: str | Path) -> VerifyReport:
    """Compare the weights of a model folder with the SHA-256 in its card; reads the whole file, loads nothing.

    Raises:
        ModelError: the card cannot be read (see `read_card`). Absent or damaged weights are in the report.
    """
    folder = Path(path)
    weights = read_card(folder)["weights"]
    file = folder / weights["file"]
    there = file.is_file()
    return VerifyReport(
        model=folder,
        file=weights["file"],
        expected_sha256=weights["sha256"],
        found_sha256=sha256(file) if there else None,
        expected_bytes=weights.get("bytes"),
        found_bytes=file.stat().st_size if there else None,
    )
