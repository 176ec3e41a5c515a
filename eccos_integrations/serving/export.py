"""A feedback log as an outcome table."""

from collections.abc import Iterable

import numpy as np

from eccos_integrations.errors import ConfigError, DataError
from eccos_integrations.outcomes import MEASURES, OutcomeTable
from eccos_integrations.serving.sqlite import LogFile, digest, secret

OUTCOMES = """
    WITH observed AS (
        SELECT decision, model, NULL AS quality, cost_usd, input_tokens, output_tokens, latency_s
        FROM usage WHERE outcome = 'ok'
        UNION ALL
        SELECT decision,
            CASE WHEN EXISTS (SELECT 1 FROM usage WHERE usage.decision = label.decision)
            THEN (SELECT model FROM usage WHERE usage.decision = label.decision AND outcome = 'ok'
                ORDER BY number DESC LIMIT 1)
            ELSE (SELECT model FROM decision WHERE decision.number = label.decision) END,
            quality, NULL, NULL, NULL, NULL
        FROM label WHERE number IN (SELECT max(number) FROM label GROUP BY decision))
    SELECT query, observed.model, avg(observed.quality), avg(observed.cost_usd), avg(observed.input_tokens),
        avg(observed.output_tokens), avg(observed.latency_s)
    FROM observed JOIN decision ON decision.number = observed.decision WHERE observed.model IS NOT NULL
    GROUP BY query, observed.model ORDER BY min(decision.number), observed.model"""
TEXTS = "SELECT query, text, min(number) FROM decision WHERE text IS NOT NULL GROUP BY query"


def to_table(file: LogFile, queries: Iterable[str], unknown: str) -> OutcomeTable:
    """What `FeedbackLog.to_table` says."""
    if unknown not in {"raise", "drop", "digest"}:
        raise ConfigError(f"unknown: {unknown!r}; give 'raise', 'drop' or 'digest'")
    given = None if isinstance(queries, str) else list(queries)
    if given is None or not all(isinstance(text, str) for text in given):
        raise ConfigError("queries: give a list of strings")
    with file.reading() as connection:
        cells = connection.execute(OUTCOMES).fetchall()
        texts = {query: text.decode("utf-8", "surrogatepass") for query, text, _ in connection.execute(TEXTS)}
        key = secret(connection)
    texts = {digest(key, "query", text): text for text in given} | texts
    without = {query for query, *_ in cells} - texts.keys()
    if without and unknown == "raise":
        raise DataError(f"{len(without)} queries were logged without their text (store_text=False); give "
                        "queries=[...] that hold them, or unknown='drop' or 'digest'")  # fmt: skip
    if unknown == "drop":
        cells = [cell for cell in cells if cell[0] not in without]
    if not cells:
        raise DataError("no outcome was observed: log with used() and graded() first")
    rows = {query: row for row, query in enumerate(dict.fromkeys(cell[0] for cell in cells))}
    models = sorted({cell[1] for cell in cells})
    at = [rows[cell[0]] for cell in cells], [models.index(cell[1]) for cell in cells]
    measures = np.full((len(MEASURES), len(rows), len(models)), np.nan)
    measures[:, *at] = np.array([cell[2:] for cell in cells], dtype=np.float64).T
    return OutcomeTable(
        query_ids=[query.hex() for query in rows],
        queries=[texts.get(query, query.hex()) for query in rows],
        models=models,
        **dict(zip(MEASURES, measures, strict=True)),  # type: ignore[arg-type]  # no measure is called tasks
    )
