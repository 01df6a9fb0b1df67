"""Parameters of every kind: measured like a float64 twin, or marked with the reason; the training stays the same."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from fake_keeper import FakeKeeper
from float64_twins import Array, close, l2
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from unusual_nets import UNUSUAL, SubclassTensor, plain

from tui_descent.instruments import norms as norms_module
from tui_descent.instruments.net_structure import structure
from tui_descent.instruments.not_measured import why_not_measured
from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.events import AnyEvent, Layer, LayersChanged, Noted, ReadingsTaken, RunStarted
from tui_descent.training.watch.watch import Watch

STEPS = 10
# By net: what its rows say that are not measured, by the row's name.
NOT_MEASURED = {
    "int8": {"integers.codes": "its weights are integers (int8)"},
    "uint8": {"integers.codes": "its weights are integers (uint8)"},
    "bool": {"integers.codes": "its weights are integers (bool)"},
    "quantized": {"quantized": "its weights are quantized (qint8)"},
    "sparse weight": {"sparsematrix": "its weights are not a dense tensor (sparse_coo)"},
    "nested": {"nested": "its weights are not a dense tensor (nested)"},
    "meta": {"unused": "it is on the meta device, without numbers"},
    "lazy": {"unused": "it has no shape before its first pass"},
    "empty": {"condition": "it is empty: it has no numbers", "empty": "it is empty: it has no numbers"},
    "wrapper subclass": {"wrapperweight": "a TwoTensor keeps its numbers elsewhere"},
}
# By net: the rows of modules with several weights.
ROWS = {
    "lstm": [f"rnn.weight_{kind}_l{n}{way}" for n in (0, 1) for way in ("", "_reverse") for kind in ("ih", "hh", "hr")],
    "gru": ["rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.weight_ih_l1", "rnn.weight_hh_l1"],
    "rnn": ["rnn.weight_ih_l0", "rnn.weight_hh_l0"],
    "attention": ["attention", "attention.out_proj"],
    "attention with other keys and values": [
        "attention.q_proj_weight", "attention.k_proj_weight", "attention.v_proj_weight", "attention.out_proj",
    ],
    "bilinear": ["bilinear"],
    "parameter list and dict": ["matrices.0", "matrices.1", "matrices.2", "affine.gain", "affine.offset"],
    "weight norm": ["0", "0.parametrizations.weight.original0", "0.parametrizations.weight.original1"],
    "spectral norm": ["0", "0.parametrizations.weight"],
    "orthogonal": ["0", "0.parametrizations.weight"],
    "0-d": ["scalars.temperature", "scalars.offset", "head"],
    "tied": ["a", "b", "c", "head"],
    "strides": ["strides.repeated", "strides.transposed", "strides.strided", "head"],
}  # fmt: skip


class Trained(NamedTuple):
    losses: list[float]
    parameters: list[Tensor | None]
    generator: Tensor
    # By step and parameter name: g, W before and W after.
    twins: list[dict[str, tuple[Array | None, Array, Array]]]


def numbers(tensor: Tensor) -> Array:
    """A tensor's numbers in float64; the magnitudes of complex ones."""
    dense = tensor.detach().to_dense() if tensor.is_sparse else tensor.detach().as_subclass(torch.Tensor)
    found: Array = dense.resolve_conj().to(torch.complex128).numpy()
    return np.abs(found).astype(np.float64) if dense.is_complex() else found.real.astype(np.float64).copy()


def complex_numbers(tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.complex128]]:
    return tensor.detach().as_subclass(torch.Tensor).resolve_conj().to(torch.complex128).numpy().copy()


def difference(after: Tensor, before: Tensor) -> Array:
    return np.abs(complex_numbers(after) - complex_numbers(before))


