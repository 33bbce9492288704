"""Tiny models to try lazymoe on: a Llama of 375 thousand weights and four experts fine-tuned from it.

Each expert knows one kind of text that every installation of Python carries: the code of its library, the English
of its manual, the names of Unicode's characters, the bytecode of its own compiler.
They are trained on the spot, on the processor, without a network, in well under a minute. They show which expert
a router picks and what that does to the loss on text held out from the training; they write nothing worth reading.
"""

from __future__ import annotations

import ast
import copy
import dis
import hashlib
import importlib.util
import json
import random
import sys
import tempfile
import types
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazymoe.errors import error
from lazymoe.files import cache
from lazymoe.progress import Progress, silent

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

SEED = 1
TRAIN, HELD = 400_000, 12_000  # characters of each domain, at most
WINDOW, BATCH = 64, 12  # tokens in a training example, examples in a step
BASE_STEPS, BASE_RATE = 130, 6e-3
# Short and gentle: what a fine-tune puts into embeddings and attention does not come along into the MoE.
EXPERT_STEPS, EXPERT_RATE = 60, 2e-3

MODEL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "dtype": "float32",
    "vocab_size": 512,
    "hidden_size": 96,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.05,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
# Written by hand because what one major version of transformers saves, another may not load.
TOKENIZER: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "model_max_length": 512,
    "model_input_names": ["input_ids", "attention_mask"],
    "chat_template": "{{ bos_token }}{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
}

# Written in Python in every CPython from 3.10 on, and not frozen into the interpreter, so that there is source to read.
MODULES = ("argparse", "calendar", "cmd", "configparser", "csv", "dataclasses", "difflib", "enum", "ftplib", "inspect")
HELD_MODULES = ("textwrap", "fileinput")

PROMPTS = {
    "python": (
        "def area(self, width, height):\n    if width < 0:\n        return None\n    return width * height",
        "import os\nimport sys\nfrom collections import deque",
        "    if value is None:\n        raise ValueError('no value given')\n    return self._cache.get(key)",
        "class Queue(Base):\n\n    def __init__(self, size=0):\n        super().__init__()\n        self.size = size",
        "        for name in names:\n            self.lengths[name] = len(name)\n        else:\n            break",
    ),
    "english": (
        "A statement may be followed by another one on the same line, but this is rarely a good idea.",
        "The name of the object is looked up when the function is called, and an error is raised if it is missing.",
        "This is useful when you want to know which of the values has been used and where it came from.",
        "It is not possible to change the order of the items; however, the list can be sorted afterwards.",
        "Note that the result depends on the type of the argument and may be different in other implementations.",
    ),
    "unicode": (
        "0041 Lu LATIN CAPITAL LETTER A\n00E9 Ll LATIN SMALL LETTER E WITH ACUTE",
        "2192 Sm RIGHTWARDS ARROW\n2603 So SNOWMAN",
        "0639 Lo ARABIC LETTER AIN\n05D0 Lo HEBREW LETTER ALEF",
        "1F41F So FISH\n1F319 So CRESCENT MOON",
        "30CD Lo KATAKANA LETTER NE\n0915 Lo DEVANAGARI LETTER KA",
    ),
    "bytecode": (
        "LOAD_FAST self\nLOAD_ATTR name\nRETURN_VALUE",
        "LOAD_GLOBAL len\nLOAD_FAST items\nPOP_JUMP_IF_FALSE to 64",
        "LOAD_CONST None\nSTORE_FAST result\nPOP_TOP\nLOAD_FAST result",
        "LOAD_FAST value\nLOAD_CONST 0\nCOMPARE_OP ==\nSTORE_FAST same",
        "LOAD_CONST 1\nBUILD_TUPLE\nSTORE_FAST count\nLOAD_CONST None\nRETURN_VALUE",
    ),
}


@dataclass(frozen=True)
class Domain:
    name: str
    about: str
    prompts: tuple[str, ...]
    train: str
    held: str


def domains() -> list[Domain]:
    """Gather the kinds of text, each with its prompts, and with texts to train on and held out.

    Raises:
        LazyMoEError: if this Python has no source of its library.
    """
    trees, held_trees = [syntax(name) for name in MODULES], [syntax(name) for name in HELD_MODULES]
    texts = {
        "python": (
            "code of the standard library",
            "\n".join(map(ast.unparse, trees)),
            "\n".join(map(ast.unparse, held_trees)),
        ),
        "english": ("prose of the Python manual", *split(manual())),
        "unicode": ("numbers, categories and names of characters", *split(characters())),
        "bytecode": ("what the compiler makes of the standard library", bytecode(trees), bytecode(held_trees)),
    }
    return [Domain(n, about, PROMPTS[n], train[:TRAIN], held[:HELD]) for n, (about, train, held) in texts.items()]


def syntax(module: str) -> ast.Module:
    """Parse a module without its comments and docstrings, which are English.

    Args:
        module: its name.

    Raises:
        LazyMoEError: if this Python has no source of it.
    """
    spec = importlib.util.find_spec(module)
    source = getattr(spec.loader, "get_source", lambda _: None)(module) if spec else None
    if source is None:
        what = f"the demo trains on the source of Python's library, but there is none of '{module}' here"
        raise error("input.demo", "demo", what, "Use a Python that has it.")
    tree = ast.parse(str(source))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            node.body[:1] = [] if len(node.body) > 1 else [ast.Pass(lineno=1, col_offset=0)]
    return tree


