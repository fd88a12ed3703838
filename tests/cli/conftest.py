"""One command line, run in this process: its exit code and what it printed."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from pneumoscope.cli.app import run


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def refused(self, *words: str, code: int = 2) -> None:
        """The ending every error has: the code, nothing on stdout, one line on stderr that holds `words`."""
        assert self.code == code, self
        assert self.err.startswith("error: "), self
        assert self.err.count("\n") == 1, self
        for word in words:
            assert word in self.err, self


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """The console in this process, into a pipe: a width that other tests left behind is none of its terminal's."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def call(*argv: object) -> Ran:
        capfd.readouterr()
        code = run([str(a) for a in argv])
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    return call
