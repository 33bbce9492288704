"""A table of attacks: what a stranger's files, names and numbers might do here, and that they don't.

A row arranges the attack, names what LazyMoE is asked to do with it, and what LazyMoE says then: words of its one line,
or None where the attack is taken for what it is and the work is done. Where there is a payload, ``works`` shows that it
goes off as soon as somebody lets it. Whatever the row: no payload goes off, the Hub is asked for nothing that wasn't
named, no private file or token reaches a message, the mixture or the Hub, a terminal gets text alone, and it takes
seconds.
"""

from __future__ import annotations

import html
import json
import os
import pickle
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import hub_server
import jinja2
import pytest
import torch
import transformers
import yaml
from attack_scene import (
    BIDI,
    CLEAR,
    DOWN,
    KEY,
    MLP,
    PROCESSOR,
    REPO,
    SECONDS,
    SLOW,
    STRANGE,
    TITLE,
    TOKEN,
    TOKENIZER,
    TOLD,
    Act,
    Arrange,
    Payload,
    Row,
    Scene,
    alone,
    carded,
    chatted,
    checked,
    loaded,
    merged,
    merged_and_used,
    published,
    typed,
)
from hub_server import Hub, Repo, append
from limits import limited
from safetensors.torch import load_file, save_file
from small_models import configure, make_model, recipe, rewrite
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer, modeling_utils
from transformers.quantizers import auto as quantizers

import lazymoe.hub.client
from lazymoe import LazyMoEError, card, check, merge
from lazymoe.notebook.routing import show
from lazymoe.notebook.ui import Messages
from lazymoe.output.folder import trusted
from lazymoe.recipe.schema import Recipe


def python_beside(s: Scene, *names: str, where: str = "base") -> None:
    for name in names:
        s.write(f"{where}/{name}", s.code)


def auto_map(s: Scene, prefix: str = "") -> None:
    kinds = {"AutoConfig": "EvilConfig", "AutoModel": "EvilModel", "AutoModelForCausalLM": "EvilModel"}
    python_beside(s, "evil.py")
    configure(s.base, auto_map={kind: f"{prefix}evil.{name}" for kind, name in kinds.items()})
    if prefix:
        s.hub.add(STRANGE, shutil.copytree(s.base, s.folder / "evil"))
        (s.base / "evil.py").unlink()


def tokenizer_of(s: Scene, **fields: Any) -> None:
    python_beside(s, "evil.py")
    s.edit("base/tokenizer_config.json", **fields)


def kernel(s: Scene, name: str, key: str = "attn_implementation") -> None:
    """A kernel of the Hub's in a config.json: transformers would download and run it."""
    s.edit(name, **{key: "kernels-community/gotcha"})
    s.patch.setattr(modeling_utils, "lazy_import_flash_attention", lambda *_, **__: s.mark.touch())


def quantizer(s: Scene, name: str) -> None:
    """A quantizer in a config.json: transformers would import its package."""

    class Config(transformers.QuantoConfig):
        def __init__(self, **_: Any) -> None:
            s.mark.touch()
            super().__init__()

    s.patch.setitem(quantizers.AUTO_QUANTIZATION_CONFIG_MAPPING, "gotcha", Config)
    s.patch.setitem(quantizers.AUTO_QUANTIZER_MAPPING, "gotcha", next(iter(quantizers.AUTO_QUANTIZER_MAPPING.values())))
    s.edit(name, quantization_config={"quant_method": "gotcha", "modules_to_not_convert": [SLOW]})


def lora_in_the_mixture(s: Scene) -> None:
    shutil.copytree(s.adapter, s.moe, dirs_exist_ok=True)
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file({f"{name}.lora_A.weight": torch.ones(2, 32), f"{name}.lora_B.weight": torch.ones(32, 2)},
              s.moe / "adapter_model.safetensors")  # fmt: skip
    s.edit("moe/adapter_config.json", base_model_name_or_path=STRANGE, target_modules=["q_proj"], task_type="CAUSAL_LM")


def any_model(folder: Path, trust: bool = True) -> Any:
    """Load as somebody who lets everything happen."""
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust)


def no_code(s: Scene) -> bool:
    """Whether what was made has no code but LazyMoE's own, and leads to none."""
    config = json.loads((s.out / "config.json").read_text()) if (s.out / "config.json").exists() else {}
    own = {"modeling_deepseek.py"} if config.get("model_type") == "deepseek" else set()
    read = [p.read_text() for p in s.out.glob("*.json") if p.name != "generation_config.json"]  # which leads to no code
    led = [text for text in read if "evil." in text or STRANGE in text]
    return not led and {p.name for p in s.out.rglob("*") if p.suffix in (".py", ".bin", ".sh")} == own


def shell(s: Scene) -> str:
    """A Jinja expression that leaves its sandbox."""
    return "{{ cycler.__init__.__globals__.os.system('touch " + str(s.mark) + "') }}"


