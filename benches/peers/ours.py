"""The shared library of `rust/`, through ctypes: safequant, anamnesis, candle, plain loops and the streaming copy."""

import ctypes
import subprocess
from pathlib import Path

FLOATS = {"F32": 0, "F16": 1, "BF16": 2}
HERE = Path(__file__).resolve().parent


class Bytes(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), ("len", ctypes.c_size_t)]


def build(target):
    """Builds the library and loads it."""
    subprocess.run(
        ["cargo", "build", "--release", "--quiet", "--manifest-path", HERE / "rust/Cargo.toml", "--target-dir", target],
        check=True,
    )
    library = ctypes.CDLL(str(Path(target) / "release/libsafequant_peers.so"))
    library.run.restype = ctypes.c_double
    library.run.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_uint32, ctypes.POINTER(Bytes)]
    library.backend.restype = ctypes.c_char_p
    return library


def view(tensor):
    """The bytes of a contiguous tensor; None has none."""
    if tensor is None:
        return Bytes(None, 0)
    assert tensor.is_contiguous()
    return Bytes(tensor.data_ptr(), tensor.numel() * tensor.element_size())


class Rust:
    """Calls `who:what` on the arrays of one case. `out` is given, or the callee's own where it is None."""

    def __init__(self, library, rows, columns, output, codes, scales=None, stored=None, extra=None):
        self.library, self.shape = library, (rows, columns, FLOATS[output])
        self.kept = (codes, scales, stored, extra)
        self.inputs = [view(tensor) for tensor in self.kept]

    def call(self, name, out=None):
        arrays = (Bytes * 5)(*self.inputs, view(out))
        kept = (self.kept, out)

        def run():
            assert kept
            return self.library.run(name.encode(), *self.shape, arrays)

        return run

    def answer(self, name, out):
        """The bytes that a call leaves in `out`."""
        run = self.call(name, out)

        def answer():
            if run() < 0:
                raise RuntimeError(f"{name} refused")
            return bytes_of(out)

        return answer


def bytes_of(tensor):
    """A copy of a tensor's bytes."""
    kept = tensor.detach().contiguous()  # until it is copied: a transposed tensor becomes a new one here
    at = view(kept)
    return ctypes.string_at(at.at, at.len)
