"""Facts about the wiring: each kind is found in several loops, names what it must, and ends when it is mended."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_keeper import FakeKeeper
from torch import Tensor, nn
from torch.nn import functional as F

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.events import LoopObserved, WiringFound
from tui_descent.scenario.knobs import parse
from tui_descent.training.watch.watch import Watch

STEPS = 19
Batch = tuple[Tensor, Tensor]
Trained = tuple[nn.Module, list[float]]


class Loop:
    """A loop for classification, whose parts can be replaced by faulty ones."""

    def __init__(
        self,
        net: Callable[[], nn.Module],
        *,
        prepared: Callable[[Any, Any], tuple[Any, Any]] = lambda net, optimizer: (net, optimizer),
        optimizer: Callable[[nn.Module], torch.optim.Optimizer] = lambda net: torch.optim.Adam(net.parameters(), 0.01),
        batch: Callable[[], Batch] = lambda: (torch.randn(8, 6), torch.randint(0, 3, (8,))),
        loss: Callable[[nn.Module, Tensor, Tensor], Tensor] = lambda net, x, y: F.cross_entropy(net(x), y),
        shown: Callable[[Tensor], Any] = lambda loss: loss,
        clear: Callable[[Any], None] = lambda optimizer: optimizer.zero_grad(),
        backward: Callable[[Tensor, Any], None] = lambda loss, optimizer: loss.backward(),
        after: Callable[[int, nn.Module, Any], None] = lambda step, net, optimizer: None,
    ) -> None:
        self.make, self.prepared, self.optimizer, self.batch, self.loss = net, prepared, optimizer, batch, loss
        self.shown, self.clear, self.backward, self.after = shown, clear, backward, after

    def train(self, watch: Callable[[Any, Any], Any] | None = None, steps: int = STEPS) -> Trained:
        torch.manual_seed(3)
        net = self.make()
        net, optimizer = self.prepared(net, self.optimizer(net))
        run, losses = None if watch is None else watch(net, optimizer).__enter__(), []
        for step in range(steps):
            x, y = self.batch()
            loss = self.loss(net, x, y)
            self.clear(optimizer)
            self.backward(loss, optimizer)
            optimizer.step()
            losses.append(loss.item())
            if run is not None:
                run.step(self.shown(loss))
            self.after(step, net, optimizer)
        if run is not None:
            run.__exit__(None, None, None)
        return net, losses


def mlp(last: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3), *([] if last is None else [last])
    )


def conv() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )


def zero_head(net: Any, optimizer: Any) -> tuple[Any, Any]:
    nn.init.zeros_(net[4].weight)
    nn.init.zeros_(net[4].bias)
    return net, optimizer


def one_number() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 1))


def broadcast(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about the shapes
        return F.mse_loss(net(x), x[:, 0])


def with_dropout() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 3))


class EncoderAndHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = conv()[:6], nn.Sequential(nn.Dropout(0.1), nn.Linear(64, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


def encoder_and_head() -> EncoderAndHead:
    return EncoderAndHead()


def pretrained(net: Any, optimizer: Any) -> tuple[Any, Any]:
    """The running statistics of an earlier training."""
    with torch.no_grad():
        for _ in range(3):
            net(images(8)[0])
    return net, optimizer


def clipped(clip: Callable[[Any], object]) -> Callable[[Tensor, Any], None]:
    def backward(loss: Tensor, optimizer: Any) -> None:
        loss.backward()
        clip(optimizer.param_groups[0]["params"])

    return backward


def in_eval_mode_between(step: int, net: Any, optimizer: Any) -> None:
    """A validation that forgets `no_grad`, but not `train()`."""
    net.eval()
    net(images(8)[0])
    net.train()


def images(count: int = 8) -> Batch:
    return torch.randn(count, 1, 8, 8), torch.randint(0, 3, (count,))


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm, self.out = nn.Embedding(9, 6), nn.LSTM(6, 6, batch_first=True), nn.Linear(6, 9)
        self.cut: Callable[[Tensor], Tensor] = lambda h: h

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cut(self.lstm(self.embedding(x))[0]))


def tokens() -> Batch:
    text = torch.randint(0, 9, (4, 6))
    return text[:, :-1], text[:, 1:]


def next_token(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net(x).reshape(-1, 9), y.reshape(-1))


class Cut(nn.Module):
    """Three layers, and something that happens after the first or the second."""

    def __init__(self, between: Callable[[Tensor], Tensor], *, at: int = 1, grad: bool = True) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.between, self.at, self.grad = between, at, grad

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.grad and torch.is_grad_enabled()):
            h = torch.relu(self.a(x))
            h = self.between(h) if self.at == 1 else h
        h = torch.relu(self.b(h))
        return self.c(self.between(h) if self.at == 2 else h)


class NoGradBlock(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.body(x)
        return self.head(h)


def cut_lstm() -> nn.Module:
    net = Lstm()
    net.cut = torch.detach
    return net


def replaced(name: str, layer: Callable[[], nn.Module]) -> Callable[[Any, Any], tuple[Any, Any]]:
    def prepared(net: Any, optimizer: Any) -> tuple[Any, Any]:
        setattr(net, name, layer())
        return net, optimizer

    return prepared


def frozen(*names: str) -> Callable[[Any, Any], tuple[Any, Any]]:
    def prepared(net: Any, optimizer: Any) -> tuple[Any, Any]:
        for name, p in net.named_parameters():
            p.requires_grad_(not name.startswith(names))
        return net, optimizer

    return prepared


def filled(net: nn.Module, value: float, *, only: int = 1) -> nn.Module:
    """With one number in all parameters that have at least so many dimensions."""
    for p in net.parameters():
        if p.dim() >= only:
            nn.init.constant_(p, value)
    return net


def sgd(rate: float, **how: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda net: torch.optim.SGD(net.parameters(), rate, **how)


def head_only(name: str) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda net: torch.optim.SGD(net.get_submodule(name).parameters(), lr=0.1)


def warm_up(net: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    optimizer.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: k / 500)  # type: ignore[attr-defined]
    return optimizer


def groups(net: nn.Module) -> torch.optim.Optimizer:
    first, *others = net.children()
    return torch.optim.SGD(
        [{"params": first.parameters(), "lr": 0.0}, {"params": nn.ModuleList(others).parameters()}], lr=0.1
    )


def nothing(*_: Any) -> None:
    pass


def zeroed_before_the_step(loss: Tensor, optimizer: Any) -> None:
    loss.backward()
    optimizer.zero_grad()


def rebuilt(loss: Tensor, optimizer: Any) -> None:
    torch.tensor(loss.item(), requires_grad=True).backward()


class Clamped(nn.Sequential):
    """With numbers for the samples, none below 0."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(min=0)[:, 0]  # type: ignore[no-any-return]


