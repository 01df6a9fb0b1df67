"""Loops whose net, loss and optimizer are not connected as their author thinks."""

from __future__ import annotations

import copy
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

Lossfunction = Callable[[Tensor, Tensor], Tensor]


def supervised(
    watch: Watching,
    steps: int,
    model: nn.Module,
    optimizer: Optimizer,
    data: tuple[Tensor, Tensor],
    loss_function: Lossfunction = F.cross_entropy,
    *,
    size: int = 32,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> None:
    """The plain loop of every tutorial."""
    x, y = data
    with watch(model, optimizer) as run:
        for b in batches(len(x), steps, size):
            optimizer.zero_grad()
            loss = loss_function(model(x[b]), y[b])
            loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            run.step(loss)


# Parameters and optimizer

WEIGHT_NORM = "0, 2, 0.parametrizations.weight.original0, 0.parametrizations.weight.original1"


@loop_with("wiring", "foreign parameters", also="untrained parameters, healthy", layers="fc")
def conv_net_with_a_new_head_after_the_optimizer(watch: Watching, steps: int) -> None:
    model = ConvNet(classes=100)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.fc = nn.Linear(64, 10)
    supervised(watch, steps, model, optimizer, digits())


@loop_with("wiring", "untrained parameters", also="healthy", layers="lstm.weight_ih_l0, lstm.weight_hh_l0, lstm")
def lstm_of_which_only_the_head_is_optimized(watch: Watching, steps: int) -> None:
    model = Lstm(1, 1)
    supervised(watch, steps, model, torch.optim.Adam(model.out.parameters(), lr=1e-2), wave(), F.mse_loss)


@loop_with("wiring", "untrained parameters", also="healthy", layers="encoder.0, encoder.2")
def autoencoder_of_which_only_the_decoder_is_optimized(watch: Watching, steps: int) -> None:
    x = digits()[0].flatten(1)
    model = Autoencoder()
    optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=3e-3)
    supervised(watch, steps, model, optimizer, (x, x), F.mse_loss)


