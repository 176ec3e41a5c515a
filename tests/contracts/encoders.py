"""What every encoder must do, whatever its vectors are made of."""

import io
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

from tests.contracts.tables import ODD_TEXTS

HISTORY = [
    "add two numbers",
    "add three numbers and a xylophone",
    "subtract two numbers",
    "prove the theorem",
    "prove the lemma before the theorem",
    "the capital of a country",
]
NEW = ["add a number", "prove the lemma", "", "unheard of words", *HISTORY[:2]]
TOKENS = ["[UNK]", "add", "two", "numbers", "prove", "theorem", "number", "the"]
PRIVATE = ("xylophone", "lemma", "unheard")  # words that the models of these tests do not have


def save_static_model(folder, tokens=TOKENS, dimensions=4):
    """A sentence-transformers model of a few words, one vector each."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    weights = np.random.default_rng(0).normal(size=(len(tokens), dimensions)).astype(np.float32)
    module = StaticEmbedding(tokenizer, embedding_weights=weights)
    SentenceTransformer(modules=[module], device="cpu").save(str(folder))
    return folder


def through_disk(arrays):
    """The arrays as a saved router gives them back."""
    packed = io.BytesIO()
    np.savez(packed, allow_pickle=False, **arrays)
    with np.load(io.BytesIO(packed.getvalue()), allow_pickle=False) as saved:
        return dict(saved)


def words_in(content):
    return [word for word in PRIVATE for code in ("utf-8", "utf-16-le", "utf-32-le") if word.encode(code) in content]


class EncoderContract:
    """`make` gives a fresh encoder; `fitted` one that has learnt from HISTORY."""

    tolerance = 1e-12  # between a text alone and in a batch

    def make(self):
        raise NotImplementedError

    @pytest.fixture
    def fitted(self):
        return self.make().fit(HISTORY, seed=0)

    def test_vectors_have_unit_length_or_are_zero(self, fitted):
        vectors = fitted.encode(NEW + HISTORY + list(ODD_TEXTS.values()))
        lengths = np.linalg.norm(vectors, axis=1)
        assert np.isfinite(vectors).all()
        assert np.all(np.isclose(lengths, 1) | (lengths == 0))
        assert (lengths[len(NEW) : len(NEW) + len(HISTORY)] > 0).all()

    def test_vectors_are_numbers_of_double_precision_one_row_per_text(self, fitted):
        vectors = fitted.encode(NEW)
        assert (vectors.dtype, len(vectors), vectors.ndim) == (np.float64, len(NEW), 2)

    def test_no_texts_give_no_rows(self, fitted):
        nothing = fitted.encode([])
        assert (len(nothing), nothing.ndim) == (0, 2)

    def test_encoding_and_fitting_again_give_the_same_vectors(self, fitted):
        vectors = fitted.encode(NEW)
        np.testing.assert_array_equal(fitted.encode(NEW), vectors)
        np.testing.assert_array_equal(self.make().fit(HISTORY, seed=0).encode(NEW), vectors)
        np.testing.assert_array_equal(fitted.fit(HISTORY, seed=0).encode(NEW), vectors)

    def test_a_batch_is_encoded_as_its_texts_one_by_one(self, fitted):
        texts = NEW + HISTORY
        one_by_one = np.vstack([self.make().fit(HISTORY, seed=0).encode([text]) for text in texts])
        np.testing.assert_allclose(fitted.encode(texts), one_by_one, rtol=0, atol=self.tolerance)

    def test_the_order_of_texts_does_not_matter(self, fitted):
        texts = NEW + HISTORY
        turned = self.make().fit(HISTORY, seed=0).encode(texts[::-1])[::-1]
        np.testing.assert_allclose(fitted.encode(texts), turned, rtol=0, atol=self.tolerance)

    def test_a_text_twice_in_a_batch_has_the_same_vector(self, fitted):
        first, _, again = fitted.encode(["add two numbers", "prove it", "add two numbers"])
        np.testing.assert_array_equal(first, again)

    @pytest.mark.parametrize("name", ODD_TEXTS)
    def test_any_text_can_be_encoded(self, fitted, name):
        vectors = fitted.encode([ODD_TEXTS[name]])
        assert len(vectors) == 1
        assert np.isfinite(vectors).all()

    def test_the_caller_may_change_the_vectors_it_got(self, fitted):
        vectors = fitted.encode(NEW)
        kept = vectors.copy()
        vectors[:] = 7
        np.testing.assert_array_equal(fitted.encode(NEW), kept)

    def test_settings_are_plain_json_and_arrays_hold_no_words(self, fitted):
        fitted.encode(NEW)
        assert words_in(json.dumps(fitted.settings()).encode()) == []
        for name, array in fitted.arrays().items():
            assert array.dtype.kind in "fiu", name
            assert words_in(array.tobytes()) == []

    def test_a_copy_for_another_process_gives_equal_vectors_and_takes_no_words_along(self, fitted):
        vectors = fitted.encode(NEW)
        copied = pickle.dumps(fitted)
        assert words_in(copied) == []
        np.testing.assert_array_equal(pickle.loads(copied).encode(NEW), vectors)

    def test_threads_get_the_vectors_of_their_own_texts(self, fitted):
        texts = [f"{text} number {i}" for i in range(40) for text in HISTORY]
        expected = dict(zip(texts, self.make().fit(HISTORY, seed=0).encode(texts), strict=True))
        start = Barrier(8)

        def encode(part):
            own = texts[part:] + texts[:part]
            start.wait()
            return own, fitted.encode(own)

        with ThreadPoolExecutor(8) as threads:
            for own, vectors in threads.map(encode, range(0, 240, 30)):
                np.testing.assert_allclose(vectors, [expected[text] for text in own], rtol=0, atol=self.tolerance)


class SavedEncoderContract(EncoderContract):
    """For encoders that can be written down."""

    def test_settings_and_arrays_restore_an_equal_encoder(self, fitted):
        settings = json.loads(json.dumps(fitted.settings()))
        restored = type(fitted).restore(settings, through_disk(fitted.arrays()))
        np.testing.assert_array_equal(restored.encode(NEW), fitted.encode(NEW))
        assert restored.settings() == fitted.settings()

    def test_what_was_restored_can_be_saved_again(self, fitted):
        once = type(fitted).restore(fitted.settings(), through_disk(fitted.arrays()))
        twice = type(fitted).restore(once.settings(), through_disk(once.arrays()))
        np.testing.assert_array_equal(twice.encode(NEW), fitted.encode(NEW))

    def test_unfitted_has_the_settings_but_nothing_learnt(self, fitted):
        before = fitted.encode(NEW)
        fresh = fitted.unfitted()
        assert (type(fresh), fresh.settings()) == (type(fitted), fitted.settings())
        other = ["wholly other words", "about other matters"]
        np.testing.assert_array_equal(fresh.fit(other).encode(NEW), self.make().fit(other).encode(NEW))
        np.testing.assert_array_equal(fitted.encode(NEW), before)
