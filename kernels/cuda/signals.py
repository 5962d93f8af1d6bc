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

THREADS = 128
SHARED = 32 * 1024  # bytes of tables at a time, in float64

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
    """z of x and y."""
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
