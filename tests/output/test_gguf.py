"""From GGUF to GGUF: what a source has of the wanted type is taken byte for byte."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import gguf
import pytest
from small_models import make_model, recipe
from stored_models import write_gguf

from lazymoe import Recipe, check_gguf, merge_to_gguf
from lazymoe.cli import main

SIZES = {"hidden_size": 256, "intermediate_size": 256, "vocab_size": 512, "num_hidden_layers": 8, "std": 0.05}
ROLES = ("gate", "up", "down")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def experts(demo_models: Path, tmp_path: Path) -> list[Path]:
    """Three models, each quantized by itself."""
    return [quantized(tmp_path, demo_models / "base", seed) for seed in range(3)]


def quantized(folder: Path, tokenizer: Path, seed: int, kind: str = "Q4_K_M", **config: Any) -> Path:
    model = make_model(folder, f"dense-{seed}", seed=seed, **(SIZES | config))
    for file in tokenizer.glob("token*"):
        (model / file.name).write_bytes(file.read_bytes())
    return write_gguf(model, folder / f"expert-{seed}-{kind}.gguf", kind=kind)


def wanted(experts: list[Path], **fields: Any) -> Recipe:
    given = recipe(experts[0], *experts, **fields)
    texts = ("The words of one", "and some of another, which are more", "x = [1, 2, 3]")
    return given.with_experts(
        [e.model_copy(update={"positive_prompts": [text]}) for e, text in zip(given.experts, texts, strict=True)]
    )


def raw(file: Path) -> dict[str, tuple[str, bytes]]:
    """The tensors of a file: type and bytes."""
    return {t.name: (t.tensor_type.name, t.data.tobytes()) for t in gguf.GGUFReader(file).tensors}


def stacked(file: Path, experts: list[Path]) -> dict[tuple[int, str], bool]:
    """Whether a mixture's feed-forward matrices are those of its experts, one after the other."""
    found, given = raw(file), [raw(expert) for expert in experts]
    return {
        (layer, role): found[f"blk.{layer}.ffn_{role}_exps.weight"][1]
        == b"".join(expert[f"blk.{layer}.ffn_{role}.weight"][1] for expert in given)
        for layer, role in itertools.product(range(8), ROLES)
    }


@pytest.mark.parametrize("fields", [{}, {"gate_mode": "fit"}], ids=["random", "fit"])
def test_experts_are_stacked_as_they_are(fields: dict[str, Any], experts: list[Path], tmp_path: Path) -> None:
    done = merge_to_gguf(wanted(experts, **fields), "Q4_K_M,Q8_0", tmp_path / "moe", device="cpu")
    found = stacked(done.files["Q4_K_M"][0], experts)
    assert all(found.values())
    kinds = {kind for name, (kind, _) in raw(done.files["Q4_K_M"][0]).items() if "_exps" in name}
    assert kinds == {"Q4_K", "Q6_K"}  # by llama.cpp's rules, in both
    assert not any(stacked(done.files["Q8_0"][0], experts).values())
    requantized = [w for w in done.warnings if w.code == "source.requantized"]
    assert len(requantized) == 3 and all("for Q8_0" in w.what for w in requantized)
    if not fields:  # the base model's own matrices too, where its rows lie as they should
        same = raw(done.files["Q4_K_M"][0])
        own = raw(experts[0])
        assert all(same[n] == own[n] for n in ("token_embd.weight", "blk.3.attn_v.weight", "blk.3.attn_output.weight"))
        assert same["blk.3.attn_q.weight"][0] == own["blk.3.attn_q.weight"][0]


