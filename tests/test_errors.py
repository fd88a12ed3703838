import pickle

import pytest

from pneumoscope import errors
from pneumoscope.errors import Finding, InputError, PneumoscopeError, ReadError, RunError, printable

INPUT = ["InputError", "ReadError", "InputTypeError", "GeometryError", "DatasetError", "ModelError"]
RUN = ["RunError", "NonFiniteLossError", "CheckpointError"]


@pytest.mark.parametrize(("name", "code"), [*((n, 2) for n in INPUT), *((n, 1) for n in RUN), ("PneumoscopeError", 1)])
def test_exit_codes_follow_the_tree(name, code):
    assert getattr(errors, name)("text").exit_code == code


def test_the_tree_has_two_branches():
    assert all(issubclass(getattr(errors, name), InputError) for name in INPUT)
    assert all(issubclass(getattr(errors, name), RunError) for name in RUN)
    assert not issubclass(RunError, InputError)


def test_the_drawn_tree_names_every_class():
    classes = [n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, PneumoscopeError)]
    assert sorted(classes) == sorted([*INPUT, *RUN, "PneumoscopeError"])
    assert all(name in errors.__doc__ for name in classes)


def test_a_message_names_code_and_file():
    error = ReadError("two slices at one place; remove one", code="IN-DCM-006", path="scan/0001.dcm")
    assert str(error) == "[IN-DCM-006] scan/0001.dcm: two slices at one place; remove one"
    assert str(ReadError("text", path="a")) == "a: text"
    assert str(ReadError("text", code="IN-1")) == "[IN-1] text"
    assert str(ReadError("text")) == "text"


def test_a_message_is_one_line():
    assert str(InputError("one\n  two\tthree", path="a\nb\x1b[31m")) == "a?b?[31m: one two three"


def test_names_of_patients_languages_stay_readable():
    assert printable("Müller_José/Θ-42") == "Müller_José/Θ-42"
    assert printable("1\u202f234\u00a0ml\u2028\u200b") == "1\u202f234\u00a0ml??", "spaces of units, not line ends"


def test_errors_travel_between_processes():
    error = ReadError("text", code="IN-1", path="file.nii")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is ReadError
    assert (back.message, back.code, back.path, str(back)) == (error.message, error.code, error.path, str(error))


def test_a_finding_as_plain_values():
    finding = Finding("IN-NII-051", "the file says nothing of units", "info", "scan.nii")
    assert finding.as_dict() == {
        "code": "IN-NII-051", "message": "the file says nothing of units", "severity": "info", "path": "scan.nii",
    }  # fmt: skip
    assert Finding("X", "y").severity == "warning"
