"""Spherical functions as two-dimensional Fourier series."""

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from equimol.o3.harmonics import spherical_harmonics
from equimol.o3.sphere import check_band, check_points, degree_of
from equimol.o3.tables import Table


def fourier_coefficients(lmax: int) -> Complex[Tensor, "harmonics u v"]:
    """Coefficients y in Y_lm(b, a) = Σ_uv y_uv exp(i(ub + va)), `[(lmax+1)**2, 2 lmax+1, 2 lmax+1]` in complex128.

    u and v run from -lmax to lmax (centred, not in FFT order). The harmonics, normalisation "integral", are continued from the
    polar angle b in [0, π] to the whole torus by f(-b, a) = f(b, a + π); then only v = ±m and u = -l, -l+2, .. l occur.
    """
    n = 2 * lmax + 1
    angle = torch.arange(n, dtype=torch.float64, device="cpu") * (2 * math.pi / n)
    b, a = angle[:, None], angle[None, :]
    # The polynomials of these vectors are the continued harmonics, and n samples hold all their frequencies: the FFT is exact.
    points = torch.stack([b.sin() * a.sin(), b.cos().expand(n, n), b.sin() * a.cos()], dim=-1)
    samples = spherical_harmonics(points, lmax, "integral").movedim(-1, 0)
    series = torch.view_as_real(torch.fft.fftshift(torch.fft.fft2(samples, norm="forward"), dim=(-2, -1)))
    return torch.view_as_complex(torch.where(series.abs() < 1e-13, 0.0, series))


def half_sphere_integral(k: int) -> complex:
    """I(k) = ∫_0^π exp(ikb) sin b db, what one frequency of the polar angle contributes to an integral over the sphere."""
    if abs(k) == 1:
        return k * 0.5j * math.pi
    return complex(2 / (1 - k * k)) if k % 2 == 0 else 0j


