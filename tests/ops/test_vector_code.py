"""Instructions written in Python and compiled by LLVM."""

import pytest
import torch
from torch import Tensor

from equimol.ops import code_cache
from equimol.ops.vector_code import LANES, Code, compiled

DTYPES = [torch.float32, torch.float64]


def functions(code: Code, n: int, x: Tensor, limit: float, exps: Tensor, picked: Tensor, sums: Tensor) -> None:
    """exp of n numbers; what is above a limit, else its negative; sums of all and of n ones."""
    total, count = code.variable(code.zeros()), code.variable(code.zeros())
    with code.loop(0, n, code.lanes) as begin:
        mask = code.below(begin, n)
        values = code.load(x, begin, mask)
        code.store(code.exp(values), exps, begin, mask)
        above = code.exceeding(values, limit)
        chosen = code.variable(-values)
        with code.when(code.any(above)):
            chosen.set(code.select(above, values * 1.0, chosen.get()))
        code.store(chosen.get(), picked, begin, mask)
        total.add(values)
        count.add(code.select(mask, code.splat(code.constant(1.0)), code.zeros()))
    code.store(code.sum(total.get()), sums, code.whole(0))
    code.store(code.sum(count.get()), sums, code.whole(1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 7, 16, 33])
def test_functions_of_any_number_of_numbers(dtype, n):
    """Nothing beyond the last is touched."""
    x = torch.linspace(-9, 9, 40, dtype=dtype)
    exps, picked, sums = (torch.full((size,), 77.0, dtype=dtype) for size in (40, 40, 2))
    compiled(functions, dtype)(n, x.data_ptr(), 2.0, exps.data_ptr(), picked.data_ptr(), sums.data_ptr())
    precision = 3 * torch.finfo(dtype).eps
    torch.testing.assert_close(exps[:n], x[:n].exp(), rtol=precision, atol=0)
    assert torch.equal(picked[:n], torch.where(x[:n] > 2, x[:n], -x[:n]))
    torch.testing.assert_close(sums, torch.tensor([x[:n].sum(), n], dtype=dtype), rtol=0, atol=100 * precision)
    assert (exps[n:] == 77).all() and (picked[n:] == 77).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_far_out(dtype):
    """It ends before it overflows; what is no number stays so."""
    far = 86.0 if dtype == torch.float32 else 700.0
    x = torch.cat([torch.linspace(-far, far, 1000, dtype=dtype), torch.tensor([torch.nan, 1e30, -1e30], dtype=dtype)])
    found, others, sums = torch.empty_like(x), torch.empty_like(x), torch.empty(2, dtype=dtype)
    compiled(functions, dtype)(len(x), x.data_ptr(), 2.0, found.data_ptr(), others.data_ptr(), sums.data_ptr())
    torch.testing.assert_close(found[:1000], x[:1000].exp(), rtol=4 * torch.finfo(dtype).eps, atol=0)
    assert found[1000].isnan() and found[1001] > 1e37 and 0 < found[1002] < 1e-37


def test_a_vector_is_64_bytes():
    assert all(lanes * dtype.itemsize == 64 for dtype, lanes in LANES.items())


@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_team_does_every_part_once(threads, dtype):
    """With whole numbers, fractions and arrays for arguments; the results of all threads are added."""

    def write(code: Code, start: int, stop: int, offset: int, factor: float, found: Tensor) -> int:
        with code.loop(start, stop) as n:
            code.store(code.load(found, n + offset) + factor, found, n + offset)
        return stop - start

    kernel = compiled(write, dtype)
    if not kernel.team:
        pytest.skip("this PyTorch has no GNU OpenMP, whose threads a team is made of")
    for n in (1, 2, 50):
        found = torch.zeros(n + 5, dtype=dtype)
        assert kernel.by_team(threads, n, 3, 0.25, found.data_ptr()) == n
        assert found.tolist() == [0.0] * 3 + [0.25] * n + [0.0] * 2


def test_code_is_kept_for_later_processes(tmp_path, monkeypatch):
    """Nothing is written again under the same key, but where the file is damaged, or there is no folder."""
    monkeypatch.setenv(code_cache.FOLDER, str(tmp_path))
    written = []

    def write(code: Code, found: Tensor) -> int:
        written.append(code)
        code.store(code.constant(0.5), found, code.whole(0))
        return code.whole(3)

    for key, times in (("a", 1), ("a", 1), ("b", 2), ("", 3), ("", 4)):
        found = torch.zeros(1)
        assert compiled(write, torch.float32, key)(found.data_ptr()) == 3 and found.item() == 0.5 and len(written) == times
    kept = sorted(tmp_path.iterdir())
    assert len(kept) == 2
    for path in kept:
        path.write_bytes(path.read_bytes()[:-1])
    compiled(write, torch.float32, "a")
    assert len(written) == 5
    monkeypatch.setenv(code_cache.FOLDER, str(kept[0]))
    compiled(write, torch.float32, "a")
    assert len(written) == 6
