"""No kernel reads or writes beyond its arrays: each lies between pages of memory that nobody may touch."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("guard_pages.py")
CASES = ("convolution", "tabulated", "filters", "frames", "signals", "rings", "polynomials", "tiles")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages are guarded by mprotect of Linux")


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-W", "ignore", str(PROGRAM), *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("side", ["start", "end"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.slow
def test_nothing_beyond_the_arrays_is_touched(case, side, dtype):
    """With all first and second derivatives, 1, 3 and 17 channels, and no, one or seven rows or edges."""
    done = run(case, side, dtype)
    assert done.returncode == 0, f"kernels of {case}, {side}, {dtype}: ended with {done.returncode} {done.stderr[-1000:]}"
    assert int(done.stdout) > 9  # kernels ran


def test_the_guards_hold():
    done = run("polynomials", "end", "float32", "touch")
    assert done.returncode == -signal.SIGSEGV and int(done.stdout) > 9, done.stderr[-1000:]
