"""Channel-wise products by e3nn-jax, jitted: median times. Runs in an environment of its own (pip install jax e3nn-jax).

    OMP_NUM_THREADS=2 python e3nn_jax_products.py OUT.csv --lmax 1 2 3 4 6 --channels 64 --batch 1000

The same work as `benchmarks/tensor_products.py` in its setting "channel-wise": all (or only the even) couplings of degrees 0..lmax with
0..lmax to 0..lmax for each channel, a weight per path and channel, paths into one irrep summed.
"""

import argparse
import csv
import os
import statistics
import time

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp


def make_product(lmax: int, couplings: str):
    """(product, number of paths): x and y are [batch, channels, dim], weights [paths, channels]."""
    irreps = e3nn.Irreps([(1, (l, (-1) ** l)) for l in range(lmax + 1)])
    paths = [
        (i, j, l3)
        for i in range(lmax + 1)
        for j in range(lmax + 1)
        for l3 in range(abs(i - j), min(i + j, lmax) + 1)
        if couplings == "all" or (i + j + l3) % 2 == 0
    ]
    slices = irreps.slices()
    symbols = {(i, j, l): jnp.asarray(e3nn.clebsch_gordan(i, j, l)) for i, j, l in paths}

    def product(x, y, weights):
        blocks = {}
        for n, (i, j, l) in enumerate(paths):
            term = jnp.einsum("ijk,bci,bcj->bck", symbols[i, j, l], x[..., slices[i]], y[..., slices[j]]) * weights[n][:, None]
            key = (l, (i + j + l) % 2)
            blocks[key] = blocks.get(key, 0) + term
        return jnp.concatenate([blocks[key] for key in sorted(blocks)], axis=-1)

    return product, len(paths), irreps.dim


def median_ms(call, *inputs, repeats: int = 15) -> float:
    jax.block_until_ready(call(*inputs))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call(*inputs))
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--lmax", type=int, nargs="+", default=[1, 2, 3, 4, 6])
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1000)
    args = parser.parse_args()
    rows = []
    for lmax in args.lmax:
        for couplings in ("even", "all"):
            product, paths, dim = make_product(lmax, couplings)
            keys = jax.random.split(jax.random.PRNGKey(lmax), 2)
            x, y = (jax.random.normal(key, (args.batch, args.channels, dim)) for key in keys)
            weights = jnp.ones((paths, args.channels))

            def energy(x, y, weights, product=product):
                return jnp.sum(product(x, y, weights) ** 2)

            def forces(x, y, weights, energy=energy):
                return sum(jnp.sum(g**2) for g in jax.grad(energy, argnums=(0, 1))(x, y, weights))

            row = {"product": "e3nn-jax", "lmax": lmax, "couplings": couplings, "channels": args.channels, "batch": args.batch}
            row |= {"forward_ms": median_ms(jax.jit(product), x, y, weights)}
            row |= {"second_derivative_ms": median_ms(jax.jit(jax.grad(forces, argnums=(0, 1, 2))), x, y, weights)}
            row |= {"jax": jax.__version__, "e3nn_jax": e3nn.__version__, "cores": os.cpu_count()}
            print(row, flush=True)
            rows.append(row)
    with open(args.out, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
