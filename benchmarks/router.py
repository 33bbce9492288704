"""Which router is best? Every method on the same models, texts and prompts, in one run.

    python benchmarks/router.py BASE EXPERT=TEXTS EXPERT=TEXTS ... [--outside TEXT] [--tokens 8192]
                                [--experts-per-token 2] [--only WORD]

TEXTS is a text file of the expert's domain that it wasn't trained on. From its first half come three sets of prompts,
32 passages of 64 tokens each; the second half is measured on. If there are files TEXTS.held.txt and
TEXTS.keywords.txt, TEXTS.prompts.txt, TEXTS.samples.txt (a JSON string a line), these are used instead.

"Recovered" is how far a model came from the base model's held-out loss (0 %) to that of each domain's own expert
(100 %). TEXT is a file of no expert's domain; the last column is the loss on it. Mixtures are made by `lazymoe.merge`
and read back from the disk; DUME, perfect routing and the dense rivals exist only here. Everything is seeded.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lazymoe import Recipe, check, merge
from lazymoe.architectures.records import LAYER
from lazymoe.checkpoint.opening import open_folder, open_source
from lazymoe.checkpoint.safetensors import open_file
from lazymoe.checkpoint.source import Source
from lazymoe.forward.losses import dense_losses, mixture_losses
from lazymoe.forward.mixture import InMixture
from lazymoe.forward.stream import Stream
from lazymoe.forward.tokens import load_tokenizer, pack, pad, windows
from lazymoe.planning.plan import Plan
from lazymoe.recipe.reference import Reference

SETS = ("keywords", "prompts", "samples")
SAMPLES, SAMPLE = 32, 64  # passages in a set of samples, tokens of each
SCALES = (0.3, 0.4, 0.5)  # of task arithmetic: the best on the held-out text is shown, which favours it
METHODS = {  # mixtures, by what a recipe says of them
    "hidden (mergekit-moe)": {"gate_mode": "hidden"},
    "fit, body of the base": {"gate_mode": "fit", "shared_weights": "base"},
    "fit, body averaged": {"gate_mode": "fit", "shared_weights": "average"},
    "hidden, body merged": {"gate_mode": "hidden", "shared_weights": "regmean"},
    "fit, body merged (LazyMoE's default)": {"gate_mode": "fit"},
    "fit, body merged, experts corrected": {"gate_mode": "fit", "expert_weights": "corrected"},
}
DUME = {"ridge": 1e-2, "temperature": 0.1}  # https://arxiv.org/abs/2603.29765
Batches = Sequence[tuple[Tensor, Tensor]]  # token ids and which are real, [B, T] both, for each domain


@dataclass(frozen=True)
class Row:
    """One model's figures: its losses ``[D]``, after them that outside all domains if it was measured, and for a
    mixture its accuracy and the largest share in a layer."""

    name: str
    losses: list[float]
    accuracy: float | None = None
    largest: float | None = None


class Arithmetic:
    """The base model plus the scaled sum of what each expert changed, as a source (1/E: the plain average)."""

    def __init__(self, base: Source, experts: Sequence[Source], scale: float) -> None:
        self.base, self.experts, self.scale = base, experts, scale
        self.config, self.folder, self.tensors, self.dense = base.config, base.folder, base.tensors, base.dense

    def load(self, name: str) -> Tensor:
        base = self.base.load(name).float()
        return base + self.scale * sum(e.load(name).float() - base for e in self.experts)

    def rows(self, name: str, indices: Iterable[int]) -> Tensor:
        base = self.base.rows(name, indices).float()
        return base + self.scale * sum(e.rows(name, indices).float() - base for e in self.experts)


class Routed:
    """A mixture whose every token goes to one expert, as a dense source: perfect routing for that expert's domain."""

    def __init__(self, plan: Plan, mixture: Source, expert: int) -> None:
        self.body, self.expert = InMixture(plan, mixture, 0), InMixture(plan, mixture, expert + 1)
        self.config, self.folder, self.dense = self.body.config, mixture.folder, self.body.dense
        self.rows, self.tensors = self.body.rows, self.body.tensors

    def load(self, name: str) -> Tensor:
        return (self.expert if name in self.expert.tensors else self.body).load(name)


def dense_rows(plan: Plan, names: Sequence[str], batches: Batches) -> Iterator[Row]:
    base, *experts = plan.sources
    yield Row("base", dense_losses(plan, base, batches, "cpu"))
    for name, expert in zip(names, experts, strict=True):
        yield Row(name, dense_losses(plan, expert, batches, "cpu"))
    yield Row("plain average (dense)", dense_losses(plan, Arithmetic(base, experts, 1 / len(experts)), batches, "cpu"))
    tried = [(s, dense_losses(plan, Arithmetic(base, experts, s), batches, "cpu")) for s in SCALES]
    scale, losses = min(tried, key=lambda row: sum(row[1][: len(names)]))
    yield Row(f"task arithmetic, best scale {scale} (dense)", losses)


