"""The cases: one function each, which makes the arrays and lists who works on them. Peers come from functions of their own
library, so that a missing one is skipped by name."""

import ctypes
import glob
import os
import sys

import numpy as np
import torch

from ours import Rust, bytes_of
from timing import Case, Peer

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
DTYPES = {"BF16": BF16, "F16": F16, "F32": F32}
LIBRARY, KERNEL, QUANTIZE = 8.0, 2.0, 5.0
SLICE = 512  # rows for peers that would take minutes; the same columns

GGML = {"Q4_0": (2, 32, 18), "Q8_0": (8, 32, 34), "Q4_K": (12, 256, 144), "Q6_K": (14, 256, 210)}


def load(name):
    """A module, or None with a line that says so."""
    try:
        return __import__(name, fromlist=["_"])
    except Exception as error:  # a broken install is as missing as none
        print(f"SKIPPED: {name} cannot be imported ({type(error).__name__}: {str(error)[:200]})", file=sys.stderr)
        return None


class Field:
    """What is installed, and the arrays' common size."""

    def __init__(self, library, rows, columns, ggml):
        self.library, self.rows, self.columns = library, rows, columns
        self.ct = load("compressed_tensors")
        self.transformers = load("transformers.integrations.finegrained_fp8")
        self.mxfp4 = load("transformers.integrations.mxfp4")
        self.bnb = load("bitsandbytes")
        self.gptqmodel = load("gptqmodel")
        self.mlx = load("mlx.core")
        self.ggml = [(name, found) for name, folder in ggml if (found := load_ggml(name, folder))]
        if not self.ggml:
            print("SKIPPED: no libggml-base.so (--ggml FOLDER, or llama-cpp-python)", file=sys.stderr)
        self.random = torch.Generator().manual_seed(7)

    def codes(self, *shape):
        """Random bytes, no NaN of E4M3 among them."""
        codes = torch.randint(0, 256, shape, dtype=torch.uint8, generator=self.random)
        return torch.where((codes & 0x7F) == 0x7F, codes - 1, codes)

    def scales(self, *shape, dtype=BF16):
        """Scales of weights, exact in `dtype`."""
        return (torch.rand(shape, generator=self.random) * 0.02 + 0.005).to(dtype)

    def case(self, name, title, output, codes, scales=None, stored=None, extra=None, sample=None, copied=None):
        """A case with safequant, the copy, a fresh array, and the Rust neighbors that know it."""
        rust = Rust(self.library, self.rows, self.columns, output, codes, scales, stored, extra)
        out = torch.empty(self.rows, self.columns, dtype=DTYPES[output])
        sample = sample or name
        ours = Peer("safequant", "decode_rows, given array", rust.call(f"safequant:{sample}", out), rust.answer(f"safequant:{sample}", out))
        peers = [
            ours,
            Peer("streaming copy", "the same bytes in and out", rust.call("copy:", out.clone())),
            Peer("safequant, fresh array", "decode_rows, `vec![0; n]`", rust.call(f"fresh:{sample}")),
        ]
        case = Case(name, title, self.rows, self.columns, output, peers)
        case.bytes_in, case.bytes_out = codes.numel() * codes.element_size(), out.numel() * out.element_size()
        case.rust, case.out = rust, torch.empty_like(out)
        return case

    def rust(self, case, who, what, target, how, given=False):
        """A peer of the Rust library."""
        call = case.rust.call(f"{who}:{what}", case.out if given else None)
        case.peers.append(Peer(who, how, call, case.rust.answer(f"{who}:{what}", case.out), target=target))

    def python(self, case, name, how, function, target=LIBRARY, rows=0, transposed=False, compared=True):
        """A peer that is a function of no arguments and gives a tensor."""

        def answer():
            result = function()
            return bytes_of(result.T if transposed else result)

        case.peers.append(Peer(name, how, function, answer if compared else None, rows, target))

    def compiled(self, case, function, *arguments, name="torch.compile", target=LIBRARY, transposed=False):
        """torch.compile of `function`, into a given array of the case's shape."""
        into = torch.compile(lambda out, *given: out.copy_(function(*given)), dynamic=False)
        out = torch.empty_like(case.out)

        def call():
            with torch.no_grad():
                return into(out, *arguments)

        def answer():
            call()
            return bytes_of(out.T if transposed else out)

        case.peers.append(Peer(name, "inductor, given array", call, answer, 0, target))


