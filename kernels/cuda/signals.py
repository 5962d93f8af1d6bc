"""Products of features as signals, fused, on CUDA, for equimol/ops/signals.py: values at points never leave the registers.

    z_nmc = sum_k sum_p C_kpm sum_terms s (sum_i A_ipi x_nic) (sum_j B_jpj y_njc)

A term (i, j, k, s) multiplies signal i of x with signal j of y and adds to signal k, at each point p. x [n, dim1, channels],
y [n, dim2, channels], z [n, dim3, channels]; tables A, B, C [signals, points, dim]. The derivatives of this form by x, y and z are such
products too, with other terms.

A thread has a channel of a row: x, y and z in registers. Tables come through shared memory, some points at a time, all threads of a block
reading the same number.
"""

from collections.abc import Sequence

from equimol.ops.cuda_code import Source
from equimol.ops.rings import Entries

THREADS = 128
SHARED = 32 * 1024  # bytes of tables at a time, in float64
LANES = 32  # channels of a block on rings: a warp has a ring
EXCHANGED = 16 * 1024  # bytes that rings give each other at a time, in float64

SYNTHESIS = """
            T {to}[{signals}];
            #pragma unroll
            for (int s = 0; s < {signals}; ++s) {{
                {to}[s] = 0;
                #pragma unroll
                for (int m = 0; m < {dim}; ++m)
                    {to}[s] += table[{begin} + s * {dim} + m] * {of}[m];
            }}"""


