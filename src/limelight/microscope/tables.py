"""Tables as pandas data frames, Arrow tables, and CSV, JSON or Parquet files: `Tables`."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..tensors.shapes import wrong
from ..text import printable, printable_json
from .files import write_atomically

if TYPE_CHECKING:
    from pandas import DataFrame
    from pyarrow import Table

TableRow = dict[str, Any]
SUFFIXES = (".csv", ".json", ".parquet")


class Tables(ABC):
    """Tables by name, each a list of flat rows, which go to other libraries and to files.

    A cell is a number, a truth value, a text, ``None``, or a list of them.
    """

    @property
    @abstractmethod
    def tables(self) -> dict[str, list[TableRow]]:
        """Every table by name, as a list of flat rows."""

    def to_pandas(self, table: str) -> DataFrame:
        """Return a table as a `pandas.DataFrame`.

        A column of integers or truth values of which some are missing becomes ``Int64`` or ``boolean``, pandas' types
        with missing values, so that integers stay integers.

        Args:
            table: the name of one of `tables`.

        Raises:
            ArgumentError: there is no such table, or pandas is not installed.

        Example:
            >>> from limelight.microscope import look
            >>> frame = look("minilm", "The bank is near the river.").to_pandas("heads")
            >>> frame.groupby("layer")["entropy"].mean().round(2).tolist()
            [1.59, 0.96, 0.96, 1.11, 1.11, 1.54]
        """
        columns = self._columns(table)
        pandas = _needed("pandas", "Tables.to_pandas")
        series = {name: pandas.Series(values, dtype=_nullable(values)) for name, values in columns.items()}
        frame: DataFrame = pandas.DataFrame(series)
        return frame

    def to_arrow(self, table: str) -> Table:
        """Return a table as a `pyarrow.Table`; a list in a cell becomes Arrow's list.

        Args:
            table: the name of one of `tables`.

        Raises:
            ArgumentError: there is no such table, or pyarrow is not installed.
        """
        columns = self._columns(table)
        pyarrow = _needed("pyarrow", "Tables.to_arrow")
        found: Table = pyarrow.table(
            {name: pyarrow.array([_whole(value) for value in values]) for name, values in columns.items()}
        )
        return found

    def write(self, path: str | os.PathLike[str], table: str | None = None) -> int:
        """Write a table to a CSV, JSON or Parquet file in one step, and return its size in bytes.

        ============  =================================================================================================
        ``.csv``      UTF-8, a line of names, ``true`` and ``false``, nothing where a value is missing, lists as JSON;
                      control characters as visible pictures (``␛``), so that a terminal can show the file
        ``.json``     a list of objects, one a line; numbers that are not finite are ``null``
        ``.parquet``  the types of `to_arrow`
        ============  =================================================================================================

        Args:
            path: the file; its suffix names the format.
            table: the name of one of `tables`; by default the name of the file without its suffix, so that
                ``relations.csv`` holds ``relations``.

        Raises:
            ArgumentError: there is no such table or format, or pyarrow is not installed (for Parquet).
            OSError: the folder does not exist or cannot be written to.

        Example:
            >>> from limelight.microscope import look
            >>> look("minilm", "The bank is near the river.").write("relations.csv")  # doctest: +SKIP
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:
            got = f"it is {str(path)!r}"
            raise wrong("path", f"must end in {', '.join(SUFFIXES)}", got, f"For example: {path.stem or 'heads'}.csv.")
        name = path.stem if table is None else table
        if suffix == ".parquet":
            return write_atomically(path, _parquet(self.to_arrow(name)))
        columns = self._columns(name)
        return write_atomically(path, (_csv if suffix == ".csv" else _json)(columns).encode())

    def _columns(self, table: str) -> dict[str, list[Any]]:
        """The columns of a table, ``None`` where a row lacks one.

        Raises:
            ArgumentError: there is no such table.
        """
        rows = self.tables.get(table)
        if rows is None:
            known = ", ".join(self.tables)
            raise wrong("table", f"must be one of {known}", f"it is {table!r}", 'As in write("my.csv", table="heads").')
        return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}


def short(number: float) -> float:
    """Round to six significant digits, about the precision of float32."""
    return float(f"{float(number):.6g}")


def _needed(module: str, what: str) -> ModuleType:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        got, way_out = f"{error.name} is not installed", "Try: pip install pandas pyarrow (the extra `data`)."
        raise wrong(what, f"needs {module}", got, way_out) from error


def _nullable(values: Sequence[Any]) -> str | None:
    """The dtype of pandas for integers or truth values of which some are missing; else what pandas infers."""
    kinds = {type(value) for value in values}
    return {frozenset({int, type(None)}): "Int64", frozenset({bool, type(None)}): "boolean"}.get(frozenset(kinds))


def _whole(value: Any) -> Any:
    """A cell of which every text is valid UTF-8: a surrogate, which is half a character, becomes U+FFFD."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return [_whole(one) for one in value] if isinstance(value, (list, tuple)) else value


def _finite(value: Any) -> Any:
    """A cell whose numbers are finite, or ``None``."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return [_finite(one) for one in value] if isinstance(value, (list, tuple)) else value


def _dumps(value: Any) -> str:
    return printable_json(json.dumps(value, ensure_ascii=False, allow_nan=False))


def _json(columns: dict[str, list[Any]]) -> str:
    rows = zip(*columns.values(), strict=True)
    lines = (_dumps({name: _finite(value) for name, value in zip(columns, row, strict=True)}) for row in rows)
    return "[\n" + ",\n".join(lines) + "\n]\n"


def _csv(columns: dict[str, list[Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    if columns:
        writer.writerow([printable(name) for name in columns])
    writer.writerows([_cell(value) for value in row] for row in zip(*columns.values(), strict=True))
    return file.getvalue()


def _cell(value: Any) -> Any:
    value = _finite(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return _dumps(value)
    return printable(value) if isinstance(value, str) else value


def _parquet(table: Table) -> bytes:
    buffer = _needed("pyarrow", "A Parquet file").BufferOutputStream()
    _needed("pyarrow.parquet", "A Parquet file").write_table(table, buffer)
    content: bytes = buffer.getvalue().to_pybytes()
    return content
