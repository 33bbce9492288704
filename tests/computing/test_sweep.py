"""The sweep over the layers: what it merges by, fits on and runs is what transformers' mixture reads."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from crossing import crossed
from generic_models import make_family
from safetensors.torch import load_file
from small_models import GATED, KINDS, Make, contents, load_model, rewrite, tensors_of

from lazymoe import Recipe, SourceError, check, merge
from lazymoe.architectures.records import LAYER
from lazymoe.architectures.registry import HOSTS
from lazymoe.checkpoint.opening import open_folder
from lazymoe.computing.groups import Group, read_groups
from lazymoe.computing.order import canonical
from lazymoe.computing.shared_weights import RIDGE
from lazymoe.computing.sweep import sweep
from lazymoe.forward.mixture import run
from lazymoe.forward.routing import Tally
from lazymoe.output.folder import WORK, read_report
from lazymoe.output.shards import shards_of
from lazymoe.output.writer import Writer
from lazymoe.planning.plan import Piece, Plan
from lazymoe.progress import silent

CASES = [
    (host.name, dense.model_type, shared)
    for host in HOSTS
    for dense in host.takes
    for shared in ("", "shared expert")
    if host.shared or not shared
]
CASES += [("generic", family, shared) for family in ("GPT-2", "Falcon H1") for shared in ("", "two shared experts")]
FIRST = {(host.name, host.takes[0].model_type, "shared expert" if host.shared else "") for host in HOSTS} | {CASES[-1]}
MODES = ("fit", "hidden", "hidden_avg", "hidden_last", "cheap_embed", "random", "uniform_random")
CALM = "The sea was calm, and the wind had died down by the evening of that long and cold day in December."
PROMPTS = ([CALM, "A ship came in."], ["def add(a, b):", "import os"], ["One, two, three, and four."])
Given = Callable[..., Recipe]


@pytest.fixture
def given(make: Make, demo_models: Path, tmp_path: Path) -> Given:
    """Gives recipes of small models that have a tokenizer; one expert has a negative prompt, another one is scaled."""

    def recipe(
        kind: str = "llama", shared: str = "", config: dict[str, object] | None = None, **fields: object
    ) -> Recipe:
        sizes = {"vocab_size": 512, "max_position_embeddings": 512, **(config or {})}
        if kind in KINDS:
            base, *experts = (make(f"{kind}-{i}", seed=i, kind=kind, dtype="float32", **sizes) for i in range(5))
        else:
            base, *experts = (make_family(tmp_path, kind, name=f"model-{i}", seed=i, **sizes) for i in range(5))
        for file in (demo_models / "base").glob("token*"):
            shutil.copy(file, base)
        every = [{"source_model": str(e), "positive_prompts": p} for e, p in zip(experts, PROMPTS, strict=False)]
        every[0] |= {"negative_prompts": ["A river that nobody had seen."]}
        every[1] |= {"residual_scale": 0.5}
        together: dict[str, object] = {"source_model": str(experts[3]), "residual_scale": 0.7}
        if fields.get("architecture") in GATED:
            together |= {"positive_prompts": ["12:30, at noon"], "negative_prompts": ["midnight"]}
        several = [{"source_model": str(experts[2])}] if "two" in shared else []
        fields |= {"shared_experts": [together, *several]} if shared else {}
        return Recipe.model_validate({"base_model": str(base), "experts": every, **fields})

    return recipe


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is rounded or left out."""
    monkeypatch.setattr("lazymoe.forward.routing.NEGLIGIBLE", 0.0)
    monkeypatch.setattr("lazymoe.forward.device.COARSE", "highest")


def swept(given: Recipe, folder: Path) -> tuple[Plan, list[Group], list[torch.Tensor]]:
    """Sweep alone: the plan, the prompts, and the last states of each batch ``[B, T, H]``."""
    found = check(given)
    assert found.plan and not found.errors, found
    plan = found.plan
    folder.mkdir()
    with closing(Writer(shards_of(plan, folder, folder, 0), silent)) as writer:
        sweep(given, plan, writer, folder, "cpu", silent)
    states = load_file(folder / f"states-{plan.layers:05}.safetensors")
    groups = read_groups(given, plan, canonical(given, plan), "cpu")
    return plan, groups, [states[str(i)] for i in range(sum(len(group.batches) for group in groups))]


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(
    ("family", "kind", "shared"),
    [pytest.param(*case, marks=[pytest.mark.slow] * (case not in FIRST)) for case in CASES],
)
def test_its_states_are_those_of_the_mixture_that_it_makes(
    family: str, kind: str, shared: str, given: Given, tmp_path: Path
) -> None:
    wanted = given(kind, shared, architecture=family)
    plan, groups, states = swept(wanted, tmp_path / "work")
    merge(wanted, tmp_path / "moe", device="cpu")
    model, seen = load_model(tmp_path / "moe"), []
    last = model.get_submodule(plan.dense.within(plan.layers - 1).removesuffix("."))
    last.register_forward_hook(lambda *args: seen.append(args[-1]))
    batches = [batch for group in groups for batch in group.batches]
    written = [group for group in groups if not group.varied]
    assert {group.sign for group in groups} == {1, -1} and len(written) < len(groups)
    assert len(written) == 4 + 2 * bool(shared and family in GATED)
    for (ids, real), found in zip(batches, states, strict=True):
        with torch.no_grad():
            model(ids, use_cache=False)
        output = seen.pop()
        expected = output[0] if isinstance(output, tuple) else output
        assert (expected - found)[real].abs().max() < 1e-3 * expected[real].abs().max()