def train(
    build: Callable[[], nn.Module],
    keeper: FakeKeeper | None,
    change: Callable[[int, nn.Module], None] = lambda step, net: None,
    *,
    steps: int = STEPS,
) -> Trained:
    torch.manual_seed(0)
    net = build()
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad and not p.is_meta], lr=0.01)
    losses, twins = [], []
    with contextlib.ExitStack() as stack:
        run = None
        if keeper is not None:
            run = stack.enter_context(Watch(net, optimizer, link=keeper.link, sampler=Sampler(every=1)))
        for step in range(steps):
            change(step, net)
            dtype = next((p.dtype for p in net.parameters() if p.is_floating_point() and p.requires_grad), torch.float)
            x = torch.randn(64, 32).to(dtype)
            loss = (net(x).float() - x.float().mean(dim=1, keepdim=True)).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            readable = {n: p for n, p in net.named_parameters() if why_not_measured(p) is None}
            before = {n: p.detach().clone() for n, p in readable.items()}
            grads = {n: None if p.grad is None else numbers(p.grad) for n, p in readable.items()}
            optimizer.step()
            twins.append({n: (grads[n], numbers(w), difference(readable[n], w)) for n, w in before.items()})
            losses.append(loss.item())
            if run is not None:
                run.step(loss)
            del loss  # its graph would keep the old shapes
    parameters = [None if is_lazy(p) else p.detach().clone() for p in net.parameters()]
    return Trained(losses, parameters, torch.get_rng_state(), twins)


def assert_same(watched: Trained, plain_run: Trained) -> None:
    assert watched.losses == plain_run.losses
    assert all(math.isfinite(loss) for loss in watched.losses)
    assert torch.equal(watched.generator, plain_run.generator)
    for a, b in zip(watched.parameters, plain_run.parameters, strict=True):
        if a is None or b is None or a.is_meta:
            assert a is b or (a is not None and a.is_meta)
        elif a.is_nested:
            assert all(torch.equal(x, y) for x, y in zip(a.unbind(), b.unbind(), strict=True))
        elif a.is_sparse:
            assert torch.equal(a.to_dense(), b.to_dense())
        else:
            assert torch.equal(a, b)


def lists_of_layers(events: Sequence[AnyEvent]) -> dict[int, tuple[Layer, ...]]:
    """The lists of layers by number."""
    (started,) = (e for e in events if isinstance(e, RunStarted))
    return {0: started.layers} | {e.structure: e.layers for e in events if isinstance(e, LayersChanged)}


def parameter_names(net: nn.Module, rows: Sequence[Layer]) -> list[str]:
    """The names of the parameters that the rows show, found without the instruments."""
    names, root = {id(p): name for name, p in net.named_parameters()}, type(net).__name__.lower()
    found: list[str] = []
    for row in rows:
        path = "" if row.name == root else row.name.removeprefix(f"{root}.")
        if path not in names.values():
            own = dict(net.get_submodule(path).named_parameters(recurse=False))
            own = {n: p for n, p in own.items() if names[id(p)] not in found and (len(own) == 1 or "bias_" not in n)}
            path = names[id(max(own.values(), key=lambda p: (is_lazy(p) or p.dim() >= 2, is_lazy(p) or p.numel())))]
        found.append(path)
    return found


def check_rows(
    readings: Sequence[ReadingsTaken],
    lists: dict[int, tuple[Layer, ...]],
    trained: Trained,
    net: nn.Module,
    within: float = 1e-5,
) -> None:
    for reading, twin in zip(readings, trained.twins, strict=True):
        names = parameter_names(net, lists[reading.structure])
        for n, layer in enumerate(lists[reading.structure]):
            row = {name: column[n] for name, column in reading.values.items()}
            where = f"step {reading.step}, {layer}: {row}"
            if layer.not_measured is not None:
                assert reading.statuses[n] == "not measured", where
                assert not any(value is not None for name, value in row.items() if "activation" not in name), where
                continue
            g, before, delta = twin[names[n]]
            assert close(row["weight_norm"], l2(before), within), where
            if g is None:
                assert reading.statuses[n] in ("frozen", "unused"), where
                assert row["grad_norm"] is None, where
                assert row["update_norm"] is None, where
                continue
            assert reading.statuses[n] == "used", where
            assert close(row["grad_norm"], l2(g), within), where
            assert close(row["grad_rms"], l2(g) / math.sqrt(g.size), within), where
            assert close(row["update_norm"], l2(delta), within), where
        known = [g for g, _, _ in twin.values() if g is not None]
        assert close(reading.global_grad_norm, math.hypot(*map(l2, known)), within)


