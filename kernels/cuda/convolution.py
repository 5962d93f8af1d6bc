"""The Clebsch-Gordan convolution along edges and its derivatives on CUDA, for equimol/ops/convolution.py: straight-line code.

    S = sum_e sum_p sum_c w_epc sum_(m1, m2, m3) C_m1m2m3 x_s(e),a+m1,c y_e,b+m2 g_r(e),d+k m3,c

A path p states a, b, d, k (``features harmonics sums step``) and its entries (m1, m2, m3, C).
x [atoms, rows, channels], y [edges, harmonics], w [edges, paths, channels], g [atoms, sums, channels]: S is linear in each of the four;
here are its derivatives by each. ``first`` says where the edges of an atom begin in ``order``, which names the edges.

A block has one atom, its threads are channels: what a warp loads is contiguous, and harmonics are the same address for all of it. The
atom's rows (sums, or of features where those are the result) stay in registers while its edges pass, so that sums are owned by a thread:
no atomics, and the same bits each time. Only a derivative by harmonics is summed over channels: over warps in shared memory.
"""

from collections.abc import Sequence

from equimol.ops.convolution import PathRows
from equimol.ops.cuda_code import Source

THREADS, WARP = 128, 32
HELD = 64  # rows of an atom that a thread keeps: with more, paths are dealt to several blocks

SUMMED = f"""
// Sums over the lanes of a warp of n numbers, a power of two: lane i returns that of number i % n. Lanes halve what they have to sum.
template <int n> __device__ T summed(T (&v)[n])
{{
    #pragma unroll
    for (int half = n / 2; half > 0; half /= 2) {{
        const bool upper = threadIdx.x & half;
        #pragma unroll
        for (int i = 0; i < half; ++i) {{
            const T given = upper ? v[i] : v[i + half], kept = upper ? v[i + half] : v[i];
            v[i] = kept + __shfl_xor_sync(~0u, given, half);
        }}
    }}
    #pragma unroll
    for (int other = n; other < {WARP}; other *= 2)
        v[0] += __shfl_xor_sync(~0u, v[0], other);
    return v[0];
}}
"""


def by_sums(*description) -> Source:
    """Derivative by g: the convolution itself; ``others`` are senders."""
    return _source("by_sums", "g", "xyw", *description)


def by_features(*description) -> Source:
    """Derivative by x; ``first`` and ``order`` are those of the edges that leave an atom, ``others`` receivers."""
    return _source("by_features", "x", "ywg", *description)


def by_weights(*description) -> Source:
    """Derivative by w, receiver by receiver; ``others`` are senders."""
    return _source("by_weights", "w", "xyg", *description)


def by_harmonics(*description) -> Source:
    """Derivative by y, receiver by receiver; ``others`` are senders."""
    return _source("by_harmonics", "y", "xwg", *description)