def test_what_it_rounds_and_leaves_out_hardly_matters(
    given: Given, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """No more than if the mixture ran in bfloat16, of whose numbers two neighbours are 0.4 to 0.8 % apart."""
    wanted = given()
    _, _, states = swept(wanted, tmp_path / "rounded")
    request.getfixturevalue("exact")
    _, _, expected = swept(wanted, tmp_path / "exact")
    far = [((one - other).norm() / other.norm()).item() for one, other in zip(states, expected, strict=True)]
    assert max(far) < 0.01


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.k_proj.weight", "model.layers.0.input_layernorm.weight",
                                  "model.embed_tokens.weight", "lm_head.weight"])  # fmt: skip
@pytest.mark.parametrize("shared", ["regmean", "average"])
def test_an_expert_with_nan_in_what_is_merged_is_told(shared: str, name: str, given: Given, tmp_path: Path) -> None:
    wanted = given(shared_weights=shared)
    rewrite(tmp_path / "llama-2", lambda tensors: tensors[name].fill_(float("nan")))
    with pytest.raises(SourceError) as caught:
        merge(wanted, tmp_path / "moe", device="cpu")
    [problem] = caught.value.problems
    assert problem.what.startswith(f"'{name}' came out NaN") and "broken expert" in problem.remedy


