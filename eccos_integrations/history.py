"""What a history can teach: which models of a pool it covers, and which of them is best alone."""

import logging
from dataclasses import replace

import numpy as np

from eccos_integrations.errors import ConfigError
from eccos_integrations.outcomes import OutcomeTable, column_means, words
from eccos_integrations.pool import ModelPool

logger = logging.getLogger("eccos")


def best_single(table: OutcomeTable) -> str:
    """The model with the highest mean quality over queries every model answered; ties go to the cheaper.

    Where no query was answered by all, each model's own mean counts, and a warning says so.
    """
    common = np.flatnonzero(np.isfinite(table.quality).all(axis=1))
    if not len(common):
        logger.warning("no query was answered by every model; 'best' compares models on different queries")
        common = np.arange(len(table))
    quality = column_means(table.quality[common], unobserved=-1.0)
    cost = column_means(table.cost_usd, unobserved=np.inf)
    return table.models[int(np.lexsort((cost, -quality.round(12)))[0])]


def repriced(table: OutcomeTable, pool: ModelPool) -> OutcomeTable:
    """The table with every call whose tokens are known at the pool's prices, whatever it cost then.

    Args:
        table: Its columns are models of the pool.
        pool: The prices to come.
    """
    prices = ModelPool([pool[name] for name in table.models])
    cost = prices.cost_usd(table.input_tokens, table.output_tokens)
    return replace(table, cost_usd=np.where(np.isfinite(cost), cost, table.cost_usd))


def learnable(table: OutcomeTable, pool: ModelPool) -> OutcomeTable:
    """The pool's models of the table, if there is enough to learn from.

    Raises:
        ConfigError: Fewer than two models or texts, or a model whose cost cannot be known.
    """
    known = [name for name in pool.names if name in table.models]
    if not known:
        raise ConfigError(f"pool: none of {pool.names} is in the table, which has {table.models}")
    if len(pool) < 2:
        raise ConfigError(f"pool: {pool.names} is one model; routing needs at least two")
    table = table.select(known)
    answered = np.isfinite(table.quality).any(axis=1)
    table = table.take(np.flatnonzero(answered))  # the others teach nothing
    if len({words(text) for text in table.queries}) < 2:
        raise ConfigError(f"table: {len(table)} distinct query; learning needs at least two, a useful router hundreds")
    tokens_known = np.isfinite(table.output_tokens).any()
    for model in pool:
        column = table.models.index(model.name) if model.name in table.models else None
        cost_known = column is not None and bool(np.isfinite(table.cost_usd[:, column]).any())
        if not cost_known and not (model.has_prices and tokens_known):
            lacks = "output_tokens were observed to apply its prices to" if model.has_prices else "price is known"
            raise ConfigError(f"cost_usd: model {model.name!r} has no observed cost and no {lacks}; "
                              "add one of them to the table or the pool")  # fmt: skip
    return table
