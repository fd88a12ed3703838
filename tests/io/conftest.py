"""No secret of the user is touched, and DICOM goes through no process of its own but where that is the matter."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PNEUMOSCOPE_SALT", "only for tests")
    if "own_process" not in request.fixturenames:
        request.getfixturevalue("in_process")


@pytest.fixture
def own_process() -> None:
    """Asked for by tests of the reading process itself."""
