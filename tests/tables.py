"""CSV as the tests read it: the standard library's reader, so that a second program has opened every table of ours."""

from __future__ import annotations

import csv
from pathlib import Path


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a table by its headings."""
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
