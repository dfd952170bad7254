"""Machine code of CUDA kernels, read without a GPU: what registers and memory they use.

    kernels(cubin)["minidl_adam"].loads -> Counter({16: 4, 4: 20})

A cubin is an ELF file. Of each kernel it says how many registers and how much of a
stack a thread has; instructions of sm_70 to sm_90 have 16 bytes, whose lowest twelve
bits are what to do, and bits 73 to 75, of loads and stores, how much to move.
"""

import struct
from collections import Counter
from typing import NamedTuple

import stand_in_functions

LOAD, STORE = 0x981, 0x986  # of global memory
BYTES = (1, 1, 2, 2, 4, 8, 16, 16)
REGISTERS, FRAME = 0x2F, 0x11  # notes of section .nv.info: (symbol, number)
THREADS, FILE = 2048, 65536  # of a multiprocessor of an H200: threads and registers


class Code(NamedTuple):
    """What a kernel's machine code needs, and how it reaches memory."""

    registers: int
    frame: int  # bytes of a thread's stack, which are its local memory
    loads: Counter  # {bytes: how many instructions} from global memory
    stores: Counter

    def resident(self, block: int) -> int:
        """Threads that a multiprocessor can have at once, as far as registers go."""
        each = -(-self.registers // 8) * 8 * block
        return min(THREADS // block, FILE // each) * block


def kernels(cubin: bytes) -> dict[str, Code]:
    """Every kernel by its name."""
    (start,) = struct.unpack_from("<Q", cubin, 40)
    count, names = struct.unpack_from("<HH", cubin, 60)
    sections = [
        struct.unpack_from("<IIQQQQII", cubin, start + 64 * k) for k in range(count)
    ]

    def text(section, at: int) -> str:
        at += section[4]
        return cubin[at : cubin.index(b"\0", at)].decode()

    found = {text(sections[names], section[0]): section for section in sections}
    symbols = found[".symtab"]
    notes: dict[tuple, int] = {}
    at, size = found[".nv.info"][4:6]
    end = at + size
    while at < end:
        form, note, size = struct.unpack_from("<BBH", cubin, at)
        at += 4
        if form == 4:  # otherwise `size` is the value itself
            if note in (REGISTERS, FRAME):
                symbol, number = struct.unpack_from("<II", cubin, at)
                (name,) = struct.unpack_from("<I", cubin, symbols[4] + 24 * symbol)
                notes[text(sections[symbols[6]], name), note] = number
            at += size
    result = {}
    for title, section in found.items():
        if title.startswith(".text."):
            name, (at, size) = title[6:], section[4:6]
            moves = Counter(
                (low & 0xFFF, BYTES[high >> 9 & 7])
                for low, high in struct.iter_unpack("<QQ", cubin[at : at + size])
            )
            loads, stores = (
                Counter({width: moves[kind, width] for k, width in moves if k == kind})
                for kind in (LOAD, STORE)
            )
            registers, frame = notes[name, REGISTERS], notes[name, FRAME]
            result[name] = Code(registers, frame, loads, stores)
    return result


class Launch(NamedTuple):
    """A launch that was not made: the kernel's source, and how many threads."""

    source: str
    name: str
    blocks: int
    block: int


class Recorder:
    """Takes the place of `compiled_module` of cuda_on_cpu.py: launches do nothing."""

    def __init__(self):
        self.launches: list[Launch] = []

    def __call__(self, source: str):
        return Recorded(self.launches, source)


class Recorded:
    def __init__(self, launches: list, source: str):
        self.launches, self.source, self.writes = launches, source, Anything()

    def launch(self, name, grid, block, args, shared=0, backwards=False) -> None:
        blocks, threads = 1, 1
        for n in grid:
            blocks *= n
        for n in block:
            threads *= n
        self.launches.append(Launch(self.source, name, blocks, threads))


class Anything(dict):
    """Of any kernel: nothing is known to be written."""

    def __missing__(self, name):
        return []


def recorded(monkeypatch, function) -> list[Launch]:
    """What the function would launch, in CuPy's place."""
    import cuda_on_cpu

    recorder = Recorder()
    monkeypatch.setattr(stand_in_functions, "compiled_module", recorder)
    monkeypatch.setattr(cuda_on_cpu, "compiled_module", recorder)
    function()
    return recorder.launches
