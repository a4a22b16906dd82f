"""A small interpreter of the PTX that NVRTC makes from the kernels, in numpy.

It tests what g++ can't: the compiler that users run, its approximate exponential, its half
conversions. The threads of a block are the lanes of numpy arrays; the lanes with the lowest
program counter run next. An instruction it does not know raises. ``PtxRuntime`` takes the place of
``acmix.backends.cuda.launcher.runtime``.
"""

import operator
import re
from contextlib import contextmanager

import numpy as np

_TYPES = {
    "pred": np.bool_,
    **{f"{kind}{bits}": np.dtype(f"u{bits // 8}") for kind in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"f{bits}": np.dtype(f"f{bits // 8}") for bits in (16, 32, 64)},
}
_SHARED_BYTES = 48 * 1024
_BUFFER_SHIFT = 40  # An address holds the number of its buffer above this bit.
_ADDRESS = re.compile(r"\[([%\w]+)(?:\+(-?\d+))?\]")
_DONE, _WAITING = 1 << 40, 1 << 41  # Program counters of lanes that do not run.


class PtxError(RuntimeError):
    """What a kernel did wrong, or an instruction that is not known here."""


class PtxRuntime:
    """Runs kernels as PTX on tensors of the CPU; ``compile_ptx(stem, name)`` gives the text."""

    def __init__(self, compile_ptx):
        self.compile_ptx = compile_ptx
        self.tensors = {}

    @contextmanager
    def on(self, tensor):
        self.tensors = {}
        yield

    def module(self, stem, name, tensor):
        return PtxModule(self, self.compile_ptx(stem, name), name)

    def address(self, tensor):
        self.tensors[tensor.data_ptr()] = tensor
        return tensor.data_ptr()


class PtxModule:
    """The PTX of one kernel; see ``cupy.RawModule``."""

    def __init__(self, runtime, text, name):
        self.runtime, self.program = runtime, _Program(text)

    def get_function(self, name):
        def function(grid, block, args, *, shared_mem=0):
            tensors = self.runtime.tensors
            buffers = [_bytes(tensors[arg]) for arg in args if isinstance(arg, int)]
            count = iter(range(len(buffers)))
            values = [
                next(count) + 1 << _BUFFER_SHIFT if isinstance(arg, int) else arg for arg in args
            ]
            for index in range(grid[0]):
                _Block(self.program, index, block, values, buffers).run()

        return function


def _bytes(tensor):
    """The memory of a tensor, which keeps its half types from numpy."""
    import torch

    return tensor.view(-1).view(torch.uint8).numpy() if tensor.numel() else np.zeros(0, np.uint8)


class _Program:
    """Parameters, registers, instructions and labels of the one kernel of a PTX text."""

    def __init__(self, text):
        head, body = re.search(r"\.entry\s+\w+\s*\((.*?)\)(.*)\}", text, re.S).groups()
        self.parameters = re.findall(r"\.param\s+\.(\w+).*?(\w+)\s*(?:,|$)", head.strip())
        body = body.split("{", 1)[1]
        self.registers = {
            f"{prefix}{i}": kind
            for kind, prefix, count in re.findall(r"\.reg \.(\w+)\s+(%\w+?)<(\d+)>", body)
            for i in range(int(count))
        }
        self.code, self.labels = [], {}
        for statement in re.findall(r"\$\w+:|[^;]+;", re.sub(r"//[^\n]*", "", body)):
            self._add(statement)
        self.code.append((None, False, ["ret"], []))

    def _add(self, statement):
        label, rest = re.match(r"[\s{}]*(?:(\$\w+):)?[\s{}]*(.*?);?$", statement, re.S).groups()
        if label:
            self.labels[label] = len(self.code)
        if not rest or rest.startswith("."):
            return
        parts = re.match(r"(?:@(!?)(%\w+)\s+)?([\w.]+)\s*(.*)$", rest, re.S)
        negated, guard, opcode, operands = parts.groups()
        operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", operands)
        for one in _elementwise(opcode.split("."), operands):
            self.code.append((guard, bool(negated), *one))


def _elementwise(opcode, operands):
    """A load or store of a vector as one of each element; the first keeps ``v2`` or ``v4``."""
    vector = next((part for part in opcode if part in ("v2", "v4")), None)
    if vector is None:
        yield opcode, operands
        return
    scalar = [part for part in opcode if part != vector]
    registers, address = sorted(operands, key=lambda operand: operand.startswith("["))
    base, offset = _ADDRESS.match(address).groups()
    for i, register in enumerate(re.split(r"[\s,]+", registers.strip("{} "))):
        place = f"[{base}+{int(offset or 0) + i * np.dtype(_TYPES[opcode[-1]]).itemsize}]"
        pair = [register, place] if opcode[0] == "ld" else [place, register]
        yield (scalar if i else opcode), pair