def mixture_row(name: str, plan: Plan, mixture: Source, batches: Batches) -> Row:
    losses, routing = mixture_losses(plan, mixture, batches, "cpu")
    accuracy, shares = torch.tensor(routing.accuracy), torch.tensor(routing.shares)  # [L, D], [L, D, E]
    own = slice(plan.experts)  # without what is outside all domains
    return Row(name, losses, accuracy[:, own].mean().item(), shares[:, own].mean(1).max().item())


def perfect_row(name: str, plan: Plan, mixture: Source, batches: Batches) -> Row:
    own = zip(range(plan.experts), batches, strict=False)
    return Row(name, [dense_losses(plan, Routed(plan, mixture, e), [batch], "cpu")[0] for e, batch in own], 1.0)


def with_gates(plan: Plan, mixture: Source, gates: Sequence[Tensor], file: Path) -> Source:
    """A mixture with other routers ``[E, H]``, which are put into a file."""
    save_file({LAYER.format(layer=i) + plan.host.router: g.clone() for i, g in enumerate(gates)}, file)
    return replace(mixture, tensors=mixture.tensors | open_file(file))


@torch.no_grad()
def dume_gates(plan: Plan, prompts: Sequence[Sequence[str]]) -> list[Tensor]:
    """DUME's routers: ridge regression from what each expert's own feed-forward networks read to whose text it is."""
    seen: list[list[Tensor]] = [[] for _ in range(plan.layers)]
    tokenizer = load_tokenizer(plan.sources[0])
    for expert, texts in zip(plan.expert_sources, prompts, strict=True):
        batch, real = pad(pack(tokenizer, texts).sequences)
        stream = Stream(expert, [batch], "cpu")
        for layer in range(plan.layers):

            def watch(module: nn.Module, rows: list[Tensor] = seen[layer], real: Tensor = real) -> None:
                network = getattr(module, plan.dense.module)
                network.register_forward_pre_hook(lambda _, args: rows.append(args[0][real]))

            stream.step(watch)
    gates = []
    for rows in seen:
        x = torch.cat(rows)  # [n, H]
        y = torch.cat([torch.full((len(r),), e) for e, r in enumerate(rows)])
        wanted = torch.nn.functional.one_hot(y, len(rows)).float()
        ridge = DUME["ridge"] * torch.eye(x.shape[1])
        w = torch.linalg.solve(x.T @ x + ridge, x.T @ wanted).T  # [E, H]
        gates.append(torch.nn.functional.normalize(w, dim=-1) / DUME["temperature"])
    return gates


def recipe_of(base: str, experts: Sequence[str], prompts: Sequence[Sequence[str]], **fields: Any) -> Recipe:
    listed: list[dict[str, Any]] = [
        {"source_model": e, "positive_prompts": list(p)}
        for e, p in zip(experts, prompts or [["-"]] * len(experts), strict=True)
    ]
    if fields.pop("negative", False):  # the others' prompts
        for own in listed:
            own["negative_prompts"] = [p for e in listed if e is not own for p in e["positive_prompts"]]
    return Recipe.model_validate({"base_model": base, "experts": listed, **fields})