class TorusGrid(nn.Module):
    """Expansion coefficients to values on a torus through Fourier series, and back; the same interface as `SphereGrid`.

    A product of values is the convolution of two series. Angles b = 2πj/(2d+1) and a = 2πk/columns, with d = band - lmax_out
    the degree of the product: in a, aliasing into |v| > lmax_out is harmless, but every u enters the integral with sin b,
    so that b must be resolved. Only the rows with b <= π are kept, since f(-b, a) = f(b, a + π) holds the others.
    """

    def __init__(self, lmaxes_in: tuple[int, ...], lmax_out: int, band: int):
        super().__init__()
        check_band(lmaxes_in, lmax_out, band)
        self.lmax_in, self.lmax_out = max(lmaxes_in), lmax_out
        degree = band - lmax_out
        self.rows, self.columns = degree + 1, max(band, 2 * lmax_out) + 1
        self.points = self.rows * self.columns
        series = fourier_coefficients(self.lmax_in)[:, :, self.lmax_in :]
        self._series = Table(torch.stack([series.real, series.imag]).movedim(1, -1))  # [2, u, v >= 0, harmonics]
        integral = _folded(sphere_integrals(lmax_out, degree))
        self._integral = Table(torch.stack([integral.real, -integral.imag], dim=1).flatten(1))  # [harmonics, 2 * (u >= 0) * (v >= 0)]
        self._mirror = Table(_signs(lmax_out)[:, None])

    def synthesis(self, x: Float[Tensor, "... harmonics channels"]) -> Float[Tensor, "... points channels"]:
        """Values of functions given by coefficients `[..., (l+1)**2, channels]`, with any l up to the largest of lmaxes_in."""
        if not x.numel():  # the FFT refuses an empty batch
            return torch.matmul(x.new_zeros(self.points, x.shape[-2]), x)
        series = self.series(x)
        l = series.shape[-2] - 1
        gap = series.new_zeros(*series.shape[:-3], 2 * (self.rows - 1 - l), *series.shape[-2:])
        in_fft_order = torch.cat([series[..., l:, :, :], gap, series[..., :l, :, :]], dim=-3)
        # Along u first: there are still only l+1 columns, and afterwards half of the rows can go.
        kept = torch.fft.ifft(in_fft_order, dim=-3, norm="forward")[..., : self.rows, :, :]
        return torch.fft.irfft(kept, n=self.columns, dim=-2, norm="forward").flatten(-3, -2)

    def analysis(self, values: Float[Tensor, "... points channels"]) -> Float[Tensor, "... harmonics channels"]:
        """Coefficients of degrees 0 to lmax_out of functions given by values."""
        check_points(values, self.points)
        if not values.numel():
            return torch.matmul(values.new_zeros((self.lmax_out + 1) ** 2, self.points), values)
        samples = values.unflatten(-2, (self.rows, self.columns))
        kept = torch.fft.rfft(samples, dim=-2, norm="forward")[..., : self.lmax_out + 1, :]
        mirrored = kept[..., 1:, :, :].flip(-3) * self._mirror(values)  # rows with b > π
        series = torch.fft.fft(torch.cat([kept, mirrored], dim=-3), dim=-3, norm="forward")[..., : self.rows, :, :]
        return self.integral(series)

    def series(self, x: Float[Tensor, "... harmonics channels"]) -> Complex[Tensor, "... u v channels"]:
        """Fourier coefficients for u = -l .. l and v = 0 .. l; those of negative v are F_{-u,-v} = conj(F_uv)."""
        l, centre = degree_of(x, self.lmax_in), self.lmax_in
        table = self._series(x)[:, centre - l : centre + l + 1, : l + 1, : x.shape[-2]]
        real, imag = torch.matmul(table.flatten(0, 2), x).unflatten(-2, table.shape[:3]).unbind(-4)
        return torch.complex(real, imag)

    def integral(self, series: Complex[Tensor, "... u v channels"]) -> Float[Tensor, "... harmonics channels"]:
        """Coefficients of a product given by its Fourier coefficients for u = 0 .. its degree and v = 0 .. lmax_out."""
        parts = torch.stack([series.real, series.imag], dim=-4).flatten(-4, -2)
        return torch.matmul(self._integral(parts), parts)

    def flops(self, synthesised: int, signals: int, analysed: int) -> int:
        """Multiplications and additions, one channel: this many coefficients in, signals of them, analyses. A real FFT: 5/2 n log2 n."""
        l = math.isqrt(synthesised) - 1
        fft = 2.5 * self.points * math.log2(self.points)
        coefficients = 4 * (2 * l + 1) * (l + 1) * synthesised
        integrals = 4 * self.rows * (self.lmax_out + 1) ** 3
        return round(signals * (coefficients + fft) + analysed * (integrals + fft))

    def extra_repr(self) -> str:
        return f"lmax_in={self.lmax_in}, lmax_out={self.lmax_out}, points={self.rows}x{self.columns}"


def sphere_integrals(lmax: int, degree: int) -> Complex[Tensor, "harmonics u v"]:
    """Z in z_lm = ∫ f Y_lm = Σ_uv F_uv Z_uv for series F with |u| <= degree, `[(lmax+1)**2, 2 degree+1, 2 lmax+1]`, centred.

    Z_uv = 2π Σ_w y_{w,-v} I(u + w), with y the `fourier_coefficients` of the harmonic.
    """
    integrals = [[half_sphere_integral(u + w) for w in range(-lmax, lmax + 1)] for u in range(-degree, degree + 1)]
    polar = torch.tensor(integrals, dtype=torch.complex128, device="cpu")
    return 2 * math.pi * torch.einsum("hwv,uw->huv", fourier_coefficients(lmax).flip(-1), polar)


def _folded(integrals: Tensor) -> Tensor:
    """The table for u, v >= 0 alone: F_{-u,v} = (-1)^v F_uv adds the negative u, and conjugates (twice the real part) the negative v."""
    degree, lmax = integrals.shape[1] // 2, integrals.shape[2] // 2
    folded = integrals[:, degree:, lmax:].clone()
    folded[:, 1:] += _signs(lmax) * integrals[:, :degree, lmax:].flip(1)
    folded[:, :, 1:] *= 2
    return folded


def _signs(lmax: int) -> Tensor:
    return torch.tensor([(-1.0) ** v for v in range(lmax + 1)], dtype=torch.float64, device="cpu")