@pytest.mark.filterwarnings(
    "ignore:torch.quantize_per_tensor",
    "ignore:Initializing zero-element",
    "ignore:LSTM with projections",
    "ignore:The PyTorch API of nested",
)
@pytest.mark.parametrize("name", UNUSUAL)
def test_every_parameter_is_measured_or_marked_and_the_training_is_the_same(name: str, keeper: FakeKeeper) -> None:
    plain_run = train(UNUSUAL[name], None)
    watched = train(UNUSUAL[name], keeper)
    assert_same(watched, plain_run)
    events, readings = keeper.events(), keeper.readings()
    assert not [e for e in events if isinstance(e, Noted) and e.level != "info"]
    lists = lists_of_layers(events)
    layers = lists[0]
    assert [r.step for r in readings] == list(range(STEPS))
    if name == "lazy until the seventh pass":
        assert [layer.not_measured is not None for layer in layers] == [False, False, True]
        assert all(layer.not_measured is None for layer in lists[1])
    else:
        found = {layer.name: layer.not_measured for layer in layers if layer.not_measured}
        assert found == NOT_MEASURED.get(name, {})
    assert set(ROWS.get(name, [])) <= {layer.name for layer in layers}
    torch.manual_seed(0)
    net = UNUSUAL[name]()
    if name.startswith("lazy until"):
        net(torch.zeros(1, 32))
        net.late(torch.zeros(1, 16))
    check_rows(readings, lists, watched, net)


def test_readings_do_not_call_the_functions_of_a_tensor_subclass(monkeypatch: pytest.MonkeyPatch) -> None:
    net = UNUSUAL["subclass"]()
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    norms = norms_module.Norms(structure(net).layers, list(net.parameters()))
    SubclassTensor.calls.clear()
    norms.before_update()
    norms.remember(0)
    norms.after_update().result()
    assert set(SubclassTensor.calls) <= {"__get__", "dim", "numel", "is_floating_point"}


@pytest.mark.parametrize("cosines", [False, True])
def test_readings_are_not_seen_by_modes_of_the_user(cosines: bool) -> None:
    net = plain()
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    norms = norms_module.Norms(structure(net).layers, list(net.parameters()))
    seen: list[str] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **kwargs or {})

    norms.remember(0)
    with Recorder(), torch.device("meta"):
        norms.before_update(step=1, cosines=cosines)
        norms.remember(1)
        deferred = norms.after_update()
    assert seen == []
    reading = deferred.result()
    assert reading.global_cosine == (pytest.approx(1.0) if cosines else None)
    assert reading.grad_norms[0] == pytest.approx(512**0.5)


def to_double(step: int, net: nn.Module) -> None:
    if step == 4:
        net.double()


def to_bfloat16_and_back(step: int, net: nn.Module) -> None:
    if step in (3, 7):
        net.to(torch.bfloat16 if step == 3 else torch.float32)


def swap_data(step: int, net: nn.Module) -> None:
    for p in net.parameters():
        p.data = p.data.clone() + (0.01 if step == 4 else 0.0)


def prune(step: int, net: nn.Module) -> None:
    if step == 4:
        a, b = net[2], net[4]  # type: ignore[index]
        a.weight.data, a.bias.data, b.weight.data = a.weight.data[:8], a.bias.data[:8], b.weight.data[:, :8]
        for p in net.parameters():
            p.grad = None


def transpose(step: int, net: nn.Module) -> None:
    if step in (3, 6):
        net[2].weight.data = net[2].weight.data.t()  # type: ignore[index]


