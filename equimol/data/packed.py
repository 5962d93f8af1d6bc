"""The packed store: one file of frames that is mapped into memory, read in any order by any number of processes, and checksummed.

A file .eqpack is a head, the frames one after the other, an index, metadata (JSON), and a tail that says where those lie; all numbers are
little-endian, floats are float64. A frame is 16 bytes (atoms, flags, edges, length of text, uint32), then what the flags announce:
positions [atoms, 3], cell [3, 3], each label, senders and receivers [edges] int32, shifts [edges, 3] int16, numbers [atoms] uint8,
fixed [atoms] uint8, and its info as JSON; filled up to 8 bytes. Frames are summed up (CRC-32) in chunks of about 256 KiB, and a chunk is
checked when a process first reads in it. Everything is in eV and Å, with the signs of `equimol.data.PROPERTIES`.
"""

from __future__ import annotations

import json
import mmap
import struct
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from equimol.data.errors import DataError
from equimol.data.frame import Frame, Neighbors
from equimol.data.labels import Record
from equimol.data.neighbors import Edges, neighbor_list
from equimol.data.properties import PROPERTIES
from equimol.data.record_file import RecordFile

SUFFIX = ".eqpack"
MAGIC, END = b"EQUIPACK", b"EQPKTAIL"
VERSION = 1
CHUNK = 1 << 18  # bytes under one checksum
RESIDENT = 1 << 28  # bytes of the file that count as memory of the process, at most: about 256 MiB
AROUND = 1 << 16  # bytes that Linux maps at a touch
HEAD = struct.Struct("<8sII")  # magic, version, nothing
FRAME = struct.Struct("<IIII")
TAIL = struct.Struct("<QQQII8s")  # frames, place of the index, length of the metadata, checksums of both, magic
PBC, CELL, FIXED, EDGES = 0, 3, 4, 5  # bits of the flags; labels follow from FIRST_LABEL
FIRST_LABEL = 8


class PackWriter:
    """Writes frames one by one into an open file; the index, 13 bytes a frame, is all that stays in memory."""

    def __init__(self, file: BinaryIO, cutoff: float | None = None) -> None:
        self.file, self.cutoff = file, cutoff
        self.starts, self.atoms = array("Q"), array("I")
        self.first_of_chunk, self.sums = array("Q"), array("I")
        self.place, self.chunk_size, self.sum = HEAD.size, 0, 0
        file.write(HEAD.pack(MAGIC, VERSION, 0))

    def add(self, frame: Frame) -> None:
        """Append a frame. ValueError where it cannot have the neighbours asked for."""
        content = _encode(frame, self.cutoff)
        if not self.first_of_chunk or self.chunk_size >= CHUNK:
            self._end_chunk()
            self.first_of_chunk.append(len(self.starts))
        self.starts.append(self.place)
        self.atoms.append(len(frame.numbers))
        self.file.write(content)
        self.sum = zlib.crc32(content, self.sum)
        self.place += len(content)
        self.chunk_size += len(content)

    def finish(self, about: Mapping[str, Any]) -> None:
        """Write index, metadata and tail."""
        self._end_chunk()
        self.starts.append(self.place)
        self.first_of_chunk.append(len(self.atoms))
        index = b"".join(part.tobytes() for part in (self.starts, self.first_of_chunk, self.atoms, self.sums))
        metadata = {"version": VERSION, "labels": list(PROPERTIES), "chunks": len(self.sums), "cutoff": self.cutoff, **about}
        text = json.dumps(metadata).encode()
        self.file.write(index)
        self.file.write(text)
        self.file.write(TAIL.pack(len(self.atoms), self.place, len(text), zlib.crc32(index), zlib.crc32(text), END))

    def _end_chunk(self) -> None:
        if self.chunk_size:
            self.sums.append(self.sum)
        self.chunk_size, self.sum = 0, 0


