"""Layouts: notation, slices, and the bridge to e3nn's order."""

import pytest
import torch

from equimol.o3 import (
    Block,
    format_irreps,
    from_e3nn,
    is_natural,
    layout_dim,
    layout_slices,
    lmax_of,
    natural_layout,
    parse_irreps,
    split_blocks,
    to_e3nn,
)

MIXED = "2x0e+3x1o+1x1e+2x3o"


def test_irreps_are_read_with_their_order_and_repetitions():
    assert parse_irreps("64x1o + 2e+64x1o") == (Block(1, -1, 64), Block(2, 1, 1), Block(1, -1, 64))


def test_irreps_survive_a_round_trip_through_text():
    assert format_irreps(parse_irreps(MIXED)) == MIXED
    assert parse_irreps(format_irreps(natural_layout(3, 8))) == natural_layout(3, 8)


@pytest.mark.parametrize(
    ("text", "term"), [("64x0e+12y1o", "12y1o"), ("", ""), ("1o++1e", ""), ("0x1o", "0x1o"), ("-1x2e", "-1x2e"), ("3", "3")]
)
def test_a_bad_term_is_quoted(text, term):
    with pytest.raises(ValueError, match=f"term '{term}'"):
        parse_irreps(text)


def test_blocks_fill_the_flat_axis_without_gaps():
    layout = parse_irreps(MIXED)
    slices = layout_slices(layout)
    assert slices[0].start == 0 and slices[-1].stop == layout_dim(layout) == 2 + 9 + 3 + 14
    assert all(before.stop == after.start for before, after in zip(slices, slices[1:], strict=False))
    assert [part.stop - part.start for part in slices] == [block.dim for block in layout]


def test_a_natural_layout_knows_itself():
    layout = natural_layout(3, 5)
    assert format_irreps(layout) == "5x0e+5x1o+5x2e+5x3o"
    assert is_natural(layout) and lmax_of(layout) == 3 and layout_dim(layout) == 16 * 5


@pytest.mark.parametrize("text", ["2x0e+2x1e", "2x0e+3x1o", "2x1o", "2x0e+2x2e", "2x1o+2x0e"])
def test_other_layouts_are_not_natural(text):
    assert not is_natural(parse_irreps(text))
    assert not is_natural(())


def test_the_flat_axis_of_a_natural_layout_is_a_view_of_rows_of_channels():
    layout = natural_layout(2, 4)
    x = torch.arange(layout_dim(layout), dtype=torch.float64)
    rows = x.unflatten(-1, (9, 4))
    assert rows.data_ptr() == x.data_ptr()
    for block, rows_of_degree in zip(split_blocks(x, layout), rows.split([1, 3, 5]), strict=True):
        assert torch.equal(block, rows_of_degree)


def test_e3nn_keeps_channels_outermost(e3nn_o3):
    layout = parse_irreps("2x1o")
    theirs = torch.tensor([10.0, 11, 12, 20, 21, 22])  # (x, y, z) of channel 1, then of channel 2
    assert e3nn_o3.Irreps("2x1o").dim == layout_dim(layout)
    assert from_e3nn(theirs, layout).tolist() == [10, 20, 11, 21, 12, 22]


def test_e3nn_features_survive_a_round_trip(generator, e3nn_o3):
    layout = parse_irreps(MIXED)
    x = torch.randn(5, 4, layout_dim(layout), generator=generator)
    assert e3nn_o3.Irreps(MIXED).dim == layout_dim(layout)
    assert torch.equal(to_e3nn(from_e3nn(x, layout), layout), x)
    assert torch.equal(from_e3nn(to_e3nn(x, layout), layout), x)


@pytest.mark.parametrize("function", [from_e3nn, to_e3nn, split_blocks])
def test_a_feature_of_another_length_is_refused(function):
    with pytest.raises(ValueError, match="length 5, got shape"):
        function(torch.zeros(2, 6), parse_irreps("2x0e+1o"))
