"""LangChain's own suite for chat models, over a router of fakes.

Passed over, and why:

| test | why |
|---|---|
| test_init_from_env | a router has no settings of its own in the environment: its members read theirs |
| test_serdes | members and routers are not serialised as LangChain does it; pickling is tested of its own |
| test_json_mode | the fake has no such mode; run over real clients in `test_chat_model_standard_openai.py` |
| test_pdf_inputs, test_audio_inputs, test_image_inputs | the suite fetches its files from the internet |
| test_image_tool_message, test_pdf_tool_message, test_anthropic_inputs | as above |
| test_stream_time | wants a recording of a provider |
"""

from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from eccos_integrations import Policy, Router
from eccos_integrations.serving.dispatch import Dispatcher
from langchain_eccos.chat_model import ChatEccos
from tests.conftest import PRICES, make_table
from tests.fake_chat import FakeChat

ROUTER = Router.fit(make_table(seed=0, per_task=20), policy=Policy(), predictor="prior")


class OverFakes:
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatEccos

    @property
    def chat_model_params(self) -> dict[str, Any]:
        members = {name: FakeChat(model_name=name) for name in PRICES}
        return {"members": members, "router": ROUTER, "dispatcher": Dispatcher(ROUTER, window_s=0)}

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "large"


class TestUnit(OverFakes, ChatModelUnitTests):
    pass


class TestIntegration(OverFakes, ChatModelIntegrationTests):
    pass
