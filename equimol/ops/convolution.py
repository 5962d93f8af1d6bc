"""Sums over neighbours of features coupled with the harmonics of edges, a weight for each path: compiled from the couplings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from equimol.ops.cuda_code import CudaKernel
from equimol.ops.kernels import find_kernel, has_kernel, run
from equimol.ops.multilinear import Form, form_derivatives, form_operator, plain_derivatives
from equimol.ops.scatter import gather, scatter_sum


class PathRows(NamedTuple):
    """A path: where its rows of channels begin in features, harmonics and sums, and its coefficients.

    Sums of a path may stand ``step`` rows apart, when those of other paths are between them.
    """

    features: int
    harmonics: int
    sums: int
    step: int
    entries: tuple[tuple[int, int, int, float], ...]  # m1, m2, m3 from 0, and what is not zero


#: of features, harmonics, weights and sums: the kernel of the derivative by it, and the arrays that it takes
_KERNELS = {"by_features": "ywg", "by_harmonics": "xwg", "by_weights": "xyg", "by_sums": "xyw"}


LONGEST = 2000  # entries of all paths together: longer code takes minutes to compile


class CoupledSum(Form):
    """sum_e w_p C x_s(e) y_e g_r(e) over paths p: linear in features x, harmonics y, weights w, and g, by which its derivative is the sum.

    Args:
        paths: where the rows of each are.
        rows, harmonics, sums: how many there are of x, y and g.
    """

    count = 4

    def __init__(self, paths: Sequence[Sequence], rows: int, harmonics: int, sums: int) -> None:
        self.paths = tuple(PathRows(*places, tuple(map(tuple, entries))) for *places, entries in paths)
        self.rows, self.harmonics, self.sums = rows, harmonics, sums
        entries = sum(len(path.entries) for path in self.paths)
        #: why there is no kernel of it; empty where there is one
        self.obstacle = f"couplings of {entries} numbers are too long to be compiled, {LONGEST} are the most" if entries > LONGEST else ""
        super().__init__(self.paths, rows, harmonics, sums)
        self._kernels: dict[tuple, Callable[..., int] | CudaKernel] = {}  # found by the description, which takes long to compare

    def shapes(self, arguments, constants):
        (x, _, _, g), (senders, _) = arguments, constants
        rows = x if x is not None else g  # one of them is there: the derivative by one needs the other
        atoms, channels, edges = len(rows), rows.shape[2], len(senders)
        return (atoms, self.rows, channels), (edges, self.harmonics), (edges, len(self.paths), channels), (atoms, self.sums, channels)

    def derivatives(self, arguments, constants, wanted):
        if not has_kernel("convolution", next(a for a in arguments if a is not None), self.obstacle):
            return self.plain_derivatives(arguments, constants, wanted)
        return self._computed(arguments, (None, None, None), constants, wanted)

    def along(self, arguments, directions, constants, wanted):
        like = arguments[0]
        if (
            directions[3] is not None
            or not has_kernel("convolution", like, self.obstacle)
            or isinstance(self._kernel("by_sums", like), CudaKernel)
        ):
            return None
        return self._computed(arguments, directions[:3], constants, wanted)

    def _computed(self, arguments, directions, constants, wanted):
        """By kernels: derivatives, or with directions of x, y or w the sum of theirs."""
        senders, receivers = constants
        like = next(a for a in arguments if a is not None)
        moved = "".join(letter for letter, direction in zip("xyw", directions, strict=True) if direction is not None)
        given = dict(zip("xywg", arguments, strict=True))
        given |= {"u" + letter: 0 if direction is None else direction for letter, direction in zip("xyw", directions, strict=True)}
        shapes, found = self.shapes(arguments, constants), [None] * 4
        (atoms, _, channels), edges = shapes[0], len(senders)
        require_within(atoms, senders=senders, receivers=receivers)
        for n, (name, arrays) in enumerate(_KERNELS.items()):
            if not wanted[n]:
                continue
            kernel = self._kernel(name, like, moved)
            arrays = [given[letter] for letter in (*arrays, *(f"u{letter}" for letter in arrays if letter != "g"))]
            # Those by features and sums are found atom by atom; the others edge by edge, or on CUDA by receivers, whose rows stay.
            if isinstance(kernel, CudaKernel):
                owners, others = (senders, receivers) if n == 0 else (receivers, senders)
                found[n] = like.new_empty(shapes[n])
                run(kernel, atoms, channels, *edges_of(owners, atoms), others, *arrays[:3], found[n])
            elif n == 0:
                parts = min(torch.get_num_threads(), atoms)  # a range of senders each; edges stay in their order, mostly that of receivers
                found[n] = like.new_zeros(shapes[n])
                run(kernel, parts, channels, *edges_of(senders, atoms, parts), senders, receivers, *arrays, found[n])
            else:
                found[n] = like.new_empty(shapes[n])
                domain = (atoms, channels, *edges_of(receivers, atoms), senders) if n == 3 else (edges, channels, senders, receivers)
                run(kernel, *domain, *arrays, found[n])
        return found

    def plain_derivatives(self, arguments, constants, wanted):
        """The same by PyTorch's operations: the reference."""
        return plain_derivatives(self, plain_coupled_sum, arguments, constants, wanted)

    def _kernel(self, name: str, like: Tensor, directions: str = "") -> Callable[..., int] | CudaKernel:
        """Of the derivative of that name, by features, harmonics, weights or sums, for such tensors, or its sum over directions."""
        key = name, like.dtype, like.device.type, directions
        if key not in self._kernels:
            self._kernels[key] = find_kernel("convolution", name, like, *self.settings, *[directions] * bool(directions))
        return self._kernels[key]


