"""LazyMoE itself under transformers 4.57, which a recipe's user may have: it makes the same, and measures the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from generic_models import make_family
from small_models import Make, tensors_of

import lazymoe
from lazymoe import Recipe

MADE = """
import json, sys, lazymoe
from pathlib import Path
found = {}
for folder in map(Path, sys.argv[1:]):
    lazymoe.merge(lazymoe.Recipe.from_file(folder / "recipe.yaml"), folder / "theirs", device="cpu")
    found[str(folder)] = lazymoe.report(folder / "theirs", device="cpu").losses
print(json.dumps(found))
"""
NEEDED = "import pydantic, matplotlib, yaml, jinja2"
PROMPTS = (["The sea was calm, and a ship came in.", "It was a cold day."], ["def add(a, b):", "import os"])
SIZES = {"vocab_size": 512, "max_position_embeddings": 512}
ROPE = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}  # as transformers 5 spells it
NATIVE: dict[str, dict[str, object]] = {"llama": {"rope_parameters": ROPE}, "phi": {}, "granite": {}}
LEARNED = ("Gemma 3", "GPT-2", "Phi-4 mini", "Bamba", "GLM-4 0414")


@pytest.mark.slow
def test_it_makes_the_same(make: Make, demo_models: Path, tmp_path: Path, transformers_4: str | None) -> None:
    if not transformers_4:
        pytest.skip("no --transformers4")
    if subprocess.run([transformers_4, "-c", NEEDED], capture_output=True, check=False).returncode:
        pytest.skip("it has nothing else that LazyMoE needs")
    expected: dict[str, dict[str, list[float]]] = {}
    for kind in (*NATIVE, *LEARNED):
        folder = tmp_path / kind.replace(" ", "-")
        for i in range(3):
            if kind in NATIVE:
                model = make(f"{folder.name}/{i}", kind=kind, seed=i, dtype="float32", **SIZES, **NATIVE[kind])
            else:
                model = make_family(folder, kind, name=str(i), seed=i, **SIZES)
            for file in (demo_models / "base").glob("token*"):
                shutil.copy(file, model)
        experts = [{"source_model": str(folder / str(i)), "positive_prompts": PROMPTS[i - 1]} for i in (1, 2)]
        recipe = Recipe.model_validate({"base_model": str(folder / "0"), "experts": experts})
        (folder / "recipe.yaml").write_text(recipe.to_yaml())
        lazymoe.merge(recipe, folder / "ours", device="cpu")
        expected[str(folder)] = lazymoe.report(folder / "ours", device="cpu").losses

    paths = [str(Path(lazymoe.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [transformers_4, "-c", MADE, *expected], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for folder, losses in expected.items():
        ours, theirs = (tensors_of(Path(folder) / whose) for whose in ("ours", "theirs"))
        assert ours.keys() == theirs.keys()
        assert all(torch.allclose(ours[name], tensor, rtol=1e-3, atol=1e-3) for name, tensor in theirs.items()), folder
        for model, of in losses.items():
            assert found[folder][model] == pytest.approx(of, abs=1e-3), (folder, model)
