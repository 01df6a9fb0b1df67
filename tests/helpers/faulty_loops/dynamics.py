"""Loops that are wired rightly but train badly."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from faulty_loops.data import (
    Autoencoder,
    ConvNet,
    Gpt,
    Lstm,
    batches,
    blobs,
    digits,
    line,
    mlp,
    next_token_loss,
    tokens,
    wave,
)
from faulty_loops.table import Watching, loop_with
from faulty_loops.wiring import supervised

LARGE_RATE = "lr=*10, residual, activation"  # what does not help against a rate that is too large


def flat_digits() -> tuple[Tensor, Tensor]:
    x, y = digits()
    return x.flatten(1), y


def draw(model: nn.Module, std: float, *, only: Callable[[str], bool] = lambda name: True) -> None:
    """Draw all weight matrices from a normal distribution."""
    for name, p in model.named_parameters():
        if p.dim() > 1 and only(name):
            nn.init.normal_(p, std=std)


# Vanishing


@loop_with("dynamics", "vanishing", also="constant output")
def deep_sigmoid_mlp(watch: Watching, steps: int) -> None:
    model = mlp(64, *[32] * 12, 10, activation=nn.Sigmoid)
    supervised(watch, steps, model, torch.optim.SGD(model.parameters(), lr=0.1), flat_digits())


@loop_with("dynamics", "vanishing", layers="l1, l2")
def sigmoid_layers_as_attributes(watch: Watching, steps: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l1 = nn.Linear(32, 48)
            for n in range(2, 8):
                setattr(self, f"l{n}", nn.Linear(48, 48))
            self.out = nn.Linear(48, 10)

        def forward(self, x: Tensor) -> Tensor:
            for n in range(1, 8):
                x = torch.sigmoid(getattr(self, f"l{n}")(x))
            return self.out(x)

    model = Net()
    supervised(watch, steps, model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), blobs())


@loop_with("dynamics", "vanishing")
def deep_tanh_net_with_small_weights(watch: Watching, steps: int) -> None:
    model = mlp(8, *[32] * 14, 1, activation=nn.Tanh)
    draw(model, 0.05)
    supervised(watch, steps, model, torch.optim.SGD(model.parameters(), lr=0.05), line(), F.mse_loss)


@loop_with("dynamics", "vanishing", also="constant output")
def deep_sigmoid_conv_net(watch: Watching, steps: int) -> None:
    parts: list[nn.Module] = [nn.Conv2d(1, 8, 3, padding=1), nn.Sigmoid()]
    for _ in range(8):
        parts += [nn.Conv2d(8, 8, 3, padding=1), nn.Sigmoid()]
    model = nn.Sequential(*parts, nn.Flatten(), nn.Linear(8 * 64, 10))
    supervised(watch, steps, model, torch.optim.SGD(model.parameters(), lr=0.02), digits(), size=16)


@loop_with("dynamics", "vanishing")
def binary_classifier_with_relu_layers_drawn_small(watch: Watching, steps: int) -> None:
    x, y = blobs(classes=2)
    model = nn.Sequential(mlp(32, *[24] * 10, 1), nn.Flatten(0))
    draw(model, 0.06)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    supervised(watch, steps, model, optimizer, (x, y.float()), F.binary_cross_entropy_with_logits)


# Exploding


@loop_with("dynamics", "exploding", harmful="residual, lr=*10")
def relu_net_drawn_too_large_and_clipped(watch: Watching, steps: int) -> None:
    model = mlp(64, *[32] * 12, 10)
    draw(model, 2 * math.sqrt(2 / 32))
    optimizer, (x, y) = torch.optim.SGD(model.parameters(), lr=0.01), flat_digits()
    with watch(model, optimizer) as run:
        for b in batches(len(x), steps):
            loss = F.cross_entropy(model(x[b]), y[b])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            run.step(loss)


@loop_with("dynamics", "exploding", harmful="lr=*10")
def layers_as_attributes_drawn_from_a_unit_normal(watch: Watching, steps: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.ModuleList(nn.Linear(32, 32) for _ in range(8))
            self.out = nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.hidden:
                x = F.relu(layer(x))
            return self.out(x)

    model = Net()
    draw(model, 1.0)
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=1e-4), blobs())


@loop_with("dynamics", "exploding", harmful="lr=*10")
def conv_net_drawn_too_large(watch: Watching, steps: int) -> None:
    parts: list[nn.Module] = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()]
    for _ in range(6):
        parts += [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*parts, nn.Flatten(), nn.Linear(8 * 64, 10))
    draw(model, 0.6)
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=1e-4), digits(), size=16)


@loop_with("dynamics", "exploding", harmful="lr=*10")
def leaky_autoencoder_drawn_too_large(watch: Watching, steps: int) -> None:
    x, _ = flat_digits()
    model = mlp(64, 32, 32, 32, 32, 32, 32, 64, activation=nn.LeakyReLU)
    draw(model, 0.9)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-5)
    supervised(watch, steps, model, optimizer, (x, x), F.mse_loss)


# Dead units


@loop_with("dynamics", "dead units", also="constant output", harmful="lr=*10")
def biases_that_start_far_below_zero(watch: Watching, steps: int) -> None:
    model = mlp(64, 64, 64, 10)
    for n in (0, 2):
        nn.init.constant_(model[n].bias, -12.0)
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=1e-3), flat_digits())


@loop_with("dynamics", "rate too large", also="constant output", harmful="lr=*10, residual, activation")
def first_updates_kill_the_units(watch: Watching, steps: int) -> None:
    model = mlp(64, 64, 64, 64, 64, 10)
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=0.3), flat_digits())


@loop_with("wiring", "zero output", also="dead units, constant output", harmful="residual, lr=*10")
def relu_on_the_output_of_a_regression_below_zero(watch: Watching, steps: int) -> None:
    x, _ = blobs(d=8)
    t = -1 - (x[:, :1] + x[:, 1:2]).abs()
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1), nn.ReLU())
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=0.01), (x, t), F.mse_loss)


@loop_with("dynamics", "dead units", also="constant output, vanishing", harmful="lr=*10")
def functional_net_whose_hidden_layer_is_dead(watch: Watching, steps: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2, self.fc3 = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 1)
            nn.init.constant_(self.fc2.bias, -8.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))

    model = Net()
    supervised(watch, steps, model, torch.optim.SGD(model.parameters(), lr=0.05), line(), F.mse_loss)


@loop_with("dynamics", "dead units", also="constant output", harmful="lr=*10")
def conv_net_with_a_dead_second_layer(watch: Watching, steps: int) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10)
    )  # fmt: skip
    nn.init.constant_(model[2].bias, -6.0)
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=1e-3), digits())


# Saturated


@loop_with("dynamics", "saturated", also="vanishing, constant output")
def tanh_net_whose_biases_are_far_too_large(watch: Watching, steps: int) -> None:
    model = mlp(64, 48, 48, 10, activation=nn.Tanh)
    for n in (0, 2):
        nn.init.constant_(model[n].bias, 5.0)
    supervised(watch, steps, model, torch.optim.SGD(model.parameters(), lr=0.05), flat_digits())


@loop_with("dynamics", "saturated", also="vanishing, constant output")
def sigmoid_net_on_years_of_birth(watch: Watching, steps: int) -> None:
    """Features whose mean is far larger than their deviation, as years since 1900."""
    x, y = line()
    x = 8 * x + 80
    model = mlp(8, 32, 32, 1, activation=nn.Sigmoid)
    draw(model, 1.0, only=lambda name: name.startswith("0"))
    supervised(watch, steps, model, torch.optim.SGD(model.parameters(), lr=0.01), (x, y), F.mse_loss)


@loop_with("dynamics", "rate too large", also="diverging", harmful="lr=*10, residual, activation")
def tanh_net_saturated_by_its_first_updates(watch: Watching, steps: int) -> None:
    model = mlp(32, 48, 48, 10, activation=nn.Tanh)
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=1.0), blobs())


@loop_with("dynamics", "saturated", also="constant output", harmful="lr, activation")
def deep_tanh_net_drawn_far_too_large(watch: Watching, steps: int) -> None:
    model = mlp(64, *[32] * 5, 10, activation=nn.Tanh)
    draw(model, 3.0)
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=1e-3), flat_digits())


@loop_with("dynamics", "saturated", also="constant output", harmful="lr=*10")
def sigmoid_net_whose_biases_are_far_too_large(watch: Watching, steps: int) -> None:
    model = mlp(32, 48, 48, 10, activation=nn.Sigmoid)
    for n in (0, 2):
        nn.init.constant_(model[n].bias, 8.0)
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=1e-3), blobs())


# Weights decaying


@loop_with("dynamics", "weights decaying", harmful="lr=*10")
def logistic_regression_with_a_decay_of_one(watch: Watching, steps: int) -> None:
    """Decay and gradient soon balance each other: the weights no longer shrink, and the loss stays high."""
    model = nn.Linear(64, 10)
    supervised(watch, steps, model, torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1.0), flat_digits())


@loop_with("dynamics", "weights decaying", also="healthy", harmful="lr=*10")
def adamw_with_a_decay_of_ten(watch: Watching, steps: int) -> None:
    model = mlp(64, 64, 64, 10)
    supervised(watch, steps, model, torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=10.0), flat_digits())


@loop_with("dynamics", "weights decaying", also="healthy", harmful="lr=*10")
def adam_with_a_decay_of_a_tenth_in_its_gradient(watch: Watching, steps: int) -> None:
    model = mlp(64, 64, 64, 10)
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=0.1), flat_digits())


@loop_with("dynamics", "weights decaying", also="constant output")
def adam_with_a_decay_of_one(watch: Watching, steps: int) -> None:
    model = mlp(32, 48, 48, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1.0)
    supervised(watch, steps, model, optimizer, blobs())


@loop_with("dynamics", "weights decaying", also="constant output")
def adamw_with_a_decay_of_a_hundred(watch: Watching, steps: int) -> None:
    model = ConvNet()
    supervised(watch, steps, model, torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=100.0), digits())


@loop_with("dynamics", "weights decaying", also="constant output")
def sgd_with_a_decay_of_three(watch: Watching, steps: int) -> None:
    model = mlp(8, 32, 32, 1, activation=nn.Tanh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=3.0)
    supervised(watch, steps, model, optimizer, line(), F.mse_loss)


# Plateau


@loop_with("dynamics", "plateau")
def labels_that_are_random(watch: Watching, steps: int) -> None:
    model = mlp(64, 48, 48, 48, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with watch(model, optimizer) as run:
        for _ in range(steps):
            x, y = torch.randn(32, 64), torch.randint(0, 10, (32,))
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)


@loop_with("dynamics", "plateau", "dead units", harmful="lr")
def labels_that_are_random_for_a_wide_net(watch: Watching, steps: int) -> None:
    """Adam's first updates are large in a wide net, and no reason for the stuck loss. In time most units die."""
    model = mlp(64, 512, 512, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with watch(model, optimizer) as run:
        for _ in range(steps):
            loss = F.cross_entropy(model(torch.randn(32, 64)), torch.randint(0, 10, (32,)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)


@loop_with("dynamics", "plateau")
def coin_flips(watch: Watching, steps: int) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1), nn.Flatten(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer) as run:
        for _ in range(steps):
            loss = F.binary_cross_entropy_with_logits(model(torch.randn(64, 16)), torch.randint(0, 2, (64,)).float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)


@loop_with("dynamics", "plateau")
def gpt_on_random_tokens(watch: Watching, steps: int) -> None:
    model = Gpt()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with watch(model, optimizer) as run:
        for _ in range(steps):
            loss = next_token_loss(model, torch.randint(0, 16, (32, 12)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)


@loop_with("dynamics", "plateau", also="vanishing", harmful="lr=/10")
def tanh_net_drawn_near_zero(watch: Watching, steps: int) -> None:
    model = mlp(64, 32, 32, 10, activation=nn.Tanh)
    draw(model, 0.01)
    supervised(watch, steps, model, torch.optim.SGD(model.parameters(), lr=0.03), flat_digits())


# Diverging


@loop_with("dynamics", "diverging", also="dead units, diverged", harmful="lr=*10")
def adam_with_a_rate_of_three(watch: Watching, steps: int) -> None:
    model = mlp(32, 64, 10)
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=3.0), blobs(spread=4.0))


