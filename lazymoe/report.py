"""Who gets which token, and how good is it? For losses every model reads the same texts: the base model, each expert,
the plain average of the experts' weights, the mixture. Routing alone takes the mixture's pass only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from lazymoe.check import absolute, billions, check
from lazymoe.errors import LazyMoEError, Problem, error
from lazymoe.measure import WINDOW, Average, dense_losses, mixture_losses, windows
from lazymoe.picture import draw
from lazymoe.plan import Plan
from lazymoe.progress import Progress, silent
from lazymoe.prompts import read_prompts
from lazymoe.recipe import Recipe, Reference
from lazymoe.router import pick_device, spell_layers
from lazymoe.router.mixture import run
from lazymoe.router.stream import Weights
from lazymoe.router.texts import load_tokenizer
from lazymoe.source import fetch, open_source
from lazymoe.write import write_whole

FILE = "report.json"
PICTURE = "routing.png"
PICTURES = {PICTURE: False, "routing-dark.png": True}  # name to whether it is for a dark page
CROWDED = 0.6  # share of balanced texts above which one expert has a layer nearly to itself
ALIKE = 0.1  # distance between two domains' shares, of 0 to 1, under which a layer treats them as one


@dataclass(frozen=True)
class Report:
    """What was measured. Domains are the experts' own, in the recipe's order; E = D experts, L layers.

    Attributes:
        names: of the experts.
        held_out: whether the texts were given for measuring; otherwise they are the router's own prompts.
        losses: mean loss per token, nats: model ("base", an expert's name, "average", "mixture") to ``[D]``; empty if
            only the routing was measured.
        shares: of a domain's tokens, what part of the choices went to each expert ``[L][D][E]``.
        accuracy: of a domain's tokens, for what part the first choice was its own expert ``[L][D]``.
        entropy: of a token's weights over the chosen experts, mean, in bits ``[L]``.
        active: parameters that a token meets with one expert per token, with two, and so on up to E.
        top_k: experts per token.
    """

    names: list[str]
    held_out: bool
    losses: dict[str, list[float]]
    shares: list[list[list[float]]]
    accuracy: list[list[float]]
    entropy: list[float]
    active: list[int]
    top_k: int

    def recovered(self, model: str = "mixture", domain: int | None = None) -> float:
        """How far a model came from the base model (0) to a domain's own expert (1); over all domains if none given."""
        domains = range(len(self.names)) if domain is None else [domain]
        base, reached = (sum(self.losses[key][d] for d in domains) for key in ("base", model))
        own = sum(self.losses[self.names[d]][d] for d in domains)
        return (base - reached) / (base - own) if base != own else 1.0

    @property
    def mean_accuracy(self) -> float:
        return sum(map(sum, self.accuracy)) / sum(map(len, self.accuracy))

    @property
    def mean_shares(self) -> list[list[float]]:
        """``shares`` over all layers: ``[D][E]``."""
        return torch.tensor(self.shares).mean(0).tolist()

    @property
    def load(self) -> list[list[float]]:
        """Each expert's share of all choices in each layer, domains counted equally: ``[L][E]``."""
        return torch.tensor(self.shares).mean(1).tolist()

    def to_dict(self) -> dict[str, Any]:
        """For programs, and for JSON."""
        domains = range(len(self.names))
        return asdict(self) | {
            "recovered": [self.recovered(domain=d) for d in domains] if self.losses else None,
            "recovered_mean": self.recovered() if self.losses else None,
            "mean_accuracy": self.mean_accuracy,
            "mean_shares": self.mean_shares,
            "problems": [str(p) for p in self.problems()],
        }

    def save(self, folder: str | Path) -> None:
        """Put the report beside a mixture, as JSON and as pictures, for its card."""
        write_whole(Path(folder) / FILE, json.dumps(self.to_dict(), indent=2) + "\n")
        for name, dark in PICTURES.items():
            write_whole(Path(folder) / name, draw(self.names, self.mean_shares, self.load, self.top_k, dark))

    def __str__(self) -> str:
        wide = max(12, *(len(n) + 2 for n in self.names))
        columns = "".join(f"{name:>{wide}}" for name in self.names)
        text = "held-out text" if self.held_out else "the routers' own prompts (give --texts for an honest figure)"
        lines = []
        if self.losses:
            lines += [
                f"Loss on {text}; lower is better:",
                "",
                f"{'':<24}{columns}{'mean':>{wide}}{'recovered':>{wide}}",
            ]
            for name, row in self.losses.items():
                cells = "".join(f"{x:>{wide}.3f}" for x in [*row, sum(row) / len(row)])
                lines.append(f"{name:<24}{cells}{self.recovered(name):>{wide}.0%}")
            own = "".join(f"{self.recovered(domain=d):>{wide}.0%}" for d in range(len(self.names)))
            lines += [f"{'recovered by mixture':<24}{own}", ""]
        lines += [f"Where the tokens of {text} go ({self.mean_accuracy:.0%} to their own expert first):", ""]
        lines.append(f"{'':<24}{columns}")
        for e, name in enumerate(self.names):
            lines.append(f"{'to ' + name:<24}" + "".join(f"{row[e]:>{wide}.0%}" for row in self.mean_shares))
        lines += ["", "What each expert gets in each layer, and how many tokens their own expert gets first:", ""]
        lines.append(f"{'':<24}{columns}{'right':>{wide}}")
        for layer, row in enumerate(self.load):
            right = sum(self.accuracy[layer]) / len(self.names)
            lines.append(f"{f'layer {layer}':<24}" + "".join(f"{x:>{wide}.0%}" for x in [*row, right]))
        if self.top_k > 1:
            now, one = billions(self.active[self.top_k - 1]), billions(self.active[0])
            saved = 1 - self.active[0] / self.active[self.top_k - 1]
            lines += ["", f"A token meets {now} parameters; with 'experts_per_token: 1' {one}, {saved:.0%} fewer."]
        return "\n".join([*lines, "", *(f"warning: {p}" for p in self.problems())])

    def problems(self) -> Iterator[Problem]:
        """What is wrong with this mixture, in plain words."""
        shares, n = self.mean_shares, len(self.names)
        for e, name in enumerate(self.names):
            got = sum(row[e] for row in shares) / n
            if got < 1 / n / 4:
                what = f"it gets {got:.0%} of all tokens, so it is hardly used"
                yield Problem(f"expert {name}", what, "Give it more prompts, of the kind it should answer.")
            best = max(range(n), key=lambda other: shares[e][other])
            if best != e:
                what = f"most of its own texts' tokens go to {self.names[best]}"
                yield Problem(
                    f"expert {name}", what, "Its prompts are unlike its texts: use samples of these as prompts."
                )
        for layers, e in self._crowded():
            what = f"in {spell_layers(layers, len(self.shares))} it gets more than {CROWDED:.0%} of all tokens"
            yield Problem(
                f"expert {self.names[e]}", what, "Give the others more prompts, of the kind they should answer."
            )
        for layers, a, b in self._alike():
            what = f"{spell_layers(layers, len(self.shares))} treat their texts alike"
            remedy = "Give them prompts that differ more: whole texts of the kind each should answer."
            yield Problem(f"experts {self.names[a]} and {self.names[b]}", what, remedy)
        if self.losses and sum(self.losses["mixture"]) > sum(self.losses["average"]):
            what = "it is worse than the plain average of its experts' weights, a dense model"
            yield Problem("the mixture", what, "Don't publish this one: use 'gate_mode: fit' and better prompts.")

    def _crowded(self) -> Iterator[tuple[list[int], int]]:
        """Layers in which one expert gets nearly everything, with that expert."""
        for e in range(len(self.names) if len(self.names) > 1 else 0):
            if layers := [layer for layer, row in enumerate(self.load) if row[e] > CROWDED]:
                yield layers, e

    def _alike(self) -> Iterator[tuple[list[int], int, int]]:
        """Layers that can't tell the texts of two experts apart, with the two."""
        shares = torch.tensor(self.shares)  # [L, D, E]
        for a in range(len(self.names)):
            for b in range(a + 1, len(self.names)):
                distance = (shares[:, a] - shares[:, b]).abs().sum(-1) / 2  # [L]
                if layers := (distance < ALIKE).nonzero().flatten().tolist():
                    yield layers, a, b


def report(
    out: str | Path,
    texts: Sequence[Sequence[str]] | None = None,
    *,
    losses: bool = True,
    device: str | None = None,
    progress: Progress = silent,
) -> Report:
    """Measure a finished mixture.

    Args:
        out: its folder, which holds the recipe; the recipe's models must be reachable.
        texts: for each expert, texts of its domain that the routers have not seen; its prompts if absent.
        losses: also measure how good it is, for which every one of its models is run; else its routing alone.
        device: where to compute; a CUDA device if there is one by default.
        progress: told of the models done.

    Raises:
        LazyMoEError: if the folder isn't such a mixture, or its models can't be found.
    """
    out = absolute(out)
    recipe, plan = reopen(out)
    given = texts or [e.positive for e in read_prompts(recipe).experts]
    if len(given) != plan.experts or not all(given):
        raise error("texts", f"{plan.experts} experts need a list of texts each", "Give one list for each expert.")
    batches = [windows(plan.sources[0], domain) for domain in given]
    device = pick_device(device)
    names = expert_names(recipe)

    models: dict[str, Weights] = {}
    if losses:
        models = {"base": plan.sources[0], **dict(zip(names, plan.expert_sources, strict=True))}
        models["average"] = Average(plan.expert_sources)
    measured = {}
    for done, (name, source) in enumerate(models.items(), 1):
        measured[name] = dense_losses(plan, source, batches, device)
        progress("measure", done, len(models) + 1)
    measured["mixture"], shares, accuracy, entropy = mixture_losses(plan, open_source(str(out)), batches, device)
    progress("measure", len(models) + 1, len(models) + 1)
    active = [plan.active(k) for k in range(1, plan.experts + 1)]
    return Report(names, texts is not None, measured if losses else {}, shares, accuracy, entropy, active, plan.top_k)


def trace(out: str | Path, text: str, device: str | None = None) -> tuple[list[str], list[list[int]]]:
    """Which expert takes which token of a text.

    Returns:
        The tokens as text ``[T]``, and the first choice of each layer for each of them ``[L][T]``.

    Raises:
        LazyMoEError: as `report`.
    """
    out = absolute(out)
    _, plan = reopen(out)
    tokenizer = load_tokenizer(plan.sources[0])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:WINDOW]
    if not ids:
        raise error("text", "it is empty", "Type a sentence.")
    start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    experts: list[list[int]] = [[] for _ in range(plan.layers)]

    def seen(layer: int, batch: int, chosen: Tensor, weights: Tensor) -> None:
        experts[layer] = chosen[len(start) :, 0].tolist()

    device = pick_device(device)
    run(plan, open_source(str(out)), [torch.tensor([start + ids])], device, seen)
    return [tokenizer.decode([i]) for i in ids], experts


