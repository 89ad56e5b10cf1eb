"""One process at a time trains in a folder, and a killed one leaves no lock behind, nor do its children."""

from __future__ import annotations

import forked
import pytest

from dmgal.errors import DmgalError
from dmgal.recipes.run.folder import Run

HOLDER = """
import os, sys, time
from pathlib import Path
from dmgal.recipes.run.folder import Run
with Run(Path(sys.argv[1])).locked():
    if hasattr(os, "fork") and os.fork():
        time.sleep(60)
    print("locked", flush=True)  # by the child, because the lock stays with it until its fork has returned
    time.sleep(5)
"""


def test_second_process_raises_until_the_first_is_killed(tmp_path):
    holder = forked.start(["-c", HOLDER, str(tmp_path)])
    try:
        while "locked" not in holder.stdout:
            assert holder.poll() == [None], holder.stderr
        with pytest.raises(DmgalError, match=f"process {holder.pids[0]} trains"), Run(tmp_path).locked():
            pass
    finally:
        holder.kill()
    with Run(tmp_path).locked():  # its child, like one that loads data, still lives
        pass
