"""Splits leave no frame out, keep neighbours in time together, and repeat with the seed."""

import numpy as np
import pytest

from equimol.data.errors import DataError
from equimol.data.frame import Frame
from equimol.data.splits import is_trajectory, split


def frame(numbers, **info) -> Frame:
    numbers = np.array(numbers, dtype=np.int64)
    return Frame(numbers, np.zeros((len(numbers), 3)), np.zeros((3, 3)), np.zeros(3, dtype=bool), {}, info, "test.xyz:0")


TRAJECTORY = [frame([8, 1, 1]) for _ in range(100)]
MIXTURE = [frame([1] * (1 + index % 7)) for index in range(100)]


@pytest.mark.parametrize("how", ["auto", "blocks", "random", "group:name"])
@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.1), (0.9, 0.1, 0.0), (1.0, 0.0, 0.0), (0.5, 0.2, 0.3)])
@pytest.mark.parametrize("count", [1, 3, 10, 97])
def test_every_frame_is_in_exactly_one_part(how, fractions, count):
    for kinds in (1, 4):
        frames = [frame([1] * (1 + index * kinds // count), name=index % 5) for index in range(count)]
        parts = split(frames, how, fractions)
        assert sorted(index for part in parts.values() for index in part) == list(range(count))
        assert all(not parts[name] for name, fraction in zip(parts, fractions, strict=True) if fraction == 0)


def test_a_trajectory_is_cut_into_contiguous_blocks_by_default():
    assert split(TRAJECTORY) == {"train": list(range(80)), "valid": list(range(80, 90)), "test": list(range(90, 100))}


def test_a_mixture_is_shuffled_by_default_and_repeats_with_the_seed():
    parts = split(MIXTURE, seed=1)
    assert parts == split(MIXTURE, seed=1) != split(MIXTURE, seed=2)
    assert [len(part) for part in parts.values()] == [80, 10, 10]
    assert parts["test"] != list(range(90, 100))


def test_every_run_of_a_file_of_trajectories_is_cut():
    frames = [frame([element]) for element in (1, 6, 8) for _ in range(20)]
    parts = split(frames)
    assert parts["test"] == [18, 19, 38, 39, 58, 59] and parts["valid"] == [16, 17, 36, 37, 56, 57]


def test_short_runs_get_their_share_together():
    frames = [frame([element]) for element in range(1, 51) for _ in range(2)]
    parts = split(frames, "blocks")
    assert [len(part) for part in parts.values()] == [80, 10, 10]


def test_a_small_set_still_validates_and_tests():
    assert {name: len(part) for name, part in split(TRAJECTORY[:4]).items()} == {"train": 2, "valid": 1, "test": 1}


def test_groups_stay_together():
    frames = [frame([1], molecule=f"m{index % 10}") for index in range(200)]
    parts = split(frames, "group:molecule", (0.6, 0.2, 0.2))
    names = {part: {frames[index].info["molecule"] for index in indices} for part, indices in parts.items()}
    assert [len(group) for group in names.values()] == [6, 2, 2]
    assert not names["train"] & names["test"] and not names["train"] & names["valid"]


def test_what_counts_as_a_trajectory():
    assert is_trajectory(TRAJECTORY) and not is_trajectory(MIXTURE) and not is_trajectory(TRAJECTORY[:1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"how": "stratified"}, "split must be auto, blocks, random or group:KEY"),
        ({"fractions": (0.8, 0.1, 0.2)}, "sum to 1"),
        ({"fractions": (1.2, -0.1, -0.1)}, "sum to 1"),
        ({"how": "group:smiles"}, "has no 'smiles' to group by"),
    ],
)
def test_wrong_requests_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        split(TRAJECTORY, **arguments)


def test_an_empty_training_set_is_an_error():
    with pytest.raises(DataError, match="leaves none to train on"):
        split([])
