"""`EccosSelector`: a LlamaIndex selector that sends each query to the tool whose model is the best choice for it."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from llama_index.core.base.base_selector import BaseSelector, SelectorResult, SingleSelection
from llama_index.core.indices.base import BaseIndex
from llama_index.core.llms import LLM
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.schema import QueryBundle
from llama_index.core.tools import QueryEngineTool, ToolMetadata

from eccos_integrations import ConfigError, Decision, Policy, Router
from eccos_integrations.serving.dispatch import Dispatcher, Options
from llamaindex_eccos.decisions import PLANNED
from llamaindex_eccos.events import announce


class EccosSelectorResult(SelectorResult):
    """The tool that was selected, and the decision behind it: `response.metadata["selector_result"]` of an engine.

    Attributes:
        model: That the tool is bound to.
        decision_id: Name to give `router.feedback` by.
        quality: Forecast.
        cost_usd: Forecast.
        floor_met: Whether the policy's floor holds.
    """

    model: str
    decision_id: str
    quality: float
    cost_usd: float
    floor_met: bool


class EccosSelector(BaseSelector):
    """Selects one of the tools of a `RouterQueryEngine` or a `RouterRetriever`, by quality and cost within the limits.

    Every tool is bound to one model of the router: an engine by the LLM it asks, or a whole pipeline that has its own
    quality and cost in the outcome table the router was fitted on, under its own name. No LLM is called to select.

    Queries that are selected for at the same time are decided together, in a window of the dispatcher. What a tool does
    afterwards is not seen from here, so a selection stands for one call: its request, and all the tokens and USD that
    are reserved for one, count at once; how long it lasts, and whether it fails, is not known. So `max_concurrency`
    is kept within a window only. A tool that calls models through the same dispatcher is counted once more there.

    Within `aquery_batch` each query goes to the tool of the model that the plan gave it.

    Args:
        router: A fitted router.
        policy: What must hold, default the router's own policy.
        bindings: The model of each tool, by the tool's name. Default: the tools are named as their models.
        dispatcher: Keeps the limits; default the one that all of the router's wrappers share.

    Raises:
        ConfigError: A binding is to no model of the router, or the dispatcher is another router's.

    Example:
        >>> from eccos_integrations import OutcomeTable, Router
        >>> cost_usd = [[1e-4, 1e-3], [1e-4, 1e-3]]
        >>> table = OutcomeTable(["a", "b"], ["2+2?", "prove it"], ["small", "large"], [[1, 1], [1, 1]], cost_usd)
        >>> selector = EccosSelector(
        ...     Router.fit(table, predictor="prior"), bindings={"notes": "small", "books": "large"}
        ... )
        >>> tools = [ToolMetadata("Everything.", name="books"), ToolMetadata("The essentials.", name="notes")]
        >>> selected = selector.select(tools, "3+3?")
        >>> selected.ind, selected.model
        (1, 'small')
    """

    def __init__(
        self,
        router: Router,
        policy: Policy | None = None,
        bindings: Mapping[str, str] | None = None,
        dispatcher: Dispatcher | None = None,
    ) -> None:
        if policy is not None:
            policy.check_models(router.models)
        if dispatcher is not None and dispatcher.router is not router:
            raise ConfigError("dispatcher: it is another router's; give Dispatcher(router) of the same router")
        for tool, model in (bindings or {}).items():
            if model not in router.models:
                raise ConfigError(f"bindings: {tool!r} is bound to {model!r}; give one of the router's {router.models}")
        self.router = router
        self.policy = policy
        self.bindings = None if bindings is None else dict(bindings)
        self.dispatcher = Dispatcher.shared(router) if dispatcher is None else dispatcher

    def _select(self, choices: Sequence[ToolMetadata], query: QueryBundle) -> EccosSelectorResult:
        models = self._models(choices)
        with suppress(_CalledElsewhere), self.dispatcher.ticket(query.query_str, **self._options(models)) as ticket:
            raise _CalledElsewhere
        return _result(ticket.decision, ticket.model, models)

    async def _aselect(self, choices: Sequence[ToolMetadata], query: QueryBundle) -> EccosSelectorResult:
        models, dispatcher = self._models(choices), self.dispatcher
        with suppress(_CalledElsewhere):
            async with dispatcher.aticket(query.query_str, **self._options(models)) as ticket:
                raise _CalledElsewhere
        return _result(ticket.decision, ticket.model, models)

    def _get_prompts(self) -> dict[str, Any]:
        return {}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        pass

    def _options(self, models: list[str]) -> Options:
        options = Options(policy=self.policy, candidates=models)
        plan = PLANNED.get()
        if plan is not None and list(plan.forecast.models) == self.router.models:
            options |= Options(decision=plan.decision, forecast=plan.forecast)
        return options

    def _models(self, choices: Sequence[ToolMetadata]) -> list[str]:
        """The model of each tool.

        Raises:
            ConfigError: A tool is bound to none, or two are bound to one.
        """
        models: list[str] = []
        for tool in choices:
            if tool.name is None:
                raise ConfigError("tools: one has no name; give ToolMetadata(..., name=...): the name of one of the "
                                  f"router's {self.router.models}, or one that is in bindings")  # fmt: skip
            model = tool.name if self.bindings is None else self.bindings.get(tool.name)
            if model not in self.router.models:
                raise ConfigError(f"tools: {tool.name!r} is bound to no model; name it as one of the router's "
                                  f"{self.router.models}, or give bindings={{{tool.name!r}: one of them}}")  # fmt: skip
            if model in models:
                other = choices[models.index(model)].name
                raise ConfigError(f"tools: {other!r} and {tool.name!r} are both bound to {model!r}, so nothing tells "
                                  "them apart; bind each to a model of its own")  # fmt: skip
            models.append(model)
        if not models:
            raise ConfigError("tools: there are none; give at least one")
        return models


def build_query_engine_tools(index: BaseIndex[Any], llms: Mapping[str, LLM], **settings: Any) -> list[QueryEngineTool]:
    """One query engine over the same index for each LLM, as a tool that has the LLM's name: for an `EccosSelector`.

    Args:
        index: What they all search.
        llms: By name: the names of the router's models.
        **settings: Of `index.as_query_engine`: `similarity_top_k`, `response_mode`, ...

    Raises:
        ConfigError: There are none, or one of them is not a LlamaIndex LLM.

    Example:
        >>> from llama_index.core import SummaryIndex
        >>> from llama_index.core.llms import MockLLM
        >>> tools = build_query_engine_tools(SummaryIndex([]), {"small": MockLLM(), "large": MockLLM()})
        >>> [tool.metadata.name for tool in tools]
        ['small', 'large']
    """
    if not llms:
        raise ConfigError("llms: there are none; give at least one, by the name of its model")
    for name, llm in llms.items():
        if not isinstance(llm, LLM):  # its value may hold a key: never shown
            raise ConfigError(f"llms: {name!r} is a {type(llm).__name__}; give a llama_index.core.llms.LLM")
    return [
        QueryEngineTool.from_defaults(
            index.as_query_engine(llm=llm, **settings), name=name, description=f"Answers with {name}."
        )
        for name, llm in llms.items()
    ]


class _CalledElsewhere(BaseException):
    """Leaves a ticket's block as a cancelled call does: nobody tells how the call went, so it says nothing of it."""


def _result(decision: Decision, model: str, models: list[str]) -> EccosSelectorResult:
    announce(decision)
    return EccosSelectorResult(
        selections=[SingleSelection(index=models.index(model), reason=decision.reason)],
        model=model,
        decision_id=decision.id,
        quality=decision.quality,
        cost_usd=decision.cost_usd,
        floor_met=decision.floor_met,
    )
