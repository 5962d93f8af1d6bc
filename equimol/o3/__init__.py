"""Mathematics of O(3): layouts, harmonics, rotations, couplings, and functions on grids. Knows no atoms."""

from equimol.o3.coupling import Path, bracket_coefficient, coupling_paths, gaunt_coefficient, wigner_3j, wigner_6j
from equimol.o3.fourier import TorusGrid, fourier_coefficients, half_sphere_integral
from equimol.o3.harmonics import spherical_harmonics
from equimol.o3.layout import (
    Block,
    Layout,
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
from equimol.o3.sphere import (
    Rings,
    SeparableGrid,
    SphereGrid,
    gauss_legendre_grid,
    gradient_scale,
    lebedev_grid,
    mirrored_rings,
    sphere_grid,
)
from equimol.o3.tables import Table
from equimol.o3.wigner import rotate, wigner_d

__all__ = [
    "Block",
    "Layout",
    "Path",
    "Rings",
    "SeparableGrid",
    "SphereGrid",
    "Table",
    "TorusGrid",
    "bracket_coefficient",
    "coupling_paths",
    "format_irreps",
    "fourier_coefficients",
    "from_e3nn",
    "gaunt_coefficient",
    "gauss_legendre_grid",
    "gradient_scale",
    "half_sphere_integral",
    "is_natural",
    "layout_dim",
    "layout_slices",
    "lebedev_grid",
    "lmax_of",
    "mirrored_rings",
    "natural_layout",
    "parse_irreps",
    "rotate",
    "sphere_grid",
    "split_blocks",
    "spherical_harmonics",
    "to_e3nn",
    "wigner_3j",
    "wigner_6j",
    "wigner_d",
]
