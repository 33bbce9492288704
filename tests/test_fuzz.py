"""Odd input of every kind, in every gate mode: one line for each problem, no traceback, no hang.

A few tries always; with ``-m slow`` five thousand. A seed that fails says all that is needed to do it again.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from limits import limited
from safetensors.torch import load_file, save_file
from small_models import make_model

from lazymoe import LazyMoEError, Recipe
from lazymoe.merging import merge
from lazymoe.recipe.schema import GateMode

SECONDS = 30  # that a try may take
KINDS = ("llama", "mistral", "qwen2", "qwen3", "phi3", "granite", "olmo2", "phi", "cohere2", "lfm2", "ernie4_5")
ODD: tuple[Any, ...] = (
    None, "", "four", "\x1b[31m", "x" * 1000, -1, 0, 1, 3, 2**31, 10**30, -(10**30), 1e-300, 1e300, float("nan"),
    float("inf"), 0.5, True, False, [], [1], ["full_attention"], [[[[]]]], {}, {"a": {"b": {"c": []}}},
    {"rope_type": 7}, {"rope_type": "yarn"}, {"type": "longrope"}, {"full_attention": None},
    ["sliding_attention", "conv"],
)  # fmt: skip
KEYS = (
    "layer_types", "sliding_window", "use_sliding_window", "rope_scaling", "rope_parameters", "rope_theta", "head_dim",
    "num_key_value_heads", "quantization_config", "auto_map", "torch_dtype", "dtype", "tie_word_embeddings",
    "original_max_position_embeddings", "partial_rotary_factor", "attention_bias", "max_window_layers", "model_type",
)  # fmt: skip
LINES = (
    b"", b"\n", b"null\n", b"{}\n", b"[]\n", b'"text"\n', b'{"text": null}\n', b'{"text": 5}\n', b'{"text": ["a"]}\n',
    b'{"messages": []}\n', b'{"messages": [{"role": "user", "content": "hi"}]}\n', b'{"messages": 7}\n', b"\xff\xfe\n",
    b'{"conversations": [{"from": "human", "value": null}]}\n', b'{"messages": [{"content": [{"text": 5}]}]}\n', b"{",
    b'{"text": "\\ud83e"}\n', b"a,b\n1,2\n", b"\xef\xbb\xbf{}\n", b"x" * 10_000 + b"\n", b"[" * 10_000 + b"\n",
)  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, demo_models: Path) -> Path:
    """A base model and an expert of each kind, with a tokenizer, and an adapter."""
    folder = tmp_path_factory.mktemp("sound")
    for kind in KINDS:
        for seed, name in enumerate(("base", "expert")):
            made = make_model(folder, f"{kind}-{name}", seed=seed, kind=kind, vocab_size=512)
            for file in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(demo_models / "base" / file, made / file)
    (folder / "adapter").mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {}, "rank_pattern": {}}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    down = "base_model.model.model.layers.0.mlp.down_proj"
    save_file({f"{down}.lora_A.weight": torch.ones(2, 48), f"{down}.lora_B.weight": torch.ones(32, 2)},
              folder / "adapter" / "adapter_model.safetensors")  # fmt: skip
    return folder


def spoil(folder: Path, draw: random.Random) -> None:
    """Change something in a model's or an adapter's folder."""
    name = "adapter_config.json" if (folder / "adapter_config.json").exists() else "config.json"
    config = json.loads((folder / name).read_text())
    if draw.random() < 0.8:
        for key in draw.sample([*config, *KEYS], draw.choice((1, 1, 2, 3))):
            config[key] = draw.choice(ODD)
        (folder / name).write_text(json.dumps(config))
        return
    file = next(folder.glob("*.safetensors"))
    tensors = load_file(file)
    for key in draw.sample(sorted(tensors), min(2, len(tensors))):
        what = draw.randrange(4)
        if what == 0:
            tensors.pop(key)
        elif what == 1:
            tensors[key] = torch.ones(draw.choice([(0,), (1,), (3, 5), (2, 2, 2)]))
        elif what == 2:
            tensors[draw.choice(("extra", "model.layers.9.x", f"{key}.bias", "v_head.weight"))] = torch.ones(3)
        else:
            tensors[key] = tensors[key].to(draw.choice((torch.int64, torch.float64, torch.uint8)))
    save_file({key: t.contiguous() for key, t in tensors.items()}, file, metadata={"format": "pt"})


def attempt(seed: int, sound: Path, folder: Path) -> None:
    """One try: a recipe of models of one kind, something in it spoiled."""
    draw = random.Random(seed)
    kind, mode = draw.choice(KINDS), draw.choice(get_args(GateMode))
    names = [f"{kind}-base", f"{kind}-expert"]
    with_adapter = kind not in ("phi", "phi3", "lfm2") and draw.random() < 0.4
    for name in [*names, *["adapter"] * with_adapter]:
        shutil.copytree(sound / name, folder / name)
    expert: dict[str, Any] = {
        "source_model": str(folder / names[1]) + (f"+{folder / 'adapter'}" if with_adapter else "")
    }
    base: dict[str, Any] = {"source_model": str(folder / names[0])}
    expert["positive_prompts"], base["positive_prompts"] = ["def f(x): return x"], ["A statement may be"]
    target = draw.choice(("prompts", *names, *["adapter"] * (2 * with_adapter)))
    if target == "prompts":
        file = folder / f"prompts{draw.choice(('.jsonl', '.json', '.txt', '.csv', '.parquet', '.doc'))}"
        file.write_bytes(b"".join(draw.choices(LINES, k=draw.randrange(4))))
        expert["positive_prompts"] = {"file": str(file), **({"field": "text"} if draw.random() < 0.5 else {})}
    else:
        spoil(folder / target, draw)
    given = Recipe.model_validate({"base_model": base["source_model"], "gate_mode": mode, "experts": [base, expert]})
    try:
        with limited(SECONDS):
            merge(given, folder / "moe", device="cpu")
    except LazyMoEError as e:
        assert e.problems
        for problem in e.problems:
            line = str(problem)
            assert "\n" not in line and "\x1b" not in line and len(line) < 3000, line


# those that once failed, and some more
SEEDS = (
    1022, 1025, 1027, 1077, 1686, 1902, 1917, 2126, 2317, 2480, 2681, 2955, 2961, 5252, 5439, 5553, 5645, *range(60),
)  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_odd_input_is_told(seed: int, sound: Path, tmp_path: Path) -> None:
    attempt(seed, sound, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(50))
def test_five_thousand_of_them(block: int, sound: Path, tmp_path: Path) -> None:
    failed = []
    for seed in range(1000 + 100 * block, 1100 + 100 * block):
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            attempt(seed, sound, folder)
        except BaseException as e:
            if isinstance(e, KeyboardInterrupt):
                raise
            failed.append(f"{seed}: {type(e).__name__}: {str(e)[:200]}")
        shutil.rmtree(folder)
    assert not failed, "\n".join(failed)
