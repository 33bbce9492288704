"""What can be asked: tasks by name, from a Hub on loopback; one's own questions; what is wrong is told in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_server import Hub

from lazymoe import LazyMoEError
from lazymoe.evaluating.benchmarks import find_benchmark
from lazymoe.evaluating.suites import SUITES
from lazymoe.evaluating.tasks import load_rows


@pytest.mark.slow
def test_every_task_of_a_suite_is_one_of_lm_eval() -> None:
    from lm_eval.tasks import TaskManager

    known = TaskManager().all_tasks
    assert not {name.partition(":")[0] for names in SUITES.values() for name in names} - set(known)


@pytest.mark.slow
def test_tasks_and_examples_in_the_prompt(benchmarks: Hub) -> None:
    [easy, math] = load_rows(["arc_easy:2", "gsm8k"], {})
    assert (easy.name, easy.tasks[0].config.num_fewshot, easy.generates) == ("arc_easy", 2, False)
    assert (math.name, math.tasks[0].config.num_fewshot, math.generates) == ("gsm8k", 5, True)
    assert (easy.questions(None), easy.questions(5)) == (12, 5)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: there is no text named 'question'"),
        ('{"question": "a"}', "line 2: its 'answer' is no text"),
        ('{"question": "a", "answer": " "}', "line 2: its 'answer' is no text"),
        ('{"question": "a", "choices": ["b"], "answer": 0}', "line 2: its 'choices' are no list of two texts or more"),
        ('{"question": "a", "choices": ["b", "c"], "answer": 2}', "line 2: its 'answer' is none of its choices"),
        ('{"question": "a", "choices": ["b", "c"], "answer": "C"}', "line 2: its 'answer' is none of its choices"),
        ('{"question": "a", "choices": ["b", "c"], "answer": true}', "line 2: its 'answer' is none of its choices"),
        ('{"question": "a", "choices": ["b", "c"], "answer": 1}', "1 of its 2 questions have choices"),
    ],
)
def test_what_is_no_question(line: str, what: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"question": "one?", "answer": "two"}\n' + line)
    with pytest.raises(LazyMoEError, match=r"^.*mine\.jsonl: .*$") as caught:
        load_rows([str(file)], {})
    [problem] = caught.value.problems
    assert (problem.code, what in problem.what) == ("input.questions", True)


def test_an_answer_is_a_choice_or_its_letter_or_its_number(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    answers = [1, "B", "no", "A"]
    lines = [{"question": "?", "choices": ["yes", "no"], "answer": answer} for answer in answers]
    lines.append({"question": "Which vitamin?", "choices": ["B", "A"], "answer": "A"})  # a choice before a letter
    file.write_text("\n".join(map(json.dumps, lines)))
    [row] = load_rows([str(file)], {})
    assert [doc["answer"] for doc in row.tasks[0].eval_docs] == [1, 1, 1, 0, 1]


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ([], "there are none"),
        (["hellaswagg"], "Did you mean 'hellaswag'"),
        (["zzzzzz"], "there is no task 'zzzzzz' in lm-eval. List them: lm-eval ls tasks"),
        (["arc_easy:five"], "'five' in 'arc_easy:five' is no number of examples"),
        (["nowhere.jsonl"], "it can't be read (No such file or directory)"),
        (["arc_easy", "arc_easy:5"], "'arc_easy' is asked for twice"),
    ],
)
def test_what_cannot_be_asked(tasks: list[str], words: str, benchmarks: Hub) -> None:
    with pytest.raises(LazyMoEError) as caught:
        load_rows(tasks, {})
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_data_set_that_is_not_there(benchmarks: Hub) -> None:
    with pytest.raises(LazyMoEError, match="the data set of 'winogrande' can't be had") as caught:
        load_rows(["winogrande"], {})
    assert "\n" not in str(caught.value)


def test_a_benchmark_of_the_hub_is_known_by_its_own_file(benchmarks: Hub) -> None:
    find_benchmark.cache_clear()
    assert find_benchmark("openai/gsm8k", "main") == "gsm8k"
    assert find_benchmark("openai/gsm8k", "socratic") == "socratic"
    assert find_benchmark("openai/gsm8k", "other") is None
    assert find_benchmark("openai/gsm8k", None) is None  # which of the two?
    assert find_benchmark("allenai/ai2_arc", "ARC-Easy") is None
    assert find_benchmark("no/where", None) is None
    assert find_benchmark("json", None) is None
