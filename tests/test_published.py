"""What may go to the Hub: files by an explicit list, sound, one's own, without tokens and without places on this
machine."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from generic_models import make_family
from hub_server import Hub
from small_models import Make, configure, load_model, logits, make_model, recipe, rewrite
from transformers import AutoModelForCausalLM

from lazymoe import LazyMoEError, Recipe, RecipeError, load, merge
from lazymoe.cards.card import card
from lazymoe.cards.naming import spell, without_places
from lazymoe.output.folder import INDEX, RECIPE, RECORD
from lazymoe.publishing import publish
from lazymoe.recipe.reference import Reference

REPO = "writer/listed"
SECRET = "hf_" + "Ab3" * 11
SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of two shards whose models and prompts lay in folders."""
    folder = tmp_path_factory.mktemp("private-place")
    base, expert = make_model(folder, "base"), make_model(folder, "expert-a", seed=1)
    (base / "chat_template.jinja").write_text("{{ messages }}")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "short.jinja").write_text("{{ messages }}")
    (folder / "texts.txt").write_text("Some words about code.")
    given = recipe(base, expert, base)
    prompted = [
        given.experts[0].model_validate(
            {"source_model": str(expert), "positive_prompts": [{"file": str(folder / "texts.txt")}, "words"]}
        ),
        given.experts[1],
    ]
    return merge(given.with_experts(prompted), folder / "moe", shard_size=40_000).folder


def files(hub: Hub) -> dict[str, bytes]:
    return {name: hub.read(REPO, name) for name in hub.repos[REPO].commits[-1].files if name != ".gitattributes"}


def refused(hub: Hub, moe: Path, **options: str) -> str:
    """Publishing is refused in one line, before the Hub is asked for anything."""
    asked = len(hub.requests)
    with pytest.raises(LazyMoEError) as caught:
        publish(moe, options.pop("repo", REPO), **options)
    assert len(hub.requests) == asked
    [problem] = caught.value.problems
    assert str(problem).isprintable() and SECRET not in str(caught.value) + json.dumps(problem.to_dict())
    return f"{problem.code} {problem}"


def test_only_what_is_listed_goes(clean_hub: Hub, moe: Path) -> None:
    every = {path.relative_to(moe).as_posix() for path in moe.rglob("*") if path.is_file()}
    for name in ("thesis.pdf", ".env", "modeling_mixtral.py", "model.bin", "model-00003-of-00003.safetensors",
                 "additional_chat_templates/run.py", "additional_chat_templates/notes.txt", "report.json",
                 "routing.png", "consolidated.safetensors"):  # fmt: skip
        (moe / name).write_text("mine")
    publish(moe, REPO)
    assert set(files(clean_hub)) == every | {"README.md"}


