"""Families become classes of transformers' own where one is exact: of shapes as published, scaled down, the logits are
those of the family's own class."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from crossing import crossed
from generic_models import FAMILIES, make_family
from small_models import IDS, apart, load_model, loaded_elsewhere, logits, recipe, tensors_of

from lazymoe import check, merge
from lazymoe.checkpoint.opening import open_folder
from lazymoe.forward.losses import dense_losses, mixture_losses

NATIVE = {  # what each becomes where a recipe doesn't say
    "Qwen 3.5": "qwen3_5_moe_text",
    "Phi-4 mini": "glm4_moe",
    "GLM-4 9B chat": "glm4_moe",
    "Seed-OSS": "glm4_moe",
    "Granite 4": "granitemoehybrid",
    "SmolLM3": "granitemoe_swa",
    "EXAONE 3.5": "mixtral",
    "Command R": "cohere2_moe",
    "Hunyuan": "hunyuan_v1_moe",
}
IN_4 = ("Phi-4 mini", "GLM-4 9B chat", "Seed-OSS", "Granite 4", "Hunyuan")  # whose mixtures transformers 4.57 has too


@pytest.mark.parametrize(("family", "tied"), crossed(NATIVE, [False, True]))
def test_equal_experts_give_the_dense_models_logits(family: str, tied: bool, tmp_path: Path) -> None:
    base = make_family(tmp_path, family, tie_word_embeddings=tied)
    assert merge(recipe(base, base, base, base), tmp_path / "moe").plan.host.name == NATIVE[family]
    expected = logits(load_model(base))
    assert expected.std() > 0.1
    assert (logits(load_model(tmp_path / "moe")) - expected).abs().max() < 1e-4
    assert apart(base, tmp_path / "moe") < 1e-4  # of a longer text too, beyond what a stretched context began with


def test_transformers_4_gives_the_dense_models_logits(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    expected = {}
    for family in IN_4:
        base = make_family(tmp_path, family)
        merge(recipe(base, base, base, base), tmp_path / f"{base.name}-moe")
        expected[tmp_path / f"{base.name}-moe"] = logits(load_model(base))
    assert loaded_elsewhere(request, *expected) == {}
    for folder, wanted in expected.items():
        assert (torch.load(f"{folder}.logits") - wanted).abs().max() < 1e-4, folder.name


@pytest.mark.parametrize("family", NATIVE)
def test_a_forced_router_gives_that_experts_feed_forward_in_the_bases_body(family: str, tmp_path: Path) -> None:
    """And the streamed pass is the whole model: what routers are fitted on and reports measure."""
    base, *experts = (make_family(tmp_path, family, seed=i, name=f"model-{i}") for i in range(4))
    plan = merge(recipe(base, *experts, experts_per_token=1), tmp_path / "moe").plan
    mixture, dense, written = load_model(tmp_path / "moe"), load_model(base), tensors_of(tmp_path / "moe")
    batches = [(IDS, torch.ones_like(IDS, dtype=torch.bool))]
    streamed = mixture_losses(plan, open_folder(tmp_path / "moe"), batches, "cpu")[0]
    streamed += dense_losses(plan, plan.sources[0], batches, "cpu")
    assert streamed == pytest.approx([_loss(mixture), _loss(dense)], abs=1e-4)

    bodies = [load_model(expert).model.layers for expert in experts]
    name = plan.dense.module
    for i, layer in enumerate(mixture.model.layers):
        # every token looks the same to the router, so all go to the expert whose row has the largest sum
        [router] = [m for n, m in layer.named_modules() if n.endswith(("gate", "gate.wg", "router"))
                    and hasattr(m, "weight") and m.weight.shape[0] == 3]  # fmt: skip
        router.register_forward_pre_hook(lambda _, args: (torch.ones_like(args[0]), *args[1:]))
        chosen = int(written[plan.dense.within(i) + plan.host.router].sum(1).argmax())
        setattr(dense.model.layers[i], name, getattr(bodies[chosen][i], name))
    assert (logits(mixture) - logits(dense)).abs().max() < 1e-4


def _loss(model: torch.nn.Module) -> float:
    return torch.nn.functional.cross_entropy(logits(model)[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).item()


@pytest.mark.parametrize("family", ["GLM-4 0414", "Gemma 2", "OLMo 3"])
def test_where_none_is_exact_the_generic_one_is_taken(family: str, tmp_path: Path) -> None:
    base = make_family(tmp_path, family)
    found = check(recipe(base, base, base))
    assert found.plan and found.plan.host.name == "generic_moe"


def test_they_are_all_among_the_families() -> None:
    assert NATIVE.keys() <= FAMILIES.keys() and set(IN_4) <= NATIVE.keys()


@pytest.mark.parametrize("target", ["q_proj", "gate_up_proj"])
def test_an_adapter_is_applied_before_rows_are_moved(target: str, tmp_path: Path) -> None:
    """Against PEFT's own merging of it."""
    peft = pytest.importorskip("peft")
    base = make_family(tmp_path, "GLM-4 9B chat")
    config = peft.LoraConfig(r=2, target_modules=[target], task_type="CAUSAL_LM")
    model = peft.get_peft_model(load_model(base), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape) * 0.2
    model.save_pretrained(tmp_path / "adapter")
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    from lazymoe.checkpoint.opening import open_source
    from lazymoe.recipe.reference import Reference

    ours = open_source(Reference(str(base), adapter=str(tmp_path / "adapter")), "base_model")
    theirs = open_folder(tmp_path / "merged")
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name in theirs.tensors:
        assert torch.allclose(ours.load(name).float(), theirs.load(name).float(), atol=1e-6), name