def tag(s: Scene) -> str:
    return f"!!python/object/apply:os.system ['touch {s.mark}']"


def pickled(s: Scene, name: str) -> None:
    (s.folder / name).write_bytes(pickle.dumps(Payload(s.mark)))


def only_pickle(s: Scene) -> None:
    (s.base / "model.safetensors").unlink()
    torch.save({"x": Payload(s.mark)}, s.base / "pytorch_model.bin")


def unpickled(name: str) -> Arrange:
    return lambda s: torch.load(s.folder / name, weights_only=False)


CODE = {
    "config.json's auto_map names a file beside it": Row(
        auto_map, merged_and_used, holds=no_code, works=lambda s: any_model(s.base)
    ),
    "config.json's auto_map names a file of another repository": Row(
        lambda s: auto_map(s, f"{STRANGE}--"), merged_and_used, holds=no_code, works=lambda s: any_model(s.base)
    ),
    "a tokenizer brings a class of its own": Row(
        lambda s: tokenizer_of(s, tokenizer_class="EvilTokenizer", auto_map=TOKENIZER),
        merged, holds=no_code, works=lambda s: AutoTokenizer.from_pretrained(s.base, trust_remote_code=True),
    ),
    "a tokenizer brings a class of its own, and the routers need it": Row(
        lambda s: (tokenizer_of(s, tokenizer_class="EvilTokenizer", auto_map=TOKENIZER), auto_map(s),
                   s.fields.update(gate_mode="hidden")),
        alone("merge", "RECIPE", "OUT"), "can't be loaded", holds=no_code,
        works=lambda s: AutoTokenizer.from_pretrained(s.base, trust_remote_code=True),
    ),
    "a tokenizer's class is a function of Python's": Row(
        lambda s: tokenizer_of(s, tokenizer_class="os.system", slow_tokenizer_class="subprocess.Popen"),
        merged_and_used, holds=no_code,
    ),
    "generate() is replaced beside the base model": Row(
        lambda s: (python_beside(s, "custom_generate/generate.py"), s.fields.update(architecture="deepseek"),
                   s.edit("base/generation_config.json", custom_generate=STRANGE)),
        merged_and_used, holds=no_code, works=lambda s: any_model(s.base),
    ),
    "generate() is replaced in a mixture that may run LazyMoE's own code": Row(
        lambda s: (shutil.rmtree(s.moe), shutil.copytree(s.folder / "deepseek", s.moe),
                   python_beside(s, "custom_generate/generate.py", where="moe")),
        loaded, works=lambda s: any_model(s.moe),
    ),
    "LazyMoE's own modelling file is changed in a mixture": Row(
        lambda s: (shutil.rmtree(s.moe), shutil.copytree(s.folder / "deepseek", s.moe),
                   (s.moe / "modeling_deepseek.py").write_text((s.moe / "modeling_deepseek.py").read_text() + s.code)),
        published, "isn't LazyMoE's own", works=lambda s: any_model(s.moe),
    ),
    "LazyMoE's own modelling file is changed in a mixture that is loaded": Row(
        lambda s: (shutil.rmtree(s.moe), shutil.copytree(s.folder / "deepseek", s.moe),
                   (s.moe / "modeling_deepseek.py").write_text((s.moe / "modeling_deepseek.py").read_text() + s.code)),
        loaded, "", works=lambda s: any_model(s.moe),
    ),
    "a base model has a file by the name of LazyMoE's own": Row(
        lambda s: (python_beside(s, "modeling_deepseek.py"), s.fields.update(architecture="deepseek")),
        merged_and_used, holds=lambda s: no_code(s) and trusted(s.out),
        works=lambda s: exec((s.base / "modeling_deepseek.py").read_text(), {}),
    ),
    "an adapter lies in a mixture and names another base model": Row(
        lora_in_the_mixture, loaded,
    ),
    "processors bring code": Row(
        lambda s: (python_beside(s, "evil.py"),
                   *(s.edit(f"base/{name}", processor_class="EvilProcessor", auto_map=PROCESSOR)
                     for name in ("processor_config.json", "preprocessor_config.json"))),
        merged_and_used, holds=lambda s: no_code(s) and not [*s.out.glob("*processor*")],
        works=lambda s: AutoProcessor.from_pretrained(s.base, trust_remote_code=True),
    ),
    "Python lies among the chat templates and beside the weights": Row(
        lambda s: python_beside(s, "additional_chat_templates/run.py", "modeling_mixtral.py", "sitecustomize.py",
                                "tokenization_llama.py", "setup.py"),
        merged_and_used, holds=no_code, works=lambda s: exec((s.base / "modeling_mixtral.py").read_text(), {}),
    ),
    "attention is a kernel of the Hub's": Row(
        lambda s: kernel(s, "base/config.json"), merged_and_used, works=lambda s: any_model(s.base, trust=False)
    ),
    "a mixture's attention is a kernel of the Hub's": Row(
        lambda s: kernel(s, "moe/config.json"), loaded, works=lambda s: any_model(s.moe, trust=False)
    ),
    "a quantizer is named though nothing is quantized": Row(
        lambda s: quantizer(s, "base/config.json"), merged_and_used,
        works=lambda s: any_model(s.base, trust=False),
    ),
    "a mixture names a quantizer": Row(
        lambda s: quantizer(s, "moe/config.json"), loaded, works=lambda s: any_model(s.moe, trust=False)
    ),
    "the dtype is an expression": Row(
        lambda s: s.edit("base/config.json", torch_dtype=f"__import__('os').system('touch {s.mark}')", dtype=CLEAR),
        merged, holds=lambda s: json.loads((s.out / "config.json").read_text())["dtype"] == "bfloat16",
        works=lambda s: eval(json.loads((s.base / "config.json").read_text())["torch_dtype"]),
    ),
    "config.json says that it is another repository": Row(
        lambda s: (s.edit("base/config.json", _name_or_path=STRANGE, name_or_path=STRANGE, tokenizer_class=None),
                   s.edit("base/tokenizer_config.json", name_or_path=STRANGE, tokenizer_file=f"{s.key}")),
        merged_and_used,
    ),
    "an adapter says that its base model is another repository": Row(
        lambda s: s.with_adapter(base_model_name_or_path=STRANGE, revision="main",
                                 auto_mapping={"base_model_class": "EvilModel", "parent_library": "evil"}),
        merged, holds=lambda s: STRANGE not in (s.out / "recipe.yaml").read_text(),
    ),
    "weights are a pickle": Row(
        only_pickle, checked, "a pickle can run code", works=unpickled("base/pytorch_model.bin")
    ),
    "weights are a pickle, and pickles are allowed": Row(
        lambda s: (only_pickle(s), s.options.update(allow_pickle=True)), merged, "nothing but tensors is loaded",
        works=unpickled("base/pytorch_model.bin"),
    ),
    "training arguments lie beside the weights": Row(
        lambda s: pickled(s, "base/training_args.bin"), merged_and_used, holds=no_code,
        works=unpickled("base/training_args.bin"),
    ),
    "a safetensors file is a pickle": Row(
        lambda s: pickled(s, "base/model.safetensors"), checked, "is this a safetensors file|cut short",
        works=lambda s: pickle.loads((s.base / "model.safetensors").read_bytes()),
    ),
    "an adapter's weights are a pickle": Row(
        lambda s: (s.with_adapter(), (s.adapter / "adapter_model.safetensors").unlink(),
                   pickled(s, "adapter/adapter_model.bin")),
        checked, "has no adapter_model.safetensors", works=unpickled("adapter/adapter_model.bin"),
    ),
    "a chat template leaves its sandbox": Row(
        lambda s: s.edit("base/tokenizer_config.json", chat_template=shell(s)), chatted, "",
        works=lambda s: jinja2.Template(shell(s)).render(),
    ),
    "a chat template climbs to Python's classes": Row(
        lambda s: s.write("base/chat_template.jinja", "{{ ''.__class__.__mro__[1].__subclasses__() }}"), chatted, "",
        works=lambda s: "Popen" in jinja2.Template("{{ ''.__class__.__mro__[1].__subclasses__() }}").render()
        and s.mark.touch(),
    ),
    "a chat template never ends": Row(
        lambda s: s.write("base/chat_template.jinja", "{% for i in range(10**12) %}{{ i }}{% endfor %}"), chatted, ""
    ),
    "a card's template leaves its sandbox": Row(
        lambda s: s.options.update(template=s.write("own.jinja", shell(s))), carded, "can't be rendered",
        works=lambda s: jinja2.Template(shell(s)).render(),
    ),
    "a card's template includes a private file": Row(
        lambda s: s.options.update(template=s.write("own.jinja", f"{{% include '{s.key}' %}}")),
        carded, "can't be rendered",
    ),
    "a card's template climbs out of its folder": Row(
        lambda s: s.options.update(template=s.write("cards/own.jinja", "{% include '../ssh/id_rsa' %}")),
        carded, "can't be rendered",
    ),
    "a recipe's YAML makes objects": Row(
        lambda s: setattr(s, "text", f"base_model: {tag(s)}\nexperts: [{{source_model: a/b}}]"),
        typed("check", "RECIPE"), "isn't valid YAML", works=lambda s: yaml.unsafe_load(s.text or ""),
    ),
    "a model card's YAML makes objects": Row(
        lambda s: s.write("base/README.md", f"---\nlicense: {tag(s)}\nlanguage: [{tag(s)}]\n---\n"), merged,
        works=lambda s: yaml.unsafe_load((s.base / "README.md").read_text().split("---")[1]),
    ),
    "YAML of texts to measure on makes objects": Row(
        lambda s: s.write("texts.yaml", f"- [{tag(s)}]"),
        lambda s: typed("report", "MOE", "--texts", str(s.folder / "texts.yaml"))(s), "isn't valid YAML",
        works=lambda s: yaml.unsafe_load((s.folder / "texts.yaml").read_text()),
    ),
}  # fmt: skip