class TabulatedSum(Form):
    """`CoupledSum` whose weights are w_e = sum_k b_ek T_r(e)+k, k = 0..3: linear in x, y, b and g, the table T being constant."""

    count = 4

    def __init__(self, paths: Sequence[Sequence], rows: int, harmonics: int, sums: int) -> None:
        self.given = CoupledSum(paths, rows, harmonics, sums)  # the same of weights that are there
        super().__init__(*self.given.settings)

    def shapes(self, arguments, constants):
        (x, _, _, g), (senders, _, _, _) = arguments, constants
        rows = x if x is not None else g
        atoms, channels, edges = len(rows), rows.shape[2], len(senders)
        return (atoms, self.given.rows, channels), (edges, self.given.harmonics), (edges, 4), (atoms, self.given.sums, channels)

    def derivatives(self, arguments, constants, wanted):
        senders, receivers, first_rows, table = constants
        x, y, b, g = arguments
        like = next(a for a in arguments if a is not None)
        if not has_kernel("convolution", like, self.given.obstacle) or like.device.type != "cpu":
            return self.plain_derivatives(arguments, constants, wanted)
        shapes = self.shapes(arguments, constants)
        (atoms, _, channels), edges = shapes[0], len(senders)
        require_within(atoms, senders=senders, receivers=receivers)
        require_within(len(table) - 3, first_rows=first_rows)
        found = [like.new_empty(shape) if want else None for shape, want in zip(shapes, wanted, strict=True)]

        def kernel(name: str) -> Callable[..., int]:
            return find_kernel("convolution", f"tabulated_{name}", like, *self.settings)

        if wanted[0]:
            parts = min(torch.get_num_threads(), atoms)
            domain = parts, channels, *edges_of(senders, atoms, parts), senders, receivers
            run(kernel("by_features"), *domain, first_rows, table, g, y, b, found[0].zero_())
        if wanted[1] or wanted[2]:
            of_y, of_b = (like.new_empty(shape) if part is None else part for shape, part in zip(shapes[1:3], found[1:3], strict=True))
            y, b = (like.new_zeros(shape) if part is None else part for shape, part in zip(shapes[1:3], (y, b), strict=True))
            run(kernel("by_edges"), edges, channels, senders, receivers, first_rows, table, x, y, b, g, of_y, of_b)
        if wanted[3]:
            run(kernel("by_sums"), atoms, channels, *edges_of(receivers, atoms), senders, first_rows, table, x, y, b, found[3])
        return found

    def plain_derivatives(self, arguments, constants, wanted):
        """The same by PyTorch's operations: the reference."""
        senders, receivers, first_rows, table = constants
        x, y, b, g = arguments
        look_up = _blended(b, first_rows, table) if b is not None else None
        found = self.given.plain_derivatives((x, y, look_up, g), (senders, receivers), wanted)
        if found[2] is not None:
            rows = table[first_rows[:, None] + torch.arange(4, device=table.device)]  # [edges, 4, paths, channels]
            found[2] = (rows * found[2].unsqueeze(1)).sum((2, 3))
        return found


def tabulated_sum(
    form: TabulatedSum,
    features: Float[Tensor, "atoms rows channels"],
    harmonics: Float[Tensor, "edges size"],
    table: Float[Tensor, "knots paths channels"],
    first_rows: Int[Tensor, " edges"],
    blend: Float[Tensor, "edges 4"],
    senders: Int[Tensor, " edges"],
    receivers: Int[Tensor, " edges"],
) -> Float[Tensor, "atoms sums channels"]:
    """`coupled_sum` whose weights are blended of four rows of a table, from ``first_rows`` on, where they are needed: none is kept.

    Derivatives of any order, but none in the table.
    """
    edges = len(senders)
    shapes = [("harmonics", harmonics, (edges, form.given.harmonics)), ("blend", blend, (edges, 4))]
    shapes.append(("table", table, (len(table), len(form.given.paths), features.shape[2])))
    require_beside(features, edges, shapes)
    require_edges(edges, senders=senders, receivers=receivers, first_rows=first_rows)
    if table.requires_grad:
        raise ValueError("table must be a constant, got one that needs a gradient; use coupled_sum with weights looked up in it")
    constants = senders.contiguous(), receivers.contiguous(), first_rows.contiguous(), table.contiguous()
    return form_derivatives(form, (features, harmonics, blend, None), constants, (False, False, False, True))[3]


