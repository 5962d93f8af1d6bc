"""A packed file gives back the frames, labels and graphs that went in, to any number of processes, and notices damage."""

import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import ase.io
import numpy as np
import pytest
import torch

from equimol.data import DataError, PackedSet, open_records, read
from equimol.data import packed as layout
from equimol.data.pack import pack


def mixed(write, tmp_path):
    """Molecules and crystals, some labels missing, fixed atoms, charge, words."""
    frames = [*write.molecules(), *write.crystals()]
    frames[1].calc.results.pop("forces")
    frames[4].calc.results.pop("stress")
    for index, atoms in enumerate(frames):
        atoms.info |= {"charge": index % 2, "config_type": f"kind é {index}", "step": index}
        atoms.arrays["fixed"] = np.arange(len(atoms)) == 0
    ase.io.write(tmp_path / "mixed.xyz", frames, format="extxyz")
    return tmp_path / "mixed.xyz"


def assert_same(mine, twin):
    for name in ("numbers", "positions", "cell", "pbc", "fixed"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(twin, name), err_msg=name)
    assert mine.labels.keys() == twin.labels.keys() and mine.info == twin.info
    for name in twin.labels:
        np.testing.assert_array_equal(mine.labels[name], twin.labels[name], err_msg=name)


def test_frames_are_bit_by_bit_those_of_the_source(write, tmp_path):
    source, out = mixed(write, tmp_path), tmp_path / "a.eqpack"
    report = pack(source, out)
    plain = read(source)
    assert report.frames == 6 and report.count("stress") == plain.report.count("stress") == 2
    for mine in (PackedSet(out), read(out)):
        assert len(mine) == 6
        for packed, twin in zip(mine, plain, strict=True):
            assert_same(packed, twin)
    assert read(out)[2].source == f"{out}:2" and PackedSet(out).atoms.tolist() == [4, 4, 4, 3, 3, 3]


@pytest.mark.parametrize("cutoff", [2.0, 3.0, 5.0])
def test_stored_neighbours_are_those_of_a_new_search(write, tmp_path, cutoff):
    source, out = mixed(write, tmp_path), tmp_path / "a.eqpack"
    pack(source, out, cutoff=3.0)
    for packed, twin in zip(PackedSet(out), read(source), strict=True):
        mine, theirs = packed.graph(cutoff), twin.graph(cutoff)
        assert set(mine.keys()) == set(theirs.keys())
        for key in theirs.keys():  # noqa: SIM118
            if isinstance(theirs[key], torch.Tensor):
                torch.testing.assert_close(mine[key], theirs[key], rtol=0, atol=0, equal_nan=True)
    assert PackedSet(out)[0].neighbors.cutoff == 3.0


def test_stored_neighbours_spare_the_search(write, tmp_path, monkeypatch):
    from equimol.data import graph

    out = tmp_path / "a.eqpack"
    pack(mixed(write, tmp_path), out, cutoff=3.0)
    monkeypatch.setattr(graph, "neighbor_list", None)
    assert len(PackedSet(out)[0].graph(3.0).senders)
    with pytest.raises(TypeError):
        PackedSet(out)[0].graph(3.1)


def test_every_format_can_be_packed(written, tmp_path):
    path, *_ = written
    pack(path, tmp_path / "a.eqpack")
    for mine, twin in zip(PackedSet(tmp_path / "a.eqpack"), read(path), strict=True):
        assert_same(mine, twin)


def test_frames_come_in_any_order(write, tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "CHUNK", 1000)
    out = tmp_path / "a.eqpack"
    ase.io.write(tmp_path / "a.xyz", write.crystals(50), format="extxyz")
    pack(tmp_path / "a.xyz", out)
    frames = PackedSet(out)
    assert len(frames.sums) > 10
    assert [float(frames[n].labels["energy"]) for n in (49, 0, 17, -1)] == [-63.0, -14.0, -31.0, -63.0]
    assert [float(frame.labels["energy"]) for frame in frames[3:6]] == [-17.0, -18.0, -19.0]
    with pytest.raises(IndexError, match="has 50 frames, got number 50"):
        frames[50]
    with open_records(out) as records:
        assert records[17].source == f"{out}:17"


def energies(frames: PackedSet, numbers: list[int]) -> tuple[int, list[float]]:
    return os.getpid(), [float(frames[n].labels["energy"]) for n in numbers]


