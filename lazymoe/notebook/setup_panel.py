"""Step 1: what this machine is, what it can make and run, and whose token it uses.

The token is kept in memory only; the box it is typed into empties itself at once.
"""

from __future__ import annotations

import math
import shutil
from typing import Any

import ipywidgets as w
import psutil

from lazymoe.architectures.dense import LLAMA, MISTRAL
from lazymoe.hub.accounts import account, find_token
from lazymoe.hub.client import TOKENS_PAGE, use_token
from lazymoe.notebook import ui
from lazymoe.notebook.session import SESSION
from lazymoe.planning.memory import MODELS, RUNTIME
from lazymoe.planning.plan import BITS_4, BITS_8, SHARD_SIZE
from lazymoe.units import billions, gigabytes
from lazymoe.version import __version__

SHAPES = {  # dense models that people fine-tune most, by the sizes in their config.json
    "1.1B": (LLAMA, {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
                     "num_attention_heads": 32, "num_key_value_heads": 4}),
    "7B": (MISTRAL, {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                     "num_attention_heads": 32, "num_key_value_heads": 8}),
}  # fmt: skip
MIXTURES = ((2, "1.1B"), (4, "1.1B"), (2, "7B"), (4, "7B"), (8, "7B"))
CONTEXT = 1.5e9  # bytes that running takes beside the weights


def setup() -> w.Widget:
    """Show the machine and what it is good for."""
    memory, disk = psutil.virtual_memory().available, shutil.disk_usage(".").free
    name, video = _gpu()
    rows = {
        "LazyMoE": __version__,
        "GPU": f"{name}, {gigabytes(video)} of memory" if video else "none: merging needs none, chatting will be slow",
        "Memory": f"{gigabytes(memory)} free",
        "Disk": f"{gigabytes(disk)} free",
    }
    return ui.panel("setup", w.HTML(ui.table(rows)), w.HTML(_sizes(disk, memory, video or memory)), _token())


def _token() -> w.Widget:
    """Ask for a token, unless there is one already."""
    typed = ui.field(w.Password, "Token", "token", placeholder="hf_…", continuous_update=False)
    told = ui.Messages()

    def use(token: str, words: str) -> None:
        SESSION.account = account(token)
        use_token(token)
        told.show("good", f"You are {SESSION.account.name}. {words}")
        typed.placeholder = "hf_…  (to be someone else)"
        SESSION.change()

    def received(change: dict[str, Any]) -> None:
        if token := change["new"].strip():
            typed.value = ""  # before anything else: the value of a widget can be saved with the notebook
            with told.guard("Paste it again."):
                use(token, "Your token is kept in memory only.")

    with told.guard("Run the cell again."):
        if found := find_token():
            use(found[0], f"Your token is from {found[1]}.")
        else:
            told.show("note", f"For private or gated models, and to publish: paste a token of yours, and press Enter. "
                      f"It is made at {TOKENS_PAGE}, for publishing with write access.")  # fmt: skip
    typed.observe(received, "value")
    return w.VBox([typed, told])


def _gpu() -> tuple[str, int]:
    """Name the GPU and its free memory, in bytes; 0 if there is none."""
    import torch

    if not torch.cuda.is_available():
        return "", 0
    return torch.cuda.get_device_name(), torch.cuda.mem_get_info()[0]


def _sizes(disk: int, memory: int, run: int) -> str:
    """Show a table of mixtures as HTML, and for each whether it can be made and run here."""
    lines = []
    for experts, size in MIXTURES:
        dense, config = SHAPES[size]
        backbone, ffn = (sum(map(math.prod, shapes.values())) for shapes in dense.all_shapes(dense.complete(config)))
        parameters = backbone + experts * ffn
        layer, mixture = (backbone + ffn) // config["num_hidden_layers"], 2 * parameters  # bytes of this, in 16 bit
        held = 4 * (experts + 1) * layer  # bytes of two layers of every model, while these stay on the Hub
        ways = {
            "yes": mixture + 2 * experts * (backbone + ffn),
            "yes, its models stay on the Hub": mixture + held,
            "yes, straight to the Hub": 2 * SHARD_SIZE + held,
        }
        fitting = [way for way, room in ways.items() if room < disk]
        made = "no memory" if RUNTIME + MODELS + 4 * layer > memory else next(iter(fitting), "no disk")
        four = (experts * ffn * BITS_4 + backbone * BITS_8) / 8 + CONTEXT
        runs = "in 16 bit" if 2 * parameters + CONTEXT < run else "in 4 bit" if four < run else "too large"
        lines.append((f"{experts} x {size}", billions(parameters), made, runs))
    head = "".join(f"<th scope='col'>{h}</th>" for h in ("mixture", "parameters", "can be made here", "can run here"))
    rows = "".join(
        "<tr>" + "".join(f"<td>{'✓ ' * c.startswith(('yes', 'in '))}{c}</td>" for c in line) + "</tr>" for line in lines
    )
    return f"<table><tr>{head}</tr>{rows}</table>"
