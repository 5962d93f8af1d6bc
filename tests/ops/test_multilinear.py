"""The operator equimol::form, which programs of PyTorch's compiler call: its rules, its derivatives, and what export makes of it."""

import json

import jaxtyping
import pytest
import torch

from equimol.o3 import natural_layout
from equimol.ops.filters import FilteredSum
from equimol.ops.multilinear import Form, form_derivatives, form_operator
from equimol.ops.signals import SignalProduct
from equimol.tensor_products.clebsch_gordan_convolution import ClebschGordanConvolution
from equimol.tensor_products.gaunt_grid import GauntGridConvolution
from equimol.tensor_products.so2 import SO2MixedConvolution

KINDS = [ClebschGordanConvolution, SO2MixedConvolution, GauntGridConvolution]  # by a convolution, frames, filters or a convolution
TERMS = ((0, 0, 0, 1), (1, 0, 1, -1))


@pytest.fixture(params=["convolution", "signals", "signals of a rank", "filters", "frames"])
def case(request, random):
    """A form, its arguments with one unknown, and its constants."""
    senders, receivers = torch.tensor([0, 2, 2, 1, 0]), torch.tensor([0, 0, 1, 1, 2])
    if request.param == "convolution":
        convolution = ClebschGordanConvolution(natural_layout(1, 3), 1, 1, couplings="all")
        return convolution._form, [random(3, 4, 3), random(5, 4), random(5, convolution.num_weights, 3), None], [senders, receivers]
    if request.param == "frames":
        convolution = SO2MixedConvolution(natural_layout(1, 3), 1, 1, couplings="all")
        form, table = convolution._framed.form, convolution._framed._table(random(1))
        return (
            form,
            [random(*shape) for shape in form.shapes([random(3, 4, 3)] + [None] * 6, [senders])[:6]] + [None],
            [senders, receivers, table],
        )
    if request.param == "filters":
        table = random(4, 1, 6, 2)
        return FilteredSum(TERMS), [random(3, 2, 6, 3), random(5, 4), random(5, 2, 1, 3), None], [senders, receivers, table]
    tables = [random(2, 6, 4), random(1, 6, 5), random(2, 6, 7)]
    factors = [random(2, size, 3) for size in (4, 5, 7)] if "rank" in request.param else [None] * 3
    components = tuple((tuple(range(table.shape[2])),) * len(table) for table in tables)
    return SignalProduct(TERMS, components), [random(8, 4, 3), random(8, 5, 3), None, *factors], tables


def unknown(arguments) -> tuple[bool, ...]:
    """The first argument that is None is what is wanted: the product."""
    place = next(n for n, argument in enumerate(arguments) if argument is None)
    return tuple(n == place for n in range(len(arguments)))


def test_it_is_what_its_text_says(case):
    form, _, _ = case
    kind, *settings = json.loads(form.text)
    assert Form.KINDS[kind](*settings).text == form.text


def test_the_operator_keeps_pytorchs_rules(case):
    form, arguments, constants = case
    places = [n for n, argument in enumerate(arguments) if argument is not None]
    tensors = [arguments[n].requires_grad_() for n in places]
    torch.library.opcheck(torch.ops.equimol.form, (form.text, tensors, places, constants, [unknown(arguments).index(True)]))


def test_operator_and_function_are_the_same_with_two_derivatives(case):
    form, arguments, constants = case
    leaves = [argument.requires_grad_() for argument in arguments if argument is not None]
    found = []
    for derivatives in (form_operator, form_derivatives):
        result = derivatives(form, arguments, constants, unknown(arguments))[unknown(arguments).index(True)]
        first = torch.autograd.grad(result.sin().sum(), leaves, create_graph=True)
        found.append([result, *first, *torch.autograd.grad(sum(x.sin().sum() for x in first), leaves)])
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


def test_shapes_are_those_of_what_is_computed(case):
    form, arguments, constants = case
    whole = [*arguments]
    whole[unknown(arguments).index(True)] = form_derivatives(form, arguments, constants, unknown(arguments))[unknown(arguments).index(True)]
    derivatives = form_derivatives(form, whole, constants, [x is not None for x in whole])
    for argument, derivative, shape in zip(whole, derivatives, form.shapes(whole, constants), strict=True):
        if argument is not None:
            assert derivative.shape == argument.shape == tuple(shape)


def test_mapped(case, random):
    form, arguments, constants = case
    place, many = unknown(arguments).index(True), random(2, *arguments[0].shape)

    def product(x):
        return form_operator(form, [x, *arguments[1:]], constants, unknown(arguments))[place]

    torch.testing.assert_close(torch.func.vmap(product)(many), torch.stack([product(x) for x in many]))


def inputs(random, convolution):
    senders, receivers = torch.tensor([0, 2, 2, 1, 0]), torch.tensor([0, 0, 1, 1, 2])
    tensors = [random(3, 4 * 3), random(5, 4), random(5, convolution.num_weights, 3)]
    return [t.requires_grad_() for t in tensors], senders, receivers


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_whole_with_first_derivatives(random, monkeypatch, kind):
    """The kernel runs inside the program: the operator is one node of it."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its checks are no part of a program
    convolution = kind(natural_layout(1, 3), 1, 1)
    (features, harmonics, weights), senders, receivers = inputs(random, convolution)
    graphs = []

    def look(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    for backend in (look, "aot_eager"):
        compiled = torch.compile(convolution, fullgraph=True, backend=backend)
        result = compiled(features, harmonics, senders, receivers, weights)
        ours = torch.autograd.grad(result.sin().sum(), (features, harmonics, weights))
        plain = convolution(features, harmonics, senders, receivers, weights)
        torch.testing.assert_close(ours, torch.autograd.grad(plain.sin().sum(), (features, harmonics, weights)))
    assert any("equimol.form" in target for target in graphs[0])


@pytest.mark.parametrize("kind", KINDS[:2])  # by filters, the largest number of neighbours would be a constant of the program
def test_exported_without_it(random, kind):
    """A program with an operator written in Python could not be loaded without Python."""
    convolution = kind(natural_layout(1, 3), 1, 1).eval()
    (features, harmonics, weights), senders, receivers = inputs(random, convolution)
    arguments = tuple(x.detach() for x in (features, harmonics)) + (senders, receivers, weights.detach())
    program = torch.export.export(convolution, arguments, strict=False)
    assert not [node for node in program.graph.nodes if "equimol" in str(node.target)]
    torch.testing.assert_close(program.module()(*arguments), convolution(*arguments))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_kernels_of_the_convolution_are_their_reference(random, dtype):
    form = ClebschGordanConvolution(natural_layout(2, 5), 2, 2, couplings="all").to(dtype)._form
    senders, receivers = torch.tensor([0, 2, 2, 1, 0]), torch.tensor([0, 0, 1, 1, 2])
    arguments = [random(*shape).to(dtype) for shape in form.shapes([random(4, form.rows, 5), None, None, None], (senders, receivers))]
    wanted = (True,) * 4
    ours, plain = (f(arguments, (senders, receivers), wanted) for f in (form.derivatives, form.plain_derivatives))
    for mine, reference in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=(1e-12 if dtype == torch.float64 else 3e-6) * float(reference.abs().max()))
