"""Small outcome tables and a text encoder of a few lines, for the suites."""

import numpy as np

from eccos_integrations import Model, ModelPool, OutcomeTable

SUBJECTS = ["sum of two numbers", "proof about primes", "capital of a country", "bug in a short program"]
# What people and programs really send.
ODD_TEXTS = {
    "empty": "",
    "blank": " \n\t ",
    "punctuation": "?!... --- ()",
    "not Latin": "東京の人口はどのくらいですか。 Сколько?",
    "right to left": "كم عدد سكان القاهرة؟",
    "emoji": "🤖🎉👩‍👩‍👧",
    "lone surrogate": "broken \ud800 text \udfff",
    "NUL": "a\x00b",
    "a megabyte": "lorem ipsum " * 87_000,
}


def embed(texts):
    """A vector of character counts: no fitting, no weights, the same on every machine."""
    counts = np.zeros((len(texts), 16))
    for row, text in enumerate(texts):
        for character in text[:200]:
            counts[row, ord(character) % 16] += 1
    return counts + 0.1


def make_table(n=40, models=("large", "medium", "small"), seed=0, observed=1.0):
    """Outcomes of models with tokens and costs; a share of the cells is unobserved."""
    rng = np.random.default_rng(seed)
    shape = (n, len(models))
    seen = np.where(rng.random(shape) < observed, 1.0, np.nan)
    input_tokens, output_tokens = rng.integers(20, 60, shape), rng.integers(50, 500, shape)
    return OutcomeTable(
        query_ids=[f"q{i:03}" for i in range(n)],
        queries=[f"{SUBJECTS[i % 4]}, case {i}" for i in range(n)],
        models=list(models),
        quality=seen * (rng.random(shape) < np.linspace(0.9, 0.4, len(models))),
        cost_usd=seen * (input_tokens + 4 * output_tokens) * np.linspace(10, 1, len(models)) / 1e6,
        input_tokens=seen * input_tokens,
        output_tokens=seen * output_tokens,
    )


def priced(*models, usd=2.0):
    """A pool with one price for all."""
    return ModelPool(
        [Model(name=name, input_usd_per_million_tokens=usd, output_usd_per_million_tokens=4 * usd) for name in models]
    )


def without(table, *measures):
    """The table as if these measures had never been recorded."""
    names = {"quality", "cost_usd", "input_tokens", "output_tokens", "latency_s"} - set(measures)
    kept = {name: getattr(table, name) for name in names}
    return OutcomeTable(table.query_ids, table.queries, table.models, **kept)
