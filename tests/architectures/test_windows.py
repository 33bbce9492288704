"""Attention windows: each kind of dense model, in each spelling of its config, on each host that takes it, with texts
longer than the window, gives the dense model's logits, or is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_models import Make, apart, configure, recipe

from lazymoe import LazyMoEError, check, merge
from lazymoe.architectures.registry import HOSTS
from lazymoe.checkpoint.opening import open_folder

CONTEXT, WINDOW = 64, 7
MIXED = ["sliding_attention", "full_attention"]
ALL, NONE = ["sliding_attention"] * 2, ["full_attention"] * 2
W = WINDOW
SPELLINGS: dict[str, dict[str, tuple[dict[str, object], list[int | None]]]] = {  # what config.json says, what it means
    "llama": {
        "a key that the class ignores": ({"sliding_window": W}, [None, None]),
        "types that the class ignores": ({"sliding_window": W, "layer_types": MIXED}, [None, None]),
    },
    "mistral": {
        "none": ({"sliding_window": None}, [None, None]),
        "one": ({"sliding_window": W}, [W, W]),
        "as long as the context": ({"sliding_window": CONTEXT}, [None, None]),
        "longer than the context": ({"sliding_window": 4096}, [None, None]),
        "by type": ({"sliding_window": W, "layer_types": MIXED}, [W, None]),
        "all by type": ({"sliding_window": W, "layer_types": ALL}, [W, W]),
        "none by type": ({"sliding_window": W, "layer_types": NONE}, [None, None]),
    },
    "phi3": {
        "one": ({"sliding_window": W}, [W, W]),
        "as long as the context": ({"sliding_window": CONTEXT}, [None, None]),
    },
    "qwen2": {
        "switched off": ({"sliding_window": W, "use_sliding_window": False}, [None, None]),
        "in all layers": ({"sliding_window": W, "use_sliding_window": True, "max_window_layers": 0}, [W, W]),
        "from a layer on": ({"sliding_window": W, "use_sliding_window": True, "max_window_layers": 1}, [None, W]),
        "from no layer on": ({"sliding_window": W, "use_sliding_window": True, "max_window_layers": 2}, [None, None]),
        "by type": ({"sliding_window": W, "use_sliding_window": True, "layer_types": MIXED}, [W, None]),
        "none by type": ({"sliding_window": W, "use_sliding_window": True, "layer_types": NONE}, [None, None]),
        "as long as the context": (
            {"sliding_window": CONTEXT, "use_sliding_window": True, "max_window_layers": 0},
            [None, None],
        ),
    },
    "olmo2": {"a key that the class ignores": ({"sliding_window": W}, [None, None])},
    "granite": {"a key that the class ignores": ({"sliding_window": W}, [None, None])},
    "ernie4_5": {"a key that the class ignores": ({"sliding_window": W}, [None, None])},
    "phi": {"a key that the class ignores": ({"sliding_window": W}, [None, None])},
    "cohere2": {
        "by type": ({"sliding_window": W, "layer_types": MIXED}, [W, None]),
        "all by type": ({"sliding_window": W, "layer_types": ALL}, [W, W]),
        "by pattern": ({"sliding_window": W, "layer_types": None, "sliding_window_pattern": 2}, [W, None]),
        "as long as the context": ({"sliding_window": CONTEXT, "layer_types": MIXED}, [CONTEXT, None]),
    },
    "smollm3": {
        "switched off": ({"sliding_window": W, "use_sliding_window": False}, [None, None]),
        "in layers that turn nothing": ({"sliding_window": W, "use_sliding_window": True}, [None, W]),
        "by type": ({"sliding_window": W, "use_sliding_window": True, "layer_types": MIXED}, [W, None]),
    },
    "gemma4_text": {"by type": ({"sliding_window": W, "layer_types": MIXED, "num_hidden_layers": 2}, [W, None])},
    "lfm2": {"convolutions": ({"layer_types": ["conv", "full_attention"]}, [None, None])},
}
SPELLINGS["qwen3"] = SPELLINGS["qwen2"]
CAN = {
    "mixtral": "one",
    "qwen3_moe": "one",
    "qwen2_moe": "any",
    "cohere2_moe": "any",
    "gemma4_text": "any",
    "granitemoe_swa": "any",
}  # else none
ONLY_5 = ("qwen2_moe", "mixed")  # transformers 4 has one window for all layers there
CASES = [
    (host.name, kind, spelling)
    for host in HOSTS
    for kind, spellings in SPELLINGS.items()
    for spelling in spellings
    if kind in {dense.model_type for dense in host.takes}
]


def can(host: str, windows: list[int | None]) -> bool:
    """Whether a host has such windows."""
    wanted = "none" if not any(windows) else "any" if None in windows else "one"
    order = ("none", "one", "any")
    return order.index(wanted) <= order.index(CAN.get(host, "none"))


@pytest.mark.parametrize(("host", "kind", "spelling"), CASES)
def test_a_window_is_kept_or_refused(
    host: str, kind: str, spelling: str, make: Make, tmp_path: Path, transformers_4: str | None
) -> None:
    fields, windows = SPELLINGS[kind][spelling]
    sizes = {"max_position_embeddings": CONTEXT, "num_hidden_layers": 2}
    typed = kind in ("lfm2", "gemma4_text")  # what tensors a layer has depends on its type
    if typed:
        sizes |= {"layer_types": fields["layer_types"], "full_attn_idxs": None} if kind == "lfm2" else fields
    base = make("base", kind=kind, dtype="float32", **sizes)
    stated = json.loads((base / "config.json").read_text())
    for key in ("layer_types", "use_sliding_window", "max_window_layers", "sliding_window"):
        if not typed or key == "sliding_window":
            stated.pop(key, None)
    stated |= {key: value for key, value in fields.items() if value is not None or key == "sliding_window"}
    (base / "config.json").write_text(json.dumps(stated))
    assert open_folder(base).config["windows"] == windows

    given = recipe(base, base, base, architecture=host)
    if not can(host, windows):
        [problem] = check(given).errors
        assert problem.code == "source.architecture" and "window" in problem.what
        return
    merge(given, tmp_path / "moe")
    assert apart(base, tmp_path / "moe") < 1e-4
    mixed = None in windows and any(windows)
    if transformers_4 and next(h for h in HOSTS if h.name == host).since != "5":
        if host == "qwen2_moe" and mixed:
            warned = [w.what for w in check(given).warnings if w.code == "source.transformers"]
            assert warned and "transformers 4" in warned[0]
        else:
            assert apart(base, tmp_path / "moe", transformers_4) < 1e-4


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
def test_the_layer_streamed_pass_sees_the_windows_too(kind: str, make: Make, demo_models: Path, tmp_path: Path) -> None:
    from lazymoe.forward.stream import Stream

    base = make("base", kind=kind, dtype="float32", max_position_embeddings=CONTEXT)
    configure(base, **SPELLINGS[kind]["by type"][0])
    from transformers import AutoModelForCausalLM

    ids = torch.arange(3, 57)[None]
    stream = Stream(open_folder(base), [ids], "cpu")
    stream.step(), stream.step()
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)(ids, output_hidden_states=True)
    assert (next(stream.finish()) - expected.hidden_states[-1]).abs().max() < 1e-4


def test_the_refusal_names_hosts_that_really_fit(make: Make) -> None:
    base = make("base", kind="mistral", sliding_window=W)
    with pytest.raises(LazyMoEError, match=r"This model can become mixtral or qwen2_moe or generic_moe\."):
        merge(recipe(base, base, base, architecture="granitemoe"), "never-made")
