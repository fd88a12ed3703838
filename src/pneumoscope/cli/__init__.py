"""The command line: parse, call one function, print."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code: 0 done, 1 failed while running, 2 unusable call or input."""
    from pneumoscope.cli.app import run

    return run(argv)
