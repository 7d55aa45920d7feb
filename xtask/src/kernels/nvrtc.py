"""Compiles CUDA C to PTX with the NVRTC of a wheel: nvrtc.py LIBRARY ARCHITECTURE SOURCE HEADER OUTPUT [NAME=NUMBER...]."""

import ctypes
import pathlib
import sys


def main():
    library, architecture, source, header, output, *constants = sys.argv[1:]
    nvrtc = ctypes.CDLL(library)

    def check(code):
        if code:
            nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
            raise SystemExit(f"NVRTC: {nvrtc.nvrtcGetErrorString(code).decode()}")

    def text(size_of, get):
        size = ctypes.c_size_t()
        check(size_of(program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        check(get(program, buffer))
        return buffer.value.decode()

    program = ctypes.c_void_p()
    source = pathlib.Path(source)
    headers = (ctypes.c_char_p * 1)(pathlib.Path(header).read_bytes())
    names = (ctypes.c_char_p * 1)(pathlib.Path(header).name.encode())
    check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), source.name.encode(), 1, headers, names))
    options = [f"--gpu-architecture={architecture}", "--std=c++17"]
    options += [f"--define-macro={constant}" for constant in constants]
    values = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    failed = nvrtc.nvrtcCompileProgram(program, len(options), values)
    log = text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog)
    if failed or log.strip():
        raise SystemExit(f"{source}:\n{log}")
    pathlib.Path(output).write_text(text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX))


main()
