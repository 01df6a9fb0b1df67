"""Listens to the inputs and outputs of modules through torch's global module hooks.

Nothing is attached to the modules themselves, so a copy, a pickle or a saved file of them never contains a hook.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils.hooks import RemovableHandle

from tui_descent.instruments.failures import Failures

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
OnInput = Callable[[Args], None]
OnOutput = Callable[[Args, Kwargs, Any], None]

# `torch.compile(module)` warns at each call while a global hook is registered. Ours have no effect on its result.
_IGNORED_WARNING = "Using `torch.compile(module)` when there are global hooks"


class _Listener(NamedTuple):
    call: Callable[..., None]
    part: str  # names what is measured, in the message if the listener fails


class ModuleHooks:
    """Calls listeners with the inputs and the outputs of certain modules, from `attach` until `detach`.

    Passes that do not train are left out: passes without gradients, passes inside a transform of `torch.func` or a
    trace of `torch.jit`, and passes that activation checkpointing repeats. With `every_pass`, no pass is left out.
    `reason` says why calls could not be seen; None if the modules were simply not called.

    A listener that raises is switched off and added to `failures`. While torch.compile compiles a part of the net, the
    hooks are removed, because they must not become part of its graph or break it. Modules that run inside a compiled
    graph call no hooks.
    """

    def __init__(self, failures: Failures | None = None, *, every_pass: bool = False) -> None:
        self.reason: str | None = None
        self._silent = 0
        self._failures = Failures() if failures is None else failures
        self._every_pass = every_pass
        # Keys are ids of modules. A listener's instrument holds a reference to its module, so no other module can get
        # the same id.
        self.inputs: dict[int, list[_Listener]] = {}
        self.outputs: dict[int, list[_Listener]] = {}
        # For each module called since `attach`, the backward pass in which its first call took place; -1 if that call
        # was not in a backward pass. Activation checkpointing repeats calls in a backward pass.
        self._first_calls: dict[int, int] = {}

    def on_input(self, module: nn.Module, listener: OnInput, part: str) -> None:
        """Call `listener` with the positional arguments of each call of `module`, before its `forward`.

        `part` is the name of what is measured, for the message if the listener fails.
        """
        if part not in self._failures:
            self.inputs.setdefault(id(module), []).append(_Listener(listener, part))

    def on_output(self, module: nn.Module, listener: OnOutput, part: str) -> None:
        """Call `listener` with the arguments, the keyword arguments and the output of each call of `module`."""
        if part not in self._failures:
            self.outputs.setdefault(id(module), []).append(_Listener(listener, part))

    def was_called(self, module: nn.Module) -> bool:
        """Whether a call of this module has been seen since `attach`."""
        return id(module) in self._first_calls

    def silence(self, whose: str) -> str | None:
        """Why none of the modules was called in this measured step; None if one was. Call this once per step. `whose`
        names the modules in the plural and begins the returned text. The result is None for the first step without a
        call: in a user loop, the instruments are attached after the forward pass of that step.
        """
        self._silent = 0 if self._first_calls else self._silent + 1
        if self._silent < 2:
            return None
        if self.reason is None and has_compiled():
            return f"{whose} run inside a part compiled by torch.compile"
        return (
            f"{whose} run {self.reason}" if self.reason else f"{whose} are not called between run.step() and the update"
        )

    def attach(self) -> None:
        """Start listening."""
        self._first_calls.clear()
        self.reason = None
        if (self.inputs or self.outputs) and self not in _GLOBAL.listening:
            _GLOBAL.listening.append(self)
            _GLOBAL.update()

    def detach(self) -> None:
        """Stop listening."""
        if self in _GLOBAL.listening:
            _GLOBAL.listening.remove(self)
            _GLOBAL.update()

    def call(self, table: dict[int, list[_Listener]], module: int, *values: Any) -> None:
        """Call the listeners that `table` has for this module, with the values of one call of the module."""
        if not self._is_first_pass(module):
            return
        listeners = table[module]
        compiling: Any = None
        if _GLOBAL.compiler is not None:
            # Otherwise torch would compile the functions of the standard library that the listeners call.
            compiling = torch._C._dynamo.eval_frame.set_eval_frame(None)
        try:
            for listener in tuple(listeners):
                try:
                    listener.call(*values)
                except Exception as error:  # noqa: BLE001 - it must not end the user's training
                    listeners.remove(listener)
                    self._failures.add(listener.part, error)
        finally:
            if compiling is not None:
                torch._C._dynamo.eval_frame.set_eval_frame(compiling)

    def _is_first_pass(self, module: int) -> bool:
        """Whether the current call of a module counts: it is part of training and not a repetition."""
        if self._every_pass:
            return True
        if not torch.is_grad_enabled():
            return False
        if torch._C._functorch.peek_interpreter_stack() is not None:
            self.reason = "inside a transform of torch.func"
            return False
        if torch._C._get_tracing_state() is not None:
            return False
        # Checkpointing repeats calls in the backward pass. With `use_reentrant=True`, the repeated calls are the first
        # ones with gradients. Otherwise there was one in the forward pass.
        backward_pass: int = torch._C._current_graph_task_id()
        return self._first_calls.setdefault(module, backward_pass) == backward_pass


def plain(tensor: Tensor) -> Tensor | None:
    """The tensor, detached, as an ordinary tensor whose numbers can be measured; None if that is not possible. A
    subclass that only adds methods, such as fastai's `TensorImage`, is converted. The result is None for a subclass
    that replaces the operations, such as `DTensor`, and for a sparse, nested, quantised, `meta` or transformed tensor.
    It is also None under a `TorchDispatchMode`, which would see our operations.
    """
    kind = type(tensor)
    if kind is not Tensor and kind is not nn.Parameter:
        if kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
            return None
        with torch._C.DisableTorchFunctionSubclass():
            tensor = tensor.as_subclass(Tensor)
    if (
        tensor.layout is not torch.strided
        or tensor.is_nested
        or not (tensor.is_floating_point() or tensor.is_complex())
        or tensor.device.type == "meta"
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        or torch._C._functorch.is_legacy_batchedtensor(tensor)
    ):
        return None
    return tensor.detach() if tensor.requires_grad else tensor


def why_not_plain(value: object) -> str:
    """Why a value cannot be measured: it is not a tensor, or `plain` returns None for it."""
    if not isinstance(value, Tensor):
        return f"its input or output is a {type(value).__name__}, not a tensor"
    if torch._C._len_torch_dispatch_stack():
        return "it runs under a TorchDispatchMode"
    if type(value) not in (Tensor, nn.Parameter):
        return f"its input or output is a {type(value).__name__}"
    return f"its input or output is a {value.layout} tensor of {value.dtype}".replace("torch.", "")


def first_tensor(value: object) -> Tensor | None:
    """The first floating-point or complex tensor in a tensor, tuple, list or dict, at any depth; None if there is none.
    This tensor is taken as the signal, because token numbers, masks and the like are integers or come later.
    """
    if isinstance(value, Tensor):
        return value if value.is_floating_point() or value.is_complex() else None
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    for part in parts:
        if (tensor := first_tensor(part)) is not None:
            return tensor
    return None


def version(tensor: Tensor) -> int:
    """How often the tensor has been changed in place; 0 for a tensor of `torch.inference_mode`, which does not count
    this.
    """
    return 0 if tensor.is_inference() else tensor._version


def has_compiled() -> bool:
    """Whether torch.compile has compiled something in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return dynamo is not None and bool(dynamo.counters.get("frames") or dynamo.counters.get("stats"))


