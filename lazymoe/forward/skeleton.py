"""A dense model of transformers' own class without weights, and what gives it some."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, modeling_utils
from transformers import __version__ as transformers_version

from lazymoe.architectures.learned import transformers_config
from lazymoe.architectures.records import Dense
from lazymoe.checkpoint.tensors import TensorInfo
from lazymoe.errors import LazyMoEError, error


class Weights(Protocol):
    """What a pass reads: a `Source`, or what gives tensors as one does."""

    @property
    def config(self) -> dict[str, Any]: ...

    @property
    def folder(self) -> Path: ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    @property
    def dense(self) -> Dense | None: ...

    def load(self, name: str) -> Tensor: ...

    def rows(self, name: str, indices: Iterable[int]) -> Tensor: ...


def settled_config(source: Weights) -> Any:
    """Make transformers' config of a dense model, from its completed config.json.

    Args:
        source: the model.

    Raises:
        SourceError: if transformers can't.
    """
    try:
        return transformers_config(source.config)
    except Exception as e:  # whatever its values make the class raise, or a transformers that is too old
        raise _unmade(source, e) from None


def _unmade(source: Weights, e: Exception) -> LazyMoEError:
    """Say in one line why transformers can't make a model of a config."""
    why = str(e).splitlines()[0][:100] if str(e) else type(e).__name__
    kind = source.config["model_type"]
    what = f"transformers {transformers_version} can't make a {kind} of its config.json ({why})"
    return error("source.config", source.folder, what, "Mend it, or use a newer transformers.")


def skeleton(source: Weights) -> Any:
    """Make the model without weights; only what it computes for itself (rotary tables, scales) is real.

    Args:
        source: the model.

    Raises:
        SourceError: if transformers can't.
    """
    config = settled_config(source)
    try:
        config.use_cache = False
        with unweighted():
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False).eval()
    except Exception as e:  # whatever a config's values make the class raise
        raise _unmade(source, e) from None


@contextmanager
def unweighted() -> Iterator[None]:
    """Have modules that are made meanwhile keep their parameters nowhere; buffers are real."""
    register = nn.Module.register_parameter

    def nowhere(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    uninitialized = getattr(modeling_utils, "no_init_weights", nullcontext)  # transformers 4 would set some to values
    nn.Module.register_parameter = nowhere  # type: ignore[method-assign, assignment]
    try:
        with uninitialized():
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def allocate(module: nn.Module, device: str, recurse: bool = True) -> None:
    """Give a module's parameters memory, of whatever is there, and bring its buffers along.

    Args:
        module: it, changed in place.
        device: where they go.
        recurse: whether the modules in it are meant too.
    """
    for part in module.modules() if recurse else [module]:
        for name, parameter in part._parameters.items():
            if parameter is not None and parameter.is_meta:
                part._parameters[name] = nn.Parameter(torch.empty_like(parameter, device=device), requires_grad=False)
        for name, buffer in part._buffers.items():
            part._buffers[name] = buffer if buffer is None else buffer.to(device)
