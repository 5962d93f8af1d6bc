"""Sets that stay in their files while they are trained on, batches by a budget, and records that cannot be used."""

from pathlib import Path

import numpy as np
import pytest
import torch

from equimol.data import DataError, PackedSet, read
from equimol.data.graph import AtomicGraph
from equimol.data.pack import pack
from equimol.data.selection import GraphsOf, Selection, joined, sample
from equimol.data.splits import split, split_numbers
from equimol.data.statistics import FrameSums
from equimol.training.batches import StepSampler, cut, ordered_loader, told
from equimol.training.checkpoint import read_checkpoint
from equimol.training.config import load_config
from equimol.training.fit import fit
from equimol.training.prepare import build_graphs, read_data, sampled_graphs

CUTOFF = 4.0


@pytest.fixture(scope="module")
def packed(clusters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "clusters.eqpack"
    pack(clusters, path, cutoff=CUTOFF)
    return path


def run(overrides: list[str], *more: str) -> Path:
    return fit(load_config(None, [*overrides, *more]))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / "last.ckpt")["state_dict"]


def test_training_from_a_pack_gives_the_weights_of_training_from_the_file(quick: list[str], packed: Path, tmp_path: Path):
    """Also with processes that assemble the batches."""
    plain = weights(run(quick, "steps=6", f"out={tmp_path / 'plain'}"))
    streamed = weights(run(quick, "steps=6", f"data={packed}", "workers=2"))
    assert plain.keys() == streamed.keys() and all(torch.equal(plain[name], streamed[name]) for name in plain)
    assert "packed frames, neighbours within 4 Å" in (tmp_path / "run" / "data.txt").read_text()


def test_frames_of_a_pack_are_read_when_they_are_asked_for(packed: Path, clusters: Path):
    data = read_data(load_config(None, [f"data=[{packed}, {packed}]", "valid=4", "test=0.25", "split=random"]))
    build_graphs(data, CUTOFF)
    assert {name: len(frames) for name, frames in data.frames.items()} == {"train": 32, "valid": 4, "test": 12}
    assert all(isinstance(frames, Selection) for frames in data.frames.values()) and isinstance(data.graphs["train"], GraphsOf)
    assert data.elements == [13, 29] and data.label_keys["forces"] == ["forces"]
    assert sorted(frame.source for name in data.frames for frame in data.frames[name]) == sorted(2 * [f.source for f in PackedSet(packed)])
    assert len(sampled_graphs(data)) == 32 and isinstance(data.graphs["valid"][2:][0], AtomicGraph)


@pytest.mark.parametrize("how", ["blocks", "random", "auto", "group:name"])
def test_a_selection_is_split_as_a_list(packed: Path, clusters: Path, how: str):
    frames = read(clusters).frames
    if how == "group:name":
        halves = [Selection([frames[12 * n : 12 * n + 12]]).labelled(name=n) for n in range(2)]
        stream, fractions = joined(halves), (0.5, 0.5, 0.0)
        assert [stream[n].info["name"] for n in (0, 11, 12, -1)] == [0, 0, 1, 1]
        frames = list(stream)
    else:
        stream, fractions = Selection([PackedSet(packed)]), (0.8, 0.1, 0.1)
    expected = split(frames, how, fractions, seed=3)
    assert {name: numbers.tolist() for name, numbers in split_numbers(stream, how, fractions, 3).items()} == expected


def test_sums_of_a_stream_are_those_of_its_parts(crystals: Path):
    frames = read(crystals).frames
    whole, parts = FrameSums.of(iter(frames)), FrameSums.of(frames[:5]) + FrameSums.of(frames[5:])
    for name, value in vars(whole).items():
        np.testing.assert_allclose(getattr(parts, name), value, rtol=1e-12) if name != "labels" else None
    assert whole.labels == parts.labels == {"energy": 12, "forces": 12, "stress": 6}


def test_a_sample_of_a_selection_is_seeded_and_a_list_is_taken_whole(clusters: Path):
    frames = read(clusters).frames
    assert sample(frames, 3) is frames
    few = [frame.source for frame in sample(Selection([frames]), 5)]
    assert few == [frame.source for frame in sample(Selection([frames]), 5)] and len(set(few)) == 5


def test_what_was_decided_when_packing_is_not_asked_again(packed: Path):
    for override in ("keys.energy=energy", "energy_key=free_energy", "fixed=none", "units.energy=hartree"):
        with pytest.raises(DataError, match="was decided when the file was packed"):
            read_data(load_config(None, [f"data={packed}", override]))


def test_a_damaged_pack_names_the_frame_and_skip_bad_leaves_it_out(quick: list[str], tmp_path: Path, emt_frames, write_frames):
    """The first of two chunks is damaged: all its frames are lost, and listed."""
    path = tmp_path / "set.eqpack"
    pack(write_frames(tmp_path / "set.xyz", emt_frames(1500)), path)
    first = PackedSet(path).firsts[1]
    content = bytearray(path.read_bytes())
    content[200] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"set\.eqpack:\d+: the checksum of frames 0 to"):
        FrameSums.of(iter(PackedSet(path)))  # what reads them all first
    folder = run(quick, f"data={path}", "steps=1", "skip_bad=true", "valid=4", "test=0")
    listed = (folder / "skipped.txt").read_text().splitlines()
    assert len(listed) == first and "the checksum of frames 0 to" in listed[0]
    assert f"{first} damaged frames skipped" in (folder / "data.txt").read_text()


