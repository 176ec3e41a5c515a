"""`eccos replay`, as a user runs it: a process that serves until it is interrupted."""

import json
import signal
import subprocess
import sys
from contextlib import contextmanager
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from eccos_integrations import Model, ModelPool, OutcomeTable
from eccos_integrations.replay import load_sample_references


@contextmanager
def eccos_replay(folder, *arguments):
    """The process and its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "eccos_integrations.cli", "replay", "--port", "0", *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Whoever runs the tests in the background may have them ignore Ctrl-C, which a child would inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509  # no thread yet
    )  # fmt: skip
    with process:
        try:
            yield process, process.stderr.readline().split()[1]
        finally:
            process.kill()


def ask(url, model, question):
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": question}]}).encode()
    with urlopen(Request(f"{url}/chat/completions", body), timeout=20) as response:
        return json.load(response)["choices"][0]["message"]["content"]


def interrupted(process):
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.stdout.read(), process.stderr.read()
    assert process.wait(60) == 0, stderr
    assert "Traceback" not in stderr
    return stdout, stderr


def test_the_sample_is_served_with_its_right_answers_until_ctrl_c(tmp_path, sample):
    with eccos_replay(tmp_path, "--speed", "inf") as (process, url):
        right = sample.quality[0].tolist().index(1)
        said = ask(url, sample.models[right], sample.queries[0])
        stdout, stderr = interrupted(process)
    assert load_sample_references()[sample.query_ids[0]].is_met_by(said)
    assert all(model in stderr for model in sample.models)
    assert "violations" in stdout
    assert max(len(line) for line in stdout.splitlines()) <= 80


def test_a_table_is_served_within_a_pools_limits_and_the_report_counts_what_was_above(tmp_path):
    OutcomeTable(["a"], ["q?"], ["m", "n"], [[1, 0]], None, [[3, 3]], [[4, 4]]).write(tmp_path / "table.jsonl")
    ModelPool([Model(name="m", requests_per_minute=1)]).write(tmp_path / "pool.toml")
    with eccos_replay(tmp_path, "table.jsonl", "--pool", "pool.toml", "--speed", "inf", "--json") as (process, url):
        assert ask(url, "m", "q?") == "a right answer"
        for _ in range(2):
            with pytest.raises(HTTPError, match="429"):
                ask(url, "m", "q?")
        stdout, _ = interrupted(process)
    assert json.loads(stdout) == {
        "m": {
            "calls": 3,
            "answered": 1,
            "refused": 2,
            "input_tokens": 3,
            "output_tokens": 4,
            "violations": {"requests_per_minute": 2},
        }
    }


def test_faults_come_as_asked_for(tmp_path):
    with eccos_replay(tmp_path, "--error-rate", "1", "--speed", "inf", "--json") as (process, url):
        with pytest.raises(HTTPError, match="500"):
            ask(url, "gemma-2-9b-it", "hello")
        stdout, _ = interrupted(process)
    figures = json.loads(stdout)["gemma-2-9b-it"]
    assert (figures["calls"], figures["answered"], figures["refused"]) == (1, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("missing.parquet",), "no such file"),
        (("--speed", "0"), "speed=0.0"),
        (("--error-rate", "0.7", "--cut-rate", "0.7"), "sum to 1.4"),
        (("--pool", "pool.toml"), "no model 'm'"),
    ],
)
def test_a_mistake_is_one_line_on_stderr(tmp_path, arguments, words):
    ModelPool([Model(name="m")]).write(tmp_path / "pool.toml")
    command = [sys.executable, "-m", "eccos_integrations.cli", "replay", "--port", "0", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
