"""What ``Q4_K_M`` and its like mean: which type each tensor of a file gets. Data, as llama.cpp's own quantizer has it.

A file type has one type for most tensors, and rules for those that its name stands for: by part, such as ``v`` for the
values of attention, a few alternatives of which the first that holds counts: ``"eight Q5_K, more Q6_K"`` is Q5_K in a
mixture of eight experts, else Q6_K in the layers that get more bits, else what most tensors have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lazymoe.errors import error, nearest

Shape = tuple[int, ...]
PLAIN = ("F32", "F16", "BF16")  # as they are, or cut off: no quantizer needed
UNWEIGHTED = (*PLAIN, "Q8_0")  # types that an importance matrix makes no difference to
STARVED = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS")  # types that are no good without an importance matrix
# what a type becomes in rows that its blocks, of 256 weights, don't divide; the other types have blocks of 32
NARROW = {
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ2_XXS": "IQ4_NL",
    "IQ2_XS": "IQ4_NL", "IQ2_S": "IQ4_NL", "IQ3_XXS": "IQ4_NL", "IQ3_S": "IQ4_NL", "IQ4_XS": "IQ4_NL",
}  # fmt: skip
OUTER = {"output.weight": "head", "token_embd.weight": "embeddings"}  # the part that a tensor belongs to, by its name
PARTS = {  # and in a layer, by what its name has in it
    "attn_v.weight": "v",
    "attn_qkv.weight": "v",  # queries, keys and values in one
    "attn_k.weight": "k",
    "attn_q.weight": "q",
    "attn_output.weight": "o",
    "ffn_up": "up",
    "ffn_gate": "gate",
    "ffn_down": "down",
}
FLOATS = ("_norm.weight", "ffn_gate_inp", "shortconv.conv.weight", "ssm_conv1d")  # small, and worth 32 bits


@dataclass(frozen=True)
class FileType:
    """One of llama.cpp's types of files.

    Attributes:
        number: llama.cpp's, which the file itself states.
        most: the type of most tensors.
        rules: those of other tensors, by part.
    """

    number: int
    most: str
    rules: Mapping[str, str] = field(default_factory=dict)


_EIGHT = {"v": "eight Q8_0", "k": "eight Q8_0"}  # shared by eight experts, these cost little
_O = {**_EIGHT, "o": "eight Q5_K"}
_TWO = {"head": "Q5_K", "k": "eight Q4_K"}
_TWO_S = {**_TWO, "embeddings": "IQ3_S", "v": "grouped Q4_K, four Q4_K, IQ3_S", "down": "first eighth IQ3_S",
          "o": "eight Q5_K, IQ3_S"}  # fmt: skip
_TWO_X = {**_TWO, "embeddings": "Q2_K", "v": "grouped Q4_K, four Q4_K, Q2_K", "down": "first eighth Q2_K",
          "o": "eight Q5_K"}  # fmt: skip
_FOUR = {**_O, "v": "eight Q8_0, grouped Q5_K", "down": "unweighted eighth Q5_K"}

FILE_TYPES = {
    "F32": FileType(0, "F32"),
    "F16": FileType(1, "F16"),
    "BF16": FileType(32, "BF16"),
    "Q8_0": FileType(7, "Q8_0", _EIGHT),
    "Q6_K": FileType(18, "Q6_K", _EIGHT),
    "Q5_K_M": FileType(17, "Q5_K", {**_EIGHT, "v": "eight Q8_0, more Q6_K", "down": "more Q6_K"}),
    "Q5_K_S": FileType(16, "Q5_K", _EIGHT),
    "Q4_K_M": FileType(15, "Q4_K", {**_O, "v": "eight Q8_0, more Q6_K", "down": "more Q6_K"}),
    "Q4_K_S": FileType(14, "Q4_K", {**_O, "v": "eight Q8_0, first four Q5_K", "down": "eighth Q5_K"}),
    "Q3_K_L": FileType(13, "Q3_K", {**_EIGHT, "v": "eight Q8_0, Q5_K", "o": "not eight Q5_K", "down": "Q5_K"}),
    "Q3_K_M": FileType(12, "Q3_K", {**_EIGHT, "v": "eight Q8_0, first two Q5_K, Q4_K", "o": "eight Q5_K, Q4_K",
                                    "down": "sixteenth Q5_K, Q4_K"}),
    "Q3_K_S": FileType(11, "Q3_K", _O),
    "Q2_K": FileType(10, "Q2_K", {**_EIGHT, "v": "eight Q8_0, grouped Q4_K, Q3_K", "o": "eight Q5_K, Q3_K",
                                  "down": "Q3_K"}),
    "Q2_K_S": FileType(21, "Q2_K", {**_EIGHT, "v": "eight Q8_0, grouped Q4_K", "down": "eighth Q4_K"}),
    "IQ4_NL": FileType(25, "IQ4_NL", _FOUR),
    "IQ4_XS": FileType(30, "IQ4_XS", _FOUR),
    "IQ3_M": FileType(27, "IQ3_S", {**_EIGHT, "v": "eight Q8_0, Q4_K", "o": "eight Q5_K, Q4_K",
                                    "down": "eighth Q4_K, eight more Q4_K"}),
    "IQ3_S": FileType(26, "IQ3_S", {**_O, "v": "eight Q8_0, grouped Q4_K"}),
    "IQ3_XS": FileType(22, "IQ3_S", {**_O, "v": "eight Q8_0, grouped Q4_K", "k": "eight Q8_0, IQ3_XXS",
                                     "q": "IQ3_XXS", "gate": "middle IQ3_XXS", "up": "middle IQ3_XXS"}),
    "IQ3_XXS": FileType(23, "IQ3_XXS", {"head": "Q5_K", "embeddings": "IQ3_S", "q": "IQ2_S",
                                        "k": "eight Q8_0, IQ2_S", "o": "eight Q5_K, IQ3_S",
                                        "v": "eight Q8_0, grouped Q4_K, unweighted IQ3_S",
                                        "down": "unweighted eighth Q4_K, unweighted Q3_K"}),
    "IQ2_M": FileType(29, "IQ2_S", _TWO_S),
    "IQ2_S": FileType(28, "IQ2_XS", _TWO_S),
    "IQ2_XS": FileType(20, "IQ2_XS", _TWO_X),
    "IQ2_XXS": FileType(19, "IQ2_XXS", _TWO_X),
}  # fmt: skip


@dataclass(frozen=True)
class Model:
    """What the rules look at in a model.

    Attributes:
        layers, experts: how many.
        heads, kv_heads: how many in its first layer; a layer without attention has no kv_heads.
        architecture: as llama.cpp calls it.
        weighted: whether there is an importance matrix.
    """

    layers: int
    experts: int
    heads: int
    kv_heads: int
    architecture: str
    weighted: bool


def file_type(name: str) -> FileType:
    """Find a file type by its name, in capitals or not.

    Args:
        name: as `llama-quantize` has it.

    Raises:
        LazyMoEError: if there is none of that name.
    """
    if name.upper() not in FILE_TYPES:
        raise error("input.type", "TYPE", f"there is no type '{name}'", nearest(name.upper(), FILE_TYPES))
    return FILE_TYPES[name.upper()]


def choose(name: str, tensors: Mapping[str, Shape], model: Model) -> dict[str, str]:
    """Choose the type of each tensor.

    Args:
        name: of the file type.
        tensors: their shapes, by llama.cpp's names, layer after layer.
        model: what the rules look at.

    Returns:
        The types, by name.
    """
    kind = file_type(name)
    tied, values = "output.weight" not in tensors, sum(_part(tensor) == "v" for tensor in tensors)
    passed = {"v": 0, "down": 0}
    types = {}
    for tensor, shape in tensors.items():
        part = "head" if tied and tensor == "token_embd.weight" else _part(tensor)
        if len(shape) < 2 or not tensor.endswith(".weight") or any(word in tensor for word in FLOATS):
            types[tensor] = "F32"
        elif kind.most in PLAIN:
            types[tensor] = kind.most
        else:
            counted = passed.get(part, 0)
            place = (counted, values) if part == "v" else (_layer(tensor), model.layers)
            types[tensor] = _fitting(_ruled(name, kind, part, place, counted, shape[-1], model), shape[-1])
        if part in passed:
            passed[part] += 1
    return types


def starved(name: str, types: Mapping[str, str]) -> list[str]:
    """List the tensors that llama.cpp's quantizer won't make without an importance matrix.

    Args:
        name: of the file type.
        types: of the tensors, as `choose` gives them.
    """
    poor = (*STARVED, "Q2_K") if name.upper() == "Q2_K_S" else STARVED
    return [tensor for tensor, kind in types.items() if kind in poor and _part(tensor) not in ("head", "embeddings")]


def _part(tensor: str) -> str:
    """Name the part of the model that a tensor belongs to; empty if no rule is for it."""
    return OUTER.get(tensor) or next((part for word, part in PARTS.items() if word in tensor), "")


def _layer(tensor: str) -> int:
    return int(tensor.split(".")[1]) if tensor.startswith("blk.") else 0


def _ruled(name: str, kind: FileType, part: str, place: tuple[int, int], counted: int, width: int, model: Model) -> str:
    """Give the type that the rules ask for, whatever the width."""
    if part == "head":
        if width % (32 if kind.most in ("Q8_0", "IQ4_NL") else 256):
            return "Q8_0"
        return kind.rules.get("head", "Q8_0" if kind.most == "Q8_0" else "Q6_K")
    found = kind.most
    for rule in filter(None, kind.rules.get(part, "").split(", ")):
        *words, given = rule.split()
        if _holds(" ".join(words), *place, counted, model):
            found = given
            break
    if part == "v" and found in ("Q3_K", "Q4_K") and _is_70b(model) and not name.upper().startswith("IQ2"):
        return "Q5_K"
    return found


def _is_70b(model: Model) -> bool:
    """Tell whether a model is of the size in which eight heads share the values of attention."""
    grouped = model.architecture == "llama" and model.layers == 80 and model.heads != model.kv_heads
    return grouped and model.experts != 8


def _holds(words: str, i: int, n: int, counted: int, model: Model) -> bool:
    """Tell whether a condition holds, of the i-th of n tensors."""
    more = i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2
    return {
        "": True,
        "eight": model.experts == 8,
        "not eight": model.experts != 8,
        "four": model.experts >= 4,
        "grouped": model.kv_heads > 0 and model.heads // model.kv_heads >= 4,
        "unweighted": not model.weighted,
        "unweighted eighth": not model.weighted and i < n // 8,
        "more": more,
        "eight more": model.experts == 8 and more,
        "middle": n // 8 <= i < 7 * n // 8,
        "eighth": i < n // 8,
        "first eighth": counted < n // 8,  # llama.cpp counts them here, shared experts too
        "sixteenth": i < n // 16,
        "first two": i < 2,
        "first four": i < 4,
    }[words]


def _fitting(kind: str, width: int) -> str:
    """Give the type that a row of this width can have instead."""
    if width % 256 and kind in NARROW:
        kind = NARROW[kind]
    return "F16" if width % 32 else kind