def lowered(layer: nn.Linear) -> nn.Linear:
    """A layer with outputs below 0."""
    nn.init.constant_(layer.bias, -3.0)
    return layer


class PlainList(nn.Module):
    """Hidden layers in a container that `parameters()` does not look into."""

    def __init__(self, pack: Callable[[list[Any]], Any], *, part: type[nn.Module] | None = nn.Linear) -> None:
        super().__init__()
        layers = [nn.Linear(6, 12), nn.Linear(12, 12)]
        self.hidden = pack(layers if part is not None else [p for m in layers for p in (m.weight, m.bias)])
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        for weight, bias in weights_in(self.hidden):
            x = F.linear(x, weight, bias).relu()
        return self.out(x)  # type: ignore[no-any-return]


def weights_in(value: Any) -> Iterator[tuple[Tensor, Tensor]]:
    parts = list(value.values() if isinstance(value, dict) else value)
    if parts and isinstance(parts[0], nn.Parameter):
        yield from zip(parts[::2], parts[1::2], strict=True)
        return
    for part in parts:
        if isinstance(part, nn.Linear):
            yield part.weight, part.bias
        else:
            yield from weights_in(part)


class Helped(nn.Module):
    """A net with another one that it hides from its own parameters, which adds to its output."""

    def __init__(self, *, with_gradient: bool) -> None:
        super().__init__()
        self.body, self.helper = mlp(), [mlp().requires_grad_(with_gradient)]

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.helper[0](x)  # type: ignore[no-any-return]


def with_helper_in_optimizer(net: nn.Module) -> torch.optim.Optimizer:
    assert isinstance(net, Helped)
    return torch.optim.Adam([*net.parameters(), *net.helper[0].parameters()], lr=0.01)


def also_listed(net: Any) -> Any:
    net.order = [net[0], net[2]]
    return net


def trains_helper(step: int, net: Any, optimizer: Any) -> None:
    """The loop itself updates the helper, by plain gradient descent."""
    with torch.no_grad():
        for p in net.helper[0].parameters():
            p -= 0.1 * p.grad
            p.grad = None


def no_graph(loss: Tensor, optimizer: Any) -> None:
    loss.requires_grad_().backward()


def of_predicted_classes(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(net(x).argmax(1).float(), y.float())


def beside_the_net(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net(x).detach().requires_grad_(), y)


def stops_at(bias: float) -> Callable[[Any, Any], tuple[Any, Any]]:
    def prepared(net: Any, optimizer: Any) -> tuple[Any, Any]:
        net[2].bias.data.fill_(bias)
        return net, optimizer

    return prepared


class ConstantHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = mlp(), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x) - 1e4))


def half(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net(x.bfloat16()).float(), y)


