"""The odd couplings on a grid: what pointwise products lose, the cross product among them."""

from equimol.o3 import sphere_grid
from equimol.tensor_products.sphere_product import SphereProduct


class BracketGrid(SphereProduct):
    """Surface Poisson bracket r.(grad A x grad B) of two functions on the sphere: every coupling with l1+l2+l3 odd, none other.

    Natural inputs give blocks of the other parity: two vectors (1o) their cross product (1e). ``algorithm`` as in ``GauntGrid``.
    """

    couples = "odd"
    make_grid = staticmethod(sphere_grid)
