"""A saved router: equal when read back, refused when damaged, written whole or not at all, and without a prompt."""

import hashlib
import json
import pickle
import re
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eccos_integrations import ArtifactError, ConfigError, EccosError, Forecast, OutcomeTable, Policy, Router
from eccos_integrations.artifact import FILES, MANIFEST, VERSION, _manifest
from eccos_integrations.predictors import RetrievalPredictor, TrainedPredictor

EVERY = {MANIFEST, *FILES}


@pytest.fixture(scope="module")
def router(small_table) -> Router:
    policy = Policy(min_quality=0.9, relative_to="best", capacity={"tiny": 30})
    return Router.fit(small_table, policy=policy, predictor="retrieval", seed=0)


@pytest.fixture(scope="module")
def other(small_table) -> Router:
    return Router.fit(small_table.take(range(30)).select(["small", "large"]), predictor="prior", seed=0)


@pytest.fixture
def saved(router, tmp_path) -> Path:
    router.save(tmp_path / "router")
    return tmp_path / "router"


def rewrite_manifest(folder: Path, **changed) -> None:
    """Change the manifest and give it the checksum of what it now says, as another version would have."""
    body = json.loads((folder / MANIFEST).read_bytes())
    del body["checksum"]
    (folder / MANIFEST).write_bytes(_manifest({**body, **changed}))


def assert_same_answers(left: Router, right: Router, queries: list[str]) -> None:
    expected, got = left.forecast(queries), right.forecast(queries)
    assert got.models == expected.models
    for name in ("quality", "cost_usd", "input_tokens", "output_tokens", "latency_s"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)
    assert right.plan(queries).models == left.plan(queries).models
    assert [right.route(query).ranking for query in queries[:5]] == [left.route(query).ranking for query in queries[:5]]


# --- read back ---


@pytest.mark.parametrize(
    "predictor",
    ["prior", "retrieval", RetrievalPredictor(k=3, strength=1.5), TrainedPredictor(width=8, steps=10)],
    ids=["prior", "retrieval", "retrieval with settings", "trained with settings"],
)
def test_a_router_gives_the_same_answers_after_saving_and_loading(tmp_path, small_table, predictor):
    train, test = small_table.split(0.7, seed=0)
    router = Router.fit(train, policy=Policy(min_quality=0.9), predictor=predictor)
    router.save(tmp_path / "router")
    loaded = Router.load(tmp_path / "router")
    assert (loaded.models, loaded.pool, loaded.policy, loaded.best) == (
        router.models,
        router.pool,
        router.policy,
        router.best,
    )
    assert repr(loaded) == repr(router)
    assert_same_answers(router, loaded, [*test.queries, "", "nothing of the kind"])


def test_a_router_of_the_sample_gives_the_same_answers_after_saving_and_loading(tmp_path, fitted_router, sample_parts):
    fitted_router.save(tmp_path / "router")
    assert_same_answers(fitted_router, Router.load(tmp_path / "router"), sample_parts[1].queries[:200])