def bce(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(net(x), F.one_hot(y, 3).float())


def another_optimizer(net: Any, optimizer: Any) -> tuple[Any, Any]:
    optimizer.other = torch.optim.SGD(mlp().parameters())
    return net, optimizer


def copied_back(share: float) -> Callable[[int, nn.Module, Any], None]:
    """Loads a running mean of the weights into the net after each step."""
    mean: list[Tensor] = []

    def after(step: int, net: nn.Module, optimizer: Any) -> None:
        if not step:
            mean[:] = [p.detach().clone() for p in net.parameters()]
        with torch.no_grad():
            for p, m in zip(net.parameters(), mean, strict=True):
                p.copy_(m.lerp_(p, share))

    return after


def falls_to(rate: float) -> Callable[[int, nn.Module, Any], None]:
    """A schedule that ends after four steps."""

    def after(step: int, net: nn.Module, optimizer: Any) -> None:
        if step == 3:
            optimizer.param_groups[0]["lr"] = rate

    return after


def large_weights() -> nn.Module:
    """Small updates of weights of 10,000 are rounded away."""
    net = nn.Sequential(nn.Linear(6, 3))
    nn.init.constant_(net[0].weight, 1e4)
    return net


def resets(net: Any, optimizer: Any) -> tuple[Any, Any]:
    """An optimizer whose step ends by loading the first weights; the hook is called after ours."""
    first = [p.detach().clone() for p in net.parameters()]
    own = optimizer.step

    def step(*args: Any, **kwargs: Any) -> None:
        own(*args, **kwargs)
        with torch.no_grad():
            for p, value in zip(net.parameters(), first, strict=True):
                p.copy_(value)

    optimizer.step = step
    return net, optimizer


def cleared_after_each_step(net: Any, optimizer: Any) -> tuple[Any, Any]:
    optimizer.register_step_post_hook(lambda *_: net.zero_grad())
    return net, optimizer


# The loop, the fault, and its layer.
FAULTS: dict[str, tuple[Loop, str, str | None]] = {
    "copy": (Loop(mlp, prepared=lambda net, o: (copy.deepcopy(net), o)), "foreign parameters", "0"),
    "wrapped copy": (
        Loop(mlp, prepared=lambda net, o: (nn.Sequential(copy.deepcopy(net)), o)),
        "foreign parameters",
        "0.0",
    ),
    "new head": (Loop(mlp, prepared=replaced("4", lambda: nn.Linear(12, 3))), "foreign parameters", "4"),
    "new head of an LSTM": (
        Loop(Lstm, prepared=replaced("out", lambda: nn.Linear(6, 9)), batch=tokens, loss=next_token),
        "foreign parameters",
        "out",
    ),
    "head only": (Loop(mlp, optimizer=head_only("4")), "untrained parameters", "0"),
    "head of a conv net only": (
        Loop(conv, optimizer=head_only("6"), batch=images, shown=Tensor.item),
        "untrained parameters",
        "0",
    ),
    "head only, cleared after the step": (
        Loop(mlp, optimizer=head_only("4"), clear=nothing, prepared=cleared_after_each_step),
        "untrained parameters",
        "0",
    ),
    "layer added": (
        Loop(mlp, prepared=replaced("5", lambda: nn.Linear(3, 3)), shown=lambda loss: loss.detach()),
        "untrained parameters",
        "5",
    ),
    "detach": (Loop(lambda: Cut(torch.detach)), "gradient cut", "a"),
    "data": (Loop(lambda: Cut(lambda h: h.data, at=2), optimizer=sgd(0.1)), "gradient cut", "b"),
    "numpy": (Loop(lambda: Cut(lambda h: torch.tensor(h.detach().numpy()))), "gradient cut", "a"),
    "argmax": (Loop(lambda: Cut(lambda h: F.one_hot(h.argmax(1), 12).float(), at=2)), "gradient cut", "b"),
    "no_grad": (Loop(lambda: Cut(lambda h: h, grad=False)), "gradient cut", "a"),
    "no_grad around a body": (Loop(lambda: NoGradBlock(mlp()[:4])), "gradient cut", "body.2"),
    "detach in an LSTM": (Loop(cut_lstm, batch=tokens, loss=next_token), "gradient cut", "lstm.weight_hh_l0"),
    "no backward": (Loop(mlp, backward=nothing), "no gradient", None),
    "zero_grad before the step": (Loop(conv, backward=zeroed_before_the_step, batch=images), "no gradient", None),
    "loss rebuilt": (Loop(Lstm, backward=rebuilt, batch=tokens, loss=next_token), "no gradient", None),
    "loss of predicted classes": (Loop(mlp, loss=of_predicted_classes, backward=no_graph), "no gradient", None),
    "loss of detached outputs": (Loop(mlp, loss=beside_the_net), "no gradient", None),
    "plain list": (Loop(lambda: PlainList(list)), "unregistered", "hidden"),
    "plain tuple of tuples": (Loop(lambda: PlainList(lambda made: (tuple(made),))), "unregistered", "hidden"),
    "plain dict": (Loop(lambda: PlainList(lambda made: dict(enumerate(made)))), "unregistered", "hidden"),
    "plain list of parameters": (Loop(lambda: PlainList(list, part=None)), "unregistered", "hidden"),
    "plain list in a part": (Loop(lambda: nn.Sequential(PlainList(list))), "unregistered", "0.hidden"),
    "relu at the end": (
        Loop(
            lambda: nn.Sequential(nn.Linear(6, 12), nn.Tanh(), lowered(nn.Linear(12, 2)), nn.ReLU()),
            loss=lambda net, x, y: F.mse_loss(net(x), -2 - x[:, :2].abs()),
        ),
        "zero output",
        None,
    ),
    "clamp at the end": (
        Loop(
            lambda: Clamped(nn.Linear(6, 12), nn.Tanh(), lowered(nn.Linear(12, 1))),
            loss=lambda net, x, y: F.mse_loss(net(x), -2 - x[:, 0].abs()),
        ),
        "zero output",
        None,
    ),
    "frozen": (Loop(mlp, prepared=frozen("0", "2")), "frozen layers", "0"),
    "frozen conv": (Loop(conv, prepared=frozen("0", "3"), batch=images), "frozen layers", "0"),
    "only biases train": (
        Loop(mlp, prepared=frozen("0.weight", "2.weight", "4.weight")),
        "frozen layers",
        "0",
    ),
    "frozen embedding": (
        Loop(Lstm, prepared=frozen("embedding"), batch=tokens, loss=next_token),
        "frozen layers",
        "embedding",
    ),
    "rate 0": (Loop(mlp, optimizer=sgd(0.0)), "rate zero", None),
    "scheduler not stepped": (Loop(conv, optimizer=warm_up, batch=images), "rate zero", None),
    "group with rate 0": (Loop(mlp, optimizer=groups), "rate zero", "0"),
    "rounded away": (Loop(lambda: mlp().bfloat16(), optimizer=sgd(1e-12), loss=half), "no update", None),
    "rounded away in float32": (Loop(mlp, optimizer=sgd(1e-30)), "no update", None),
    "rounded away in a conv net": (Loop(conv, optimizer=sgd(1e-25), batch=images), "no update", None),
    "rate that becomes too small": (Loop(mlp, optimizer=sgd(0.1), after=falls_to(1e-30)), "no update", None),
    "average copied back": (Loop(mlp, after=copied_back(0.001)), "no update", "0"),
    "first weights loaded again": (Loop(conv, batch=images, after=copied_back(0.0)), "no update", "0"),
    "weights set back before run.step": (
        Loop(Lstm, batch=tokens, loss=next_token, prepared=resets),
        "no update",
        "embedding",
    ),
    "nll of logits": (Loop(mlp, loss=lambda net, x, y: F.nll_loss(net(x), y)), "no log-softmax", None),
    "equal weights": (Loop(lambda: filled(mlp(), 0.1)), "equal weights", "0"),
    "equal weights in a conv net": (Loop(lambda: filled(conv(), 0.05), batch=images), "equal weights", "0"),
    "not cleared": (Loop(mlp, clear=nothing), "gradients not cleared", "4"),
    "not cleared in a conv net": (
        Loop(conv, clear=nothing, batch=images, optimizer=sgd(1e-3)),
        "gradients not cleared",
        "6",
    ),
    "another optimizer cleared": (
        Loop(mlp, prepared=another_optimizer, clear=lambda o: o.other.zero_grad(set_to_none=False), shown=Tensor.item),
        "gradients not cleared",
        "4",
    ),
    "not cleared but clipped": (
        Loop(Lstm, clear=nothing, batch=tokens, loss=next_token, backward=lambda loss, o: (
            loss.backward(), nn.utils.clip_grad_norm_(o.param_groups[0]["params"], 1.0),
        )[0]),
        "gradients not cleared",
        "out",
    ),
    "softmax": (Loop(lambda: mlp(nn.Softmax(dim=1))), "softmax twice", None),
    "softmax of tokens": (
        Loop(
            Lstm, batch=tokens, loss=lambda net, x, y: F.cross_entropy(net(x).softmax(-1).transpose(1, 2), y)
        ),
        "softmax twice",
        None,
    ),
    "sigmoid before BCE of logits": (Loop(lambda: mlp(nn.Sigmoid()), loss=bce), "softmax twice", None),
    "sigmoid before cross-entropy": (Loop(lambda: mlp(nn.Sigmoid())), "softmax twice", None),
    "probabilities in nll_loss": (
        Loop(lambda: mlp(nn.Softmax(dim=1)), loss=lambda net, x, y: F.nll_loss(net(x), y)),
        "softmax twice",
        None,
    ),
    "softmax, loss as a number": (Loop(lambda: mlp(nn.Softmax(dim=1)), shown=Tensor.item), "softmax twice", None),
    "sigmoid, loss as a number": (
        Loop(
            lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1), nn.Sigmoid()),
            loss=lambda net, x, y: F.binary_cross_entropy_with_logits(net(x)[:, 0], 0.0 * y),
            shown=Tensor.item,
        ),
        "softmax twice",
        None,
    ),
    "softmax in forward, loss detached": (
        Loop(
            lambda: Cut(lambda h: h, at=1), shown=lambda loss: loss.detach(),
            prepared=lambda net, o: (nn.Sequential(net, nn.Softmax(1)), o),
        ),
        "softmax twice",
        None,
    ),
    "bytes": (Loop(conv, batch=lambda: (torch.rand(8, 1, 8, 8) * 255, torch.randint(0, 3, (8,)))), "input scale", "0"),
    "tiny inputs": (Loop(mlp, batch=lambda: (1e-3 * torch.randn(8, 6), torch.randint(0, 3, (8,)))), "input scale", "0"),
    "inputs that are all 0": (
        Loop(mlp, batch=lambda: (torch.zeros(8, 6), torch.randint(0, 3, (8,)))),
        "input scale",
        "0",
    ),
    "years": (
        Loop(mlp, batch=lambda: (2000 + torch.rand(8, 6), torch.randint(0, 3, (8,))), shown=Tensor.item),
        "input scale",
        "0",
    ),
    "one sample": (Loop(conv, batch=lambda: images(1)), "batch norm of one sample", "1"),
    "one sample in 1-D": (
        Loop(
            lambda: nn.Sequential(nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(16, 3)),
            batch=lambda: (torch.randn(1, 1, 6), torch.randint(0, 3, (1,))),
        ),
        "batch norm of one sample",
        "1",
    ),
    "outputs (8, 1), targets (8)": (Loop(one_number, loss=broadcast), "all pairs", None),
    "outputs (8), targets (8, 1)": (
        Loop(one_number, loss=lambda net, x, y: (net(x).squeeze(1) - x[:, :1]).pow(2).mean()), "all pairs", None
    ),
    "all pairs and a penalty": (
        Loop(one_number, loss=lambda net, x, y: broadcast(net, x, y) + 1e-4 * net[0].weight.square().sum()),
        "all pairs",
        None,
    ),
    "targets in dollars": (
        Loop(one_number, loss=lambda net, x, y: F.mse_loss(net(x), 2e5 + 1e4 * x[:, :1])), "target scale", None
    ),
    "targets of thousands": (
        Loop(one_number, loss=lambda net, x, y: F.smooth_l1_loss(net(x)[:, 0], 3000 * x[:, 0])), "target scale", None
    ),
    "tiny targets": (
        Loop(
            one_number, loss=lambda net, x, y: (net(x) - 1e-3 * x[:, :1]).square().mean(),
            prepared=zero_head, optimizer=sgd(0.01),
        ),
        "target scale",
        None,
    ),
    "never in training mode": (Loop(conv, batch=images, prepared=lambda net, o: (net.eval(), o)), "eval mode", None),
    "encoder left in eval mode": (
        Loop(encoder_and_head, batch=images, after=lambda step, net, o: net.encoder.eval() if step == 5 else None),
        "eval mode",
        "encoder",
    ),
    "dropout left off": (Loop(with_dropout, prepared=lambda net, o: (net.eval(), o)), "eval mode", None),
    "clipped to next to nothing": (
        Loop(mlp, optimizer=sgd(0.1), backward=clipped(lambda p: nn.utils.clip_grad_norm_(p, 1e-4))),
        "gradients cut",
        None,
    ),
    "clipped by value": (
        Loop(conv, batch=images, backward=clipped(lambda p: nn.utils.clip_grad_value_(p, 1e-6))), "gradients cut", None
    ),
    "dead layer": (Loop(mlp, prepared=stops_at(-50.0)), "constant output", None),
    "dead layer before a head": (
        Loop(ConstantHead, batch=lambda: (torch.randn(8, 6), torch.randint(0, 4, (8,)))),
        "constant output",
        None,
    ),
    "input multiplied by 0": (
        Loop(mlp, loss=lambda net, x, y: F.cross_entropy(net(x), y), prepared=lambda net, o: (Zeroed(net), o)),
        "constant output",
        None,
    ),
}  # fmt: skip


