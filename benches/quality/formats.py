"""The formats of the comparison: one list, with how the engine and its peers call each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Family = Literal["integer", "float zero", "fp8", "nvfp4", "mxfp4", "codebook", "ggml"]


@dataclass(frozen=True)
class Format:
    """One way to store a weight.

    Attributes:
        name: As in the table.
        family: Which peers know it, and what they are asked for.
        engine: Options of ``safequant quantize``; none if it does not write this: then there is no row of ours to miss.
        bits: Bits of a code; 0 where the family says it.
        group: Weights of a row that share a scale; 0 where the family says it.
        symmetric: No zero point.
        kind: What tells members of a family apart: ggml's name of a type, FP8's granularity, bitsandbytes' name of a code book.
        bar: Percent output error of the engine's prototype, data-free and with statistics, on another machine's text; ``None``
            where there was none.
    """

    name: str
    family: Family
    engine: tuple[str, ...]
    bits: int = 0
    group: int = 0
    symmetric: bool = True
    kind: str = ""
    bar: tuple[float | None, float | None] = (None, None)

    @property
    def joined(self) -> bool:
        """Whether two rows are joined where a row is no multiple of 256."""
        return self.family == "ggml" and (self.kind.endswith("_K") or self.kind.startswith("IQ")) and self.kind != "IQ4_NL"

    @property
    def slug(self) -> str:
        """For names of files."""
        return self.name.lower().replace(" ", "-")


def integer(bits: int, group: int, symmetric: bool, data_free: float, with_statistics: float) -> Format:
    """Integer codes in groups, with BF16 scales and packed integer zero points."""
    scheme = f"W{bits}A16" + ("" if symmetric else "_ASYM")
    options = ("--scheme", scheme, "--group-size", str(group), "--convention", "compressed-tensors")
    name = f"W{bits} g{group} {'sym' if symmetric else 'asym'}"
    return Format(name, "integer", options, bits, group, symmetric, bar=(data_free, with_statistics))


def float_zero(bits: int, group: int, data_free: float | None, with_statistics: float | None) -> Format:
    """Integer codes with a scale and an offset that are both 16-bit floats."""
    options = ("--scheme", f"W{bits}A16_ASYM", "--group-size", str(group), "--convention", "mlx")
    return Format(f"W{bits} g{group} float zero", "float zero", options, bits, group, False, bar=(data_free, with_statistics))


def fp8(name: str, scheme: str, kind: str, data_free: float | None = None, with_statistics: float | None = None) -> Format:
    """E4M3 codes."""
    return Format(name, "fp8", ("--scheme", scheme, "--convention", "compressed-tensors"), 8, kind=kind, bar=(data_free, with_statistics))


def codebook(name: str, scheme: str, kind: str, data_free: float | None = None, with_statistics: float | None = None) -> Format:
    """bitsandbytes' blocks of 64."""
    return Format(name, "codebook", ("--scheme", scheme, "--convention", "bitsandbytes"), 4, 64, kind=kind, bar=(data_free, with_statistics))


def ggml(kind: str, data_free: float | None = None, with_statistics: float | None = None) -> Format:
    """Blocks of GGUF."""
    return Format(f"GGUF {kind}", "ggml", ("--scheme", kind, "--convention", "gguf"), kind=kind, bar=(data_free, with_statistics))


FORMATS: tuple[Format, ...] = (
    integer(8, 128, True, 0.0034, 0.0013),
    integer(4, 128, True, 0.8117, 0.2650),
    integer(4, 128, False, 0.7484, 0.2650),
    integer(4, 64, True, 0.6714, 0.2394),
    integer(4, 64, False, 0.6081, 0.2210),
    integer(4, 32, True, 0.5286, 0.1944),
    integer(4, 32, False, 0.4638, 0.1711),
    float_zero(4, 128, 0.6880, 0.2545),
    float_zero(4, 64, 0.5396, 0.2058),
    float_zero(4, 32, None, None),
    integer(3, 128, True, 2.9459, 0.9896),
    integer(3, 128, False, 2.8457, 0.9866),
    float_zero(3, 128, None, None),
    integer(2, 64, False, 9.671, 3.4738),
    integer(2, 32, False, 8.356, 3.1053),
    float_zero(2, 64, 8.250, 3.0361),
    float_zero(2, 32, None, None),
    fp8("FP8 per-channel", "FP8_DYNAMIC", "channel", 0.0397, 0.0140),
    fp8("FP8 per-tensor", "FP8", "tensor"),
    fp8("FP8 block 128x128", "FP8_BLOCK", "block"),
    Format("NVFP4", "nvfp4", ("--scheme", "NVFP4A16", "--convention", "compressed-tensors"), 4, 16, bar=(0.4645, 0.1866)),
    Format("MXFP4", "mxfp4", ("--scheme", "MXFP4A16", "--convention", "compressed-tensors"), 4, 32, bar=(0.9315, 0.3143)),
    codebook("NF4 bs64", "NF4", "nf4", 0.5322, 0.1985),
    codebook("NF4 bs64 double-quant", "NF4_DQ", "nf4-double"),
    codebook("FP4 bs64", "FP4", "fp4"),
    ggml("Q8_0"),
    ggml("Q6_K", None, 0.0093),
    ggml("Q5_1"),
    ggml("Q5_K", None, 0.0384),
    ggml("Q5_0"),
    ggml("Q4_1", 0.3863, 0.1523),
    ggml("Q4_K", None, 0.1577),
    ggml("Q4_0", 0.5286, 0.1944),
    ggml("IQ4_NL"),
    ggml("IQ4_XS", None, 0.1643),
    ggml("Q3_K", None, 0.6099),
    ggml("IQ3_S"),
    ggml("IQ3_XXS"),
    ggml("Q2_K", None, 2.2240),
    ggml("IQ2_S"),
    ggml("IQ2_XS"),
)


def chosen(only: str | None) -> list[Format]:
    """Formats whose name contains one of the words, which commas divide; all without words.

    Raises:
        ValueError: A word that is in no name.
    """
    if only is None:
        return list(FORMATS)
    words = [word.strip().lower() for word in only.split(",")]
    for word in words:
        if not any(word in known.name.lower() for known in FORMATS):
            raise ValueError(f"{word}: in no format's name; there are: {', '.join(known.name for known in FORMATS)}")
    return [known for known in FORMATS if any(word in known.name.lower() for word in words)]
