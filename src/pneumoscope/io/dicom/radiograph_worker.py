"""The process that reads DICOM radiographs one after the other, started by `pneumoscope.io.dicom.radiograph`.

It takes one JSON request a line, writes the picture to the file named in it, and answers with one JSON document a line.
The rules are those of `pneumoscope.io.dicom.worker`, which does the reading; limits are set anew for every file.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from pneumoscope.io.dicom.worker import answer, limit_process, trouble


def serve() -> int:
    """Answer until standard input ends. Anything unforeseen is told by its class and place only."""
    for line in sys.stdin:
        request = json.loads(line)
        spent = int(time.process_time()) + 1
        limit_process(request["memory_mib"], spent + request["wall_s"], request["max_voxels"] * 4)
        json.dump(_answered(request), sys.stdout)
        sys.stdout.write("\n")
        sys.stdout.flush()
    return 0


def _answered(request: dict[str, Any]) -> dict[str, Any]:
    try:
        with Path(request["out"]).open("r+b") as out:
            out.seek(0)
            out.truncate()
            return answer(request, out)
    except Exception as error:
        return trouble(error)