class PackedSet(Sequence):
    """The frames of a pack, in any order: `PackedSet("train.eqpack")[7]`. It may be sent to other processes, which open the file anew.

    DataError names file and frame where a checksum does not fit.
    """

    def __init__(self, path: str | PathLike, name: str | None = None) -> None:
        self.path, self.name = Path(path), str(path) if name is None else name
        try:
            with open(self.path, "rb") as file:
                self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.name}: cannot be opened as a pack ({error}); check the file") from error
        try:
            self._read_index()
        except BaseException:
            self.bytes.close()
            raise

    def _read_index(self) -> None:
        size = len(self.bytes)
        cut = DataError(f"{self.name}: no complete pack, it is damaged or cut off; copy it again, or pack the data again")
        if size < HEAD.size + TAIL.size or self.bytes[: len(MAGIC)] != MAGIC:
            raise cut
        version = HEAD.unpack_from(self.bytes)[1]
        if version != VERSION:
            raise DataError(f"{self.name}: is a pack of version {version}, this EquiMol reads {VERSION}; pack the data again")
        count, place, length, index_sum, text_sum, end = TAIL.unpack_from(self.bytes, size - TAIL.size)
        self.checksum = f"{index_sum:08x}{text_sum:08x}"  # of the index, which has the checksums of all frames, and of the metadata
        text = self.bytes[size - TAIL.size - length : size - TAIL.size] if length < size else b""
        index = self.bytes[place : size - TAIL.size - length] if end == END and place < size else b""
        if end != END or zlib.crc32(text) != text_sum or zlib.crc32(index) != index_sum:
            raise cut
        self.metadata = json.loads(text)
        chunks = self.metadata["chunks"]
        kinds = {
            "starts": (np.uint64, count + 1),
            "firsts": (np.uint64, chunks + 1),
            "atoms": (np.uint32, count),
            "sums": (np.uint32, chunks),
        }
        parts, begin = {}, 0
        for part, (kind, items) in kinds.items():
            parts[part] = np.frombuffer(index, kind, items, begin)
            begin += parts[part].nbytes
        self.starts, self.firsts = parts["starts"].astype(np.int64), array("Q", parts["firsts"].tobytes())
        self.atoms, self.sums = parts["atoms"], parts["sums"]  # atoms of each frame; checksums
        self.labels = [
            (1 << (FIRST_LABEL + n), name, PROPERTIES[name]) for n, name in enumerate(self.metadata["labels"]) if name in PROPERTIES
        ]
        self.checked = bytearray(chunks)
        self.touched = 0

    def __len__(self) -> int:
        return len(self.atoms)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} frames, got number {index}")
        index = index % len(self)
        self._check(index)
        self._touch(int(self.starts[index + 1] - self.starts[index]))
        return _decode(self.bytes, int(self.starts[index]), self.labels, self.metadata["cutoff"], f"{self.name}:{index}")

    @property
    def edges(self) -> np.ndarray:
        """How many edges are stored with each frame, without reading more than that; zeros in a pack without neighbour lists."""
        found = np.zeros(len(self), dtype=np.int64)
        for index in range(len(self)):
            found[index] = FRAME.unpack_from(self.bytes, int(self.starts[index]))[2]
            self._touch(FRAME.size)
        return found

    def verify(self) -> None:
        """Check every chunk now; DataError for the first that is damaged."""
        for first in tqdm(self.firsts[:-1], desc=f"checking {self.path.name}", disable=None, leave=False):
            self._check(first)

    def close(self) -> None:
        self.bytes.close()

    def _check(self, index: int) -> None:
        """Compare the checksum of the frame's chunk, once in a process."""
        chunk = bisect_right(self.firsts, index) - 1
        if self.checked[chunk]:
            return
        first, last = self.firsts[chunk], self.firsts[chunk + 1]
        content = memoryview(self.bytes)[int(self.starts[first]) : int(self.starts[last])]
        found = zlib.crc32(content)
        content.release()
        if found != self.sums[chunk]:
            which = f"the checksum of frames {first} to {last - 1} does not fit"
            raise DataError(f"{self.name}:{index}: {which}, the file is damaged; copy or pack it again")
        self.checked[chunk] = 1
        self._touch(int(self.starts[last] - self.starts[first]))

    def _touch(self, size: int) -> None:
        """Gives pages back to the system after a while, which otherwise count as memory of this process; it still has them at hand."""
        self.touched += AROUND + size
        if self.touched > RESIDENT and hasattr(mmap, "MADV_DONTNEED"):
            self.bytes.madvise(mmap.MADV_DONTNEED)
            self.touched = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "name": self.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["name"])  # type: ignore[misc]


