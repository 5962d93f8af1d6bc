"""A small language for vector code: Python writes the instructions, LLVM compiles them, in tenths of a second and without a compiler.

A value is a whole number, a number of the kernel's type, or a vector of ``LANES`` of those, on which the usual operators work; a number
meets a vector in all lanes. Loops and sums are written with :meth:`Code.loop` and :meth:`Code.variable`. Nothing checks bounds: the
caller of a compiled function does.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NewType

import llvmlite
import torch
from llvmlite import binding, ir
from torch import Tensor

from equimol.ops.code_cache import cached_code

Indices = NewType("Indices", Tensor)  # whole numbers, int64, as a parameter of a kernel
LANES = {torch.float32: 16, torch.float64: 8}  # 64 bytes: LLVM cuts them for processors with shorter vectors
INTEGER = ir.IntType(64)
SLOPPY = ("contract", "arcp")  # multiplications and additions may be one instruction; NaN and infinity stay what they are
LN2 = {torch.float32: (0.693359375, -2.12194440054690583e-4), torch.float64: (0.693145751953125, 1.42860682030941723212e-6)}  # two parts
TERMS = {torch.float32: 7, torch.float64: 13}  # of the series of exp on ±ln(2)/2, to half a unit in the last place
LARGEST = {torch.float32: 87.0, torch.float64: 708.0}


class Value:
    """What an instruction gives."""

    def __init__(self, code: Code, value: ir.Value) -> None:
        self.code, self.value = code, value

    def _meet(self, other: Value | float | int) -> tuple[ir.Value, ir.Value, bool]:
        """Both operands as one type, and whether that is of whole numbers."""
        code = self.code
        other = other if isinstance(other, Value) else code.constant(other, like=self)
        a, b = self.value, other.value
        if isinstance(a.type, ir.VectorType) and not isinstance(b.type, ir.VectorType):
            b = code.splat(other).value
        elif isinstance(b.type, ir.VectorType) and not isinstance(a.type, ir.VectorType):
            a = code.splat(self).value
        return a, b, isinstance(getattr(a.type, "element", a.type), ir.IntType)

    def __add__(self, other: Value | float | int) -> Value:
        a, b, whole = self._meet(other)
        return Value(self.code, self.code.builder.add(a, b) if whole else self.code.builder.fadd(a, b, flags=SLOPPY))

    def __sub__(self, other: Value | float | int) -> Value:
        a, b, whole = self._meet(other)
        return Value(self.code, self.code.builder.sub(a, b) if whole else self.code.builder.fsub(a, b, flags=SLOPPY))

    def __mul__(self, other: Value | float | int) -> Value:
        a, b, whole = self._meet(other)
        return Value(self.code, self.code.builder.mul(a, b) if whole else self.code.builder.fmul(a, b, flags=SLOPPY))

    def __truediv__(self, other: Value | float | int) -> Value:
        a, b, _ = self._meet(other)
        return Value(self.code, self.code.builder.fdiv(a, b, flags=SLOPPY))

    def __radd__(self, other: float | int) -> Value:
        return self + other

    def __rmul__(self, other: float | int) -> Value:
        return self * other

    def __rsub__(self, other: float | int) -> Value:
        return self.code.constant(other, like=self) - self

    def above(self, limit: int) -> Value:
        """Whether a whole number is more than that: a condition."""
        return Value(self.code, self.code.builder.icmp_signed(">", self.value, ir.Constant(self.value.type, limit)))

    def __neg__(self) -> Value:
        return Value(self.code, self.code.builder.fneg(self.value))


class Variable:
    """A value that changes, such as a sum in a loop: kept in a register if there are enough."""

    def __init__(self, code: Code, initial: Value) -> None:
        self.code = code
        with code.builder.goto_entry_block():
            self.place = code.builder.alloca(initial.value.type)
        self.set(initial)

    def get(self) -> Value:
        return Value(self.code, self.code.builder.load(self.place))

    def set(self, value: Value) -> None:
        self.code.builder.store(value.value, self.place)

    def add(self, value: Value) -> None:
        self.set(self.get() + value)


class Code:
    """The instructions of one function while they are written."""

    def __init__(self, function: ir.Function, dtype: torch.dtype) -> None:
        self.dtype, self.lanes = dtype, LANES[dtype]
        self.scalar = ir.FloatType() if dtype == torch.float32 else ir.DoubleType()
        self.integer = ir.IntType(32) if dtype == torch.float32 else INTEGER  # as wide as a number
        self.vector = ir.VectorType(self.scalar, self.lanes)
        self.function, self.builder = function, ir.IRBuilder(function.append_basic_block())

    def constant(self, number: float | int, like: Value | None = None) -> Value:
        """A number; a whole one beside a whole one."""
        if like is not None and isinstance(like.value.type, ir.IntType):
            return Value(self, ir.Constant(like.value.type, int(number)))
        return Value(self, ir.Constant(self.scalar, float(number)))

    def whole(self, number: int) -> Value:
        return Value(self, ir.Constant(INTEGER, number))

    def zeros(self) -> Value:
        """A vector."""
        return Value(self, ir.Constant(self.vector, [0.0] * self.lanes))

    def splat(self, number: Value) -> Value:
        """The number in all lanes."""
        if isinstance(number.value, ir.Constant):
            return Value(self, ir.Constant(ir.VectorType(number.value.type, self.lanes), [number.value.constant] * self.lanes))
        undefined = ir.Constant(ir.VectorType(number.value.type, self.lanes), ir.Undefined)
        one = self.builder.insert_element(undefined, number.value, ir.Constant(ir.IntType(32), 0))
        order = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return Value(self, self.builder.shuffle_vector(one, undefined, order))

    def variable(self, initial: Value) -> Variable:
        return Variable(self, initial)

    @contextmanager
    def loop(self, start: Value | int, stop: Value, step: int = 1) -> Iterator[Value]:
        """Instructions that are repeated for start, start + step, ... below stop."""
        start = start if isinstance(start, Value) else self.whole(start)
        head, body, end = (self.function.append_basic_block() for _ in range(3))
        before = self.builder.block
        self.builder.branch(head)
        self.builder.position_at_end(head)
        index = self.builder.phi(INTEGER)
        index.add_incoming(start.value, before)
        self.builder.cbranch(self.builder.icmp_signed("<", index, stop.value), body, end)
        self.builder.position_at_end(body)
        yield Value(self, index)
        following = self.builder.add(index, ir.Constant(INTEGER, step))
        index.add_incoming(following, self.builder.block)
        self.builder.branch(head)
        self.builder.position_at_end(end)

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """Instructions that are carried out under a condition."""
        with self.builder.if_then(condition.value):
            yield

    def below(self, begin: Value, end: Value) -> Value:
        """Which of the lanes begin, begin + 1, ... are below the end: a mask."""
        order = ir.Constant(ir.VectorType(INTEGER, self.lanes), list(range(self.lanes)))
        return Value(self, self.builder.icmp_signed("<", order, self.splat(end - begin).value))

    def local(self, vectors: int) -> Value:
        """An array for this call alone, of that many vectors."""
        with self.builder.goto_entry_block():
            array = self.builder.alloca(self.scalar, ir.Constant(INTEGER, vectors * self.lanes))
        array.align = 64
        return Value(self, array)

    def everywhere(self) -> Value:
        """All lanes: a mask."""
        return Value(self, ir.Constant(ir.VectorType(ir.IntType(1), self.lanes), [1] * self.lanes))

    def part(self, array: Value, index: Value) -> Value:
        """The array from an index on."""
        return Value(self, self.builder.gep(array.value, [index.value]))

    def load(self, array: Value, index: Value, mask: Value | None = None) -> Value:
        """The number at an index, or with a mask the vector that begins there, with zeros in the other lanes."""
        place = self.builder.gep(array.value, [index.value])
        if mask is None:
            return Value(self, self.builder.load(place))
        alignment = ir.Constant(ir.IntType(32), self.vector.element.get_abi_alignment(_target_data()))
        arguments = self._vector_place(place), alignment, mask.value, self.zeros().value
        return Value(self, self._call("llvm.masked.load", self.vector, arguments, f"v{self.lanes}{self._suffix}.p0"))

    def store(self, value: Value, array: Value, index: Value, mask: Value | None = None) -> None:
        """Puts a number at an index, or with a mask a vector from there on."""
        place = self.builder.gep(array.value, [index.value])
        if mask is None:
            self.builder.store(value.value, place)
            return
        alignment = ir.Constant(ir.IntType(32), self.vector.element.get_abi_alignment(_target_data()))
        arguments = value.value, self._vector_place(place), alignment, mask.value
        self._call("llvm.masked.store", ir.VoidType(), arguments, f"v{self.lanes}{self._suffix}.p0")

    def sum(self, vector: Value) -> Value:
        """Of all lanes."""
        arguments = ir.Constant(self.scalar, 0.0), vector.value
        name = f"llvm.vector.reduce.fadd.v{self.lanes}{self._suffix}"
        return Value(self, self.builder.call(self._declare(name, self.scalar, arguments), arguments, fastmath=("reassoc", *SLOPPY)))

    def exceeding(self, vector: Value, limit: Value) -> Value:
        """Which lanes are above a limit: a mask."""
        return Value(self, self.builder.fcmp_ordered(">", vector.value, self.splat(limit).value))

    def any(self, mask: Value) -> Value:
        """Whether a lane is: a condition."""
        name = f"llvm.vector.reduce.or.v{self.lanes}i1"
        return Value(self, self.builder.call(self._declare(name, ir.IntType(1), (mask.value,)), (mask.value,)))

    def select(self, mask: Value, chosen: Value, otherwise: Value) -> Value:
        """Lane by lane, or all of it by a condition."""
        return Value(self, self.builder.select(mask.value, chosen.value, otherwise.value))

    def quotient(self, a: Value, b: int) -> Value:
        """Of whole numbers, rounded towards zero."""
        return Value(self, self.builder.sdiv(a.value, ir.Constant(INTEGER, b)))

    def least(self, a: Value, b: Value) -> Value:
        """The lesser of two whole numbers."""
        return Value(self, self.builder.select(self.builder.icmp_signed("<", a.value, b.value), a.value, b.value))

    def exp(self, x: Value) -> Value:
        """To the last bit or two; 0 and infinity are out of reach."""
        most, (high, low), builder = LARGEST[self.dtype], LN2[self.dtype], self.builder
        for limit, word in ((most, ">"), (-most, "<")):  # NaN is neither, and stays
            bound = self.splat(self.constant(limit)).value
            x = Value(self, builder.select(builder.fcmp_ordered(word, x.value, bound), bound, x.value))
        whole = Value(self, self._call("llvm.floor", self.vector, ((x * math.log2(math.e) + 0.5).value,), self._vector_suffix))
        rest = x - whole * high - whole * low
        series = self.splat(self.constant(1 / math.factorial(TERMS[self.dtype])))
        for n in reversed(range(TERMS[self.dtype])):
            series = series * rest + 1 / math.factorial(n)
        integers = ir.VectorType(self.integer, self.lanes)
        bits, bias = (23, 127) if self.dtype == torch.float32 else (52, 1023)
        exponent = builder.add(builder.fptosi(whole.value, integers), ir.Constant(integers, [bias] * self.lanes))
        power = builder.bitcast(builder.shl(exponent, ir.Constant(integers, [bits] * self.lanes)), self.vector)
        return series * Value(self, power)

    def sigmoid(self, x: Value) -> Value:
        return self.splat(self.constant(1.0)) / (1.0 + self.exp(-x))

    @property
    def _suffix(self) -> str:
        return "f32" if self.dtype == torch.float32 else "f64"

    @property
    def _vector_suffix(self) -> str:
        return f"v{self.lanes}{self._suffix}"

    def _vector_place(self, place: ir.Value) -> ir.Value:
        return self.builder.bitcast(place, self.vector.as_pointer())

    def _call(self, name: str, result: ir.Type, arguments: Sequence[ir.Value], suffix: str) -> ir.Value:
        return self.builder.call(self._declare(f"{name}.{suffix}", result, arguments), arguments)

    def _declare(self, name: str, result: ir.Type, arguments: Sequence[ir.Value]) -> ir.Function:
        module = self.function.module
        if name in module.globals:
            return module.globals[name]
        return ir.Function(module, ir.FunctionType(result, [a.type for a in arguments]), name)


def compiled(write: Callable, dtype: torch.dtype, key: str = "") -> Kernel:
    """The function that ``write(code, **arguments)`` writes: its parameters in order, by their annotations int, float, Tensor, Indices.

    It is called with whole numbers, numbers and tensors' ``data_ptr()``, releases Python's lock, and returns the whole number that
    ``write`` returned, or 0. One that begins with ``start`` and ``stop`` can be called by a team of threads, too. Compiled once for each
    dtype and process, which takes hundredths of a second, or tenths for long code. With a ``key``, which tells all that ``write``
    depends on, the code is kept on disk for later processes: see `cached_code`.
    """
    annotations = {name: kind for name, kind in write.__annotations__.items() if name not in ("code", "return")}
    words = {name: kind if isinstance(kind, str) else kind.__name__ for name, kind in annotations.items()}
    team = [*words][:2] == ["start", "stop"] and openmp() is not None
    if key:
        key = "\0".join((key, str(dtype), str(team), binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten(), *_versions()))
        code = cached_code(key, "o", lambda: _object(write, words, dtype, team))
    else:
        code = _object(write, words, dtype, team)
    empty = binding.parse_assembly(f'target triple = "{binding.get_process_triple()}"')
    engine = binding.create_mcjit_compiler(empty, _machine())
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    c_kinds = {"int": ctypes.c_int64, "float": ctypes.c_double, "Tensor": ctypes.c_void_p, "Indices": ctypes.c_void_p}
    call = ctypes.CFUNCTYPE(ctypes.c_int64, *(c_kinds[word] for word in words.values()))(engine.get_function_address(write.__name__))
    _ENGINES.append(engine)  # the code lives as long as it
    return Kernel(call, [word == "float" for word in [*words.values()][2:]], engine.get_function_address(TEAM) if team else 0)


def _versions() -> tuple[str, ...]:
    return llvmlite.__version__, ".".join(map(str, binding.llvm_version_info))


def _object(write: Callable, words: dict[str, str], dtype: torch.dtype, team: bool) -> bytes:
    """The machine code of `compiled`, as an object file in memory."""
    module = ir.Module()
    module.triple = binding.get_process_triple()
    scalar = ir.FloatType() if dtype == torch.float32 else ir.DoubleType()
    kinds = {"int": INTEGER, "float": ir.DoubleType(), "Tensor": scalar.as_pointer(), "Indices": INTEGER.as_pointer()}
    function = ir.Function(module, ir.FunctionType(INTEGER, [kinds[word] for word in words.values()]), write.__name__)
    code = Code(function, dtype)
    values = {}
    for (name, word), argument in zip(words.items(), function.args, strict=True):
        if word in ("Tensor", "Indices"):
            argument.add_attribute("noalias")  # every array is its own
        value = code.builder.fptrunc(argument, scalar) if word == "float" and dtype == torch.float32 else argument
        values[name] = Value(code, value)
    result = write(code, **values)
    code.builder.ret(result.value if result is not None else ir.Constant(INTEGER, 0))
    if team:
        _write_team(module, function)
    machine = _machine()
    parsed = binding.parse_assembly(str(module))
    parsed.verify()
    options = binding.create_pipeline_tuning_options(speed_level=3)
    builder = binding.create_pass_builder(machine, options)
    builder.getModulePassManager().run(parsed, builder)
    return machine.emit_object(parsed)


class Kernel:
    """A compiled function: ``kernel(start, stop, *arguments)`` here and now, or `by_team`."""

    def __init__(self, call: Callable[..., int], fractions: Sequence[bool], team: int) -> None:
        self.call, self.fractions, self.team = call, fractions, team

    def __call__(self, *arguments: float | int) -> int:
        return self.call(*arguments)

    def by_team(self, threads: int, n: int, *arguments: float | int) -> int:
        """kernel(start, stop, *arguments) for equal parts of 0..n by the threads of PyTorch's own OpenMP, and the sum of the results.

        Threads of our own would wait for PyTorch's, which go on spinning for work after each of its operations.
        """
        slots = (ctypes.c_int64 * (2 + len(arguments)))(n, 0)
        for place, (argument, fraction) in enumerate(zip(arguments, self.fractions, strict=True), start=2):
            slots[place] = struct.unpack("q", struct.pack("d", argument))[0] if fraction else argument
        openmp().GOMP_parallel(ctypes.c_void_p(self.team), slots, ctypes.c_uint(threads), ctypes.c_uint(0))
        return slots[1]


TEAM = "of_a_team"


def _write_team(module: ir.Module, kernel: ir.Function) -> None:
    """What each thread calls with the address of n, the sum of results, and the arguments: its part of 0..n."""
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [INTEGER.as_pointer()]), TEAM)
    builder = ir.IRBuilder(function.append_basic_block())
    number = ir.FunctionType(ir.IntType(32), [])
    who, many = (ir.Function(module, number, name) for name in ("omp_get_thread_num", "omp_get_num_threads"))
    mine, threads = (builder.sext(builder.call(f, []), INTEGER) for f in (who, many))

    def slot(place: int) -> ir.Value:
        return builder.gep(function.args[0], [ir.Constant(INTEGER, place)])

    n = builder.load(slot(0))
    bounds = [builder.sdiv(builder.mul(n, part), threads) for part in (mine, builder.add(mine, ir.Constant(INTEGER, 1)))]
    arguments = []
    for place, argument in enumerate(kernel.args[2:], start=2):
        value = builder.load(slot(place))
        if isinstance(argument.type, ir.PointerType):
            value = builder.inttoptr(value, argument.type)
        arguments.append(builder.bitcast(value, argument.type) if isinstance(argument.type, ir.DoubleType) else value)
    builder.atomic_rmw("add", slot(1), builder.call(kernel, [*bounds, *arguments]), "monotonic")
    builder.ret_void()


@cache
def openmp() -> ctypes.CDLL | None:
    """The library whose threads PyTorch uses, if it is GNU's."""
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    if not found:
        return None
    library = ctypes.CDLL(str(found[0]))  # loaded already: the same one
    for name in ("omp_get_thread_num", "omp_get_num_threads"):
        binding.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
    return library


_ENGINES: list = []


@cache
def _initialized() -> None:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()


def _machine() -> binding.TargetMachine:
    """For the processor that this runs on, with its longest vectors."""
    _initialized()
    features, triple = binding.get_host_cpu_features(), binding.get_process_triple()
    if triple.startswith("x86_64"):
        features["prefer-256-bit"] = False
    target = binding.Target.from_triple(triple)
    return target.create_target_machine(cpu=binding.get_host_cpu_name(), features=features.flatten(), opt=3, jit=True)


@cache
def _target_data() -> binding.TargetData:
    return _machine().target_data