# links and paths


def index(s: Scene, file: str) -> None:
    (s.base / "model.safetensors").rename(s.folder / "x.safetensors")
    tensors = load_file(s.folder / "x.safetensors")
    s.edit("base/model.safetensors.index.json", weight_map=dict.fromkeys(tensors, file))


def dots(s: Scene) -> None:
    """A repository whose files have names that climb."""
    s.hub.add("acme/dots", s.base)
    names = ("../../gotcha.json", "additional_chat_templates/../../../../gotcha.jinja", "../gotcha.index.json")
    repo: Repo = s.hub.repos["acme/dots"]
    append(repo, repo.commits[-1].files | {name: s.hub.keep(b"{}") for name in names})
    s.fields.update(base_model="acme/dots")


LINKS = {
    "the chat template is a link to a private key": Row(
        lambda s: s.link("base/chat_template.jinja", s.key), merged, "link to something outside its folder"
    ),
    "the generation config is a link to a private file": Row(
        lambda s: (s.write("ssh/secret.json", json.dumps({"x": KEY})),
                   s.link("base/generation_config.json", s.folder / "ssh" / "secret.json")),
        merged, "link to something outside its folder",
    ),
    "the folder of chat templates is a link to another": Row(
        lambda s: (s.write("ssh/id.jinja", KEY), s.link("base/additional_chat_templates", s.key.parent)),
        merged, "link to something outside its folder",
    ),
    "a link leads on through another link": Row(
        lambda s: (s.link("base/inner", s.key), s.link("base/chat_template.jinja", Path("inner"))),
        merged, "link to something outside its folder",
    ),
    "a link only seems to lead into the Hub's cache": Row(
        lambda s: ((s.base / "models--a--b").mkdir(), s.link("base/models--a--b/blobs", s.key.parent),
                   s.link("base/chat_template.jinja", s.base / "models--a--b/blobs/id_rsa")),
        merged, "link to something outside its folder",
    ),
    "a mixture's chat template is a link to a private key": Row(
        lambda s: s.link("moe/chat_template.jinja", s.key), published, "is a link"
    ),
    "a mixture's folder of chat templates is a link to another": Row(
        lambda s: (s.write("ssh/id.jinja", KEY), s.link("moe/additional_chat_templates", s.key.parent)),
        published, "is a link",
    ),
    "config.json is a link to a private key": Row(
        lambda s: s.link("base/config.json", s.key), checked, "can't be read as JSON"
    ),
    "the weights are a link to a private key": Row(
        lambda s: s.link("base/model.safetensors", s.key), checked, "is this a safetensors file"
    ),
    "an adapter's weights are a link to a private key": Row(
        lambda s: (s.with_adapter(), s.link("adapter/adapter_model.safetensors", s.key)), checked, "can't be read"
    ),
    "an adapter's config is a link to a private key": Row(
        lambda s: (s.with_adapter(), s.link("adapter/adapter_config.json", s.key)), checked, "can't be read"
    ),
    "an index climbs out of its folder": Row(
        lambda s: index(s, "../x.safetensors"), checked, "no usable weight_map"
    ),
    "an index names an absolute path": Row(
        lambda s: index(s, f"{s.folder}/x.safetensors"), checked, "no usable weight_map"
    ),
    "config.json names weights elsewhere": Row(
        lambda s: (index(s, "x.safetensors"), s.edit("base/config.json", transformers_weights="../x.safetensors")),
        checked, "no such safetensors file",
    ),
    "a mixture's index climbs out of its folder": Row(
        lambda s: (s.write("x.safetensors", KEY),
                   s.edit("moe/model.safetensors.index.json", weight_map={"lm_head.weight": "../x.safetensors"})),
        published, "can't be a file of its weights",
    ),
    "names of a repository's files climb": Row(
        dots, checked, "acme/dots", holds=lambda s: not [*Path(os.environ["HF_HOME"]).rglob("gotcha*")], hub=True
    ),
}  # fmt: skip


