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
from equimol.ops.multilinear import Form, form_derivatives, form_operator
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
_KERNELS = {"by_features": "gyw", "by_harmonics": "xgw", "by_weights": "xyg", "by_sums": "xyw"}


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
        super().__init__(self.paths, rows, harmonics, sums)
        self._kernels: dict[tuple, Callable[..., int] | CudaKernel] = {}  # found by the description, which takes long to compare

    def shapes(self, arguments, constants):
        (x, _, _, g), (senders, _) = arguments, constants
        rows = x if x is not None else g  # one of them is there: the derivative by one needs the other
        atoms, channels, edges = len(rows), rows.shape[2], len(senders)
        return (atoms, self.rows, channels), (edges, self.harmonics), (edges, len(self.paths), channels), (atoms, self.sums, channels)

    def derivatives(self, arguments, constants, wanted):
        senders, receivers = constants
        like = next(a for a in arguments if a is not None)
        if not has_kernel("convolution", like):
            return self.plain_derivatives(arguments, constants, wanted)
        shapes, found = self.shapes(arguments, constants), [None] * 4
        (atoms, _, channels), edges = shapes[0], len(senders)
        for name, index in (("senders", senders), ("receivers", receivers)):  # a kernel does not look
            least, most = map(int, torch.aminmax(index)) if edges else (0, -1)
            if least < 0 or most >= atoms:
                raise ValueError(f"{name} must be in 0..{atoms - 1}, got {least}..{most}")
        for n, want in enumerate(wanted):
            found[n] = like.new_empty(shapes[n]) if want else None
        for n, (name, arrays) in enumerate(_KERNELS.items()):
            if not wanted[n]:
                continue
            kernel = self.kernel(name, like)
            # Those by features and sums are found atom by atom; the others edge by edge, or on CUDA by receivers, whose rows stay.
            if n == 0:
                domain = atoms, channels, *edges_of(senders, atoms), receivers
            elif n == 3 or isinstance(kernel, CudaKernel):
                domain = atoms, channels, *edges_of(receivers, atoms), senders
            else:
                domain = edges, channels, senders, receivers
            run(kernel, *domain, *(arguments["xywg".index(array)] for array in arrays), found[n])
        return found

    def plain_derivatives(self, arguments, constants, wanted):
        """The same by PyTorch's operations: the reference."""
        like = next(a for a in arguments if a is not None)
        with torch.enable_grad():
            leaves = [
                (like.new_zeros(shape) if a is None else a.detach()).requires_grad_(want)
                for a, shape, want in zip(arguments, self.shapes(arguments, constants), wanted, strict=True)
            ]
            total = (plain_coupled_sum(self, *leaves[:3], *constants) * leaves[3]).sum()
            found = iter(torch.autograd.grad(total, [leaf for leaf, want in zip(leaves, wanted, strict=True) if want]))
        return [next(found) if want else None for want in wanted]

    def kernel(self, name: str, like: Tensor) -> Callable[..., int] | CudaKernel:
        """Of the derivative of that name, by features, harmonics, weights or sums, for such tensors."""
        key = name, like.dtype, like.device.type
        if key not in self._kernels:
            self._kernels[key] = find_kernel("convolution", name, like, *self.settings)
        return self._kernels[key]


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
    for name, tensor, shape in shapes:
        if tensor.shape != shape or tensor.dtype != features.dtype or tensor.device != features.device:
            raise ValueError(
                f"{name} must be {features.dtype} {list(shape)} on {features.device} beside features {list(features.shape)} and {edges}"
                f" senders, got {tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            )
    if len(receivers) != edges or senders.dtype != torch.int64 or receivers.dtype != torch.int64:
        raise ValueError(
            f"senders and receivers must be int64, one for each edge, got {senders.dtype} [{edges}], {receivers.dtype} [{len(receivers)}]"
        )
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


def edges_of(index: Int[Tensor, " edges"], atoms: int) -> tuple[Int[Tensor, " atoms_plus_one"], Int[Tensor, " edges"]]:
    """Where the edges of each atom begin in their order, and the edges in this order. Found once for a tensor that does not change."""
    if index.is_inference():  # nobody counts its changes
        return _sorted_edges(index, atoms)
    known, edges = _known.get(index, (None, None))
    if known != (index._version, atoms):
        edges = _sorted_edges(index, atoms)
        _known[index] = (index._version, atoms), edges
    return edges


def _sorted_edges(index: Tensor, atoms: int) -> tuple[Tensor, Tensor]:
    counts = torch.bincount(index, minlength=atoms)
    return torch.nn.functional.pad(torch.cumsum(counts, 0), (1, 0)), torch.argsort(index, stable=True)
