"""The generic host is exact for every dense family: its logits are those of transformers' own class of the base model.

A few families are tried at once, the others with the slow tests. With ``--transformers4 PYTHON`` all of them are also
loaded in that one.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from generic_models import FAMILIES, make_family
from small_models import IDS, SHAPE, Make, load_model, loaded_elsewhere, logits, recipe, run_elsewhere, tensors_of

from lazymoe import Recipe, check, merge
from lazymoe.architectures.learned import learn
from lazymoe.checkpoint.opening import open_folder
from lazymoe.forward.losses import dense_losses, mixture_losses

QUICK = ("Gemma 2", "Gemma 3", "Qwen 3.5", "Pythia", "GPT-2", "Falcon 40B", "Apertus", "Phi-4 mini", "SmolLM3")
EVERY = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow, id=name) for name in FAMILIES]
SAVED = """
import json, sys, torch, transformers
found = {}
for folder, (kind, config) in json.load(sys.stdin).items():
    try:
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind + "Config")(**config))
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape) * 0.2
        model.save_pretrained(folder)
    except Exception as e:
        found[folder] = str(e)
print(json.dumps(found))
"""
SINCE_5 = {  # families that transformers 4.57 doesn't have, or whose names or configs it calls otherwise
    "EXAONE 3.5", "Gemma 4 E2B", "GPT-NeoX, sequential", "Granite 4", "InternLM 3", "Jais 2", "MiniCPM3",
    "Ministral 3", "Nanochat", "Pythia", "Qwen 3.5", "Youtu", "CWM",
}  # fmt: skip


def test_there_are_enough() -> None:
    assert len(FAMILIES) >= 35 and set(QUICK) <= FAMILIES.keys() >= SINCE_5


@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", EVERY)
def test_equal_experts_give_the_dense_models_logits(family: str, tied: bool, tmp_path: Path) -> None:
    base = make_family(tmp_path, family, tie_word_embeddings=tied)
    merge(recipe(base, base, base, base, architecture="generic"), tmp_path / "moe")
    expected = logits(load_model(base))
    assert expected.std() > 0.1
    assert (logits(load_model(tmp_path / "moe")) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("family", EVERY)
def test_a_forced_router_gives_that_experts_feed_forward_in_the_bases_body(family: str, tmp_path: Path) -> None:
    """And the streamed pass is the whole model: what routers are fitted on and reports measure."""
    base, *experts = (make_family(tmp_path, family, seed=i, name=f"model-{i}") for i in range(4))
    plan = merge(recipe(base, *experts, architecture="generic", experts_per_token=1), tmp_path / "moe").plan
    mixture, dense, written = load_model(tmp_path / "moe"), load_model(base), tensors_of(tmp_path / "moe")

    batches = [(IDS, torch.ones_like(IDS, dtype=torch.bool))]
    streamed = mixture_losses(plan, open_folder(tmp_path / "moe"), batches, "cpu")[0]
    streamed += dense_losses(plan, plan.sources[0], batches, "cpu")
    assert streamed == pytest.approx([_loss(mixture), _loss(dense)], abs=1e-4)

    path, name = plan.dense.prefix.removesuffix(".{layer}."), plan.dense.module
    bodies = [load_model(expert).get_submodule(path) for expert in experts]
    for i, layer in enumerate(mixture.get_submodule(path)):
        # every token looks the same to the router, so all go to the expert whose row has the largest sum
        getattr(layer, name).router.register_forward_pre_hook(lambda _, args: (torch.ones_like(args[0]),))
        chosen = int(written[plan.dense.within(i) + plan.host.router].sum(1).argmax())
        setattr(dense.get_submodule(path)[i], name, getattr(bodies[chosen][i], name))
    assert (logits(mixture) - logits(dense)).abs().max() < 1e-4


def _loss(model: torch.nn.Module) -> float:
    return torch.nn.functional.cross_entropy(logits(model)[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).item()


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_transformers_4_gives_the_dense_models_logits(
    tied: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Those of transformers 5; or of its own class of the base model, where that computes otherwise in 4."""
    expected: dict[Path, torch.Tensor] = {}
    for family in FAMILIES.keys() - SINCE_5:
        base = make_family(tmp_path, family, tie_word_embeddings=tied)
        merge(recipe(base, base, base, base, architecture="generic"), tmp_path / f"{base.name}-moe")
        expected[base] = logits(load_model(base))
    mixtures = [tmp_path / f"{base.name}-moe" for base in expected]
    failed = loaded_elsewhere(request, *expected, *mixtures)
    assert not failed.keys() & set(map(str, mixtures)), failed
    for base, mixture in zip(expected, mixtures, strict=True):
        found = torch.load(f"{mixture}.logits")
        theirs = expected[base] if str(base) in failed else torch.load(f"{base}.logits")
        assert min((found - one).abs().max() for one in (expected[base], theirs)) < 1e-4, mixture.name
    assert len(mixtures) >= 35