class _Block:
    """The lanes of one block of threads and their memory."""

    def __init__(self, program, index, block, values, buffers):
        self.program, self.buffers = program, buffers
        count = block[0] * block[1] * block[2]
        lanes = np.arange(count, dtype=np.uint32)
        self.count = count
        self.special = {
            "%tid.x": lanes % block[0],
            "%tid.y": lanes // block[0] % block[1],
            "%tid.z": lanes // (block[0] * block[1]),
            "%ctaid.x": np.uint32(index),
            **{f"%ntid.{axis}": np.uint32(size) for axis, size in zip("xyz", block, strict=True)},
            "shared_memory": np.uint32(0),
        }
        self.parameters = {
            name: np.array([value]).astype(_TYPES[kind])
            for (kind, name), value in zip(program.parameters, values, strict=True)
        }
        self.registers = {
            name: np.zeros(count, _TYPES[kind]) for name, kind in program.registers.items()
        }
        self.shared = np.full(_SHARED_BYTES, 0xFF, np.uint8)
        self.pc = np.zeros(count, np.int64)
        self.resume = np.zeros(count, np.int64)

    def run(self):
        """Run all lanes to the end, from barrier to barrier."""
        with np.errstate(all="ignore"):
            while (self.pc != _DONE).any():
                pc = self.pc.min()
                if pc < _DONE:
                    self.step(int(pc))
                    continue
                if (self.pc != _WAITING).any() or len(np.unique(self.resume)) > 1:
                    raise PtxError("not all threads reach the same barrier")
                self.pc[:] = self.resume

    def step(self, pc):
        guard, negated, opcode, operands = self.program.code[pc]
        here = self.pc == pc
        mask = here
        if guard:
            mask = here & (self.registers[guard] != negated)
        self.pc[here] = pc + 1
        if opcode[0] == "bra":
            self.pc[mask] = self.program.labels[operands[0]]
        elif opcode[0] == "ret":
            self.pc[mask] = _DONE
        elif opcode[0] == "bar":
            self.resume[mask], self.pc[mask] = pc + 1, _WAITING
        elif opcode[0] == "st":
            self.store(opcode, operands, mask)
        else:
            self.assign(
                operands[0], self.value(opcode, operands[1:], mask), mask, opcode[0] == "ld"
            )

    def assign(self, name, value, mask, is_load):
        register = self.registers[name]
        value = np.broadcast_to(np.asarray(value), self.count)
        if is_load and value.dtype.itemsize < register.dtype.itemsize:
            wide = np.dtype(f"{value.dtype.kind}{register.dtype.itemsize}")
            value = value.astype(wide)  # By its sign, as a load into a wider register does.
        if value.dtype.itemsize != register.dtype.itemsize:
            raise PtxError(f"{value.dtype} does not fit {name}")
        register[mask] = value.view(register.dtype)[mask]

    def read(self, operand, kind):
        """The value of a register, constant or special register as type ``kind``."""
        dtype = np.dtype(_TYPES[kind])
        if operand in self.registers:
            register = self.registers[operand]
            if dtype.itemsize < register.dtype.itemsize:  # A store takes the low bytes.
                register = register.astype(f"u{dtype.itemsize}")
            return register.view(dtype)
        if operand in self.special:
            return np.broadcast_to(self.special[operand], self.count).astype(dtype)
        if operand.startswith("0f"):
            return np.uint32(int(operand[2:], 16)).view(np.float32)
        if operand.startswith("{"):  # Two halves of a word, the lower first.
            low, high = (self.read(part.strip(), "u16") for part in operand[1:-1].split(","))
            return (np.uint32(low) | np.uint32(high) << np.uint32(16)).view(dtype)
        return np.array(int(operand)).astype(dtype)

    def value(self, opcode, operands, mask):
        name, kind = opcode[0], opcode[-1]
        if name == "ld":
            return self.load(opcode, operands[0], mask)
        if name == "cvt":
            return self.convert(opcode, operands[0])
        if name == "setp":
            compare = getattr(operator, opcode[1])
            return compare(*(self.read(operand, kind) for operand in operands))
        if name == "selp":
            first, second = (self.read(operand, kind) for operand in operands[:2])
            return np.where(self.read(operands[2], "pred"), first, second)
        if name in ("shl", "shr"):
            return _shift(name, self.read(operands[0], kind), self.read(operands[1], "u32"))
        if name not in _ARITHMETIC:
            raise PtxError(f"unknown instruction {'.'.join(opcode)}")
        values = [self.read(operand, kind) for operand in operands]
        if opcode[1] == "wide":
            double = np.dtype(f"{values[0].dtype.kind}{2 * values[0].dtype.itemsize}")
            values = [value.astype(double) for value in values]
        return _ARITHMETIC[name](opcode, *values)

    def convert(self, opcode, operand):
        to, source = opcode[-2:]
        if source == "bf16" or to == "bf16":
            if opcode[1:] != ["rn", "bf16", "f32"]:
                raise PtxError(f"unknown instruction {'.'.join(opcode)}")
            bits = self.read(operand, "u32").astype(np.uint64)
            return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
        value = self.read(operand, source)
        if "sat" in opcode:
            value = np.nan_to_num(value, nan=0).clip(0, 1)
        return value.astype(_TYPES[to])

    def load(self, opcode, operand, mask):
        kind = opcode[-1]
        name, offset = _ADDRESS.match(operand).groups()
        if opcode[1] == "param":
            return np.broadcast_to(self.parameters[name].view(_TYPES[kind]), self.count)
        value = np.zeros(self.count, _TYPES[kind])
        for memory, lanes, at in self.places(opcode, name, offset, mask):
            _check_vector(opcode, at, value.itemsize)
            value[lanes] = _elements(memory, kind, at)[at // value.itemsize]
        return value

    def store(self, opcode, operands, mask):
        kind = opcode[-1]
        name, offset = _ADDRESS.match(operands[0]).groups()
        value = np.broadcast_to(self.read(operands[1], kind), self.count)
        for memory, lanes, at in self.places(opcode, name, offset, mask):
            _check_vector(opcode, at, value.itemsize)
            _elements(memory, kind, at)[at // value.itemsize] = value[lanes]

    def places(self, opcode, name, offset, mask):
        """Which lanes touch which memory, and where."""
        if not mask.any():
            return
        if opcode[1] == "shared":
            lanes = np.flatnonzero(mask)
            wide = self.program.registers.get(name) == "b64"
            base = np.broadcast_to(self.read(name, "u64" if wide else "u32"), self.count)
            yield self.shared, lanes, base[lanes].astype(np.int64) + int(offset or 0)
            return
        address = self.read(name, "s64") + int(offset or 0)
        for number in np.unique(address[mask] >> _BUFFER_SHIFT):
            if not 1 <= number <= len(self.buffers):
                raise PtxError(f"no buffer at address {number << _BUFFER_SHIFT:#x}")
            lanes = np.flatnonzero(mask & (address >> _BUFFER_SHIFT == number))
            yield self.buffers[number - 1], lanes, address[lanes] & ((1 << _BUFFER_SHIFT) - 1)


def _check_vector(opcode, at, itemsize):
    """A vector is where its own size divides the address."""
    count = {"v2": 2, "v4": 4}.get(opcode[-2], 1)
    if (at % (count * itemsize)).any():
        raise PtxError(f"bad address of {opcode[-2]}.{opcode[-1]}: {at.min()} to {at.max()}")


def _elements(memory, kind, at):
    dtype = np.dtype(_TYPES[kind])
    if (at % dtype.itemsize).any() or (at < 0).any() or (at + dtype.itemsize > memory.size).any():
        raise PtxError(f"bad address of {kind}: {at.min()} to {at.max()} of {memory.size} bytes")
    return memory[: memory.size // dtype.itemsize * dtype.itemsize].view(dtype)


def _shift(name, value, count):
    bits = value.dtype.itemsize * 8
    far = count >= bits
    count = np.minimum(count, bits - 1).astype(value.dtype)
    if name == "shl":
        return np.where(far, 0, value << count).astype(value.dtype)
    gone = value >> np.asarray(bits - 1, value.dtype) if value.dtype.kind == "i" else 0
    return np.where(far, gone, value >> count).astype(value.dtype)


def _divide(opcode, a, b):
    if a.dtype.kind == "u":
        return a // b
    quotient = np.abs(a.astype(np.int64)) // np.abs(b.astype(np.int64))
    return (np.sign(a) * np.sign(b) * quotient).astype(a.dtype)


def _multiply(opcode, a, b):
    """The product; of ``mul.hi`` its upper half."""
    if opcode[1] != "hi":
        return a * b
    if a.dtype.itemsize != 4:
        raise PtxError(f"unknown instruction {'.'.join(opcode)}")
    wide = f"{a.dtype.kind}8"
    return (a.astype(wide) * b.astype(wide) >> np.asarray(32, wide)).astype(a.dtype)


def _fused(opcode, a, b, c):
    exact = a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)
    rounded = exact.astype(np.float32)
    if opcode[1] == "rm":
        return np.where(rounded > exact, np.nextafter(rounded, np.float32(-np.inf)), rounded)
    if opcode[1] != "rn":
        raise PtxError(f"unknown instruction {'.'.join(opcode)}")
    return rounded


def _power_of_two(opcode, a):
    tiny = np.finfo(np.float32).tiny
    value = np.exp2(np.where(np.abs(a) < tiny, 0, a).astype(np.float64)).astype(np.float32)
    return np.where(value < tiny, np.float32(0), value)


_ARITHMETIC = {
    "mov": lambda opcode, a: a,
    "cvta": lambda opcode, a: a,
    "add": lambda opcode, a, b: a + b,
    "sub": lambda opcode, a, b: a - b,
    "mul": _multiply,
    "mad": lambda opcode, a, b, c: _multiply(opcode, a, b) + c,
    "fma": _fused,
    "div": _divide,
    "rem": lambda opcode, a, b: (a - b * _divide(opcode, a, b)).astype(a.dtype),
    "neg": lambda opcode, a: -a,
    "not": lambda opcode, a: ~a,
    "and": lambda opcode, a, b: a & b,
    "or": lambda opcode, a, b: a | b,
    "xor": lambda opcode, a, b: a ^ b,
    "min": lambda opcode, a, b: np.fmin(a, b),
    "max": lambda opcode, a, b: np.fmax(a, b),
    "rcp": lambda opcode, a: np.float32(1) / a,
    "ex2": _power_of_two,
}
