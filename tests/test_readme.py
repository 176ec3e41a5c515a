"""The README: every block runs as printed, every figure is what the command prints."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from eccos_integrations import load_sample

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
PYTHON = [source for language, source in BLOCKS if language == "python"]
SHELL = [line.split("#")[0].strip() for language, source in BLOCKS if language == "sh" for line in source.splitlines()]


def run(*command: str, folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_is_nothing_but_python_shell_and_printed_text():
    assert {language for language, _ in BLOCKS} == {"python", "sh", "text"}
    assert len(PYTHON) == 7


@pytest.mark.parametrize("source", PYTHON, ids=range(len(PYTHON)))
def test_a_python_block_runs_as_printed(source, tmp_path):
    assert run(sys.executable, "-c", source, folder=tmp_path)


@pytest.mark.parametrize("command", SHELL)
def test_a_command_is_one_that_exists(command, tmp_path):
    program, *arguments = shlex.split(command)
    if program == "make":
        assert re.search(rf"^{arguments[0]}:.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    elif program == "pip":
        package, extra = re.fullmatch(r"(.+)\[(\w+)\]", arguments[-1]).groups()
        pyproject = (ROOT / "pyproject.toml").read_text()
        assert f'name = "{package}"' in pyproject
        assert re.search(rf"^{extra} = ", pyproject, flags=re.MULTILINE)
    else:
        assert program == "eccos"
        load_sample().take(range(0, 1000, 5)).write(tmp_path / "outcomes.parquet")
        assert run(sys.executable, "-m", "eccos_integrations.cli", *arguments, folder=tmp_path)


def test_the_table_is_the_one_the_demo_prints(tmp_path):
    printed = run(sys.executable, "-m", "eccos_integrations.cli", "demo", folder=tmp_path)
    shown = re.search(r"<!-- demo -->\n```text\n(.*?)```", README, flags=re.DOTALL)[1]

    def words_and_figures(text: str) -> tuple[list[str], list[float]]:
        text = " ".join(line.strip() for line in text.splitlines())
        return re.findall(r"[a-zA-Z]{3,}", text), [float(n) for n in re.findall(r"(?<![\w.-])\d+(?:\.\d+)?", text)]

    words, figures = words_and_figures(shown)
    words_now, figures_now = words_and_figures(printed)
    assert words == words_now
    # Another machine's rounding may send a query or two elsewhere.
    assert figures == pytest.approx(figures_now, rel=0.02, abs=2)