def product(terms: Sequence[tuple[int, int, int, int]], signals: tuple[int, int, int], dims: tuple[int, int, int], points: int) -> Source:
    """z of x and y; ``signals`` says how many each role has."""
    sizes = [s * d for s, d in zip(signals, dims, strict=True)]
    starts, width = [0, sizes[0], sizes[0] + sizes[1]], sum(sizes)
    tile = max(1, min(points, SHARED // (8 * width)))
    load = "".join(
        f"    T {name}_[{dim}];\n    #pragma unroll\n    for (int m = 0; m < {dim}; ++m)\n"
        f"        {name}_[m] = inside ? {name}[(row * {dim} + m) * channels + c] : T(0);\n"
        for name, dim in zip("xy", dims, strict=False)
    )
    copy = "".join(
        f"        for (int n = threadIdx.x; n < count * {size}; n += blockDim.x)  // points come first\n"
        f"            tables[n / {size} * {width} + {start} + n % {size}] ="
        f" {name}[(n % {size} / {dim} * {points} + begin + n / {size}) * {dim} + n % {dim}];\n"
        for name, size, start, dim in zip(("table_x", "table_y", "table_z"), sizes, starts, dims, strict=True)
    )
    synthesis = "".join(
        SYNTHESIS.format(to=to, of=of, signals=s, dim=d, begin=start)
        for to, of, s, d, start in zip("fg", ("x_", "y_"), signals, dims, starts, strict=False)
    )
    products = "".join(f"\n            h[{k}] += {'-' if sign < 0 else ''}f[{i}] * g[{j}];" for i, j, k, sign in terms)
    text = f"""
extern "C" __global__ void __launch_bounds__({THREADS}) product(
    long long rows, long long channels, const T* table_x, const T* table_y, const T* table_z, const T* x, const T* y, T* z)
{{
    __shared__ T tables[{tile * width}];
    const long long number = (long long)blockIdx.x * blockDim.x + threadIdx.x, row = number / channels, c = number % channels;
    const bool inside = row < rows;
{load}    T z_[{dims[2]}] = {{}};
    for (int begin = 0; begin < {points}; begin += {tile}) {{
        const int count = begin + {tile} < {points} ? {tile} : {points} - begin;
        __syncthreads();
{copy}        __syncthreads();
        for (int p = 0; p < count; ++p) {{
            const T* const table = tables + p * {width};{synthesis}
            T h[{signals[2]}] = {{}};{products}
            #pragma unroll
            for (int s = 0; s < {signals[2]}; ++s)
                #pragma unroll
                for (int m = 0; m < {dims[2]}; ++m)
                    z_[m] += table[{starts[2]} + s * {dims[2]} + m] * h[s];
        }}
    }}
    if (inside)
        #pragma unroll
        for (int m = 0; m < {dims[2]}; ++m)
            z[(row * {dims[2]} + m) * channels + c] = z_[m];
}}
"""

    def grid(rows: int, _: int, channels: int, *__) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        return (-(-rows * channels // THREADS), 1, 1), (THREADS, 1, 1)

    return Source("product", text, grid)


WAVES = """
// From orders to values at a, -a, pi - a, pi + a, and back; ``wave`` is where order 0 stands.
__device__ int kind_of(int m) { return m >= 0 ? m & 1 : 2 + ((m + 1) & 1); }
__device__ void butterfly(T (&v)[4])
{
    const T s = v[0] + v[1], t = v[0] - v[1], p = v[2] + v[3], q = v[2] - v[3];
    v[0] = s + p, v[1] = s - p, v[2] = t + q, v[3] = t - q;
}
template <int most> __device__ void to_points(const T (&orders)[2 * most + 1], const T* wave, int quarter, T (&values)[4])
{
    values[0] = values[1] = values[2] = values[3] = 0;
    #pragma unroll
    for (int m = -most; m <= most; ++m)
        values[kind_of(m)] += wave[m * quarter] * orders[most + m];
    butterfly(values);
}
template <int most> __device__ void from_points(T (&values)[4], const T* wave, int quarter, T (&orders)[2 * most + 1])
{
    butterfly(values);
    #pragma unroll
    for (int m = -most; m <= most; ++m)
        orders[most + m] += wave[m * quarter] * values[kind_of(m)];
}
"""


def ring_product(
    terms: Sequence[tuple[int, int, int, int]], entries: Entries, sizes: tuple[int, int, int], pairs: int, quarter: int
) -> Source:
    """z of x and y on rings that mirror each other: see kernels/cpu/signals.py for the mathematics and what ``entries`` are.

    A block has 32 channels of a row; a warp has a ring, its threads a channel each. x and y come through shared memory; a thread sums
    along its meridian, transforms along its ring with all orders in registers, and goes back to orders. Then rings meet in shared memory,
    some orders at a time, and each warp sums some components of z over all of them.
    """
    orders = [max((abs(m) for signal in role for _, m, _ in signal), default=0) for role in entries]
    most, counts, rings = max(orders), [sum(map(len, role)) for role in entries], 2 * pairs
    places: tuple[dict, ...] = {}, {}, {}  # of each role: (signal, m) -> [(where in the table, component, even)]
    for role, signals in enumerate(entries):
        at = 0
        for s, signal in enumerate(signals):
            for n, m, even in signal:
                places[role].setdefault((s, m), []).append((at, n, even))
                at += 1
    lines = []
    for role, (array, start) in enumerate((("f", 0), ("g", sizes[0]))):
        table = f"table_{'xy'[role]}"
        for s in range(len(entries[role])):
            for m in range(-orders[role], orders[role] + 1):
                parts: dict[bool, list[str]] = {True: [], False: []}
                for at, n, even in places[role].get((s, m), ()):
                    parts[even].append(f"{table}[pair * {counts[role]} + {at}] * inputs[{(start + n) * LANES} + lane]")
                even, odd = (" + ".join(parts[kind]) for kind in (True, False))
                value = " + ".join([*([even] if even else []), *([f"mirror * ({odd})"] if odd else [])]) or "0"
                lines.append(f"{array}[{s}][{orders[role] + m}] = {value};")
    kinds = [f"T f_[{len(entries[0])}][4], g_[{len(entries[1])}][4], h_[{len(entries[2])}][4] = {{}};"]
    for role, array in enumerate("fg"):
        kinds += [f"to_points<{orders[role]}>({array}[{s}], wave, {quarter}, {array}_[{s}]);" for s in range(len(entries[role]))]
    kinds += ["#pragma unroll", "for (int p = 0; p < 4; ++p) {"]
    kinds += [f"    h_[{k}][p] += {'-' if sign < 0 else ''}f_[{i}][p] * g_[{j}][p];" for i, j, k, sign in terms]
    kinds += ["}", *(f"from_points<{orders[2]}>(h_[{s}], wave, {quarter}, h[{s}]);" for s in range(len(entries[2])))]
    chunks = _chunks(places[2], orders[2], len(entries[2]), EXCHANGED // (8 * rings * LANES))
    text = f"""{WAVES}
extern "C" __global__ void __launch_bounds__({rings * LANES}) ring_product(
    long long rows, long long channels, const T* table_x, const T* table_y, const T* table_z, const T* waves, const T* x, const T* y, T* z)
{{
    __shared__ T inputs[{(sizes[0] + sizes[1]) * LANES}], exchanged[{rings * max(map(len, chunks)) * LANES}];
    __shared__ T at_angles[{(2 * most + 1) * quarter}];
    const int lane = threadIdx.x % {LANES}, ring = threadIdx.x / {LANES}, pair = ring % {pairs};
    const T mirror = ring < {pairs} ? 1 : -1;
    const long long row = blockIdx.x, c = (long long)blockIdx.y * {LANES} + lane;
    const bool inside = c < channels;
    for (int n = ring; n < {sizes[0]}; n += {rings})
        inputs[n * {LANES} + lane] = inside ? x[(row * {sizes[0]} + n) * channels + c] : T(0);
    for (int n = ring; n < {sizes[1]}; n += {rings})
        inputs[({sizes[0]} + n) * {LANES} + lane] = inside ? y[(row * {sizes[1]} + n) * channels + c] : T(0);
    for (int n = threadIdx.x; n < {(2 * most + 1) * quarter}; n += {rings * LANES})
        at_angles[n] = waves[n];
    __syncthreads();
    T f[{len(entries[0])}][{2 * orders[0] + 1}], g[{len(entries[1])}][{2 * orders[1] + 1}], h[{len(entries[2])}][{2 * orders[2] + 1}];
{_indented(lines, 4)}
    #pragma unroll
    for (int s = 0; s < {len(entries[2])}; ++s) {{
        #pragma unroll
        for (int m = 0; m < {2 * orders[2] + 1}; ++m)
            h[s][m] = 0;
    }}
    #pragma unroll 1
    for (int angle = 0; angle < {quarter}; ++angle) {{
        const T* const wave = at_angles + {most * quarter} + angle;
{_indented(kinds, 8)}
    }}
{_indented(_meetings(chunks, places[2], orders[2], pairs, counts[2], sizes[2]), 4)}
}}
"""

    def grid(rows: int, _: int, channels: int, *__) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        return (rows, -(-channels // LANES), 1), (rings * LANES, 1, 1)

    return Source("ring_product", text, grid)


def _chunks(places: dict, most: int, signals: int, slots: int) -> list[list[tuple[int, int]]]:
    """Orders m and -m of all signals together, some at a time: a component has one of them, so that its sum is complete."""
    chunks: list[list[tuple[int, int]]] = []
    for m in range(most + 1):
        group = [(s, order) for s in range(signals) for order in {m, -m} if (s, order) in places]
        if chunks and len(chunks[-1]) + len(group) <= slots:
            chunks[-1] += group
        else:
            chunks.append(group)
    return chunks


def _meetings(chunks: list[list[tuple[int, int]]], places: dict, most: int, pairs: int, count: int, size: int) -> list[str]:
    """Lines that make z of what rings hold by orders; what no order reaches is zero."""
    lines, rings, reached = [], 2 * pairs, set()
    for chunk in chunks:
        by_component: dict[int, list[tuple[int, int, bool]]] = {}
        for slot, (s, m) in enumerate(chunk):
            lines.append(f"exchanged[({slot * rings} + ring) * {LANES} + lane] = h[{s}][{most + m}];")
            for at, n, even in places[s, m]:
                by_component.setdefault(n, []).append((slot, at, even))
        lines.append("__syncthreads();")
        for number, (n, found) in enumerate(by_component.items()):
            lines += [f"if (ring == {number % rings} && inside) {{", "    T total = 0;", f"    for (int p = 0; p < {pairs}; ++p) {{"]
            for slot, at, even in found:
                north, south = (f"exchanged[({slot * rings + first} + p) * {LANES} + lane]" for first in (0, pairs))
                lines.append(f"        total += table_z[p * {count} + {at}] * ({north} {'+' if even else '-'} {south});")
            lines += ["    }", f"    z[(row * {size} + {n}) * channels + c] = total;", "}"]
        lines.append("__syncthreads();")
        reached |= by_component.keys()
    rest = [f"    z[(row * {size} + {n}) * channels + c] = 0;" for n in range(size) if n not in reached]
    return [*lines, "if (ring == 0 && inside) {", *rest, "}"] if rest else lines


def _indented(lines: Sequence[str], margin: int) -> str:
    return "\n".join(" " * margin + line for line in lines)
