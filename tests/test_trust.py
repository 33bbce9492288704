"""Nothing from a stranger runs: code in a base model's files leaves a mark when it does."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import Hub
from small_models import Make, configure, recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from lazymoe import Recipe, merge
from lazymoe.forward.loading import load
from lazymoe.output.folder import trusted
from lazymoe.publishing import publish

EVIL = """
import pathlib
pathlib.Path({mark!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class EvilTokenizer(PreTrainedTokenizerFast): pass
class EvilConfig(LlamaConfig): pass
class EvilModel(LlamaForCausalLM): pass
"""


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """Is there once the stranger's code ran."""
    return tmp_path / "it-ran"


@pytest.fixture
def hostile(make: Make, demo_models: Path, mark: Path) -> Path:
    """A base model with code wherever transformers might look for it."""
    folder = make("hostile", vocab_size=512)
    code = EVIL.format(mark=str(mark))
    for name in ("evil.py", "tokenization_evil.py", "modeling_deepseek.py", "additional_chat_templates/evil.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)
    (folder / "additional_chat_templates" / "short.jinja").write_text("{{ messages[0]['content'] }}")
    (folder / "tokenizer.json").write_bytes((demo_models / "base" / "tokenizer.json").read_bytes())
    tokenizer = json.loads((demo_models / "base" / "tokenizer_config.json").read_text())
    auto_map = {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(tokenizer | {"tokenizer_class": "EvilTokenizer", "auto_map": auto_map})
    )
    models = {f"Auto{kind}": f"evil.Evil{kind}" for kind in ("Config", "Model")} | {
        "AutoModelForCausalLM": "evil.EvilModel"
    }
    return configure(folder, auto_map=models | auto_map)


def _recipe(folder: Path, gate_mode: str = "random", **fields: object) -> Recipe:
    given = recipe(folder, folder, folder, gate_mode=gate_mode, **fields)
    return given.with_experts([e.model_copy(update={"positive_prompts": [f"word {i}"]}) for i, e in
                               enumerate(given.every_expert)])  # fmt: skip


def test_the_code_would_run_if_it_were_allowed_to(hostile: Path, mark: Path) -> None:
    AutoTokenizer.from_pretrained(hostile, trust_remote_code=True)
    assert mark.exists()


@pytest.mark.parametrize("architecture", ["mixtral", "deepseek"])
def test_no_code_of_a_base_model_runs_or_travels(
    architecture: str, hostile: Path, mark: Path, tmp_path: Path, hub: Hub
) -> None:
    out = merge(_recipe(hostile, architecture=architecture), tmp_path / "moe").folder
    code = {"modeling_deepseek.py"} if architecture == "deepseek" else set()
    assert {path.name for path in out.rglob("*.py")} == code
    assert trusted(out) is bool(code)
    assert "evil" not in "".join(path.read_text() for path in out.glob("*.json")).lower().replace(
        "eviltokenizer", ""
    )  # the class's name alone leads nowhere
    assert (out / "additional_chat_templates" / "short.jinja").is_file()
    for name in ("evil.py", "additional_chat_templates/evil.py"):
        (out / name).write_text(EVIL.format(mark=str(mark)))  # somebody puts it beside the mixture
    publish(out, f"writer/trust-{architecture}", token="hf_writer")
    published = {name for name in hub.repos[f"writer/trust-{architecture}"].commits[-1].files if name.endswith(".py")}
    assert published == code
    assert not mark.exists()


@pytest.mark.parametrize("gate_mode", ["fit", "hidden"])
def test_a_tokenizer_that_needs_code_is_refused_without_a_question(
    gate_mode: str, hostile: Path, mark: Path, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(_recipe(hostile, gate_mode).to_yaml())
    terminal, end = pty.openpty()  # where transformers would ask
    try:
        done = subprocess.run(
            [sys.executable, "-m", "lazymoe", "merge", "recipe.yaml", "moe"],
            cwd=tmp_path, stdin=end, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    finally:
        os.close(terminal), os.close(end)
    assert "y/N" not in done.stdout + done.stderr
    assert not mark.exists()


def test_a_changed_modelling_file_does_not_run(hostile: Path, mark: Path, demo_models: Path, tmp_path: Path) -> None:
    configure(hostile, auto_map=None)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (hostile / name).write_bytes((demo_models / "base" / name).read_bytes())
    out = merge(_recipe(hostile, architecture="deepseek"), tmp_path / "moe").folder
    model, tokenizer = load(out)
    assert type(model).__name__ == "DeepseekForCausalLM" and tokenizer("x")["input_ids"]
    with open(out / "modeling_deepseek.py", "a") as f:
        f.write(EVIL.format(mark=str(mark)))
    assert not trusted(out)
    with pytest.raises(ValueError):
        load(out)
    assert not mark.exists()
    AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    assert mark.exists()  # as it would have
