"""What callers know of a product: the three interfaces, their weights, their checks."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equimol.o3 import (
    Block,
    Layout,
    Path,
    bracket_coefficient,
    coupling_paths,
    format_irreps,
    gaunt_coefficient,
    gradient_scale,
    is_natural,
    layout_dim,
    lmax_of,
)


class TensorProduct(nn.Module, ABC):
    """Equivariant, bilinear coupling of two features, channel by channel.

    Weights come from the caller: one per path of ``paths``, or with ``rank=R`` R sets of one per block of in1, in2 and
    out, which stand for the path weights W_p = mean over r of a_r(l1) b_r(l2) c_r(l3). Any product that can represent
    a family of couplings gives the same numbers for the same weights; one that cannot raises when it is built.

    Any order of derivative. bfloat16 and float16 are computed in float32 inside and rounded once, at the end.

    Args:
        in1: blocks of equal channels.
        in2: blocks of the same channels, or of one channel that couples to all of in1's.
        out_degrees: l3 kept, or the largest of 0..l3.
        couplings: "even" or "odd" keeps the paths with l1+l2+l3 even or odd.
        sum_paths: one block per degree and parity; False keeps one block per path, in the order of ``paths``.
        rank: R, or None for free path weights.
    """

    couples: ClassVar[str] = "all"  # the couplings that this product contains: "all", "even" or "odd"

    def __init__(
        self,
        in1: Layout,
        in2: Layout,
        out_degrees: int | Iterable[int],
        *,
        couplings: str = "all",
        sum_paths: bool = True,
        rank: int | None = None,
    ) -> None:
        super().__init__()
        self.in1, self.in2, self.rank = in1, in2, rank
        self.channels = _common_channels("in1", in1)
        self.channels2 = _common_channels("in2", in2)
        if self.channels2 not in (1, self.channels):
            raise ValueError(f"in2 must have 1 or {self.channels} channels like in1, got {format_irreps(in2)}")
        self.out_degrees = list_degrees(out_degrees)
        self.paths = tuple(sorted(coupling_paths(in1, in2, self.out_degrees, couplings), key=_path_order))
        source = f"{couplings} couplings of {format_irreps(in1)} with {format_irreps(in2)}"
        _require_reached(self.out_degrees, {p.l3 for p in self.paths}, source)
        self._require_couplings(couplings)
        kinds = [(p.l3, p.p3) for p in self.paths]
        if sum_paths:
            kinds = list(dict.fromkeys(kinds))
        self.out: Layout = tuple(Block(l, parity, self.channels) for l, parity in kinds)
        #: for each path, the number of its block in ``out``
        self.out_blocks = tuple(kinds.index((p.l3, p.p3)) if sum_paths else n for n, p in enumerate(self.paths))
        if rank is not None:
            self._require_rank_form(sum_paths)
        self.num_weights = len(self.paths) if rank is None else rank * (len(in1) + len(in2) + len(self.out))
        blocks = torch.tensor([[p.i1 for p in self.paths], [p.i2 for p in self.paths], self.out_blocks])
        self.register_buffer("_blocks", blocks, persistent=False)

    def forward(
        self, x: Float[Tensor, "... dim1"], y: Float[Tensor, "... dim2"], weights: Float[Tensor, "... num_weights channels"]
    ) -> Float[Tensor, "... dim_out"]:
        """The product. Leading dimensions broadcast; weights without any are shared by the batch."""
        self.check(x, y, weights)
        if x.dtype in (torch.bfloat16, torch.float16):
            return self.product(x.float(), y.float(), weights.float()).to(x.dtype)
        return self.product(x, y, weights)

    @abstractmethod
    def product(
        self, x: Float[Tensor, "... dim1"], y: Float[Tensor, "... dim2"], weights: Float[Tensor, "... num_weights channels"]
    ) -> Float[Tensor, "... dim_out"]:
        """What a subclass computes, of inputs that were checked."""

    @abstractmethod
    def flops(self) -> int:
        """Multiplications and additions for one pair of features, all channels, as this product computes it."""

    def bytes(self, dtype: torch.dtype = torch.float32) -> int:
        """What one pair of features must move at least: both read and the result written, once each; weights shared by the batch."""
        return (layout_dim(self.in1) + layout_dim(self.in2) + layout_dim(self.out)) * dtype.itemsize

    def strength(self, path: Path) -> float:
        """Relative size of a path within its block of ``out``, with all weights one; :meth:`coefficients` normalises it.

        Free path weights start equal. A rank has what one product of functions on the sphere gives, once each degree is
        balanced: see `sphere_strength`, whose values differ by less than a factor 1.4 up to degree 6.
        """
        if self.rank is None:
            return 1.0
        return sphere_strength(path.l1, path.l2, path.l3)

    def coefficients(self) -> dict[Path, float]:
        """The factor t_p in front of each path's wigner_3j coupling when all weights are one.

        Unit-variance components then give unit-variance components: the squares within a block of ``out`` sum to 2*l3+1.
        """
        strengths = [self.strength(path) for path in self.paths]
        power = [0.0] * len(self.out)
        for block, strength in zip(self.out_blocks, strengths, strict=True):
            power[block] += strength**2
        # a component of (x (x) y)_l3 has variance 1 / (2 l3 + 1): wigner_3j has unit norm
        scales = [math.sqrt((2 * b.l + 1) / total) for b, total in zip(self.out, power, strict=True)]
        return {p: strength * scales[block] for p, block, strength in zip(self.paths, self.out_blocks, strengths, strict=True)}

    def interactability(self) -> dict[Path, float]:
        """Strength t_p of *every* coupling of in1 with in2 to the out degrees; 0 for those that this product cannot contain.

        Which couplings can be non-zero is what sets products apart (Xie et al. 2025, arXiv:2506.13523).
        """
        coefficients = self.coefficients()
        return {p: coefficients.get(p, 0.0) for p in sorted(coupling_paths(self.in1, self.in2, self.out_degrees), key=_path_order)}

    @property
    def degrees_of_freedom(self) -> int:
        """Dimension of the family of path weights W_p within reach of one channel; num_weights counts scales twice."""
        if self.rank is None:
            return len(self.paths)
        generator = torch.Generator().manual_seed(0)
        point = torch.randn(self.num_weights, 1, dtype=torch.float64, generator=generator).to(self._blocks.device)
        jacobian = torch.autograd.functional.jacobian(self.path_weights, point)
        return int(torch.linalg.matrix_rank(jacobian.view(len(self.paths), self.num_weights)))

    def rank_factors(
        self, weights: Float[Tensor, "... num_weights channels"]
    ) -> tuple[Float[Tensor, "... rank n1 channels"], Float[Tensor, "... rank n2 channels"], Float[Tensor, "... rank n_out channels"]]:
        """The weights of a rank form as a(l1), b(l2), c(l3)."""
        return weights.unflatten(-2, (self.rank, -1)).split([len(self.in1), len(self.in2), len(self.out)], dim=-2)

    def path_weights(self, weights: Float[Tensor, "... num_weights channels"]) -> Float[Tensor, "... paths channels"]:
        """W_p, which multiplies t_p. Without a rank these are the weights themselves."""
        if self.rank is None:
            return weights
        a, b, c = (f.index_select(-2, blocks) for f, blocks in zip(self.rank_factors(weights), self._blocks, strict=True))
        return (a * b * c).mean(-3)

    def check(self, x: Tensor, y: Tensor, weights: Tensor) -> None:
        """Raises where a shape would otherwise broadcast to nonsense, or where dtypes differ."""
        require_trailing("x", x, (layout_dim(self.in1),), f"a feature of layout {format_irreps(self.in1)}")
        require_trailing("y", y, (layout_dim(self.in2),), f"a feature of layout {format_irreps(self.in2)}")
        require_trailing("weights", weights, (self.num_weights, self.channels), "num_weights weights for each channel")
        if not x.dtype == y.dtype == weights.dtype:
            raise ValueError(f"x, y and weights must have one dtype, got {x.dtype}, {y.dtype} and {weights.dtype}; cast them with .to()")

    def _require_couplings(self, asked: str) -> None:
        wanted = {"all": (0, 1), "even": (0,), "odd": (1,)}[self.couples]
        for p in self.paths:
            if (p.l1 + p.l2 + p.l3) % 2 not in wanted:
                raise ValueError(
                    f"{type(self).__name__} has only couplings with l1+l2+l3 {self.couples}, but couplings={asked!r} contains "
                    f"({p.l1}, {p.l2}, {p.l3}); pass couplings={self.couples!r}, or use CompleteGrid or ClebschGordan"
                )

    def _require_rank_form(self, sum_paths: bool) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}; pass None for free path weights")
        if not sum_paths:
            raise ValueError(f"{type(self).__name__} with weights per degree sums its paths by nature; pass sum_paths=True")


def balance(l: int) -> float:
    """Factor of each degree of a function on the sphere, in both inputs and the output of a product, that evens out its couplings."""
    return (2 * l + 1) ** -0.2


def sphere_strength(l1: int, l2: int, l3: int) -> float:
    """Coefficient of wigner_3j in the product of functions on the sphere: the pointwise product (l1+l2+l3 even) or the bracket (odd).

    The functions are sums of balance(l) x_lm Y_lm, the projection on degree l3 is multiplied by balance(l3), gradients and brackets by
    `gradient_scale`. Up to degree 6 the even coefficients lie between 0.26 and 0.37, the odd ones between 0.29 and 0.36.
    """
    degrees = (l1, l2, l3)
    strength = math.prod(balance(l) for l in degrees)
    if sum(degrees) % 2 == 0:
        return strength * gaunt_coefficient(*degrees)
    return strength * math.prod(gradient_scale(l) for l in degrees) * bracket_coefficient(*degrees)


class EdgeConvolution(nn.Module, ABC):
    """Gather at the sender, couple with the edge's harmonics, sum at the receiver.

    A subclass states ``out`` and ``num_weights``; both may have several weights or channels per degree, for the linear
    layer that follows to mix. Each message, not the sum over neighbours, has unit variance.

    Args:
        in_layout: blocks of equal channels.
        lmax_edge: degrees 0..lmax_edge of the harmonics.
        out_degrees: l3 kept, or the largest of 0..l3.
        rank: number of filters per channel, where the product has weights per degree.
    """

    out: Layout
    num_weights: int

    def __init__(self, in_layout: Layout, lmax_edge: int, out_degrees: int | Iterable[int], rank: int | None = None) -> None:
        super().__init__()
        self.in_layout, self.lmax_edge, self.rank = in_layout, lmax_edge, rank
        self.channels = _common_channels("in_layout", in_layout)
        self.out_degrees = list_degrees(out_degrees)
        if lmax_edge < 0:
            raise ValueError(f"lmax_edge must be 0 or more, got {lmax_edge}")
        if rank is not None and rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        reached = {l3 for l3 in self.out_degrees if any(abs(b.l - l3) <= lmax_edge for b in in_layout)}
        _require_reached(self.out_degrees, reached, f"{format_irreps(in_layout)} with harmonics up to degree {lmax_edge}")

    @abstractmethod
    def forward(
        self,
        features: Float[Tensor, "atoms dim"],
        harmonics: Float[Tensor, "edges harmonics"],
        senders: Int[Tensor, " edges"],
        receivers: Int[Tensor, " edges"],
        weights: Float[Tensor, "edges num_weights channels"],
    ) -> Float[Tensor, "atoms dim_out"]:
        """Sums of messages. Harmonics are component-normalised, of the direction receiver -> sender or its inverse."""

    def check(self, features: Tensor, harmonics: Tensor, senders: Tensor, receivers: Tensor, weights: Tensor) -> None:
        """Raises where a shape would otherwise broadcast to nonsense."""
        require_trailing("features", features, (layout_dim(self.in_layout),), f"features of layout {format_irreps(self.in_layout)}")
        require_trailing("harmonics", harmonics, ((self.lmax_edge + 1) ** 2,), f"harmonics up to degree {self.lmax_edge}")
        require_trailing("weights", weights, (self.num_weights, self.channels), "num_weights weights for each channel of each edge")
        edges = {"harmonics": harmonics, "senders": senders, "receivers": receivers, "weights": weights}
        if any(v.shape[0] != senders.shape[0] for v in edges.values()):  # len() would make sizes of a traced program constant
            sizes = ", ".join(f"{name} {v.shape[0]}" for name, v in edges.items())
            raise ValueError(f"harmonics, senders, receivers and weights must have one row per edge, got {sizes}; pass one graph's edges")


class ManyBodyProduct(nn.Module, ABC):
    """Sum of products of 1..correlation copies of a feature, with weights per chemical element.

    A subclass states ``num_weights``. The output has natural parity and one block per degree.

    Args:
        in_layout: blocks of equal channels; most products need natural parity and degrees 0..lmax.
        out_degrees: l3 kept, or the largest of 0..l3.
        correlation: largest number of copies.
        num_elements: number of weight sets.
    """

    num_weights: int

    def __init__(self, in_layout: Layout, out_degrees: int | Iterable[int], correlation: int, num_elements: int) -> None:
        super().__init__()
        if correlation < 1 or num_elements < 1:
            raise ValueError(f"correlation and num_elements must be at least 1, got {correlation} and {num_elements}")
        self.in_layout, self.correlation, self.num_elements = in_layout, correlation, num_elements
        self.channels = _common_channels("in_layout", in_layout)
        self.out_degrees = list_degrees(out_degrees)
        reached = set(range(correlation * lmax_of(in_layout) + 1))
        _require_reached(self.out_degrees, reached, f"{correlation} copies of {format_irreps(in_layout)}")
        self.out: Layout = tuple(Block(l, (-1) ** l, self.channels) for l in self.out_degrees)

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "atoms dim"], weights: Float[Tensor, "elements num_weights channels"], species: Int[Tensor, " atoms"]
    ) -> Float[Tensor, "atoms dim_out"]:
        """The sum of products. ``species`` counts elements 0..num_elements-1, it is not the atomic number."""

    def check(self, x: Tensor, weights: Tensor, species: Tensor) -> None:
        """Raises where a shape would otherwise broadcast to nonsense."""
        require_trailing("x", x, (layout_dim(self.in_layout),), f"features of layout {format_irreps(self.in_layout)}")
        shape = (self.num_elements, self.num_weights, self.channels)
        require_trailing("weights", weights, shape, "num_weights weights per element and channel")
        if species.shape != x.shape[:1]:
            got = tuple(species.shape)
            raise ValueError(f"species must be [{len(x)}], one element per row of x, got {got}; pass species of the same atoms")


def list_degrees(out_degrees: int | Iterable[int]) -> tuple[int, ...]:
    """The degrees meant by a largest degree or by a list, ascending."""
    degrees = range(out_degrees + 1) if isinstance(out_degrees, int) else list(out_degrees)
    if not degrees or min(degrees) < 0 or len(set(degrees)) < len(degrees):
        raise ValueError(f"out_degrees must be a degree >= 0 or a list of different ones, got {out_degrees}")
    return tuple(sorted(degrees))


def require_natural(owner: str, name: str, layout: Layout) -> None:
    """A function on the sphere has degrees 0..lmax of parity (-1)^l: nothing else can be sampled."""
    if not is_natural(layout):
        raise ValueError(
            f"{owner} needs natural parity, all degrees 0..lmax and equal channels in {name}, such as 64x0e+64x1o+64x2e, "
            f"got {format_irreps(layout)}; pass natural_layout(lmax, channels)"
        )


def require_trailing(name: str, tensor: Tensor, shape: tuple[int, ...], meaning: str) -> None:
    """The last dimensions of a tensor, with a message that names it."""
    if tensor.shape[-len(shape) :] != shape:
        expected = ", ".join(str(n) for n in shape)
        raise ValueError(f"{name} must be [..., {expected}], got {tuple(tensor.shape)}; pass {meaning}")


def _common_channels(name: str, layout: Layout) -> int:
    channels = {block.channels for block in layout}
    if len(channels) != 1:
        got = format_irreps(layout)
        raise ValueError(f"{name} needs one or more blocks, all of the same channels, got {got!r}; mix them to equal channels first")
    return channels.pop()


def _require_reached(wanted: tuple[int, ...], reached: set[int], source: str) -> None:
    missing = [l for l in wanted if l not in reached]
    if missing:
        raise ValueError(f"out_degrees {missing} cannot be reached by {source}; leave them out")


def _path_order(path: Path) -> tuple:
    """Degree first, natural parity before the other: natural inputs with even couplings give a natural output."""
    return path.l3, path.p3 != (-1) ** path.l3, path.l1, path.l2, path.i1, path.i2