def test_bad_records_are_errors_or_skipped_and_listed(quick: list[str], tmp_path: Path, emt_frames, write_frames):
    """One record is not a number, and of another the atoms lie upon each other."""
    frames = emt_frames(14)
    frames[3].positions[1] = frames[3].positions[0] + 0.01
    path = write_frames(tmp_path / "set.xyz", frames)
    lines = path.read_text().splitlines()
    lines[8] = "Cu nan nan nan 0 0 0"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"set\.xyz:1: "):
        run(quick, f"data={path}", "steps=1")
    folder = run(quick, f"data={path}", "steps=1", "skip_bad=true", "valid=2", "test=0")
    listed = (folder / "skipped.txt").read_text().splitlines()
    assert len(listed) == 2 and "set.xyz:1: " in listed[0] and "set.xyz:3: " in listed[1] and "0.017 Å apart" in listed[1]
    assert "1 bad records skipped" in (folder / "data.txt").read_text()


def test_units_that_a_file_does_not_state_are_stated(clusters: Path):
    ours, theirs = (read_data(load_config(None, [f"data={clusters}", *more])) for more in ([], ["units.energy=hartree"]))
    a, b = (data.frames["train"][0].labels for data in (ours, theirs))
    assert float(b["energy"] / a["energy"]) == pytest.approx(27.211386, rel=1e-6)
    np.testing.assert_allclose(b["forces"], 27.211386 * a["forces"], rtol=1e-6)


SIZES = np.array([3, 50, 4, 5, 6, 7, 30, 2, 9, 10])


def test_batches_fill_a_budget_and_leave_nothing_out():
    sampler = StepSampler(10, 20, seed=1, total=60, sizes=SIZES)
    batches = list(sampler)
    per_epoch, place = [], 0
    for epoch in range(4):
        frames: list[int] = []
        while len(frames) < 10:
            frames += batches[place]
            place += 1
        per_epoch.append(place - sum(per_epoch))
        assert sorted(frames) == list(range(10)) and frames == sampler.epoch_order(epoch).tolist()
    assert per_epoch[0] == sampler.steps_per_epoch and sum(per_epoch) == sampler.steps_of(4)
    assert all(SIZES[batch].sum() <= 20 or len(batch) == 1 for batch in batches)
    for start in (1, 7, 23, 59):
        assert list(StepSampler(10, 20, 1, 60, start, sizes=SIZES)) == batches[start:]


@pytest.mark.parametrize("sizes", [None, SIZES])
def test_processes_share_the_batches_of_one(sizes):
    """Those that would have nothing at the end of an epoch take a frame without its labels."""
    one = StepSampler(10, 20 if sizes is not None else 3, 2, 90, sizes=sizes)
    shared = [list(StepSampler(10, one.batch, 2, 12, sizes=sizes, rank=rank, processes=3)) for rank in range(3)]
    steps = [[batch for batch in parts if batch[0] >= 0] for parts in zip(*shared, strict=True)]
    assert [batch for parts in steps for batch in parts] == list(one)[: sum(map(len, steps))]
    assert any(len(parts) < 3 for parts in steps)
    in_middle = StepSampler(10, one.batch, 2, 12, 5, sizes=sizes, rank=1, processes=3)
    assert list(in_middle) == shared[1][5:]


def test_a_graph_that_stands_in_has_no_labels(clusters: Path):
    graphs = [frame.graph(CUTOFF) for frame in read(clusters).frames[:3]]
    seen = [list(ordered_loader(graphs, 2, rank=rank, processes=3)) for rank in range(3)]
    assert [len(batches) for batches in seen] == [1, 1, 1]
    assert [int(batch[0].energy_present.sum()) for batch in seen] == [2, 1, 0] and not seen[2][0].forces_present.any()
    assert graphs[0].energy_present.all()


def test_budgets_of_atoms_and_edges_are_told_with_what_exceeds_them(packed: Path, clusters: Path):
    graphs, stream = [frame.graph(CUTOFF) for frame in read(clusters).frames], GraphsOf(Selection([PackedSet(packed)]), CUTOFF)
    for kind, size in (("atoms", 4), ("edges", 12)):
        for one in (graphs, stream):
            assert cut({kind: 30}, one)[1].tolist() == [size] * 24
    assert told({"atoms": 9}, stream) == "at most 9 atoms (about 2 frames)"
    assert told({"atoms": 3}, stream).endswith("24 of 24 frames are larger, up to 4 atoms: each makes a batch of its own")
    with pytest.raises(DataError, match=r"no neighbour lists within 3 Å whose edges could be counted; pack it with --cutoff 3"):
        cut({"edges": 30}, GraphsOf(stream.frames, 3.0))
    assert [batch.num_systems for batch in ordered_loader(stream, {"atoms": 40})] == [10, 10, 4]


def test_a_run_with_a_budget_trains_on_every_frame(quick: list[str], packed: Path):
    folder = run(quick, f"data={packed}", "batch={atoms: 9}", "epochs=2", "valid=4", "test=4")
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == 16  # two frames a step, of sixteen, twice
    assert load_config(folder / "config.yaml").batch == {"atoms": 9}
