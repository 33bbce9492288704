"""The model card: what it says, that nothing from outside can break it, and that its code runs."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from email.message import Message
from importlib import metadata
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
import yaml
from generic_models import FAMILIES
from hub_server import Hub
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from small_models import KINDS, SHAPE, Make, recipe
from transformers import AutoModelForCausalLM

import lazymoe
from lazymoe import LazyMoEError, Recipe, merge
from lazymoe.architectures.records import Host
from lazymoe.architectures.registry import HOSTS
from lazymoe.cards.card import card as render
from lazymoe.cards.card import find_license
from lazymoe.cards.naming import without_places
from lazymoe.data import ready_made
from lazymoe.demonstration.models import domains
from lazymoe.demonstration.story import demo_recipe
from lazymoe.output.folder import open_finished
from lazymoe.publishing import publish
from lazymoe.quantizing.description import ARCHITECTURES
from lazymoe.recipe.yaml_text import TURNS
from lazymoe.reporting.report import Report

CARDS = Path(__file__).parent / "snapshots"
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table")
HOSTILE = [
    "---\nlicense: mit\n---",
    "\n---\n",
    "```\n# out\n```",
    "````python\nimport os\n````",
    "~~~\nout\n~~~",
    "`code`",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</td></tr></table><h1>out</h1>",
    "<!-- out",
    "--> out",
    "a | b | c",
    "\\| out",
    "[click](http://evil.example)",
    "![image](http://evil.example/x.png)",
    "[text][reference]\n\n[reference]: http://evil.example",
    "<http://evil.example>",
    "**bold** _slanted_ ~~struck~~",
    "# heading\n## another",
    "1. list\n2. list",
    "> quoted",
    "| a | b |\n|---|---|\n| c | d |",
    "{{ 7 * 7 }}",
    "{% for x in y %}{% endfor %}",
    "{# note #}",
    "&lt;b&gt; &amp; &#60;",
    "'\"'''\"\"\"",
    "\\",
    "a\tb\r\nc",
    "key: value\n- item: *alias &anchor !tag",
    "\u202eright to left\u2066",
    "$$x^2$$ @someone www.evil.example",
]
REPORT = Report(
    names=[kind.name for kind in domains()],
    held_out=True,
    losses={
        "base": [3.0, 3.0, 3.0, 3.0],
        **{kind.name: [2.0 if i == j else 3.5 for j in range(4)] for i, kind in enumerate(domains())},
        "average": [2.8, 2.8, 2.8, 2.8],
        "mixture": [2.25, 2.5, 2.0, 2.75],
    },
    shares=[[[0.4 if d == e else 0.2 for e in range(4)] for d in range(4)] for _ in range(2)],
    accuracy=[[0.75, 0.5, 1.0, 0.75]] * 2,
    entropy=[0.5, 0.5],
    active=[10, 20, 30, 40],
    top_k=2,
)


@pytest.fixture(scope="module")
def mixture(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's mixture, with a report of given figures."""
    out = tmp_path_factory.mktemp("card") / "my-moe"
    merge(demo_recipe(demo_models, domains(), "fit"), out)
    REPORT.save(out)
    return out


KINDS_OF = {  # what stands in for a model of such a name
    "phi-2": KINDS["phi"], "Qwen2.5": KINDS["qwen2"], "3.5-4B": FAMILIES["Qwen 3.5"], "Qwen3": KINDS["qwen3"],
    "gemma": FAMILIES["Gemma 3"],
}  # fmt: skip