# patterns, names and texts


def slow_lora(pattern: str) -> Row:
    return Row(lambda s: s.with_adapter(alpha_pattern={pattern: 2}), checked, "too intricate to be run")


def tensor_name(name: str) -> Arrange:
    return lambda s: rewrite(s.base, lambda t: t.update({name: torch.ones(1)}))


def measured_names(s: Scene) -> None:
    """Experts in folders whose names a terminal would obey."""
    for i, name in enumerate((f"one{CLEAR}", f"two{TITLE}{BIDI}")):
        (s.folder / name.replace("/", "")).symlink_to(s.base)
        s.fields.setdefault("experts", []).append(
            {"source_model": str(s.folder / name), "positive_prompts": [f"w {i}"]}
        )
    merge(s.recipe, s.out)


def front_matter(s: Scene) -> bool:
    """Whether the card's front matter is LazyMoE's alone."""
    fields = yaml.safe_load(card(s.moe, REPO, **s.options).split("---\n")[1])
    return fields["tags"] == ["moe", "frankenmoe", "merge", "mixtral", "lazymoe"] and "inference" not in fields


def card_of(s: Scene, **fields: Any) -> None:
    """Change what a mixture says of its first expert."""
    record = json.loads((s.moe / "lazymoe.json").read_text())
    record["sources"][1] |= {key: fields.pop(key) for key in ("license", "languages") if key in fields}
    s.edit("moe/lazymoe.json", **record)
    given = yaml.safe_load((s.moe / "recipe.yaml").read_text())
    given["experts"][0] |= fields
    s.write("moe/recipe.yaml", yaml.safe_dump(given))


