"""LMDB files: which of three kinds one is, opened so that a cut file is an error and not the end of the process.

DeePMD-kit's has an entry `__metadata__`, that of ASE an entry `nextid`; OC20's legacy kind numbers its pickled records from "0".
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from equimol.data.ase_formats import record_of_row
from equimol.data.deepmd_formats import read_metadata, record_of_entry
from equimol.data.errors import DataError
from equimol.data.labels import Record
from equimol.data.oc20_formats import read_count, record_of_pickle
from equimol.data.record_file import RecordFile


def open_lmdb(path: Path, name: str) -> RecordFile:
    """The records of an LMDB of any of the three kinds, a file or a folder with data.mdb. Nothing in it is executed."""
    entries = Entries(path, name)
    try:
        for key, kind in KINDS.items():
            if entries.get(key, name) is not None:
                return kind(entries)
        raise DataError(
            f"{name}: no LMDB of DeePMD-kit, OC20 or ASE, which have an entry __metadata__, 0 or nextid; its first is {entries.first!r}. "
            "Other kinds are not read: convert it to extxyz (.xyz)"
        )
    except BaseException:
        entries.close()
        raise


class Entries:
    """An open LMDB: bytes by key, and errors that name the record."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        try:
            self.database = lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False)
        except lmdb.Error as error:
            raise self._error(name, error) from error
        try:
            size = (path / "data.mdb" if path.is_dir() else path).stat().st_size
            needed = (self.database.info()["last_pgno"] + 1) * self.database.stat()["psize"]
            if size < needed:  # to read on would end the process: the file is mapped into memory
                raise DataError(f"{name}: the file is cut off, {size} of {needed} bytes are there; copy it again")
            self.table = self.database.begin()
            self.first = next(self.table.cursor().iternext(values=False), b"")
        except BaseException as error:
            self.database.close()
            if isinstance(error, lmdb.Error):
                raise self._error(name, error) from error
            raise

    def get(self, key: bytes, source: str) -> bytes | None:
        """The bytes under a key; None where there is none."""
        try:
            return self.table.get(key)
        except lmdb.Error as error:
            raise self._error(source, error) from error

    def count(self) -> int:
        return self.database.stat()["entries"]

    def close(self) -> None:
        self.table.abort()
        self.database.close()

    @staticmethod
    def _error(source: str, error: lmdb.Error) -> DataError:
        return DataError(f"{source}: cannot be read as LMDB ({error}); is it damaged, or in use? copy it again")


class _LmdbRecords(RecordFile):
    def __init__(self, entries: Entries) -> None:
        self.entries, self.name = entries, entries.name

    def close(self) -> None:
        self.entries.close()


class DeepmdLmdb(_LmdbRecords):
    """Frames of DeePMD-kit, numbered as its metadata says. A frame without cells is a molecule."""

    def __init__(self, entries: Entries) -> None:
        super().__init__(entries)
        packed = entries.get(b"__metadata__", self.name)
        self.length, self.layout, self.type_map = read_metadata(packed, entries.path, self.name)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Record:
        source = f"{self.name}:{index}"
        packed = self.entries.get(format(index, self.layout).encode(), source)
        if packed is None:
            raise DataError(f"{source}: the frame is missing, __metadata__ announces {self.length}; write the file again")
        if index == self.length - 1 and self.entries.get(format(index + 1, self.layout).encode(), source) is not None:
            raise DataError(f"{self.name}:{index + 1}: a frame too many, __metadata__ announces {self.length}; write the file again")
        return record_of_entry(packed, self.type_map, source)


class Oc20Lmdb(_LmdbRecords):
    """Records of OC20's own LMDBs: pickled graphs of PyTorch Geometric, of which only numbers are taken."""

    def __init__(self, entries: Entries) -> None:
        super().__init__(entries)
        stated = entries.get(b"length", self.name)
        self.length = entries.count() if stated is None else read_count(stated, self.name)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Record:
        source = f"{self.name}:{index}"
        packed = self.entries.get(str(index).encode(), source)
        if packed is None:
            raise DataError(f"{source}: the record is missing, the file announces {self.length}; copy or write it again")
        return record_of_pickle(packed, source)


class AseLmdb(_LmdbRecords):
    """Rows of ASE's LMDB (package ase-db-backends, suffix .aselmdb): compressed JSON. Rows that were deleted are not counted."""

    def __init__(self, entries: Entries) -> None:
        super().__init__(entries)
        deleted = entries.get(b"deleted_ids", self.name)
        gone = set(_read_json(deleted, f"{self.name}, entry deleted_ids")) if deleted else set()
        following = _read_json(entries.get(b"nextid", self.name), f"{self.name}, entry nextid")
        if type(following) is not int:
            raise DataError(f"{self.name}: nextid must be a whole number, got {str(following)[:40]!r}; write the file again")
        self.ids = [row for row in range(1, following) if row not in gone]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Record:
        from ase.calculators.calculator import all_properties
        from ase.db.row import AtomsRow

        source = f"{self.name}:{index}"
        packed = self.entries.get(str(self.ids[index]).encode(), source)
        if packed is None:
            raise DataError(f"{source}: row {self.ids[index]} is missing, nextid announces it; copy or write the file again")
        table = _read_json(packed, source)
        try:
            results = {key: np.asarray(table[key]) for key in all_properties if isinstance(table.get(key), list)}
            row = AtomsRow({**table, **results, "id": self.ids[index]})
            return record_of_row(row, source)
        except DataError:
            raise
        except Exception as error:  # the file says what is built here: any error is a fault of the file
            raise DataError(f"{source}: no row of ASE ({type(error).__name__}: {error}); write it again") from error


def _read_json(packed: bytes | None, source: str) -> Any:
    from ase.io.jsonio import decode

    try:
        return decode(zlib.decompress(packed or b"").decode())
    except Exception as error:  # a parser of foreign bytes
        raise DataError(
            f"{source}: no compressed JSON as ASE writes it ({type(error).__name__}: {error}); copy or write it again"
        ) from error


KINDS: dict[bytes, type[_LmdbRecords]] = {b"__metadata__": DeepmdLmdb, b"nextid": AseLmdb, b"length": Oc20Lmdb, b"0": Oc20Lmdb}
