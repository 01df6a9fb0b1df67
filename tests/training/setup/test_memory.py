"""The estimate of a scenario's memory: parameters exactly, the rest as a lower bound of what training takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_scenario import make
from torch import Tensor

from tui_descent.scenario.memory import memory_needed, parameter_count, refusal
from tui_descent.scenario.spec import Scenario
from tui_descent.training import scenario_run
from tui_descent.training.setup.build import Setup, build
from tui_descent.training.undo import memory_budget

CPU = torch.device("cpu")
NETS = [
    '[model]\nname = "mlp"\ndepth = 3\nwidth = 7',
    '[model]\nname = "mlp"\ndepth = 1\nwidth = 12\nnorm = "layer"\nactivation = "identity"',
    '[model]\nname = "mlp"\ndepth = 5\nwidth = 9\nnorm = "rms"\nactivation = "gelu"\nresidual = "on"',
    '[model]\nname = "conv"\ndepth = 2\nwidth = 5',
    '[model]\nname = "conv"\ndepth = 3\nwidth = 4\nnorm = "layer"\nactivation = "silu"',
    '[model]\nname = "conv"\ndepth = 1\nwidth = 6\nnorm = "rms"',
]
TEXT_NETS = [
    '[model]\nname = "transformer"\ndepth = 2\nwidth = 8\nheads = 2\ncontext = 6',
    '[model]\nname = "transformer"\ndepth = 1\nwidth = 12\nheads = 3\ncontext = 9\nnorm = "layer"\nactivation = "relu"',
    '[model]\nname = "transformer"\ndepth = 3\nwidth = 4\nheads = 1\ncontext = 2\nnorm = "rms"',
]
DATA = {
    "digits": '[data]\nname = "digits"\nbatch_size = 16',
    "all digits": '[data]\nname = "digits"\nsubset = 64\nfull = true',
    "moons": '[data]\nname = "moons"\npoints = 100\nbatch_size = 8',
    "text": '[data]\nname = "text"\nbatch_size = 3',
    "own text": '[data]\nname = "own-text"\nbatch_size = 3',
    "own images": '[data]\nname = "own-images"\nbatch_size = 16',
    "all own images": '[data]\nname = "own-images"\nfull = true',
    "own points": '[data]\nname = "own-points"\nfull = true',
    "addition": '[data]\nname = "modular-addition"\nmodulus = 7\nfull = true',
    "rare classes": '[data]\nname = "rare-classes"\ngroups = 4\nfull = true',
}


def scenario(net: str, data: str, *, optimizer: str = "sgd", dtype: str = "float32") -> Scenario:
    tables = [f'title = "t"\n{DATA[data]}', net]
    tables += [f'[optimizer]\nname = "{optimizer}"\nlr = 0.01', f'[run]\ndtype = "{dtype}"\ndevice = "cpu"']
    return make("\n".join(tables))


CASES = [(net, data) for net in NETS for data in ("digits", "all digits")]
CASES += [(net, "moons") for net in NETS[:3]] + [(net, "text") for net in TEXT_NETS]
CASES += [(NETS[0], data) for data in ("own images", "all own images", "own points", "addition", "rare classes")]
CASES += [(NETS[4], "own images"), (TEXT_NETS[0], "own text")]


@pytest.mark.parametrize(("net", "data"), CASES)
def test_number_of_parameters_is_exact(net: str, data: str) -> None:
    found = scenario(net, data)
    model = build(found, on=CPU).model
    assert parameter_count(found) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("function", ["fragment", "valley"])
def test_surface_has_its_own_parameters(function: str) -> None:
    start = "[1.0]" if function == "fragment" else "[1.0, 2.0]"
    found = make(f'title = "t"\n[model]\nname = "surface"\nfunction = "{function}"\nstart = {start}')
    assert parameter_count(found) == len(start.split(","))
    assert memory_needed(found).activations == 0


@pytest.mark.parametrize(("net", "data"), CASES)
def test_activations_are_a_lower_bound_of_what_autograd_keeps(net: str, data: str) -> None:
    found = scenario(net, data)
    setup = build(found, on=CPU)
    own = {parameter.untyped_storage().data_ptr() for parameter in setup.model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in own:
            kept[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        setup.loss()
    assert 0 < memory_needed(found).activations <= sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw", "muon"])
def test_optimizer_state_and_weights_are_those_of_the_run(optimizer: str, dtype: str) -> None:
    found = scenario(
        NETS[0] if optimizer != "muon" else NETS[0].replace("7", "64"), "digits", optimizer=optimizer, dtype=dtype
    )
    setup = build(found, on=CPU)
    setup.loss().backward()
    setup.optimizer.step()
    need = memory_needed(found)
    assert need.weights == need.gradients == sum(p.nbytes for p in setup.model.parameters())
    states = [
        t for state in setup.optimizer.state.values() for t in state.values() if isinstance(t, Tensor) and t.numel() > 1
    ]
    in_state = sum(t.nbytes for t in states)
    if optimizer == "muon":  # a little more, for what is not a hidden matrix
        assert need.optimizer <= in_state <= 2 * need.optimizer
    else:
        assert need.optimizer == in_state


@pytest.mark.parametrize(("budget", "counted"), [(0, False), (10**3, False), (10**9, True)])
def test_snapshots_count_if_one_fits_into_the_budget(budget: int, counted: bool) -> None:
    need = memory_needed(scenario(NETS[0], "digits", optimizer="adam"), undo_budget=budget)
    assert need.snapshots == (3 * need.weights if counted else 0)


def test_refusal_names_what_is_needed_and_what_there_is() -> None:
    found = make('title = "t"\n[data]\nname = "digits"\n[model]\nname = "mlp"\ndepth = 2000\nwidth = 8192')
    need = memory_needed(found)
    assert refusal(need, 10**9) == (
        "needs at least 1,078.1 GB of memory (weights 536.9 GB, gradients 536.9 GB); 1.0 GB is free"
    )
    assert refusal(need, need.total) is None
    assert refusal(need, None) is None


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_trainer_refuses_what_does_not_fit_on_its_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = scenario(NETS[0], "digits")
    free: dict[str, Any] = {"bytes": 1000}
    monkeypatch.setattr(memory_budget, "free_bytes", lambda _: free["bytes"])
    monkeypatch.setattr(scenario_run.free_memory, "free_bytes", lambda: free["bytes"])
    with pytest.raises(ValueError, match=r"the run needs at least 0 MB of .*memory .*; 0 MB is free; .* --force"):
        scenario_run._check_memory(found, torch.device(device), undo=True, undo_budget=None)
    free["bytes"] = 10**6
    scenario_run._check_memory(found, torch.device(device), undo=True, undo_budget=None)


def test_nothing_is_built_for_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Setup, "__init__", None)
    found = make(
        'title = "t"\n[data]\nname = "text"\n[model]\nname = "transformer"\ndepth = 500\nwidth = 2048\ncontext = 1024'
    )
    assert memory_needed(found).total > 10**11