def page(s: Scene) -> str:
    """What the notebook makes of names and messages, as HTML."""
    name = s.options["name"]
    told = Messages()
    told.show("error", name)
    return show([name, "b"], [name, "x"], [[0, 1]]) + str(told.value)


def no_markup(s: Scene) -> str:
    shown = page(s)
    assert not re.search(r"<(script|img|iframe|a)\b", shown) and html.escape(s.options["name"]) in shown
    return ""


def hub_says(s: Scene) -> None:
    s.patch.setitem(hub_server.ERRORS, "GatedRepo", (403, f"gotcha hf {TOKEN} {CLEAR.strip(chr(27))}"))
    s.hub.add("acme/said", s.base, gated=True)
    s.fields.update(base_model="acme/said")


TEXTS = {
    "an adapter's pattern repeats a repetition": slow_lora("(.*)*down_proj"),
    "an adapter's pattern is optional many times": slow_lora(".?" * 60 + "x"),
    "an adapter's pattern has alternatives many times": slow_lora("(|.)" * 40 + "z"),
    "an adapter's pattern looks ahead and back": slow_lora(r"(?=(.*))(?=(.*))(?=(.*))\1\2\3x"),
    "an adapter's other patterns would take for ever": Row(
        lambda s: s.with_adapter(target_modules=SLOW, rank_pattern={SLOW: 3}, exclude_modules=SLOW, layers_pattern=SLOW,
                                 modules_to_save=[SLOW], layers_to_transform=[10**9]),
        merged,
    ),
    "a Jinja expression is a model's name, licence and prompt": Row(
        lambda s: card_of(s, source_model="{{ 7 * 191 }}", license="{{ 7 * 191 }}", positive_prompts=["{{ 7 * 191 }}"]),
        carded, holds=lambda s: "1337" not in carded(s),
    ),
    "HTML is a model's name, licence and prompt": Row(
        lambda s: card_of(s, source_model="<script>x</script>", license="<img src=x>", positive_prompts=["<a href=x>"]),
        carded, holds=lambda s: not re.search(r"<(script|img|a)\b", carded(s).split("## Make your own")[0]),
    ),
    "a licence goes on with front matter of its own": Row(
        lambda s: card_of(s, license="mit\ninference: true\ntags: [x]\n---\n"), carded, holds=front_matter
    ),
    "a licence that is given goes on with front matter": Row(
        lambda s: s.options.update(license="mit\ninference: true\ntags: [x]\n---\n"), carded, holds=front_matter
    ),
    "a language goes on with front matter": Row(
        lambda s: card_of(s, languages=["en\ninference: true", "en]\ntags: [x]"]), carded, holds=front_matter
    ),
    "a model's name goes on with front matter": Row(
        lambda s: card_of(s, source_model="a/b\ninference: true\n---\n"), carded, holds=front_matter
    ),
    "a card's words are for a terminal": Row(
        lambda s: card_of(s, source_model=f"a{CLEAR}{BIDI}", license=f"mit{TITLE}{BIDI}",
                          positive_prompts=[BIDI, CLEAR]),
        typed("card", "MOE"), holds=lambda s: "gotcha" in carded(s),
    ),
    "HTML is a name in the notebook": Row(
        lambda s: s.options.update(name="<script>x</script><img src=x onerror=y>'\"><a href=z>"), no_markup
    ),
    "a tensor's name sets the terminal's title": Row(
        tensor_name(f"model.{TITLE}"), typed("check", "RECIPE"), "no place"
    ),
    "a tensor's name clears the screen and turns the text": Row(
        tensor_name(f"{CLEAR}{BIDI}\r\n\x9b2J"), typed("merge", "RECIPE", "OUT"), "no place"
    ),
    "a tensor's name has ten million letters": Row(tensor_name("x" * 10_000_000), typed("check", "RECIPE"), "no place"),
    "config.json's words are for a terminal": Row(
        lambda s: configure(s.base, model_type=f"{TITLE}{CLEAR}{BIDI}"),
        typed("check", "RECIPE"), "no mixture of experts",
    ),
    "config.json's keys are for a terminal": Row(
        lambda s: (configure(s.base, **{TITLE: 1, "rope_parameters": {"rope_type": f"x{CLEAR}"}}),
                   s.fields.update(gate_mode="fit")),
        typed("merge", "RECIPE", "OUT", "--quiet"), "can't make a llama",
    ),
    "a tokenizer's words are for a terminal": Row(
        lambda s: (s.edit("base/tokenizer_config.json", tokenizer_class=f"Evil{CLEAR}", model_max_length=f"{TITLE}"),
                   s.fields.update(gate_mode="fit")),
        alone("merge", "RECIPE", "OUT"), "can't be loaded",
    ),
    "a recipe's fields are for a terminal": Row(
        lambda s: setattr(s, "text", json.dumps({f"base_modell{CLEAR}": TITLE, "base_model": f"a/{BIDI}", "x": CLEAR,
                          "gate_mode": f"fit{TITLE}", "experts": [{f"source_modle{CLEAR}": BIDI}]})),
        typed("check", "RECIPE"), "",
    ),
    "a model's name of ten million letters is for a terminal": Row(
        lambda s: setattr(s, "text", json.dumps({"base_model": CLEAR + "x" * 10_000_000, "gate_mode": "random",
                          "experts": [{"source_model": f"a{BIDI}"}]})),
        typed("check", "RECIPE"), "no folder",
    ),
    "the experts' names are for a terminal": Row(
        measured_names, lambda s: typed("report", str(s.out), "--routing", "--layers", "--quiet")(s) and
        typed("report", str(s.out), "--routing", "--layers")(s).replace("\r", "\n"),
    ),
    "the Hub's own words hold a token": Row(hub_says, typed("check", "RECIPE"), "is gated", hub=True),
}  # fmt: skip


