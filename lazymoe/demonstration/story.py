"""The whole story in a minute: tiny experts trained on the spot, merged by a recipe like anyone's, and measured.

Offline, without a GPU or an account. The models and their texts are in `models`.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazymoe.checkpoint.opening import open_folder
from lazymoe.demonstration.models import Domain, build, cache_folder, domains, one_thread
from lazymoe.files import absolute, shown
from lazymoe.merging import merge
from lazymoe.progress import Progress, silent, without_loading_bars
from lazymoe.recipe.schema import Expert, Recipe

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

WINDOW = 128  # tokens that are read at a time when a model is measured


@dataclass(frozen=True)
class Demo:
    """What the demo measured.

    Attributes:
        folder: the mixture with fitted routers; None unless an output was asked for.
        domains: names of the kinds of text, which are those of the experts too.
        losses: mean loss per token on held-out text, nats: model to one figure for each domain.
        shares: of a domain's tokens that each expert got, over all layers and choices: ``[domains][experts]``.
    """

    folder: Path | None
    domains: list[str]
    losses: dict[str, list[float]]
    shares: list[list[float]]

    def to_dict(self) -> dict[str, Any]:
        """Give its fields by name, for programs."""
        return asdict(self) | {"folder": str(self.folder) if self.folder else None}

    def __str__(self) -> str:
        head = f"{'':<26}" + "".join(f"{name:>10}" for name in [*self.domains, "mean"])
        rows = {name: [*row, sum(row) / len(row)] for name, row in self.losses.items()}
        lines = ["Loss on text that no model was trained on (lower is better):", "", head]
        lines += [f"{name:<26}" + "".join(f"{loss:>10.2f}" for loss in row) for name, row in rows.items()]
        lines += [
            "",
            "Which expert the fitted routers give a text's tokens to:",
            "",
            head.removesuffix(f"{'mean':>10}"),
        ]
        for i, expert in enumerate(self.domains):
            lines.append(f"{'to expert ' + expert:<26}" + "".join(f"{row[i]:>10.0%}" for row in self.shares))
        if self.folder:
            lines += ["", f"The mixture is in {shown(self.folder)}."]
        return "\n".join(lines)


def demo(folder: str | os.PathLike[str] | None = None, *, progress: Progress = silent) -> Demo:
    """Train, merge and measure. The trained models are kept in the user's cache for the next time.

    Args:
        folder: a new one for the mixture with fitted routers; a temporary one if absent.
        progress: told of the training steps, stage ``train``, then of the models measured, stage ``measure``.

    Returns:
        The losses and routing that were measured.

    Raises:
        OutputError: if the output folder is taken, or can't be written.
        LazyMoEError: if this Python has no source of its library to train on.
    """
    kept = absolute(folder) if folder else None
    models = cache_folder()
    build(models, progress)
    kinds = domains()
    with one_thread(), tempfile.TemporaryDirectory(prefix="lazymoe-") as temporary:
        folders = {f"MoE, {gate_mode} routers": Path(temporary) / gate_mode for gate_mode in ("random", "hidden")}
        folders["MoE, fitted routers"] = kept or Path(temporary) / "fit"
        for gate_mode, made in zip(("random", "hidden", "fit"), folders.values(), strict=True):
            merge(demo_recipe(models, kinds, gate_mode), made)
        losses, shares = _measure(models, kinds, folders, progress)
    return Demo(kept, [kind.name for kind in kinds], losses, shares)


def demo_recipe(models: Path, kinds: list[Domain], gate_mode: str) -> Recipe:
    """Write the recipe of the demo: an expert for each kind of text, with its prompts.

    Args:
        models: the folder that `build` made.
        kinds: of text.
        gate_mode: how the routers are made.
    """
    experts = [Expert(source_model=str(models / kind.name), positive_prompts=list(kind.prompts)) for kind in kinds]
    return Recipe.model_validate({"base_model": str(models / "base"), "gate_mode": gate_mode, "experts": experts})


def _measure(
    models: Path, kinds: list[Domain], mixtures: dict[str, Path], progress: Progress
) -> tuple[dict[str, list[float]], list[list[float]]]:
    """Measure the losses of every model on every domain, and who gets which tokens in the last of the mixtures."""
    import torch
    from transformers import AutoModelForCausalLM

    from lazymoe.forward.tokens import load_tokenizer

    tokenizer = load_tokenizer(open_folder(models / "base"))
    held = []
    for kind in kinds:
        ids = torch.tensor(tokenizer(kind.held, add_special_tokens=False)["input_ids"])
        windows = ids[: len(ids) // (WINDOW - 1) * (WINDOW - 1)].reshape(-1, WINDOW - 1)
        held.append(torch.nn.functional.pad(windows, (1, 0), value=tokenizer.bos_token_id))  # [windows, WINDOW]

    folders = {"base": models / "base"} | {f"expert {kind.name}": models / kind.name for kind in kinds}
    rows = [*folders, "plain average of experts", *mixtures]
    average: dict[str, torch.Tensor] = {}
    losses, shares = {}, []
    for done, row in enumerate(rows, 1):
        folder = (folders | mixtures).get(row, models / "base")
        with without_loading_bars():
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
        if row.startswith("expert "):
            for name, weight in model.state_dict().items():
                average[name] = average.get(name, 0) + weight / len(kinds)
        elif row not in folders and row not in mixtures:
            model.load_state_dict(average)
        measured = [_loss_and_routing(model, ids) for ids in held]
        losses[row] = [loss for loss, _ in measured]
        shares = [share for _, share in measured]
        progress("measure", done, len(rows))
    return losses, shares


def _loss_and_routing(model: PreTrainedModel, ids: torch.Tensor) -> tuple[float, list[float]]:
    """Measure the mean loss on windows of tokens ``[windows, T]``, and each expert's share of all choices, if any."""
    import torch

    experts = getattr(model.config, "num_local_experts", 0)
    with torch.no_grad():
        output = model(ids, labels=ids, **({"output_router_logits": True} if experts else {}))
    loss = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    if not experts:
        return loss.item(), []
    chosen = torch.stack(output.router_logits).topk(model.config.num_experts_per_tok).indices  # [L, tokens, k]
    return loss.item(), (chosen.flatten().bincount(minlength=experts) / chosen.numel()).tolist()