def reopen(out: Path) -> tuple[Recipe, Plan]:
    """The recipe and the plan of a finished mixture, whose sources are brought if need be.

    Raises:
        LazyMoEError: if the folder isn't such a mixture, or its models can't be found.
    """
    recipe = Recipe.from_yaml(out / "recipe.yaml")
    found = check(recipe, out)
    if found.plan is None:
        raise LazyMoEError(found.errors)
    for (where, _), source in zip(recipe.models(), found.plan.sources, strict=True):
        fetch(source, where)
    return recipe, found.plan


def read_texts(path: Path) -> list[list[str]]:
    """Texts to measure on, from a YAML (or JSON) file: for each expert, in the recipe's order, a list of texts.

    Raises:
        LazyMoEError: if the file can't be read or isn't that.
    """
    try:
        texts = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        raise error(path, "the texts can't be read", "Name a YAML file.") from None
    if not isinstance(texts, list) or not all(
        isinstance(t, list) and all(isinstance(x, str) for x in t) for t in texts
    ):
        raise error(path, "this isn't a list of lists of texts", "Give one list of texts for each expert.")
    return texts


def expert_names(recipe: Recipe) -> list[str]:
    """A short name for each expert, all different."""
    short = [_short_name(Reference.parse(e.source_model)) for e in recipe.experts]
    return [f"{name} ({i})" if short.count(name) > 1 else name for i, name in enumerate(short, 1)]


def _short_name(reference: Reference) -> str:
    """The last part of a model's name; with an adapter, of the adapter's, since many can share a model."""
    if reference.adapter:
        return _short_name(Reference.parse(reference.adapter))
    return " ".join(reference.model.partition("@")[0].rstrip("/").rpartition("/")[2].split())