# tokens


def token_in(text: str) -> Row:
    return Row(lambda s: setattr(s, "text", text.replace("TOKEN", TOKEN)), typed("check", "RECIPE"), "")


def word(*words: str) -> Row:
    return Row(lambda s: s.options, typed(*(w.replace("TOKEN", TOKEN) for w in words)), "")


FIELDS = {
    "base_model": "base_model: TOKEN\nexperts: [{source_model: a/b}]",
    "a revision": "base_model: a/b@TOKEN\nexperts: [{source_model: a/b}]",
    "a model by path and revision": "base_model: {model: {path: a/b, revision: TOKEN}}\nexperts: [{source_model: a/b}]",
    "source_model": "base_model: a/b\nexperts: [{source_model: 'https://user:TOKEN@huggingface.co/a/b'}]",
    "a prompt": "base_model: a/b\nexperts: [{source_model: a/b, positive_prompts: [use TOKEN]}]",
    "a prompt's file": "base_model: a/b\nexperts: [{source_model: a/b, negative_prompts: {file: TOKEN.txt}}]",
    "a prompt's data set": "base_model: a/b\nexperts: [{source_model: a/b, positive_prompts: {dataset: a/TOKEN}}]",
    "a prompt's field": "base_model: a/b\nexperts: [{source_model: a/b, positive_prompts: {file: x, field: TOKEN}}]",
    "gate_mode": "base_model: a/b\ngate_mode: TOKEN\nexperts: [{source_model: a/b}]",
    "dtype": "base_model: a/b\ndtype: TOKEN\nexperts: [{source_model: a/b}]",
    "architecture": "base_model: a/b\narchitecture: TOKEN\nexperts: [{source_model: a/b}]",
    "a number": "base_model: a/b\nexperts: [{source_model: a/b, noise_scale: TOKEN}]",
    "a field of another program's": "base_model: a/b\ntoken: TOKEN\nexperts: [{source_model: a/b}]",
    "a field's name": "TOKEN: a/b\nbase_model: a/b\nexperts: [{source_model: a/b}]",
    "a field's name that stands twice": "TOKEN: 1\nTOKEN: 2",
    "an alias": "base_model: *TOKEN",
    "a tag": "base_model: !TOKEN x",
}
WORDS = {
    "the command": ("TOKEN",), "the recipe": ("check", "TOKEN"), "a folder": ("card", "TOKEN"),
    "--seed": ("merge", "RECIPE", "OUT", "--seed", "TOKEN"),
    "--device": ("merge", "RECIPE", "OUT", "--device", "TOKEN"),
    "--shard-size": ("check", "RECIPE", "--shard-size", "TOKEN"), "--texts": ("report", "MOE", "--texts", "TOKEN"),
    "--license": ("card", "MOE", "--license", "TOKEN"), "--repo": ("card", "MOE", "--repo", "me/TOKEN"),
    "--template": ("card", "MOE", "--template", "TOKEN"), "an option of none": ("card", "MOE", "--token", "TOKEN"),
    "a repository": ("publish", "MOE", "TOKEN"),
}  # fmt: skip
TOKENS = {
    **{f"a token is {name} of a recipe": token_in(text) for name, text in FIELDS.items()},
    **{f"a token is {name} on the command line": word(*words) for name, words in WORDS.items()},
    "a token is in a card's template": Row(
        lambda s: s.options.update(template=s.write("own.jinja", f"# mine\n{TOKEN}")), published, TOLD
    ),
    "a token is in the generation config": Row(
        lambda s: s.edit("moe/generation_config.json", note=TOKEN), published, TOLD
    ),
    "a token is in a chat template": Row(
        lambda s: s.write("moe/additional_chat_templates/x.jinja", TOKEN), published, TOLD
    ),
    "a token is a tensor's name": Row(tensor_name(TOKEN), typed("check", "RECIPE"), "no place"),
}  # fmt: skip


