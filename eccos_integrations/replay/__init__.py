"""A recorded outcome table played back as models: for demos, notebooks and tests, with no key and no network.

`replay` gives each model as a function, `ReplayProvider` as a provider with latency, limits and faults, `ReplayServer`
puts that behind the HTTP interface of OpenAI.
"""

from eccos_integrations.replay.faults import CutError, Faults, MalformedError, ReplayError
from eccos_integrations.replay.log import Entry
from eccos_integrations.replay.models import (
    AnswerType,
    Reference,
    Replay,
    ReplayModel,
    load_sample_references,
    replay,
    wrong_answer,
)
from eccos_integrations.replay.playing import Answer, Chunk
from eccos_integrations.replay.provider import ReplayProvider
from eccos_integrations.replay.server import ReplayServer

__all__ = [
    "Answer",
    "AnswerType",
    "Chunk",
    "CutError",
    "Entry",
    "Faults",
    "MalformedError",
    "Reference",
    "Replay",
    "ReplayError",
    "ReplayModel",
    "ReplayProvider",
    "ReplayServer",
    "load_sample_references",
    "replay",
    "wrong_answer",
]
