"""Recipes as they stand in public: what mergekit's parser takes LazyMoE's takes, and says what it ignores; a slip is an
error that names what was meant."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from small_models import Make, tensors_of

from lazymoe import LazyMoEError, Recipe, RecipeError, check, merge
from lazymoe.planning.prepared import prepare
from lazymoe.recipe.review import review

FOLDER = Path(__file__).parents[1] / "data" / "recipes"
PUBLIC = sorted(FOLDER.glob("*.yaml"))
IGNORED = {  # keys that aren't ours, by the recipes that have them
    "tokenizer-source": ["tokenizer_source"],
    "merge-method": ["merge_method", "parameters", "out_dtype", "experts[0].parameters", "experts[1].weight"],
    "card-keys": [
        *("name", "license", "language", "tags", "model_name", "author", "version"),
        *(f"experts[{i}].{key}" for i in (0, 1) for key in ("name", "role")),
    ],
    "tokenizer-tokens": ["tokenizer", "chat_template"],
    "models-too": ["models", "slices"],
    "qwen-shared": ["shared_experts[0].note"],
    "override-architecture": ["experts[0].source_model.override_architecture"],
    "anchors": ["defaults"],
    "json": ["created_by"],
    "odd-values": [
        *("2", "True", "created", "seed", "trust_remote_code", "load_in_4bit", "num_experts"),
        *("experts[0].weight", "experts[0].2", "experts[1].layer_range"),
    ],
    "folders": ["output_path", "cache_dir"],
}
THEIRS = """
import sys, yaml
from mergekit.moe.config import MoEMergeConfig
for name in sys.argv[1:]:
    with open(name, encoding="utf-8") as f:
        config = MoEMergeConfig.model_validate(yaml.safe_load(f.read()))
    models = [config.base_model, *(e.source_model for e in config.experts)]
    print(" ".join(map(str, models)), config.experts_per_token, *(e.residual_scale for e in config.experts))