@loop_with("wiring", "foreign parameters", also="untrained parameters", layers="0, 2, 4")
def optimizer_of_a_net_that_was_copied(watch: Watching, steps: int) -> None:
    model = mlp(32, 64, 64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    supervised(watch, steps, copy.deepcopy(model), optimizer, blobs())


@loop_with("wiring", "foreign parameters", also="untrained parameters, healthy, converged", layers=WEIGHT_NORM)
def weight_norm_added_after_the_optimizer(watch: Watching, steps: int) -> None:
    model = mlp(8, 32, 32, 1, activation=nn.Tanh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for n in (0, 2):
        nn.utils.parametrizations.weight_norm(model[n])
    supervised(watch, steps, model, optimizer, line(), F.mse_loss)


@loop_with("wiring", "foreign parameters", also="untrained parameters", layers="tok, pos, head, ln")
def gpt_built_again_after_the_optimizer(watch: Watching, steps: int) -> None:
    optimizer = torch.optim.AdamW(Gpt().parameters(), lr=3e-3)
    model, ids = Gpt(), tokens()
    with watch(model, optimizer) as run:
        for b in batches(len(ids), steps):
            loss = next_token_loss(model, ids[b])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)


class ListedMlp(nn.Module):
    """A net whose hidden layers are in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.Linear(a, b) for a, b in ((32, 32), (32, 32), (32, 32))]
        self.out = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = F.relu(layer(x))
        out: Tensor = self.out(x)
        return out


@loop_with("wiring", "unregistered", also="plateau, healthy, rate too small", layers="hidden")
def hidden_layers_in_a_plain_list(watch: Watching, steps: int) -> None:
    model = ListedMlp()
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=2e-3), blobs())


@loop_with("wiring", "unregistered", also="plateau, healthy, rate too small", layers="body.hidden")
def listed_layers_of_a_part(watch: Watching, steps: int) -> None:
    model = nn.ModuleDict({"body": ListedMlp()})
    model.forward = lambda x: model["body"](x)  # type: ignore[method-assign]
    supervised(watch, steps, model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), blobs())


@loop_with("wiring", "zero output", also="dead units, constant output")
def relu_at_the_end_of_a_functional_regression(watch: Watching, steps: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 32), nn.Linear(32, 1)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.last(F.tanh(self.first(x)))).squeeze(1)

    x, _ = blobs(d=8)
    model = Net()
    nn.init.constant_(model.last.bias, -1.5)
    t = -2 - x[:, 0].abs()
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=0.01), (x, t), F.mse_loss)


# Gradients that do not arrive


@loop_with("wiring", "gradient cut", also="healthy", layers="encoder.2, decoder.0")
def autoencoder_whose_code_is_detached(watch: Watching, steps: int) -> None:
    class Detached(Autoencoder):
        def forward(self, x: Tensor) -> Tensor:
            return self.decoder(self.encoder(x).detach())

    model, x = Detached(), digits()[0].flatten(1)
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=3e-3), (x, x), F.mse_loss)


@loop_with("wiring", "gradient cut", also="healthy", layers="conv2, fc")
def conv_net_whose_features_run_under_no_grad(watch: Watching, steps: int) -> None:
    class Net(ConvNet):
        @torch.no_grad()
        def features(self, x: Tensor) -> Tensor:
            return super().features(x)

    model = Net()
    supervised(watch, steps, model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), digits())


@loop_with("wiring", "gradient cut", also="healthy", layers="layers.0, layers.1")
def features_scaled_through_data(watch: Watching, steps: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 10)])

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.layers[0](x))
            h = torch.tanh(self.layers[1](h.data / h.data.norm(dim=1, keepdim=True)))
            return self.layers[2](h)

    model = Net()
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=3e-3), blobs())


@loop_with("wiring", "gradient cut", also="healthy", layers="tok, pos, blocks.0.qkv, blocks.0.ln1, blocks.1.down, ln")
def gpt_whose_blocks_get_a_copied_embedding(watch: Watching, steps: int) -> None:
    class Net(Gpt):
        def embed(self, ids: Tensor) -> Tensor:
            return torch.tensor(super().embed(ids).tolist())

    model, ids = Net(), tokens()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with watch(model, optimizer) as run:
        for b in batches(len(ids), steps):
            loss = next_token_loss(model, ids[b])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)


@loop_with("wiring", "no gradient")
def loss_made_into_a_new_tensor(watch: Watching, steps: int) -> None:
    model, (x, y) = mlp(8, 32, 1), line()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with watch(model, optimizer) as run:
        for b in batches(len(x), steps):
            optimizer.zero_grad()
            loss = torch.tensor(F.mse_loss(model(x[b]), y[b]).item(), requires_grad=True)
            loss.backward()
            optimizer.step()
            run.step(loss)


@loop_with("wiring", "no gradient")
def loss_of_the_predicted_class(watch: Watching, steps: int) -> None:
    model, (x, y) = ConvNet(), digits()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer) as run:
        for b in batches(len(x), steps):
            predicted = model(x[b]).argmax(dim=1)
            loss = (predicted != y[b]).float().mean().requires_grad_()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)


@loop_with("wiring", "frozen layers", also="plateau, healthy", layers="0, 2")
def all_but_the_head_frozen_by_mistake(watch: Watching, steps: int) -> None:
    model = mlp(32, 4, 4, 10)
    for p in model[:4].parameters():
        p.requires_grad = False
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=3e-3), blobs())


@loop_with("wiring", "frozen layers", also="plateau, healthy")
def gpt_whose_blocks_were_left_frozen(watch: Watching, steps: int) -> None:
    model, ids = Gpt(), tokens()
    for p in model.blocks.parameters():
        p.requires_grad = False
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    with watch(model, optimizer) as run:
        for b in batches(len(ids), steps):
            loss = next_token_loss(model, ids[b])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)


# Rates and updates


@loop_with("wiring", "rate zero", since=10)
def warm_up_whose_scheduler_is_never_stepped(watch: Watching, steps: int) -> None:
    model = mlp(32, 64, 64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min(1, k / 500))
    supervised(watch, steps, model, optimizer, blobs())


@loop_with("wiring", "rate zero", since=10)
def rate_that_an_int_made_zero(watch: Watching, steps: int) -> None:
    model = Lstm(1, 1)
    supervised(watch, steps, model, torch.optim.SGD(model.parameters(), lr=int(1e-2)), wave(), F.mse_loss)


@loop_with("wiring", "rate zero", also="healthy, rate too small", since=70, steps=130)
def rate_that_falls_to_zero_too_early(watch: Watching, steps: int) -> None:
    model = ConvNet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=60)
    supervised(watch, steps, model, optimizer, digits(), scheduler=scheduler)


@loop_with("wiring", "no update", also="rate too small", since=12)
def step_schedule_per_batch_instead_of_per_epoch(watch: Watching, steps: int) -> None:
    model = mlp(64, 48, 48, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
    x, y = digits()
    supervised(watch, steps, model, optimizer, (x.flatten(1), y), scheduler=scheduler)


@loop_with("wiring", "no update", also="rate too small")
def half_precision_weights_that_round_the_update_away(watch: Watching, steps: int) -> None:
    model, (x, y) = mlp(8, 32, 32, 1, activation=nn.Tanh).bfloat16(), line()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-8)
    supervised(watch, steps, model, optimizer, (x.bfloat16(), y.bfloat16()), F.mse_loss)


@loop_with("wiring", "no optimizer step")
def optimizer_step_forgotten(watch: Watching, steps: int) -> None:
    model, (x, y) = ConvNet(), digits()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with watch(model, optimizer) as run:
        for b in batches(len(x), steps):
            loss = F.cross_entropy(model(x[b]), y[b])
            optimizer.zero_grad()
            loss.backward()
            run.step(loss)


@loop_with("wiring", "no optimizer step")
def the_wrong_one_of_two_optimizers_is_stepped(watch: Watching, steps: int) -> None:
    student, teacher, (x, _) = mlp(8, 16, 4), mlp(8, 16, 4), line()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    other = torch.optim.SGD(teacher.parameters(), lr=0.0)
    with watch(student, optimizer) as run:
        for b in batches(len(x), steps):
            loss = F.mse_loss(student(x[b]), teacher(x[b]).detach())
            optimizer.zero_grad()
            loss.backward()
            other.step()
            run.step(loss)


@loop_with("wiring", "every update skipped")
def scaler_that_finds_infinities_for_ever(watch: Watching, steps: int) -> None:
    model, (x, y) = mlp(32, 32, 10), blobs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=0.999999)
    with watch(model, optimizer) as run:
        for b in batches(len(x), steps):
            loss = F.cross_entropy(model(x[b]), y[b])
            optimizer.zero_grad()
            scaler.scale(100 * loss).backward()
            scaler.step(optimizer)
            scaler.update()
            run.step(loss)


@loop_with("wiring", "every update skipped")
def lstm_with_a_scale_that_overflows(watch: Watching, steps: int) -> None:
    model, (x, y) = Lstm(1, 1), wave()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=3e38, growth_interval=1, backoff_factor=0.99999)
    with watch(model, optimizer) as run:
        for b in batches(len(x), steps):
            optimizer.zero_grad(set_to_none=True)
            loss = F.mse_loss(model(x[b]), y[b], reduction="sum")
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            run.step(loss)


UNCLEARED = "healthy, converged, diverging, diverged, rate at the edge"


@loop_with("wiring", "gradients not cleared", also=UNCLEARED)
def zero_grad_forgotten(watch: Watching, steps: int) -> None:
    model, (x, y) = mlp(32, 64, 10), blobs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with watch(model, optimizer) as run:
        for b in batches(len(x), steps):
            loss = F.cross_entropy(model(x[b]), y[b])
            loss.backward()
            optimizer.step()
            run.step(loss)


@loop_with("wiring", "gradients not cleared", also=UNCLEARED)
def zero_grad_of_another_optimizer(watch: Watching, steps: int) -> None:
    model, (x, y) = ConvNet(), digits()
    optimizer, old = torch.optim.Adam(model.parameters(), lr=1e-3), torch.optim.SGD(mlp(2, 2).parameters(), lr=0.1)
    with watch(model, optimizer) as run:
        for b in batches(len(x), steps):
            old.zero_grad()
            loss = F.cross_entropy(model(x[b]), y[b])
            loss.backward()
            optimizer.step()
            run.step(loss)


@loop_with("wiring", "gradients not cleared", also=UNCLEARED)
def zero_grad_once_an_epoch(watch: Watching, steps: int) -> None:
    model, (x, y) = Lstm(1, 1), wave()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watch(model, optimizer) as run:
        for k, b in enumerate(batches(len(x), steps)):
            if k % 40 == 0:
                optimizer.zero_grad()
            loss = F.mse_loss(model(x[b]), y[b])
            loss.backward()
            optimizer.step()
            run.step(loss)


# Outputs and inputs


@loop_with("wiring", "zero output", also="constant output, dead units", harmful="residual, lr")
def last_relu_is_closed(watch: Watching, steps: int) -> None:
    x, _ = blobs(d=8)
    t = -1 - x[:, :4].abs()
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4), nn.ReLU())
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=0.03), (x, t), F.mse_loss)


@loop_with("wiring", "input scale", also="constant output", layers="fc1", harmful="lr, residual, activation")
def mask_that_hides_the_whole_input(watch: Watching, steps: int) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(32, 32), nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            mask = (x > 100).float()
            return self.fc2(torch.tanh(self.fc1(mask * x)))

    model = Masked()
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=3e-3), blobs())


@loop_with("wiring", "constant output", also="plateau", since=20)
def inputs_averaged_over_the_batch(watch: Watching, steps: int) -> None:
    class Averaged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(32, 32), nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            mean = x.mean(dim=0, keepdim=True)  # over the samples, where the features were meant
            return self.fc2(torch.tanh(self.fc1(mean.expand_as(x))))

    model = Averaged()
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=3e-3), blobs())


@loop_with("wiring", "equal weights", also="constant output", harmful="lr, residual, activation")
def all_weights_start_at_zero(watch: Watching, steps: int) -> None:
    model, (x, y) = mlp(64, 32, 32, 10), digits()
    for p in model.parameters():
        nn.init.zeros_(p)
    supervised(watch, steps, model, torch.optim.SGD(model.parameters(), lr=0.1), (x.flatten(1), y))


@loop_with("wiring", "equal weights", harmful="lr, residual, activation")
def tanh_net_whose_weights_all_start_equal(watch: Watching, steps: int) -> None:
    model, (x, y) = mlp(32, 32, 32, 10, activation=nn.Tanh), blobs()
    for p in model.parameters():
        nn.init.constant_(p, 0.05)
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=3e-3), (x, y))


@loop_with("wiring", "equal weights", also="constant output", harmful="lr, activation")
def conv_net_whose_weights_start_at_zero_and_its_biases_do_not(watch: Watching, steps: int) -> None:
    model = ConvNet()
    for p in model.parameters():
        if p.dim() > 1:
            nn.init.zeros_(p)
    supervised(watch, steps, model, torch.optim.SGD(model.parameters(), lr=0.05), digits())


@loop_with("wiring", "constant output", also="plateau", since=20)
def every_token_is_unknown(watch: Watching, steps: int) -> None:
    """The vocabulary of another tokenizer: each token is mapped to the same number."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.out = nn.EmbeddingBag(16, 12), nn.Linear(12, 4)

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(self.words(ids.clamp(max=0)))

    ids = tokens()
    model = Net()
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=1e-2), (ids, ids[:, 0] % 4))