def _source(name: str, result: str, arrays: str, paths: Sequence[PathRows], rows: int, harmonics: int, sums: int) -> Source:
    heights = {"x": rows, "y": harmonics, "w": len(paths), "g": sums}
    groups = _groups(paths) if result in "gw" else [range(len(paths))]
    kernels = [_Group(result, paths, group, heights, first=n == 0) for n, group in enumerate(groups)]
    parameters = ", ".join(f"const T* {array}" for array in arrays)
    if result == "y":
        body = f"    __shared__ T scratch[{THREADS // WARP}][{harmonics}];\n{kernels[0].by_channels()}"
    else:
        each = "".join(f"    if (blockIdx.z == {n}) {{\n{kernel.text()}    }}\n" for n, kernel in enumerate(kernels))
        body = f"    const long long c = (long long)blockIdx.y * blockDim.x + threadIdx.x;\n    if (c >= channels)\n        return;\n{each}"
    text = (
        f'{SUMMED if result == "y" else ""}\nextern "C" __global__ void __launch_bounds__({THREADS}) {name}(\n'
        f"    long long channels, const long long* first, const long long* order, const long long* others, {parameters}, T* found)\n"
        f"{{\n    const long long atom = blockIdx.x;\n{body}}}\n"
    )

    def grid(atoms: int, channels: int, *_) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        threads = min(THREADS, -(-channels // WARP) * WARP)
        return (atoms, 1 if result == "y" else -(-channels // threads), len(groups)), (threads, 1, 1)

    return Source(name, text, grid)


def _groups(paths: Sequence[PathRows]) -> list[range]:
    """Paths in a row that have at most HELD rows of sums together, or one path."""
    starts, held = [0], 0
    for n, path in enumerate(paths):
        height = len({m3 for _, _, m3, _ in path.entries})
        if held and held + height > HELD:
            starts, held = [*starts, n], 0
        held += height
    return [range(*bounds) for bounds in zip(starts, [*starts[1:], len(paths)], strict=True)]


class _Group:
    """The code of some paths. A variable is called by its array and row: x3, y5, w0, g7; the result as what it is the derivative by."""

    def __init__(self, result: str, paths: Sequence[PathRows], group: range, heights: dict[str, int], *, first: bool) -> None:
        self.result, self.heights = result, heights
        self.near, self.far = ("x", "g") if result == "x" else ("g", "x")  # rows of the atom itself, and of the other end of an edge
        self.used: dict[str, set[int]] = {array: set() for array in "xywg"}
        self.lines: list[str] = []
        self.products: set[str] = set()
        reached: set[int] = set()
        for p, path in enumerate(paths):
            places = [(path.features + m1, path.harmonics + m2, p, path.sums + m3 * path.step, c) for m1, m2, m3, c in path.entries]
            reached |= {place["xywg".index(result)] for place in places}
            if p in group:
                for *place, _ in places:
                    for array, row in zip("xywg", place, strict=True):
                        self.used[array].add(row)
                self._write(p, [(f"x{x}", f"y{y}", f"g{g}", c) for x, y, _, g, c in places])
        if first:  # what no path reaches is zero
            self.used[result] |= set(range(heights[result])) - reached

    def _write(self, p: int, entries: list[tuple[str, str, str, float]]) -> None:
        """One path: for each row of the result, or of sums, products of the two others with coefficients."""
        column = "xyg".index(self.result if self.result != "w" else "g")
        totals: dict[str, list[str]] = {}
        for *names, coefficient in entries:
            left, right = (name for n, name in enumerate(names) if n != column)
            if left + right not in self.products:
                self.products.add(left + right)
                self.lines.append(f"const T {left + right} = {left} * {right};")
            totals.setdefault(names[column], []).append(f"T({coefficient!r}) * {left + right}")
        for name, terms in totals.items():
            total = " + ".join(terms)
            self.lines.append(f"w{p} += {name} * ({total});" if self.result == "w" else f"{name} += w{p} * ({total});")

    def _rows(self, array: str, place: str, step: str) -> list[str]:
        """Lines that give each row a variable: zero if it is the result, else what is at a place."""
        kind, pointer = ("T", "") if array == self.result else ("const T", f"{array}_")
        names = [f"{kind} {array}{row} = " + (f"{pointer}[{row}{step}];" if pointer else "0;") for row in sorted(self.used[array])]
        return [f"const T* const {pointer} = {place};", *names] if pointer else names

    def text(self, margin: str = " " * 8) -> str:
        """All edges of an atom for channel c."""
        h, across = self.heights, " * channels"
        loaded = {
            self.far: self._rows(self.far, f"{self.far} + others[e] * {h[self.far]} * channels + c", across),
            "y": self._rows("y", f"y + e * {h['y']}", ""),
            "w": self._rows("w", f"w + e * {h['w']} * channels + c", across),
        }
        after = [f"found[(e * {h['w']} + {p}) * channels + c] = w{p};" for p in sorted(self.used["w"])] if self.result == "w" else []
        after = self._over_channels() if self.result == "y" else after
        edge = [line for lines in loaded.values() for line in lines] + self.lines + after
        lines = [
            *self._rows(self.near, f"{self.near} + atom * {h[self.near]} * channels + c", across),
            "for (long long at = first[atom]; at < first[atom + 1]; ++at) {",
            *(f"    {line}" for line in ["const long long e = order[at];", *edge]),
            "}",
        ]
        if self.result == self.near:
            height = h[self.near]
            lines += [f"found[(atom * {height} + {row}) * channels + c] = {self.near}{row};" for row in sorted(self.used[self.near])]
        return "".join(f"{margin}{line}\n" for line in lines)

    def by_channels(self) -> str:
        """The same where all threads meet at each edge: those past the last channel work on it too, and count nothing."""
        return (
            "    for (long long begin = 0; begin < channels; begin += blockDim.x) {\n"
            "        const bool inside = begin + threadIdx.x < channels;\n"
            "        const long long c = inside ? begin + threadIdx.x : channels - 1;\n"
            f"{self.text()}    }}\n"
        )

    def _over_channels(self) -> list[str]:
        """Lines that sum the result of an edge over lanes, warps, and the channels before."""
        height, lines = self.heights["y"], []
        for begin in range(0, height, WARP):
            numbers = [f"inside ? y{row} : T(0)" for row in range(begin, min(begin + WARP, height))]
            width = 1 << (len(numbers) - 1).bit_length()
            values = ", ".join(numbers + ["T(0)"] * (width - len(numbers)))
            lines += [
                f"T part{begin}[{width}] = {{{values}}};",
                f"const T total{begin} = summed(part{begin});",
                f"if (threadIdx.x % {WARP} < {len(numbers)})",
                f"    scratch[threadIdx.x / {WARP}][{begin} + threadIdx.x % {WARP}] = total{begin};",
            ]
        return [
            *lines,
            "__syncthreads();",
            f"for (unsigned n = threadIdx.x; n < {height}; n += blockDim.x) {{",
            f"    T total = begin > 0 ? found[e * {height} + n] : T(0);",  # by this thread
            f"    for (unsigned warp = 0; warp < blockDim.x / {WARP}; ++warp)",
            "        total += scratch[warp][n];",
            f"    found[e * {height} + n] = total;",
            "}",
            "__syncthreads();",
        ]
