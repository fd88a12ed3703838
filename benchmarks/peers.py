"""Models of other programs, by us and by these programs: how many voxels differ, and the seconds of both.

    python benchmarks/peers.py

Runs the tests of `make test-peers` and prints their figures, one line each. Needs nnunetv2, monai and lungmask.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main() -> int:
    """Exit code of the tests."""
    how = ("-m", "peers", "-q", "-s", "--no-header", "--timeout", "3000")
    call = [sys.executable, "-m", "pytest", *how, "tests/peers"]
    done = subprocess.run(call, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if " differ" in line:
            print(line.lstrip(".F"))
    print(done.stdout.strip().splitlines()[-1])
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