def test_many_processes_read_one_file(write, tmp_path):
    out = tmp_path / "a.eqpack"
    ase.io.write(tmp_path / "a.xyz", write.crystals(20), format="extxyz")
    pack(tmp_path / "a.xyz", out)
    frames = PackedSet(out)
    assert len(pickle.dumps(frames)) < 500  # a path, and no frames
    assert len(pickle.loads(pickle.dumps(frames))) == 20
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        answers = list(pool.map(energies, [frames] * 4, [[3, 7], [19], [0], [7, 3]]))
    assert [found for _, found in answers] == [[-17.0, -21.0], [-33.0], [-14.0], [-21.0, -17.0]]
    assert os.getpid() not in {process for process, _ in answers}


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_flipped_bit_is_noticed_where_it_is(write, tmp_path, monkeypatch, where):
    monkeypatch.setattr(layout, "CHUNK", 1000)
    out = tmp_path / "a.eqpack"
    ase.io.write(tmp_path / "a.xyz", write.crystals(30), format="extxyz")
    pack(tmp_path / "a.xyz", out)
    place = {"first": 0, "middle": 15, "last": 29}[where]
    content = bytearray(out.read_bytes())
    content[int(PackedSet(out).starts[place]) + 40] ^= 1
    out.write_bytes(content)
    frames = PackedSet(out)
    with pytest.raises(DataError, match=rf"a\.eqpack:{place}: the checksum of frames \d+ to \d+ does not fit"):
        frames[place]
    with pytest.raises(DataError, match="does not fit"):
        frames.verify()
    assert frames[(place + 15) % 30].labels  # the others can still be read
    kept = read(out, skip_bad=True)
    assert len(kept) + len(kept.report.skipped) == 30 and f"a.eqpack:{place}: " in " ".join(kept.report.skipped)


def test_a_cut_or_altered_file_is_refused_when_it_is_opened(write, tmp_path):
    out = tmp_path / "a.eqpack"
    pack(mixed(write, tmp_path), out)
    whole = out.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], whole[:10], b"x" * len(whole), whole[:-60] + b"?" + whole[-59:], whole + b"more"):
        out.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.eqpack: no complete pack, it is damaged or cut off"):
            read(out)
    out.write_bytes(whole[:8] + b"\x09" + whole[9:])
    with pytest.raises(DataError, match="is a pack of version 9, this EquiMol reads 1"):
        read(out)


def test_bad_records_end_the_packing_or_are_listed(write, tmp_path):
    structures = write.crystals(4)
    structures[2].calc.results["energy"] = float("nan")
    source, out = write("rows.aselmdb", structures), tmp_path / "a.eqpack"
    out.write_bytes(b"an older file")
    with pytest.raises(DataError, match=r"rows\.aselmdb:2: energy holds NaN"):
        pack(source, out)
    assert out.read_bytes() == b"an older file" and not list(tmp_path.glob(".*.part"))
    report = pack(source, out, skip_bad=True)
    assert report.frames == len(PackedSet(out)) == 3 and len(report.skipped) == 1 and "rows.aselmdb:2" in report.skipped[0]


def test_a_full_disk_leaves_the_older_file(write, tmp_path, monkeypatch):
    source, out = mixed(write, tmp_path), tmp_path / "a.eqpack"
    out.write_bytes(b"an older file")

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left on device.*the previous version is intact"):
        pack(source, out)
    assert out.read_bytes() == b"an older file" and not list(tmp_path.glob(".*.part"))


def test_packing_needs_little_memory(write, tmp_path):
    """Frames are written as they come: four times the frames, but not four times the memory."""
    import tracemalloc

    peaks = []
    for count in (20, 100, 400):  # the first time, modules are imported
        source = tmp_path / "a.xyz"
        ase.io.write(source, write.crystals(20) * (count // 20), format="extxyz")
        tracemalloc.start()
        pack(source, tmp_path / "a.eqpack")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 2 * peaks[1] + 100_000  # a frame has 3 kB, so 1 MB more would be all of them


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("a.xyz", {}, r"a packed file ends in \.eqpack, got 'a\.xyz'"),
        ("a.eqpack", {"cutoff": -1.0}, "cutoff must be a positive length in Å, got -1.0"),
        ("a.eqpack", {"keys": {"energy": "nothing"}}, "no frame has the key 'nothing'"),
    ],
)
def test_what_cannot_be_done_is_said_before_the_work(write, tmp_path, out, options, message):
    with pytest.raises(ValueError, match=message):
        pack(mixed(write, tmp_path), tmp_path / out, **options)
    assert not (tmp_path / out).exists()


def test_a_pack_of_other_units_is_in_ours(write, tmp_path):
    source = mixed(write, tmp_path)
    pack(source, tmp_path / "a.eqpack", units={"energy": "hartree", "length": "bohr"})
    for mine, twin in zip(read(tmp_path / "a.eqpack"), read(source, units={"energy": "hartree", "length": "bohr"}), strict=True):
        assert_same(mine, twin)