@loop_with("wiring", "softmax twice", also="plateau, healthy", layers="4, 3", harmful="optimizer=adam")
def softmax_before_cross_entropy(watch: Watching, steps: int) -> None:
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10), nn.ReLU(), nn.Softmax(dim=1))
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=1e-3), blobs())


@loop_with("wiring", "softmax twice", also="plateau, healthy")
def softmax_in_the_forward_of_a_conv_net(watch: Watching, steps: int) -> None:
    class Net(ConvNet):
        def forward(self, x: Tensor) -> Tensor:
            return F.softmax(super().forward(x), dim=-1)

    model = Net()
    supervised(watch, steps, model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), digits())


@loop_with("wiring", "softmax twice", also="plateau, healthy")
def sigmoid_before_bce_with_logits(watch: Watching, steps: int) -> None:
    x, y = blobs(classes=2)
    model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1), nn.Sigmoid(), nn.Flatten(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    supervised(watch, steps, model, optimizer, (x, y.float()), F.binary_cross_entropy_with_logits)


@loop_with("wiring", "softmax twice", also="plateau, healthy")
def nll_loss_of_probabilities(watch: Watching, steps: int) -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10), nn.Softmax(dim=1))
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=3e-3), blobs(), F.nll_loss)


@loop_with("wiring", "softmax twice", also="plateau, healthy", layers="3")
def softmax_as_last_module_and_a_loss_as_a_float(watch: Watching, steps: int) -> None:
    model, (x, y) = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10), nn.Softmax(dim=1)), blobs()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with watch(model, optimizer) as run:
        for b in batches(len(x), steps):
            loss = F.cross_entropy(model(x[b]), y[b])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss.item())