def _blended(b: Float[Tensor, "edges 4"], first_rows: Int[Tensor, " edges"], table: Tensor) -> Float[Tensor, "edges paths channels"]:
    return sum(b[:, k, None, None] * table[first_rows + k] for k in range(4))


def require_beside(features: Tensor, edges: int, shapes: Sequence[tuple[str, Tensor, tuple[int, ...]]]) -> None:
    """Raises ValueError for a tensor of another shape than stated, or of another dtype or device than the features."""
    for name, tensor, shape in shapes:
        if tensor.shape != shape or tensor.dtype != features.dtype or tensor.device != features.device:
            raise ValueError(
                f"{name} must be {features.dtype} {list(shape)} on {features.device} beside features {list(features.shape)} and {edges}"
                f" senders, got {tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            )


def require_edges(edges: int, **indices: Int[Tensor, " edges"]) -> None:
    """Raises ValueError for an index that is not int64, or not of this many edges."""
    for name, index in indices.items():
        if index.dtype != torch.int64 or len(index) != edges:
            raise ValueError(f"{name} must be int64, one for each of {edges} edges, got {index.dtype} [{len(index)}]")


def require_within(size: int, **indices: Int[Tensor, " edges"]) -> None:
    """A kernel does not look. Raises ValueError for an index that names nothing."""
    for name, index in indices.items():
        least, most = map(int, torch.aminmax(index)) if len(index) else (0, -1)
        if least < 0 or most >= size:
            raise ValueError(f"{name} must be in 0..{size - 1}, got {least}..{most}")


def coupled_sum(
    form: CoupledSum,
    features: Float[Tensor, "atoms rows channels"],
    harmonics: Float[Tensor, "edges size"],
    weights: Float[Tensor, "edges paths channels"],
    senders: Int[Tensor, " edges"],
    receivers: Int[Tensor, " edges"],
) -> Float[Tensor, "atoms sums channels"]:
    """sum_e w_p C (features of the sender) (harmonics of the edge), for each path p: of any order of derivative, nothing kept by edges."""
    arguments, wanted = (features, harmonics, weights, None), (False, False, False, True)
    channels, edges = features.shape[2], len(senders)
    shapes = ("harmonics", harmonics, (edges, form.harmonics)), ("weights", weights, (edges, len(form.paths), channels))
    require_beside(features, edges, shapes)
    require_edges(edges, senders=senders, receivers=receivers)
    derivatives = form_operator if torch.compiler.is_compiling() else form_derivatives
    return derivatives(form, arguments, (senders.contiguous(), receivers.contiguous()), wanted)[3]


def plain_coupled_sum(
    form: CoupledSum, features: Tensor, harmonics: Tensor, weights: Tensor, senders: Tensor, receivers: Tensor
) -> Float[Tensor, "atoms sums channels"]:
    """`coupled_sum` edge by edge, as it reads: the reference, and what traced and exported programs are made of."""
    rows: list[Tensor | None] = [None] * form.sums
    neighbours = gather(features, senders)
    for p, path in enumerate(form.paths):
        sizes = [1 + max(entry[n] for entry in path.entries) for n in range(3)]
        coefficients = torch.zeros(sizes, dtype=torch.float64)
        for m1, m2, m3, coefficient in path.entries:
            coefficients[m1, m2, m3] = coefficient
        x = neighbours[:, path.features : path.features + sizes[0]]
        y = harmonics[:, path.harmonics : path.harmonics + sizes[1]]
        mixed = torch.matmul(y, coefficients.to(y).transpose(0, 1).flatten(1)).unflatten(1, (sizes[0], sizes[2]))
        coupled = torch.matmul(mixed.mT, x) * weights[:, p, None]
        for m3, row in enumerate(coupled.unbind(1)):
            rows[path.sums + m3 * path.step] = row
    return scatter_sum(torch.stack(rows, 1), receivers, len(features))


_known: WeakIdKeyDictionary = WeakIdKeyDictionary()  # of senders and receivers, which all layers of a model share: their edges by atoms


def edges_of(
    index: Int[Tensor, " edges"], atoms: int, parts: int | None = None
) -> tuple[Int[Tensor, " groups_plus_one"], Int[Tensor, " edges"]]:
    """Where the edges of each atom begin in their order, and the edges in this order. Found once for a tensor that does not change.

    With ``parts``, the same of ranges of as many atoms each. Edges of one atom, or range, stay in the order they are in.
    """
    if index.is_inference():  # nobody counts its changes
        return _sorted_edges(index, atoms, parts)
    version, known = _known.get(index, (None, {}))
    if version != index._version:
        known = {}
        _known[index] = index._version, known
    if (atoms, parts) not in known:
        known[atoms, parts] = _sorted_edges(index, atoms, parts)
    return known[atoms, parts]


def _sorted_edges(index: Tensor, atoms: int, parts: int | None) -> tuple[Tensor, Tensor]:
    if parts is not None:
        index, atoms = index * parts // max(1, atoms), parts
    counts = torch.bincount(index, minlength=atoms)
    return torch.nn.functional.pad(torch.cumsum(counts, 0), (1, 0)), torch.argsort(index, stable=True)
