"""Precision and recall of `data audit` on faults planted into synthetic scans, and its silence on clean ones.

    python benchmarks/audit.py [--sizes tiny small] [--sites A B C]

Faults and the rule by which a finding counts as right are those of ``tests/datasets/defects.py``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "datasets"))

from defects import plant, score

from pneumoscope.cases.audit import audit_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["tiny", "small"])
    parser.add_argument("--sites", nargs="+", default=["A", "B", "C"])
    parser.add_argument("--seed", type=int, default=21)
    options = parser.parse_args()
    faults, found, wrong, kinds = 0, 0, 0, set()
    for size in options.sizes:
        for site in options.sites:
            with tempfile.TemporaryDirectory() as folder:
                planted = plant(Path(folder) / "data", site, size=size, seed=options.seed, untouched=6)
                begun = time.perf_counter()
                result = audit_dataset("manifest", Path(folder) / "data", Path(folder) / "out")
                seconds = time.perf_counter() - begun
            scored = score(planted, result.findings)
            faults += scored.planted
            found += len(scored.found)
            wrong += len(scored.wrong)
            kinds |= {fault.kind for fault in planted}
            print(
                f"{size:5} {site}: {len(scored.found)} of {scored.planted} faults found, {len(scored.wrong)} wrong "
                f"findings, {result.summary['cases']} cases in {seconds:.1f} s"
            )
            for fault in scored.missed:
                print(f"      missed {fault.case}: {fault.defect} ({fault.kind})")
            for finding in scored.wrong:
                print(f"      wrong  {finding.case}: {finding.kind}: {finding.detail}")
    reported = found + wrong
    print(f"{faults} faults of {len(kinds)} kinds: recall {found / faults:.3f}, precision {found / reported:.3f}")


if __name__ == "__main__":
    main()