@loop_with("wiring", "input scale", also="healthy, plateau, dead units, diverging", since=10)
def images_from_0_to_255(watch: Watching, steps: int) -> None:
    x, y = digits()
    x = (255 * (x - x.min()) / (x.max() - x.min())).round()
    model = ConvNet()
    supervised(watch, steps, model, torch.optim.SGD(model.parameters(), lr=1e-4), (x, y))


@loop_with("wiring", "input scale", also="healthy, plateau, saturated, constant output", since=10)
def house_prices_in_dollars(watch: Watching, steps: int) -> None:
    x, y = line()
    model = mlp(8, 32, 1, activation=nn.Tanh)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    supervised(watch, steps, model, optimizer, (30_000 * x + 200_000, y), F.mse_loss)


@loop_with("wiring", "input scale", also="healthy, plateau, vanishing, rate too small", since=10)
def signals_in_microvolts(watch: Watching, steps: int) -> None:
    x, y = wave()
    model = Lstm(1, 1)
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=3e-3), (1e-6 * x, y), F.mse_loss)


@loop_with("wiring", "batch norm of one sample", also="healthy, plateau", since=10)
def conv_net_with_batch_norm_and_batch_size_one(watch: Watching, steps: int) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)
    )  # fmt: skip
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=1e-3), digits(), size=1)


