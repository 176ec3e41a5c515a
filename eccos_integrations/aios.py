"""A routing strategy for AIOS: its requests decided jointly, under a quality requirement and the models' limits.

Source of the contract: `SmartRouting` in agiresearch/AIOS, aios/llm_core/routing.py.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from eccos_integrations.errors import ConfigError, NoCapacityError
from eccos_integrations.outcomes import OutcomeTable
from eccos_integrations.policy import Policy
from eccos_integrations.pool import ModelPool
from eccos_integrations.predictors import RetrievalPredictor
from eccos_integrations.router import Router

Messages = Sequence[Mapping[str, Any]]
Strategy = Literal["last_user", "concat_users", "concat_all"]


class EccosRouting:
    """Gives every request of AIOS one of its candidate models: all of a call in one joint solve.

    Args:
        llm_configs: Objects with a `name`, as AIOS has them. May be set anew at any time, and grow.
        bootstrap_url: File of past outcomes to learn from, where there is no router: QAServe JSON, Parquet, CSV or
            JSON lines. Nothing is downloaded.
        performance_requirement: Mean quality to reach, in 0..1.
        n_similar: Past queries that a forecast looks at, where it is learnt from a file.
        router: Fitted already; then neither file nor pool is looked at.
        pool: Prices of the models in the file, which records no costs.
        policy: What must hold; default the requirement alone. Its `capacity` limits what a model gets in one call.
        strategy: What of a request's messages is the query: `"last_user"`, its last user message; `"concat_users"`,
            all of them; `"concat_all"`, all messages with their roles.

    Raises:
        ConfigError: An argument is out of range, or there is neither a router nor a file.
        DataError: The file cannot be read.

    Example:
        >>> from types import SimpleNamespace
        >>> from eccos_integrations import load_sample
        >>> router = Router.fit(load_sample().take(range(60)), predictor="prior")
        >>> configs = [SimpleNamespace(name=name, backend="ollama") for name in router.models]
        >>> routing = EccosRouting(configs, performance_requirement=0.8, router=router)
        >>> routing.get_model_idxs([[{"name": router.best}]], [[{"role": "user", "content": "2 + 2?"}]]) == [
        ...     router.models.index(router.best)
        ... ]
        True
    """

    def __init__(
        self,
        llm_configs: Sequence[Any],
        bootstrap_url: str | Path | None = None,
        performance_requirement: float = 0.7,
        n_similar: int = 16,
        *,
        router: Router | None = None,
        pool: ModelPool | None = None,
        policy: Policy | None = None,
        strategy: Strategy = "last_user",
    ) -> None:
        if strategy not in get_args(Strategy):
            raise ConfigError(f"strategy={strategy!r}: give one of {list(get_args(Strategy))}")
        if router is None and bootstrap_url is None:
            raise ConfigError("bootstrap_url: give a file of past outcomes, or router=")
        self.policy = Policy(min_quality=performance_requirement) if policy is None else policy
        if router is None:
            assert bootstrap_url is not None
            predictor = RetrievalPredictor(k=n_similar)
            router = Router.fit(OutcomeTable.read(bootstrap_url), pool, self.policy, predictor)
        self.router = router
        self.policy.check_models(router.models)
        self.strategy = strategy
        self.llm_configs = llm_configs

    def __repr__(self) -> str:
        return f"EccosRouting({len(self.llm_configs)} models, strategy={self.strategy!r})"

    def get_model_idxs(
        self, selected_llm_lists: Sequence[Sequence[Mapping[str, Any]]], queries: Sequence[Messages]
    ) -> list[int]:
        """Positions in `llm_configs`, one for each request.

        Args:
            selected_llm_lists: Candidates of each request, by `"name"`; none: all that can be forecast.
            queries: Messages of each request.

        Raises:
            ConfigError: The two are not equally many; or a candidate is not in `llm_configs` or cannot be forecast, and
                is named. As AIOS expects, it is a ValueError.
            NoCapacityError: The policy's capacity leaves no place for a request.
        """
        if len(selected_llm_lists) != len(queries):
            raise ConfigError(f"selected_llm_lists, queries: {len(selected_llm_lists)} and {len(queries)}; give one "
                              "list of candidates for each request")  # fmt: skip
        if not queries:
            return []
        models, configs = self.router.models, list(self.llm_configs)
        position = {config.name: at for at, config in reversed(list(enumerate(configs)))}
        known = [name for name in models if name in position]
        allowed = [[candidate["name"] for candidate in chosen] or known for chosen in selected_llm_lists]
        self._check({name for names in allowed for name in names}, position)
        if not known:
            raise ConfigError(f"llm_configs: none of {list(position)} can be forecast; the router knows {models}")
        forbidden = np.array([[name not in names for name in models] for names in map(set, allowed)])
        texts = [QUERIES[self.strategy](messages) for messages in queries]
        plan = self.router.plan(texts, self.policy, forbidden=forbidden)
        if unplaced := plan.models.count(None):
            raise NoCapacityError(f"{unplaced} of {len(queries)} requests have no place: the policy's capacity is used "
                                  "up, or no candidate's context window is long enough")  # fmt: skip
        return [position[str(name)] for name in plan.models]

    def _check(self, names: set[str], position: Mapping[str, int]) -> None:
        if unknown := sorted(names - position.keys()):
            raise ConfigError(f"selected_llm_lists: {unknown} not in llm_configs, which has {list(position)}")
        if unforeseen := sorted(names - set(self.router.models)):
            raise ConfigError(f"selected_llm_lists: there is no forecast for {unforeseen}; add them by "
                              "router.add_model, or fit on outcomes that have them")  # fmt: skip


def _last_user(messages: Messages) -> str:
    said = [_text(message) for message in messages if message.get("role") == "user"]
    return said[-1] if said else _concat_all(messages)


def _concat_users(messages: Messages) -> str:
    return "\n\n".join(_text(message) for message in messages if message.get("role") == "user")


def _concat_all(messages: Messages) -> str:
    return "\n".join(f"{str(message.get('role', '')).upper()}: {_text(message)}" for message in messages)


def _text(message: Mapping[str, Any]) -> str:
    """The words of a message, whose content may come in parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part["text"]) for part in content if isinstance(part, Mapping) and "text" in part)
    return "" if content is None else str(content)


QUERIES: dict[str, Callable[[Messages], str]] = {
    "last_user": _last_user, "concat_users": _concat_users, "concat_all": _concat_all,
}  # fmt: skip
