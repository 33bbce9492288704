"""Tensors that no model of its kind reads are left out, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_models import KINDS, Make, recipe, rewrite, tensors_of
from stored_models import index, opened, refused, renamed, same, shards

from lazymoe import check
from lazymoe.architectures.registry import HOSTS
from lazymoe.checkpoint.leftovers import LEFTOVER, MASK
from lazymoe.checkpoint.opening import open_folder

LEFT = {
    "v_head.summary.weight": (1, 32),
    "v_head.summary.bias": (1,),
    "score.weight": (2, 32),
    "classifier.bias": (2,),
    "qa_outputs.weight": (2, 32),
    "model.rotary_emb.inv_freq": (4,),
    "model.layers.0.self_attn.rotary_emb.inv_freq": (4,),
    "model.layers.1.self_attn.rotary_emb.cos_cached": (1, 1, 64, 8),
    "model.layers.0.attn.bias": (1, 1, 64, 64),
    "model.layers.0.self_attn.masked_bias": (),
    "model.layers.0.attention.mask": (64, 64),
    "model.position_ids": (1, 64),
}


@pytest.mark.parametrize("wrapper", ["", "module."])
@pytest.mark.parametrize("name", LEFT)
def test_leftovers_are_ignored_with_a_warning(name: str, wrapper: str, make: Make, tmp_path: Path) -> None:
    folder, plain = make("model"), make("plain")
    rewrite(folder, lambda t: t.update({name: torch.ones(LEFT[name])}))
    renamed(folder, lambda name: wrapper + name)
    source = open_folder(folder)
    assert source.ignored == (name,) and same(source, tensors_of(plain))
    found = check(recipe(folder, folder, plain))
    assert not found.errors
    [warning] = [w for w in found.warnings if w.code == "source.leftovers"]
    assert name in warning.what and warning.where == "base_model"
    assert "source.leftovers" in [w.code for w in check(recipe(plain, folder)).warnings]


def test_leftovers_that_only_the_index_knows(make: Make) -> None:
    folder = make("model")
    tensors = tensors_of(folder)
    (folder / "model.safetensors").unlink()
    files = shards(folder, tensors, 1)
    index(folder, {**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(1)}, files)
    assert same(opened(folder), tensors)
    index(folder, {**tensors, "model.layers.2.mlp.up_proj.weight": torch.ones(1)}, files)
    assert "which no file has" in refused(folder).what


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.new.weight", "model.layers.0.attn.bias", "model.mtp.weight"]
)
def test_weights_without_a_place_stay_errors(name: str, make: Make) -> None:
    folder = rewrite(make("model"), lambda t: t.update({name: torch.ones(32)}))
    [problem] = check(recipe(folder, folder)).errors
    assert problem.code == "source.no-place" and name in problem.what


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_an_architecture_reads_is_a_leftover(kind: str, make: Make) -> None:
    folder = make("model", kind=kind)
    assert open_folder(folder).ignored == ()
    for host in HOSTS:
        for dense in host.takes:
            places = {*dense.outer, *dense.layer, *(name for name, _ in dense.ffn.values())}
            places |= {name for names in dense.kinds.values() for name in names}
            full = places | {f"model.layers.0.{name}" for name in places}
            assert not [name for name in full if LEFTOVER.fullmatch(name) or MASK.fullmatch(name)]