class PackFile(RecordFile):
    """A pack as any other format gives its records, so that it is read, checked and trained on like one."""

    def __init__(self, path: Path, name: str) -> None:
        self.frames = PackedSet(path, name)

    def close(self) -> None:
        self.frames.close()

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Record:
        frame = self.frames[index]
        values = {**frame.info, **frame.labels} | ({} if frame.fixed is None else {"fixed": frame.fixed})
        return Record(frame.numbers, frame.positions, frame.cell, frame.pbc, values, frame.source, neighbors=frame.neighbors)


def _encode(frame: Frame, cutoff: float | None) -> bytes:
    atoms = len(frame.numbers)
    flags = sum(int(one) << (PBC + axis) for axis, one in enumerate(frame.pbc))
    floats = [frame.positions]
    if frame.cell.any():
        flags |= 1 << CELL
        floats.append(frame.cell)
    for number, name in enumerate(PROPERTIES):
        if name in frame.labels:
            flags |= 1 << (FIRST_LABEL + number)
            floats.append(frame.labels[name])
    parts = [np.ascontiguousarray(values, dtype="<f8").tobytes() for values in floats]
    edges = 0
    if cutoff is not None:
        try:
            found = neighbor_list(frame.positions, frame.cell, frame.pbc, cutoff)
        except ValueError as error:
            raise DataError(f"{frame.source}: {error}") from error
        if len(found.shifts) and np.abs(found.shifts).max() > np.iinfo(np.int16).max:
            raise DataError(f"{frame.source}: atoms lie more than 32767 cells away from each other; wrap them into the cell")
        flags, edges = flags | 1 << EDGES, len(found.senders)
        parts += [found.senders.astype("<i4").tobytes(), found.receivers.astype("<i4").tobytes(), found.shifts.astype("<i2").tobytes()]
    parts.append(frame.numbers.astype(np.uint8).tobytes())
    if frame.fixed is not None:
        flags |= 1 << FIXED
        parts.append(frame.fixed.astype(np.uint8).tobytes())
    text = json.dumps(frame.info, ensure_ascii=False).encode() if frame.info else b""
    content = b"".join([FRAME.pack(atoms, flags, edges, len(text)), *parts, text])
    return content + bytes(-len(content) % 8)


def _decode(buffer: mmap.mmap, place: int, labels: Sequence[tuple], cutoff: float | None, source: str) -> Frame:
    atoms, flags, edges, length = FRAME.unpack_from(buffer, place)
    place += FRAME.size

    def take(kind: Any, count: int) -> np.ndarray:
        nonlocal place
        values = np.frombuffer(buffer, kind, count, place)
        place += values.nbytes
        return values

    positions = take("<f8", 3 * atoms).reshape(atoms, 3).copy()
    cell = take("<f8", 9).reshape(3, 3).copy() if flags >> CELL & 1 else np.zeros((3, 3))
    stated = {}
    for bit, name, row in labels:
        if flags & bit:
            shape = row.label_shape(atoms)
            stated[name] = take("<f8", prod(shape)).reshape(shape).copy()
    neighbors = None
    if flags >> EDGES & 1:
        senders, receivers, shifts = take("<i4", edges), take("<i4", edges), take("<i2", 3 * edges)
        assert cutoff is not None
        neighbors = Neighbors(cutoff, Edges(senders.astype(np.int64), receivers.astype(np.int64), shifts.reshape(-1, 3).astype(np.int64)))
    numbers = take(np.uint8, atoms).astype(np.int64)
    fixed = take(np.uint8, atoms).astype(bool) if flags >> FIXED & 1 else None
    info = json.loads(buffer[place : place + length]) if length else {}
    pbc = np.array([flags & 1, flags & 2, flags & 4], dtype=bool)
    return Frame(numbers, positions, cell, pbc, stated, info, source, fixed, neighbors)