def test_what_the_recipe_changes_is_quantized_anew(experts: list[Path], tmp_path: Path) -> None:
    given = wanted(experts)
    changed = [{"noise_scale": 0.1}, {"residual_scale": 0.5}, {}]
    every = [e.model_copy(update=change) for e, change in zip(given.experts, changed, strict=True)]
    done = merge_to_gguf(given.with_experts(every), "Q4_K_M", tmp_path / "moe", device="cpu")
    found, own = raw(done.files["Q4_K_M"][0]), [raw(expert) for expert in experts]
    same = {
        (expert, role): parts(found[f"blk.0.ffn_{role}_exps.weight"][1])[expert]
        == own[expert][f"blk.0.ffn_{role}.weight"][1]
        for expert, role in itertools.product(range(3), ROLES)
    }
    assert {key for key, is_same in same.items() if not is_same} == {
        (0, "gate"), (0, "up"), (0, "down"), (1, "down")
    }  # fmt: skip
    told = [(w.where, w.what) for w in done.warnings if w.code == "source.requantized"]
    assert [(where[:10], what[:8]) for where, what in told] == [("experts[0]", "24 of 24"), ("experts[1]", "8 of 24 ")]


def parts(data: bytes) -> list[bytes]:
    """A tensor's bytes, by expert."""
    size = len(data) // 3
    return [data[i * size : (i + 1) * size] for i in range(3)]


@pytest.mark.slow
def test_corrected_experts_are_quantized_anew(experts: list[Path], tmp_path: Path) -> None:
    given = wanted(experts, gate_mode="fit", expert_weights="corrected")
    found = stacked(merge_to_gguf(given, "Q4_K_M", tmp_path / "moe", device="cpu").files["Q4_K_M"][0], experts)
    assert {role for (_, role), same in found.items() if not same} == {"down"}
    assert all(same for (_, role), same in found.items() if role != "down")


def test_a_source_of_another_type_is_told(demo_models: Path, experts: list[Path], tmp_path: Path) -> None:
    other = quantized(tmp_path, demo_models / "base", 3, "Q8_0")
    checked = check_gguf(wanted([*experts[:2], other]), "Q4_K_M", tmp_path / "moe")
    [told] = [w for w in checked.warnings if w.code == "source.requantized"]
    assert told.where.startswith("experts[2]") and "24 of 24 matrices" in told.what
    assert "Name its Q4_K_M file" in told.remedy
    assert [note.partition(":")[0] for note in checked.notes if "copied as they are" in note] == [
        "experts[0].source_model (expert 1 of 3)",
        "experts[1].source_model (expert 2 of 3)",
    ]
    done = merge_to_gguf(wanted([*experts[:2], other]), "Q4_K_M", tmp_path / "moe", device="cpu")
    found, own = raw(done.files["Q4_K_M"][0]), [raw(expert) for expert in experts]
    for layer, role in itertools.product(range(8), ROLES):
        first, second, _ = parts(found[f"blk.{layer}.ffn_{role}_exps.weight"][1])
        assert [first, second] == [own[e][f"blk.{layer}.ffn_{role}.weight"][1] for e in range(2)]


@pytest.mark.slow
def test_it_takes_what_check_says(
    experts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = wanted(experts, gate_mode="fit")
    checked = check_gguf(given, "Q4_K_M,F16", tmp_path / "moe")
    assert checked.gguf and checked.way and not checked.errors
    done = merge_to_gguf(given, "Q4_K_M,F16", tmp_path / "moe", device="cpu")
    for kind, [file] in done.files.items():  # but for what it says of itself
        assert 0 <= file.stat().st_size - checked.gguf.files[kind] < 40_000
    assert checked.way.upload == 0 and checked.ways[-1].upload == checked.gguf.nbytes
    assert checked.way.disk >= checked.gguf.nbytes
    assert check_gguf(given, "Q4_K_M,F16", tmp_path / "moe").way.disk < checked.way.disk  # type: ignore[union-attr]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(given.to_yaml())
    assert main(["check", "recipe.yaml", "--gguf", "Q4_K_M,F16"]) == 0
    told = capsys.readouterr().out
    assert "GGUF             Q4_K_M " in told and "This can be merged." in told
    assert main(["check", "recipe.yaml", "--gguf", "IQ2_XS", "--no-imatrix"]) == 2
    assert "no good without an importance matrix" in capsys.readouterr().out
