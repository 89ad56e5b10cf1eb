"""One process at a time trains in a folder, and a killed one leaves no lock behind, nor do its children."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dmgal.errors import DmgalError
from dmgal.recipes.run.folder import Run

HOLDER = """
import os, sys, time
from pathlib import Path
from dmgal.recipes.run.folder import Run
with Run(Path(sys.argv[1])).locked():
    child = os.fork() if hasattr(os, "fork") else 1
    print("locked" if child else "", flush=True)
    time.sleep(60 if child else 5)
"""


def test_second_process_raises_until_the_first_is_killed(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert "locked" in holder.stdout.readline() + holder.stdout.readline()
        with pytest.raises(DmgalError, match=f"process {holder.pid} trains"), Run(tmp_path).locked():
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with Run(tmp_path).locked():  # its child, like one that loads data, still lives
        pass
