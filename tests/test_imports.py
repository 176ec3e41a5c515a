"""Importing the core is quick, quiet and light, and `__all__` says all there is."""

import importlib
import subprocess
import sys
from types import ModuleType

import pytest

import eccos_integrations

HEAVY = ("torch", "faiss", "langchain_core", "llama_index", "sentence_transformers")
PROMISED = ["OutcomeTable", "Model", "ModelPool", "Policy", "Router", "Plan", "Decision", "Forecast",
            "AssignmentProblem", "Solution", "solve", "load_sample", "EccosError"]  # fmt: skip


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)


def test_importing_takes_less_than_a_second():
    timed = "from time import perf_counter as now; t = now(); import eccos_integrations; print(now() - t)"
    seconds = [float(run(timed).stdout) for _ in range(3)]
    assert min(seconds) < 1, seconds


def test_importing_loads_nothing_heavy():
    loaded = run("import sys, eccos_integrations; print(*sys.modules, sep='\\n')").stdout.splitlines()
    assert "eccos_integrations" in loaded
    assert [name for name in loaded if name.partition(".")[0] in HEAVY] == []


def test_importing_has_no_output():
    done = run("import eccos_integrations")
    assert (done.stdout, done.stderr) == ("", "")


def test_all_lists_every_public_name_and_no_other():
    public = {
        name
        for name, value in vars(eccos_integrations).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert sorted(public) == sorted(eccos_integrations.__all__)


def test_all_is_sorted_and_has_every_promised_name():
    assert list(eccos_integrations.__all__) == sorted(eccos_integrations.__all__)
    assert set(PROMISED) <= set(eccos_integrations.__all__)


def test_every_error_of_ours_is_an_eccos_error():
    errors = [getattr(eccos_integrations, name) for name in eccos_integrations.__all__ if name.endswith("Error")]
    assert len(errors) > 1
    assert all(issubclass(error, eccos_integrations.EccosError) for error in errors)


@pytest.mark.parametrize("package", ["langchain_eccos", "llamaindex_eccos", "eccos_integrations.serving"])
def test_every_promised_name_of_the_others_is_there_and_sorted(package):
    module = importlib.import_module(package)
    assert list(module.__all__) == sorted(module.__all__)
    assert all(getattr(module, name) is not None for name in module.__all__)


def test_chains_need_no_agents_and_agents_say_what_they_need():
    without = "import sys; sys.modules['langchain'] = None; import langchain_eccos as e; e.ChatEccos; "
    assert run(without).stderr == ""
    done = run(without + "\ntry: e.EccosMiddleware\nexcept ImportError as error: print(error)")
    assert "pip install 'eccos-integrations[agents]'" in done.stdout
