"""Run Triton kernels in the interpreter and compile them for GPUs that this machine lacks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import pytest
import triton.experimental.gluon.nvidia  # noqa: F401  # refuses to be imported while functions are patched
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from triton.runtime import JITFunction, interpreter
from triton.runtime.interpreter import InterpretedFunction

CAPABILITIES = (80, 90)


def interpret(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Triton function of the module runs on CPU tensors, statement by statement, for this test."""
    for place in (tl, tl.standard, module):  # tl.max, tl.topk and others are Triton functions too
        for name, value in vars(place).copy().items():
            if isinstance(value, JITFunction):
                monkeypatch.setattr(place, name, InterpretedFunction(value.fn))
    monkeypatch.setattr(InterpretedFunction, "__call__", call_and_restore)


def call_and_restore(function: InterpretedFunction, *args: Any, **kwargs: Any) -> Any:
    """A call of an inner function; Triton's own leaves `tl` patched, and compiling then fails."""
    scope = interpreter._patch_lang(function.fn)
    try:
        return function.rewrite()(*args, **kwargs)
    finally:
        scope.restore()


def compiled(
    kernel: JITFunction, signature: Mapping[str, str], constants: Mapping[str, Any], capability: int
) -> bytes:
    """The kernel's machine code for sm_`capability`; signature: each argument's type, or "constexpr"."""
    source = ASTSource(fn=kernel, signature=dict(signature), constexprs=dict(constants))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
