"""Every coupling at the cost of a grid: even ones by the pointwise product, odd ones by the bracket, one synthesis of each input."""

from equimol.o3 import sphere_grid
from equimol.tensor_products.sphere_convolution import SphereConvolution
from equimol.tensor_products.sphere_power import CompletePower
from equimol.tensor_products.sphere_product import SphereProduct


class CompleteGrid(SphereProduct):
    """Pointwise product and surface Poisson bracket of two functions on the sphere, together.

    One set of rank factors serves both: W_p = mean over r of a_r(l1) b_r(l2) c_r(l3, parity). ``algorithm`` as in ``GauntGrid``.
    """

    make_grid = staticmethod(sphere_grid)


class CompleteGridConvolution(SphereConvolution):
    """Sum over neighbours of products with the filter of their edge, even and odd.

    ``out`` has both parities of most degrees, the natural one first, as ``ClebschGordan`` has them.
    """

    couplings = "all"
    make_grid = staticmethod(sphere_grid)


class CompleteGridPower(CompletePower):
    """Products of a function and a pseudo-function on the sphere."""

    make_grid = staticmethod(sphere_grid)
