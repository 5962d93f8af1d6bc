"""JSON of MPtrj: unit and sign of its stress, entries met one by one, and damage."""

import json

import ase.io
import numpy as np
import pytest

from equimol.data import DataError, mptrj_formats, read


def test_stress_is_that_of_vasp_turned_round(write):
    path = write("mptrj.json")
    raw = json.loads(path.read_text())["mp-1"]["mp-1-0-1"]["stress"]
    np.testing.assert_allclose(read(path)[1].labels["stress"], -6.241509e-4 * np.array(raw), rtol=1e-6)


def test_the_corrected_energy_is_taken_where_it_is_asked_for(write):
    path = write("mptrj.json")
    assert read(path)[0].labels["energy"] == -14.0
    assert read(path, keys={"energy": "corrected_total_energy"})[0].labels["energy"] == -15.0
    assert read(path)[2].info["mp_id"] == "mp-1" and read(path)[2].info["frame"] == "mp-1-0-2"


@pytest.mark.parametrize("chunk", [1, 7, 100, 5000])
def test_entries_are_found_wherever_a_chunk_ends(write, monkeypatch, chunk):
    path = write("mptrj.json")
    table = json.loads(path.read_text())
    table['mp-2 {"odd"}'] = {"a": write.mptrj_entry(write.crystals()[0])}
    path.write_text(json.dumps(table, indent=1))
    with path.open() as file:
        monkeypatch.setattr(mptrj_formats, "CHUNK", chunk)
        found = list(mptrj_formats._entries(file))
    assert [(material, frame) for material, frame, _ in found] == [(m, f) for m, frames in table.items() for f in frames]
    assert [content for *_, content in found] == [content for frames in table.values() for content in frames.values()]


def test_only_a_few_frames_are_in_memory(write, monkeypatch):
    path = write("mptrj.json", write.crystals(300))
    monkeypatch.setattr(mptrj_formats, "CHUNK", 4096)
    with path.open() as file:
        entries = mptrj_formats._entries(file)
        next(entries)
        assert file.buffer.tell() < path.stat().st_size / 4


def test_positions_may_be_fractions_of_the_cell_alone(write):
    path = write("mptrj.json")
    table = json.loads(path.read_text())
    for site in table["mp-1"]["mp-1-0-0"]["structure"]["sites"]:
        del site["xyz"]
    before = read(path)[0].positions
    path.write_text(json.dumps(table))
    np.testing.assert_allclose(read(path)[0].positions, before, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.pop("structure"), "is no frame of MPtrj .*structure"),
        (lambda entry: entry["structure"]["sites"][0]["species"][0].update(element="Qq"), "is no frame of MPtrj .*Qq"),
        (lambda entry: entry["structure"]["lattice"].update(matrix=[[1.0]]), "is no frame of MPtrj"),
        (lambda entry: entry.update(force=[[1.0, 2.0]]), r"forces of 3 atoms must have shape \(3, 3\)"),
        (lambda entry: entry.update(stress=[1.0] * 6), "stress must be nine numbers"),
        (lambda entry: entry["structure"]["sites"][0].update(xyz=[0.0, 0.0, float("nan")]), "sites must have three finite coordinates"),
    ],
)
def test_a_damaged_entry(write, change, message):
    path = write("mptrj.json")
    table = json.loads(path.read_text())
    change(table["mp-1"]["mp-1-0-1"])
    path.write_text(json.dumps(table))
    with pytest.raises(DataError, match=rf"mptrj\.json:1: .*{message}"):
        read(path)
    assert len(read(path, skip_bad=True)) == 2


def test_json_of_ase_is_left_to_ase(write, tmp_path):
    ase.io.write(tmp_path / "a.json", write.crystals())
    assert len(read(tmp_path / "a.json")) == 3