def load_ggml(name, folder):
    found = glob.glob(os.path.join(folder, "**", "libggml-base.so"), recursive=True)
    if not found:
        print(f"SKIPPED: {name}: no libggml-base.so below {folder}", file=sys.stderr)
        return None
    library = ctypes.CDLL(found[0])
    for kind in GGML:
        getattr(library, f"dequantize_row_{kind.lower().replace('_k', '_K')}").argtypes = [
            ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64,
        ]
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int] + [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library


def fp8_cast(f):
    codes = f.codes(f.rows, f.columns)
    fp8 = codes.view(torch.float8_e4m3fn)
    case = f.case("fp8_cast", "FP8 E4M3 cast to BF16", "BF16", codes, sample="fp8_tensor")
    f.rust(case, "table", "fp8_cast", KERNEL, "256 entries, a loop in Rust, given array", given=True)
    f.python(case, "torch eager", ".to(bfloat16), fresh", lambda: fp8.to(BF16))
    f.compiled(case, lambda q: q.to(BF16), fp8)
    f.rust(case, "candle", "fp8_cast", LIBRARY, "to_dtype, fresh")
    f.rust(case, "anamnesis", "fp8_cast", LIBRARY, "dequantize_per_tensor_fp8_to_bf16, fresh")
    if f.mlx:
        given = f.mlx.array(codes.numpy())
        mlx(f, case, "from_fp8", lambda: f.mlx.from_fp8(given, dtype=f.mlx.bfloat16))
    return case


def mlx(f, case, how, function, rows=0):
    """MLX on a CPU: lazy until it is asked."""

    def call():
        result = function()
        f.mlx.eval(result)
        return result

    def answer():
        return np.array(call().view(f.mlx.uint16)).tobytes()

    case.peers.append(Peer("mlx", f"{how}, CPU, fresh", call, answer, rows, LIBRARY))


def fp8_channel(f):
    codes, scales = f.codes(f.rows, f.columns), f.scales(f.rows, 1)
    fp8, wide = codes.view(torch.float8_e4m3fn), scales.float()
    case = f.case("fp8_channel", "FP8 per channel to BF16", "BF16", codes, wide, stored=wide)
    f.rust(case, "table", "fp8_channel", KERNEL, "256 entries, a loop in Rust, given array", given=True)
    f.python(case, "torch eager", "to F32, times scale, to BF16, fresh", lambda: (fp8.float() * wide).to(BF16))
    f.compiled(case, lambda q, s: (q.float() * s).to(BF16), fp8, wide)
    f.rust(case, "anamnesis", "fp8_channel", LIBRARY, "dequantize_per_channel_fp8_to_bf16, fresh")
    if f.ct:
        from compressed_tensors.quantization import QuantizationArgs
        from compressed_tensors.quantization.lifecycle.forward import dequantize

        args = QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy="channel")
        f.python(case, "compressed-tensors", "dequantize, fresh", lambda: dequantize(fp8, scales, args=args, dtype=BF16))
    floatx(f, case, lambda g: g.dequantize_fp8(fp8, scale=wide.flatten(), axis=0, target_dtype=BF16))
    return case


def floatx(f, case, function):
    """GPTQModel's C++ extension for floats, made to take its native path."""
    if not f.gptqmodel:
        return
    dtype = load("gptqmodel.quantization.dtype")
    if not dtype or dtype._load_floatx_cpu_ops() is None:
        print(f"{case.name}: SKIPPED: GPTQModel's floatx_cpu extension does not load", file=sys.stderr)
        return
    f.python(case, "GPTQModel floatx", "C++ extension, fresh", lambda: function(dtype))