class _GlobalHooks:
    """The two hooks that torch calls for every module, registered while somebody is listening."""

    def __init__(self) -> None:
        self.listening: list[ModuleHooks] = []
        # The listeners of each module, by the module's id. Most modules have none; a call of these costs one look-up.
        self.by_input: dict[int, list[ModuleHooks]] = {}
        self.by_output: dict[int, list[ModuleHooks]] = {}
        self._handles: list[RemovableHandle] = []
        # torch's `callback_handler`, while we listen to the start and the end of a compilation.
        self.compiler: Any = None

    def update(self) -> None:
        """Register or remove the hooks."""
        self.by_input.clear()
        self.by_output.clear()
        for hooks in self.listening:
            for module in hooks.inputs:
                self.by_input.setdefault(module, []).append(hooks)
            for module in hooks.outputs:
                self.by_output.setdefault(module, []).append(hooks)
        if not self.listening:
            self._unregister()
            if self.compiler is not None:
                with suppress(ValueError):  # `torch._dynamo.reset()` removes them too
                    self.compiler.remove_start_callback(self._before_compiling)
                with suppress(ValueError):
                    self.compiler.remove_end_callback(self._after_compiling)
                with suppress(ValueError):  # the loop may have replaced the list
                    warnings.filters.remove(_WARNING_FILTER)  # type: ignore[attr-defined] # the stubs have a Sequence
                self.compiler = None
            return
        if self.compiler is None and "torch._dynamo" in sys.modules:
            _keep_out_of_graphs()
            self.compiler = sys.modules["torch._dynamo"].callback_handler
            self.compiler.register_start_callback(self._before_compiling)
            self.compiler.register_end_callback(self._after_compiling)
            warnings.filters.insert(0, _WARNING_FILTER)  # type: ignore[attr-defined]
        self._register()

    def _register(self) -> None:
        if not self._handles:
            self._handles = [
                torch_module.register_module_forward_pre_hook(_before_forward),
                torch_module.register_module_forward_hook(_after_forward, with_kwargs=True),
            ]

    def _unregister(self) -> None:
        for handle in self._handles:
            handle.remove()
            torch_module._global_forward_hooks_with_kwargs.pop(handle.id, None)  # torch does not do this
        self._handles = []

    def _before_compiling(self, _: object) -> None:
        for hooks in self.listening:
            hooks.reason = "inside a part compiled by torch.compile"
        self._unregister()

    def _after_compiling(self, _: object) -> None:
        if self.listening:
            self._register()


_GLOBAL = _GlobalHooks()
_BY_INPUT, _BY_OUTPUT = _GLOBAL.by_input, _GLOBAL.by_output


def _before_forward(module: nn.Module, args: Args) -> None:
    listening = _BY_INPUT.get(id(module))
    if listening is not None:
        for hooks in tuple(listening):
            hooks.call(hooks.inputs, id(module), args)


def _after_forward(module: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> None:
    listening = _BY_OUTPUT.get(id(module))
    if listening is not None:
        for hooks in tuple(listening):
            hooks.call(hooks.outputs, id(module), args, kwargs, output)


@cache
def _keep_out_of_graphs() -> None:
    """Tell torch.compile to leave our functions alone. Otherwise it would compile the hooks that run between compiled
    parts.

    `torch.compiler.disable` does the same for a single function, but then each call takes ten times as long.
    """
    sys.modules["torch._dynamo"].trace_rules.add(__name__.partition(".")[0])


def _warning_filter() -> tuple[Any, ...]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_IGNORED_WARNING.replace("(", r"\(").replace(")", r"\)"))
        made: tuple[Any, ...] = warnings.filters[0]
        return made


# This filter is put into `warnings.filters` and taken out directly. `warnings.filterwarnings` would make Python forget
# which of the loop's own warnings it has already shown.
_WARNING_FILTER = _warning_filter()