def bytecode(trees: list[ast.Module]) -> str:
    """Write one instruction a line, without the long arguments: texts, or addresses that differ from run to run.

    Args:
        trees: of the modules to compile.
    """
    lines, codes = [], [compile(tree, "", "exec") for tree in trees]
    for one in codes:  # grows by the functions found in it
        lines += [f"{i.opname} {i.argrepr if len(i.argrepr) < 24 else ''}".rstrip() for i in dis.get_instructions(one)]
        codes += [const for const in one.co_consts if isinstance(const, types.CodeType)]
    return "\n".join(lines)


def manual() -> list[str]:
    """List the sentences of Python's own manual, a paragraph each, sorted."""
    from pydoc_data.topics import topics

    paragraphs = (" ".join(p.split()) for text in topics.values() for p in text.split("\n\n"))
    # Topics repeat each other, hence the set. What does not look like a sentence is mostly grammar, code or a list.
    prose = {p for p in paragraphs if len(p) > 80 and p[0].isupper() and p.endswith(".") and "::" not in p}
    return [f"{p}\n\n" for p in sorted(prose)]


def characters() -> list[str]:
    """List characters with their number, category and name, a line each, shuffled."""
    named = [(f"{i:04X}", unicodedata.category(chr(i)), unicodedata.name(chr(i), "")) for i in range(0x20000)]
    # Ideographs are named by their numbers, and the Hangul syllables alone are a quarter of the rest.
    lines = [f"{i} {kind} {name}\n" for i, kind, name in named if name and i not in name and "HANGUL" not in name]
    random.Random(SEED).shuffle(lines)
    return lines


def split(pieces: Iterable[str]) -> tuple[str, str]:
    """Split pieces into those to train on and the tenth held out, by content, so that each keeps its side anywhere.

    Args:
        pieces: of text.

    Returns:
        The two sides, each joined.
    """
    sides: tuple[list[str], list[str]] = ([], [])
    for piece in pieces:
        sides[zlib.crc32(piece.encode()) % 10 == 0].append(piece)
    return "".join(sides[0]), "".join(sides[1])


def cache_folder() -> Path:
    """Name the folder of the demo's models: another once this file or Python's version, and so the texts, change."""
    key = hashlib.sha256(Path(__file__).read_bytes() + bytes(sys.version_info[:2])).hexdigest()[:12]
    return cache() / f"demo-{key}"


def build(folder: Path, progress: Progress = silent) -> None:
    """Make folder/base and, for every domain, folder/<its name>; nothing if the folder is there already.

    Args:
        folder: a new one.
        progress: told of the training steps done, stage ``train``, for all models together.

    Raises:
        LazyMoEError: if this Python has no source of its library to train on.
    """
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}-") as temporary:
        made = Path(temporary) / "models"
        train_all(made, progress)
        try:
            made.rename(folder)  # at once, so that a folder that is there is whole
        except OSError:
            if not folder.exists():  # another process was faster: its models are as good
                raise


def train_all(folder: Path, progress: Progress) -> None:
    """Train the base model on all domains, then from it an expert on each.

    Args:
        folder: where the models go, each in a folder of its own.
        progress: told of the training steps done, stage ``train``, for all models together.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    kinds = domains()
    tokenizer = train_tokenizer([kind.train for kind in kinds])
    texts = [torch.tensor(tokenizer.encode(kind.train, add_special_tokens=False).ids) for kind in kinds]
    with one_thread(), torch.random.fork_rng(devices=[]):  # leaves the caller's random numbers as they were
        torch.manual_seed(SEED)
        total = BASE_STEPS + len(kinds) * EXPERT_STEPS
        base = LlamaForCausalLM(LlamaConfig(**MODEL))
        for step in train(base, texts, BASE_STEPS, BASE_RATE):
            progress("train", step, total)
        save(base, tokenizer, folder / "base")
        for i, (kind, text) in enumerate(zip(kinds, texts, strict=True)):
            expert = copy.deepcopy(base)
            for step in train(expert, [text], EXPERT_STEPS, EXPERT_RATE):
                progress("train", BASE_STEPS + i * EXPERT_STEPS + step, total)
            save(expert, tokenizer, folder / kind.name)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: for models this small they wait for each other more than they help."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Train a tokenizer of bytes (BPE).

    Args:
        texts: to train it on.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MODEL["vocab_size"],
        special_tokens=[TOKENIZER["bos_token"], TOKENIZER["eos_token"]],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def train(model: LlamaForCausalLM, texts: list[torch.Tensor], steps: int, rate: float) -> Iterator[int]:
    """Train all weights on windows drawn at random, as many from each text; yield the number of every step done.

    Args:
        model: changed in place.
        texts: token ids ``[n]``, int64, of each.
        steps: how many.
        rate: the highest learning rate.
    """
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    for step in range(1, steps + 1):
        share = (BATCH // len(texts), 1)
        windows = [text[torch.randint(len(text) - WINDOW, share) + torch.arange(WINDOW)] for text in texts]
        batch = torch.cat(windows)
        batch[:, 0] = MODEL["bos_token_id"]
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield step


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Save a model and its tokenizer as a checkpoint.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        folder: a new one.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    model.config.save_pretrained(folder)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER, indent=2), encoding="utf-8")
