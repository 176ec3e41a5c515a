"""Tools and schemas bound to a router of chat models: kept as given, and bound to the member once it is chosen."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool

from langchain_eccos.abilities import SCHEMA, TOOLS

KEY = "__eccos_binding"  # among the arguments of a call; not "tools", which others look into


@dataclass(eq=False)
class ToolBinding:
    """What `bind_tools` was given.

    Args:
        tools: As given: every provider has a form of its own for them.
        arguments: The others.
    """

    tools: Sequence[Any]
    arguments: dict[str, Any]
    _bound: dict[int, tuple[BaseChatModel, Runnable[Any, Any]]] = field(default_factory=dict, init=False, repr=False)

    needs = TOOLS

    @cached_property
    def tokens(self) -> int:
        """About how many tokens the tools take in a prompt."""
        return sum(_tokens(tool) for tool in self.tools)

    def on(self, member: BaseChatModel, cap: int | None) -> Runnable[Any, Any]:
        """The member with the tools. The cap is an argument of the call."""
        if id(member) not in self._bound:  # to turn tools into a provider's form takes longer than to route
            self._bound[id(member)] = member, member.bind_tools(self.tools, **self.arguments)
        return self._bound[id(member)][1]


@dataclass(eq=False)
class SchemaBinding:
    """What `with_structured_output` was given.

    Args:
        schema: As given.
        arguments: The others.
    """

    schema: Any
    arguments: dict[str, Any]
    _bound: dict[tuple[int, int | None], tuple[BaseChatModel, Runnable[Any, Any]]] = field(
        default_factory=dict, init=False, repr=False
    )

    needs = SCHEMA

    @cached_property
    def tokens(self) -> int:
        """About how many tokens the schema takes in a prompt."""
        return _tokens(self.schema)

    def on(self, member: BaseChatModel, cap: int | None) -> Runnable[Any, Any]:
        """The member held to the schema, with the cap built in: such a chain may take no arguments at call time."""
        if (id(member), cap) not in self._bound:
            own = cap is not None and "max_tokens" in type(member).model_fields
            model = member.model_copy(update={"max_tokens": cap}) if own else member
            self._bound[id(member), cap] = member, model.with_structured_output(self.schema, **self.arguments)
        return self._bound[id(member), cap][1]


Binding = ToolBinding | SchemaBinding


def _tokens(tool: Any) -> int:
    try:
        written = json.dumps(convert_to_openai_tool(tool), ensure_ascii=False, default=str)
    except (KeyError, TypeError, ValueError):  # a form that only its provider knows
        written = str(tool)
    return len(written) // 4
