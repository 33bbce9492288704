"""Where the attacks of test_attacks.py take place, what is done there, and what a row of that table says."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub
from small_models import recipe, write_recipe

from lazymoe import LazyMoEError, card, check, merge
from lazymoe.cli import main
from lazymoe.forward.loading import load
from lazymoe.publishing import publish
from lazymoe.recipe.schema import Recipe
from lazymoe.reporting.measuring import report

SECONDS = 25  # that a row may take; most take less than one
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA"
TOKEN = "hf_" + "Ab3" * 11
TITLE, CLEAR, BIDI = "\x1b]0;gotcha\x07", "\x1b[2J", "\u202egotcha\u2066"
REPO, STRANGE = "writer/attacked", "acme/evil"
MLP = "model.layers.0.mlp.down_proj.weight"
TOLD = "looks like a Hugging Face token"
DOWN = f"base_model.model.{MLP.removesuffix('.weight')}"
SLOW = "(a+)+$"  # takes for ever on aaaa...ab
EVIL = """
import pathlib
pathlib.Path({mark!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, ProcessorMixin
class EvilTokenizer(PreTrainedTokenizerFast): pass
class EvilConfig(LlamaConfig): pass
class EvilModel(LlamaForCausalLM): pass
class EvilProcessor(ProcessorMixin): pass
def generate(*args, **kwargs): pass
"""


PROCESSOR = {"AutoProcessor": "evil.EvilProcessor"}
TOKENIZER = {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]}


class Payload:
    """A pickle that touches a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@dataclass
class Scene:
    """Where an attack takes place: a base model with a tokenizer, a recipe, and a finished mixture."""

    folder: Path
    hub: Hub
    patch: pytest.MonkeyPatch
    capture: pytest.CaptureFixture[str]
    fields: dict[str, Any] = field(default_factory=dict)  # of the recipe, in place of its own
    text: str | None = None  # of the recipe's file, in place of the recipe
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def moe(self) -> Path:
        """The finished one."""
        return self.folder / "moe"

    @property
    def out(self) -> Path:
        """What is made in this row."""
        return self.folder / "out"

    @property
    def mark(self) -> Path:
        """Is there once a payload went off."""
        return self.folder / "it-ran"

    @property
    def key(self) -> Path:
        """A private file of the user's."""
        return self.folder / "ssh" / "id_rsa"

    @property
    def code(self) -> str:
        return EVIL.format(mark=str(self.mark))

    @property
    def recipe(self) -> Recipe:
        given = recipe(self.base, self.base, self.base, **self.fields)
        if "experts" in self.fields:
            return given
        texts = [{"positive_prompts": [f"some words of kind {i}"]} for i in range(2)]
        return given.with_experts([e.model_copy(update=t) for e, t in zip(given.experts, texts, strict=True)])

    @property
    def file(self) -> Path:
        if self.text is None:
            return write_recipe(self.folder / "recipe.yaml", self.recipe)
        (self.folder / "recipe.yaml").write_text(self.text, encoding="utf-8")
        return self.folder / "recipe.yaml"

    def edit(self, name: str, **fields: Any) -> None:
        """Change a JSON file below the folder, or make it."""
        path = self.folder / name
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**before, **fields}))

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def link(self, name: str, to: Path) -> None:
        """Put a link where a file or a folder was."""
        path = self.folder / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(to)

    def with_adapter(self, **config: Any) -> None:
        """Put a LoRA adapter on the first expert."""
        self.edit("adapter/adapter_config.json", **config)
        both = [{"source_model": f"{self.base}+{self.adapter}"}, {"source_model": str(self.base)}]
        self.fields["experts"] = both


Act = Callable[[Scene], str]  # gives what LazyMoE says, and raises what it refuses by
Arrange = Callable[[Scene], object]


def checked(s: Scene) -> str:
    found = check(s.recipe, s.out)
    if found.errors:
        raise LazyMoEError(found.errors)
    return "\n".join(map(str, found.warnings))


def merged(s: Scene) -> str:
    return "\n".join(map(str, merge(s.recipe, s.out, **s.options).warnings))


def merged_and_used(s: Scene) -> str:
    """The base model is run for the routers; then the mixture is measured, described and loaded."""
    s.fields.setdefault("gate_mode", "fit")
    said = merged(s)
    report(s.out, losses=False)
    card(s.out)
    load(s.out)
    return said


def loaded(s: Scene) -> str:
    try:
        model, _ = load(s.moe)
    except ValueError as e:  # transformers', of code that may not run
        raise LazyMoEError([]) from e
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    return ""


def chatted(s: Scene) -> str:
    """As the notebook's chat renders a question."""
    merged(s)
    _, tokenizer = load(s.out)
    assert tokenizer.chat_template
    try:
        return str(tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False))
    except Exception as e:
        raise LazyMoEError([]) from e


def carded(s: Scene) -> str:
    return card(s.moe, REPO, **s.options)


def published(s: Scene) -> str:
    return publish(s.moe, s.options.pop("repo", REPO), token="hf_writer", **s.options).url


def typed(*words: str) -> Act:
    """A command line, with RECIPE, MOE and OUT for the scene's own."""

    def act(s: Scene) -> str:
        known = {"RECIPE": s.file, "MOE": s.moe, "OUT": s.out}
        s.capture.readouterr()
        code = main([str(known.get(word, word)) for word in words])
        printed = s.capture.readouterr()
        said = printed.out + printed.err
        assert all(c.isprintable() or c == "\n" for c in said), ascii(said)
        assert len(said) < 20_000
        if code:
            raise LazyMoEError([_Said(line) for line in said.splitlines() if "error: " in line])
        return said

    return act


def alone(*words: str) -> Act:
    """A command line in a process of its own, at a terminal, where transformers would ask whether code may run."""

    def act(s: Scene) -> str:
        known = {"RECIPE": s.file, "OUT": s.out}
        terminal, end = pty.openpty()
        command = [sys.executable, "-m", "lazymoe", *(str(known.get(word, word)) for word in words)]
        try:
            done = subprocess.run(command, cwd=s.folder, stdin=end, capture_output=True, timeout=SECONDS)
        finally:
            os.close(terminal), os.close(end)
        said = (done.stdout + done.stderr).decode().replace("\r", "\n")  # between pictures of a bar
        assert all(c.isprintable() or c == "\n" for c in said), ascii(said)
        assert "y/N" not in said and "Traceback" not in said
        if done.returncode:
            raise LazyMoEError([_Said(line) for line in said.splitlines() if "error: " in line])
        return said

    return act


class _Said(str):
    """A line of the command line's, in place of a problem."""

    def to_dict(self) -> str:
        return str(self)


@dataclass(frozen=True)
class Row:
    """An attack.

    Attributes:
        arrange: prepares it.
        do: what LazyMoE is asked to do.
        said: words of what it refuses by, a regular expression; None if it does what it was asked for.
        holds: more that must be true afterwards.
        works: lets the payload go off.
        hub: whether the recipe names something on the Hub, so that this may be asked.
    """

    arrange: Arrange
    do: Act
    said: str | None = None
    holds: Callable[[Scene], bool] = lambda s: True
    works: Arrange | None = None
    hub: bool = False


# code
