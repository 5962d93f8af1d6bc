"""The same structures through any two formats give the same graphs and labels; damage of any format is one clear error."""

import bz2
import gzip
import lzma

import numpy as np
import pytest
import torch

from equimol.data import DataError, read
from equimol.data.formats import FORMATS, open_records, read_records


def test_graphs_and_labels_are_those_of_the_extxyz_file(written, write, tmp_path):
    path, structures, labels = written
    write.extxyz(tmp_path / "twin.xyz", structures)
    for mine, twin in zip(read(path), read(tmp_path / "twin.xyz"), strict=True):
        assert set(mine.labels) == set(labels)
        for label in labels:
            np.testing.assert_allclose(mine.labels[label], twin.labels[label], rtol=1e-12, atol=1e-7)  # extxyz keeps 8 decimals
        graph, other = mine.graph(3.0), twin.graph(3.0)
        assert torch.equal(graph.numbers, other.numbers) and torch.equal(graph.pbc, other.pbc)
        for key in ("senders", "receivers", "shifts"):
            assert torch.equal(graph[key], other[key]), key
        torch.testing.assert_close(graph.displacements(), other.displacements(), rtol=0, atol=1e-7)
        torch.testing.assert_close(graph.cell, other.cell)


def test_any_record_can_be_taken_where_the_format_allows_it(written):
    path, structures, _ = written
    if FORMATS[path.suffix].open is None:
        with pytest.raises(DataError, match="is read from the start only; in any order: .lmdb"):
            open_records(path)
        return
    with open_records(path) as records:
        assert len(records) == len(structures) == 3
        for index in (2, 0, 1, 0):
            assert records[index].source == f"{path}:{index}"
            np.testing.assert_array_equal(records[index].numbers, structures[index].numbers)
    assert [record.source for record in read_records(path)] == [f"{path}:{n}" for n in range(3)]


@pytest.mark.parametrize("packer", [lzma, gzip, bz2])
def test_packed_files_are_read_as_they_are(written, packer):
    path, structures, _ = written
    packed = path.with_name(path.name + {lzma: ".xz", gzip: ".gz", bz2: ".bz2"}[packer])
    packed.write_bytes(packer.compress(path.read_bytes()))
    assert [float(frame.labels["energy"]) for frame in read(packed)] == pytest.approx([one.get_potential_energy() for one in structures])


def test_a_file_cut_off_anywhere_is_an_error_that_names_it(written):
    path, *_ = written
    whole = path.read_bytes()
    for share in (0.2, 0.5, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(DataError, match=path.name):
            read(path)


def test_an_empty_file_and_noise_are_errors_that_name_it(written):
    path, *_ = written
    path.write_bytes(b"")
    with pytest.raises(DataError, match=f"{path.name}: the file is empty"):
        read(path)
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(DataError, match=path.name):
        read(path)


@pytest.mark.parametrize("label", ["energy", "forces"])
@pytest.mark.parametrize("name", ["spice.hdf5", "ani2x.h5", "md17.npz", "mptrj.json", "oc20.lmdb", "rows.aselmdb", "s2ef.extxyz"])
def test_nan_labels_are_refused_or_skipped_with_a_list(write, name, label):
    structures = write.molecules() if name in ("spice.hdf5", "ani2x.h5", "md17.npz") else write.crystals()
    results = structures[1].calc.results
    results[label] = float("nan") if label == "energy" else np.full((len(structures[1]), 3), np.nan)
    path = write(name, structures)
    with pytest.raises(DataError, match=rf"{name}:1: \w+ holds NaN or infinity; remove the frame"):
        read(path)
    frames = read(path, skip_bad=True)
    assert [frame.source for frame in frames] == [f"{path}:0", f"{path}:2"]
    assert len(frames.report.skipped) == 1 and f"{name}:1: " in frames.report.skipped[0]
    assert "1 bad records skipped:" in str(frames.report)


def test_what_follows_the_cut_is_told_to_be_lost(write):
    path = write("s2ef.extxyz", write.crystals(4))
    text = path.read_text()
    path.write_text(text[: text.rindex("Cu") - 3])
    frames = read(path, skip_bad=True)
    assert len(frames) == 3 and "whatever follows in this file is lost" in frames.report.skipped[0]


def test_nothing_but_bad_records_is_an_error_even_when_they_may_be_skipped(write):
    path = write("rows.aselmdb")
    write.put(path, {str(n).encode(): b"nonsense" for n in (1, 2, 3)})
    with pytest.raises(DataError, match=r"rows\.aselmdb:0: no compressed JSON"):
        read(path, skip_bad=True)


def test_units_that_the_user_states_go_over_those_of_the_format(write):
    path = write("md17.npz")
    stated = read(path)
    plain = read(path, units={"energy": "eV"})
    factor = stated[0].labels["energy"] / plain[0].labels["energy"]
    assert factor == pytest.approx(0.0433641, rel=1e-5)
    np.testing.assert_allclose(stated[1].labels["forces"], factor * plain[1].labels["forces"])


def test_units_of_a_plain_file_are_converted_everywhere(write, tmp_path):
    write.extxyz(tmp_path / "a.xyz", write.crystals())
    ours = read(tmp_path / "a.xyz")[0]
    theirs = read(tmp_path / "a.xyz", units={"length": "bohr", "energy": "hartree"})[0]
    bohr, hartree = 0.529177210903, 27.211386245988
    np.testing.assert_allclose(theirs.positions, bohr * ours.positions, rtol=1e-6)
    np.testing.assert_allclose(theirs.cell, bohr * ours.cell, rtol=1e-6)
    np.testing.assert_allclose(theirs.labels["energy"], hartree * ours.labels["energy"], rtol=1e-6)
    np.testing.assert_allclose(theirs.labels["forces"], hartree / bohr * ours.labels["forces"], rtol=1e-6)
    np.testing.assert_allclose(theirs.labels["stress"], hartree / bohr**3 * ours.labels["stress"], rtol=1e-6)
    flipped = read(tmp_path / "a.xyz", units={"stress": "-kbar"})[0]
    np.testing.assert_allclose(flipped.labels["stress"], -6.241509e-4 * ours.labels["stress"], rtol=1e-6)


def test_a_virial_in_other_units_is_a_stress_in_ours(tmp_path, write):
    import ase.io

    atoms = write.crystals(1)[0]
    atoms.info["virial"] = np.diag([1.0, 2.0, 3.0])
    atoms.calc.results.pop("stress")
    ase.io.write(tmp_path / "a.xyz", atoms, format="extxyz")
    frame = read(tmp_path / "a.xyz", units={"energy": "hartree", "length": "bohr"})[0]
    volume = abs(np.linalg.det(frame.cell))  # Å³
    np.testing.assert_allclose(frame.labels["stress"], -27.211386 * np.diag([1.0, 2.0, 3.0]) / volume, rtol=1e-7)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ({"energy": "kcal"}, "unknown unit 'kcal' of energy; for example eV, hartree"),
        ({"charge": "e"}, "units are stated for length, energy, forces, stress, got 'charge'"),
        ({"stress": "hartree/bohr"}, "unknown unit 'hartree/bohr' of stress"),
    ],
)
def test_unknown_units_are_refused_with_examples(write, units, message):
    with pytest.raises(DataError, match=message):
        read(write("md17.npz"), units=units)