class Zeroed(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(0 * x + 1)


@pytest.fixture
def keeper(home: Path) -> Iterator[FakeKeeper]:
    """Without the usual search for files that were left open, which takes longer than these loops."""
    keeper = FakeKeeper(home)
    yield keeper
    keeper.close()


def watched(keeper: FakeKeeper, **how: Any) -> Callable[[Any, Any], Watch]:
    return lambda net, optimizer: Watch(net, optimizer, link=keeper.link, sampler=Sampler(**{"every": 5} | how))


def facts(keeper: FakeKeeper) -> list[WiringFound]:
    found: list[WiringFound] = keeper.events(WiringFound)
    return found


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_found_alone_and_the_loop_is_unchanged(name: str, keeper: FakeKeeper) -> None:
    loop, fault, layer = FAULTS[name]
    plain, losses = loop.train()
    numbers = torch.get_rng_state()
    net, found_losses = loop.train(watched(keeper))
    assert [loss.hex() for loss in found_losses] == [loss.hex() for loss in losses]
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), plain.parameters(), strict=True))
    assert torch.equal(numbers, torch.get_rng_state())
    assert all(p._backward_hooks is None and p._post_accumulate_grad_hooks is None for p in net.parameters())
    found = facts(keeper)
    assert [(f.fault, f.layer, f.present) for f in found] == [(fault, layer, True)]
    assert found[0].step < STEPS


