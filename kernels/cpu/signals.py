"""Products of signals, for equimol/ops/signals.py: values at points never reach the memory.

    z = sum_r c_r sum_(i, j, k, s) s C_k^T [(A_i a_r x) (B_j b_r y)]

for each row and channel. x, y, z [rows, components, channels] are the three roles, a, b, c [rank, components, channels] their factors,
A, B, C [signals, points, components] their tables and (i, j, k, s) the terms. It is linear in x, y and a gradient of z together: with
roles exchanged, the same code gives the derivatives by x and y. That by c is the sum over rows of z, without c_r, times such a gradient.
Rows are visited in parts, and a part owns its sums over rows, so that these do not depend on the number of threads.

On rings of points that mirror each other, a table is a sum over orders m of a function of the ring times a cosine or sine of the angle:

    (A x)_(ring, angle) = sum_m t_m(angle) sum_n Theta_(ring, n) x_n,

n over the components of order m. So there is a sum along the meridian for each pair of rings, which are the even and odd ones of its terms
added and subtracted, then a Fourier transform along each ring, in registers: four angles a, -a, pi - a and pi + a have the same four sums
over even and odd cosines and sines. What is analysed goes the way back. There, what is multiplied may be any number of signals.
"""

from collections.abc import Callable, Sequence

from equimol.ops.rings import Entries, Monomial
from equimol.ops.signals import Components, Term
from equimol.ops.vector_code import Code, Value

VECTORS = 4  # of channels at a time: what they need is at hand in the nearest cache
SAMPLES = 24  # values at points at a time, in the 32 registers of a processor: each number of a feature is loaded for several points
ANGLES = 4  # of a quarter of a ring at a time: four sums for each, in registers