"""
BASE = "base_model: a/b\nexperts:\n- source_model: a/b\n  positive_prompts: [x]\n- source_model: c/d\n"


@pytest.mark.parametrize("file", PUBLIC, ids=lambda file: file.stem)
def test_public_recipes_are_taken(file: Path) -> None:
    recipe = Recipe.from_file(file)
    assert list(recipe.origin.passed_over) == IGNORED.get(file.stem, [])
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    ignored = [problem for problem in review(recipe)[1] if problem.code == "recipe.passed-over"]
    assert len(ignored) == (file.stem in IGNORED)


def test_mergekit_takes_the_same_and_reads_them_alike(request: pytest.FixtureRequest) -> None:
    assert len(PUBLIC) == 20
    mergekit = request.config.getoption("--mergekit")
    if not mergekit:
        pytest.skip("no --mergekit")
    python = Path(mergekit).with_name("python")
    done = subprocess.run([python, "-c", THEIRS, *PUBLIC], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for file, theirs in zip(PUBLIC, done.stdout.splitlines(), strict=True):
        recipe = Recipe.from_file(file)
        models = [recipe.base_model, *(expert.source_model for expert in recipe.experts)]
        scales = [expert.residual_scale for expert in recipe.experts]
        assert theirs == " ".join(map(str, [*models, recipe.experts_per_token, *scales])), file


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("gate_mod: random", "gate_mode"),
        ("gatemode: random", "gate_mode"),
        ("gate-mode: random", "gate_mode"),
        ("GATE_MODE: random", "gate_mode"),
        ("dtyp: float16", "dtype"),
        ("torch_dtype: float16", "dtype"),
        ("expert_per_token: 1", "experts_per_token"),
        ("experts_per_tok: 1", "experts_per_token"),
        ("num_experts_per_tok: 1", "experts_per_token"),
        ("shared_expert: []", "shared_experts"),
        ("shared_weight: base", "shared_weights"),
        ("architecure: mixtral", "architecture"),
        ("  postive_prompts: [y]", "positive_prompts"),
        ("  positive_prompt: [y]", "positive_prompts"),
        ("  prompts: [y]", "positive_prompts"),
        ("  negative_promts: [y]", "negative_prompts"),
        ("  residual_scal: 0.5", "residual_scale"),
        ("  noise: 0.5", "noise_scale"),
    ],
)
def test_a_slip_is_an_error_with_what_was_meant(slip: str, meant: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml(f"{BASE}{slip}\n")
    (problem,) = caught.value.problems
    assert problem.remedy == f"Did you mean '{meant}'?"
    assert problem.where.startswith("experts[1]." if slip.startswith(" ") else slip.partition(":")[0])


@pytest.mark.parametrize(("wrong", "meant"), [("base_modle", "base_model"), ("expert", "experts")])
def test_a_slip_in_a_field_that_must_be_there_is_one_mistake(wrong: str, meant: str) -> None:
    with pytest.raises(RecipeError, match=f"^{wrong}: .*Did you mean '{meant}'") as caught:
        Recipe.from_yaml(BASE.replace(f"{meant}:", f"{wrong}:"))
    assert len(caught.value.problems) == 1


def test_inside_a_file_of_prompts_every_key_counts() -> None:
    for key in ("split: train", "licence: mit"):
        with pytest.raises(RecipeError, match=r"positive_prompts\[0\].*there is no field"):
            Recipe.from_yaml(BASE.replace("[x]", f"{{file: x.txt, {key}}}"))


def test_what_is_ignored_reaches_a_check_and_leaves_no_trace(make: Make, tmp_path: Path) -> None:
    base = str(make("base"))
    fields = {"base_model": base, "gate_mode": "random", "experts": [{"source_model": base}], "experts_per_token": 1}
    odd = {**fields, "merge_method": "moe", "experts": [{"source_model": base, "weight": 1}]}
    plain, recipe = Recipe.model_validate(fields), Recipe.model_validate(odd)
    assert recipe == plain and recipe.to_yaml() == plain.to_yaml()
    (warning,) = check(recipe).warnings
    assert str(warning).startswith("experts[0].weight, merge_method: ignored, as in mergekit-moe,")
    merged = merge(recipe, tmp_path / "moe")
    assert merged.warnings == (warning,)
    assert "weight" not in (tmp_path / "moe" / "recipe.yaml").read_text()


def test_a_recipe_of_mergekits_dense_merges_is_told() -> None:
    slerp = "slices:\n- sources:\n  - {model: a/b, layer_range: [0, 8]}\nmerge_method: slerp\nbase_model: a/b\n"
    models = "models: [{model: a/b, parameters: {weight: 1}}]\nmerge_method: ties\ndtype: bfloat16\n"
    for text in (slerp, models):
        with pytest.raises(RecipeError, match="this is a recipe for mergekit's dense merges") as caught:
            Recipe.from_yaml(text)
        (problem,) = caught.value.problems
        assert "'experts'" in problem.remedy


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"model": {"path": "a/b", "revision": "x"}, "lora": {"path": "c/d"}}, "a/b@x+c/d"),
        ({"model": {"path": "a/b"}, "lora": {"path": "c/d", "revision": "y"}}, "a/b+c/d@y"),
        ({"model": "a/b@x", "lora": "c/d"}, "a/b@x+c/d"),
        ({"model": {"path": "a/b", "revision": None}, "lora": None}, "a/b"),
    ],
)
def test_a_model_may_be_a_mapping(given: dict, text: str) -> None:
    recipe = Recipe.model_validate({"base_model": given, "experts": [{"source_model": given}]})
    assert recipe.base_model == recipe.experts[0].source_model == text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"modle": "a/b"}, "it has a key 'modle' (did you mean 'model'?)"),
        ({"model": {"path": "a/b", "revison": "x"}}, "it has a key 'revison' (did you mean 'revision'?)"),
        ({"model": {"path": 1}}, "must be text"),
        ({"lora": "a/b"}, "it names no 'model'"),
        ({"model": "a/b", "lora": {"revision": "x"}}, "must be text"),
    ],
)
def test_a_mapping_that_names_no_model_is_one_line(given: dict, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.model_validate({"base_model": given, "experts": [{"source_model": "a/b"}]})
    (problem,) = caught.value.problems
    assert said in problem.what and problem.where == "base_model"


def test_numbers_may_be_text_but_not_nonsense() -> None:
    expert = {"source_model": "a/b", "residual_scale": 1, "noise_scale": " 0.5 "}
    recipe = Recipe.model_validate({"base_model": "a/b", "experts": [expert], "experts_per_token": "2"})
    assert (recipe.experts_per_token, recipe.experts[0].residual_scale, recipe.experts[0].noise_scale) == (2, 1.0, 0.5)
    for key, value in {"experts_per_token": "two", "experts": [expert | {"noise_scale": "-1"}]}.items():
        with pytest.raises(RecipeError):
            Recipe.model_validate({"base_model": "a/b", "experts": [expert], key: value})
    for value in (True, 1.5, "1.5", "", [1], None, "0"):
        with pytest.raises(RecipeError, match="experts_per_token: input should be"):
            Recipe.model_validate({"base_model": "a/b", "experts": [expert], "experts_per_token": value})
    for value in (True, "much", "nan", ".inf", "inf", {}):
        with pytest.raises(RecipeError, match=r"experts\[0\].residual_scale: input should be"):
            Recipe.model_validate({"base_model": "a/b", "experts": [expert | {"residual_scale": value}]})


def test_one_text_is_a_list_of_one() -> None:
    recipe = Recipe.from_yaml(BASE.replace("[x]", "Tell me a story.\n  negative_prompts: 'code: x'"))
    assert (recipe.experts[0].positive, recipe.experts[0].negative) == (["Tell me a story."], ["code: x"])


def test_a_recipe_without_gate_mode_gets_a_note(make: Make) -> None:
    base = str(make("base"))
    experts = [{"source_model": base, "positive_prompts": ["some text"]}]
    found = check(Recipe.model_validate({"base_model": base, "experts": experts}))
    (note,) = found.notes
    assert "where mergekit's default is 'hidden'; write 'gate_mode: hidden' to have that" in note
    assert f"note: {note}" in str(found).splitlines()
    assert json.loads(json.dumps(found.to_dict()))["notes"] == [note]
    assert not any("gate_mode" in str(warning) for warning in found.warnings)
    assert check(Recipe.model_validate({"base_model": base, "gate_mode": "fit", "experts": experts})).notes == ()
    assert prepare(Recipe.model_validate({"base_model": base, "experts": [{"source_model": base}]})).notes == ()


def test_qwen_is_qwen_3_too(make: Make, tmp_path: Path) -> None:
    for kind, name in (("qwen3", "Qwen3MoeForCausalLM"), ("qwen2", "Qwen2MoeForCausalLM")):
        base = str(make(kind, kind=kind))
        fields = {"base_model": base, "gate_mode": "random", "architecture": "qwen"}
        merged = merge(Recipe.model_validate({**fields, "experts": [{"source_model": base}]}), tmp_path / f"{kind}-moe")
        assert merged.plan.architecture == name
        assert tensors_of(tmp_path / f"{kind}-moe")


def test_a_mapping_as_a_prompt_is_a_text_that_lacks_quotes() -> None:
    text = BASE.replace("[x]", "\n  - Question: what is the capital of France?\n  - write a story: a cat\n  - Answer:")
    with pytest.raises(LazyMoEError) as caught:
        Recipe.from_yaml(text)
    told = [str(problem) for problem in caught.value.problems]
    assert len(told) == 1 and "(so too 2 more of this list)" in told[0]
    assert told[0].endswith('Put it in quotes: "Question: what is the capital of France?"')
    quoted = BASE.replace("[x]", '["Question: what is the capital of France?"]')
    assert Recipe.from_yaml(quoted).experts[0].positive == ["Question: what is the capital of France?"]
    with pytest.raises(LazyMoEError, match=r'"A: 1\\nB: 2"'):  # a dialogue of two lines
        Recipe.from_yaml(BASE.replace("[x]", "\n  - A: '1'\n    B: '2'"))
