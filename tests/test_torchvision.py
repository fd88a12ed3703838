"""docs/decisions/0004: everything works where torchvision is installed and broken."""

import pkgutil
import subprocess
import sys

import pneumoscope

CHECK = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    importlib.import_module(name)
assert "torchvision" not in sys.modules
print("imported", len(sys.argv) - 2)
"""


def test_every_module_imports_beside_a_broken_torchvision(tmp_path):
    broken = tmp_path / "torchvision"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    found = pkgutil.walk_packages(pneumoscope.__path__, "pneumoscope.")
    names = [module.name for module in found if not module.name.endswith("__main__")]
    assert "pneumoscope.training.loop" in names
    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(tmp_path), *names], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"imported {len(names)}"
