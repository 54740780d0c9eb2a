"""Where results of sweeps are kept: a folder of Parquet files, one a point, named by the point's key.

A file appears whole or not at all, and nobody writes another's, so a sweep may be stopped at any moment,
run again, or run by several at once. DuckDB reads the folder as one table: ``SELECT * FROM
read_parquet('FOLDER/*.parquet', union_by_name = true)``.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from shadowmmu.errors import InputError
from shadowmmu.lab.point import Row, code_version

if TYPE_CHECKING:
    from types import ModuleType

SUFFIX: Final = ".parquet"
QUERY: Final = "SELECT * FROM read_parquet($files, union_by_name = true)"


def _library(name: str) -> ModuleType:
    """pyarrow or duckdb. Raises InputError where the extra is not installed."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"stores need {name}, expected the extra: pip install 'shadowmmu[lab]'") from None


@dataclass(frozen=True)
class Store:
    """A folder of results."""

    folder: Path

    def prepare(self) -> None:
        """Make sure that results can be kept here, before any work. Raises InputError."""
        _library("pyarrow.parquet")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix="."):
                pass
        except OSError as error:
            raise InputError(f"cannot write {self.folder}: {error.strerror}") from None

    def keys(self) -> set[str]:
        """The keys of the points that are stored."""
        return {path.stem for path in self.folder.glob("*" + SUFFIX)}

    def add(self, row: Row) -> None:
        """Keep one result. Raises InputError where the folder does not take it: a full disk."""
        arrow, parquet = _library("pyarrow"), _library("pyarrow.parquet")
        temporary = self.folder / f".{row['key']}.{uuid4().hex}"
        try:
            parquet.write_table(arrow.Table.from_pylist([row]), temporary)
            temporary.replace(self.folder / (row["key"] + SUFFIX))
        except OSError as error:
            raise InputError(f"cannot write {self.folder}: {os.strerror(error.errno or 0)}") from None
        finally:
            temporary.unlink(missing_ok=True)

    def rows(self) -> list[Row]:
        """The results of one version of the program: this one's, else those of the only other one.

        In the order of their keys, whenever they came. Raises InputError where there are none.
        """
        everything = self.all_rows()
        versions = sorted({str(row["code"]) for row in everything})
        wanted = code_version() if code_version() in versions else versions[0]
        if wanted != code_version() and len(versions) > 1:
            found = ", ".join(versions)
            raise InputError(f"read store '{self.folder}' of versions {found}, expected this one's or one")
        return [row for row in everything if row["code"] == wanted]

    def all_rows(self) -> list[Row]:
        """Every result, of every version, in the order of their keys. Raises InputError if there is none."""
        names = sorted(str(path) for path in self.folder.glob("*" + SUFFIX))
        if not names:
            raise InputError(f"read store '{self.folder}', expected a folder with results of `sweep`")
        duckdb: Any = _library("duckdb")
        with duckdb.connect() as connection:
            try:
                found = connection.execute(QUERY, {"files": names})
            except duckdb.Error as error:
                told = str(error).partition("\n")[0]
                wanted = "whole files: delete what is not, and sweep again"
                raise InputError(f"read store '{self.folder}': {told}; expected {wanted}") from None
            columns = [column[0] for column in found.description]
            rows = [dict(zip(columns, values, strict=True)) for values in found.fetchall()]
        return sorted(rows, key=lambda row: str(row["key"]))
