"""What is said to a reader that has gone, as in `python run.py --help | head`, ends without a traceback."""

import os
import subprocess
import sys

import pytest
from tests_support import ROOT


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_a_closed_pipe_ends_in_silence(flag: str) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, str(ROOT / "run.py"), flag], stdout=write, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")