@pytest.mark.parametrize(
    "named",
    ["../secret.safetensors", "/etc/passwd", "sub/model-00001-of-00002.safetensors", "model.safetensors", "..", "",
     "model-00001-of-00002.safetensors\n", "model-0000\uff11-of-00002.safetensors", "lazymoe.json", 7, None, ["x"]],
)  # fmt: skip
def test_an_index_that_names_anything_but_shards_is_refused(clean_hub: Hub, moe: Path, named: object) -> None:
    shutil.copy(moe / SHARD, moe.parent / "secret.safetensors")
    index = json.loads((moe / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = named
    (moe / INDEX).write_text(json.dumps(index))
    assert "can't be a file of its weights" in refused(clean_hub, moe)


LINKS = [SHARD, "config.json", "chat_template.jinja", "additional_chat_templates",
         "additional_chat_templates/short.jinja", INDEX, RECIPE, RECORD]  # fmt: skip


@pytest.mark.parametrize("name", LINKS)
def test_no_link_is_followed(clean_hub: Hub, moe: Path, name: str) -> None:
    (moe / name).rename(moe.parent / "elsewhere")
    (moe / name).symlink_to(moe.parent / "elsewhere")
    told = refused(clean_hub, moe)
    assert told.startswith("output.link") and str(moe / name) in told
    assert "is a link, and what it points to may not be yours to publish. Put the file itself there." in told


def test_the_mixtures_folder_itself_may_be_a_link(clean_hub: Hub, moe: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(moe)
    publish(tmp_path / "linked", REPO)
    assert SHARD in files(clean_hub)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "emptied": lambda moe: (moe / SHARD).write_bytes(b""),
    "cut": lambda moe: os.truncate(moe / SHARD, 5000),
    "lengthened": lambda moe: os.truncate(moe / SHARD, 500_000),
    "zeroed": lambda moe: (moe / SHARD).write_bytes(bytes(5000)),
    "another's": lambda moe: shutil.copy(moe / SHARD.replace("00001-of", "00002-of"), moe / SHARD),
    "less": lambda moe: rewrite(moe, lambda t: t.pop(next(iter(t))), SHARD),
    "more": lambda moe: rewrite(moe, lambda t: t.update(extra=next(iter(t.values())).clone()), SHARD),
    "a folder": lambda moe: ((moe / SHARD).unlink(), (moe / SHARD).mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_shard_is_refused(clean_hub: Hub, moe: Path, damage: Callable[[Path], object]) -> None:
    damage(moe)
    told = refused(clean_hub, moe)
    assert told.startswith("output.damaged") and SHARD in told


def test_no_code_but_lazymoes_own(clean_hub: Hub, make: Make, tmp_path: Path) -> None:
    base = make("base")
    out = merge(recipe(base, base, base, architecture="deepseek"), tmp_path / "moe").folder
    publish(out, REPO)
    assert [name for name in files(clean_hub) if name.endswith(".py")] == ["modeling_deepseek.py"]
    code = (out / "modeling_deepseek.py").read_text()
    (out / "modeling_deepseek.py").write_text(code + "\n")
    assert "isn't LazyMoE's own" in refused(clean_hub, out)
    (out / "modeling_deepseek.py").write_text(code)
    configure(out, auto_map={"AutoModelForCausalLM": "stranger/repo--modeling_deepseek.X"})
    assert "names other code" in refused(clean_hub, out)


def test_a_config_that_leads_to_code_is_refused(clean_hub: Hub, moe: Path) -> None:
    configure(moe, auto_map={"AutoModelForCausalLM": "stranger/repo--modeling.X"})
    assert "names code" in refused(clean_hub, moe)


@pytest.mark.parametrize(
    "options", [{"repo": f"writer/{SECRET}"}, {"license": f"mine {SECRET}"}, {"repo": SECRET}, {"template": "x.jinja"}]
)
def test_a_token_in_an_argument_is_not_published(
    clean_hub: Hub, moe: Path, tmp_path: Path, options: dict[str, str]
) -> None:
    if "template" in options:
        (tmp_path / "x.jinja").write_text(f"# mine {SECRET}")
        options = {"template": str(tmp_path / "x.jinja")}
    told = refused(clean_hub, moe, **options)
    assert told.startswith("input.token") and "looks like a Hugging Face token" in told
    with pytest.raises(LazyMoEError, match="looks like a Hugging Face token"):
        card(moe, **{"repo": REPO, **options})


@pytest.mark.parametrize("name", ["config.json", "chat_template.jinja", RECIPE, RECORD])
def test_a_token_in_a_file_is_not_published(clean_hub: Hub, moe: Path, name: str) -> None:
    text = (moe / name).read_text()
    spoilt = {
        RECIPE: text.replace("words", SECRET),
        "chat_template.jinja": text + SECRET,
    }.get(name) or json.dumps({"note": SECRET, **json.loads(text)})
    (moe / name).write_text(spoilt)
    assert "looks like a Hugging Face token" in refused(clean_hub, moe)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (f"base_model: {SECRET}\nexperts: [{{source_model: a/b}}]", "base_model"),
        (f"base_model: a/b\nexperts: [{{source_model: a/b}}, {{source_model: 'x/{SECRET}'}}]", "experts[1].source_mod"),
        (f"base_model: a/b\nexperts: [{{source_model: a/b, positive_prompts: [p, 'use {SECRET}']}}]", "experts[0].pos"),
        (f"base_model: a/b\nexperts: [{{source_model: a/b, positive_prompts: {{file: '{SECRET}.txt'}}}}]", "experts"),
        (f"base_model: a/b\nexperts: [{{source_model: a/b}}]\n{SECRET}: 1", "recipe"),
        (f"base_model: a/b\nexperts: [{{source_model: a/b, noise_scale: {SECRET}}}]", "experts[0].noise_scale"),
    ],
)  # fmt: skip
def test_a_recipe_with_a_token_is_refused_without_an_echo(text: str, where: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml(text)
    [problem] = caught.value.problems
    assert problem.code == "recipe.token" and problem.where.startswith(where)
    assert SECRET not in json.dumps(problem.to_dict())


def test_an_ordinary_name_is_no_token() -> None:
    assert Recipe.from_yaml("base_model: a/hf_model\nexperts: [{source_model: a/hf_llama_7b_instruct_finetuned_v2}]")


def test_places_on_this_machine_are_not_published(clean_hub: Hub, moe: Path) -> None:
    publish(moe, REPO)
    for name, content in files(clean_hub).items():
        assert b"private-place" not in content and b"/tmp" not in content, name
    shown = Recipe.from_yaml(files(clean_hub)[RECIPE].decode())
    assert (shown.base_model, shown.experts[0].source_model) == ("base", "expert-a")
    assert [getattr(p, "file", p) for p in shown.experts[0].positive_prompts or []] == ["texts.txt", "words"]
    kept = Recipe.from_file(moe / RECIPE)
    assert "private-place" in kept.base_model and without_places(kept) == shown
    text = card(moe, REPO)
    assert "private-place" not in text and "of models or prompts that lay in folders" in text
    assert "source_model: expert-a" in text and "file: texts.txt" in text


@pytest.mark.parametrize(
    ("name", "published", "spelled"),
    [
        ("org/name@0123abc", "org/name@0123abc", "org/name"),
        ("org/name@0123abc+/home/me/lora", "org/name@0123abc+lora", "org/name + lora"),
        ("/home/me/base+org/lora@0123abc", "base+org/lora@0123abc", "base + org/lora"),
        ("org/name/file-q4.gguf@0123abc", "org/name/file-q4.gguf@0123abc", "org/name"),
        ("../models/me/m.gguf", "m.gguf", "m.gguf"),
        ("~/models/a", "a", "a"),
        ("C:\\Users\\me\\a", "a", "a"),
        ("..", "folder", "folder"),
        ("/home/me/a@b", "a@b", "a"),
    ],
)
def test_models_by_name(name: str, published: str, spelled: str) -> None:
    given = Recipe.model_validate({"base_model": name, "experts": [{"source_model": name}]})
    shown = without_places(given)
    assert (shown.base_model, shown.experts[0].source_model) == (published, published)
    assert Recipe.from_yaml(shown.to_yaml()) == shown
    assert spell(Reference.parse(name)) == spelled


def test_a_generic_mixture_goes_up_and_comes_down(clean_hub: Hub, tmp_path: Path) -> None:
    base, *experts = (make_family(tmp_path, "Gemma 2", seed=i, name=f"model-{i}") for i in range(3))
    moe = merge(recipe(base, *experts), tmp_path / "moe").folder
    publish(moe, REPO)
    assert b"trust_remote_code=True" in files(clean_hub)["README.md"]
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(REPO, trust_remote_code=False)
    found = AutoModelForCausalLM.from_pretrained(REPO, trust_remote_code=True, dtype="auto")
    assert (logits(found.eval()) - logits(load_model(moe))).abs().max() < 1e-5

    (moe / "modeling_generic_moe.py").write_text("raise SystemExit")
    assert "modeling_generic_moe.py" in refused(clean_hub, moe)
    with pytest.raises(LazyMoEError, match="isn't LazyMoE's own"):
        load(moe)


@pytest.mark.parametrize("mixture", [None, 3, {}, {"feed_forward": 1}, {"feed_forward": None}])
def test_a_generic_config_that_says_nothing_usable_is_refused(clean_hub: Hub, moe: Path, mixture: object) -> None:
    configure(moe, model_type="generic_moe", mixture=mixture)
    assert "which LazyMoE doesn't make" in refused(clean_hub, moe)
