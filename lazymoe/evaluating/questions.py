"""Questions of one's own, out of files, and texts of a domain, as tasks of lm-eval."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lazymoe.errors import error

OWN = ".jsonl"  # ends the name of a file of questions
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PROMPT = "Question: {{question}}\nAnswer:"
LINE = 'A line is {"question": …, "answer": …}, with "choices": […] where the answer is one of these.'
Config = dict[str, Any]  # of a task, as lm-eval takes it


def read_questions(path: Path) -> list[Config]:
    """Read the questions of a file, each with its answer as the number of a choice, or as a text.

    Args:
        path: of the file.

    Raises:
        LazyMoEError: if it isn't one of questions; all that is wrong with it names the line.
    """
    docs = list(_lines(path))
    if not docs:
        raise error("input.questions", path, "it has no questions", LINE)
    return docs


def of_questions(path: Path) -> Config:
    """Make a task of a file of questions.

    Args:
        path: of the file.

    Raises:
        LazyMoEError: as `read_questions`.
    """
    docs = read_questions(path)
    closed = [doc for doc in docs if "choices" in doc]
    if closed and len(closed) < len(docs):
        what = f"{len(closed)} of its {len(docs)} questions have choices"
        raise error("input.questions", path, what, "Put those with choices and those without into a file each.")
    config = _config(path.stem, docs, doc_to_text=PROMPT)
    if closed:
        more = {
            "output_type": "multiple_choice",
            "doc_to_choice": "choices",
            "metric_list": _metrics("acc", "acc_norm"),
        }
        return config | more | {"doc_to_target": "answer"}
    more = {"output_type": "loglikelihood", "metric_list": _metrics("acc", "bits_per_byte")}
    return config | more | {"doc_to_target": "{{' ' ~ answer}}", "process_results": _open_answer}


def _open_answer(doc: Config, results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Judge an open answer: right if the model would write just that."""
    [(likelihood, greedy)] = results
    return {"acc": int(greedy), "bits_per_byte": (likelihood, len(f" {doc['answer']}".encode()))}


def _lines(path: Path) -> Iterator[Config]:
    """Yield the questions of a file.

    Raises:
        LazyMoEError: if the file can't be read, or a line isn't a question.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it isn't UTF-8"
        raise error("input.questions", path, f"it can't be read ({reason})", "Name a JSONL file.") from None
    for n, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield _question(json.loads(line))
            except (ValueError, RecursionError) as e:
                what = "not JSON" if isinstance(e, json.JSONDecodeError) else e
                raise error("input.questions", path, f"line {n}: {what}", LINE) from None


def _question(found: Any) -> Config:
    """Take a question.

    Raises:
        ValueError: if it isn't one; the message says why.
    """
    if not isinstance(found, dict) or not isinstance(found.get("question"), str):
        raise ValueError("there is no text named 'question'")
    question, answer, choices = found["question"], found.get("answer"), found.get("choices")
    if choices is None:
        if not isinstance(answer, str) or not answer.strip():
            raise ValueError("its 'answer' is no text")
        return {"question": question, "answer": answer.strip()}
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise ValueError("its 'choices' are no list of two texts or more")
    if isinstance(answer, str):  # the choice itself, or its letter
        spelled = choices if answer in choices else list(LETTERS[: len(choices)])
        answer = spelled.index(answer) if answer in spelled else None
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise ValueError("its 'answer' is none of its choices, nor the letter or the number, from 0, of one")
    return {"question": question, "choices": choices, "answer": answer}


def of_texts(name: str, texts: Sequence[str]) -> Config:
    """Make a task of the texts of a domain.

    Args:
        name: of its expert.
        texts: what is read.
    """
    docs = [{"text": text} for text in texts]
    more = {"output_type": "loglikelihood_rolling", "doc_to_target": "text"}
    return (
        _config(f"texts of {name}", docs, doc_to_text="")
        | more
        | {"metric_list": _metrics("bits_per_byte", "byte_perplexity")}
    )


def _config(name: str, docs: Sequence[Config], **more: Any) -> Config:
    """Make the config of a task of one's own documents."""
    from datasets import Dataset

    dataset = {"test": Dataset.from_list(list(docs))}
    return {"task": name, "custom_dataset": lambda **_: dataset, "test_split": "test", "num_fewshot": 0} | more


def _metrics(*names: str) -> list[Config]:
    kinds = {"bits_per_byte": "bits_per_byte", "byte_perplexity": "weighted_perplexity"}
    return [
        {"metric": name, "aggregation": kinds.get(name, "mean"), "higher_is_better": name not in kinds}
        for name in names
    ]
