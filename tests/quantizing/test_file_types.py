"""Which type each tensor gets: what llama.cpp's quantizer is known for, and every rule once. That all of them are its
own is shown in `test_llamacpp.py`, against itself."""

from __future__ import annotations

import pytest

from lazymoe import LazyMoEError
from lazymoe.quantizing.file_types import FILE_TYPES, Model, choose, file_type, starved

WIDE = 512


def tensors(layers: int = 16, width: int = WIDE, tied: bool = False) -> dict[str, tuple[int, ...]]:
    """The tensors of a mixture of four, in the order of a file."""
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (64, width), "output_norm.weight": (width,)}
    if not tied:
        found["output.weight"] = (64, width)
    for layer in range(layers):
        own = {f"attn_{part}.weight": (width, width) for part in ("q", "k", "v", "output")}
        own |= {f"ffn_{part}_exps.weight": (4, width, width) for part in ("gate", "up", "down")}
        own |= {"attn_norm.weight": (width,), "ffn_gate_inp.weight": (4, width), "attn_q.bias": (width,)}
        found |= {f"blk.{layer}.{name}": shape for name, shape in own.items()}
    return found


def model(experts: int = 4, kv_heads: int = 8, **fields: object) -> Model:
    given = {"layers": 16, "experts": experts, "heads": 8, "kv_heads": kv_heads, "architecture": "llama"}
    return Model(**given | {"weighted": False} | fields)  # type: ignore[arg-type]


def of(types: dict[str, str], part: str) -> list[str]:
    """What a part of each layer gets."""
    return [kind for name, kind in types.items() if name.startswith("blk.") and part in name]


@pytest.mark.parametrize("name", FILE_TYPES)
def test_what_is_small_keeps_32_bits(name: str) -> None:
    types = choose(name, tensors(), model(weighted=True))
    small = [tensor for tensor in types if tensor.endswith(("_norm.weight", "gate_inp.weight", ".bias"))]
    assert len(small) == 1 + 3 * 16
    assert {types[tensor] for tensor in small} == {"F32"}


def test_values_and_down_projections_of_some_layers_get_more_bits() -> None:
    types = choose("Q4_K_M", tensors(), model())
    more = ["Q6_K" if i in (0, 1, 4, 7, 10, 13, 14, 15) else "Q4_K" for i in range(16)]  # ends, and every third
    assert of(types, "attn_v") == more
    assert of(types, "ffn_down") == more
    assert set(of(types, "attn_q.weight") + of(types, "ffn_up") + of(types, "attn_output")) == {"Q4_K"}
    assert types["output.weight"] == "Q6_K"
    assert types["token_embd.weight"] == "Q4_K"


def test_tied_embeddings_are_the_head() -> None:
    assert choose("Q4_K_M", tensors(tied=True), model())["token_embd.weight"] == "Q6_K"


def test_eight_experts_get_better_attention() -> None:
    types = choose("Q4_K_S", tensors(), model(experts=8))
    assert set(of(types, "attn_v") + of(types, "attn_k")) == {"Q8_0"}
    assert set(of(types, "attn_output")) == {"Q5_K"}


def test_grouped_heads_get_better_values() -> None:
    assert set(of(choose("IQ4_XS", tensors(), model(kv_heads=2)), "attn_v")) == {"Q5_K"}
    assert set(of(choose("IQ4_XS", tensors(), model(kv_heads=8)), "attn_v")) == {"IQ4_XS"}


def test_an_importance_matrix_makes_up_for_bits() -> None:
    assert of(choose("IQ4_XS", tensors(), model()), "ffn_down")[:3] == ["Q5_K", "Q5_K", "IQ4_XS"]
    assert of(choose("IQ4_XS", tensors(), model(weighted=True)), "ffn_down")[:3] == ["IQ4_XS"] * 3


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [("Q4_K_S", 96, "Q5_0"), ("Q3_K_S", 96, "Q4_0"), ("Q6_K", 96, "Q8_0"), ("IQ4_XS", 96, "IQ4_NL"),
     ("Q4_K_S", 40, "F16"), ("Q8_0", 40, "F16")],
)  # fmt: skip
def test_what_has_no_whole_blocks_gets_another_type(name: str, width: int, expected: str) -> None:
    assert set(of(choose(name, tensors(width=width), model()), "ffn_up")) == {expected}


def test_seventy_billions_get_better_values() -> None:
    large = model(layers=80, kv_heads=1, heads=2)
    assert set(of(choose("Q4_K_S", tensors(layers=80), large), "attn_v")) == {"Q5_K"}


def test_types_that_starve_without_importance_are_known() -> None:
    without = {name for name in FILE_TYPES if starved(name, choose(name, tensors(), model()))}
    assert without == {"IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"}


def test_a_type_that_is_none_is_named_with_the_nearest() -> None:
    with pytest.raises(LazyMoEError, match=r"there is no type 'q4_km'\. Did you mean 'Q4_K_M'"):
        file_type("q4_km")
    assert file_type("q4_k_m") is FILE_TYPES["Q4_K_M"]