@loop_with("wiring", "batch norm of one sample", also="healthy, converged", since=10)
def audio_net_with_batch_norm_and_batch_size_one(watch: Watching, steps: int) -> None:
    x, y = wave()
    model = nn.Sequential(
        nn.Conv1d(1, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 8, 3), nn.BatchNorm1d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 1),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    supervised(watch, steps, model, optimizer, (x.transpose(1, 2), y), F.mse_loss, size=1)


# Outputs and targets


@loop_with("wiring", "all pairs", also="plateau, healthy")
def regression_of_a_column_on_a_row(watch: Watching, steps: int) -> None:
    x, y = line()
    model = mlp(8, 32, 1)
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=3e-3), (x, y.squeeze(1)), F.mse_loss)


@loop_with("wiring", "all pairs", also="plateau, healthy")
def lstm_whose_outputs_are_squeezed_and_whose_targets_are_not(watch: Watching, steps: int) -> None:
    model = Lstm(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    supervised(watch, steps, model, optimizer, wave(), lambda out, y: (out.squeeze(1) - y).abs().mean())


@loop_with("wiring", "target scale", also="plateau, healthy, rate too small", since=10)
def targets_in_dollars(watch: Watching, steps: int) -> None:
    x, y = line()
    model = mlp(8, 32, 32, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    supervised(watch, steps, model, optimizer, (x, 250_000 + 60_000 * y), F.mse_loss)


@loop_with("wiring", "target scale", also="plateau, healthy, rate too small", since=10)
def lstm_for_prices_of_thousands(watch: Watching, steps: int) -> None:
    x, y = wave()
    model = Lstm(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    supervised(watch, steps, model, optimizer, (x, 4000 + 500 * y), F.smooth_l1_loss)


class NormedConvNet(nn.Module):
    """A convolution with batch norm, and a head with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(72, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def with_validation(watch: Watching, steps: int, model: NormedConvNet, after: Callable[[], object]) -> None:
    """Validates after every fifth step; `after` is what the loop does then."""
    x, y = digits()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    with watch(model, optimizer) as run:
        for k, b in enumerate(batches(1200, steps)):
            if k % 5 == 0:
                model.eval()
                with torch.no_grad():
                    F.cross_entropy(model(x[1200:]), y[1200:])
                after()
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[b]), y[b])
            loss.backward()
            optimizer.step()
            run.step(loss)


@loop_with("wiring", "eval mode", also="healthy, plateau, vanishing")
def net_left_in_eval_mode_after_validation(watch: Watching, steps: int) -> None:
    with_validation(watch, steps, NormedConvNet(), lambda: None)


@loop_with("wiring", "eval mode", also="healthy, plateau, vanishing")
def body_left_in_eval_mode_after_validation(watch: Watching, steps: int) -> None:
    model = NormedConvNet()
    with_validation(watch, steps, model, model.head.train)
