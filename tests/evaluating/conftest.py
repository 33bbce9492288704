"""The demo's mixture, tasks whose data lie here, and a folder for what was answered that no other run knows."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="EleutherAI's lm-eval isn't installed: pip install 'lm-eval[hf]>=0.4.13'")

from hub_server import Hub

import lazymoe.evaluating.kept
from lazymoe import merge
from lazymoe.demonstration.models import domains
from lazymoe.demonstration.story import demo_recipe


@pytest.fixture(scope="module", autouse=True)
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where answers are kept."""
    folder = tmp_path_factory.mktemp("answers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lazymoe.evaluating.kept, "answers_folder", lambda: folder)
        yield folder


@pytest.fixture(scope="module")
def moe(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("moe") / "moe"
    merge(demo_recipe(demo_models, domains(), "fit"), out, device="cpu")
    return out


@pytest.fixture(scope="module")
def texts() -> list[list[str]]:
    """Texts of each expert's domain that no model was trained on; of some, more than a model reads at a time."""
    cuts = [0, 200, 500, 2500, 2600]
    return [[kind.held[a:b] for a, b in itertools.pairwise(cuts)] for kind in domains()]


def questions(kind: str) -> list[dict[str, object]]:
    """Questions with choices, and with open answers."""
    names = [kind.held[i : i + 30] for kind in domains() for i in range(0, 120, 30)]
    if kind == "closed":
        return [
            {"question": name, "choices": [name[:9], name[3:], "no"], "answer": i % 3} for i, name in enumerate(names)
        ]
    return [{"question": name[:20], "answer": name[20:].strip() or "x"} for name in names]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Files of questions: with choices, and with open answers."""
    folder, files = tmp_path_factory.mktemp("questions"), []
    for kind in ("closed", "open"):
        files.append(folder / f"{kind}.jsonl")
        files[-1].write_text("\n".join(json.dumps(one) for one in questions(kind)))
    return [str(file) for file in files]


def serve(
    hub: Hub, folder: Path, name: str, config: str, lines: Sequence[dict[str, object]], benchmark: str = "[]"
) -> None:
    """Put a data set on the Hub, the same for all of its parts; with what says that it is a benchmark."""
    made, head = folder / name.replace("/", "-"), f"---\nconfigs:\n- config_name: {config}\n  data_files:\n"
    made.mkdir()
    for split in ("train", "test", "validation"):
        (made / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        head += f"  - split: {split}\n    path: {split}.jsonl\n"
    (made / "README.md").write_text(f"{head}---\n")
    (made / "eval.yaml").write_text(benchmark)
    hub.add(name, made)


@pytest.fixture(scope="module")
def benchmarks(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """The Hub with data sets of two of lm-eval's tasks, by their names: questions as theirs are."""
    folder = tmp_path_factory.mktemp("benchmarks")
    arc = [
        {"id": str(i), "question": f"What comes after {i}?", "answerKey": "A",
         "choices": {"text": [str(i + 1), str(i), "no number"], "label": ["A", "B", "C"]}}
        for i in range(12)
    ]  # fmt: skip
    serve(hub, folder, "allenai/ai2_arc", "ARC-Easy", arc)
    math = [{"question": f"What is {i} + {i}?", "answer": f"Twice {i}.\n#### {2 * i}"} for i in range(12)]
    known = "name: GSM8K\ntasks:\n- id: gsm8k\n  config: main\n- id: socratic\n  config: socratic\n"
    serve(hub, folder, "openai/gsm8k", "main", math, known)
    return hub
