"""Tables keep their float64 digits through every cast of the module that holds them."""

import copy
import pickle

import torch
from torch import nn

from equimol.o3 import Table

THIRDS = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)


def test_a_table_comes_in_the_dtype_asked_for():
    table = Table(THIRDS)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert torch.equal(table(torch.zeros(1, dtype=dtype)), THIRDS.to(dtype))


def test_a_detour_through_float32_loses_nothing():
    holder = nn.Sequential(Table(THIRDS)).float().double()
    assert torch.equal(holder[0](THIRDS), THIRDS)


def test_a_cast_module_hands_out_its_buffer_without_a_copy():
    table = Table(THIRDS).double()
    assert table(THIRDS).data_ptr() == table(THIRDS).data_ptr()


def test_a_table_is_no_part_of_the_state():
    assert not Table(THIRDS).state_dict()


def test_a_table_survives_copying_and_pickling():
    for twin in (copy.deepcopy(Table(THIRDS)), pickle.loads(pickle.dumps(Table(THIRDS)))):
        assert torch.equal(twin.double()(THIRDS), THIRDS)


def test_use_in_inference_mode_does_not_spoil_later_gradients():
    table = Table(THIRDS)
    with torch.inference_mode():
        table(torch.zeros(2, dtype=torch.float64))
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad((table(x) * x).sum(), x)
    assert torch.equal(gradient, THIRDS)


def test_a_module_built_without_memory_gets_its_tables_when_it_gets_memory():
    with torch.device("meta"):
        holder = nn.Sequential(Table(THIRDS))
    assert torch.equal(holder.to_empty(device="cpu").double()[0](THIRDS), THIRDS)
