"""Writes blocks.json: what two other programs read out of stored blocks, and what they lose when they write them.

    python blocks.py > blocks.json          (made with gguf 0.19.0, numpy 2.4.6, xllamacpp 2026.10.11549)

`read` has, for each type, blocks of random bytes with scales from a table, and the numbers that gguf's numpy code
(`gguf.quants.dequantize`) has for them; ggml's C code, out of xllamacpp's library, must have the same, or nothing is written.
`write` has numbers spread as weights are, and for each type the error (root mean square, relative) that is left of them when
ggml stores them (`ggml_quantize_chunk`) and gguf's numpy reads them back; of the two types that gguf's numpy writes, too,
also the bytes. Bytes are in hexadecimal, numbers little-endian floats of 32 bits.
"""
import ctypes, json, pathlib, sys
import gguf, numpy, xllamacpp
from gguf import GGMLQuantizationType as Kind

# Ones, roundings, a negative one, one with few bits (subnormal), zeros of both signs, the smallest and the largest.
SCALES = [1.0, 0.1, -0.0371, 3.3e-6, 0.0, -0.0, 6e-8, 65504.0, 0.0123, -2.5, 0.00097, 512.25]
# Type, values and bytes of a block, where 16-bit scales stand, how many blocks.
TYPES = [
    (Kind.Q8_0, 32, 34, [0], 24),
    (Kind.Q4_0, 32, 18, [0], 24),
    (Kind.Q4_K, 256, 144, [0, 2], 8),
    (Kind.Q5_K, 256, 176, [0, 2], 8),
    (Kind.Q6_K, 256, 210, [208], 8),
]
# 16-bit floats as such: zeros, subnormal, ones, roundings, the ends of the range, infinities.
F16 = [0x0000, 0x8000, 0x0001, 0x83ff, 0x0400, 0x3c00, 0xbc01, 0x3555, 0xb266, 0x7bff, 0xfbff, 0x7c00, 0xfc00]
BF16 = [0x0000, 0x8000, 0x0001, 0x807f, 0x0080, 0x3f80, 0xbf81, 0x3eab, 0xbdcd, 0x7f7f, 0xff7f, 0x7f80, 0xff80]

library = ctypes.CDLL(str(next(pathlib.Path(xllamacpp.__file__).parent.glob("*.so"))))
library.ggml_quantize_chunk.argtypes = [
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
library.ggml_quantize_chunk.restype = ctypes.c_size_t


def numbers(seed):
    """The upper bits of a linear congruential generator, without end."""
    while True:
        seed = (seed * 6364136223846793005 + 1442695040888963407) % 2**64
        yield seed >> 33


def of_numpy(kind, stored):
    return gguf.quants.dequantize(stored, kind).astype("<f4").reshape(-1)


def of_ggml(kind, stored, count):
    out = numpy.empty(count, "<f4")
    read = getattr(library, f"dequantize_row_{kind.name.lower().replace('_k', '_K')}")
    read.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    read(stored.ctypes.data, out.ctypes.data, count)
    return out


def by_ggml(kind, values, length):
    out = numpy.zeros(length, numpy.uint8)
    written = library.ggml_quantize_chunk(kind, values.ctypes.data, out.ctypes.data, 0, 1, len(values), None)
    assert written == length, kind
    return out


def read(kind, values, length, scales, count):
    random, halves = numbers(int(kind)), numpy.array(SCALES, "<f2").view("<u2")
    blocks = numpy.array([next(random) & 255 for _ in range(count * length)], numpy.uint8).reshape(count, length)
    for index, block in enumerate(blocks):
        for place, at in enumerate(scales):
            block[at:at + 2] = numpy.array([halves[(index + 5 * place) % len(halves)]], "<u2").view(numpy.uint8)
    found = of_numpy(kind, blocks)
    assert found.tobytes() == of_ggml(kind, blocks, count * values).tobytes(), f"{kind.name}: numpy and C differ"
    return {"blocks": blocks.tobytes().hex(), "values": found.tobytes().hex()}


def plain(kind, patterns):
    stored = numpy.array(patterns, "<u2").view(numpy.uint8).reshape(1, -1)
    return {"blocks": stored.tobytes().hex(), "values": of_numpy(kind, stored).tobytes().hex()}


def write(kind, values, length):
    stored = by_ggml(kind, values, length)
    off = of_numpy(kind, stored).astype(numpy.float64) - values
    told = {"error": round(float(numpy.sqrt((off**2).sum() / (values.astype(numpy.float64)**2).sum())), 7)}
    if kind in (Kind.Q8_0, Kind.Q4_0):
        own = gguf.quants.quantize(values, kind)
        assert own.tobytes() == stored.tobytes(), f"{kind.name}: numpy and C differ"
        told["blocks"] = own.tobytes().hex()
    return told


random = numbers(7)
spread = [sum(next(random) / 2**31 - 0.5 for _ in range(6)) * 0.05 for _ in range(2048)]
weights = numpy.array(spread, "<f4")
told = {"read": {kind.name: read(kind, *rest) for kind, *rest in TYPES}}
told["read"] |= {"F16": plain(Kind.F16, F16), "BF16": plain(Kind.BF16, BF16)}
told["write"] = {"values": weights.tobytes().hex()}
told["write"] |= {kind.name: write(kind, weights, len(weights) // values * length) for kind, values, length, *_ in TYPES}
json.dump(told, sys.stdout, indent=1)
print()