def test_what_was_tried_is_kept_with_its_scores_and_reasons(tmp_path, small_table, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    router = Router.fit(small_table, predictor="auto")
    assert [trial.predictor for trial in router.trials if trial.skipped] == ["trained"]
    router.save(tmp_path / "router")
    assert str(Router.load(tmp_path / "router").trials) == str(router.trials)


def test_a_router_of_models_that_cost_nothing_can_be_saved(tmp_path, small_table, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    free = OutcomeTable(small_table.query_ids, small_table.queries, small_table.models, small_table.quality,
                        np.zeros(small_table.quality.shape))  # fmt: skip
    router = Router.fit(free, policy=Policy(), predictor="auto")
    router.save(tmp_path / "router")
    assert_same_answers(router, Router.load(tmp_path / "router"), free.queries)


def test_an_encoder_that_is_a_function_is_given_again(tmp_path, small_table):
    def lengths(texts: list[str]) -> np.ndarray:
        return np.array([[1.0, len(text)] for text in texts])

    router = Router.fit(small_table, predictor="retrieval", encoder=lengths)
    router.save(tmp_path / "router")
    with pytest.raises(ArtifactError, match="encoder=f"):
        Router.load(tmp_path / "router")
    assert_same_answers(router, Router.load(tmp_path / "router", encoder=lengths), small_table.queries)


def test_an_encoder_of_other_dimensions_is_an_error_of_ours(saved):
    with pytest.raises(EccosError, match="encoder"):
        Router.load(saved, encoder=lambda texts: np.ones((len(texts), 3))).plan(["what?"])


def test_a_predictor_of_your_own_is_not_saved_and_nothing_is_written(tmp_path, router, contents):
    class Mine:
        def forecast(self, queries: list[str]) -> Forecast:
            return router.forecast(queries)

    with pytest.raises(ConfigError, match="Mine cannot be saved"):
        Router(replace(router._learnt, predictor=Mine())).save(tmp_path / "router")
    assert contents(tmp_path) == {}


# --- what is in it ---


def test_a_saved_router_is_these_files(saved):
    assert {path.name for path in saved.iterdir()} == EVERY


def test_no_word_of_the_history_is_in_any_byte(saved, small_table):
    words = {word for query in small_table.queries for word in re.findall("[a-z]{4,}", query)}
    assert len(words) > 20
    for name in EVERY:
        raw = (saved / name).read_bytes()
        for encoding in ("utf-8", "utf-16-le", "utf-32-le"):
            found = [word for word in words if word.encode(encoding) in raw]
            assert not found, (name, encoding)


def test_no_query_of_the_sample_is_in_any_byte(tmp_path, fitted_router, sample_parts):
    fitted_router.save(tmp_path / "router")
    for name in EVERY:
        raw = (tmp_path / "router" / name).read_bytes().lower()
        for query in sample_parts[0].queries:
            pieces = [query[start : start + 20].lower().encode() for start in range(0, len(query), 20)]
            assert not any(piece in raw for piece in pieces if len(piece) > 10), name


def test_arrays_are_plain_and_stored_as_they_are(saved):
    for name in FILES:
        with zipfile.ZipFile(saved / name) as packed:  # packed bytes could hide a prompt from the two tests above
            assert {entry.compress_type for entry in packed.infolist()} <= {zipfile.ZIP_STORED}
        with np.load(saved / name, allow_pickle=False) as arrays:
            assert all(arrays[key].dtype.kind in "biuf" for key in arrays.files)


# --- damage ---


@pytest.mark.parametrize("name", sorted(EVERY))
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        Router.load(saved)


@pytest.mark.parametrize("name", sorted(EVERY))
def test_a_file_cut_off_anywhere_is_named(saved, name):
    whole = (saved / name).read_bytes()
    for end in {0, 1, 2, *range(0, len(whole), max(1, len(whole) // 40)), len(whole) - 2, len(whole) - 1}:
        (saved / name).write_bytes(whole[:end])
        with pytest.raises(ArtifactError, match=name):
            Router.load(saved)


@pytest.mark.parametrize("name", sorted(EVERY))
def test_one_flipped_bit_anywhere_is_refused(saved, name):
    whole = (saved / name).read_bytes()
    ends = {0, 1, len(whole) // 2, len(whole) - 2, len(whole) - 1}
    for at in ends | set(range(0, len(whole), max(1, len(whole) // 200))):
        for bit in range(8) if at in ends else [at % 8]:
            flipped = bytearray(whole)
            flipped[at] ^= 1 << bit
            (saved / name).write_bytes(flipped)
            with pytest.raises(ArtifactError):
                Router.load(saved)


@pytest.mark.parametrize("name", sorted(EVERY))
def test_one_byte_more_is_named(saved, name):
    (saved / name).write_bytes((saved / name).read_bytes() + b"\n")
    with pytest.raises(ArtifactError, match=name):
        Router.load(saved)


@pytest.mark.parametrize("name", FILES[:3])  # the others are empty in both
def test_a_file_of_another_router_is_named(saved, other, tmp_path, name):
    other.save(tmp_path / "other")
    (tmp_path / "other" / name).replace(saved / name)
    with pytest.raises(ArtifactError, match=name):
        Router.load(saved)


def test_a_router_of_a_newer_format_says_so(saved):
    rewrite_manifest(saved, version=VERSION + 1)
    with pytest.raises(ArtifactError, match=f"format {VERSION + 1}.* upgrade"):
        Router.load(saved)


@pytest.mark.parametrize("version", [0, "9", True, 1.5, None], ids=repr)
def test_a_version_there_never_was_is_refused(saved, version):
    rewrite_manifest(saved, version=version)
    with pytest.raises(ArtifactError, match=MANIFEST):
        Router.load(saved)


@pytest.mark.parametrize(
    "files",
    [
        lambda files: {**files, "more.npz": files["evidence.npz"]},
        lambda files: {**files, "../../outside.npz": files["evidence.npz"]},
        lambda files: {name: files[name] for name in FILES[:2]},
        lambda files: {**files, "evidence.npz": 5},
        list,
        lambda _: None,
    ],
    ids=["one more", "one outside", "one less", "a checksum that is a number", "a list", "null"],
)
def test_a_manifest_that_names_other_files_is_refused(saved, files):
    named = json.loads((saved / MANIFEST).read_bytes())["files"]
    rewrite_manifest(saved, files=files(named))
    with pytest.raises(ArtifactError, match=r"manifest\.json|evidence\.npz"):
        Router.load(saved)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"null", b"\xff", b"[" * 100_000, b'{"format": "eccos-router", "version": %s}' % (b"9" * 5000)],
    ids=lambda content: repr(content[:12]),
)
def test_a_manifest_that_is_none_is_refused(saved, content):
    (saved / MANIFEST).write_bytes(content)
    with pytest.raises(ArtifactError, match=MANIFEST):
        Router.load(saved)


@pytest.mark.parametrize("kind", ["predictor", "encoder"])
def test_a_predictor_or_encoder_this_version_does_not_have_is_named(saved, kind):
    changed = json.loads((saved / MANIFEST).read_bytes())["settings"]
    (changed["now"] if kind == "predictor" else changed)[kind]["name"] = "oracle"
    rewrite_manifest(saved, settings=changed)
    with pytest.raises(ArtifactError, match="oracle"):
        Router.load(saved)


def test_other_files_in_the_folder_are_never_read(saved, router, tmp_path):
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    (saved / "more.npz").write_bytes(pickle.dumps(Trap()))
    assert Router.load(saved).models == router.models
    assert not (tmp_path / "sprung").exists()


def test_an_array_that_runs_code_is_refused_even_with_the_right_checksum(saved, tmp_path):
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    np.savez(saved / "evidence.npz", quality=np.array([Trap()], dtype=object))
    (tmp_path / "sprung").unlink(missing_ok=True)
    named = json.loads((saved / MANIFEST).read_bytes())["files"]
    digest = hashlib.sha256((saved / "evidence.npz").read_bytes()).hexdigest()
    rewrite_manifest(saved, files={**named, "evidence.npz": digest})
    with pytest.raises(ArtifactError, match="does not hold plain arrays"):
        Router.load(saved)
    assert not (tmp_path / "sprung").exists()


def test_a_folder_without_a_router_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "nothing", tmp_path, tmp_path / "file"):
        with pytest.raises(ArtifactError, match=re.escape(f"{path}: no manifest.json")):
            Router.load(path)


# --- writing: whole or not at all ---


def test_saving_makes_the_folders_above_and_takes_an_empty_one(tmp_path, router, contents):
    router.save(str(tmp_path / "new" / "deep"))
    (tmp_path / "empty").mkdir()
    router.save(tmp_path / "empty")
    assert contents(tmp_path / "empty").keys() == contents(tmp_path / "new" / "deep").keys() == EVERY


def test_saving_over_an_older_router_replaces_it_and_leaves_nothing_beside_it(saved, other, contents):
    other.save(saved)
    assert Router.load(saved).models == other.models
    assert set(contents(saved.parent)) == {"router", *(f"router/{name}" for name in EVERY)}


def test_saving_through_a_link_keeps_the_link(saved, other, contents):
    link = saved.with_name("link")
    link.symlink_to(saved, target_is_directory=True)
    other.save(link)
    assert link.is_symlink()
    assert Router.load(link).models == other.models
    assert {path.name for path in saved.parent.iterdir()} == {"router", "link"}


def a_file(path: Path, _: Router) -> None:
    path.write_text("a file")


def a_folder(path: Path, _: Router) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("mine")


def a_web_app(path: Path, _: Router) -> None:
    path.mkdir()
    (path / MANIFEST).write_text('{"name": "my web app", "display": "standalone"}')


def a_router_and_notes(path: Path, router: Router) -> None:
    router.save(path)
    (path / "notes.txt").write_text("mine")


@pytest.mark.parametrize("holds", [a_file, a_folder, a_web_app, a_router_and_notes])
def test_a_path_that_holds_something_else_is_refused_and_left_untouched(tmp_path, router, contents, holds):
    holds(tmp_path / "taken", router)
    before = contents(tmp_path)
    with pytest.raises(ArtifactError, match="taken"):
        router.save(tmp_path / "taken")
    assert contents(tmp_path) == before


def test_a_path_below_a_file_is_an_error_of_ours(tmp_path, router, contents):
    (tmp_path / "file").write_text("x")
    before = contents(tmp_path)
    with pytest.raises(EccosError, match="file"):
        router.save(tmp_path / "file" / "router")
    assert contents(tmp_path) == before


def test_a_save_that_fails_while_writing_leaves_the_older_router_and_nothing_beside_it(
    saved, other, contents, monkeypatch
):
    before = contents(saved.parent)
    calls = []

    def full_disk(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return savez(*args, **kwargs)

    savez = np.savez
    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises((OSError, EccosError)):
        other.save(saved)
    assert len(calls) == 2
    assert contents(saved.parent) == before


def test_a_save_that_fails_at_the_last_step_leaves_the_older_router_and_nothing_beside_it(
    saved, router, other, contents, monkeypatch
):
    before = contents(saved.parent)
    failed = []

    def fail_once(path: Path, target: Path) -> Path:
        if Path(target) == saved and not failed:
            failed.append(path)
            raise OSError(5, "Input/output error")
        return rename(path, target)

    rename = Path.rename
    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises((OSError, EccosError)):
        other.save(saved)
    assert failed
    assert contents(saved.parent) == before
    assert Router.load(saved).models == router.models
