"""Step 2: the recipe, as a form and as YAML, each following the other as one types."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as w

from lazymoe.data import ready_made
from lazymoe.errors import LazyMoEError, Problem
from lazymoe.notebook import ui
from lazymoe.notebook.session import SESSION
from lazymoe.notebook.work import Steps, Work
from lazymoe.recipe.reference import Reference
from lazymoe.recipe.review import review
from lazymoe.recipe.schema import SIDES, Recipe
from lazymoe.recipe.yaml_text import parse, write

OWN = "a recipe of your own"
DEMO = "demo: four tiny experts, offline"
ROUTED = "Of each of four domains, what part of the tokens goes to which of four experts"
HERE = Path(__file__).parent  # which has a picture of the demo's
GATES = {  # what a person reads of each gate mode
    "fit": "Routers are fitted to tell your prompts apart, and the shared weights merged. The best; takes longest.",
    "hidden": "mergekit-moe's way: the mean state of each expert's prompts, at their last token.",
    "hidden_avg": "As hidden, averaged over all tokens of a prompt.",
    "hidden_last": "As hidden.",
    "cheap_embed": "From word embeddings alone, the same in every layer: quick, needs little memory, and is weaker.",
    "random": "Random routers, for a mixture that you will train. Needs no prompts.",
    "uniform_random": "As random, with uniform numbers.",
}
WEIGHTS = {  # what a person reads of where the experts' weights come from
    "own": "Each expert's feed-forward weights are its model's, as they are.",
    "corrected": "A third of each expert's weights is computed from its prompts, so that it answers more as its model "
    "does. Better on texts of the experts' kinds, slightly worse on all others; takes longer.",
}
EXPERT = re.compile(r"experts\[(\d+)\]\.(\w+)")  # a field of an expert, as messages name it
_FIELDS = ("base_model", "experts", "gate_mode", "expert_weights", "experts_per_token", "dtype")  # that the form shows
_EXPERT_FIELDS = ("source_model", *SIDES, "residual_scale", "noise_scale")
DTYPES = ("", "bfloat16", "float16", "float32")
BLANK = "base_model: ''\nexperts:\n- source_model: ''\n- source_model: ''\n"
WELCOME = (
    "This comes out: one model, in which each text goes to the expert that knows its kind. To see it made, in a minute "
    "and without downloads, choose <i>demo</i> above; or fill in models of your own below."
)


class ExpertRow:
    """The fields of one expert. What the form doesn't show (data sets of prompts) is kept as it was."""

    def __init__(
        self, data: dict[str, Any], changed: Callable[[], None], act: Callable[[str, ExpertRow], None]
    ) -> None:
        self.other = {k: v for k, v in data.items() if k not in _EXPERT_FIELDS}
        self.named = {side: [p for p in _list(data.get(side)) if not isinstance(p, str)] for side in SIDES}
        self.model = ui.field(
            w.Text, "Model", "expert-model", placeholder="org/name or a folder", continuous_update=True
        )
        self.model.value = str(data.get("source_model") or "")
        rows = {"layout": {"height": "84px"}}
        self.positive = ui.field(
            w.Textarea, "Prompts", "positive", placeholder="One a line: what it should answer", **rows
        )
        self.positive.value = _lines(data.get("positive_prompts"))
        self.negative = ui.field(
            w.Textarea, "Not for it", "negative", placeholder="One a line: what it should not", **rows
        )
        self.negative.value = _lines(data.get("negative_prompts"))
        self.residual = ui.field(w.Text, "Output scale", "residual", placeholder="1.0")
        self.residual.value = str(data.get("residual_scale", ""))
        self.noise = ui.field(w.Text, "Noise", "noise", placeholder="0.0")
        self.noise.value = str(data.get("noise_scale", ""))
        self.messages = {key: ui.Messages() for key in _EXPERT_FIELDS}
        hidden = (("negative_prompts", self.negative), ("residual_scale", self.residual), ("noise_scale", self.noise))
        more = w.Accordion([w.VBox([part for key, field in hidden for part in (field, self.messages[key])])])
        more.set_title(0, "More")
        more.selected_index = None
        self.title, self.name = w.HTML(), w.HTML(layout=w.Layout(flex="1 1 0", min_width="0"))
        labels = {"up": "Move up", "down": "Move down", "remove": "Remove this expert"}  # panel.css shows signs instead
        buttons = [ui.button(label, name, partial(act, name, self), width="40px") for name, label in labels.items()]
        for one in buttons:
            one.tooltip = one.description
        head = w.HBox([self.title, self.name, *buttons])
        head.add_class("lazymoe-head")
        self.box = ui.card(head, self.model, self.messages["source_model"], self.positive,
                           self.messages["positive_prompts"], more)  # fmt: skip
        self.box.add_class("lazymoe-expert")
        self.model.observe(lambda _: self._call(), "value")
        self._call()
        for widget in (self.model, self.positive, self.negative, self.residual, self.noise):
            widget.observe(lambda _: changed(), "value")

    def _call(self) -> None:
        """Show the model's short name beside the expert's number."""
        short = Reference.parse(self.model.value.strip()).short_name
        self.name.value = f"<b>· {html.escape(short)}</b>" if short else ""

    def data(self) -> dict[str, Any]:
        """Give what the recipe says of this expert, field to value."""
        data: dict[str, Any] = {"source_model": self.model.value.strip()}
        for side, text in zip(SIDES, (self.positive.value, self.negative.value), strict=True):
            prompts = [*(line.replace("\\n", "\n") for line in text.splitlines() if line.strip()), *self.named[side]]
            if prompts:
                data[side] = prompts
        for key, text in (("residual_scale", self.residual.value), ("noise_scale", self.noise.value)):
            if text.strip():
                data[key] = _number(text)
        return data | self.other


