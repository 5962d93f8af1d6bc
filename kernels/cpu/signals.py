"""Products of signals and their derivatives, for equimol/ops/signals.py: values at points never leave the registers.

    S = sum_r sum_(i, j, k, s) sum_p s (A_i a_r x)_p (B_j b_r y)_p (C_k c_r z)_p

for each row and channel. x, y, z [rows, components, channels] are the three roles, a, b, c [rank, components, channels] their factors,
A, B, C [signals, points, components] their tables and (i, j, k, s) the terms. S is linear in each feature and in each factor; here are
its derivatives by any of the six. Rows are visited in parts of equal size. A part owns its sums over rows, which are the derivatives by
factors, so that they do not depend on the number of threads.
"""

from collections.abc import Callable

from torch import Tensor

from equimol.ops.signals import Components, Term
from equimol.ops.vector_code import Code, Value

REGISTERS = 24  # values at points that are alive at a time, of the 32 vectors that a processor holds: more points share a row's load


def derivatives(
    terms: tuple[Term, ...],
    components: Components,
    sizes: tuple[int, int, int],
    points: int,
    scaled: tuple[bool, bool, bool],
    wanted: tuple[bool, bool, bool, bool, bool, bool],
) -> Callable:
    """Those by x, y, z, a, b, c that are wanted. ``components`` are those of each signal that are not zero, ``scaled`` says which of the
    roles have factors. Places of what is neither needed nor wanted may be 0."""
    made = [role for role in range(3) if wanted[role] or wanted[3 + role]]
    needed = [role for role in range(3) if any(other != role for other in made)]
    together = max(1, REGISTERS // sum(len(components[role]) for role in needed))

    def write(
        code: Code, start: int, stop: int, each: int, rows: int, channels: int, rank: int,
        x: Tensor, y: Tensor, z: Tensor, a: Tensor, b: Tensor, c: Tensor, to_x: Tensor, to_y: Tensor, to_z: Tensor,
        by_x: Tensor, by_y: Tensor, by_z: Tensor, by_a: Tensor, by_b: Tensor, by_c: Tensor,
    ) -> None:  # fmt: skip
        features, factors, tables = (x, y, z), (a, b, c), (to_x, to_y, to_z)
        found, sums = (by_x, by_y, by_z), (by_a, by_b, by_c)

        def at_points(first: Value, count: int, inputs: dict[int, list[Value]], totals: dict[int, dict]) -> None:
            """Adds what some points give to the totals of the roles that are made."""

            def entry(role: int, signal: int, point: int, component: int) -> Value:
                return code.load(tables[role], first * sizes[role] + ((signal * points + point) * sizes[role] + component))

            samples: dict[tuple[int, int], list[Value]] = {}
            for role in needed:
                for signal, used in enumerate(components[role]):
                    for component in used:
                        terms_here = [entry(role, signal, p, component) * inputs[role][component] for p in range(count)]
                        before = samples.get((role, signal))
                        samples[role, signal] = terms_here if before is None else [u + v for u, v in zip(before, terms_here, strict=True)]
            for role in made:
                one, other = (n for n in range(3) if n != role)
                for signal, used in enumerate(components[role]):
                    values: list[Value] | None = None
                    for term in terms:
                        pair = samples.get((one, term[one])), samples.get((other, term[other]))
                        if term[role] != signal or None in pair:
                            continue
                        product = [u * v if term[3] > 0 else -u * v for u, v in zip(*pair, strict=True)]
                        values = product if values is None else [u + v for u, v in zip(values, product, strict=True)]
                    for component in used if values else ():
                        for p, value in enumerate(values):
                            totals[role][component].add(entry(role, signal, p, component) * value)

        with code.loop(start, stop) as part:
            end = code.least((part + 1) * each, rows)
            with code.loop(part * each, end) as row, code.loop(0, channels, code.lanes) as begin:
                mask = code.below(begin, channels)

                def place(role: int, index: Value, component: int) -> Value:
                    return (index * sizes[role] + component) * channels + begin

                for role in made:
                    for component in range(sizes[role]) if wanted[role] else ():
                        code.store(code.zeros(), found[role], place(role, row, component), mask)
                with code.loop(0, rank) as r:
                    inputs, totals = {}, {}
                    for role in needed:
                        inputs[role] = [code.load(features[role], place(role, row, n), mask) for n in range(sizes[role])]
                        if scaled[role]:
                            inputs[role] = [v * code.load(factors[role], place(role, r, n), mask) for n, v in enumerate(inputs[role])]
                    for role in made:
                        totals[role] = [code.variable(code.zeros()) for _ in range(sizes[role])]
                    with code.loop(0, code.whole(points - points % together), together) as first:
                        at_points(first, together, inputs, totals)
                    if points % together:
                        at_points(code.whole(points - points % together), points % together, inputs, totals)
                    for role in made:
                        for component, total in enumerate(totals[role]):
                            value = total.get()
                            if wanted[3 + role]:
                                target = place(role, part * rank + r, component)
                                term = value * code.load(features[role], place(role, row, component), mask)
                                code.store(code.load(sums[role], target, mask) + term, sums[role], target, mask)
                            if wanted[role]:
                                if scaled[role]:
                                    value = value * code.load(factors[role], place(role, r, component), mask)
                                target = place(role, row, component)
                                code.store(code.load(found[role], target, mask) + value, found[role], target, mask)

    return write
