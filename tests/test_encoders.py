from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from eccos_integrations import ArtifactError, ConfigError
from eccos_integrations.encoders import (
    ENCODERS,
    CallableEncoder,
    LexicalEncoder,
    SentenceTransformerEncoder,
    make_encoder,
)
from tests.contracts.encoders import HISTORY, NEW, EncoderContract, SavedEncoderContract
from tests.contracts.processes import run_python
from tests.contracts.tables import embed


class TestLexical(SavedEncoderContract):
    def make(self):
        return LexicalEncoder()


class TestLexicalOfFewDimensions(SavedEncoderContract):
    def make(self):
        return LexicalEncoder(dimensions=2)


class TestCallable(EncoderContract):
    def make(self):
        return CallableEncoder(embed)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A sentence-transformers model of eight words and four dimensions, in a folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = ["[UNK]", "add", "two", "numbers", "prove", "theorem", "number", "the"]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    weights = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu").save(str(folder))
    return folder


class TestSentenceTransformer(SavedEncoderContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tiny_model):
        self.folder = tiny_model

    def make(self):
        return SentenceTransformerEncoder(self.folder)


def near(encoder, *texts):
    vectors = encoder.encode(list(texts))
    return vectors[0] @ vectors[1:].T


def test_lexical_puts_similar_texts_closer_than_unrelated_ones():
    encoder = LexicalEncoder().fit(HISTORY)
    similar, unrelated = near(encoder, "prove that theorem", "the proof of a theorem", "add two numbers")
    assert similar > unrelated + 0.2


def test_lexical_hears_no_case_but_hears_the_order_of_words():
    encoder = LexicalEncoder().fit([*HISTORY, "dog bites man", "man bites dog"])
    shouted, turned = near(encoder, "dog bites man", "DOG BITES MAN", "man bites dog")
    assert shouted == pytest.approx(1)
    assert turned < 0.99


def test_lexical_knows_nothing_of_words_it_never_met():
    assert not LexicalEncoder().fit(HISTORY).encode(["žluťoučký kůň", "", "  "]).any()


def test_lexical_keeps_at_most_the_dimensions_asked_for():
    texts = [f"word{i} word{i + 1} word{i % 7}" for i in range(300)]
    assert LexicalEncoder(dimensions=16).fit(texts).encode(texts).shape == (300, 16)


@pytest.mark.parametrize("texts", [[], [""], ["same"] * 60, ["?!"] * 3, [f"unique{i}" for i in range(60)]])
def test_lexical_fits_any_history(texts):
    vectors = LexicalEncoder().fit(texts).encode([*texts, "other"])
    lengths = np.linalg.norm(vectors, axis=1)
    assert np.all(np.isclose(lengths, 1) | (lengths == 0))


def test_lexical_is_the_same_in_every_process():
    code = """
from eccos_integrations.encoders import LexicalEncoder
from tests.contracts.encoders import HISTORY, NEW
print(LexicalEncoder().fit(HISTORY).encode(NEW).round(9).tolist())
"""
    assert run_python(code) == f"{LexicalEncoder().fit(HISTORY).encode(NEW).round(9).tolist()}\n"


@pytest.mark.parametrize("dimensions", [0, -1])
def test_lexical_refuses_to_have_no_dimensions(dimensions):
    with pytest.raises(ConfigError, match="dimensions"):
        LexicalEncoder(dimensions=dimensions)


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


def test_only_so_many_texts_are_remembered():
    asked = Counter()

    def function(texts):
        asked.update(texts)
        return embed(texts)

    encoder = CallableEncoder(function)
    encoder.remembered = 3
    encoder.encode(list("abcde"))
    encoder.encode(["e"])
    encoder.encode(["a"])
    assert (asked["a"], asked["e"], len(encoder._recent)) == (2, 1, 3)


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


def test_an_encoder_is_found_by_what_the_user_gives(tiny_model):
    lexical = LexicalEncoder(dimensions=8)
    assert make_encoder(lexical) is lexical
    assert isinstance(make_encoder("lexical"), LexicalEncoder)
    assert isinstance(make_encoder(embed), CallableEncoder)
    assert make_encoder("some/model").settings() == {"model": "some/model"}
    assert make_encoder(tiny_model).settings() == {"model": str(tiny_model)}
    assert set(ENCODERS) == {"lexical", "callable", "sentence-transformers"}


@pytest.mark.parametrize("encoder", [None, 3, ["lexical"]])
def test_what_is_no_encoder_is_refused(encoder):
    with pytest.raises(ConfigError, match=f"encoder: {type(encoder).__name__}"):
        make_encoder(encoder)