def read_domain(source: Source, texts: str) -> tuple[str, dict[str, list[str]]]:
    """Held-out text, and the three sets of prompts by name."""
    stem = Path(texts)
    if (held := stem.with_name(stem.name + ".held.txt")).exists():
        files = {name: stem.with_name(f"{stem.name}.{name}.txt") for name in SETS}
        return held.read_text(), {n: [json.loads(line) for line in open(f)] for n, f in files.items()}
    text, tokenizer = stem.read_text(), load_tokenizer(source)
    ids = tokenizer(text[: len(text) // 2], add_special_tokens=False)["input_ids"]
    passages = [tokenizer.decode(ids[i : i + SAMPLE]) for i in range(0, len(ids), SAMPLE)]
    order = torch.randperm(len(passages), generator=torch.Generator().manual_seed(0)).tolist()
    sets = {f"samples {i + 1}": [passages[p] for p in order[i::3][:SAMPLES]] for i in range(3)}
    return text[len(text) // 2 :], sets


def table(rows: Sequence[Row], names: Sequence[str]) -> str:
    """A Markdown table of rows, the first of which are the base model's and the experts' own."""
    base, own = rows[0].losses, [rows[1 + d].losses[d] for d in range(len(names))]

    def recovered(losses: Sequence[float], domains: Sequence[int]) -> str:
        way = sum(base[d] - losses[d] for d in domains) / sum(base[d] - own[d] for d in domains)
        return f"{way:.0%}" if len(domains) == 1 else f"{way:.1%}"

    everything = range(len(names))
    head = ["model", "mean loss", "recovered", *names, "right expert", "largest share", "loss outside"]
    lines = [" | ".join(["", *head, ""]).strip(), "|" + "---|" * len(head)]
    for row in rows:
        cells = [row.name, f"{sum(row.losses[: len(names)]) / len(names):.3f}", recovered(row.losses, everything)]
        cells += [recovered(row.losses, [d]) for d in everything]
        cells += ["" if x is None else f"{x:.0%}" for x in (row.accuracy, row.largest)]
        cells += [f"{loss:.3f}" for loss in row.losses[len(names) :]] or [""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", metavar="BASE")
    parser.add_argument("experts", metavar="EXPERT=TEXTS", nargs="+")
    parser.add_argument("--outside", metavar="TEXT", type=Path, help="a text of no expert's domain")
    parser.add_argument("--tokens", type=int, default=8192, help="held-out tokens of each domain")
    parser.add_argument("--experts-per-token", type=int, default=2)
    parser.add_argument("--only", metavar="WORD", help="only the mixtures with this in their names")
    options = parser.parse_args()
    experts, texts = zip(*(pair.split("=", 1) for pair in options.experts), strict=True)
    names, top_k = [Path(e).name for e in experts], options.experts_per_token
    base = open_source(Reference.parse(options.base), "BASE")
    domains = [read_domain(base, t) for t in texts]
    tokenizer = load_tokenizer(base)
    held = [text for text, _ in domains] + ([options.outside.read_text()] if options.outside else [])
    batches = [windows(tokenizer, [text], options.tokens) for text in held]
    rows: list[Row] = []

    def show(row: Row) -> None:
        rows.append(row)
        print(table(rows, names).splitlines()[-1] if len(rows) > len(names) else row.name, flush=True)

    with tempfile.TemporaryDirectory(prefix="lazymoe-") as temporary:

        def made(place: str, prompts: Sequence[Sequence[str]], **fields: Any) -> tuple[Plan, Source]:
            recipe = recipe_of(options.base, experts, prompts, **{"experts_per_token": top_k, **fields})
            done = merge(recipe, Path(temporary) / place, device="cpu")
            return done.plan, open_folder(done.folder)

        plan = check(recipe_of(options.base, experts, [], gate_mode="random")).plan
        assert plan
        for row in dense_rows(plan, names, batches):
            show(row)
        plan, mixture = made("random", [], gate_mode="random")
        show(mixture_row("random routers", plan, mixture, batches))
        zeros = [torch.zeros(plan.experts, plan.hidden_size)] * plan.layers
        every = replace(plan, top_k=plan.experts)
        uniform = with_gates(plan, mixture, zeros, Path(temporary) / "uniform.safetensors")
        show(mixture_row("uniform routers, all experts", every, uniform, batches))
        show(perfect_row("perfect routing, body of the base", plan, mixture, batches))

        for name in domains[0][1]:
            prompts = [sets[name] for _, sets in domains]
            for method, fields in METHODS.items():
                place = f"{name}-{method}".replace(" ", "-")
                if options.only and options.only not in method:
                    continue
                plan, mixture = made(place, prompts, **fields)
                show(mixture_row(f"{name}: {method}", plan, mixture, batches))
                if "averaged" in method:
                    dume = with_gates(plan, mixture, dume_gates(plan, prompts), Path(temporary) / "dume.safetensors")
                    show(mixture_row(f"{name}: DUME, body averaged", plan, dume, batches))
                if "body merged" in method and fields["gate_mode"] == "fit":
                    show(perfect_row(f"{name}: {method}, but perfect routing", plan, mixture, batches))
            if options.only:
                continue
            other = 1 if top_k > 1 else 2
            plan, mixture = made(f"{name}-top-{other}", prompts, experts_per_token=other)
            show(mixture_row(f"{name}: LazyMoE's default, top-{other}", plan, mixture, batches))
            plan, mixture = made(f"{name}-negative", prompts, negative=True)
            show(mixture_row(f"{name}: LazyMoE's default, the others' prompts negative", plan, mixture, batches))
    print(f"\n{table(rows, names)}")


if __name__ == "__main__":
    main()
