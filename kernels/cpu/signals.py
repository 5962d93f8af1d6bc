"""Products of signals, for equimol/ops/signals.py: values at points never reach the memory.

    z = sum_r c_r sum_(i, j, k, s) s C_k^T [(A_i a_r x) (B_j b_r y)]

for each row and channel. x, y, z [rows, components, channels] are the three roles, a, b, c [rank, components, channels] their factors,
A, B, C [signals, points, components] their tables and (i, j, k, s) the terms. It is linear in x, y and a gradient of z together: with
roles exchanged, the same code gives the derivatives by x and y. That by c is the sum over rows of z, without c_r, times such a gradient.
Rows are visited in parts, and a part owns its sums over rows, so that these do not depend on the number of threads.
"""

from collections.abc import Callable

from torch import Tensor

from equimol.ops.signals import Components, Term
from equimol.ops.vector_code import Code, Value

VECTORS = 4  # of channels at a time: what they need is at hand in the nearest cache
SAMPLES = 24  # values at points at a time, in the 32 registers of a processor: each number of a feature is loaded for several points


def product(
    terms: tuple[Term, ...],
    components: Components,
    sizes: tuple[int, int, int],
    points: int,
    scaled: bool,
) -> Callable:
    """z, called found, and the derivative by c in the direction z; each if it is asked for.

    ``components`` are those of each signal that are not zero, ``scaled`` says whether there are factors. Arrays that are not used may be
    anywhere.
    """
    together = max(1, SAMPLES // (len(components[0]) + len(components[1])))

    def write(
        code: Code, start: int, stop: int, each: int, rows: int, channels: int, rank: int, of_z: int, of_c: int,
        x: Tensor, y: Tensor, z: Tensor, a: Tensor, b: Tensor, c: Tensor, to_x: Tensor, to_y: Tensor, to_z: Tensor,
        found: Tensor, by_c: Tensor,
    ) -> None:  # fmt: skip
        local = [code.local(VECTORS * size) for size in sizes]  # a_r x, b_r y and z before it is multiplied with c_r
        everywhere = code.everywhere()

        def at_points(first: Value, count: int, vector: Value) -> None:
            """Adds what some points give to z."""
            tables = [code.part(table, first * size) for table, size in zip((to_x, to_y, to_z), sizes, strict=True)]
            numbers = [code.part(array, vector * (size * code.lanes)) for array, size in zip(local, sizes, strict=True)]

            def entries(role: int, signal: int, component: int) -> list[Value]:
                starts = [(signal * points + point) * sizes[role] for point in range(count)]
                return [code.load(tables[role], code.whole(at + component)) for at in starts]

            samples: tuple[dict[int, list[Value]], ...] = {}, {}
            for role in (0, 1):
                for signal, used in enumerate(components[role]):
                    for component in used:
                        number = code.load(numbers[role], code.whole(component * code.lanes), everywhere)
                        _add(samples[role], signal, [entry * number for entry in entries(role, signal, component)])
            products: dict[int, list[Value]] = {}
            for i, j, k, sign in terms:
                if i in samples[0] and j in samples[1]:
                    pairs = zip(samples[0][i], samples[1][j], strict=True)
                    _add(products, k, [f * g if sign > 0 else -f * g for f, g in pairs])
            for component in range(sizes[2]):
                place = code.whole(component * code.lanes)
                total = code.load(numbers[2], place, everywhere)
                for signal, values in products.items():
                    if component in components[2][signal]:
                        for entry, value in zip(entries(2, signal, component), values, strict=True):
                            total = total + entry * value
                code.store(total, numbers[2], place, everywhere)

        with code.loop(start, stop) as part:
            last = code.least((part + 1) * each, rows)
            with (
                code.loop(part * each, last) as row,
                code.loop(0, channels, VECTORS * code.lanes) as begin,
                code.loop(0, rank) as r,
            ):
                vectors = code.least(code.whole(VECTORS), code.quotient(channels - begin + (code.lanes - 1), code.lanes))
                with code.loop(0, vectors) as vector:
                    channel = begin + vector * code.lanes
                    mask = code.below(channel, channels)
                    for size, feature, factor, array in zip(sizes, (x, y), (a, b), local, strict=False):
                        with code.loop(0, code.whole(size)) as n:
                            number = code.load(feature, (row * size + n) * channels + channel, mask)
                            if scaled:
                                number = number * code.load(factor, (r * size + n) * channels + channel, mask)
                            code.store(number, array, (vector * size + n) * code.lanes, everywhere)
                    with code.loop(0, code.whole(sizes[2])) as n:
                        code.store(code.zeros(), local[2], (vector * sizes[2] + n) * code.lanes, everywhere)
                # One loop over vectors and points: of two, LLVM would keep in registers what the inner one does not change, far too much.
                for first, steps, count in ((0, points // together, together), (points - points % together, points % together, 1)):
                    with code.loop(0, vectors * steps) as step:
                        vector = code.quotient(step, max(1, steps))
                        at_points((step - vector * steps) * count + first, count, vector)
                with code.loop(0, vectors) as vector:
                    channel = begin + vector * code.lanes
                    mask = code.below(channel, channels)
                    known = code.below(channel, channels * code.least(r, code.whole(1)))  # nothing at first
                    with code.loop(0, code.whole(sizes[2])) as n:
                        total = code.load(local[2], (vector * sizes[2] + n) * code.lanes, everywhere)
                        place, factor = (row * sizes[2] + n) * channels + channel, (r * sizes[2] + n) * channels + channel
                        with code.when(of_c.above(0)):
                            owned = part * rank * sizes[2] * channels + factor
                            code.store(code.load(by_c, owned, mask) + total * code.load(z, place, mask), by_c, owned, mask)
                        with code.when(of_z.above(0)):
                            if scaled:
                                total = total * code.load(c, factor, mask)
                            code.store(code.load(found, place, known) + total, found, place, mask)

    return write


def _add(sums: dict[int, list[Value]], key: int, values: list[Value]) -> None:
    sums[key] = [u + v for u, v in zip(sums[key], values, strict=True)] if key in sums else values
