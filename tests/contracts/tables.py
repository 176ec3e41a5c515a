"""Small outcome tables and a text encoder of a few lines, for the suites."""

import numpy as np

from eccos_integrations import Model, ModelPool, OutcomeTable
from eccos_integrations.outcomes import MEASURES

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
    kept = {name: getattr(table, name) for name in MEASURES if name not in measures}
    return OutcomeTable(table.query_ids, table.queries, table.models, **kept)


def points(seed, n, dimensions=8):
    """Random unit vectors, and an encoder that finds them by the number in the text."""
    vectors = np.random.default_rng(seed).normal(size=(n, dimensions))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors, lambda texts: vectors[[int(text) for text in texts]]


def numbered(quality, cost_usd=None, start=0):
    """Outcomes of queries that are numbers of equal length; one USD a call unless given."""
    n, m = quality.shape
    cost_usd = np.ones((n, m)) if cost_usd is None else cost_usd
    texts = [f"{i:04}" for i in range(start, start + n)]
    return OutcomeTable(
        [f"q{text}" for text in texts], texts, [f"m{j}" for j in range(m)], quality=quality, cost_usd=cost_usd
    )


def with_gaps(table, model, n):
    """The table with the outcomes of one model on its first n queries only."""
    seen = np.ones(table.quality.shape)
    seen[n:, table.models.index(model)] = np.nan
    measures = {name: getattr(table, name) * seen for name in MEASURES}
    return OutcomeTable(table.query_ids, table.queries, table.models, **measures)


def twice(table):
    """Every outcome of the table seen two times."""
    measures = {name: np.tile(getattr(table, name), (2, 1)) for name in MEASURES}
    ids = [*table.query_ids, *(f"{name} again" for name in table.query_ids)]
    return OutcomeTable(ids, table.queries * 2, table.models, **measures)
