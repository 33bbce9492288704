"""Corrected experts: the closed form, and that a mixture has it in every layer of every dense kind."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import pytest
import torch
from generic_models import make_family
from small_models import KINDS, Make, contents, load_model, rewrite, tensors_of
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from lazymoe import Recipe, RecipeError, check, merge
from lazymoe.architectures.records import LAYER
from lazymoe.architectures.registry import HOSTS, dense_of
from lazymoe.checkpoint.opening import open_folder
from lazymoe.computing.correction import PENALTY, Correction, ridge
from lazymoe.forward.mixture import InMixture
from lazymoe.forward.parts import After
from lazymoe.forward.stream import Stream
from lazymoe.forward.tokens import load_tokenizer, pack, pad
from lazymoe.output.folder import WORK
from lazymoe.planning.plan import Plan

PROMPTS = (["The sea was calm.", "A ship came in."], ["def add(a, b):", "import os"], ["One, two, three, and four."])
Given = Callable[..., Recipe]


@pytest.fixture
def given(make: Make, demo_models: Path, tmp_path: Path) -> Given:
    """Gives recipes of small models that were fine-tuned, as it were, from one; their experts are corrected."""

    def recipe(kind: str = "llama", config: dict[str, object] | None = None, **fields: object) -> Recipe:
        sizes = {"vocab_size": 512, "max_position_embeddings": 512, **(config or {})}
        if kind in KINDS:
            base, *experts = (make(f"{kind}-{i}", seed=0, kind=kind, dtype="float32", **sizes) for i in range(4))
        else:
            base, *experts = (make_family(tmp_path, kind, name=f"model-{i}", **sizes) for i in range(4))
        for i, expert in enumerate(experts):
            torch.manual_seed(i)
            rewrite(expert, lambda tensors: [t.add_(0.05 * torch.randn_like(t)) for t in tensors.values()])
        for file in (demo_models / "base").glob("token*"):
            shutil.copy(file, base)
        every = [{"source_model": str(e), "positive_prompts": p} for e, p in zip(experts, PROMPTS, strict=True)]
        asked = {"base_model": str(base), "experts": every, "expert_weights": "corrected", **fields}
        return Recipe.model_validate(asked)

    return recipe


@pytest.mark.parametrize("n", [5, 40], ids=["fewer tokens than columns", "more"])
def test_it_is_the_least_weighted_squares_with_a_penalty(n: int) -> None:
    """Against a plain least-squares solution, in which the penalty is more rows."""
    random = torch.Generator().manual_seed(n)
    x, wanted = torch.randn(n, 12, generator=random), torch.randn(n, 3, generator=random)
    weights = torch.rand(n, generator=random) + 0.1
    found = ridge(x.clone(), wanted.clone(), weights.clone(), 0.3)
    root = weights.double().sqrt()[:, None]
    a = 0.3 * (root * x.double()).square().sum() / 12
    rows = torch.cat([root * x.double(), a.sqrt() * torch.eye(12, dtype=torch.float64)])
    outputs = torch.cat([root * wanted.double(), torch.zeros(12, 3, dtype=torch.float64)])
    expected = torch.linalg.lstsq(rows, outputs).solution.T
    assert torch.allclose(found.double(), expected, atol=1e-5)


def test_what_reads_nothing_stays_as_it_is() -> None:
    for n in (2, 9):
        assert not ridge(torch.zeros(n, 4), torch.ones(n, 3), torch.ones(n), 1.0).any()


FAMILIES: dict[str, str] = {  # a host for each dense kind that has a record, and some that have none
    dense.model_type: host.name for host in reversed(HOSTS) for dense in host.takes if dense.adds
} | dict.fromkeys(["GPT-2", "Falcon H1", "Qwen 3.5"], "generic")  # turned weights, scaled ones, and neither


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is rounded or left out."""
    monkeypatch.setattr("lazymoe.forward.routing.NEGLIGIBLE", 0.0)
    monkeypatch.setattr("lazymoe.forward.device.COARSE", "highest")