@pytest.mark.parametrize(
    "name",
    ["copy", "detach", "no backward", "frozen", "rate 0", "not cleared", "softmax", "bytes", "rounded away",
     "rounded away in float32"],
)  # fmt: skip
def test_most_faults_are_found_without_readings(name: str, keeper: FakeKeeper) -> None:
    loop, fault, layer = FAULTS[name]
    loop.train(watched(keeper, every=None, budget=0.0))
    assert [(f.fault, f.layer) for f in facts(keeper)] == [(fault, layer)]


@pytest.mark.parametrize(("name", "fell_from"), [("rate that becomes too small", 0.1), ("rounded away", None)])
def test_rate_that_fell_is_distinguished_from_one_that_was_always_too_small(
    name: str, fell_from: float | None, keeper: FakeKeeper
) -> None:
    FAULTS[name][0].train(watched(keeper))
    (fact,) = facts(keeper)
    assert fact.evidence.get("fell_from") == fell_from


@pytest.mark.parametrize("only", [1, 2], ids=["weights and biases", "weights"])
def test_weights_that_all_start_at_0_are_named(only: int, keeper: FakeKeeper) -> None:
    """The output may then be constant, too."""
    Loop(lambda: filled(mlp(), 0.0, only=only), optimizer=sgd(0.1)).train(watched(keeper))
    found = {fact.fault: fact for fact in facts(keeper)}
    assert set(found) <= {"equal weights", "constant output"}
    assert found["equal weights"].layer == "0"
    assert found["equal weights"].evidence["start"] == "at 0"


class ZeroBranches(nn.Module):
    """Residual branches whose last layers start at 0, and so does the head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 12), filled(nn.Linear(12, 3), 0.0)
        self.up, self.down = nn.Linear(12, 12), filled(nn.Linear(12, 12), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return self.head(h + self.down(torch.relu(self.up(h))))


class Adapted(nn.Module):
    """A low-rank adapter, one half of which starts at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.a = nn.Linear(6, 12).requires_grad_(False), nn.Linear(6, 4, bias=False)
        self.b, self.head = filled(nn.Linear(4, 12, bias=False), 0.0), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.base(x) + self.b(self.a(x))))


STARTS_THAT_LEARN: dict[str, Callable[[], nn.Module]] = {
    "logistic regression at 0": lambda: filled(nn.Linear(6, 3), 0.0),
    "two classes at 0": lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), filled(nn.Linear(8, 3), 0.0)),
    "residual branches at 0": ZeroBranches,
    "adapter at 0": Adapted,
    "hidden layer at 0 before a random one": lambda: nn.Sequential(
        filled(nn.Linear(6, 12), 0.0, only=2), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3)
    ),
}


@pytest.mark.parametrize("name", STARTS_THAT_LEARN)
def test_weights_that_start_equal_and_become_different_are_no_fault(name: str, keeper: FakeKeeper) -> None:
    Loop(STARTS_THAT_LEARN[name]).train(watched(keeper))
    assert "equal weights" not in {fact.fault for fact in facts(keeper)}


def test_units_that_are_drawn_again_are_no_longer_equal(keeper: FakeKeeper) -> None:
    def draw(step: int, net: Any, optimizer: Any) -> None:
        if step == 14:
            nn.init.normal_(net[0].weight)
            nn.init.normal_(net[2].weight)

    Loop(lambda: filled(mlp(), 0.1), after=draw).train(watched(keeper))
    assert [(f.fault, f.present) for f in facts(keeper)] == [("equal weights", True), ("equal weights", False)]


def test_weights_that_rest_at_a_minimum_are_no_fault(keeper: FakeKeeper) -> None:
    """With its usual rate, a run whose updates are rounded away may be as good as it can be."""
    Loop(large_weights, optimizer=sgd(0.1), after=falls_to(2e-4)).train(watched(keeper))
    assert facts(keeper) == []


