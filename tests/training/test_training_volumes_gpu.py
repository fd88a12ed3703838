"""The benchmark of the papers' sizes, at a tiny size on the processor."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

PHASES = ("decoder", "low", "high")
TINY = {
    "mueller-2021": ["phases.fit.size=16,16,8", "phases.fit.batch_size=2", "network.features=2,4"],
    "bressem-2021": ["network.features=2,4,4,2,2", *(f"phases.{p}.size=32,32,8" for p in PHASES)],
}


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).parents[2] / "benchmarks" / "volumes_gpu.py"
    spec = importlib.util.spec_from_file_location("benchmark_volumes_gpu", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_papers_epochs_and_sizes(benchmark):
    from pneumoscope.recipes.stages import build_volume_recipe

    found = {}
    for recipe in benchmark.RECIPES:
        plan = build_volume_recipe(recipe)
        for phase in plan.phases:
            found[phase.name] = (phase.size, phase.batch_size, benchmark.full_steps(plan, phase))
    assert found == {
        "fit": ((160, 160, 80), 2, 150),
        "decoder": ((112, 112, 18), 6, 17),
        "low": ((112, 112, 18), 6, 17),
        "high": ((256, 256, 20), 1, 100),
    }
    assert {name: seconds for name, (seconds, _) in benchmark.PAPER.items()} == {
        "fit": 150.0, "decoder": 45.0, "low": 45.0, "high": 150.0}  # fmt: skip
    derived = 182 * 3600 / (14 * 312)
    assert benchmark.PAPER["fit"][0] == pytest.approx(derived, rel=0.001)


def test_the_peak_of_a_card(benchmark, monkeypatch):
    assert benchmark.peak_tflops("NVIDIA H100 80GB HBM3", "bf16", None) == 989.0
    assert benchmark.peak_tflops("NVIDIA H100 80GB HBM3", "fp32", 3.0) == 3.0
    monkeypatch.setattr(benchmark.torch.backends.cudnn, "allow_tf32", False)
    assert benchmark.peak_tflops("NVIDIA A100-SXM4-40GB", "fp32", None) == 19.5
    assert benchmark.peak_tflops("cpu", "fp32", None) is None


@pytest.mark.slow
@pytest.mark.parametrize("recipe", TINY)
def test_every_phase_is_measured(benchmark, recipe, monkeypatch, tmp_path):
    out = tmp_path / "rows.json"
    settings = [part for value in TINY[recipe] for part in ("--set", value)]
    options = ["--recipe", recipe, "--device", "cpu", "--epochs", "2", "--steps", "2", "--peak-tflops", "0.5"]
    monkeypatch.setattr(sys, "argv", ["volumes_gpu.py", *options, "--json", str(out), *settings])
    benchmark.main()
    rows = json.loads(out.read_text())
    assert [row["phase"] for row in rows] == (["fit"] if recipe == "mueller-2021" else list(PHASES))
    for row in rows:
        assert row["steps_measured"] == 2
        assert 2 * row["seconds_per_epoch"] > row["seconds_per_epoch_of_arithmetic_alone"] > 0  # two runs, two loads
        per_second = row["gflop_per_step"] * row["steps"] / row["seconds_per_epoch"] / 1000
        assert row["tflops"] == pytest.approx(per_second, abs=0.001)
        assert row["share_of_peak"] == pytest.approx(per_second / 0.5, abs=0.001)
        assert row["memory_gib"] > 0.05
    if recipe == "bressem-2021":
        decoder, low, _ = rows
        assert decoder["gflop_per_step"] < low["gflop_per_step"]  # no gradients of the frozen encoder's weights
