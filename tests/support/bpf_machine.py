"""A small classic-BPF interpreter, enough for seccomp programs: the judge of what the compiler wrote."""

from struct import iter_unpack, pack, unpack_from

ARCH_X86_64 = 0xC000003E
ARCH_I386 = 0x40000003


def seccomp_data(number: int, arguments: tuple[int, ...] = (), arch: int = ARCH_X86_64) -> bytes:
    """``struct seccomp_data`` for one call."""
    six = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    return pack("<IIQ6Q", number, arch, 0, *six)


def run(program: bytes, data: bytes) -> int:
    """The program's return value. Raises ``AssertionError`` where the kernel would have refused to load it."""
    instructions = list(iter_unpack("<HBBI", program))
    accumulator, position = 0, 0
    while True:
        assert position < len(instructions), "ran off the end"
        code, jump_true, jump_false, k = instructions[position]
        position += 1
        if code == 0x20:
            accumulator = unpack_from("<I", data, k)[0]
        elif code == 0x54:
            accumulator &= k
        elif code == 0x05:
            position += k
        elif code == 0x15:
            position += jump_true if accumulator == k else jump_false
        elif code == 0x35:
            position += jump_true if accumulator >= k else jump_false
        elif code == 0x06:
            return int(k)
        else:
            raise AssertionError(f"unknown instruction {code:#x}")
