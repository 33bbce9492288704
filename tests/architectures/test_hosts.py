"""Families are exact: transformers' own class gives the dense model's logits, with nothing missing or made up.

With ``--transformers4 PATH`` the same checkpoints are also loaded by that Python's transformers.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from crossing import crossed
from small_models import GATED, IDS, KINDS, SHAPE, Make, configure, load_model, logits, recipe, rewrite, tensors_of

from lazymoe import LazyMoEError, Recipe, merge
from lazymoe.architectures.configs import rope_spellings
from lazymoe.architectures.dense import MISTRAL
from lazymoe.architectures.records import LAYER
from lazymoe.architectures.registry import HOSTS, find_host
from lazymoe.checkpoint.opening import open_folder
from lazymoe.forward.losses import dense_losses, mixture_losses

CONFIGS = {
    "grouped attention": {},
    "full attention": {"num_key_value_heads": 4},
    "tied": {"tie_word_embeddings": True},
    "head_dim of its own": {"head_dim": 16},
    "other theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "scaled rope": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    "llama 3 rope": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "sliding window": {"sliding_window": 7},
    "part of a head turned": {"partial_rotary_factor": 0.75},
}
CASES = [  # every family with every dense architecture that it takes, without and with a shared expert where it can
    (family.name, dense.model_type, shared)
    for family in HOSTS
    for dense in family.takes
    for shared in ("", "shared expert")
    if family.shared or not shared
]
LATER = {family.name for family in HOSTS if family.since == "5"}
ROPES = ("other theta", "scaled rope", "llama 3 rope")
LOGITS = """
import json, sys, torch, transformers
found = {}
for folder in json.load(sys.stdin):
    try:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=True)
        assert not any(info.values()), info
        torch.save(model.eval()(torch.arange(2, 62).reshape(2, 30)).logits.detach(), folder + ".logits")
    except Exception as e:
        found[folder] = str(e)
print(json.dumps(found))
"""


def possible(family: str, kind: str, shared: str, config: str) -> bool:
    """Whether there are such models at all, and whether the family takes them."""
    if config == "sliding window":
        own = ("cohere2_moe", "gemma4_text")
        return kind in ("mistral", "phi3", "cohere2", "gemma4_text") and family in ("mixtral", "qwen2_moe", *own)
    if config == "part of a head turned":
        return kind in ("phi", "qwen3_5_text") or (family == "glm4_moe" and kind in ("phi3", family))
    if config == "head_dim of its own":
        never = ("deepseek", "granitemoe", "granitemoehybrid")
        return kind not in ("phi", "phi3", "cohere", "cohere2", "lfm2") and family not in never
    if kind == "gemma4_text":  # it has rotary settings for each type of layer
        return config not in ROPES
    return config not in ROPES[1:] or kind not in ("phi3", "cohere2")


def equal_experts(base: Path, family: str, shared: str) -> Recipe:
    """Three experts, two for each token, all equal to the base model; a shared one shares the work with them."""
    if not shared:
        return recipe(base, base, base, base, architecture=family)
    half = [{"source_model": str(base), "residual_scale": 0.5}]
    return Recipe.model_validate({"base_model": str(base), "gate_mode": "random", "architecture": family,
                                  "experts": 3 * half, "shared_experts": half})  # fmt: skip


def open_the_shared_gate(folder: Path) -> None:
    """A gate of zeros lets half of the shared expert through: make that half twice as large."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if "shared_expert_gate" in name:
                tensor.zero_()
            elif "shared_expert.down" in name:
                tensor *= 2

    rewrite(folder, change, "model-00001-of-00001.safetensors")


def test_every_pair_has_a_small_model_to_test_it_with() -> None:
    assert {kind for _, kind, _ in CASES} == KINDS.keys() == {d.model_type for f in HOSTS for d in f.takes}
    assert {family for family, _, _ in CASES} == {family.name for family in HOSTS}


@pytest.mark.parametrize(("family", "kind", "shared", "config"), crossed(CASES, CONFIGS, possible=possible))
def test_equal_experts_give_the_dense_models_logits(
    family: str, kind: str, shared: str, config: str, make: Make, tmp_path: Path
) -> None:
    base = make("base", kind=kind, dtype="float32", **CONFIGS[config])
    merge(equal_experts(base, family, shared), tmp_path / "moe")
    if shared and family in GATED:
        open_the_shared_gate(tmp_path / "moe")
    expected = logits(load_model(base))
    assert expected.std() > 0.1
    assert (logits(load_model(tmp_path / "moe")) - expected).abs().max() < 1e-4


def test_transformers_4_gives_the_same_logits(make: Make, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """All cases in one process of ``--transformers4 PYTHON``."""
    python = request.config.getoption("transformers4")
    if not python:
        pytest.skip("no --transformers4")
    expected: dict[str, torch.Tensor] = {}
    for family, kind, shared in CASES:
        for config in CONFIGS:
            beyond = family in LATER or (family, config) == ("qwen2_moe", "head_dim of its own")
            if possible(family, kind, shared, config) and not beyond:  # of what transformers 4 has
                name = "-".join((family, kind, shared, config)).replace(" ", "-")
                base = make(f"base-{name}", kind=kind, dtype="float32", **CONFIGS[config])
                merge(equal_experts(base, family, shared), tmp_path / name)
                if shared and family in GATED:
                    open_the_shared_gate(tmp_path / name)
                expected[str(tmp_path / name)] = logits(load_model(base))
    done = subprocess.run([python, "-c", LOGITS], input=json.dumps(list(expected)), text=True, check=True,
                          capture_output=True)  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1]) == {}
    for folder, wanted in expected.items():
        assert (torch.load(f"{folder}.logits") - wanted).abs().max() < 1e-4, folder


