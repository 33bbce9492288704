"""Step 1: what this machine is, what it can make and run, and whose token it uses.

The token is kept in memory only; the box it is typed into empties itself at once.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import ipywidgets as w
import psutil

from lazymoe.hub.accounts import account, find_token
from lazymoe.hub.client import TOKENS_PAGE, use_token
from lazymoe.notebook import ui
from lazymoe.notebook.session import SESSION
from lazymoe.planning.shapes import SHAPES, imagine
from lazymoe.planning.ways import choose, find_ways
from lazymoe.recipe.schema import Expert, Recipe
from lazymoe.units import billions, gigabytes
from lazymoe.version import __version__

MIXTURES = ((2, "TinyLlama-1.1B"), (4, "TinyLlama-1.1B"), (2, "Mistral-7B"), (4, "Mistral-7B"), (8, "Mistral-7B"))
PROMPTS = ["Tell me what you think about moving to a smaller town for good."] * 5  # for each expert
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
    for experts, shape in MIXTURES:
        models = [Expert(source_model=f"some/model-{i}", positive_prompts=[*PROMPTS]) for i in range(experts)]
        recipe = Recipe(base_model="some/model-0", gate_mode="fit", experts=models)
        prepared = imagine(recipe, SHAPES[shape], Path.cwd())
        plan = prepared.sound_plan
        way = choose(find_ways(prepared, plan, Path.cwd(), disk, memory))
        made = (
            "no disk" if way is None else "no memory" if way.memory > memory else f"yes{',' * bool(way.how)}{way.how}"
        )
        needs = {"in 16 bit": plan.bytes_16bit, "in 4 bit": plan.bytes_4bit}
        runs = next((how for how, nbytes in needs.items() if nbytes + CONTEXT < run), "too large")
        lines.append((f"{experts} x {shape}", billions(plan.parameters), made, runs))
    head = "".join(f"<th scope='col'>{h}</th>" for h in ("mixture", "parameters", "can be made here", "can run here"))
    rows = "".join(
        "<tr>" + "".join(f"<td>{'✓ ' * c.startswith(('yes', 'in '))}{c}</td>" for c in line) + "</tr>" for line in lines
    )
    return f"<table><tr>{head}</tr>{rows}</table>"
