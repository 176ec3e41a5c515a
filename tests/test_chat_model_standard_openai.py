"""LangChain's own suite for chat models, over a router of real OpenAI clients that ask the replay server.

Passed over, and why:

| test | why |
|---|---|
| test_pdf_inputs, test_audio_inputs, test_image_inputs | the suite fetches its files from the internet |
| test_image_tool_message, test_pdf_tool_message, test_anthropic_inputs | as above |
| test_stream_time | wants a recording of a provider |
"""

import math
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from eccos_integrations import Policy, Router
from eccos_integrations.replay.provider import ReplayProvider
from eccos_integrations.replay.server import ReplayServer
from eccos_integrations.serving.dispatch import Dispatcher
from langchain_eccos.chat_model import ChatEccos
from tests.conftest import PRICES, make_table

TABLE = make_table(seed=0, per_task=20)
ROUTER = Router.fit(TABLE, policy=Policy(), predictor="prior")


@pytest.fixture(scope="module", autouse=True)
def url() -> Iterator[str]:
    with ReplayServer(ReplayProvider(TABLE, speed=math.inf)) as server:
        TestOverReplayServer.url = server.url
        yield server.url


class TestOverReplayServer(ChatModelIntegrationTests):
    url = ""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatEccos

    @property
    def chat_model_params(self) -> dict[str, Any]:
        members = {
            name: ChatOpenAI(model=name, base_url=self.url, api_key="none", max_retries=1, stream_usage=True)
            for name in PRICES
        }
        return {"members": members, "router": ROUTER, "dispatcher": Dispatcher(ROUTER, window_s=0)}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "large"
