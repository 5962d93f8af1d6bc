"""Products of signals: the fused form is the plain one, and so are its derivatives, however the rows are cut."""

from functools import partial

import pytest
import torch

from equimol.ops import kernels, signal_product, signals

TERMS = ((0, 0, 0, 1), (1, 2, 1, -1), (2, 1, 1, 1), (2, 0, 0, -1), (0, 1, 2, -1))  # of two, one and one terms; one begins negative


@pytest.fixture(params=[None, 1, 3])
def case(request, random):
    """Tables, and inputs with factors of a rank or without."""
    tables = random(3, 5, 4), random(3, 5, 6), random(3, 5, 7)
    inputs = [random(9, 4, 2), random(9, 6, 2)]
    if request.param:
        inputs += [random(request.param, size, 2) for size in (4, 6, 7)]
    return tables, [t.requires_grad_() for t in inputs]


def call(function, tables):
    return lambda x, y, *factors: function(x, y, factors or None, tables, TERMS)


@pytest.mark.parametrize("numbers", [2**19, 500, 1])
def test_it_is_the_plain_product_in_blocks_of_any_size(case, numbers, random, monkeypatch):
    monkeypatch.setenv("EQUIMOL_KERNELS", "off")
    monkeypatch.setattr(signals, "BLOCK_NUMBERS", numbers)
    tables, inputs = case
    back = random(9, 7, 2)
    of_x = random(9, 4, 2)
    results = []
    for function in (signal_product, signals.plain_signal_product):
        z = call(function, tables)(*inputs)
        first = torch.autograd.grad(z, inputs, back, create_graph=True)
        results.append((z, *first, *torch.autograd.grad([z, first[0]], inputs, [back, of_x])))
    torch.testing.assert_close(*results, rtol=0, atol=1e-11)


@pytest.mark.parametrize("choice", ["off", "require"])
def test_derivatives_of_both_modes(case, choice, monkeypatch):
    monkeypatch.setenv("EQUIMOL_KERNELS", choice)
    tables, inputs = case
    assert torch.autograd.gradcheck(call(signal_product, tables), inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call(signal_product, tables), inputs)


def test_leading_dimensions_broadcast_and_may_be_strided(random):
    tables = random(3, 5, 4), random(3, 5, 6), random(3, 5, 7)
    x, y = random(4, 1, 2, 2).permute(3, 1, 0, 2), random(3, 6, 2)  # [2, 1, 4, 2]
    expected = torch.stack([torch.stack([signal_product(x[i, 0], y[j], None, tables, TERMS) for j in range(3)]) for i in range(2)])
    torch.testing.assert_close(signal_product(x, y, None, tables, TERMS), expected, rtol=0, atol=1e-12)


def test_no_rows_give_no_rows(random):
    tables = random(3, 5, 4), random(3, 5, 6), random(3, 5, 7)
    x, y, a = random(0, 4, 2).requires_grad_(), random(0, 6, 2), random(1, 4, 2).requires_grad_()
    z = signal_product(x, y, (a, random(1, 6, 2), random(1, 7, 2)), tables, TERMS)
    assert z.shape == (0, 7, 2)
    of_x, of_a = torch.autograd.grad(z.sum(), [x, a])
    assert of_x.shape == x.shape
    assert not of_a.any()


def test_mapped_over_rows_or_over_factors(random):
    tables = random(3, 5, 4), random(3, 5, 6), random(3, 5, 7)
    x, y, factors = random(3, 9, 4, 2), random(9, 6, 2), [random(2, size, 2) for size in (4, 6, 7)]
    product = call(signal_product, tables)
    mapped = torch.func.vmap(product, in_dims=(0, None, None, None, None))(x, y, *factors)
    torch.testing.assert_close(mapped, torch.stack([product(row, y, *factors) for row in x]))

    def of_factor(a):
        return product(x[0], y, a, *factors[1:]).square().sum()

    hessian = torch.func.jacfwd(torch.func.jacrev(of_factor))(factors[0])
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(of_factor, factors[0]))


@pytest.fixture
def launched(monkeypatch):
    """Kernels are required, and counted."""
    counts = []
    monkeypatch.setenv("EQUIMOL_KERNELS", "require")
    monkeypatch.setattr(signals, "run", lambda *arguments: counts.append(arguments) or kernels.run(*arguments))
    return counts


