"""Outcome tables on disk: every format reads what it wrote, and bad files give one clear error that shows no prompt."""

import gzip
import io
import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eccos_integrations import DataError, OutcomeTable
from eccos_integrations.formats import replacing
from eccos_integrations.outcomes import MEASURES

nan = float("nan")
FILES = ["t.parquet", "t.csv", "t.csv.gz", "t.jsonl", "t.jsonl.gz", "t.json"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("formats")


def read(path, content: bytes | str) -> OutcomeTable:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return OutcomeTable.read(path)


def assert_same(left: OutcomeTable, right: OutcomeTable) -> None:
    """Equal but for the order of the models, which the files do not keep."""
    assert left.query_ids == right.query_ids
    assert left.queries == right.queries
    assert left.tasks == right.tasks
    assert set(left.models) == set(right.models)
    left = left.select(right.models)
    for name in MEASURES:
        # Seconds become milliseconds and back: the last digit may differ. All else is kept to the bit.
        rtol = 1e-15 if name == "latency_s" else 0
        np.testing.assert_allclose(getattr(left, name), getattr(right, name), rtol=rtol, err_msg=name)


# --- round trips ---

NASTY = ["", " ", 'say "hi", then; stop', "two\nlines", "\r\n", "\r", "a,b\t'c'", "\ufeffmark", "žluťoučký 🦒",
         "\u2028", "\x00", "null", "NaN", "[1, {}]", "\\n", "=1+1"]  # fmt: skip
texts = st.sampled_from(NASTY) | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = texts.filter(bool)
amounts = st.none() | st.integers(0, 10**9) | st.floats(0, 1e9)


@st.composite
def tables(draw) -> OutcomeTable:
    """Anything a table can hold, as long as every query and every model was observed at least once."""
    ids = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    models = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    n, m = len(ids), len(models)

    def grid(values) -> np.ndarray:
        return np.array(draw(st.lists(values, min_size=n * m, max_size=n * m)), dtype=float).reshape(n, m)

    quality = grid(st.none() | st.sampled_from([0, 1]) | st.floats(0, 1))
    quality[np.isnan(quality).all(axis=1), 0] = 0.25
    quality[0, np.isnan(quality).all(axis=0)] = 0.75
    return OutcomeTable(
        ids,
        draw(st.lists(texts, min_size=n, max_size=n)),
        models,
        quality,
        tasks=draw(st.none() | st.lists(texts, min_size=n, max_size=n)),
        **{name: grid(amounts) for name in MEASURES if name != "quality"},
    )


@pytest.mark.parametrize("file", FILES)
@settings(deadline=None, max_examples=50)
@given(table=tables())
def test_every_format_gives_back_what_was_written(folder, file, table):
    table.write(folder / file)
    assert_same(table, OutcomeTable.read(folder / file))


@pytest.mark.parametrize("file", FILES)
def test_the_sample_survives_every_format(folder, file, sample):
    sample.write(folder / file)
    assert_same(sample, OutcomeTable.read(folder / file))


@pytest.mark.parametrize("given_format", ["parquet", "csv", "jsonl", "qaserve"])
def test_a_given_format_counts_more_than_the_suffix(folder, given_format, small_table):
    path = folder / "outcomes.data"
    small_table.write(path, format=given_format)
    assert_same(small_table, OutcomeTable.read(path, format=given_format))


@pytest.mark.parametrize("given_format", ["csv", "jsonl", "qaserve"])
def test_gz_packs_every_text_format(folder, given_format, small_table):
    path = folder / "outcomes.gz"
    small_table.write(path, format=given_format)
    assert gzip.decompress(path.read_bytes())
    assert_same(small_table, OutcomeTable.read(path, format=given_format))


@pytest.mark.parametrize("file", FILES)
def test_a_query_of_a_megabyte_is_just_a_query(folder, file):
    table = OutcomeTable(["a"], ['wide "load"\n' * 90_000], ["m"], [[1]])
    table.write(folder / file)
    assert_same(table, OutcomeTable.read(folder / file))


@pytest.mark.parametrize("file", FILES)
def test_a_path_may_be_a_string(folder, file, small_table):
    small_table.write(str(folder / file))
    assert_same(small_table, OutcomeTable.read(str(folder / file)))


@pytest.mark.parametrize("file", FILES)
def test_the_same_table_gives_the_same_bytes(folder, file, small_table):
    written = []
    for _ in range(2):
        small_table.write(folder / file)
        written.append((folder / file).read_bytes())
    assert written[0] == written[1]
    if file.endswith(".gz"):
        assert written[0][4:8] == bytes(4)  # gzip's time stamp


# --- what the formats mean ---

QASERVE = [
    {
        "query": "first?",
        "input_token_length": 11,
        "outputs": [
            {"model_name": "small", "correctness": False, "output_token_length": 70, "prediction": "4"},
            {"model_name": "large", "correctness": True, "output_token_length": 90, "prediction": "5"},
        ],
    },
    {
        "query": "second?",
        "input_token_length": 12,
        "outputs": [{"model_name": "large", "correctness": 0.5, "output_token_length": 30, "prediction": ""}],
    },
]


@pytest.mark.parametrize(
    "content",
    [json.dumps(QASERVE), json.dumps(QASERVE, indent=2), "\n".join(map(json.dumps, QASERVE)) + "\n"],
    ids=["array", "indented array", "lines"],
)
def test_qaserve_records_are_read_as_an_array_and_as_lines(folder, content):
    table = read(folder / "qaserve.json", content)
    assert table.queries == ["first?", "second?"]
    assert table.models == ["small", "large"]
    np.testing.assert_array_equal(table.quality, [[0, 1], [nan, 0.5]])
    np.testing.assert_array_equal(table.input_tokens, [[11, 11], [nan, 12]])
    np.testing.assert_array_equal(table.output_tokens, [[70, 90], [nan, 30]])


def test_qaserve_is_written_as_other_programs_read_it(folder):
    table = OutcomeTable(["a"], ["first?"], ["small", "large"], [[0, 1]], None, [[11, 11]], [[70, 90]])
    table.write(folder / "t.json")
    (record,) = json.loads((folder / "t.json").read_bytes())
    assert (record["query"], record["input_token_length"]) == ("first?", 11)
    small, large = record["outputs"]
    assert (small["model_name"], small["correctness"], small["output_token_length"]) == ("small", False, 70)
    assert (large["model_name"], large["correctness"], large["output_token_length"]) == ("large", True, 90)


def test_input_tokens_that_one_model_lacks_are_not_taken_from_another(folder):
    table = OutcomeTable(["a"], ["first?"], ["small", "large"], [[0, 1]], input_tokens=[[11, nan]])
    table.write(folder / "t.json")
    assert_same(table, OutcomeTable.read(folder / "t.json"))


LONG = "query_id,query,model,correctness,latency_ms\r\na,first?,m,1,250\r\nb,,m,,\r\na,first?,n,0.5,\r\n"


@pytest.mark.parametrize("content", [LONG, LONG.replace("\r\n", "\n"), "\ufeff" + LONG], ids=["crlf", "lf", "bom"])
def test_a_long_csv_has_one_row_per_query_and_model_and_empty_cells_are_unobserved(folder, content):
    table = read(folder / "long.csv", content)
    assert (table.query_ids, table.queries, table.models) == (["a", "b"], ["first?", ""], ["m", "n"])
    np.testing.assert_array_equal(table.quality, [[1, 0.5], [nan, nan]])
    np.testing.assert_array_equal(table.latency_s, [[0.25, nan], [nan, nan]])


def test_a_nested_line_holds_one_query_and_its_outcomes_and_null_is_unobserved(folder):
    lines = [
        {"query_id": "a", "task": "t", "query": "first?", "outcomes": {"m": {"correctness": 1, "cost_usd": 0.5}}},
        {"query_id": "b", "query": "second?", "outcomes": {"m": {"correctness": None}, "n": {"correctness": True}}},
    ]
    table = read(folder / "nested.jsonl", "\n\n".join(map(json.dumps, lines)))
    assert (table.query_ids, table.models, table.tasks) == (["a", "b"], ["m", "n"], ["t", ""])
    np.testing.assert_array_equal(table.quality, [[1, nan], [nan, 1]])
    np.testing.assert_array_equal(table.cost_usd, [[0.5, nan], [nan, nan]])


def test_columns_of_no_use_are_left_out_and_unknown_ones_named_in_a_warning(folder, caplog):
    content = "query_id,split,query,model,correctness,mood\na,train,first?,m,1,glad\n"
    with caplog.at_level(logging.WARNING, logger="eccos"):
        assert read(folder / "t.csv", content).quality.tolist() == [[1]]
    (record,) = caplog.records
    assert "mood" in record.getMessage()
    assert "split" not in record.getMessage()


# --- bad files ---

Q = "zanzibar ferry times"  # stands for any prompt: no error may show it
HEADER = "query_id,query,model,correctness,cost_usd,input_tokens\n"


def csv(*rows: str) -> str:
    return HEADER + "".join(f"{row}\n" for row in rows)


def line(**changed) -> str:
    return json.dumps({"query_id": "a", "query": Q, "outcomes": {"m": {"correctness": 1}}, **changed}) + "\n"


def outcome(inside: str) -> str:
    """One line whose outcomes are exactly this JSON."""
    return line(outcomes="HERE").replace('"HERE"', "{" + inside + "}")


def records(*changed: dict) -> str:
    output = {"model_name": "m", "correctness": True, "output_token_length": 5}
    return json.dumps([{"query": Q, "input_token_length": 3, "outputs": [output], **fields} for fields in changed])


def parquet(rows: int = 1, **changed) -> bytes:
    columns = {"query_id": ["a"], "query": [Q], "model": ["m"], "correctness": [1.0], **changed}
    packed = io.BytesIO()
    pq.write_table(pa.table({name: values for name, values in columns.items() if values}).slice(0, rows), packed)
    return packed.getvalue()


def parquet_with_a_column_twice() -> bytes:
    columns = ["query_id", "query", "model", "correctness", "correctness"]
    packed = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([*map(pa.array, [["a"], [Q], ["m"], [1.0], [0.0]])], names=columns), packed)
    return packed.getvalue()


