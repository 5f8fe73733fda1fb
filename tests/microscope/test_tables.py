"""Tables as data frames and files: every value comes back with its type, and a hostile text stays a text."""

import csv
import io
import json
import sys

import pandas
import pyarrow
import pyarrow.parquet
import pytest

from limelight import ArgumentError
from limelight.microscope.tables import Tables

HOSTILE = 'a,"b"\n\x1b[2J\x9b\u202e;=1+1\r\x00 河 🌊'


class Some(Tables):
    def __init__(self, **tables):
        self._tables = tables

    @property
    def tables(self):
        return self._tables


ROWS = [
    {"index": 0, "token": "bank", "weight": 0.25, "sink": True, "tokens": [1, 2], "of": None, "other": None},
    {"index": 1, "token": HOSTILE, "weight": None, "sink": False, "tokens": [], "of": 7, "other": None},
    {"index": 2, "token": None, "weight": 1.0, "sink": None, "tokens": [3], "of": 8, "late": "x"},
]


@pytest.fixture
def some():
    return Some(rows=ROWS, none=[])


def test_pandas_keeps_types(some):
    frame = some.to_pandas("rows")
    kinds = {name: str(kind) for name, kind in frame.dtypes.items()}
    assert (kinds["index"], kinds["weight"], kinds["sink"], kinds["of"]) == ("int64", "float64", "boolean", "Int64")
    assert frame["token"].tolist()[:2] == ["bank", HOSTILE]
    assert frame.isna().sum().to_dict() == {
        **dict.fromkeys(["index", "tokens"], 0),
        **dict.fromkeys(["token", "weight", "sink", "of"], 1),
        "other": 3,
        "late": 2,
    }
    assert frame["tokens"].tolist() == [[1, 2], [], [3]]
    assert some.to_pandas("none").empty


def test_arrow_keeps_types(some):
    table = some.to_arrow("rows")
    assert table.schema.field("index").type == pyarrow.int64()
    assert table.schema.field("weight").type == pyarrow.float64()
    assert table.schema.field("token").type == pyarrow.string()
    assert table.schema.field("sink").type == pyarrow.bool_()
    assert table.schema.field("tokens").type == pyarrow.list_(pyarrow.int64())
    expected = [{name: row.get(name) for name in table.column_names} for row in ROWS]
    assert table.to_pylist() == expected
    assert some.to_arrow("none").num_rows == 0
    surrogate = Some(rows=[{"text": "a\ud800b", "list": ["\udc00"]}]).to_arrow("rows")
    assert surrogate.to_pylist() == [{"text": "a\ufffdb", "list": ["\ufffd"]}]


def test_parquet_is_the_arrow_table(some, tmp_path):
    size = some.write(tmp_path / "rows.parquet")
    assert size == (tmp_path / "rows.parquet").stat().st_size
    assert pyarrow.parquet.read_table(tmp_path / "rows.parquet").equals(some.to_arrow("rows"))


def test_json_holds_every_value(some, tmp_path):
    some.write(tmp_path / "any.json", table="rows")
    text = (tmp_path / "any.json").read_text("utf-8")
    assert json.loads(text) == [{"late": None, **row, "other": None} for row in ROWS]
    assert not {"\x1b", "\x9b", "\u202e", "\x00"} & set(text)
    assert "河" in text
    Some(x=[{"a": float("nan"), "b": [float("inf"), 1.0], "c": "\ud800"}]).write(tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text("utf-8")) == [{"a": None, "b": [None, 1.0], "c": "\ud800"}]
    some.write(tmp_path / "none.json")
    assert json.loads((tmp_path / "none.json").read_text("utf-8")) == []


def test_csv_reads_back_and_is_safe_in_a_terminal(some, tmp_path):
    some.write(tmp_path / "rows.CSV")
    text = (tmp_path / "rows.CSV").read_bytes().decode()
    assert not {"\x1b", "\x9b", "\u202e", "\x00", "\r"} & set(text)
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["index"] for row in rows] == ["0", "1", "2"]
    assert rows[1]["token"] == 'a,"b"\n␛[2J<U+009B><U+202E>;=1+1␍␀ 河 🌊'
    assert [row["sink"] for row in rows] == ["true", "false", ""]
    assert [json.loads(row["tokens"]) for row in rows] == [[1, 2], [], [3]]
    frame = pandas.read_csv(tmp_path / "rows.CSV")
    assert frame["weight"].tolist()[::2] == [0.25, 1.0]
    some.write(tmp_path / "none.csv")
    assert (tmp_path / "none.csv").read_bytes() == b""


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_a_file_is_whole_or_what_it_was(some, tmp_path, monkeypatch, suffix):
    target = tmp_path / f"rows.{suffix}"
    some.write(target)
    before = target.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        some.write(target)
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_errors_name_what_is_there(some, tmp_path, monkeypatch):
    with pytest.raises(ArgumentError, match=r"`table` must be one of rows, none.*it is 'heads'"):
        some.to_pandas("heads")
    with pytest.raises(ArgumentError, match=r"`table` .*it is 'my'.*table="):
        some.write(tmp_path / "my.csv")
    with pytest.raises(ArgumentError, match=r"`path` must end in .csv, .json, .parquet"):
        some.write(tmp_path / "rows.xlsx")
    with pytest.raises(FileNotFoundError):
        some.write(tmp_path / "no" / "rows.csv")
    for name in ("pandas", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
    for call in (some.to_pandas, some.to_arrow):
        with pytest.raises(ArgumentError, match="pip install pandas pyarrow"):
            call("rows")
    with pytest.raises(ArgumentError, match="pip install pandas pyarrow"):
        some.write(tmp_path / "rows.parquet")
    some.write(tmp_path / "rows.csv")  # needs neither


def test_tables_of_a_report(made_up):
    frame = made_up.to_pandas("heads")
    assert frame[["text", "layer", "head"]].drop_duplicates().shape == (2 * 3 * 4, 3)
    for name, rows in made_up.tables.items():
        assert made_up.to_arrow(name).to_pylist() == rows
        assert len(made_up.to_pandas(name)) == len(rows)