@pytest.mark.parametrize(("family", "kind", "shared"), CASES)
def test_a_forced_router_gives_that_experts_feed_forward_in_the_bases_body(
    family: str, kind: str, shared: str, make: Make, tmp_path: Path
) -> None:
    base, *experts, other = (make(f"model-{i}", seed=i, kind=kind, dtype="float32") for i in range(5))
    fields = {"shared_experts": [{"source_model": str(other)}]} if shared else {}
    plan = merge(recipe(base, *experts, architecture=family, experts_per_token=1, **fields), tmp_path / "moe").plan
    mixture, dense, written = load_model(tmp_path / "moe"), load_model(base), tensors_of(tmp_path / "moe")
    name = plan.dense.module
    own = [[getattr(layer, name) for layer in load_model(expert).model.layers] for expert in (*experts, other)]
    for i, layer in enumerate(mixture.model.layers):
        # every token looks the same to the router, so all go to the expert whose row has the largest sum
        [router] = [m for n, m in layer.named_modules() if n.endswith(("gate", "gate.wg", "router", "router.proj"))
                    and hasattr(m, "weight") and m.weight.shape == (3, 32)]  # fmt: skip
        router.register_forward_pre_hook(lambda _, args: (torch.ones_like(args[0]), *args[1:]))
        prefix = LAYER.format(layer=i)
        chosen = int(written[prefix + plan.host.router].sum(1).argmax())
        gate = written[prefix + plan.host.shared_gate] if shared and plan.host.shared_gate else None
        setattr(dense.model.layers[i], name, Sum(own[chosen][i], own[3][i] if shared else None, gate))
    assert (logits(mixture) - logits(dense)).abs().max() < 1e-4


class Sum(torch.nn.Module):
    """An expert, and beside it a shared one behind its gate, as a dense feed-forward network."""

    def __init__(self, expert: torch.nn.Module, shared: torch.nn.Module | None, gate: torch.Tensor | None) -> None:
        super().__init__()
        self.expert, self.shared, self.gate = expert, shared, gate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        open_by = 1.0 if self.gate is None else (x @ self.gate.T).sigmoid()
        return self.expert(x) + (open_by * self.shared(x) if self.shared else 0.0)


@pytest.mark.parametrize(("family", "kind", "shared"), CASES)
def test_the_streamed_mixture_is_the_whole_model(
    family: str, kind: str, shared: str, make: Make, tmp_path: Path
) -> None:
    """What routers are fitted on and reports measure, against transformers' own loss of the checkpoint."""
    models = [make(f"model-{i}", seed=i, kind=kind, dtype="float32") for i in range(5)]
    fields = {"shared_experts": [{"source_model": str(models[4]), "residual_scale": 0.3}]} if shared else {}
    plan = merge(recipe(*models[:4], architecture=family, **fields), tmp_path / "moe").plan
    batches = [(IDS, torch.ones_like(IDS, dtype=torch.bool))]
    for folder, [loss] in (
        (models[0], dense_losses(plan, plan.sources[0], batches, "cpu")),
        (tmp_path / "moe", mixture_losses(plan, open_folder(tmp_path / "moe"), batches, "cpu")[0]),
    ):
        expected = torch.nn.functional.cross_entropy(
            logits(load_model(folder))[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()
        )
        assert loss == pytest.approx(expected.item(), abs=1e-4)


def test_configs_are_carried_exactly(make: Make, tmp_path: Path) -> None:
    base = configure(make("base", kind="mistral"), eos_token_id=[2, 7], attention_dropout=0.1, sliding_window=5)
    merge(recipe(base, base, base), tmp_path / "moe")
    written = json.loads((tmp_path / "moe" / "config.json").read_text())
    for key in ("eos_token_id", "attention_dropout", "sliding_window", "rms_norm_eps", "max_position_embeddings"):
        assert written[key] == json.loads((base / "config.json").read_text())[key]
    assert load_model(tmp_path / "moe").config.num_local_experts == 2


def test_what_mistral_leaves_out_is_what_transformers_assumes(make: Make, tmp_path: Path) -> None:
    base = make("base", kind="mistral", num_key_value_heads=8, num_attention_heads=8)
    config = json.loads((base / "config.json").read_text())
    left_out = ("sliding_window", "num_key_value_heads", "rms_norm_eps", "rope_parameters", "hidden_act", "head_dim",
                "max_position_embeddings")  # fmt: skip
    (base / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in left_out}))
    merge(recipe(base, base, base), tmp_path / "moe")
    assert (logits(load_model(tmp_path / "moe")) - logits(load_model(base))).abs().max() < 1e-4
    assert load_model(tmp_path / "moe").config.sliding_window == 4096


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"rope_theta": 1e4}, (1e4, None, {"rope_type": "default", "rope_theta": 1e4})),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
         (5e5, None, {"rope_type": "default", "rope_theta": 5e5})),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
         (1e4, {"type": "linear", "factor": 2.0, "rope_type": "linear"},
          {"type": "linear", "factor": 2.0, "rope_type": "linear", "rope_theta": 1e4})),
    ],
)  # fmt: skip
def test_rope_in_both_spellings(config: dict, expected: tuple) -> None:
    found = rope_spellings(config)
    assert (found["rope_theta"], found["rope_scaling"], found["rope_parameters"]) == expected


def test_what_fits_nowhere_is_told_what_would() -> None:
    with pytest.raises(LazyMoEError, match=r"a mistral model doesn't fit \(qwen3_moe takes qwen3\).*mixtral or"):
        find_host(MISTRAL.complete({"model_type": "mistral"} | SHAPE), recipe("a", "b", architecture="qwen3_moe"))
