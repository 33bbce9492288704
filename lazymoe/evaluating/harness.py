"""lm-eval's own model of transformers, but that what it asks goes through the layers of a model that isn't loaded."""

from __future__ import annotations

import gc
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM

from lazymoe.errors import error
from lazymoe.evaluating.kept import Answers, key_of
from lazymoe.evaluating.models import Model
from lazymoe.evaluating.tasks import GENERATES, Row, quietly
from lazymoe.forward.device import coarsely, exactly
from lazymoe.forward.likelihoods import Answered, Asked, Means, likelihoods
from lazymoe.memory import give_back
from lazymoe.progress import without_loading_bars

ALL = 1 << 40  # requests that lm-eval hands over at a time
TOGETHER = 16  # texts that are written between two times that answers are kept
SEED = 1234  # lm-eval's, of the examples in a prompt
FOUND = ("samples", "results", "higher_is_better", "versions")  # what is taken of that which it gives
CHOICES = "multiple_choice"  # a kind of task whose requests are those of another


class Streamed(HFLM):  # type: ignore[misc]  # lm-eval has no types
    """A model as lm-eval asks it. How texts become tokens, windows and prompts is lm-eval's; what is said isn't.

    What is answered is kept, and not asked again.
    """

    def __init__(
        self,
        model: Model,
        kept: Answers,
        means: Means,
        bits: Literal[4] | None,
        device: str,
        passed: Callable[[str, float], None],
    ) -> None:
        """Make it, without weights.

        Args:
            model: who is asked.
            kept: its answers.
            means: to send tokens through it with.
            bits: as in `Model.load`, for what it writes.
            device: where it runs.
            passed: told of a kind of request how much of it is done, of 0 to 1.
        """
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(model.config, trust_remote_code=False)
        super().__init__(pretrained=skeleton, tokenizer=model.tokenizer, backend="causal", batch_size=ALL)
        self._asked, self._means, self._bits, self._passed = model, means, bits, passed
        self._together, self._kept = 1 if device == "cpu" else TOGETHER, kept
        self._kind = "loglikelihood"

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Answer as HFLM does, without its bars."""
        self._kind = "loglikelihood"
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """Answer as HFLM does, without its bars."""
        self._kind = "loglikelihood_rolling"
        found: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=True)
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = True, override_bs: Any = None
    ) -> list[tuple[float, bool]]:
        """Answer what is in tokens: a request, a context and its continuation."""
        asked = [self._cut(context, answer) for _, context, answer in requests]
        keys = {one: key_of("likelihood", *one) for one in asked}
        left = [one for one in keys if self._kept.get(keys[one]) is None]
        before = 1 - len(left) / max(1, len(keys))

        def passed(done: int, total: int) -> None:
            self._passed(self._kind, before + (1 - before) * done / total)

        with exactly() if self._asked.exact else coarsely():
            for found in likelihoods(self._asked.run, self._asked.weights, left, self._means, passed):
                self._kept.add({keys[one]: answer for one, answer in found.items()})
        self._passed(self._kind, 1.0)
        return [Answered(*self._kept.get(keys[one])) for one in asked]

    def _cut(self, context: list[int], answer: list[int]) -> Asked:
        """Cut a context from the left to the model's length, as HFLM does.

        Raises:
            LazyMoEError: if the answer alone is longer.
        """
        if len(answer) > self.max_length:
            what = f"an answer has {len(answer)} tokens, and the model reads {self.max_length}"
            raise error("input.tasks", "tasks", what, "Leave that task out.")
        return Asked(tuple((context + answer)[-(self.max_length + 1) :][:-1]), tuple(answer))

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """Let the model, loaded for that, write texts."""
        keys = self._written(requests)
        left = {key: request for key, request in zip(keys, requests, strict=True) if self._kept.get(key) is None}
        if left:
            with without_loading_bars():
                whole = self._asked.load(self._bits)
            loaded = HFLM(pretrained=whole, tokenizer=self.tokenizer, backend="causal", batch_size=self._together)
            done = len(set(keys)) - len(left)
            order = sorted(left, key=lambda key: -len(left[key].args[0]))
            while order:
                at_once = 1 if _is_sampled(left[order[0]]) else TOGETHER
                some, order = order[:at_once], order[at_once:]
                torch.manual_seed(int(some[0][:15], 16))  # so that what is sampled is the same after a stop
                texts = loaded.generate_until([left[key] for key in some], disable_tqdm=True)
                self._kept.add(dict(zip(some, texts, strict=True)))
                done += len(some)
                self._passed(GENERATES, done / len(set(keys)))
            del whole, loaded
            gc.collect()
            torch.cuda.empty_cache()
            give_back()
        self._passed(GENERATES, 1.0)
        return [self._kept.get(key) for key in keys]

    def _written(self, requests: Sequence[Any]) -> list[str]:
        """Give what each text is known by that is to be written: a sampled one is another each time it is asked for."""
        keys, times = [], Counter[str]()
        for request in requests:
            key = key_of(GENERATES, f"{self._bits or 'whole'}", *request.args)
            again, times[key] = times[key], times[key] + _is_sampled(request)
            keys.append(key_of(key, again) if again else key)
        return keys


def _is_sampled(request: Any) -> bool:
    """Tell whether a model is to answer by chance."""
    return bool(request.args[1].get("do_sample"))


def ask(
    model: Model,
    rows: Sequence[Row],
    limit: int | None,
    *,
    kept: Answers,
    means: Means,
    bits: Literal[4] | None,
    device: str,
    passed: Callable[[int], None],
) -> dict[str, Any]:
    """Ask a model all questions.

    Args:
        model: who is asked.
        rows: what.
        limit: the most questions of each task, the first ones.
        kept, means, bits, device: as in `Streamed`.
        passed: told how many questions, about, are answered.

    Returns:
        Of what lm-eval's ``evaluate`` gives, that which `gather` takes, with what came of each question.

    Raises:
        LazyMoEError: if the model is broken, or lacks tokens that its tokenizer has.
    """
    sizes: dict[str, int] = {}
    for row in rows:
        for task in row.tasks:
            kind = "loglikelihood" if task.OUTPUT_TYPE == CHOICES else task.OUTPUT_TYPE
            sizes[kind] = sizes.get(kind, 0) + Row(row.name, (task,)).questions(limit)
    done: dict[str, float] = dict.fromkeys(sizes, 0.0)

    def moved(kind: str, share: float) -> None:
        done[kind] = share
        passed(int(sum(share * sizes[kind] for kind, share in done.items())))

    with quietly():
        for row in rows:
            for task in row.tasks:  # as lm-eval's own command does: every model gets the same examples in its prompts
                task.set_config("num_fewshot", task.config.num_fewshot or 0)
                task.set_fewshot_seed(SEED)
        tasks = {task.task_name: task for row in rows for task in row.tasks}
        random.seed(0)
        asked = Streamed(model, kept, means, bits, device, moved)
        try:
            found: dict[str, Any] = lm_eval.evaluate(asked, {"tasks": tasks}, limit=limit, bootstrap_iters=0)
        except OverflowError:
            what = "a perplexity is beyond all numbers: the model is broken, or a text has words without end"
            raise error("input.tasks", model.name, what, "Leave out the tasks that measure it.") from None
    return {key: found[key] for key in FOUND}