def test_evidence_of_a_cut(keeper: FakeKeeper) -> None:
    FAULTS["no_grad around a body"][0].train(watched(keeper))
    assert facts(keeper)[0].evidence == {"after": "head", "without": 2}


def test_softmax_is_proven_or_asked(keeper: FakeKeeper) -> None:
    FAULTS["softmax"][0].train(watched(keeper))
    assert facts(keeper)[0].evidence == {"takes": "cross_entropy", "gets": "softmax"}


def test_question_is_withdrawn_once_the_loss_is_lower_than_it_could_be(keeper: FakeKeeper) -> None:
    x = torch.randn(8, 6)
    right = Loop(
        lambda: mlp(nn.Softmax(dim=1)),
        optimizer=lambda net: torch.optim.Adam(net.parameters(), 0.3),
        batch=lambda: (x, x[:, :3].argmax(1)),
        loss=lambda net, x, y: F.nll_loss(net(x).log(), y),
        shown=Tensor.item,
    )
    _, losses = right.train(watched(keeper))
    asked, withdrawn = facts(keeper)
    assert (asked.fault, asked.present, withdrawn.fault, withdrawn.present) == (
        "softmax twice", True, "softmax twice", False,
    )  # fmt: skip
    assert losses[withdrawn.step] < float(asked.evidence["lowest"])
    assert all(loss >= float(asked.evidence["lowest"]) for loss in losses[: withdrawn.step])


def unfreeze(step: int, net: nn.Module, optimizer: Any) -> None:
    if step == 8:
        net.requires_grad_(True)


def set_rate(step: int, net: nn.Module, optimizer: Any) -> None:
    if step == 12:
        optimizer.param_groups[0]["lr"] = 0.1


def add_group(step: int, net: Any, optimizer: Any) -> None:
    if step == 8:
        optimizer.add_param_group({"params": net[:4].parameters()})


MENDED: dict[str, tuple[Loop, str]] = {
    "frozen": (Loop(mlp, prepared=frozen("0", "2"), after=unfreeze), "frozen layers"),
    "rate": (Loop(mlp, optimizer=sgd(0.0), after=set_rate), "rate zero"),
    "held": (Loop(mlp, optimizer=head_only("4"), after=add_group), "untrained parameters"),
}


@pytest.mark.parametrize("name", MENDED)
def test_fact_ends_when_it_is_mended(name: str, keeper: FakeKeeper) -> None:
    loop, fault = MENDED[name]
    loop.train(watched(keeper))
    assert [(f.fault, f.present) for f in facts(keeper)] == [(fault, True), (fault, False)]


@pytest.mark.parametrize(("train_biases", "layers"), [(True, 3.0), (False, 2.0)], ids=["biases train", "two frozen"])
def test_layers_whose_weight_is_frozen_are_counted(train_biases: bool, layers: float, keeper: FakeKeeper) -> None:
    """As in the list of layers, where each of these rows says `frozen`."""

    def prepared(net: Any, optimizer: Any) -> tuple[Any, Any]:
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(name.endswith("bias") if train_biases else name.startswith("4"))
        return net, optimizer

    Loop(mlp, prepared=prepared).train(watched(keeper))
    (fact,) = facts(keeper)
    assert (fact.fault, fact.evidence["frozen"], fact.evidence["layers"]) == ("frozen layers", layers, 3.0)
    assert ("biases" in fact.evidence) == train_biases
    assert fact.step <= 2


def test_fact_that_a_key_has_ended_is_ended_at_the_next_step(keeper: FakeKeeper) -> None:
    def turn(step: int, net: nn.Module, optimizer: Any) -> None:
        if step == 25:
            keeper.send(parse("freeze=off"))

    loop = Loop(mlp, prepared=frozen("0", "2"), after=turn)
    loop.train(watched(keeper, every=0), steps=30)
    assert [(f.present, f.step) for f in facts(keeper)] == [(True, 0), (False, 27)]


def test_rate_that_becomes_0_late_is_found(keeper: FakeKeeper) -> None:
    def stop(step: int, net: nn.Module, optimizer: Any) -> None:
        if step == 27:
            optimizer.param_groups[0]["lr"] = 0.0

    Loop(mlp, after=stop).train(watched(keeper, every=10), steps=42)
    (fact,) = facts(keeper)
    assert (fact.fault, fact.step) == ("rate zero", 39)  # ten updates from the reading at step 30 on


def clear_at_every_second_step() -> Loop:
    calls = [0]

    def clear(optimizer: Any) -> None:
        calls[0] += 1
        if calls[0] % 2:
            optimizer.zero_grad()

    return Loop(mlp, clear=clear)


def master_copies(net: Any, optimizer: Any) -> tuple[Any, Any]:
    """An optimizer of float32 copies, whose values are copied back, as in mixed precision by hand."""
    own = list(net.parameters())
    copies = [p.detach().float().clone().requires_grad_() for p in own]
    inner = torch.optim.SGD(copies, lr=0.1)

    def before(*_: Any) -> None:
        for p, one in zip(own, copies, strict=True):
            one.grad = None if p.grad is None else p.grad.float()

    def after(*_: Any) -> None:
        with torch.no_grad():
            for p, one in zip(own, copies, strict=True):
                p.copy_(one)
                p.grad = None

    inner.register_step_pre_hook(before)
    inner.register_step_post_hook(after)
    return net, inner