@pytest.mark.slow
def test_what_transformers_4_saved_is_taken(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """By its names, and with what it leaves out of config.json."""
    given = {str(tmp_path / family): (kind, {**SHAPE, **config}) for family, (kind, config) in FAMILIES.items()}
    unmade = run_elsewhere(request, SAVED, given)
    made = [folder for folder in map(Path, given) if str(folder) not in unmade]
    for base in made:
        merge(recipe(base, base, base, base, architecture="generic"), tmp_path / f"{base.name}-moe")
        far = (logits(load_model(tmp_path / f"{base.name}-moe")) - logits(load_model(base))).abs().max()
        assert far < 1e-4, base.name
    assert len(made) >= 35, unmade


def test_names_of_another_transformers_are_told(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """transformers 4 calls Pythia's head otherwise: it would be random."""
    base = make_family(tmp_path, "Pythia")
    merge(recipe(base, base, base), tmp_path / "moe")
    [told] = loaded_elsewhere(request, tmp_path / "moe").values()
    assert "finds no 'embed_out.weight'" in told


@pytest.mark.parametrize(
    ("kind", "fields", "why"),
    [
        ("Bloom", {"n_layer": 2}, r"more than one input \('mlp', which is given hidden_states and residual\)"),
        ("Mpt", {"n_layers": 2}, r"more than one input \('ffn', which is given hidden_states and residual\)"),
        ("Rwkv", {"num_hidden_layers": 2}, r"more than one input \('feed_forward', which is given hidden and state\)"),
        ("OPT", {"num_hidden_layers": 2}, "no module for a layer's feed-forward network, only maps in the layer"),
        ("XGLM", {"num_layers": 2}, "no module for a layer's feed-forward network, only maps in the layer"),
        ("Mamba", {"num_hidden_layers": 2}, "no feed-forward network of its own"),
        ("Mixtral", {"num_hidden_layers": 2}, "a mixture of experts already"),
        ("GptOss", {"num_hidden_layers": 2}, "a mixture of experts already"),
        ("Bert", {"is_decoder": True, "num_hidden_layers": 2}, "no feed-forward network of its own"),
        ("XLNet", {"n_layer": 2}, "something else than one state for each token"),
        ("Gemma3nText", {}, "layers that share keys and values"),
        ("OlmoHybrid", {}, "takes apart or puts together"),
        ("Gemma3Text", {"use_bidirectional_attention": True, "num_hidden_layers": 2}, "looks both ways"),
        ("ViT", {}, "no causal language model"),
        ("Llama", {"hidden_act": "no such thing"}, "can't be made by transformers .*no such thing"),
    ],
)
def test_what_cannot_be_is_told_by_what_is_found(kind: str, fields: dict, why: str) -> None:
    config = getattr(transformers, f"{kind}Config")(**fields).to_dict()
    with pytest.raises(ValueError, match=why):
        learn(config)


def test_layers_that_share_are_told(tmp_path: Path) -> None:
    types = 2 * ["sliding_attention", "full_attention"]
    base = make_family(tmp_path, "Gemma 4 E2B", num_hidden_layers=4, layer_types=types, num_kv_shared_layers=2)
    [problem] = check(recipe(base, base, base)).errors
    assert "it has layers that share keys and values" in problem.what and len(str(problem).splitlines()) == 1


def test_it_is_taken_where_no_other_fits_and_that_is_told(make: Make, tmp_path: Path) -> None:
    base, llama = make_family(tmp_path, "Gemma 2"), make("llama")
    found = check(recipe(base, base, base))
    assert found.plan and found.plan.host.name == "generic_moe"
    [told] = [str(w) for w in found.warnings if "trust_remote_code" in str(w)]
    assert "vLLM" in told and "gemma2" in told
    found = check(recipe(llama, llama, llama))
    assert (
        found.plan and found.plan.host.name == "mixtral" and not any("trust_remote" in str(w) for w in found.warnings)
    )
    found = check(recipe(llama, llama, llama, architecture="generic"))
    assert found.plan and found.plan.host.name == "generic_moe"


@pytest.mark.parametrize("shared", [1, 2])
@pytest.mark.parametrize("family", ["GLM-4 9B chat", "GPT-2"])
def test_scales_reach_the_experts_ends(family: str, shared: int, tmp_path: Path) -> None:
    """Of shared experts too, of which there can be several."""
    base = make_family(tmp_path, family)
    experts, together = ({"source_model": str(base), "residual_scale": scale} for scale in (0.5, 0.5 / shared))
    merge(Recipe.model_validate({"base_model": str(base), "gate_mode": "random", "experts": 2 * [experts],
                                 "shared_experts": shared * [together]}), tmp_path / "moe")  # fmt: skip
    assert (logits(load_model(tmp_path / "moe")) - logits(load_model(base))).abs().max() < 1e-4
