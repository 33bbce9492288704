"""What can't be is told in one line, with the true reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from generic_models import make_family
from safetensors.torch import save_file
from small_models import make_model, recipe

from lazymoe import Recipe, check

SMALL = {"num_hidden_layers": 2, "hidden_size": 32}


def bare(folder: Path, kind: str, **config: object) -> Path:
    """A checkpoint of which nothing but its config counts."""
    path = folder / kind
    getattr(transformers, f"{kind}Config")(**config).save_pretrained(path)
    save_file({"x": torch.ones(1)}, path / "model.safetensors")
    return path


def odd(family: str, **config: object) -> Callable[[Path], Recipe]:
    """A recipe in which the second expert is of another shape."""

    def made(folder: Path) -> Recipe:
        base = make_family(folder, family)
        return recipe(base, base, make_family(folder, family, name="other", **config))

    return made


def other(name: str, **fields: object) -> Callable[[Path], Recipe]:
    """A recipe in which the second expert is of another family."""

    def made(folder: Path) -> Recipe:
        base = make_family(folder, "Gemma 3")
        return recipe(base, base, make_family(folder, name), **fields)

    return made


def of(kind: str, **config: object) -> Callable[[Path], Recipe]:
    """A recipe of one kind alone."""

    def made(folder: Path) -> Recipe:
        base = bare(folder, kind, **config)
        return recipe(base, base, base)

    return made


def asked(family: str, **fields: object) -> Callable[[Path], Recipe]:
    """A recipe of which only other fields are wrong."""

    def made(folder: Path) -> Recipe:
        base = make_family(folder, family)
        own = {"source_model": str(base), "positive_prompts": ["some words"]}
        return Recipe.model_validate({"base_model": str(base), "experts": [own, own], "gate_mode": "random", **fields})

    return made


def two_shared(folder: Path) -> Recipe:
    base = make_model(folder, "llama")
    shared = 2 * [{"source_model": str(base)}]
    return recipe(base, base, base, architecture="deepseek", shared_experts=shared)


REFUSED: dict[str, tuple[Callable[[Path], Recipe], str]] = {
    "another width": (odd("Gemma 3", intermediate_size=96), "has feed-forward size 96 instead of 48"),
    "another depth": (odd("StarCoder2", num_hidden_layers=3), "has number of layers 3 instead of 2"),
    "another hidden size": (odd("Gemma 3", hidden_size=64), "has hidden size 64 instead of 32"),
    "another number of heads": (odd("Nemotron", num_attention_heads=2), "has number of attention heads 2 instead of 4"),
    "a width by another name": (
        odd("GPT-2", n_inner=64), "has 'mlp.c_fc.weight' as [32, 64] instead of [32, 128]. Use fine-tunes of one model",
    ),
    "another family": (other("Gemma 2"), "is a gemma2 model, the base model a gemma3_text"),
    "other layers, merged": (
        odd("Qwen 3.5", layer_types=["full_attention", "full_attention"]),
        "has layers of other types than the base model",
    ),
    "a mixture": (of("Mixtral", **SMALL), "'mixtral': it is a mixture of experts already"),
    "a mixture behind a picture's model": (
        of("Qwen3VLMoe"), "'qwen3_vl_moe': its text model, a qwen3_vl_moe_text, has no causal language model",
    ),
    "a text model that shares": (
        of("Gemma3n"), "'gemma3n': its text model, a gemma3n_text, has layers that share keys and values",
    ),
    "an encoder and a decoder": (of("T5"), "'t5': it has no causal language model"),
    "an encoder": (of("Bert", **SMALL, num_attention_heads=4), "'bert': it has attention that looks both ways"),
    "no feed-forward network": (of("Mamba", **SMALL), "'mamba': it has no feed-forward network of its own"),
    "a host for others": (asked("Gemma 3", architecture="mixtral"), "mixtral takes llama, mistral, phi3"),
    "too many shared experts": (two_shared, "deepseek: it has one shared expert at most"),
    "a correction behind a norm": (
        asked("Gemma 3", expert_weights="corrected"), "a gemma3_text norms what its feed-forward networks give",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_told_in_one_line(what: str, tmp_path: Path) -> None:
    given, reason = REFUSED[what]
    wanted = given(tmp_path)
    if what == "other layers, merged":
        assert any(reason in str(w) for w in check(wanted).warnings)
        wanted = wanted.with_fields(shared_weights="regmean")
    [problem] = check(wanted).errors
    assert reason in str(problem) and len(str(problem).splitlines()) == 1