class Lazily(nn.Module):
    """Its second head is used only after a while."""

    def __init__(self) -> None:
        super().__init__()
        self.aux, self.body, self.head = nn.Linear(6, 3), nn.Linear(6, 3), nn.Linear(3, 3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        h = self.body(x)
        return self.head(h + self.aux(x) if self.calls > 12 else h)


def by_autograd(loss: Tensor, optimizer: Any) -> None:
    parameters = optimizer.param_groups[0]["params"]
    for p, grad in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        p.grad = grad


def copied_by_autograd(loss: Tensor, optimizer: Any) -> None:
    parameters = optimizer.param_groups[0]["params"]
    for p, grad in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        p.grad.copy_(grad)


def surgery(loss: Tensor, optimizer: Any) -> None:
    """Two gradients that are combined, as by PCGrad."""
    parameters = optimizer.param_groups[0]["params"]
    grads = []
    for factor in (1.0, 2.0):
        optimizer.zero_grad()
        (factor * loss).backward(retain_graph=True)
        grads.append([p.grad.clone() for p in parameters])
    for p, one, other in zip(parameters, *grads, strict=True):
        p.grad = one + other


def clamp(step: int, net: nn.Module, optimizer: Any) -> None:
    with torch.no_grad():
        for p in net.parameters():
            p.clamp_(-0.1, 0.1)


one_hot = F.one_hot(torch.arange(8), 2000).float()
HEALTHY: dict[str, Loop] = {
    "plain": Loop(mlp),
    "frozen helper in a list": Loop(lambda: Helped(with_gradient=False)),
    "helper in a list, optimized": Loop(lambda: Helped(with_gradient=True), optimizer=with_helper_in_optimizer),
    "helper in a list, trained by the loop": Loop(lambda: Helped(with_gradient=True), after=trains_helper),
    "layers also in a list": Loop(lambda: also_listed(mlp())),
    "relu at the end of a net that trains": Loop(
        lambda: nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 2), nn.ReLU()),
        loss=lambda net, x, y: F.mse_loss(net(x), x[:, :2].abs()),
    ),
    "all cleared before run.step": Loop(mlp, clear=nothing, after=lambda step, net, o: o.zero_grad()),
    "cleared to zero": Loop(mlp, clear=lambda o: o.zero_grad(set_to_none=False)),
    "loss as a number": Loop(conv, batch=images, shown=Tensor.item),
    "master copies": Loop(mlp, prepared=master_copies),
    "zero head": Loop(mlp, prepared=zero_head),
    "cleared at every second step": clear_at_every_second_step(),
    "head used later": Loop(Lazily),
    "gradients assigned": Loop(mlp, clear=nothing, backward=by_autograd),
    "gradients copied": Loop(mlp, clear=nothing, backward=copied_by_autograd),
    "gradients combined": Loop(mlp, clear=nothing, backward=surgery),
    "log_softmax and nll_loss": Loop(lambda: mlp(nn.LogSoftmax(1)), loss=lambda net, x, y: F.nll_loss(net(x), y)),
    "autoencoder with a sigmoid": Loop(
        lambda: nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 6), nn.Sigmoid()),
        loss=lambda net, x, y: F.binary_cross_entropy(net(x), x.sigmoid()), shown=Tensor.item,
    ),
    "log_softmax twice": Loop(lambda: mlp(nn.LogSoftmax(1)), shown=Tensor.item),
    "softmax and its logarithm": Loop(
        lambda: mlp(nn.Softmax(1)), loss=lambda net, x, y: F.nll_loss(torch.log(net(x)), y)
    ),
    "one-hot inputs": Loop(
        lambda: nn.Sequential(nn.Linear(2000, 4), nn.ReLU(), nn.Linear(4, 3)),
        batch=lambda: (one_hot, torch.randint(0, 3, (8,))),
    ),
    "norm before the first layer": Loop(
        lambda: nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3)),
        batch=lambda: (300 * torch.randn(8, 6), torch.randint(0, 3, (8,))),
    ),
    "inputs scaled by the net": Loop(
        lambda: mlp(), loss=lambda net, x, y: F.cross_entropy(net(x / 255), y),
        batch=lambda: (255 * torch.rand(8, 6), torch.randint(0, 3, (8,))),
    ),
    "weights clipped": Loop(mlp, after=clamp),
    "batch norm in evaluation mode": Loop(
        conv, batch=lambda: images(1), prepared=lambda net, o: (net[1].eval() and net, o), optimizer=sgd(0.01)
    ),
    "batch norm frozen after a while": Loop(
        conv, batch=images, after=lambda step, net, o: net[1].eval() if step == 8 else None
    ),
    "validation in between": Loop(encoder_and_head, batch=images, after=in_eval_mode_between),
    "pretrained encoder in eval mode": Loop(
        encoder_and_head, batch=images,
        prepared=lambda net, o: (pretrained(net, o)[0].encoder.eval() and net, o),
    ),
    "eval mode without dropout and batch norm": Loop(mlp, prepared=lambda net, o: (net.eval(), o)),
    "clipping as usual": Loop(mlp, backward=clipped(lambda p: nn.utils.clip_grad_norm_(p, 0.1))),
    "regression": Loop(one_number, loss=lambda net, x, y: F.mse_loss(net(x), x[:, :1])),
    "regression of one number": Loop(one_number, loss=lambda net, x, y: F.mse_loss(net(x)[:, 0], x[:, 0])),
    "targets of 80": Loop(one_number, loss=lambda net, x, y: F.mse_loss(net(x), 80 + x[:, :1])),
    "targets scaled by the net": Loop(
        one_number, loss=lambda net, x, y: F.mse_loss(1e5 * net(x), 1e5 * x[:, :1])
    ),
    "summed squares": Loop(one_number, loss=lambda net, x, y: F.mse_loss(net(x), x[:, :1], reduction="sum") * 1e6),
    "pairwise distances": Loop(
        one_number, loss=lambda net, x, y: (net(x) - net(x).T).abs().mean()
    ),
    "pairs arranged by the loop": Loop(
        one_number, loss=lambda net, x, y: F.mse_loss(net(x)[:, 0].unsqueeze(1).expand(8, 8), x[:, :1].T.expand(8, 8))
    ),
    "one output for many targets": Loop(
        one_number, loss=lambda net, x, y: (net(x) - x).square().mean()
    ),
    "tokens": Loop(Lstm, batch=tokens, loss=next_token),
    "the same sample many times": Loop(mlp, batch=lambda: (torch.ones(8, 6), torch.randint(0, 3, (8,)))),
    "more than the net": Loop(
        mlp, optimizer=lambda net: torch.optim.SGD([*net.parameters(), nn.Parameter(torch.zeros(()))], lr=0.1)
    ),
    "features without gradient": Loop(
        lambda: NoGradBlock(mlp()[:4]), optimizer=lambda net: torch.optim.SGD(net.head.parameters(), lr=0.1)
    ),
    "short warm-up": Loop(
        mlp, optimizer=warm_up, after=lambda step, net, o: o.scheduler.step() if step > 6 else None
    ),
    "converged": Loop(
        mlp, optimizer=sgd(1e-4), loss=lambda net, x, y: 1e-9 * net(x).square().mean()
    ),
}  # fmt: skip


