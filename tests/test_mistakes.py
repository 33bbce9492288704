"""Whatever a user gets wrong: one clear line with the place and the remedy, exit code 2, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_models import Make, configure, rewrite, sparse

from lazymoe.cli import main

NAN, INF = float("nan"), float("inf")


@dataclass
class Kitchen:
    """What a case works with: a folder, a maker of models, and the recipe, which it may spoil."""

    folder: Path
    make: Make
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def expert(self) -> Path:
        return self.folder / "expert"

    def other(self, **config: Any) -> None:
        self.recipe["experts"][1]["source_model"] = str(self.make("other", **config))

    def tensor(self, name: str, value: float) -> None:
        rewrite(self.expert, lambda t: t[name].view(-1)[-1:].fill_(value))


Spoil = Callable[[Kitchen], object]
MLP = "model.layers.1.mlp.down_proj.weight"
SHARD = "model-00001-of-00002.safetensors"


def recipe(**fields: Any) -> Spoil:
    return lambda k: k.recipe.update(fields)


def expert(**fields: Any) -> Spoil:
    return lambda k: k.recipe["experts"][1].update(fields)


def shared(*experts: dict[str, Any], **fields: Any) -> Spoil:
    return lambda k: k.recipe.update(
        {"shared_experts": [{"source_model": str(k.base), **e} for e in experts], **fields}
    )


def text(content: str | bytes) -> Spoil:
    return lambda k: k.recipe.update({"text": content})


def drop(name: str) -> Spoil:
    return lambda k: rewrite(k.expert, lambda t: t.pop(name))


def index(files: dict[str, str]) -> Spoil:
    """An index in place of the single file, whose only shard is there."""

    def spoil(k: Kitchen) -> None:
        (k.expert / "model.safetensors").rename(k.expert / SHARD)
        (k.expert / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))

    return spoil


def huge(k: Kitchen) -> None:
    """Experts of 13 TB each, in files that take no room themselves: their merge is larger than any disk."""
    size = {"vocab_size": 8, "hidden_size": 2**16, "intermediate_size": 2**22, "num_hidden_layers": 8}
    config = {"model_type": "llama", **size, "num_attention_heads": 512, "num_key_value_heads": 1}
    for name in ("base", "expert"):
        shutil.rmtree(k.folder / name)
        sparse(k.folder / name, config, shards=8)


def pickled(k: Kitchen, content: bytes | None = None) -> None:
    (k.expert / "model.safetensors").unlink()
    torch.save({"x": torch.ones(2)}, k.expert / "pytorch_model.bin")
    if content is not None:
        (k.expert / "pytorch_model.bin").write_bytes(content)


def edit_header(k: Kitchen, old: bytes, new: bytes) -> None:
    file = k.expert / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(old, new, 1))


CASES: dict[str, tuple[Spoil, tuple[str, ...]]] = {
    # the recipe
    "not YAML": (text("base_model: [a"), ("line 1", "isn't valid YAML", "Check")),
    "not a mapping": (text("just words"), ("'key: value'",)),
    "not text": (text(b"\xff\xfe\x00"), ("UTF-8",)),
    "unknown key": (recipe(gate_mod="random"), ("gate_mod", "Did you mean 'gate_mode'?")),
    "unknown key of an expert": (expert(postive_prompts=["x"]), ("experts[1]", "expert 2 of 2", "'positive_prompts'?")),
    "no base model": (lambda k: k.recipe.pop("base_model"), ("base_model", "missing")),
    "empty base model": (recipe(base_model=""), ("base_model", "empty")),
    "no experts": (recipe(experts=[]), ("experts", "no expert")),
    "experts aren't a list": (recipe(experts={"source_model": "x"}), ("experts", "must be a list")),
    "an expert is a word": (recipe(experts=["x"]), ("experts[0]", "source_model")),
    "prompts aren't a list": (expert(positive_prompts=7), ("positive_prompts", "must be a list")),
    "a prompt is a number": (expert(positive_prompts=[1]), ("positive_prompts[0]", "quotes")),
    "unknown gate mode": (recipe(gate_mode="hiden"), ("gate_mode", "hidden")),
    "unknown dtype": (recipe(dtype="int8"), ("dtype", "bfloat16")),
    "no expert per token": (recipe(experts_per_token=0), ("experts_per_token", "greater than or equal to 1")),
    "noise is not a number": (expert(noise_scale=NAN), ("noise_scale", "finite")),
    "unknown architecture": (recipe(architecture="mixtrel"), ("architecture", "Did you mean 'mixtral'?")),
    "two shared experts": (
        shared({}, {}, architecture="deepseek"),
        ("architecture", "deepseek: it has one shared expert at most", "can become generic_moe"),
    ),
    "a shared expert where there is no place": (
        shared({}, architecture="mixtral"),
        ("architecture", "mixtral: it has no shared expert", "can become deepseek or qwen2_moe"),
    ),
    "prompts for a shared expert without a gate": (
        shared({"positive_prompts": ["Hello"]}, architecture="deepseek"),
        ("architecture", "every token passes its shared expert"),
    ),
    "no prompts for one with a gate": (
        shared({}, architecture="qwen", gate_mode="hidden"),
        ("architecture", "has a gate, so it needs prompts"),
    ),
    "no prompts": (
        lambda k: (recipe(gate_mode="hidden")(k), expert(positive_prompts=None)(k)),
        ("experts[1].positive_prompts (expert 2 of 2)", "needs prompts"),
    ),
    "blank prompts": (
        lambda k: (recipe(gate_mode="fit")(k), expert(positive_prompts=[" "])(k)),
        ("experts[1].positive_prompts", "needs prompts"),
    ),
    # where models are
    "missing path": (recipe(base_model="./no/such/folder"), ("base_model", "no folder", "Check the path")),
    "a file": (lambda k: k.recipe.update(base_model=str(k.base / "config.json")), ("is a file", "folder")),
    "unknown repo": (recipe(base_model="nobody/nothing"), ("no model on the Hub", "hf auth login")),
    "gated repo": (expert(source_model="acme/gated"), ("experts[1]", "is gated", "accept its conditions")),
    "unknown revision": (expert(source_model="acme/open@v9"), ("no revision 'v9'",)),
    "impossible name": (recipe(base_model="a b/c"), ("no folder 'a b/c'",)),
    "unknown adapter": (
        lambda k: expert(source_model=f"{k.expert}+acme/no-lora")(k),
        ("experts[1]", "no folder and no model on the Hub by the name 'acme/no-lora'"),
    ),
    "an empty folder": (
        lambda k: ((k.folder / "empty").mkdir(), expert(source_model=str(k.folder / "empty"))(k)),
        ("no config.json",),
    ),
    # models that don't fit
    "architecture": (lambda k: configure(k.expert, model_type="qwen2"), ("is a qwen2 model", "one architecture")),
    "architecture of all": (lambda k: configure(k.base, model_type="nothing"), ("'nothing'", "none that transformers")),
    "hidden size": (lambda k: k.other(hidden_size=64, head_dim=8), ("hidden size 64 instead of 32",)),
    "layers": (lambda k: k.other(num_hidden_layers=3), ("number of layers 3 instead of 2",)),
    "heads": (lambda k: k.other(num_attention_heads=2, head_dim=8), ("number of attention heads 2 instead of 4",)),
    "key-value heads": (lambda k: k.other(num_key_value_heads=4), ("number of key-value heads 4 instead of 2",)),
    "head_dim": (lambda k: k.other(head_dim=16), ("head_dim 16 instead of 8",)),
    "feed-forward size": (lambda k: k.other(intermediate_size=96), ("feed-forward size 96 instead of 48",)),
    "attention biases": (
        lambda k: k.recipe.update(base_model=str(k.make("biased", attention_bias=True))),
        ("_proj.bias", "no place"),
    ),
    "quantized, by its config": (
        lambda k: (
            rewrite(k.expert, lambda t: t.update({MLP: t[MLP].to(torch.int8)})),
            configure(k.expert, quantization_config={"quant_method": "gptq"}),
        ),
        ("quantized (gptq)",),
    ),
    "quantized, by its tensors": (
        lambda k: rewrite(k.expert, lambda t: t.update({MLP: t[MLP].to(torch.int8)})),
        ("as I8", "unquantized"),
    ),
    # files that aren't whole
    "missing tensor": (drop(MLP), ("experts[1]", f"lacks the tensor '{MLP}'")),
    "config without a size": (lambda k: configure(k.expert, hidden_size=None), ("no usable hidden_size",)),
    "config isn't JSON": (lambda k: (k.expert / "config.json").write_text("{"), ("config.json", "JSON")),
    "truncated shard": (
        lambda k: os.truncate(k.expert / "model.safetensors", 20_000),
        ("model.safetensors", "cut short"),
    ),
    "truncated header": (lambda k: os.truncate(k.expert / "model.safetensors", 100), ("cut short", "header")),
    "absent shard": (index({MLP: "model-00002-of-00002.safetensors"}), ("lacks the file model-00002-of-00002",)),
    "tensor in the index only": (index({"lost.weight": SHARD}), ("'lost.weight', which no file has",)),
    "index names a path": (index({"x": "../../secret.safetensors"}), ("no usable weight_map",)),
    "lying header": (lambda k: edit_header(k, b'"shape":[32,48]', b'"shape":[32,49]'), ("takes another number",)),
    "header against config": (
        lambda k: edit_header(k, b'"shape":[32,48]', b'"shape":[48,32]'),
        ("[48, 32]", "[32, 48]"),
    ),
    "not safetensors": (lambda k: (k.expert / "model.safetensors").write_bytes(b"<html>404</html>"), ("safetensors",)),
    "NaN": (lambda k: k.tensor(MLP, NAN), (MLP, "NaN", "another")),
    "minus infinity": (lambda k: k.tensor(MLP, -INF), (MLP, "infinite")),
    "NaN on the way to another dtype": (lambda k: (k.tensor(MLP, NAN), recipe(dtype="float32")(k)), (MLP, "NaN")),
    "too large for float16": (
        lambda k: (k.tensor(MLP, 1e6), recipe(dtype="float16")(k)),
        ("float16 can't hold", "bfloat16"),
    ),
    "pickle without permission": (pickled, ("only .bin", "--allow-pickle")),
    "no tokenizer": (recipe(gate_mode="hidden"), ("base_model", "tokenizer")),
    # the disk
    "full disk": (huge, ("of disk are needed", "Free some space")),
    "output taken": (
        lambda k: ((k.folder / "out").mkdir(), (k.folder / "out" / "thesis.txt").write_text("x")),
        ("isn't empty",),
    ),
    "output is a file": (lambda k: (k.folder / "out").write_text("x"), ("this is a file",)),
    "output in a file": (lambda k: k.recipe.update(out="base/config.json/out"), ("can't be written",)),
}


@pytest.fixture
def kitchen(tmp_path: Path, make: Make, hub) -> Kitchen:
    for name in ("base", "expert"):
        make(name, seed=len(name))
    hub.add("acme/open", tmp_path / "base")
    hub.add("acme/gated", tmp_path / "base", gated=True)
    recipe = {"base_model": str(tmp_path / "base"), "gate_mode": "random"}
    recipe["experts"] = [
        {"source_model": str(tmp_path / name), "positive_prompts": [name]} for name in ("base", "expert")
    ]
    return Kitchen(tmp_path, make, recipe)


@pytest.mark.parametrize("case", CASES)
def test_one_line_exit_code_2_and_nothing_left(case: str, kitchen: Kitchen, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, expected = CASES[case]
    spoil(kitchen)
    out = kitchen.folder / kitchen.recipe.pop("out", "out")
    content = kitchen.recipe.pop("text", None) or yaml.safe_dump(kitchen.recipe)
    file = kitchen.folder / "recipe.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = sorted(kitchen.folder.rglob("*"))

    assert main(["merge", str(file), str(out)]) == 2
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, printed.err
    assert "Traceback" not in printed.err
    for part in expected:
        assert part in lines[0]
    assert sorted(kitchen.folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "the file is empty"),
        (b"PK\x03\x04 not a zip", "the file is cut short"),
        (b"\x80\x04\x95cposix\nsystem\n.", "it isn't a pickle of torch's, or a broken one"),
    ],
)
def test_a_broken_pickle_is_refused_with_permission_too(kitchen: Kitchen, content: bytes, why: str, capsys) -> None:
    pickled(kitchen, content)
    file = kitchen.folder / "recipe.yaml"
    file.write_text(json.dumps(kitchen.recipe))
    assert main(["merge", "--allow-pickle", str(file), str(kitchen.folder / "out")]) == 2
    assert f"pytorch_model.bin: {why}" in capsys.readouterr().err


def test_no_network(kitchen: Kitchen) -> None:
    file = kitchen.folder / "recipe.yaml"
    kitchen.recipe["base_model"] = "acme/open"
    file.write_text(json.dumps(kitchen.recipe))
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(kitchen.folder / "home")}
    script = "import sys, lazymoe.cli, lazymoe.hub.client as client; client.WAIT = 0.01; sys.exit(lazymoe.cli.main())"
    command = [sys.executable, "-c", script, "merge", str(file), str(kitchen.folder / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1  # nothing was wrong with what was asked for
    assert "base_model: 'acme/open' isn't in the cache and the Hub can't be reached" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (kitchen.folder / "out").exists()


def test_a_missing_recipe(tmp_path: Path, capsys) -> None:
    assert main(["check", str(tmp_path / "none.yaml")]) == 2
    assert "there is no such file, and no ready-made recipe of that name" in capsys.readouterr().err