# numbers and formats


def header(entries: object, body: int = 0, length: int | None = None) -> Arrange:
    """A safetensors file of this header."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    claimed = len(text) if length is None else length
    return lambda s: s.write("base/model.safetensors", struct.pack("<Q", claimed) + text + bytes(body))


def entry(begin: int, end: int, dtype: str = "U8", shape: list[int] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def ten_million(s: Scene) -> None:
    """A file without bytes that claims a header for ten million tensors."""
    s.write("base/model.safetensors", struct.pack("<Q", 60 * 10**7))
    os.truncate(s.base / "model.safetensors", 70 * 10**7)


def gguf(content: bytes) -> Row:
    return Row(
        lambda s: s.fields.update(base_model=str(s.write("x.gguf", content))), checked, "can't be read as a GGUF model"
    )


def config(said: str | None, do: Act = checked, **fields: Any) -> Row:
    return Row(lambda s: configure(s.base, **fields), do, said)


def fp8(block: object) -> Row:
    def arrange(s: Scene) -> None:
        scale = {f"{MLP}_scale_inv": torch.ones(1, 2)}
        rewrite(s.base, lambda t: t.update({MLP: t[MLP].to(torch.float8_e4m3fn)} | scale))
        configure(s.base, quantization_config={"quant_method": "fp8", "weight_block_size": block})

    return Row(arrange, merged, r"no usable weight_block_size")


def factors(change: Callable[[dict[str, torch.Tensor]], object]) -> Arrange:
    return lambda s: (s.with_adapter(), rewrite(s.adapter, change, "adapter_model.safetensors"))


def alike(s: Scene) -> None:
    """A recipe of ten thousand experts in a few bytes each."""
    s.text = f"base_model: {s.base}\ngate_mode: random\nexperts: [&e {{source_model: {s.base}}}{', *e' * 9_999}]"


NUMBERS = {
    "ten million layers": config("no usable num_hidden_layers", num_hidden_layers=10**7),
    "a hidden size of 10^30": config("no usable hidden_size", hidden_size=10**30),
    "less than no vocabulary": config("no usable vocab_size", vocab_size=-64),
    "an epsilon that is no number": config("no usable rms_norm_eps", rms_norm_eps=float("nan")),
    "an infinite rotary base": config("no usable rope_theta", rope_theta=float("inf")),
    "a rotary base of 400 digits": config("no usable rope_theta", rope_theta=10**400),
    "a rotary setting of 400 digits": config(
        "no usable rope_parameters", rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 10**400}
    ),
    "a number that Python doesn't read": Row(
        lambda s: s.write("base/config.json", '{"vocab_size": ' + "9" * 5000 + "}"), checked, "can't be read as JSON"
    ),
    "config.json a hundred thousand levels deep": Row(
        lambda s: s.write("base/config.json", '{"a":' * 100_000), checked, "can't be read as JSON"
    ),
    "a thousand million experts per token": Row(lambda s: s.fields.update(experts_per_token=10**9), merged),
    "ten thousand experts by one alias": Row(
        alike, lambda s: "\n".join(map(str, check(s.file, s.out).errors)),
        holds=lambda s: len(Recipe.from_file(s.file).experts) == 10**4,
    ),
    "blocks of FP8 that are a number": fp8(5),
    "blocks of FP8 that are words": fp8(["a", "b"]),
    "blocks of FP8 of no rows": fp8([0, 128]),
    "three sizes of an FP8 block": fp8([128, 128, 128]),
    "an alpha of 400 digits": Row(lambda s: s.with_adapter(lora_alpha=10**400), checked, "isn't sound: its lora_alpha"),
    "a pattern's alpha of 400 digits": Row(
        lambda s: s.with_adapter(alpha_pattern={"down_proj": 10**400}), checked, "isn't sound: its lora_alpha"
    ),
    "an alpha that takes weights to infinity": Row(
        lambda s: s.with_adapter(lora_alpha=1e308), merged, "NaN or infinite"
    ),
    "a rank that is a word": Row(lambda s: s.with_adapter(r="four", rank_pattern={"down_proj": -1}), merged),
    "a rank that isn't its factors'": Row(
        factors(lambda t: t.update({f"{DOWN}.lora_B.weight": torch.ones(32, 3)})), checked, "the factors of"
    ),
    "factors for a wider model": Row(
        factors(lambda t: t.update({f"{DOWN}.lora_B.weight": torch.ones(64, 2)})),
        checked, "which this model doesn't have",
    ),
    "a header of 2^63 bytes": Row(header({}, length=2**63), checked, "its header claims"),
    "a header for ten million tensors": Row(ten_million, checked, "its header claims"),
    "tensors that overlap": Row(header({"a": entry(0, 8), "b": entry(4, 12)}, 12), checked, "a hole or an overlap"),
    "a hole between tensors": Row(header({"a": entry(0, 4), "b": entry(8, 12)}, 12), checked, "a hole or an overlap"),
    "bytes before the first tensor": Row(header({"a": entry(8, 12)}, 12), checked, "a hole or an overlap"),
    "a tensor's name that stands twice": Row(
        header(json.dumps({"a": entry(0, 4), "b": entry(4, 8)}).replace('"b"', '"a"').encode(), 8),
        checked, "a hole or an overlap",
    ),
    "a dtype that nobody knows": Row(header({"a": entry(0, 8, "Q4")}, 8), checked, "unknown dtype"),
    "a shape of 2^64 elements": Row(
        header({"a": entry(0, 0, shape=[2**32, 2**32])}), checked, "takes another number"
    ),
    "a shape of less than nothing": Row(header({"a": entry(0, 8, shape=[-2, -4])}, 8), checked, "impossible numbers"),
    "a GGUF file that is none": gguf(b"GGML" + bytes(64)),
    "a GGUF file that ends in its header": gguf(b"GGUF\x03\0\0\0\0"),
    "a GGUF file of 2^60 tensors": gguf(b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0) + bytes(64)),
    "a GGUF file of 2^60 fields": gguf(b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60) + bytes(64)),
    "a GGUF file with a text of 2^60 letters": gguf(b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**60) + b"x" * 64),
}  # fmt: skip

ROWS = {**CODE, **LINKS, **TEXTS, **TOKENS, **NUMBERS}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, demo_models: Path) -> Path:
    """What every scene begins with."""
    folder = tmp_path_factory.mktemp("stage")
    base = make_model(folder, "base", vocab_size=512)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_models / "base" / name, base / name)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["down_proj"]})
    )
    save_file({f"{DOWN}.lora_A.weight": torch.ones(2, 48), f"{DOWN}.lora_B.weight": torch.ones(32, 2)},
              folder / "adapter" / "adapter_model.safetensors")  # fmt: skip
    merge(recipe(base, base, base), folder / "moe")
    merge(recipe(base, base, base, architecture="deepseek"), folder / "deepseek")
    (folder / "ssh").mkdir()
    (folder / "ssh" / "id_rsa").write_text(KEY)
    return folder


@pytest.fixture
def scene(
    stage: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Scene]:
    monkeypatch.setattr(lazymoe.hub.client, "WAIT", 0.01)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = shutil.copytree(stage, tmp_path / "scene")
    for name in ("moe", "deepseek"):  # whose recipes name the stage's models
        file = folder / name / "recipe.yaml"
        file.write_text(file.read_text().replace(str(stage), str(folder)))
    yield Scene(folder, hub, monkeypatch, capfd)
    for repo in (REPO, STRANGE, "acme/dots", "acme/said"):
        hub.repos.pop(repo, None)


def kept(s: Scene) -> bytes:
    """All that LazyMoE wrote, here and on the Hub."""
    here = b"".join(p.read_bytes() for p in s.out.rglob("*") if p.is_file())
    there = (
        b"".join(s.hub.read(REPO, name) for name in s.hub.repos[REPO].commits[-1].files) if REPO in s.hub.repos else b""
    )
    return here + there


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_an_attack_comes_to_nothing(row: Row, scene: Scene) -> None:
    row.arrange(scene)
    asked = len(scene.hub.requests)
    with limited(SECONDS):
        try:
            said, refused = row.do(scene), False
        except LazyMoEError as e:
            said, refused = str(e), True
            assert all(str(p).isprintable() and len(str(p)) < 3000 for p in e.problems)
            said += json.dumps([p.to_dict() for p in e.problems])
    assert refused == (row.said is not None), said
    assert re.search(row.said or "", said), said
    assert row.holds(scene)
    assert not scene.mark.exists()
    others = [r.path for r in scene.hub.requests[asked:] if r.path != "/api/agent-harnesses"]  # the client's own
    assert row.hub or row.do is published or not others
    printed = scene.capture.readouterr()
    for secret in (KEY, KEY.splitlines()[1], TOKEN):
        assert secret not in said + printed.out + printed.err
        assert secret.encode() not in kept(scene)
    if row.works:
        with suppress(Exception):  # payloads go off before whatever comes after them fails
            row.works(scene)
        assert scene.mark.exists()
