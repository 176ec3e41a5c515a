"""What a runnable over named members takes and gives, as they do, and how it is drawn."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from langchain_core.runnables.graph import Graph
from langchain_core.runnables.utils import ConfigurableFieldSpec, Input, Output, get_unique_config_specs
from pydantic import BaseModel, ConfigDict
from typing_extensions import override

from langchain_eccos.decisions import SPECS


class Branches(RunnableSerializable[Input, Output]):
    """A runnable that gives each input to one of its members."""

    members: Mapping[str, Runnable[Any, Any]]
    """The runnables by name: exactly the models of the router."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")  # a misspelt policy is no policy

    @property
    @override
    def InputType(self) -> Any:
        """That of the members, where it is the same for all."""
        return _same([member.InputType for member in self.members.values()])

    @property
    @override
    def OutputType(self) -> Any:
        """That of the members, where it is the same for all."""
        return _same([member.OutputType for member in self.members.values()])

    @override
    def get_input_schema(self, config: RunnableConfig | None = None) -> type[BaseModel]:
        """That of the first member, where all take the same type."""
        first = next(iter(self.members.values()))
        schema = super().get_input_schema(config) if self.InputType is Any else first.get_input_schema(config)
        return cast("type[BaseModel]", schema)

    @override
    def get_output_schema(self, config: RunnableConfig | None = None) -> type[BaseModel]:
        """That of the first member, where all give the same type."""
        first = next(iter(self.members.values()))
        schema = super().get_output_schema(config) if self.OutputType is Any else first.get_output_schema(config)
        return cast("type[BaseModel]", schema)

    @property
    @override
    def config_specs(self) -> list[ConfigurableFieldSpec]:
        """The settings of one call, and those of the members."""
        return get_unique_config_specs([*SPECS, *(spec for m in self.members.values() for spec in m.config_specs)])

    @override
    def get_graph(self, config: RunnableConfig | None = None) -> Graph:
        """One branch for each member, labelled by its name."""
        graph = Graph()
        begin = graph.add_node(self.get_input_schema(config))
        fork = graph.add_node(self)
        end = graph.add_node(self.get_output_schema(config))
        graph.add_edge(begin, fork)
        for name, member in self.members.items():
            branch = member.get_graph(config)
            branch.trim_first_node()
            branch.trim_last_node()
            first, last = graph.extend(branch, prefix=name)
            graph.add_edge(fork, first or end, name, conditional=True)
            if last is not None:
                graph.add_edge(last, end)
        return graph


def _same(kinds: Sequence[Any]) -> Any:
    return kinds[0] if all(kind == kinds[0] for kind in kinds) else Any
