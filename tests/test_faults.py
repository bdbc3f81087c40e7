"""A quick share of the fault campaign; `make faults` runs all of it."""

import subprocess
import sys

from common.reporting import results


def test_a_quick_share_of_the_campaign_loses_nothing(tmp_path):
    # In a process of its own: tries are forked, and no thread of another test may be there then.
    command = [sys.executable, "-m", "tests.faults", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=results.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = results.read(tmp_path)["parts"]["faults"]["faults"]
    assert sum(row["lost"] for row in rows) == 0
    assert all(row["tries"] == row["survived"] + row["skipped"] for row in rows)
    assert "fault" in (tmp_path / "faults.txt").read_text()