BAD = {
    ".csv": {
        "the same query and model twice": (
            csv(f"a,{Q},m,1,1,1", f"a,{Q},m,0,1,1"),
            "query_id 'a', model 'm': two rows",
        ),
        "one id with two texts": (csv(f"a,{Q},m,1,1,1", f"a,{Q} 2,n,1,1,1"), "query_id 'a' has two different texts"),
        "correctness above 1": (csv(f"a,{Q},m,1.5,1,1"), "1.5 for query_id 'a', model 'm'.* between 0 and 1"),
        "correctness below 0": (csv(f"a,{Q},m,-1,1,1"), "-1 for query_id 'a', model 'm'.* between 0 and 1"),
        "correctness in words": (csv(f"a,{Q},m,good,1,1"), "correctness: 'good' .*not a number"),
        "correctness NaN": (csv(f"a,{Q},m,NaN,1,1"), "correctness: NaN for .*leave the cell empty"),
        "cost negative": (csv(f"a,{Q},m,1,-0.5,1"), "cost_usd: -0.5 for .*not negative"),
        "cost infinite": (csv(f"a,{Q},m,1,inf,1"), "cost_usd: inf for .*finite"),
        "cost too large for a float": (csv(f"a,{Q},m,1,1e999,1"), "cost_usd: inf for .*finite"),
        "tokens negative": (csv(f"a,{Q},m,1,1,-3"), "input_tokens: -3 for .*not negative"),
        "tokens infinite": (csv(f"a,{Q},m,1,1,Infinity"), "input_tokens: inf for .*finite"),
        "nothing observed": (csv(f"a,{Q},m,,,"), "no outcome was observed"),
        "no id": (csv(f",{Q},m,1,1,1"), "query_id: row 1"),
        "no model": (csv(f"a,{Q},m,1,1,1", f"b,{Q},,1,1,1"), "model: row 2"),
        "other columns": ("prompt,answer\nx,y\n", "columns .*'query_id'.* are missing"),
        "no header": (f"a,{Q},m,1,1,1\n", "columns .* are missing"),
        "a column twice": (HEADER.replace("cost_usd", "correctness") + f"a,{Q},m,0,1,1\n", "correctness"),
        "a row too long": (csv(f"a,{Q},m,1,1,1,9"), "row 1"),
        "a row too short": (csv(f"a,{Q},m,1,1,1", f"b,{Q},m"), "row 2"),
        "text after a quote": (csv(f'a,"{Q}"x,m,1,1,1'), "csv"),
        "a quote left open": (csv(f'a,"{Q},m,1,1,1'), "csv"),
        "only a header": (HEADER, "empty"),
        "no byte": ("", "missing|empty"),
        "Latin-1": (csv(f"a,{Q} \xe9,m,1,1,1").encode("latin-1"), "not readable as csv"),
        "UTF-16": (csv(f"a,{Q},m,1,1,1").encode("utf-16"), "not readable as csv"),
    },
    ".jsonl": {
        "the same line twice": (line() * 2, "query_id 'a', model 'm': two rows"),
        "the same model twice": (outcome('"m": {"correctness": 1}, "m": {"correctness": 0}'), "'m'"),
        "one id with two texts": (line() + line(query=f"{Q} 2"), "query_id 'a' has two different texts"),
        "correctness NaN": (outcome('"m": {"correctness": NaN}'), "correctness: NaN for"),
        "correctness above 1": (outcome('"m": {"correctness": 2}'), "2 for query_id 'a', model 'm'"),
        "correctness a list": (outcome('"m": {"correctness": [1]}'), "correctness: .*not a number"),
        "cost infinite": (outcome('"m": {"correctness": 1, "cost_usd": Infinity}'), "cost_usd: inf"),
        "cost of 400 digits": (outcome('"m": {"correctness": 1, "cost_usd": %s}' % ("9" * 400)), "cost_usd"),
        "cost of 5,000 digits": (outcome('"m": {"correctness": 1, "cost_usd": %s}' % ("9" * 5000)), "jsonl"),
        "an outcome that is a number": (outcome('"m": 1'), "line 1.*(outcome|object)"),
        "an outcome that is null": (outcome('"m": null'), "line 1.*(outcome|object)"),
        "outcomes in a list": (line(outcomes=[1]), "line 1: expected an object"),
        "no outcomes": (line(outcomes=None), "line 1: expected an object"),
        "not an object": (line() + "5\n", "line 2: expected an object"),
        "no model observed": (line(outcomes={}), "empty"),
        "a model without a name": (outcome('"": {"correctness": 1}'), "model: row 1"),
        "a number as id": (line(query_id=7), "query_id: row 1"),
        "no id": (line(query_id=None), "query_id: row 1"),
        "no query": (line(query=None), "query: row 1"),
        "a query in a list": (line(query=[Q]), "query: row 1"),
        "other keys": (outcome('"m": {"score": 1}'), "no outcome was observed|correctness"),
        "cut off": (line() + line(query_id="b")[:-9], "line 2: not valid JSON; the file may be cut off"),
        "brackets without end": ("[" * 100_000, "line 1"),
        "brackets inside": (outcome('"m": {"correctness": %s}' % ("[" * 900 + "]" * 900)), "correctness"),
        "no byte": ("", "empty"),
        "blank lines": ("\n \n", "empty"),
        "not UTF-8": (line().encode()[:-2] + b"\xff\n", "not readable as jsonl"),
    },
    ".json": {
        "the same model twice": (records({"outputs": [{"model_name": "m", "correctness": 1}] * 2}), "'m': two rows"),
        "one id with two texts": (
            records({"query_id": "x"}, {"query_id": "x", "query": "other"}),
            "two different texts",
        ),
        "correctness above 1": (records({"outputs": [{"model_name": "m", "correctness": 7}]}), "7 for query_id '1'"),
        "no model name": (records({"outputs": [{"correctness": True}]}), "record 1.*model_name"),
        "a model name that is a number": (records({"outputs": [{"model_name": 3, "correctness": 1}]}), "model: row 1"),
        "an output that is a string": (records({"outputs": [Q]}), "record 1.*(output|object)"),
        "outputs by name": (records({"outputs": {"m": 1}}), "record 1: expected an object"),
        "no query": (json.dumps([{"outputs": []}]), "record 1: expected an object"),
        "a query that is null": (records({"query": None}), "query: row 1"),
        "not an object": ("[1]", "record 1: expected an object"),
        "nothing observed": (records({"outputs": [{"model_name": "m"}]}), "no outcome was observed"),
        "no outputs": (records({"outputs": []}), "empty"),
        "no record": ("[]", "empty"),
        "no byte": ("", "empty"),
        "cut off": (records({}, {"query": "other"})[:-20], "not valid JSON; the file may be cut off"),
        "more than an array": (records({}) + "]", "not valid JSON"),
        "brackets without end": ("[" * 100_000, "not valid JSON"),
    },
    ".parquet": {
        "the same query and model twice": (
            parquet(2, query_id=["a"] * 2, query=[Q] * 2, model=["m"] * 2, correctness=[1.0, 0.0]),
            "query_id 'a', model 'm': two rows",
        ),
        "correctness NaN": (parquet(correctness=[nan]), "correctness: NaN for .*null"),
        "correctness in words": (parquet(correctness=["good"]), "correctness: 'good'"),
        "correctness a list": (parquet(correctness=[[1.0]]), "correctness: .*not a number"),
        "correctness above 1": (parquet(correctness=[2]), "2 for query_id 'a'"),
        "cost negative": (parquet(cost_usd=[-1.0]), "cost_usd: -1"),
        "tokens infinite": (parquet(output_tokens=[float("inf")]), "output_tokens: inf"),
        "numbers as ids": (parquet(query_id=[7]), "query_id: row 1"),
        "bytes as query": (parquet(query=[b"\xff"]), "query: row 1"),
        "no model column": (parquet(model=None), r"columns \['model'\] are missing"),
        "a column twice": (parquet_with_a_column_twice(), "parquet|correctness"),
        "no row": (parquet(rows=0), "empty"),
        "no byte": (b"", "not a readable Parquet file"),
        "another kind of file": (b"PK\x03\x04" + Q.encode() * 9, "not a readable Parquet file"),
    },
    ".jsonl.gz": {
        "not packed": (line(), "not readable as jsonl"),
        "packed nothing": (gzip.compress(b""), "empty"),
        "no byte": (b"", "empty"),
        "bad line": (gzip.compress(b"{"), "line 1: not valid JSON"),
    },
}


