"""Links in a data set's folder: followed inside it only."""

from __future__ import annotations

import os
from pathlib import Path

from pneumoscope.datasets.layout import require_inside


def refuse_links_out(folder: Path) -> None:
    """Look at every entry at or below a folder, which may be a link itself.

    Raises:
        DatasetError: a link that leads out of the folder or nowhere.
    """
    real = folder.resolve()
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(where) / name
            if path.is_symlink():
                require_inside(path, real)
