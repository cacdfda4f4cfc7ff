"""Killed at any moment, a batch loses, doubles and damages nothing, and draws only what was in flight again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
KILLS = int(os.environ.get("DIFFSYNTH_TEST_KILLS", "60"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
@pytest.mark.parametrize(("kind", "share"), [("files", 2 / 3), ("tar", 1 / 3)])
def test_killed_at_many_moments_it_ends_as_if_it_were_not(kind: str, share: float, tmp_path: Path) -> None:
    kills = round(KILLS * share)

    done = subprocess.run(
        [sys.executable, "-m", "tests.batch.killed", str(tmp_path), str(kills), kind],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout)
    assert counted["kills"] == kills
    assert counted["drawn again"] <= counted["at most"]
