"""Models that transformers 4.57 saved (tests/data/make_transformers4.py), in its own spellings and with what it leaves
out of config.json: all merge and are exact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_models import recipe
from transformers import AutoModelForCausalLM

from lazymoe import check, merge
from lazymoe.architectures.registry import HOSTS
from lazymoe.checkpoint.opening import open_folder

MODELS = sorted((Path(__file__).parents[1] / "data" / "transformers4").iterdir())
CASES = [
    (folder, host.name)
    for folder in MODELS
    for host in HOSTS
    if json.loads((folder / "config.json").read_text())["model_type"] in {dense.model_type for dense in host.takes}
]


def test_every_dense_kind_that_it_has_is_here() -> None:
    kinds = {json.loads((folder / "config.json").read_text())["model_type"] for folder in MODELS}
    assert kinds == {dense.model_type for host in HOSTS for dense in host.takes} - {
        "gemma4_text", "qwen3_5_text",
    }  # fmt: skip


@pytest.mark.parametrize(("folder", "host"), CASES, ids=lambda case: case if isinstance(case, str) else case.name)
def test_it_merges_and_is_exact(folder: Path, host: str, tmp_path: Path) -> None:
    given = recipe(folder, folder, folder, architecture=host)
    assert check(given).errors == ()
    merge(given, tmp_path / "moe")
    ids = torch.arange(3, 43)[None]
    with torch.no_grad():
        dense, mixture = (
            AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32, trust_remote_code=True).eval()(ids).logits
            for f in (folder, tmp_path / "moe")
        )
    assert (dense - mixture).abs().max() < 1e-4


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_what_it_left_out_is_the_class_default(folder: Path) -> None:
    """transformers 5 agrees with the completed config in every key that both know."""
    from transformers import AutoConfig

    source = open_folder(folder)
    theirs = AutoConfig.from_pretrained(folder).to_dict()
    dense = source.dense
    assert dense is not None
    spelled_otherwise = {
        "rope_theta", "partial_rotary_factor", "layer_types", "max_window_layers", "original_max_position_embeddings",
        "intermediate_size", "block_auto_adjust_ff_dim",
    }  # fmt: skip
    for key in dense.defaults.keys() - spelled_otherwise:
        if key in theirs:
            assert source.config[key] == theirs[key], key