@pytest.fixture(scope="module")
def published_models(hub: Hub, demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every model that the ready-made recipes name, on the Hub with a licence: the demo's base model, or one of
    another kind with its sizes and tokenizer. Adapters change the MLP."""
    licenses = {"beowolx": "mit", "SanjiWatsuki": "cc-by-nc-4.0"}
    base = AutoModelForCausalLM.from_pretrained(demo_models / "base")
    sizes = {key: getattr(base.config, key) for key in (*SHAPE, "initializer_range") if hasattr(base.config, key)}

    def stand_in(name: str, adapter: bool) -> Path:
        folder = tmp_path_factory.mktemp("published")
        kind = next((kind for part, kind in KINDS_OF.items() if part in name), None)
        if adapter:
            lora = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["gate_proj", "up_proj", "down_proj"])
            peft.get_peft_model(copy.deepcopy(base), lora).save_pretrained(folder)
            return folder
        shutil.copytree(demo_models / "base", folder, dirs_exist_ok=True)
        if kind:
            config = getattr(transformers, f"{kind[0]}Config")(**{**sizes, **kind[1]})
            with torch.random.fork_rng():
                torch.manual_seed(0)
                AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        return folder

    recipes = [Recipe.from_file(path) for path in ready_made().values()]
    references = [reference for given in recipes for _, reference in given.models]
    adapters = {reference.adapter for reference in references if reference.adapter}
    for name in {reference.model: None for reference in references} | dict.fromkeys(sorted(adapters)):
        folder = stand_in(name, adapter=name in adapters)
        license = licenses.get(name.split("/")[0], "apache-2.0")
        (folder / "README.md").write_text(f"---\nlicense: {license}\nlanguage: [en, de]\n---\n# {name}\n")
        hub.add(name, folder)


def settled(card: str) -> str:
    """A card without what differs from machine to machine."""
    card = re.sub(r"@[0-9a-f]{40}", "@COMMIT", card)
    card = re.sub(r"(?m)^(Made with LazyMoE) .*", r"\1 VERSION, torch VERSION, transformers VERSION.", card)
    return re.sub(r"/\S*/demo-[0-9a-f]+/", "/cache/demo/", card)


def compare(card: str, name: str) -> None:
    """With the card that is kept; delete that one to keep this one in its place."""
    file = CARDS / f"{name}.md"
    if not file.exists():
        file.write_text(settled(card), encoding="utf-8")
        pytest.fail(f"{file} is new: read it, and run the test again")
    assert settled(card) == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ready_made())
def test_cards_of_the_ready_made_recipes(name: str, published_models: None, tmp_path: Path) -> None:
    merge(Recipe.from_file(ready_made()[name]), tmp_path / name)
    (tmp_path / name / "report.json").unlink(missing_ok=True)  # its shares differ from processor to processor
    compare(render(tmp_path / name, f"you/{name}"), name)


def test_card_of_the_demo(mixture: Path) -> None:
    compare(render(mixture, "you/my-moe"), "demo")


def test_the_front_matter_is_valid_and_says_what_was_given(published_models: None, hub: Hub, tmp_path: Path) -> None:
    recipe = Recipe.from_file(ready_made()["beyonder-4x7b-v3"])
    merge(recipe, tmp_path / "moe")
    (tmp_path / "README.md").write_text(render(tmp_path / "moe", "you/moe"), encoding="utf-8")
    card = ModelCard.load(tmp_path / "README.md")
    card.validate()
    models = list(dict.fromkeys(str(reference) for _, reference in recipe.models))
    assert card.data.to_dict() == {
        "language": ["de", "en"],
        "license": "cc-by-nc-4.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["moe", "frankenmoe", "merge", "mixtral", "lazymoe"],
        "base_model": models,
        "base_model_relation": "merge",
    }


def test_a_free_licence_gets_a_name_that_the_hub_takes(mixture: Path) -> None:
    card = ModelCard(render(mixture, license="My own: terms (2026)"))
    assert card.data.license == "other" and card.data.to_dict()["license_name"] == "my-own-terms-2026"
    assert "My own: terms \\(2026\\)" in card.text
    assert [str(p) for p in find_license(mixture).problems]  # the demo's models state none


Shape = tuple[list[str], list[str], dict[str, Any]]


def shape(card: str) -> Shape:
    """What a card is made of: the kinds of its Markdown pieces, the contents of its code blocks, its front matter."""
    _, front, body = card.split("---\n", 2)
    tokens = MARKDOWN.parse(body)
    inline = [child for token in tokens for child in token.children or []]
    kinds = [t.type for t in tokens] + [t.type for t in inline if t.type not in ("text", "softbreak")]
    assert all(t.content == "<br>" for t in inline if t.type == "html_inline")
    return kinds, [t.content for t in tokens if t.type == "fence"], yaml.safe_load(front)


def card_of(word: str, mixture: Path, out: Path) -> tuple[str, Recipe]:
    """The card of a mixture in which a word is an expert's name, its prompt and the licence; and its recipe."""
    shutil.copytree(mixture, out)
    recipe = Recipe.from_file(out / "recipe.yaml")
    experts = [recipe.experts[0].model_copy(update={"source_model": word, "positive_prompts": [word]})]
    recipe = recipe.model_copy(update={"experts": [*experts, *recipe.experts[1:]]})
    (out / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    names = [" ".join(word.split()), *REPORT.names[1:]]
    losses = {names[0] if name == REPORT.names[0] else name: row for name, row in REPORT.losses.items()}
    replace(REPORT, names=names, losses=losses).save(out)
    return render(out, "you/my-moe", license=word), recipe


@pytest.fixture(scope="module")
def harmless(mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> Shape:
    return shape(card_of("harmless", mixture, tmp_path_factory.mktemp("harmless") / "moe")[0])


@pytest.mark.parametrize(
    "hostile", [pytest.param(word, marks=[pytest.mark.slow] * bool(i % 3)) for i, word in enumerate(HOSTILE)]
)
def test_nothing_from_outside_breaks_the_card(mixture: Path, harmless: Shape, tmp_path: Path, hostile: str) -> None:
    """A hostile name, prompt and licence: the same pieces as with a harmless one, and the words are all there."""
    shown, recipe = card_of(hostile, mixture, tmp_path / "moe")
    kinds, blocks, front = shape(shown)
    harmless_kinds, _, harmless_front = harmless
    assert kinds == harmless_kinds
    assert any(Recipe.from_yaml(block) == without_places(recipe) for block in blocks if block.startswith("base_model"))
    assert front.keys() == harmless_front.keys()
    assert re.fullmatch(r"[a-z0-9.-]+", front["license_name"]) and front["license"] == "other"
    cells = [t.content for t in MARKDOWN.parse(shown.split("---\n", 2)[2]) if t.type == "inline"]
    texts = {"".join(c.content for c in MARKDOWN.parseInline(cell)[0].children or []) for cell in cells}
    assert TURNS.sub("", " ".join(hostile.split())) in texts


def python_blocks(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def test_the_code_in_the_card_runs(mixture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every Python block, as it is written."""
    blocks = python_blocks(render(mixture))
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "card", "exec"), {})
    assert "What is a mixture of experts?" in capsys.readouterr().out


@pytest.mark.parametrize("chats", [True, False])
def test_the_code_runs_for_a_host_with_code_of_its_own_and_any_tokenizer(
    chats: bool, demo_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No prompt asks whether to trust it; types of tokens, which many tokenizers add, don't reach the model."""
    made = merge(demo_recipe(demo_models, domains(), "random").with_fields(architecture="deepseek"), tmp_path / "moe")
    kept = json.loads((made.folder / "tokenizer_config.json").read_text())
    kept["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    if not chats:
        kept.pop("chat_template", None)
        (made.folder / "chat_template.jinja").unlink(missing_ok=True)
    (made.folder / "tokenizer_config.json").write_text(json.dumps(kept))
    card = render(made.folder)
    assert ("apply_chat_template" in card) is chats
    for block in python_blocks(card):
        exec(compile(block, "card", "exec"), {})
    assert "mixture of experts" in capsys.readouterr().out


@pytest.fixture
def published(hub: Hub, published_models: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A mixture on the Hub, and its card there."""
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    made = merge(Recipe.from_file(ready_made()["clown-car-4x7b"]), tmp_path / "made")
    publish(made.folder, "writer/clowns")
    return made.folder, hub.read("writer/clowns", "README.md").decode()


def type_out(lines: str, folder: Path) -> None:
    """Type lines of a card's shell, in a new folder."""
    (tools := folder.parent / "bin").mkdir()
    (tools / "lazymoe").write_text(f'#!/bin/sh\nexec {sys.executable} -m lazymoe "$@"\n')
    (tools / "lazymoe").chmod(0o755)
    path = os.pathsep.join((str(tools), str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(Path(lazymoe.__file__).parents[1])}
    folder.mkdir()
    done = subprocess.run(["sh", "-ec", lines], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_from_a_card_on_the_hub_the_same_mixture_is_made_again_as_typed(
    published: tuple[Path, str], tmp_path: Path
) -> None:
    folder, card = published
    [typed] = [block for block in re.findall(r"```sh\n(.*?)```", card, re.DOTALL) if "lazymoe merge" in block]
    assert typed == "hf download writer/clowns recipe.yaml --local-dir .\nlazymoe merge recipe.yaml my-moe\n"
    type_out(typed, tmp_path / "empty")
    [weights] = folder.glob("*.safetensors")
    assert (tmp_path / "empty" / "my-moe" / weights.name).read_bytes() == weights.read_bytes()


def test_a_gguf_file_is_made_of_a_mixture_on_the_hub_as_typed(mixture: Path, hub: Hub, tmp_path: Path) -> None:
    publish(mixture, "writer/demo", token="hf_writer")
    card = hub.read("writer/demo", "README.md").decode()
    [typed] = [block for block in re.findall(r"```sh\n(.*?)```", card, re.DOTALL) if "lazymoe gguf" in block]
    *made, run = typed.splitlines()
    type_out("\n".join(made), tmp_path / "empty")
    file = tmp_path / "empty" / run.split()[-1]
    assert run.startswith("llama-cli -m ") and file.read_bytes()[:4] == b"GGUF"


def test_a_published_mixture_is_loaded_in_4_bit_as_its_card_says(published: tuple[Path, str]) -> None:
    [block] = [block for block in python_blocks(published[1]) if "import lazymoe" in block]
    known: dict[str, Any] = {}
    exec(compile(block, "card", "exec"), known)
    assert known["model"].generate(torch.tensor([[1, 2]]), max_new_tokens=2).shape[0] == 1
    assert any(p.dtype == torch.uint8 for p in known["model"].parameters())


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)
def test_other_programs_are_named_only_where_the_page_of_hosts_names_them(host: Host, mixture: Path) -> None:
    page = (Path(lazymoe.__file__).parents[1] / "docs" / "hosts.md").read_text(encoding="utf-8")
    right = page.partition("**llama.cpp** gives what")[2].partition("Of `qwen2_moe`")[0]
    assert (host.name in ARCHITECTURES) is (f"`{host.name}`" in right)
    served = page.partition("**vLLM** has")[2].partition(" by name")[0]
    assert host.vllm is (f"`{host.name}`" in served)


def test_other_programs_stand_in_the_card_of_their_hosts(mixture: Path, make: Make, tmp_path: Path) -> None:
    card = render(mixture, "you/my-moe")
    assert "vllm serve you/my-moe\n" in card and "lazymoe gguf my-moe Q4_K_M\n" in card and "ollama create" in card
    base = make("base")
    merge(recipe(base, base, base, architecture="deepseek"), tmp_path / "moe")
    card = render(tmp_path / "moe", "you/my-moe")
    assert not any(word in card for word in ("vllm", "llama", "ollama", "gguf"))


def test_no_path_of_this_machine_is_in_a_card_for_the_hub(mixture: Path) -> None:
    assert str(mixture.parent) not in render(mixture, "you/my-moe") and "/demo-" not in render(mixture, "you/my-moe")


def test_a_name_can_do_nothing_to_a_shell(mixture: Path) -> None:
    card = render(mixture, "you/x; rm -rf ~")
    assert "hf download 'you/x; rm -rf ~' recipe.yaml" in card and "vllm serve 'you/x; rm -rf ~'\n" in card


def test_the_card_leads_to_lazymoe_only_where_its_address_is_known(
    mixture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def installed(*urls: str) -> str:
        package = Message()
        for url in urls:
            package["Project-URL"] = url
        monkeypatch.setattr(metadata, "metadata", lambda name: package)
        return render(mixture, "you/my-moe")

    for card in (installed(), installed("Issues, https://example.org/issues")):
        assert "made with LazyMoE, without" in card and "badge" not in card
    card = installed("Issues, https://example.org/issues", "Repository, https://example.org/lazymoe")
    assert "[LazyMoE](https://example.org/lazymoe)" in card
    badge = "[![Made with LazyMoE](https://img.shields.io/badge/made_with-LazyMoE-0072b2)](https://example.org/lazymoe)"
    assert badge in card


def test_a_template_of_ones_own(mixture: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("# {{ title | text }} by me\n{% include 'usage.md.jinja' %}")
    card = render(mixture, "you/my-moe", template=tmp_path / "mine.jinja")
    assert card.startswith("# my-moe by me\n") and "from_pretrained(name" in card
    (tmp_path / "wrong.jinja").write_text("{{ nothing_like_this }}")
    with pytest.raises(LazyMoEError, match="can't be rendered"):
        render(mixture, template=tmp_path / "wrong.jinja")


def test_only_a_finished_mixture_has_a_card(tmp_path: Path, mixture: Path) -> None:
    with pytest.raises(LazyMoEError, match="isn't a finished mixture"):
        open_finished(tmp_path)
    broken = shutil.copytree(mixture, tmp_path / "broken")
    (broken / "lazymoe.json").write_text("{")
    with pytest.raises(LazyMoEError, match="can't be read"):
        render(broken)


def test_the_card_says_what_was_computed_of_the_experts(demo_models: Path, tmp_path: Path, mixture: Path) -> None:
    kinds = domains()[:2]
    experts = [{"source_model": str(demo_models / k.name), "positive_prompts": list(k.prompts)} for k in kinds]
    fields = {"base_model": str(demo_models / "base"), "gate_mode": "random", "expert_weights": "corrected"}
    merge(Recipe.model_validate({**fields, "experts": experts}), tmp_path / "all", device="cpu")
    assert "Of each expert, a third of these layers' weights, the down projections, were" in render(tmp_path / "all")
    experts[1]["positive_prompts"] = []
    merge(Recipe.model_validate({**fields, "experts": experts}), tmp_path / "one", device="cpu")
    assert "Of each expert that has prompts, a third of these" in render(tmp_path / "one")
    assert "down projections" not in render(mixture)
