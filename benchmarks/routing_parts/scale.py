"""How fitting and deciding scale: texts recombined from the sample, outcomes drawn from a plausible model.

Each measurement runs in a process of its own, `python -m benchmarks.routing_parts.scale fit|serve FOLDER ...`, so that
its memory and imports are its own.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.routing_parts.measures import latency, resident_mb
from eccos_integrations import ModelPool, OutcomeTable, Policy, Router, load_sample
from eccos_integrations.errors import MissingExtraError
from eccos_integrations.predictors import PREDICTORS

POLICY = Policy(min_quality=0.97, relative_to="best")
SENTENCE = re.compile(r"(?<=[.?!\n])\s+")
FIT = (10_000, 20)
SERVED = (2_000, 27)
DECISIONS = 1_000


def synthetic(n: int, m: int, seed: int = 0) -> OutcomeTable:
    """Dearer models are better on average; each has a taste for some words, and long queries are harder and cost more.

    Args:
        n: Queries, each of two to eight sentences from two questions of the sample.
        m: Models.
        seed: Same seed, same table.
    """
    rng = np.random.default_rng(seed)
    sentences = [SENTENCE.split(query) for query in load_sample().queries]
    texts: dict[str, None] = {}
    while len(texts) < n:
        first, second = (sentences[i] for i in rng.integers(len(sentences), size=2))
        parts = [rng.choice(part, size=min(len(part), 4), replace=False) for part in (first, second)]
        texts[" ".join(np.concatenate(parts))] = None
    queries = list(texts)
    words = [set(re.findall(r"\w+", query.lower())) for query in queries]
    known = {word: i for i, word in enumerate(sorted(set().union(*words)))}
    taste = rng.normal(0, 1, (len(known), 4))
    liking = np.array([taste[[known[word] for word in sorted(w)]].sum(axis=0) / np.sqrt(len(w) + 1) for w in words])
    length = np.log([len(query) for query in queries])[:, None]
    length = (length - length.mean()) / length.std()
    logit = 1.0 + np.linspace(-1, 1, m) - 0.5 * length + 0.7 * liking @ rng.normal(0, 0.5, (4, m))
    input_tokens = np.tile([[len(query) // 4 + 20] for query in queries], (1, m)).astype(float)
    output_tokens = np.round(300 * np.exp(rng.normal(0, 0.4, m) + 0.4 * length + rng.normal(0, 0.4, (n, m)))) + 1
    price = np.geomspace(0.1, 15, m)
    return OutcomeTable(
        query_ids=[str(i) for i in range(n)],
        queries=queries,
        models=[f"model-{j:02d}" for j in range(m)],
        quality=rng.random((n, m)) < 1 / (1 + np.exp(-logit)),
        cost_usd=(input_tokens + 4 * output_tokens) * price / 1e6,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
    )


def fit(folder: str, predictor: str, n: str, m: str) -> dict[str, Any]:
    """Seconds and peak memory of fitting one predictor, or `auto`, whose router is saved to the folder."""
    table = synthetic(int(n), int(m))
    pool = ModelPool.from_outcomes(table)
    start = time.perf_counter()
    try:
        fitted = Router.fit(table, pool, POLICY) if predictor == "auto" else PREDICTORS[predictor]().fit(table, pool)
    except MissingExtraError as error:
        return {"predictor": predictor, "skipped": str(error)}
    seconds = time.perf_counter() - start
    if isinstance(fitted, Router):
        fitted.save(folder)
    return {"predictor": predictor, "queries": len(table), "models": len(pool), "fit_s": seconds,
            "peak_mb": resident_mb("VmHWM")}  # fmt: skip


def serve(folder: str) -> dict[str, Any]:
    """One decision from text, and 1,000 forecasts, by the saved router, warm; whether torch was imported for it."""
    router = Router.load(folder)
    queries = synthetic(DECISIONS, 2, seed=1).queries
    router.forecast(queries[:10])
    start = time.perf_counter()
    router.forecast(queries)
    seconds = time.perf_counter() - start
    return {"models": len(router.models), **latency(router.route, queries, DECISIONS), "forecast_1000_s": seconds,
            "torch": "torch" in sys.modules}  # fmt: skip


def scale(fit_size: tuple[int, int] = FIT, served_size: tuple[int, int] = SERVED) -> dict[str, list[dict[str, Any]]]:
    """Fits of every predictor and of `auto`, and what serving by `auto` takes."""
    found: dict[str, list[dict[str, Any]]] = {"fit": [], "serve": []}
    with tempfile.TemporaryDirectory() as folder:
        large, wide = str(Path(folder) / "large"), str(Path(folder) / "wide")
        for predictor in (*PREDICTORS, "auto"):
            found["fit"].append(alone("fit", large, predictor, *fit_size))
        alone("fit", wide, "auto", *served_size)
        found["serve"] = [alone("serve", wide), alone("serve", large)]
    return found


def alone(*arguments: str | int) -> dict[str, Any]:
    """What this module measures in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.routing_parts.scale", *map(str, arguments)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


if __name__ == "__main__":
    print(json.dumps({"fit": fit, "serve": serve}[sys.argv[1]](*sys.argv[2:])))