def freeze_every_other_step(step: int, net: nn.Module) -> None:
    net[0].weight.requires_grad_(step % 2 == 0)  # type: ignore[index]


CHANGES = [to_double, to_bfloat16_and_back, swap_data, prune, transpose, freeze_every_other_step]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_readings_go_on_when_the_loop_changes_parameters(
    change: Callable[[int, nn.Module], None], keeper: FakeKeeper
) -> None:
    plain_run = train(plain, None, change)
    watched = train(plain, keeper, change)
    assert_same(watched, plain_run)
    events, readings = keeper.events(), keeper.readings()
    assert not [e for e in events if isinstance(e, Noted) and e.level != "info"]
    assert [r.step for r in readings] == list(range(STEPS))
    check_rows(readings, lists_of_layers(events), watched, plain())
    if change is not freeze_every_other_step:
        cosines = [r.global_cosine for r in readings]
        assert cosines[0] is None
        assert sum(c is None for c in cosines) <= 3
        assert all(c is None or -1 <= c <= 1 for c in cosines)


@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize("phase", ["before the update", "after the update"])
@pytest.mark.parametrize("layer", [0, 2, 4])
def test_layer_whose_measurement_raises_is_switched_off_and_the_others_go_on(
    layer: int, phase: str, at: int, keeper: FakeKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The instruments get to see a broken weight: reading it raises."""
    plain_run = train(plain, None)
    real_view = norms_module.real_view
    step, shape = 0, plain()[layer].weight.shape  # type: ignore[union-attr]
    updated = False

    def view(tensor: Tensor) -> Tensor:
        broken = step > at or (step == at and (phase == "before the update" or updated))
        if broken and tensor.shape == shape and isinstance(tensor, nn.Parameter):
            raise ValueError("cannot be read")
        return real_view(tensor)

    def change(now: int, net: nn.Module) -> None:
        nonlocal step, updated
        step, updated = now, False

    make_step = torch.optim.SGD.step

    def sgd_step(self: torch.optim.SGD, closure: None = None) -> None:
        nonlocal updated
        updated = True
        make_step(self, closure)

    monkeypatch.setattr(norms_module, "real_view", view)
    monkeypatch.setattr("tui_descent.instruments.row_sums.real_view", view)
    monkeypatch.setattr(norms_module._Part, "real_weights", lambda part: [view(w) for w in part.weights])
    monkeypatch.setattr(torch.optim.SGD, "step", sgd_step)
    watched = train(plain, keeper, change)
    assert_same(watched, plain_run)
    events, readings = keeper.events(), keeper.readings()
    notes = [e.text for e in events if isinstance(e, Noted)]
    assert notes == [f"switched off: the norms of layer {layer} (ValueError: cannot be read); training goes on"]
    assert [r.step for r in readings] == list(range(STEPS))
    lists = lists_of_layers(events)
    newest = lists[readings[-1].structure]
    assert [x.not_measured for x in newest] == [
        "reading it raised ValueError" if x.name == str(layer) else None for x in newest
    ]
    row = [x.name for x in newest].index(str(layer))
    for reading in readings[at + 2 :]:
        assert reading.statuses[row] == "not measured"
        for n, x in enumerate(newest):
            _, before, delta = watched.twins[reading.step][f"{x.name}.weight"]
            if n != row:
                assert close(reading.values["weight_norm"][n], l2(before), 1e-5)
                assert close(reading.values["update_norm"][n], l2(delta), 1e-5)
            else:
                assert reading.values["grad_norm"][n] is None


def test_error_that_has_nothing_to_do_with_a_layer_is_raised_to_the_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    net = plain()
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    norms = norms_module.Norms(structure(net).layers, list(net.parameters()))
    monkeypatch.setattr(norms_module.TensorGroups, "copy", lambda *_: (_ for _ in ()).throw(MemoryError("full")))
    with pytest.raises(MemoryError):
        norms.before_update()
    assert norms.not_measured == {}
