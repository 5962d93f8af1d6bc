"""Files whose records can be taken by number, without reading what lies before."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

from equimol.data.errors import DataError
from equimol.data.labels import Record


class RecordFile(ABC):
    """The records of one open file, from 0. A record that cannot be read raises DataError, and the others still can be."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Record: ...

    @abstractmethod
    def close(self) -> None:
        """Let go of the file."""

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def in_order(open_file: Callable[[Path, str], RecordFile], path: Path, name: str) -> Iterator[Record | DataError]:
    """Record after record; in place of a bad one, what is wrong with it."""
    with open_file(path, name) as records:
        for index in range(len(records)):
            try:
                record: Record | DataError = records[index]
            except DataError as error:
                record = error
            yield record