@pytest.mark.parametrize(("dtype", "precision"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@pytest.mark.parametrize("rank", [None, 1, 2])
@pytest.mark.parametrize(("rows", "channels", "threads"), [(0, 5, 2), (1, 1, 1), (7, 17, 3), (3, 64, 2), (130, 16, 1), (2, 70, 1)])
def test_compiled_and_plain_are_the_same(random, monkeypatch, launched, rows, channels, threads, rank, dtype, precision):
    """With all first and second derivatives, for tables with zeros, whatever the terms, and more points than are taken at a time."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    tables = [random(3, 9, size) / 10 for size in (4, 6, 7)]
    components = ((0, 1, 2, 3), (2,), (1, 3)), ((), (0, 1, 2, 3, 4, 5), (1, 5)), ((0, 6), (1, 2, 3, 4, 5), (2,))
    for table, of_signals in zip(tables, components, strict=True):
        for signal, used in zip(table, of_signals, strict=True):
            signal[:, [n for n in range(signal.shape[1]) if n not in used]] = 0
    tables = tuple(table.to(dtype) for table in tables)
    shapes = [(rows, 4, channels), (rows, 6, channels), *((rank, size, channels) for size in (4, 6, 7) if rank)]
    inputs = [random(*shape).to(dtype).requires_grad_() for shape in shapes]
    found = []
    for product in (partial(signal_product, components=components), signals.plain_signal_product):
        z = call(product, tables)(*inputs)
        first = torch.autograd.grad(z.sin().sum(), inputs, create_graph=True)
        found.append([z, *first, *torch.autograd.grad(sum(t.sin().sum() for t in first), inputs)])
    assert launched
    for mine, plain in zip(*found, strict=True):
        scale = float(plain.detach().abs().max()) if plain.numel() else 0.0
        torch.testing.assert_close(mine, plain, rtol=precision, atol=precision * scale)


def test_sums_do_not_depend_on_threads(random, monkeypatch, launched):
    tables = random(3, 5, 4), random(3, 5, 6), random(3, 5, 7)
    x, y, *factors = random(150, 4, 3), random(150, 6, 3), *(random(2, size, 3).requires_grad_() for size in (4, 6, 7))
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(torch.autograd.grad(call(signal_product, tables)(x, y, *factors).sum(), factors))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_a_number_stays_in_its_row_and_channel(random, launched, bad):
    tables = random(3, 5, 4), random(3, 5, 6), random(3, 5, 7)
    x, y = random(5, 4, 19), random(5, 6, 19)
    expected = signal_product(x, y, None, tables, TERMS)
    x[3, 1, 17] = bad
    z = signal_product(x, y, None, tables, TERMS)
    assert not z[3, :, 17].isfinite().any()
    z[3, :, 17] = expected[3, :, 17]
    assert torch.equal(z, expected)


def test_nothing_else_is_written(random):
    """Nor read: NaN on both sides of every array."""
    rows, channels, rank, sizes, filler = 5, 19, 2, (4, 6, 7), 40

    def between(tensor):
        whole = torch.full((tensor.numel() + 2 * filler,), float("nan"), dtype=tensor.dtype)
        whole[filler:-filler] = tensor.flatten()
        wholes.append(whole)
        return whole[filler:-filler].view_as(tensor)

    wholes = []
    arrays = [random(rows, size, channels) for size in sizes] + [random(rank, size, channels) for size in sizes]
    arrays = list(map(between, (*arrays, *(random(3, 5, size) for size in sizes))))
    z, by_c = (between(torch.zeros(*shape, sizes[2], channels, dtype=torch.float64)) for shape in ((rows,), (5, rank)))
    kernel = kernels.find_kernel("signals", "product", z, TERMS, tuple((tuple(range(size)),) * 3 for size in sizes), sizes, 5, True)
    kernels.run(kernel, 5, 1, rows, channels, rank, 1, 1, *arrays, 0, z, by_c)
    for whole in wholes:
        assert whole[:filler].isnan().all() and whole[-filler:].isnan().all() and whole[filler:-filler].isfinite().all()
    expected = signals.plain_signal_product(arrays[0], arrays[1], tuple(arrays[3:6]), tuple(arrays[6:]), TERMS)
    torch.testing.assert_close(z, expected)


def test_what_does_not_agree_is_refused(random):
    """Nothing is read out of bounds."""
    tables = random(3, 5, 4), random(3, 5, 6), random(3, 5, 7)
    x, y, factors = random(3, 4, 2), random(3, 6, 2), tuple(random(2, size, 2) for size in (4, 6, 7))
    for bad in (
        (x[:, :3], y, factors, tables),
        (x, y[..., :1], factors, tables),
        (x, y.float(), factors, tables),
        (x, y, (*factors[:2], factors[2][:1]), tables),
    ):
        with pytest.raises(ValueError, match="features, factors and tables must agree, expected torch.float64"):
            signals._require_shapes(*bad)
    with pytest.raises(ValueError, match=r"got torch.float32 \[3, 6, 2\] on cpu"):
        signal_product(x, y.float(), factors, tables, TERMS)


def test_long_code_is_not_compiled(random, monkeypatch, launched):
    monkeypatch.setattr(signals, "LONGEST", 50)
    tables = random(3, 5, 4), random(3, 5, 6), random(3, 5, 7)
    x, y = random(3, 4, 2), random(3, 6, 2)
    with pytest.raises(RuntimeError, match="signals has no kernel: it would be too long, at so high degrees; use EQUIMOL_KERNELS=auto"):
        signal_product(x, y, None, tables, TERMS)  # one is required here
    monkeypatch.setenv("EQUIMOL_KERNELS", "auto")
    expected = signals.plain_signal_product(x, y, None, tables, TERMS)
    torch.testing.assert_close(signal_product(x, y, None, tables, TERMS), expected)
    assert not launched
