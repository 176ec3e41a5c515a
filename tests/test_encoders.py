"""Encoders by name, and several at once."""

import numpy as np
import pytest

from eccos_integrations import ArtifactError, ConfigError, Policy, Router
from eccos_integrations.encoders import (
    ENCODERS,
    CallableEncoder,
    ConcatenatedEncoder,
    Encoder,
    LexicalEncoder,
    SentenceTransformerEncoder,
    StaticEncoder,
    make_encoder,
)
from tests.contracts.encoders import HISTORY, NEW, EncoderContract, SavedEncoderContract, save_static_model
from tests.contracts.tables import embed


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    return save_static_model(tmp_path_factory.mktemp("models") / "tiny")


class TestLexicalAndStatic(SavedEncoderContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tiny_model):
        self.folder = tiny_model

    def make(self):
        return ConcatenatedEncoder([LexicalEncoder(8), StaticEncoder.read(self.folder)])


class TestConcatenationOfConcatenations(SavedEncoderContract):
    def make(self):
        return ConcatenatedEncoder([ConcatenatedEncoder([LexicalEncoder(2)]), LexicalEncoder(3)])


class TestLexicalAndFunction(EncoderContract):
    def make(self):
        return ConcatenatedEncoder([LexicalEncoder(), CallableEncoder(embed)])


def test_an_encoder_is_found_by_what_the_user_gives(tiny_model):
    lexical = LexicalEncoder(dimensions=8)
    assert make_encoder(lexical) is lexical
    assert isinstance(make_encoder("lexical"), LexicalEncoder)
    assert isinstance(make_encoder(embed), CallableEncoder)
    assert make_encoder("some/model").settings() == {"model": "some/model"}
    assert make_encoder(tiny_model).settings() == {"model": str(tiny_model)}
    assert set(ENCODERS) == {"lexical", "static", "callable", "sentence-transformers", "concatenated"}
    assert all(issubclass(ENCODERS[name], Encoder) and ENCODERS[name].name == name for name in ENCODERS)


def test_several_are_named_in_a_list_or_with_a_plus(tiny_model):
    several = make_encoder(["lexical", embed, tiny_model])
    assert [encoder.name for encoder in several.encoders] == ["lexical", "callable", "sentence-transformers"]
    named = make_encoder(f"lexical + {tiny_model}")
    assert [encoder.name for encoder in named.encoders] == ["lexical", "sentence-transformers"]
    assert named.encoders[1].settings() == {"model": str(tiny_model)}


def test_a_plus_in_the_name_of_a_folder_is_no_list(tmp_path):
    folder = tmp_path / "lexical+static"
    folder.mkdir()
    assert make_encoder(str(folder)).settings() == {"model": str(folder)}


@pytest.mark.parametrize(
    ("encoder", "named"),
    [
        (None, "NoneType"),
        (3, "int"),
        ({"lexical": 1}, "dict"),
        (["lexical", None], "NoneType"),
        ("lexical+", "''"),
        ([], "empty list"),
    ],
)
def test_what_is_no_encoder_is_refused(encoder, named):
    with pytest.raises(ConfigError, match=f"encoder: .*{named}"):
        make_encoder(encoder)


def test_each_part_has_the_same_weight_and_says_what_it_says_alone():
    lexical = LexicalEncoder().fit(HISTORY)
    together = ConcatenatedEncoder([lexical, CallableEncoder(embed)]).encode(HISTORY)
    expected = np.hstack([lexical.encode(HISTORY), CallableEncoder(embed).encode(HISTORY)]) / np.sqrt(2)
    np.testing.assert_allclose(together, expected, rtol=0, atol=1e-15)


def test_a_part_that_knows_nothing_of_a_text_leaves_the_word_to_the_others():
    lexical = LexicalEncoder().fit(HISTORY)
    (vector,) = ConcatenatedEncoder([lexical, CallableEncoder(embed)]).encode(["žluťoučký kůň"])
    dimensions = lexical.encode([""]).shape[1]
    assert not vector[:dimensions].any()
    np.testing.assert_allclose(vector[dimensions:], CallableEncoder(embed).encode(["žluťoučký kůň"])[0])


def test_a_function_among_several_cannot_be_restored():
    encoder = ConcatenatedEncoder([LexicalEncoder(), CallableEncoder(embed)]).fit(HISTORY)
    with pytest.raises(ArtifactError, match="give it again"):
        ConcatenatedEncoder.restore(encoder.settings(), encoder.arrays())


def test_a_kind_this_version_does_not_have_is_named():
    with pytest.raises(ArtifactError, match="'telepathy'"):
        ConcatenatedEncoder.restore({"encoders": [{"name": "telepathy", "settings": {}}]}, {})


def test_more_than_ten_encoders_keep_their_own_arrays():
    encoder = ConcatenatedEncoder([LexicalEncoder(dimensions=i) for i in range(1, 13)]).fit(HISTORY)
    restored = ConcatenatedEncoder.restore(encoder.settings(), encoder.arrays())
    np.testing.assert_array_equal(restored.encode(NEW), encoder.encode(NEW))


def test_a_router_is_saved_with_all_its_encoders(tmp_path, tiny_model, small_table):
    encoder = ["lexical", StaticEncoder.read(tiny_model)]
    router = Router.fit(small_table, policy=Policy(min_quality=0.7), predictor="retrieval", encoder=encoder)
    router.save(tmp_path / "router")
    loaded = Router.load(tmp_path / "router")
    np.testing.assert_array_equal(loaded.forecast(NEW).quality, router.forecast(NEW).quality)


def test_sentence_transformers_are_loaded_when_first_asked():
    assert SentenceTransformerEncoder("no/such-model").settings() == {"model": "no/such-model"}
