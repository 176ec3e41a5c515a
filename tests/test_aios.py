"""AIOS' contract: positions in its list of models, whatever the candidates, from any number of threads."""

import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from eccos_integrations import ConfigError, Model, ModelPool, NoCapacityError, Policy, Router
from eccos_integrations.aios import EccosRouting
from tests.conftest import make_table

MODELS = ["tiny", "small", "medium", "large"]


def configs(*names):
    return [SimpleNamespace(name=name, backend="ollama") for name in names]


def asked(text):
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]


def chosen(*names):
    return [{"name": name, "backend": "ollama"} for name in names]


@pytest.fixture(scope="module")
def router():
    return Router.fit(make_table(seed=0, per_task=20), policy=Policy(min_quality=0.5), predictor="retrieval")


@pytest.fixture
def routing(router):
    return EccosRouting(configs(*reversed(MODELS)), performance_requirement=0.5, router=router)


@pytest.fixture(scope="module")
def queries():
    return make_table(seed=1, per_task=50).queries


def test_answers_are_positions_in_the_list_of_models(routing, router, queries):
    found = routing.get_model_idxs([[]] * len(queries), [asked(query) for query in queries])
    names = [routing.llm_configs[at].name for at in found]
    assert names == router.plan(queries, Policy(min_quality=0.5)).models
    assert len(set(names)) > 1


def test_one_request_and_none(routing):
    assert routing.get_model_idxs([], []) == []
    assert routing.get_model_idxs([chosen("large")], [asked("hello")]) == [0]


def test_each_request_goes_to_one_of_its_own_candidates(routing, queries):
    lists = [chosen(MODELS[k % 4], MODELS[(k + 1) % 4]) for k in range(len(queries))]
    found = routing.get_model_idxs(lists, [asked(query) for query in queries])
    assert all(routing.llm_configs[at].name in {each["name"] for each in names}
               for at, names in zip(found, lists, strict=True))  # fmt: skip


def test_lists_of_different_lengths_are_a_value_error(routing):
    with pytest.raises(ValueError, match="1 and 2"):
        routing.get_model_idxs([[]], [asked("a"), asked("b")])


@pytest.mark.parametrize(
    ("names", "words"), [(("tiny", "nano"), r"\['nano'\] not in llm_configs"), (("new",), r"no forecast for \['new'\]")]
)
def test_a_candidate_that_cannot_be_is_named(routing, names, words):
    routing.llm_configs = [*routing.llm_configs, *configs("new")]
    with pytest.raises(ConfigError, match=words):
        routing.get_model_idxs([chosen(*names)], [asked("hello")])


def test_the_list_of_models_may_be_replaced_at_any_time(routing):
    routing.llm_configs = configs("small", "large")
    assert routing.get_model_idxs([chosen("large")], [asked("hello")]) == [1]
    assert routing.get_model_idxs([[]], [asked("hello")])[0] in {0, 1}
    routing.llm_configs = configs("nobody")
    with pytest.raises(ConfigError, match=r"none of \['nobody'\] can be forecast"):
        routing.get_model_idxs([[]], [asked("hello")])


def test_a_capacity_is_never_exceeded_and_too_many_requests_are_an_error(router, queries):
    limits = dict.fromkeys(MODELS, 30)
    routing = EccosRouting(configs(*MODELS), router=router, policy=Policy(min_quality=0.5, capacity=limits))
    found = routing.get_model_idxs([[]] * 100, [asked(query) for query in queries[:100]])
    assert max(found.count(at) for at in range(4)) <= 30
    with pytest.raises(NoCapacityError, match="have no place"):
        routing.get_model_idxs([chosen("tiny")] * 40, [asked(query) for query in queries[:40]])


def test_eight_threads_at_once_get_what_one_gets(routing, queries):
    requests = [[]] * len(queries), [asked(query) for query in queries]
    alone = routing.get_model_idxs(*requests)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda _: routing.get_model_idxs(*requests), range(8))) == [alone] * 8


def test_it_learns_from_the_records_that_aios_reads(tmp_path):
    records = [
        {"query": f"question {k}", "input_token_length": 10,
         "outputs": [{"model_name": name, "correctness": k % 2, "output_token_length": 20, "prediction": "x"}
                     for name in ("a", "b")]}
        for k in range(20)
    ]  # fmt: skip
    (tmp_path / "bootstrap.json").write_text(json.dumps(records))
    with pytest.raises(ConfigError, match="price"):  # costs are never taken for zero
        EccosRouting(configs("a", "b"), tmp_path / "bootstrap.json")
    dear = {"input_usd_per_million_tokens": 1, "output_usd_per_million_tokens": 2}
    cheap = {"input_usd_per_million_tokens": 0.1, "output_usd_per_million_tokens": 0.2}
    pool = ModelPool([Model(name="a", **dear), Model(name="b", **cheap)])
    routing = EccosRouting(configs("a", "b"), tmp_path / "bootstrap.json", 0.4, 5, pool=pool)
    assert routing.get_model_idxs([[]] * 2, [asked("question 1"), asked("question 2")]) == [1, 1]


@pytest.mark.parametrize(
    ("strategy", "text"),
    [("last_user", "and 3 + 3?"), ("concat_users", "2 + 2?\n\nand 3 + 3?"),
     ("concat_all", "SYSTEM: Be brief.\nUSER: 2 + 2?\nASSISTANT: 4\nUSER: and 3 + 3?")],
)  # fmt: skip
def test_the_query_of_a_request(router, strategy, text, monkeypatch):
    seen = []
    plain = Router.plan
    monkeypatch.setattr(
        Router, "plan", lambda self, texts, *args, **kw: seen.append(texts) or plain(self, texts, *args, **kw)
    )
    messages = [*asked("2 + 2?"), {"role": "assistant", "content": "4"},
                {"role": "user", "content": [{"type": "text", "text": "and 3 + 3?"}]}]  # fmt: skip
    EccosRouting(configs(*MODELS), router=router, strategy=strategy).get_model_idxs([[]], [messages])
    assert seen == [[text]]


def test_wrong_arguments_are_named(router):
    with pytest.raises(ConfigError, match="strategy='summarize'"):
        EccosRouting(configs("tiny"), router=router, strategy="summarize")
    with pytest.raises(ConfigError, match="bootstrap_url"):
        EccosRouting(configs("tiny"))
