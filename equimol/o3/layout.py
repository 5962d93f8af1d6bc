"""How a feature of many degrees lies in one flat axis."""

import re
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

_TERM = re.compile(r"(?:(\d+)x)?(\d+)([eo])")


class Block(NamedTuple):
    """All channels of one degree and parity: `[2l+1, channels]`, flattened.

    Channels are innermost; e3nn has them outermost (see `from_e3nn`).
    """

    l: int
    parity: int  # +1 even ("e"), -1 odd ("o") under inversion
    channels: int

    @property
    def dim(self) -> int:
        """Length of the block on the flat axis."""
        return (2 * self.l + 1) * self.channels

    @property
    def irrep(self) -> str:
        """The representation in e3nn's notation, `"1o"`."""
        return f"{self.l}{'e' if self.parity == 1 else 'o'}"


Layout = tuple[Block, ...]


def parse_irreps(text: str) -> Layout:
    """Layout from e3nn's notation, `"64x0e + 64x1o + 1e"`.

    The order and the repetitions of the text are kept: nothing is sorted or merged.
    """
    layout = []
    for term in text.split("+"):
        match = _TERM.fullmatch(term.strip())
        channels = int(match[1] or 1) if match else 0
        if not channels:
            raise ValueError(
                f"irreps are terms such as '64x1o' joined by '+', got the term {term.strip()!r} in {text!r}; "
                "write channels (at least 1), 'x', the degree, and 'e' (even) or 'o' (odd)"
            )
        layout.append(Block(int(match[2]), 1 if match[3] == "e" else -1, channels))
    return tuple(layout)


def format_irreps(layout: Layout) -> str:
    """The layout in e3nn's notation; `parse_irreps` reads it back."""
    return "+".join(f"{block.channels}x{block.irrep}" for block in layout)


def layout_dim(layout: Layout) -> int:
    """Length of the flat axis."""
    return sum(block.dim for block in layout)


def layout_slices(layout: Layout) -> list[slice]:
    """Where each block lies on the flat axis."""
    slices, start = [], 0
    for block in layout:
        slices.append(slice(start, start + block.dim))
        start += block.dim
    return slices


def split_blocks(x: Float[Tensor, "... dim"], layout: Layout) -> list[Float[Tensor, "... components channels"]]:
    """The blocks of a feature as views `[..., 2l+1, channels]`.

    One split: its derivative is one concatenation, where slices would each give a full feature of mostly zeros.
    """
    check_dim(x, layout)
    parts = x.split([block.dim for block in layout], dim=-1)
    return [part.unflatten(-1, (2 * block.l + 1, block.channels)) for part, block in zip(parts, layout, strict=True)]


def natural_layout(lmax: int, channels: int) -> Layout:
    """Degrees 0 to lmax with the parity of the harmonics, (-1)^l, and equal channels.

    Its flat axis is a view of `[(lmax+1)**2, channels]`: `x.unflatten(-1, (-1, channels))` copies nothing.
    """
    return tuple(Block(l, (-1) ** l, channels) for l in range(lmax + 1))


def is_natural(layout: Layout) -> bool:
    """Whether the layout is `natural_layout` of some lmax and channels."""
    return len(layout) > 0 and layout == natural_layout(len(layout) - 1, layout[0].channels)


def lmax_of(layout: Layout) -> int:
    """The highest degree present."""
    return max(block.l for block in layout)


def from_e3nn(x: Float[Tensor, "... dim"], layout: Layout) -> Float[Tensor, "... dim"]:
    """Our feature from e3nn's: each block `[channels, 2l+1]` becomes `[2l+1, channels]`."""
    return _transpose_blocks(x, layout, [(block.channels, 2 * block.l + 1) for block in layout])


def to_e3nn(x: Float[Tensor, "... dim"], layout: Layout) -> Float[Tensor, "... dim"]:
    """e3nn's feature from ours: the inverse of `from_e3nn`."""
    return _transpose_blocks(x, layout, [(2 * block.l + 1, block.channels) for block in layout])


def _transpose_blocks(x: Tensor, layout: Layout, shapes: list[tuple[int, int]]) -> Tensor:
    check_dim(x, layout)
    blocks = [x[..., part].unflatten(-1, shape).mT.flatten(-2) for part, shape in zip(layout_slices(layout), shapes, strict=True)]
    return torch.cat(blocks, dim=-1)


def check_dim(x: Tensor, layout: Layout) -> None:
    """Raises where the last axis of a feature does not have the length of the layout."""
    if x.shape[-1] != layout_dim(layout):
        raise ValueError(
            f"a feature of {format_irreps(layout)} must have a last axis of length {layout_dim(layout)}, got shape {tuple(x.shape)}; "
            "pass the layout that the feature was made with"
        )