@loop_with("dynamics", "rate too large", "diverging", harmful="lr=*10, residual")
def gpt_with_a_rate_of_a_half(watch: Watching, steps: int) -> None:
    model, ids = Gpt(), tokens()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    with watch(model, optimizer) as run:
        for b in batches(len(ids), steps):
            loss = next_token_loss(model, ids[b])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)


@loop_with("dynamics", "diverging", "rate too large", harmful="lr=*10, residual, activation")
def regression_with_rmsprop_at_three_tenths(watch: Watching, steps: int) -> None:
    x, y = line()
    model = mlp(8, 32, 32, 1)
    supervised(watch, steps, model, torch.optim.RMSprop(model.parameters(), lr=0.3), (x, y), F.mse_loss)


# Rates that are too large


@loop_with("dynamics", "rate too large", also="constant output", harmful=LARGE_RATE)
def conv_net_with_adam_at_three_tenths(watch: Watching, steps: int) -> None:
    model = ConvNet()
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=0.3), digits())


@loop_with("dynamics", "rate too large", also="constant output", steps=200, harmful=LARGE_RATE)
def conv_net_with_momentum_at_one(watch: Watching, steps: int) -> None:
    """The updates grow over twenty steps."""
    parts = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    parts += [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*parts, nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    supervised(watch, steps, model, torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9), digits())


