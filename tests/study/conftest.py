"""Fixtures of the study tests: see `made_up_hospitals`."""

import pytest
from made_up_hospitals import make_scan, small_experiment, three_hospitals

from pneumoscope.study.engine import run_study


@pytest.fixture
def find_all_lungs():
    """Finds the lungs of the made-up scans without any network, and remembers for which it was asked."""

    def find(volume):
        find.asked.append(volume.case)
        site, number = volume.case[1:].split("p")
        return make_scan(int(site), int(number)).lungs

    find.asked = []
    return find


@pytest.fixture
def no_figures(monkeypatch):
    """Leave out the pictures: they take most of the time of so small a study."""
    monkeypatch.setattr("pneumoscope.study.figures.redraw", lambda *args: None)
    monkeypatch.setattr("pneumoscope.study.figures.write_examples", lambda *args: None)


@pytest.fixture
def small():
    """The demo's experiment, as small as it gets."""
    return small_experiment()


@pytest.fixture
def hospitals(monkeypatch):
    """A study reads the made-up hospitals. Change the returned mapping to change them."""
    cases = three_hospitals()
    monkeypatch.setattr("pneumoscope.study.lungs.find_cases", lambda *args, **kwargs: cases)
    return cases


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """One undisturbed study, shared by tests that only look at it."""
    with pytest.MonkeyPatch.context() as patch:
        cases = three_hospitals()
        patch.setattr("pneumoscope.study.lungs.find_cases", lambda *args, **kwargs: cases)
        return run_study(small_experiment(), tmp_path_factory.mktemp("whole") / "study", synthetic=True)
