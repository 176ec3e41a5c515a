"""The columns of a long table, whatever file it is in."""

from typing import Any

Row = dict[str, Any]  # one (query, model): the columns below, a missing one means not observed

TEXT_COLUMNS = ("query_id", "query", "model")
# Column on disk -> (name in the table, how many disk units make one of the table's).
NUMBER_COLUMNS = {
    "correctness": ("quality", 1.0),
    "cost_usd": ("cost_usd", 1.0),
    "input_tokens": ("input_tokens", 1.0),
    "output_tokens": ("output_tokens", 1.0),
    "latency_ms": ("latency_s", 1000.0),
}
REQUIRED = (*TEXT_COLUMNS, "correctness")
IGNORED = {"dataset", "split", "token_source"}  # known, and of no use here