@loop_with("dynamics", "rate too large", also="constant output", steps=150, harmful=LARGE_RATE)
def encoder_with_adam_at_a_tenth(watch: Watching, steps: int) -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tok, self.pos = nn.Embedding(16, 32), nn.Embedding(12, 32)
            layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
            self.head = nn.Linear(32, 16)

        def forward(self, ids: Tensor) -> Tensor:
            length = ids.shape[1]
            mask = nn.Transformer.generate_square_subsequent_mask(length)
            return self.head(self.encoder(self.tok(ids) + self.pos(torch.arange(length)), mask=mask))

    model, ids = Encoder(), tokens()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    with watch(model, optimizer) as run:
        for b in batches(len(ids), steps):
            loss = next_token_loss(model, ids[b])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)


@loop_with("dynamics", "rate too large", also="constant output, diverging", harmful=LARGE_RATE)
def regression_with_adam_at_one(watch: Watching, steps: int) -> None:
    model = mlp(8, 32, 32, 32, 1)
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=1.0), line(), F.mse_loss)


# Rates that are too small


@loop_with("dynamics", "rate too small", "no update", harmful="lr, init, residual")
def schedule_that_halves_the_rate_at_each_step(watch: Watching, steps: int) -> None:
    model = mlp(64, 48, 48, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    supervised(watch, steps, model, optimizer, flat_digits(), scheduler=scheduler)


@loop_with("dynamics", "rate too small", harmful="lr=/10, init, residual")
def mlp_with_a_rate_of_a_hundred_thousandth(watch: Watching, steps: int) -> None:
    model = mlp(64, 48, 48, 10)
    supervised(watch, steps, model, torch.optim.SGD(model.parameters(), lr=1e-5), flat_digits())


@loop_with("dynamics", "rate too small", harmful="lr=/10, init, residual")
def conv_net_with_adam_at_a_ten_millionth(watch: Watching, steps: int) -> None:
    model = ConvNet()
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=1e-7), digits())


