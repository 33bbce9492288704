"""Corrected experts: down projections moved, so that in the mixture each expert answers more as its own model does.

What experts share is nobody's own, so each of them reads something else than it was trained on. On its own prompts it
is known what is missing after a layer: its own model's residual stream less the mixture's with this expert alone. The
down projection makes up for it by ridge regression in closed form, layer after layer, each on the states that the
corrected layers below it give:

    W <- W + ((X^T S X + a I)^-1 X^T S R)^T

where X is what the down projection reads of the prompts' tokens ``[n, M]``, R what is missing ``[n, H]``, and S weights
each token by the inverse mean square of its own model's state: the first token's is a hundred times larger than the
others'. As in RegMean (https://arxiv.org/abs/2212.09849), but toward states instead of weights. Copies of short
prompts, see `variety`, tell as much as these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lazymoe.errors import error
from lazymoe.forward.device import exactly
from lazymoe.forward.parts import After, instead
from lazymoe.forward.stream import Stream
from lazymoe.planning.plan import Plan

PENALTY = 700  # over the number of the prompts' and copies' tokens: the more there are, the further they are followed
TINY = 1e-30  # of a penalty: it can still be inverted where nothing is read


class Correction:
    """An expert's prompts on their way through its own model, and what they tell of its layers in the mixture.

    Attributes:
        stream: the prompts on that way.
    """

    def __init__(
        self, plan: Plan, expert: int, batches: Mapping[int, tuple[Tensor, Tensor]], tokens: int, device: str
    ) -> None:
        """Embed the prompts.

        Args:
            plan: what is wanted.
            expert: its number.
            batches: its positive prompts and their copies, by the number of the batch in the mixture's pass: token
                ids, and which of their places are real, both ``[B, T]``.
            tokens: how many these have.
            device: where to compute.

        Raises:
            RecipeError: if there is a token that its embeddings lack.
        """
        source = plan.sources[expert + 1]
        if max(int(ids.max()) for ids, _ in batches.values()) >= source.tensor(plan.dense.embeddings).shape[0]:
            what = f"{source.reference} lacks a token of its prompts, so it can't read these for itself"
            raise error("recipe.corrected", "expert_weights", what, "Use 'expert_weights: own'.")
        self.plan, self.penalty = plan, PENALTY / tokens
        self.real = {batch: real.to(device) for batch, (_, real) in batches.items()}
        self.stream = Stream(source, [ids for ids, _ in batches.values()], device)

    def correct(self, module: nn.Module, read: Sequence[Tensor], after: After) -> tuple[str, Tensor]:
        """Run the next layer of the expert's own model, and correct its down projection in the mixture's.

        Args:
            module: the feed-forward module, with the expert's own weights of this layer; the corrected ones are put in.
            read: what it reads in the mixture, of each batch ``[B * T, H]``.
            after: what comes after it there, see `parts.After`.

        Returns:
            The matrix as it lies, in the output's dtype, after its name in the expert's model.

        Raises:
            SourceError: if a state or a weight is NaN or infinite.
        """
        plan, layer, forward = self.plan, self.stream.next, type(module).forward

        def own(_: nn.Module, x: Sequence[Tensor], __: After) -> list[Tensor]:
            return [forward(module, rows) for rows in x]

        self.stream.step(feed_forward=(plan.dense.module, own))

        name, _ = plan.dense.ffn["down"]
        projection: Any = module.get_submodule(name.removeprefix(f"{plan.dense.module}.").removesuffix(".weight"))
        turned = name in plan.dense.turned
        matrix = projection.weight.T if turned else projection.weight  # [H, M]
        inputs: list[Tensor] = []
        hook = projection.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        counts = [int(real.sum()) for real in self.real.values()]
        width, inner = matrix.shape
        x, missing = read[0].new_empty(sum(counts), inner), read[0].new_empty(sum(counts), width)  # [n, M], [n, H]
        weights = read[0].new_empty(sum(counts))
        parts = zip(*(rows.split(counts) for rows in (x, missing, weights)), strict=True)
        given = zip(self.real.items(), self.stream.states, parts, strict=True)
        for (batch, real), wanted, (inside, lack, weight) in given:
            answered = after(batch, forward(module, read[batch]))  # [B, T, H]
            inside.copy_(inputs.pop()[real.flatten()])
            lack.copy_((wanted - answered)[real])
            weight.copy_(1 / wanted[real].square().mean(-1))
        hook.remove()

        # what is added for each unit that the projection gives: Granite and Falcon H1 scale it
        batch = next(iter(self.real))
        with instead(projection, lambda x: x.new_ones(*x.shape[:-1], width)):
            one = after(batch, forward(module, read[batch]))
        with instead(projection, lambda x: x.new_zeros(*x.shape[:-1], width)):
            factor = (one - after(batch, forward(module, read[batch]))).median()
        with exactly():
            moved = matrix + ridge(x, missing.div_(factor), weights, self.penalty)
        name = plan.dense.within(layer) + name
        corrected = moved.to(getattr(torch, plan.config["dtype"]))
        if not torch.isfinite(corrected).all():
            what = f"'{name}' came out NaN or infinite when it was corrected"
            remedy = "Use 'expert_weights: own', or look for a broken expert."
            raise error("source.broken", "expert_weights", what, remedy)
        matrix.copy_(corrected)
        return name, corrected.T if turned else corrected


def ridge(x: Tensor, wanted: Tensor, weights: Tensor, penalty: float) -> Tensor:
    """Find the matrix that comes nearest to giving what is wanted, by ridge regression in closed form.

    Args:
        x: inputs ``[n, M]``; overwritten.
        wanted: outputs ``[n, H]``; overwritten.
        weights: of their squared errors ``[n]``.
        penalty: on the squared elements of the matrix, relative to the mean square of the weighted inputs' columns.

    Returns:
        The matrix ``[H, M]``.
    """
    root = weights.sqrt()[:, None]
    x, wanted = x.mul_(root), wanted.mul_(root)
    a = max(penalty * float(x.square().sum()) / x.shape[1], TINY)
    if len(x) < x.shape[1]:  # X^T (X X^T + a I)^-1 is the same, and smaller
        gram = x @ x.T  # [n, n]
        gram.diagonal().add_(a)
        return torch.cholesky_solve(wanted, torch.linalg.cholesky(gram)).T @ x
    gram = x.T @ x  # [M, M]
    gram.diagonal().add_(a)
    return torch.cholesky_solve(x.T @ wanted, torch.linalg.cholesky(gram)).T