class Form:
    """The panel. The recipe's YAML is the truth; the form shows it and writes it."""

    def __init__(self) -> None:
        names = [DEMO, *ready_made()]
        self.menu = ui.field(w.Dropdown, "Start from", "menu", options=[OWN, *names])
        self.base = ui.field(w.Text, "Base model", placeholder="org/name or a folder", continuous_update=True)
        self.gate = ui.field(w.Dropdown, "Routers", "gate-mode", options=list(GATES))
        self.weights = ui.field(w.Dropdown, "Experts' weights", "expert-weights", options=list(WEIGHTS))
        self.top_k = ui.field(w.BoundedIntText, "Experts per token", "top-k", min=1, max=64, value=2)
        self.dtype = ui.field(
            w.Dropdown, "Number format", "dtype", options=[(d or "the base model's", d) for d in DTYPES]
        )
        self.name = ui.field(w.Text, "Output name", "name", value=SESSION.name, continuous_update=True)
        self.pickle = w.Checkbox(
            description="Take .bin weights too: they can run code, so only of authors you trust", indent=False,
            value=SESSION.allow_pickle, layout=w.Layout(width="auto"),
        )  # fmt: skip
        self.pickle.add_class("lazymoe-allow-pickle")
        self.messages = {
            key: ui.Messages()
            for key in ("base_model", "gate_mode", "expert_weights", "experts", "experts_per_token", "name")
        }
        self.explained, self.weighed, self.told, self.bars = w.HTML(), w.HTML(), ui.Messages(), ui.Bars()
        self.welcome, self.beside = w.HTML(f"<p>{WELCOME}</p>{ui.pictures(HERE, ROUTED)}"), ui.Messages()
        self.welcome.add_class("lazymoe-welcome")
        self.training = Work(self.menu, "training", self.told, "Choose it again: the training begins anew.", self.bars)
        self.rows: list[ExpertRow] = []
        self.listed = w.VBox()
        self.add = ui.button("+ Add an expert", "add-expert", self._added)
        self.text = w.Textarea(layout=w.Layout(width="100%", height="320px"))
        self.text.add_class("lazymoe-yaml")
        self.upload = w.FileUpload(accept=".yaml,.yml", description="Upload YAML", multiple=False)
        self.link = w.HTML()
        as_yaml = w.Accordion([w.VBox([w.HBox([self.upload, self.link]), self.text, self.beside])])
        as_yaml.set_title(0, "As YAML: paste, edit, upload, download")
        as_yaml.selected_index = None
        self.other: dict[str, Any] = {}  # fields of the recipe that the form doesn't show
        self.filling = False
        self.panel = ui.panel(
            "recipe", self.training, self.bars, self.told, self.welcome, self.base, self.messages["base_model"],
            self.listed, self.add, self.messages["experts"], self.gate, self.explained, self.messages["gate_mode"],
            self.weights, self.weighed, self.messages["expert_weights"], self.top_k,
            self.messages["experts_per_token"], self.dtype, self.name, self.messages["name"], self.pickle,
            as_yaml,
        )  # fmt: skip
        self._show(SESSION.yaml or BLANK)
        self.menu.observe(self._chosen, "value")
        self.pickle.observe(lambda change: SESSION.change(allow_pickle=change["new"]), "value")
        for widget in (self.base, self.gate, self.weights, self.top_k, self.dtype, self.name):
            widget.observe(lambda _: self._changed(), "value")
        self.text.observe(lambda change: self._show(change["new"]), "value")
        self.upload.observe(self._uploaded, "value")
        SESSION.listen("recipe", self._hear)

    def _hear(self) -> None:
        """Take the output's name, if another panel has changed it: what is typed here is the session's at once."""
        if SESSION.name != self.name.value and not _bad_name(self.name.value):
            self.filling, before = True, self.filling
            self.name.value = SESSION.name
            self.filling = before

    def _chosen(self, change: dict[str, Any]) -> None:
        if change["new"] == DEMO:
            self.training.begin(self._train())
        elif change["new"] in ready_made():
            with self.told.guard():
                self._show(ready_made()[change["new"]].read_text(encoding="utf-8"))

    def _train(self) -> Steps:
        """Show the demo's recipe; its models are trained on the spot if they aren't in the cache."""
        from lazymoe.demonstration.models import build, cache_folder, domains
        from lazymoe.demonstration.story import demo_recipe

        try:
            self.bars("train", 0, 1)  # at once: what trains is loaded first
            yield partial(build, cache_folder(), self.training.progress)
            self._show(demo_recipe(cache_folder(), domains(), "fit").to_yaml())
        except BaseException:
            self.menu.value = OWN  # so that the demo can be chosen again
            raise
        finally:
            self.bars.clear()

    def _uploaded(self, change: dict[str, Any]) -> None:
        files = change["new"]
        content = (next(iter(files.values())) if isinstance(files, dict) else files[0])["content"] if files else b""
        with self.told.guard():
            self._show(bytes(content).decode("utf-8"))

    def _show(self, text: str) -> None:
        """Fill the form from YAML, as far as it can be read; nothing else of it is lost."""
        if self.filling:
            return
        try:
            data = parse(text, "recipe")
        except LazyMoEError:
            data = None
        if isinstance(data, dict) and isinstance(data.get("experts"), list):
            self.filling = True
            self.base.value = str(data.get("base_model") or "")
            self.gate.value = data["gate_mode"] if data.get("gate_mode") in tuple(GATES) else "fit"
            self.weights.value = data["expert_weights"] if data.get("expert_weights") in tuple(WEIGHTS) else "own"
            top_k = data.get("experts_per_token", 2)
            self.top_k.value = top_k if type(top_k) is int and 1 <= top_k <= 64 else 2
            self.dtype.value = data["dtype"] if data.get("dtype") in DTYPES else ""
            self.other = {k: v for k, v in data.items() if k not in _FIELDS}
            experts = [e if isinstance(e, dict) else {} for e in data["experts"]]
            self._list([ExpertRow(e, self._changed, self._moved) for e in experts])
            self.filling = False
        self._keep(text)

    def _changed(self) -> None:
        """Write the YAML anew from the form."""
        if self.filling:
            return
        data: dict[str, Any] = {"base_model": self.base.value.strip(), "experts": [row.data() for row in self.rows],
                                "gate_mode": self.gate.value, "experts_per_token": self.top_k.value}  # fmt: skip
        if self.weights.value != "own":
            data["expert_weights"] = self.weights.value
        if self.dtype.value:
            data["dtype"] = self.dtype.value
        self._keep(write(data | self.other))

    def _keep(self, text: str) -> None:
        """Show what is wrong with a recipe, and keep it."""
        self.filling = True
        self.text.value = text
        self.filling = False
        encoded = base64.b64encode(text.encode()).decode()
        self.link.value = f'<a download="recipe.yaml" href="data:text/yaml;base64,{encoded}">Download recipe.yaml</a>'
        self.explained.value = ui.told("note", GATES[self.gate.value])
        self.weighed.value = ui.told("note", WEIGHTS[self.weights.value])
        for i, row in enumerate(self.rows, 1):
            row.title.value = f"<b>Expert {i}</b>"
        self.welcome.layout.display = None if text == BLANK else "none"
        problems, warnings = _bad_name(self.name.value), list[Problem]()
        try:
            found, warnings = review(Recipe.from_yaml(text))
            problems += found
        except LazyMoEError as e:
            problems += e.problems
        self._tell(problems if text != BLANK else [], warnings)  # nothing is wrong before the first key
        SESSION.change(yaml=text, name=None if _bad_name(self.name.value) else self.name.value)

    def _tell(self, problems: Sequence[Problem], warnings: Sequence[Problem]) -> None:
        """Show what is wrong beside the fields that have it; the rest, and what is doubtful, above the form."""
        beside: dict[Any, ui.Messages] = {(None, key): message for key, message in self.messages.items()}
        beside |= {(i, key): message for i, row in enumerate(self.rows) for key, message in row.messages.items()}
        words = dict.fromkeys([*beside.values(), self.told], "")
        for problem in problems:
            match = EXPERT.match(problem.where)
            place = (int(match[1]), match[2]) if match else (None, re.split(r"\W", problem.where)[0])
            if place in beside:
                words[beside[place]] += ui.told("error", f"{problem.what}. {problem.remedy}")
            else:
                words[self.told] += ui.told("error", str(problem))
        for problem in warnings:
            words[self.told] += ui.told("warning", str(problem))
        for message, value in words.items():
            message.value = value
        self.beside.show("error", *problems)

    def _list(self, rows: list[ExpertRow]) -> None:
        self.rows = rows
        self.listed.children = [row.box for row in rows]

    def _added(self) -> None:
        self._list([*self.rows, ExpertRow({}, self._changed, self._moved)])
        self._changed()

    def _moved(self, act: str, row: ExpertRow) -> None:
        rows = [r for r in self.rows if r is not row]
        place = self.rows.index(row)
        if act != "remove":
            rows.insert(max(0, place + (-1 if act == "up" else 1)), row)
        self._list(rows)
        self._changed()


def recipe() -> w.Widget:
    """Make the panel: the form, and the YAML."""
    return Form().panel


def _bad_name(name: str) -> list[Problem]:
    if name and Path(name).name == name and not name.startswith("."):
        return []
    return [
        Problem("input.name", "name", "this can't be the name of a folder", "Use letters, digits, dashes and dots.")
    ]


def _list(prompts: Any) -> list[Any]:
    return [] if prompts is None else prompts if isinstance(prompts, list) else [prompts]


def _lines(prompts: Any) -> str:
    """Write out the written prompts, one a line; a line break inside one shows as \\n."""
    return "\n".join(p.replace("\n", "\\n") for p in _list(prompts) if isinstance(p, str))


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
