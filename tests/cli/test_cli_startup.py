"""Help and listings answer at once: nothing heavy is imported for them."""

import resource
import subprocess
import sys

import pytest

from cli_reference import commands

HEAVY = ("torch", "lightning_fabric", "monai", "matplotlib", "SimpleITK", "pandas", "skimage", "cv2", "scipy")
HELPS = [["--help"], [], ["--version"], *([*name.split(), "--help"] for name, _ in commands())]
LISTINGS = [["data", "list"], ["data", "list", "--json"], ["data", "info", "phantom"], ["study", "list"]]
LISTINGS += [["study", "show", "maganaris-2022b", "--json"], ["model", "list"], ["model", "list", "--json"]]
SCRIPT = """
import sys
from pneumoscope.cli import main
for argv in {calls!r}:
    code = main(argv)
    heavy = [name for name in {heavy!r} if name in sys.modules]
    if code or heavy:
        sys.exit(f"{{argv}}: code {{code}}, imported {{heavy}}")
"""


def test_help_and_listings_import_nothing_heavy():
    script = SCRIPT.format(calls=HELPS + LISTINGS, heavy=HEAVY)
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("argv", [["--help"], ["data", "list"], ["study", "list"], ["model", "list"]], ids=" ".join)
def test_help_and_listings_answer_in_half_a_second(argv):
    def processor_seconds():  # not by the clock: the machine may be busy with something else
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "pneumoscope", *argv], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert any(processor_seconds() < 0.5 for _ in range(5))