def ran(
    model: torch.nn.Module, modules: list[str], called: torch.nn.Module, given: torch.Tensor
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What modules of a model read and give when it, or one of its modules, is called."""
    found = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: torch.nn.Module, args: tuple[torch.Tensor, ...], output: object) -> None:
            found[name] = args[0], output[0] if isinstance(output, tuple) else output

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in modules]
    with torch.no_grad():
        called(given)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_dense_kind_is_corrected_by_the_formula(kind: str, given: Given, tmp_path: Path) -> None:
    """On what transformers' own models read and give: the finished mixture, and each expert's."""
    wanted = given(kind, architecture=FAMILIES[kind], gate_mode="random")
    plan = merge(wanted, tmp_path / "moe", device="cpu").plan
    assert plan.corrected == (0, 1, 2)
    mixture, finished = load_model(tmp_path / "moe"), open_folder(tmp_path / "moe")
    tokenizer, scale = load_tokenizer(plan.sources[0]), plan.config.get("residual_multiplier", 1.0)
    inner = plan.config.get("mlp_multipliers", [1.0])[-1]
    for e, (source, prompts) in enumerate(zip(plan.expert_sources, PROMPTS, strict=True)):
        own, packed = load_model(source.folder), pack(tokenizer, prompts)
        ids, real = pad(packed.sequences)
        for layer in range(plan.layers):
            place = plan.dense.within(layer).removesuffix(".")
            name = f"{place}.{plan.dense.ffn['down'][0]}"
            network, projection = f"{place}.{plan.dense.module}", name.removesuffix(".weight")
            block = plan.host.router.split(".")[0]
            if block not in dict(mixture.get_submodule(place).named_children()):
                block = plan.dense.module  # transformers 5 renames Mixtral's
            target = ran(own, [place], own, ids)[place][1]
            there = ran(mixture, [place, f"{place}.{block}"], mixture, ids)
            read, answered = there[f"{place}.{block}"]
            before = there[place][1] - scale * answered.view_as(target)  # the network's answer is added to that
            here = ran(own, [projection, network], own.get_submodule(network), read)

            x = here[projection][0][real].double()
            lack = ((target - before) / scale - here[network][1])[real].double() / inner
            weights = 1 / target[real].double().square().mean(-1, keepdim=True)
            gram = x.T @ (weights * x)
            gram += PENALTY / packed.given * gram.trace() / len(gram) * torch.eye(len(gram))
            expected = torch.linalg.solve(gram, x.T @ (weights * lack)).T
            moved = InMixture(plan, finished, e + 1).load(name) - source.load(name)
            moved = moved.T if isinstance(own.get_submodule(projection), Conv1D) else moved
            assert (moved - expected).abs().max() < 2e-3 * expected.abs().max(), (e, layer)


@pytest.mark.parametrize("kind", KINDS)
def test_the_kinds_whose_layers_add_what_their_networks_give_are_known(kind: str, make: Make) -> None:
    """Found out on transformers' own layers: twice the answer, twice the step."""
    steps, dense = [], dense_of({"model_type": kind})
    assert dense

    def network(module: torch.nn.Module, x: Sequence[torch.Tensor], after: After) -> list[torch.Tensor]:
        answer = torch.randn_like(x[0])
        none = after(0, torch.zeros_like(x[0]))
        steps.extend(after(0, factor * answer) - none for factor in (1, 2))
        return [answer]

    name = next(iter(dense.ffn.values()))[0].split(".")[0]
    stream = Stream(open_folder(make("model", kind=kind)), [torch.tensor([[1, 2, 3]])], "cpu")
    stream.step(feed_forward=(name, network))
    assert torch.allclose(2 * steps[0], steps[1], rtol=1e-3, atol=1e-3) == dense.adds


def test_a_kind_that_norms_what_they_give_is_refused(given: Given) -> None:
    [problem] = check(given("gemma4_text", gate_mode="random")).errors
    assert (problem.code, problem.where) == ("recipe.corrected", "expert_weights")
    assert "a gemma4_text norms what its feed-forward networks give" in problem.what


class Stopped(Exception):
    pass


@pytest.mark.parametrize(("gate_mode", "shared"), [("fit", "regmean"), ("hidden", "base"), ("random", "average")])
def test_stopped_after_any_layer_it_goes_on_there(gate_mode: str, shared: str, given: Given, tmp_path: Path) -> None:
    wanted = given(gate_mode=gate_mode, shared_weights=shared, config={"num_hidden_layers": 3})
    merge(wanted, tmp_path / "whole", device="cpu")

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "sweep" and done == layer:
            raise Stopped

    for layer, lost in ((1, None), (2, None), (3, None), (2, "model-00001-of-00001.safetensors.parts")):
        moe, told = tmp_path / f"stopped-{layer}-{lost}", []
        with pytest.raises(Stopped):
            merge(wanted, moe, device="cpu", progress=stop)
        if lost:
            (moe / WORK / lost).unlink()
        merge(wanted, moe, device="cpu", progress=lambda *step, told=told: told.append(step))
        layers = [done for stage, done, _ in told if stage == "sweep"]
        assert layers == list(range(1 if lost else layer + 1, 4))
        assert contents(moe) == contents(tmp_path / "whole")


@pytest.mark.parametrize("gate_mode", ["fit", "random"])
def test_copies_of_short_prompts_correct_too(
    gate_mode: str, given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are some where routers are fitted. The more there is to learn from, the further it is followed."""
    read: dict[int, list[Tensor]] = {}
    penalties = {}

    class Seen(Correction):
        def __init__(
            self, plan: Plan, expert: int, batches: Mapping[int, tuple[Tensor, Tensor]], tokens: int, device: str
        ) -> None:
            super().__init__(plan, expert, batches, tokens, device)
            read[expert] = [row[n] for ids, real in batches.values() for row, n in zip(ids, real, strict=True)]
            penalties[expert] = self.penalty

    monkeypatch.setattr("lazymoe.computing.walk.Correction", Seen)
    wanted = given(gate_mode=gate_mode)
    experts = [e.model_copy(update={"positive_prompts": e.positive_prompts * 9}) for e in wanted.experts]
    tokenizer = load_tokenizer(merge(wanted.with_experts(experts), tmp_path / "moe", device="cpu").plan.sources[0])
    for number, expert in enumerate(experts):
        packed = pack(tokenizer, expert.positive)
        copied = list(chain(*packed.again)) if gate_mode == "fit" else []
        assert bool(copied) == (gate_mode == "fit")
        assert penalties[number] == PENALTY / (packed.given + sum(map(len, copied)))
        known = {tuple(row.tolist()) for row in packed.sequences}
        new = [row for row in read[number] if tuple(row.tolist()) not in known]
        assert sorted(map(len, new)) == sorted(map(len, copied)), "each differs from what it is a copy of"
        assert len(read[number]) > len(new), "the prompts themselves are read too"


def test_an_expert_without_prompts_stays_as_it_is(given: Given, tmp_path: Path) -> None:
    wanted = given(gate_mode="random")
    experts = [wanted.experts[0].model_copy(update={"positive_prompts": []}), *wanted.experts[1:]]
    plan = merge(wanted.with_experts(experts), tmp_path / "moe", device="cpu").plan
    assert plan.corrected == (1, 2)
    finished, name = open_folder(tmp_path / "moe"), LAYER.format(layer=0) + plan.dense.ffn["down"][0]
    for e, source in enumerate(plan.expert_sources):
        assert torch.equal(InMixture(plan, finished, e + 1).load(name), source.load(name)) == (e == 0)


def test_negative_prompts_do_not_correct(given: Given, tmp_path: Path) -> None:
    wanted = given(shared_weights="base", gate_mode="random")
    avoiding = [e.model_copy(update={"negative_prompts": ["midnight"]}) for e in wanted.experts]
    merge(wanted, tmp_path / "one", device="cpu")
    merge(wanted.with_experts(avoiding), tmp_path / "two", device="cpu")
    assert all(torch.equal(t, tensors_of(tmp_path / "two")[n]) for n, t in tensors_of(tmp_path / "one").items())


def test_a_token_that_an_expert_lacks_is_told(given: Given, make: Make, tmp_path: Path) -> None:
    wanted = given()
    make("llama-2", kind="llama", dtype="float32", vocab_size=40, max_position_embeddings=512)
    with pytest.raises(RecipeError, match="llama-2 lacks a token of its prompts"):
        merge(wanted, tmp_path / "moe", device="cpu")


def test_prompts_without_a_token_are_told(given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = given(gate_mode="random", shared_weights="base")
    monkeypatch.setattr("lazymoe.forward.tokens.load_tokenizer", lambda _: Silent())
    with pytest.raises(RecipeError, match="makes no token of these prompts"):
        merge(wanted, tmp_path / "moe", device="cpu")


class Silent:
    """A tokenizer that makes no token of anything."""

    bos_token, bos_token_id = None, None

    def __call__(self, _: str, **__: object) -> dict[str, list[int]]:
        return {"input_ids": []}