def test_gradients_that_a_scaler_has_divided_are_not_called_cut(keeper: FakeKeeper) -> None:
    torch.manual_seed(3)
    net, scaler = mlp(), torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with watched(keeper)(net, optimizer) as run:
        for _ in range(8):
            loss = F.cross_entropy(net(torch.randn(8, 6)), torch.randint(0, 3, (8,)))
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            run.step(loss)
    assert facts(keeper) == []


def test_eval_mode_of_a_net_that_came_with_its_statistics_is_a_question(keeper: FakeKeeper) -> None:
    Loop(conv, batch=images, prepared=lambda net, o: (pretrained(net, o)[0].eval(), o)).train(watched(keeper))
    (fact,) = facts(keeper)
    assert (fact.fault, fact.evidence) == ("eval mode", {"dropouts": 0.0, "norms": 1.0, "question": 1.0})


def test_eval_mode_is_over_after_train(keeper: FakeKeeper) -> None:
    mended = Loop(
        conv, batch=images, prepared=lambda net, o: (net.eval(), o),
        after=lambda step, net, o: net.train() if step == 8 else None,
    )  # fmt: skip
    mended.train(watched(keeper))
    assert [(f.fault, f.present) for f in facts(keeper)] == [("eval mode", True), ("eval mode", False)]


def test_scale_of_targets_is_their_rms_within_a_quarter(keeper: FakeKeeper) -> None:
    FAULTS["targets in dollars"][0].train(watched(keeper))
    assert facts(keeper)[0].evidence["rms"] == pytest.approx(2e5, rel=0.02)


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_loop_has_no_facts(name: str, keeper: FakeKeeper) -> None:
    HEALTHY[name].train(watched(keeper), steps=26)
    assert facts(keeper) == []


LOSSES: dict[str, tuple[Loop, tuple[str | None, int | None, int | None]]] = {
    "cross-entropy": (Loop(mlp), ("cross_entropy", 3, 8)),
    "cross-entropy of tokens": (Loop(Lstm, batch=tokens, loss=next_token), ("cross_entropy", 9, 4)),
    "scaled": (Loop(mlp, loss=lambda net, x, y: F.cross_entropy(net(x), y) / 2), ("cross_entropy", None, 8)),
    "summed": (
        Loop(mlp, loss=lambda net, x, y: F.cross_entropy(net(x), y, reduction="sum")),
        ("cross_entropy", None, 8),
    ),
    "mse": (Loop(mlp, loss=lambda net, x, y: F.mse_loss(net(x), x[:, :3])), ("mse", None, 8)),
    "mse by hand": (Loop(mlp, loss=lambda net, x, y: (net(x) - x[:, :3]).pow(2).mean()), ("mse", None, 8)),
    "bce": (Loop(lambda: mlp(), loss=bce), ("bce_with_logits", None, 8)),
    "sum of losses": (
        Loop(mlp, loss=lambda net, x, y: F.cross_entropy(net(x), y) + 1e-4 * net[0].weight.square().sum()),
        (None, None, 8),
    ),
    "number": (Loop(mlp, shown=Tensor.item), (None, None, 8)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_function_is_read_from_the_graph(name: str, keeper: FakeKeeper) -> None:
    loop, expected = LOSSES[name]
    loop.train(watched(keeper), steps=3)
    (seen,) = keeper.events(LoopObserved)
    assert (seen.loss_function, seen.classes, seen.batch) == expected


@pytest.mark.parametrize("detached", [True, False])
def test_one_of_several_optimizers_without_any_gradient_is_named(detached: bool, keeper: FakeKeeper) -> None:
    """A GAN whose generator is trained on images that were detached before its loss was computed."""
    torch.manual_seed(0)
    g = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    d = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    by_g, by_d = torch.optim.Adam(g.parameters(), 1e-3), torch.optim.Adam(d.parameters(), 1e-3)
    with Watch({"g": g, "d": d}, {"g": by_g, "d": by_d}, link=keeper.link, sampler=Sampler(every=1)) as run:
        for _ in range(8):
            fake, real = g(torch.randn(16, 4)), torch.randn(16, 3)
            by_d.zero_grad()
            loss_d = F.softplus(-d(real)).mean() + F.softplus(d(fake.detach())).mean()
            loss_d.backward()
            by_d.step()
            by_g.zero_grad()
            loss_g = F.softplus(-d(fake.detach() if detached else fake)).mean()
            loss_g.backward()
            by_g.step()
            run.step(loss_g + loss_d)
    found = [event for event in keeper.events(WiringFound) if event.present]
    assert [(event.fault, event.evidence.get("optimizer")) for event in found] == [("no gradient", "g")] * detached