@pytest.mark.parametrize(
    ("suffix", "content", "says"),
    [
        pytest.param(suffix, content, says, id=f"{suffix}-{name}")
        for suffix, cases in BAD.items()
        for name, (content, says) in cases.items()
    ],
)
def test_a_bad_file_is_one_data_error_that_says_what_is_wrong_and_shows_no_prompt(folder, suffix, content, says):
    with pytest.raises(DataError, match=says) as error:
        read(folder / f"bad{suffix}", content)
    assert "zanzibar" not in str(error.value)
    assert error.value.__cause__ is None


def test_a_missing_file_a_folder_and_an_unknown_suffix_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.csv: no such file"):
        OutcomeTable.read(tmp_path / "nothing.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=r"folder\.csv"):
        OutcomeTable.read(tmp_path / "folder.csv")
    with pytest.raises(DataError, match=r"t\.xlsx: the suffix .*'\.parquet'"):
        OutcomeTable.read(tmp_path / "t.xlsx")
    with pytest.raises(DataError, match=r"format: 'xml' is unknown.*'qaserve'"):
        OutcomeTable.read(tmp_path / "t.csv", format="xml")


@pytest.mark.parametrize("file", ["t.parquet", "t.jsonl.gz", "t.csv.gz", "t.json"])
def test_a_file_cut_off_anywhere_is_a_data_error(folder, file, small_table):
    small_table.write(folder / file)
    whole = (folder / file).read_bytes()
    for end in {*range(0, len(whole), max(1, len(whole) // 60)), 1, len(whole) - 1}:
        with pytest.raises(DataError):
            read(folder / file, whole[:end])


@pytest.mark.parametrize("file", ["t.jsonl.gz", "t.csv.gz"])
def test_a_packed_file_with_a_flipped_bit_is_a_data_error_or_unharmed(folder, file, small_table):
    small_table.write(folder / file)
    whole = (folder / file).read_bytes()
    refused = 0
    for at in range(0, len(whole), max(1, len(whole) // 100)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        try:
            assert_same(
                read(folder / file, bytes(flipped)), small_table
            )  # a bit that says nothing, as in the time stamp
        except DataError:
            refused += 1
    assert refused > 80


# --- writing: whole or not at all ---


@pytest.mark.parametrize("file", FILES)
def test_writing_replaces_the_file_and_leaves_nothing_beside_it(tmp_path, contents, file, small_table):
    (tmp_path / file).write_text("older")
    small_table.write(tmp_path / file)
    assert list(contents(tmp_path)) == [file]
    assert_same(small_table, OutcomeTable.read(tmp_path / file))


def test_an_error_while_writing_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path, contents):
    (tmp_path / "t.csv").write_text("older")
    before = contents(tmp_path)

    def write_half() -> None:
        with replacing(tmp_path / "t.csv") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert contents(tmp_path) == before


@pytest.mark.parametrize("file", FILES)
def test_text_that_utf_8_cannot_hold_is_a_data_error_and_writes_nothing(tmp_path, contents, file):
    table = OutcomeTable(["a", "b"], [Q, Q + "\ud800"], ["m"], [[1], [0]])
    (tmp_path / file).write_text("older")
    before = contents(tmp_path)
    with pytest.raises(DataError, match=r"'b'|quer") as error:
        table.write(tmp_path / file)
    assert "zanzibar" not in str(error.value)
    assert contents(tmp_path) == before


def test_an_unknown_suffix_or_format_writes_nothing(tmp_path, contents, small_table):
    with pytest.raises(DataError, match=r"t\.xlsx: the suffix names no format"):
        small_table.write(tmp_path / "t.xlsx")
    with pytest.raises(DataError, match="format: 'xml' is unknown"):
        small_table.write(tmp_path / "t.csv", format="xml")
    assert contents(tmp_path) == {}


def test_a_place_that_cannot_be_written_to_is_a_data_error_that_names_it(tmp_path, contents, small_table):
    (tmp_path / "folder.csv").mkdir()
    before = contents(tmp_path)
    for path in ("missing/t.csv", "folder.csv"):
        with pytest.raises(DataError, match=path):
            small_table.write(tmp_path / path)
    assert contents(tmp_path) == before
