"""Python programs in a process of their own."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name in {packages!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
"""


def run_python(code, *arguments, hidden=()):
    """What a program prints, run from the repository's root, as if the `hidden` packages were not installed."""
    program = HIDE.format(packages=hidden) + code
    command = [sys.executable, "-c", program, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    return run.stdout