def closed_form(
    base: torch.Tensor, experts: list[torch.Tensor], read: list[torch.Tensor], known: int | None = None
) -> torch.Tensor:
    """RegMean as it is written down, by what each expert's prompts give matrices to read ``[n, in]``; those that read
    the same lie one below the other. Of what an expert changed so many rows are known."""
    above = below = torch.zeros(())
    for expert, x in zip(experts, read, strict=True):
        delta, x = (expert - base).double(), x.double()
        parts = [squares * (len(squares) / squares.trace()) for squares in (delta[:known].T @ delta[:known], x.T @ x)]
        moments = RIDGE * torch.eye(x.shape[1]) + (parts[0] + parts[1]) / 2
        above, below = above + expert.double() @ moments, below + moments
    return (above @ torch.linalg.inv(below)).float()


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(("gate_mode", "tied"), crossed(MODES, [False, True]))
def test_shared_weights_are_merged_by_what_the_mixture_reads(
    gate_mode: str, tied: bool, given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lazymoe.computing.shared_weights.ROWS", 48)
    known = {"lm_head": 2 * 48}  # the first blocks that have twice as many rows as they are wide, which is 32
    wanted = given(config={"tie_word_embeddings": tied}, gate_mode=gate_mode, shared_weights="regmean")
    plan = merge(wanted, tmp_path / "moe", device="cpu").plan
    order = canonical(wanted, plan)
    own = [tensors_of(Path(source.folder)) for source in (plan.sources[0], *(plan.expert_sources[e] for e in order))]
    model, merged = load_model(tmp_path / "moe"), tensors_of(tmp_path / "moe")
    mean = sum(tensors["model.embed_tokens.weight"] for tensors in own[1:]) / 3
    if tied:  # until the head is merged they are the plain average
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model.model.embed_tokens.weight.data = mean
    else:
        assert torch.allclose(merged["model.embed_tokens.weight"], mean, atol=1e-6)

    # what each map reads of each expert's positive prompts, in the finished mixture
    prefixes = [LAYER.format(layer=layer) + "self_attn." for layer in range(plan.layers)]
    groups = [(p + r, tuple(p + n for n in names)) for p in prefixes for r, names in
              (("q_proj", ("q_proj", "k_proj", "v_proj")), ("o_proj", ("o_proj",)))]  # fmt: skip
    groups += [("lm_head", ("model.embed_tokens" if tied else "lm_head",))]
    read: dict[str, list[torch.Tensor]] = {reader: [] for reader, _ in groups}
    for group in read_groups(wanted, plan, order, "cpu"):
        if group.sign > 0 and not group.varied:
            assert group.place == len(read["lm_head"])
            [(ids, real)] = group.batches
            hooks = [model.get_submodule(reader).register_forward_pre_hook(
                lambda _, args, reader=reader, real=real: read[reader].append(args[0][real].detach()))
                for reader, _ in groups]  # fmt: skip
            with torch.no_grad():
                model(ids, use_cache=False)
            for hook in hooks:
                hook.remove()
    for reader, names in groups:
        base, *experts = (torch.cat([tensors[f"{name}.weight"] for name in names]) for tensors in own)
        found = torch.cat([merged[f"{name}.weight"] for name in names])
        expected = closed_form(base, experts, read[reader], known.get(reader))
        assert (found - expected).abs().max() < 1e-3 * (expected - base).abs().max(), reader


def is_swept(gate_mode: str, shared: str) -> bool:
    return gate_mode == "fit" or shared == "regmean" or (gate_mode, shared) == ("hidden", "average")


class Stopped(Exception):
    pass


def stop_after(layer: int) -> Callable[[str, int, int], None]:
    def progress(stage: str, done: int, total: int) -> None:
        if stage == "sweep" and done == layer:
            raise Stopped

    return progress


@pytest.mark.parametrize(
    ("gate_mode", "shared"), crossed(("fit", "hidden", "random"), ("regmean", "average", "base"), possible=is_swept)
)
def test_stopped_after_any_layer_it_goes_on_there(gate_mode: str, shared: str, given: Given, tmp_path: Path) -> None:
    wanted = given(gate_mode=gate_mode, shared_weights=shared, config={"num_hidden_layers": 3})
    merge(wanted, tmp_path / "whole", device="cpu")
    for layer in (1, 2, 3):
        moe, told = tmp_path / f"stopped-{layer}", []
        with pytest.raises(Stopped):
            merge(wanted, moe, device="cpu", progress=stop_after(layer))
        kept = {path.name for path in (moe / WORK).glob("states-*")}
        swept = gate_mode == "fit" or shared == "regmean"
        assert kept == ({f"states-{layer:05}.safetensors", f"states-{layer:05}.safetensors.seal"} if swept else set())
        merge(wanted, moe, device="cpu", progress=lambda *step, told=told: told.append(step))
        layers = [done for stage, done, _ in told if stage == "sweep"]
        assert layers == [n for n in (1, 2, 3) if n > layer or not swept]
        assert contents(moe) == contents(tmp_path / "whole")


def test_if_computed_weights_of_a_layer_are_lost_it_begins_again(given: Given, tmp_path: Path) -> None:
    """The states after them don't tell what they were."""
    wanted = given()
    merge(wanted, tmp_path / "whole", device="cpu")
    shard = "model-00001-of-00001.safetensors"
    for name, first in ((shard, 1), (f"{shard}.parts", 1), ("states-00001.safetensors", 1), ("states-00001.x", 2)):
        moe, told = tmp_path / name, []
        with pytest.raises(Stopped):
            merge(wanted, moe, device="cpu", progress=stop_after(1))
        (moe / WORK / name).unlink(missing_ok=True)
        merge(wanted, moe, device="cpu", progress=lambda *step, told=told: told.append(step))
        assert next(done for stage, done, _ in told if stage == "sweep") == first
        assert contents(moe) == contents(tmp_path / "whole")


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("gate_mode", ["fit", "hidden", "random"])
def test_where_the_prompts_went_is_what_a_pass_through_the_mixture_says(
    gate_mode: str, given: Given, tmp_path: Path
) -> None:
    wanted = given(gate_mode=gate_mode, shared_weights="regmean")
    order = canonical(wanted, plan := merge(wanted, tmp_path / "moe", device="cpu").plan)
    found, tally = read_report(tmp_path / "moe"), Tally(plan, plan.experts)
    groups = [group for group in read_groups(wanted, plan, order, "cpu") if group.sign == 1 and not group.varied]
    whose = [(order[group.place], batch) for group in groups for batch in group.batches]

    def seen(layer: int, batch: int, chosen: torch.Tensor, weights: torch.Tensor) -> None:
        real = whose[batch][1][1].flatten()
        tally.add(layer, whose[batch][0], chosen[real], weights[real])

    run(plan, open_folder(tmp_path / "moe"), [ids for _, (ids, _) in whose], "cpu", seen)
    for name, figures in tally.routing()._asdict().items():
        assert torch.allclose(torch.tensor(figures), torch.tensor(found[name]), atol=0.02), name
    assert not found["losses"] and not found["held_out"] and found["names"] == wanted.names


def bytes_read() -> int:
    """What this process has asked the kernel to read, or to copy."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts["rchar"])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts it")
@pytest.mark.parametrize("tied", [False, True])
def test_every_byte_is_read_once(tied: bool, given: Given, tmp_path: Path) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 3, "vocab_size": 4096}
    wanted = given(config={**sizes, "tie_word_embeddings": tied})
    merge(wanted, tmp_path / "first", device="cpu")  # imports
    before = bytes_read()
    plan = merge(wanted, tmp_path / "moe", device="cpu").plan
    pieces = {(p.source, p.tensor.name): p.tensor for o in plan.outputs for p in o.parts if isinstance(p, Piece)}
    backbone, _ = plan.dense.all_shapes(plan.sources[0].config)
    shared = [
        s.tensors[name] for s in (plan.sources[0], *plan.expert_sources) for name in backbone if name in s.tensors
    ]
    needed = sum(tensor.nbytes for tensor in (*pieces.values(), *shared))
    assert plan.shared == "regmean" and needed > 80e6
    assert needed <= bytes_read() - before < 1.02 * needed