@loop_with("dynamics", "rate too small", harmful="lr=/10, init, residual")
def lstm_with_a_rate_of_a_millionth(watch: Watching, steps: int) -> None:
    model = Lstm(1, 1)
    supervised(watch, steps, model, torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9), wave(), F.mse_loss)


@loop_with("dynamics", "rate too small", harmful="lr=/10, init, residual")
def autoencoder_with_adamw_at_a_millionth(watch: Watching, steps: int) -> None:
    x, _ = flat_digits()
    model = Autoencoder()
    supervised(watch, steps, model, torch.optim.AdamW(model.parameters(), lr=1e-7), (x, x), F.mse_loss)


def clipped(
    watch: Watching, steps: int, model: nn.Module, optimizer: Optimizer, data: tuple[Tensor, Tensor], limit: float
) -> None:
    """A loop that clips its gradients to a norm of `limit`."""
    x, y = data
    with watch(model, optimizer) as run:
        for b in batches(len(x), steps):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[b]), y[b])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), limit)
            optimizer.step()
            run.step(loss)


@loop_with("dynamics", "gradients cut", also="rate too small, plateau")
def classifier_clipped_to_next_to_nothing(watch: Watching, steps: int) -> None:
    model = mlp(32, 64, 64, 10)
    clipped(watch, steps, model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), blobs(), 1e-4)


@loop_with("dynamics", "gradients cut", also="rate too small, plateau")
def conv_net_clipped_to_next_to_nothing(watch: Watching, steps: int) -> None:
    model = ConvNet()
    clipped(watch, steps, model, torch.optim.SGD(model.parameters(), lr=0.1), digits(), 1e-5)


@loop_with("dynamics", "large momentum", also="healthy, diverging")
def classifier_with_a_momentum_of_0_995(watch: Watching, steps: int) -> None:
    model = mlp(32, 48, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.995)
    supervised(watch, steps, model, optimizer, blobs(spread=2.0))


@loop_with("dynamics", "large momentum", also="healthy, diverging")
def regression_with_nesterov_of_0_998(watch: Watching, steps: int) -> None:
    model = mlp(8, 48, 48, 1, activation=nn.SiLU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.998, nesterov=True)
    supervised(watch, steps, model, optimizer, line(), F.smooth_l1_loss)