def fp8_block(f):
    codes, scales = f.codes(f.rows, f.columns), f.scales(f.rows // 128, f.columns // 128, dtype=F32)
    fp8 = codes.view(torch.float8_e4m3fn)
    case = f.case("fp8_block", "FP8 per block of 128 x 128 to BF16", "BF16", codes, scales, stored=scales)

    def plain(q, s):
        blocks = q.float().view(q.shape[0] // 128, 128, q.shape[1] // 128, 128)
        return (blocks * s[:, None, :, None]).to(BF16).view(q.shape)

    f.python(case, "torch eager", "to F32, times scale, to BF16, fresh", lambda: plain(fp8, scales))
    f.compiled(case, plain, fp8, scales)
    f.rust(case, "anamnesis", "fp8_block", LIBRARY, "dequantize_fp8_to_bf16, fresh")
    if f.transformers:
        op = f.transformers.Fp8Dequantize(None)
        f.python(case, "transformers", "Fp8Dequantize, fresh", lambda: op._dequantize_one(fp8, scales, BF16))
    floatx(f, case, lambda g: g.dequantize_fp8(fp8, scale=scales, axis=None, target_dtype=BF16))
    return case


def int4_g128(f):
    codes, scales = f.codes(f.rows, f.columns // 2), f.scales(f.rows, f.columns // 128)
    case = f.case("int4_g128", "INT4 groups of 128 (compressed-tensors) to BF16", "BF16", codes, scales.float())
    words, rows = codes.view(torch.int32)[:SLICE].contiguous(), SLICE
    cut = scales[:SLICE]
    if f.ct:
        from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

        args = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=128)
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        state = {"weight_packed": words, "weight_scale": cut, "weight_shape": torch.tensor([rows, f.columns])}
        run = lambda: PackedQuantizationCompressor.decompress(state, scheme)["weight"]
        f.python(case, "compressed-tensors", "pack-quantized decompress, fresh", run, rows=rows)

    def plain(words, scales):
        shifts = torch.arange(0, 32, 4, dtype=torch.int32)
        codes = (words[:, :, None] >> shifts) & 15
        values = (codes - 8).to(BF16).view(words.shape[0], -1, 128)
        return (values * scales[:, :, None]).view(words.shape[0], -1)

    f.python(case, "torch eager", "shift, mask, scale, fresh", lambda: plain(words, cut), rows=rows)
    f.compiled(case, plain, codes.view(torch.int32), scales)
    return case


def gptq4_g128(f):
    codes = f.codes(f.columns // 8, f.rows * 4)
    scales = f.scales(f.columns // 128, f.rows, dtype=F16)
    zeros = torch.full((f.columns // 128, f.rows // 8), 0x77777777, dtype=torch.int32)
    case = f.case("gptq4_g128", "GPTQ 4 bits, groups of 128, to F16", "F16", codes, scales.T.contiguous().float(), scales, zeros)
    f.rust(case, "anamnesis", "gptq4_g128", LIBRARY, "dequantize_gptq (to BF16), fresh")
    case.peers[-1].answer = None  # another dtype
    words = codes.view(torch.int32)
    if f.gptqmodel:
        from gptqmodel.nn_modules.qlinear.torch import TorchLinear

        layer = TorchLinear(bits=4, group_size=128, sym=True, desc_act=False, in_features=f.columns, out_features=f.rows)
        layer.qweight, layer.scales = words, scales
        # In memory GPTQModel holds zero points as they count (8), files hold one less.
        layer.qzeros = torch.full_like(zeros, -0x77777778)
        layer.g_idx = torch.arange(f.columns, dtype=torch.int32) // 128
        layer.post_init()
        f.python(case, "GPTQModel torch", "dequantize_weight, fresh", layer.dequantize_weight, transposed=True)

    def plain(words, scales):
        shifts = torch.arange(0, 32, 4, dtype=torch.int32)
        codes = ((words[:, None, :] >> shifts[None, :, None]) & 15).view(-1, 128, words.shape[1])
        return ((codes - 8).to(F16) * scales[:, None, :]).view(-1, words.shape[1])

    case_out, case.out = case.out, torch.empty(f.columns, f.rows, dtype=F16)
    f.compiled(case, plain, words, scales, name="torch.compile, not transposed", transposed=True)
    case.out = case_out
    return case


def awq4_g128(f):
    codes = f.codes(f.columns, f.rows // 2)
    scales = f.scales(f.columns // 128, f.rows, dtype=F16)
    zeros = torch.full((f.columns // 128, f.rows // 8), -0x77777778, dtype=torch.int32)
    case = f.case("awq4_g128", "AWQ 4 bits, groups of 128, to F16", "F16", codes, scales.T.contiguous().float(), scales, zeros)
    f.rust(case, "anamnesis", "awq4_g128", LIBRARY, "dequantize_awq (to BF16), fresh")
    case.peers[-1].answer = None  # another dtype
    if f.gptqmodel:
        from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

        words = codes.view(torch.int32)
        f.python(case, "GPTQModel AWQ", "dequantize_gemm, fresh", lambda: dequantize_gemm(words, zeros, scales, 4, 128), transposed=True)
    return case


def nf4_g64(f):
    codes, scales = f.codes(f.rows, f.columns // 2), f.scales(f.rows, f.columns // 64, dtype=F32)
    book = torch.tensor(NF4, dtype=F32)
    case = f.case("nf4_g64", "NF4 blocks of 64 to BF16", "BF16", codes, scales, scales, book)
    f.rust(case, "anamnesis", "nf4_g64", LIBRARY, "dequantize_bnb4_to_bf16, fresh")
    if f.bnb:
        import bitsandbytes.functional as functional
        from bitsandbytes.cextension import lib

        state = functional.QuantState(
            absmax=scales.flatten(), shape=torch.Size([f.rows, f.columns]), code=book, blocksize=64, quant_type="nf4", dtype=BF16,
        )
        f.python(case, "bitsandbytes", "dequantize_4bit, fresh", lambda: functional.dequantize_4bit(codes.view(-1, 1), state))
        out, absmax = torch.empty_like(case.out), scales.flatten()
        sizes = [ctypes.c_longlong(n) for n in (64, f.rows, f.columns)]
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (codes, absmax, out)]

        def kernel():
            lib.cdequantize_blockwise_cpu_nf4_bf16(*pointers, *sizes)
            return out

        f.python(case, "bitsandbytes' C kernel", "cdequantize_blockwise_cpu_nf4_bf16, given array", kernel, KERNEL)
    return case


NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # QLoRA's code book, as bitsandbytes has it


def mxfp4(f):
    codes = f.codes(f.rows, f.columns // 2)
    stored = torch.randint(115, 128, (f.rows, f.columns // 32), dtype=torch.uint8, generator=f.random)
    wide = (stored.float() - 127).exp2()
    case = f.case("mxfp4", "MXFP4 to BF16", "BF16", codes, wide)
    cut, cut_scales = codes[:SLICE], stored[:SLICE]
    if f.mxfp4:
        blocks, exponents = cut.view(1, SLICE, -1, 16), cut_scales[None]
        run = lambda: f.mxfp4.convert_moe_packed_tensors(blocks, exponents)[0]
        f.python(case, "transformers", "convert_moe_packed_tensors, fresh", run, rows=SLICE, transposed=True)
    if f.ct:
        from compressed_tensors.compressors.mxfp4.base import MXFP4PackedCompressor

        fp4(f, case, MXFP4PackedCompressor, 32, {"weight_packed": cut, "weight_scale": cut_scales})
    floatx(f, case, lambda g: g.dequantize_f4_e2m1(codes, scale=wide, axis=None, target_dtype=BF16))
    if f.mlx:
        words, scales = f.mlx.array(cut.numpy().view(np.uint32)), f.mlx.array(cut_scales.numpy())
        mlx(f, case, "dequantize mxfp4", lambda: f.mlx.dequantize(words, scales, group_size=32, bits=4, mode="mxfp4", dtype=f.mlx.bfloat16), SLICE)
    return case


def fp4(f, case, compressor, group, state):
    """compressed-tensors' own way to read a packed FP4 weight."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    strategy = "tensor_group" if group == 16 else "group"
    args = QuantizationArgs(num_bits=4, type="float", symmetric=True, strategy=strategy, group_size=group)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    run = lambda: compressor.decompress(state, scheme)["weight"]
    f.python(case, "compressed-tensors", "decompress, fresh", run, rows=SLICE)


def nvfp4(f):
    codes = f.codes(f.rows, f.columns // 2)
    stored = torch.randint(40, 90, (f.rows, f.columns // 16), dtype=torch.uint8, generator=f.random)
    fp8 = stored.view(torch.float8_e4m3fn)
    case = f.case("nvfp4", "NVFP4 to BF16", "BF16", codes, fp8.float(), stored)
    f.rust(case, "anamnesis", "nvfp4", LIBRARY, "dequantize_nvfp4_to_bf16, fresh")
    cut = codes[:SLICE]
    if f.ct:
        from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor

        state = {"weight_packed": cut, "weight_scale": fp8[:SLICE], "weight_global_scale": torch.ones(1)}
        fp4(f, case, NVFP4PackedCompressor, 16, state)
    floatx(f, case, lambda g: g.dequantize_f4_e2m1(codes, scale=fp8.float(), axis=None, target_dtype=BF16))
    if f.mlx:
        words, scales = f.mlx.array(cut.numpy().view(np.uint32)), f.mlx.array(stored[:SLICE].numpy())
        mlx(f, case, "dequantize nvfp4", lambda: f.mlx.dequantize(words, scales, group_size=16, bits=4, mode="nvfp4", dtype=f.mlx.bfloat16), SLICE)
    return case


def blocks_of(f, kind):
    """A matrix that ggml itself quantized: 64 rows of it, again and again."""
    number, elements, n_bytes = GGML[kind]
    dense = torch.randn(64, f.columns, generator=f.random) * 0.02
    row = f.columns // elements * n_bytes
    packed = torch.empty(64, row, dtype=torch.uint8)
    f.ggml[0][1].ggml_quantize_chunk(number, dense.data_ptr(), packed.data_ptr(), 0, 64, f.columns, None)
    return packed.repeat(f.rows // 64, 1)


def ggml(kind):
    """ggml's blocks to F32, which is what ggml gives."""

    def case(f):
        if not f.ggml:
            return None
        blocks = blocks_of(f, kind)
        case = f.case(kind, f"ggml {kind} to F32", "F32", blocks)
        n = f.rows * f.columns
        for name, library in f.ggml:
            kernel = getattr(library, f"dequantize_row_{kind.lower().replace('_k', '_K')}")
            out = torch.empty_like(case.out)

            def run(kernel=kernel, out=out):
                kernel(blocks.data_ptr(), out.data_ptr(), n)
                return out

            f.python(case, name, "dequantize_row, given array", run, KERNEL)
        f.rust(case, "candle", kind, LIBRARY, "QTensor::dequantize, fresh")
        f.rust(case, "anamnesis", kind, LIBRARY, "dequantize_gguf, fresh")
        return case

    return case


def dense(f):
    """A BF16 weight."""
    return (torch.randn(f.rows, f.columns, generator=f.random) * 0.02).to(BF16)


def quantizing(f, name, title, weight, n_out):
    """A case whose output is packed codes."""
    rust = Rust(f.library, f.rows, f.columns, "BF16", weight)
    out = torch.empty(n_out, dtype=torch.uint8)
    ours = Peer("safequant", "rtn by tiles, codes packed", rust.call(f"safequant:{name}", out), rust.answer(f"safequant:{name}", out))
    copy = Peer("streaming copy", "the same bytes in and out", rust.call("copy:", torch.empty_like(out)))
    case = Case(name, title, f.rows, f.columns, "codes", [ours, copy])
    case.bytes_in, case.bytes_out = 2 * weight.numel(), n_out
    case.out = out
    return case


def quantize_fp8_channel(f):
    weight = dense(f)
    case = quantizing(f, "quantize_fp8_channel", "BF16 to FP8 per channel", weight, weight.numel())

    def plain(w):
        scale = w.abs().amax(1, keepdim=True) / 448.0
        return (w / scale).clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)

    f.python(case, "torch eager", "absmax, divide, cast, fresh", lambda: plain(weight), QUANTIZE)
    codes(f, case, plain, weight)
    if f.mlx:
        given = f.mlx.array(weight[:SLICE].view(torch.uint16).numpy()).view(f.mlx.bfloat16)
        run = lambda: f.mlx.to_fp8(given)
        mlx(f, case, "to_fp8 (no scale)", run, SLICE)
        case.peers[-1].answer, case.peers[-1].target = None, QUANTIZE
    return case


def codes(f, case, function, *arguments):
    case.out = torch.empty(f.rows, case.bytes_out // f.rows, dtype=torch.uint8)
    f.compiled(case, function, *arguments, target=QUANTIZE)


def quantize_fp8_block(f):
    weight = dense(f)
    case = quantizing(f, "quantize_fp8_block", "BF16 to FP8 per block of 128 x 128", weight, weight.numel())

    def plain(w):
        blocks = w.float().view(w.shape[0] // 128, 128, w.shape[1] // 128, 128)
        top = blocks.abs().amax((1, 3), keepdim=True)
        codes = (blocks * (448.0 / top)).clamp(-448, 448).to(torch.float8_e4m3fn)
        return codes.view(w.shape).view(torch.uint8)

    f.python(case, "torch eager", "as transformers' Fp8Quantize, fresh", lambda: plain(weight), QUANTIZE)
    codes(f, case, plain, weight)
    return case


def quantize_int4_g128(f):
    weight = dense(f)
    case = quantizing(f, "quantize_int4_g128", "BF16 to INT4 groups of 128", weight, weight.numel() // 2)

    def plain(w):
        groups = w.view(w.shape[0], -1, 128)
        scale = groups.abs().amax(2, keepdim=True) / 7.5
        codes = (groups / scale).clamp(-8, 7).round().to(torch.int8) + 8
        codes = codes.view(w.shape[0], -1, 2).to(torch.uint8)
        return codes[:, :, 0] | (codes[:, :, 1] << 4)

    cut = weight[:SLICE]
    f.python(case, "torch eager", "min and max, divide, round, pack, fresh", lambda: plain(cut), QUANTIZE, SLICE)
    codes(f, case, plain, weight)
    if f.mlx:
        given = f.mlx.array(cut.view(torch.uint16).numpy()).view(f.mlx.bfloat16)
        run = lambda: f.mlx.quantize(given, group_size=128, bits=4)[0]
        mlx(f, case, "quantize 4 bits, groups of 128, affine", run, SLICE)
        case.peers[-1].answer, case.peers[-1].target = None, QUANTIZE
    for name, library in f.ggml:
        wide, number = cut.float(), GGML["Q4_0"][0]
        out = torch.empty(SLICE * f.columns // 32 * 18, dtype=torch.uint8)

        def run(library=library, wide=wide, out=out):
            library.ggml_quantize_chunk(number, wide.data_ptr(), out.data_ptr(), 0, SLICE, f.columns, None)
            return out

        f.python(case, name, "Q4_0 of F32, given array", run, QUANTIZE, SLICE, compared=False)
    return case


FUNCTIONS = [
    fp8_cast, fp8_channel, fp8_block, int4_g128, gptq4_g128, awq4_g128, nf4_g64, mxfp4, nvfp4,
    quantize_fp8_channel, quantize_fp8_block, quantize_int4_g128,
]
CASES = {function.__name__: function for function in FUNCTIONS} | {kind: ggml(kind) for kind in GGML}