def product(terms: tuple[Term, ...], components: Components, sizes: tuple[int, int, int], points: int, scaled: bool) -> Callable:
    """z, called found, and the derivative by c in the direction z; each if it is asked for.

    ``components`` are those of each signal that are not zero, ``scaled`` says whether there are factors. Arrays that are not used may be
    anywhere.
    """
    together = max(1, SAMPLES // (len(components[0]) + len(components[1])))

    def visit(code: Code, vectors: Value, local: list[Value], arrays: Sequence[Value], _: Value) -> None:
        everywhere = code.everywhere()

        def at_points(first: Value, count: int, vector: Value) -> None:
            """Adds what some points give to z."""
            tables = [code.part(table, first * size) for table, size in zip(arrays, sizes, strict=True)]
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

        # One loop over vectors and points: of two, LLVM would keep in registers what the inner one does not change, far too much.
        for first, steps, count in ((0, points // together, together), (points - points % together, points % together, 1)):
            with code.loop(0, vectors * steps) as step:
                vector = code.quotient(step, max(1, steps))
                at_points((step - vector * steps) * count + first, count, vector)

    return _of_rows(visit, sizes, scaled)


def ring_product(
    terms: tuple[Term, ...], entries: Entries, sizes: tuple[int, int, int], pairs: int, quarter: int, scaled: bool
) -> Callable:
    """The same at ``pairs`` of rings of 4 ``quarter`` points.

    ``entries`` of a role are, for each signal, a component, its order m, negative for a sine, and whether Theta is the same at both rings
    of a pair; the tables hold Theta [pairs, entries], and ``waves`` cosines and sines at the angles of a quarter [2 most + 1, quarter].
    """
    return _on_rings([(sign, ((0, i), (1, j)), k) for i, j, k, sign in terms], entries, sizes, pairs, quarter, scaled)


def ring_polynomial(terms: tuple[Monomial, ...], entries: Entries, sizes: tuple[int, ...], pairs: int, quarter: int) -> Callable:
    """The same of any number of features, with terms (coefficient, signals that are multiplied, signal of z): the last role is z."""
    return _on_rings(terms, entries, sizes, pairs, quarter, False)


def _on_rings(terms: Sequence[Monomial], entries: Entries, sizes: Sequence[int], pairs: int, quarter: int, scaled: bool) -> Callable:
    *inputs, _ = roles = range(len(sizes))
    last = roles[-1]
    orders = [max((abs(m) for signal in role for _, m, _ in signal), default=0) for role in entries]
    widths, most = [2 * m + 1 for m in orders], max(orders)
    counts = [sum(map(len, role)) for role in entries]
    lengths = [len(role) * width for role, width in zip(entries, widths, strict=True)]
    starts = [sum(lengths[:role]) for role in inputs]  # where the orders of an input begin: all are in one array
    firsts = [sum(len(entries[other]) for other in range(role)) for role in inputs]  # and their samples
    stride, signals = (sum(lengths[:-1]), lengths[-1]), sum(len(entries[role]) for role in inputs)
    parts = -(-quarter // ANGLES)
    quarters = [range(quarter * n // parts, quarter * (n + 1) // parts) for n in range(parts)]
    places: tuple[dict, ...] = tuple({} for _ in roles)  # of each role: (signal, m) -> [(where in the table, component, even)]
    for role, of_role in enumerate(entries):
        at = 0
        for s, signal in enumerate(of_role):
            for n, m, even in signal:
                places[role].setdefault((s, m), []).append((at, n, even))
                at += 1

    def visit(code: Code, vectors: Value, local: list[Value], tables: Sequence[Value], waves: Value) -> None:
        everywhere, lanes = code.everywhere(), code.lanes
        of_inputs, of_z = (code.local(2 * size) for size in stride)  # by orders, at both rings
        samples, products = code.local(4 * ANGLES * signals), code.local(4 * ANGLES * len(entries[last]))

        def get(array: Value, place: int) -> Value:
            return code.load(array, code.whole(place * lanes), everywhere)

        def put(value: Value, array: Value, place: int) -> None:
            code.store(value, array, code.whole(place * lanes), everywhere)

        def along_meridians(role: int, numbers: Value, table: Value) -> None:
            for m in range(orders[role] + 1):  # a number is loaded once for all that has this order
                known: dict[int, Value] = {}
                for (s, order), found in places[role].items():
                    if abs(order) != m:
                        continue
                    sums: dict[bool, Value] = {}
                    for at, n, even in found:
                        known[n] = known[n] if n in known else get(numbers, n)
                        term = code.load(table, code.whole(at)) * known[n]
                        sums[even] = sums[even] + term if even in sums else term
                    even, odd = (sums.get(kind, code.zeros()) for kind in (True, False))
                    place = starts[role] + s * widths[role] + orders[role] + order
                    put(even + odd, of_inputs, place)
                    put(even - odd, of_inputs, stride[0] + place)

        def wave(m: int, angle: int) -> Value:
            return code.load(waves, code.whole((most + m) * quarter + angle))

        def along_ring(role: int, array: Value, angles: range) -> None:
            with code.loop(0, code.whole(len(entries[role]))) as s:
                orders_of_s = code.part(array, (s * widths[role] + starts[role]) * lanes)
                sums: list[dict[int, Value]] = [{}, {}, {}, {}]
                for m in range(-orders[role], orders[role] + 1):
                    number = get(orders_of_s, orders[role] + m)
                    for angle in angles:
                        kind = sums[_kind(m)]
                        term = wave(m, angle) * number
                        kind[angle] = kind[angle] + term if angle in kind else term
                out = code.part(samples, (s + firsts[role]) * (4 * ANGLES * lanes))
                for n, angle in enumerate(angles):
                    for q, value in enumerate(_butterfly([kind.get(angle) for kind in sums])):
                        put(value, out, 4 * n + q)

        def multiply(angles: range) -> None:
            with code.loop(0, code.whole(4 * len(angles))) as point:
                here, there = (code.part(array, point * lanes) for array in (samples, products))
                values = [get(here, 4 * ANGLES * s) for s in range(signals)]
                known: dict[tuple, Value] = {}

                def times(factors: tuple[tuple[int, int], ...]) -> Value:
                    role, s = factors[-1]
                    value = values[firsts[role] + s]
                    if len(factors) == 1:
                        return value
                    if factors not in known:
                        known[factors] = times(factors[:-1]) * value
                    return known[factors]

                found: dict[int, list[Value]] = {}
                for coefficient, factors, k in terms:
                    product = times(factors)
                    _add(found, k, [product if coefficient == 1 else -product if coefficient == -1 else product * coefficient])
                for k, (value,) in found.items():
                    put(value, there, 4 * ANGLES * k)

        def back_along_ring(outputs: Value, angles: range, first: bool) -> None:
            with code.loop(0, code.whole(len(entries[last]))) as s:
                array, values = code.part(outputs, s * (widths[last] * lanes)), code.part(products, s * (4 * ANGLES * lanes))
                kinds = [_butterfly([get(values, 4 * n + q) for q in range(4)]) for n in range(len(angles))]
                for m in range(-orders[last], orders[last] + 1):
                    place = orders[last] + m
                    terms = [wave(m, angle) * kinds[n][_kind(m)] for n, angle in enumerate(angles)]
                    total = terms[0] if first else get(array, place) + terms[0]
                    for term in terms[1:]:
                        total = total + term
                    put(total, array, place)

        def back_along_meridians(numbers: Value, table: Value) -> None:
            by_component: dict[int, list[Value]] = {}
            for (s, order), found in places[last].items():
                place = s * widths[last] + orders[last] + order
                here, there = get(of_z, place), get(of_z, stride[1] + place)
                both = {True: here + there, False: here - there}
                for at, n, even in found:
                    by_component.setdefault(n, []).append(code.load(table, code.whole(at)) * both[even])
            for n, found in by_component.items():
                total = get(numbers, n)
                for term in found:
                    total = total + term
                put(total, numbers, n)

        for k in set(range(len(entries[last]))) - {k for _, _, k in terms}:  # what no term adds to
            for point in range(4 * ANGLES):
                put(code.zeros(), products, 4 * ANGLES * k + point)
        for role in inputs:  # orders that a signal has not
            for s in range(len(entries[role])):
                for m in range(-orders[role], orders[role] + 1):
                    if (s, m) not in places[role]:
                        for ring in (0, 1):
                            put(code.zeros(), of_inputs, ring * stride[0] + starts[role] + s * widths[role] + orders[role] + m)
        with code.loop(0, vectors * pairs) as step:
            vector = code.quotient(step, pairs)
            pair = step - vector * pairs
            numbers = [code.part(array, vector * (size * lanes)) for array, size in zip(local, sizes, strict=True)]
            here = [code.part(table, pair * count) for table, count in zip(tables, counts, strict=True)]
            for role in inputs:
                along_meridians(role, numbers[role], here[role])
            with code.loop(0, code.whole(2)) as ring:
                here_orders, outputs = (
                    code.part(array, ring * (size * lanes)) for array, size in zip((of_inputs, of_z), stride, strict=True)
                )
                for angles in quarters:
                    for role in inputs:
                        along_ring(role, here_orders, angles)
                    multiply(angles)
                    back_along_ring(outputs, angles, angles is quarters[0])
            back_along_meridians(numbers[last], here[last])

    return _of_rows(visit, sizes, scaled)


def _kind(m: int) -> int:
    """Of an order: which of four sums it belongs to, of cosines of even and odd m, of sines of odd and even m."""
    return m % 2 if m >= 0 else 2 + (m + 1) % 2


def _butterfly(four: Sequence[Value | None]) -> list[Value]:
    """From the four sums, some of which may be none, to values at a, -a, pi - a, pi + a; and back, as it is its own transpose."""
    a, b, c, d = four
    (s, t), (u, v) = _sum_and_difference(a, b), _sum_and_difference(c, d)
    return [_plus(s, u), _plus(s, u, -1), _plus(t, v), _plus(t, v, -1)]


def _sum_and_difference(a: Value | None, b: Value | None) -> tuple[Value | None, Value | None]:
    return _plus(a, b), _plus(a, b, -1)


def _plus(a: Value | None, b: Value | None, sign: int = 1) -> Value | None:
    if a is None or b is None:
        return a if b is None else b if sign > 0 else -b
    return a + b if sign > 0 else a - b


def _of_rows(visit: Callable[..., None], sizes: Sequence[int], scaled: bool) -> Callable:
    """A kernel: for some vectors of channels of a row, ``visit`` adds to z what the others give, which are in arrays of their own.

    Its arrays are features, factors and tables of each role, waves, z that is found, and the derivative by its factor.
    """
    *inputs, last = range(len(sizes))
    counts = ["start", "stop", "each", "rows", "channels", "rank", "of_z", "of_c"]
    arrays = [f"{kind}{role}" for kind in ("feature", "factor", "table") for role in range(len(sizes))] + ["waves", "found", "by_c"]

    def write(code: Code, **given: Value) -> None:
        start, stop, each, rows, channels, rank, of_z, of_c = (given[name] for name in counts)
        features, factors, tables = ([given[f"{kind}{role}"] for role in range(len(sizes))] for kind in ("feature", "factor", "table"))
        found, by_c = given["found"], given["by_c"]
        local = [code.local(VECTORS * size) for size in sizes]  # a_r x, b_r y and z before it is multiplied with c_r
        everywhere = code.everywhere()
        with code.loop(start, stop) as part:
            end = code.least((part + 1) * each, rows)
            with (
                code.loop(part * each, end) as row,
                code.loop(0, channels, VECTORS * code.lanes) as begin,
                code.loop(0, rank) as r,
            ):
                vectors = code.least(code.whole(VECTORS), code.quotient(channels - begin + (code.lanes - 1), code.lanes))
                with code.loop(0, vectors) as vector:
                    channel = begin + vector * code.lanes
                    mask = code.below(channel, channels)
                    for role in inputs:
                        size = sizes[role]
                        with code.loop(0, code.whole(size)) as n:
                            number = code.load(features[role], (row * size + n) * channels + channel, mask)
                            if scaled:
                                number = number * code.load(factors[role], (r * size + n) * channels + channel, mask)
                            code.store(number, local[role], (vector * size + n) * code.lanes, everywhere)
                    with code.loop(0, code.whole(sizes[last])) as n:
                        code.store(code.zeros(), local[last], (vector * sizes[last] + n) * code.lanes, everywhere)
                visit(code, vectors, local, tables, given["waves"])
                with code.loop(0, vectors) as vector:
                    channel = begin + vector * code.lanes
                    mask = code.below(channel, channels)
                    known = code.below(channel, channels * code.least(r, code.whole(1)))  # nothing at first
                    size = sizes[last]
                    with code.loop(0, code.whole(size)) as n:
                        total = code.load(local[last], (vector * size + n) * code.lanes, everywhere)
                        place, factor = (row * size + n) * channels + channel, (r * size + n) * channels + channel
                        with code.when(of_c.above(0)):
                            owned = part * rank * size * channels + factor
                            code.store(code.load(by_c, owned, mask) + total * code.load(features[last], place, mask), by_c, owned, mask)
                        with code.when(of_z.above(0)):
                            if scaled:
                                total = total * code.load(factors[last], factor, mask)
                            code.store(code.load(found, place, known) + total, found, place, mask)

    write.__annotations__ = dict.fromkeys(counts, "int") | dict.fromkeys(arrays, "Tensor")
    return write


def _add(sums: dict[int, list[Value]], key: int, values: list[Value]) -> None:
    sums[key] = [u + v for u, v in zip(sums[key], values, strict=True)] if key in sums else values
