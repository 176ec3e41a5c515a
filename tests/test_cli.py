"""The command line, run as a user runs it: in an empty folder, as a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import eccos_integrations
from eccos_integrations import OutcomeTable, load_sample
from eccos_integrations.demo import fit_demo
from eccos_integrations.evaluation import evaluate


def eccos(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "eccos_integrations.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)


def test_the_demo_prints_what_it_realised_and_saves_the_plot(tmp_path):
    done = eccos(tmp_path, "demo", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (tmp_path / "eccos-demo.png").read_bytes().startswith(b"\x89PNG")
    assert sum(result["counts"].values()) == result["queries"] == 300
    assert max(result["counts"].values()) <= 100
    _, unseen = load_sample().split(0.7, seed=0)
    best = unseen.models.index(result["best"])
    assert result["best_quality"] == pytest.approx(unseen.quality[:, best].mean())
    assert result["best_cost_usd"] == pytest.approx(unseen.cost_usd[:, best].sum())
    router, _ = fit_demo()
    rows, columns = range(len(unseen)), [unseen.models.index(model) for model in router.plan(unseen.queries).models]
    assert result["quality"] == pytest.approx(unseen.quality[rows, columns].mean())
    assert result["cost_usd"] == pytest.approx(unseen.cost_usd[rows, columns].sum())
    assert result["saved"] == pytest.approx(1 - result["cost_usd"] / result["best_cost_usd"])


def test_the_demo_in_words(tmp_path):
    done = eccos(tmp_path, "demo", "--plot", "here.png")
    assert done.returncode == 0, done.stderr
    assert "Saved" in done.stdout
    assert "here.png" in done.stdout
    assert (tmp_path / "here.png").exists()
    assert done.stderr == ""


def test_evaluate_as_json_is_the_same_as_from_python(tmp_path):
    load_sample().write(tmp_path / "table.parquet")
    done = eccos(tmp_path, "evaluate", "table.parquet", "--predictor", "retrieval", "--seed", "3", "--json")
    assert done.returncode == 0, done.stderr
    table = OutcomeTable.read(tmp_path / "table.parquet")
    assert json.loads(done.stdout) == evaluate(table, predictor="retrieval", seed=3).to_dict()


def test_evaluate_as_a_table(tmp_path):
    load_sample().write(tmp_path / "table.csv")
    done = eccos(tmp_path, "evaluate", "table.csv", "--predictor", "retrieval")
    assert done.returncode == 0, done.stderr
    assert "hindsight best" in done.stdout
    assert "oracle" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("evaluate", "missing.parquet"), "no such file"),
        (("evaluate", "table.parquet", "--predictor", "oracle"), "predictor: 'oracle' is unknown"),
        (("evaluate", "table.parquet", "--test-fraction", "1"), "test_fraction: 1.0"),
        (("evaluate", "table.parquet", "--pool", "[/there].toml"), "[/there].toml"),
        (("demo", "--plot", "missing/plot.png"), "plot.png: cannot be written"),
        (("evaluate", "table.parquet", "--pool", "pool.toml"), "pool.toml"),
        (("evaluate", "table.parquet", "--encoder", "no-such-model"), "no-such-model"),
        (("evaluate", "free.parquet"), "model 'a'"),
        (("bench", "nothing"), "bench: 'nothing' is unknown"),
    ],
)
def test_a_mistake_is_one_line_on_stderr(tmp_path, arguments, words):
    load_sample().take(range(40)).write(tmp_path / "table.parquet")
    quality = np.tile([[0.0, 1.0]], (10, 1))
    names = [str(i) for i in range(10)]
    OutcomeTable(names, names, ["a", "b"], quality).write(tmp_path / "free.parquet")
    done = eccos(tmp_path, *arguments)
    assert done.returncode == 1
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_without_a_command_the_help_is_shown(tmp_path):
    assert "demo" in eccos(tmp_path).stdout + eccos(tmp_path).stderr


def test_the_version_is_the_packages(tmp_path):
    assert eccos(tmp_path, "--version").stdout.strip() == eccos_integrations.__version__
