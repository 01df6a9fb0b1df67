"""Loops without a fault, many of which look as if they had one."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from faulty_loops.data import (
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
from faulty_loops.dynamics import clipped
from faulty_loops.table import Watching, loop_with
from faulty_loops.wiring import NormedConvNet, supervised, with_validation

# What hurts a run that trains.
HANDS_OFF = "lr, init, optimizer, activation, undo, residual"


@loop_with("healthy", "healthy", also="converged", harmful=HANDS_OFF)
def mlp_on_blobs(watch: Watching, steps: int) -> None:
    model = mlp(32, 64, 64, 10)
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=1e-3), blobs())


@loop_with("healthy", "healthy", also="converged", harmful=f"{HANDS_OFF}, weight_decay")
def adamw_with_a_decay_of_one(watch: Watching, steps: int) -> None:
    """A strong decay, but the gradient is stronger."""
    model = mlp(32, 64, 64, 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1.0)
    supervised(watch, steps, model, optimizer, blobs(spread=2.0))


@loop_with("healthy", "healthy", also="converged", harmful=HANDS_OFF)
def conv_net_on_digits(watch: Watching, steps: int) -> None:
    model = ConvNet()
    supervised(watch, steps, model, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), digits())


@loop_with("healthy", "healthy", also="converged", harmful=HANDS_OFF)
def lstm_on_waves(watch: Watching, steps: int) -> None:
    model = Lstm(1, 1)
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=1e-2), wave(), F.mse_loss)


@loop_with("healthy", "healthy", also="converged", harmful=HANDS_OFF)
def gpt_with_warm_up(watch: Watching, steps: int) -> None:
    model, ids = Gpt(), tokens()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min(1.0, (k + 1) / 150))
    with watch(model, optimizer) as run:
        for b in batches(len(ids), steps):
            loss = next_token_loss(model, ids[b])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            warm_up.step()
            run.step(loss)


@loop_with("healthy", "converged", also="healthy", harmful=HANDS_OFF)
def fine_tuning_of_a_net_that_knows_its_data(watch: Watching, steps: int) -> None:
    x, y = blobs()
    model = mlp(32, 64, 64, 10)
    optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for b in batches(len(x), 250):
        optimizer.zero_grad()
        F.cross_entropy(model(x[b]), y[b]).backward()
        optimizer.step()
    supervised(watch, steps, model, torch.optim.SGD(model.parameters(), lr=1e-3), (x, y))


@loop_with("healthy", "healthy", also="converged, frozen layers", harmful=HANDS_OFF)
def fine_tuning_of_a_frozen_backbone(watch: Watching, steps: int) -> None:
    x, y = digits()
    model = ConvNet()
    optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for b in batches(len(x), 100):
        optimizer.zero_grad()
        F.cross_entropy(model(x[b]), (y[b] + 1) % 10).backward()
        optimizer.step()
    for p in [*model.conv1.parameters(), *model.conv2.parameters()]:
        p.requires_grad = False
    model.fc = nn.Linear(64, 10)
    supervised(watch, steps, model, torch.optim.Adam(model.fc.parameters(), lr=1e-2), (x, y))


@loop_with("healthy", "healthy", also="converged, frozen layers", harmful=HANDS_OFF)
def lora_on_a_trained_net(watch: Watching, steps: int) -> None:
    class Lora(nn.Module):
        def __init__(self, base: nn.Linear, rank: int = 4) -> None:
            super().__init__()
            self.base = base.requires_grad_(False)
            self.a = nn.Linear(base.in_features, rank, bias=False)
            self.b = nn.Linear(rank, base.out_features, bias=False)
            nn.init.zeros_(self.b.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + 2.0 * self.b(self.a(x))

    x, y = blobs()
    model = mlp(32, 48, 48, 10)
    optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for b in batches(len(x), 150):
        optimizer.zero_grad()
        F.cross_entropy(model(x[b]), y[b]).backward()
        optimizer.step()
    for n in (0, 2, 4):
        model[n] = Lora(model[n])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    supervised(watch, steps, model, optimizer, (x, (y + 3) % 10))


@loop_with("healthy", "not clear", harmful=HANDS_OFF)
def dcgan(watch: Watching, steps: int) -> None:
    net_g = nn.Sequential(
        nn.ConvTranspose2d(8, 8, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 1, 2, 2), nn.Tanh()
    )
    net_d = nn.Sequential(
        nn.Conv2d(1, 8, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 4), nn.Sigmoid(), nn.Flatten(0)
    )  # fmt: skip
    optimizer_g = torch.optim.Adam(net_g.parameters(), lr=5e-4, betas=(0.5, 0.999))
    optimizer_d = torch.optim.Adam(net_d.parameters(), lr=5e-4, betas=(0.5, 0.999))
    images = torch.tanh(digits()[0])
    with watch({"g": net_g, "d": net_d}, {"g": optimizer_g, "d": optimizer_d}) as run:
        for b in batches(len(images), steps, 16):
            fake = net_g(torch.randn(16, 8, 1, 1))
            net_d.zero_grad()
            loss_d = F.binary_cross_entropy(net_d(images[b]), torch.ones(16))
            loss_d = loss_d + F.binary_cross_entropy(net_d(fake.detach()), torch.zeros(16))
            loss_d.backward()
            optimizer_d.step()
            net_g.zero_grad()
            loss_g = F.binary_cross_entropy(net_d(fake), torch.ones(16))
            loss_g.backward()
            optimizer_g.step()
            run.step(loss_g)


@loop_with("healthy", "not clear", harmful=HANDS_OFF)
def wasserstein_gan(watch: Watching, steps: int) -> None:
    """Its loss is negative and rises."""
    net_g, critic = mlp(4, 16, 2), mlp(2, 16, 16, 1, activation=nn.LeakyReLU)
    optimizer_g = torch.optim.RMSprop(net_g.parameters(), lr=5e-4)
    optimizer_c = torch.optim.RMSprop(critic.parameters(), lr=5e-4)
    with watch([critic, net_g], [optimizer_c, optimizer_g]) as run:
        for _ in range(steps):
            angle = 6.28 * torch.rand(32, 1)
            real = 2 * torch.cat([angle.sin(), angle.cos()], dim=1)
            optimizer_c.zero_grad()
            loss = critic(net_g(torch.randn(32, 4)).detach()).mean() - critic(real).mean()
            loss.backward()
            optimizer_c.step()
            with torch.no_grad():
                for p in critic.parameters():
                    p.clamp_(-0.3, 0.3)
            optimizer_g.zero_grad()
            (-critic(net_g(torch.randn(32, 4))).mean()).backward()
            optimizer_g.step()
            run.step(loss)


@loop_with("healthy", "not clear", harmful=HANDS_OFF)
def policy_gradient_on_a_bandit(watch: Watching, steps: int) -> None:
    """The loss of a policy gradient says nothing about progress."""
    policy = mlp(4, 16, 4, activation=nn.Tanh)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    baseline = 0.0
    with watch(policy, optimizer) as run:
        for _ in range(steps):
            state = torch.randn(16, 4)
            choice = torch.distributions.Categorical(logits=policy(state))
            action = choice.sample()
            reward = state.gather(1, action.unsqueeze(1)).squeeze(1)
            baseline += 0.1 * (reward.mean().item() - baseline)
            loss = -(choice.log_prob(action) * (reward - baseline)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)


@loop_with("healthy", "not clear", also="healthy, converged", harmful=HANDS_OFF)
def gaussian_likelihood_below_zero(watch: Watching, steps: int) -> None:
    """The negative log-likelihood of a density may fall below 0."""
    x, y = line(noise=0.02)
    model = mlp(8, 32, 2, activation=nn.Tanh)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with watch(model, optimizer) as run:
        for b in batches(len(x), steps):
            mean, log_var = model(x[b]).chunk(2, dim=1)
            loss = 0.5 * (log_var + (y[b] - mean).pow(2) * torch.exp(-log_var)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)


@loop_with("healthy", "not clear", also="healthy", harmful=HANDS_OFF)
def negative_cosine_of_two_views(watch: Watching, steps: int) -> None:
    """SimSiam: the loss goes from 0 to -1."""
    x, _ = blobs()
    encoder, predictor = mlp(32, 32, 16), mlp(16, 8, 16)
    optimizer = torch.optim.SGD([*encoder.parameters(), *predictor.parameters()], lr=0.05, momentum=0.9)
    with watch(nn.ModuleDict({"encoder": encoder, "predictor": predictor}), optimizer) as run:
        for b in batches(len(x), steps):
            one, two = (encoder(x[b] + 0.3 * torch.randn(32, 32)) for _ in range(2))
            loss = -F.cosine_similarity(predictor(one), two.detach()).mean() / 2
            loss = loss - F.cosine_similarity(predictor(two), one.detach()).mean() / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)


@loop_with("healthy", "healthy", also="converged", harmful=HANDS_OFF)
def variational_autoencoder(watch: Watching, steps: int) -> None:
    class Vae(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.mean, self.log_var = nn.Linear(64, 32), nn.Linear(32, 4), nn.Linear(32, 4)
            self.fc2, self.fc3 = nn.Linear(4, 32), nn.Linear(32, 64)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            h = F.relu(self.fc1(x))
            mean, log_var = self.mean(h), self.log_var(h)
            z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_var)
            return torch.sigmoid(self.fc3(F.relu(self.fc2(z)))), mean, log_var

    x = (digits()[0].flatten(1) > 0).float()
    model = Vae()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with watch(model, optimizer) as run:
        for b in batches(len(x), steps):
            out, mean, log_var = model(x[b])
            loss = F.binary_cross_entropy(out, x[b], reduction="sum")
            loss = (loss - 0.5 * (1 + log_var - mean.pow(2) - log_var.exp()).sum()) / len(b)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)


@loop_with("healthy", "healthy", also="converged", harmful=HANDS_OFF)
def gradient_accumulation(watch: Watching, steps: int) -> None:
    model, (x, y) = mlp(32, 64, 10), blobs()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with watch(model, optimizer) as run:
        for k, b in enumerate(batches(len(x), 4 * steps, 16)):
            loss = F.cross_entropy(model(x[b]), y[b])
            (loss / 4).backward()
            if k % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
            run.step(loss)


@loop_with("healthy", "healthy", also="converged", harmful=HANDS_OFF)
def binary_classifier_with_dropout(watch: Watching, steps: int) -> None:
    x, y = blobs(classes=2, spread=2.0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 1), nn.Flatten(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    supervised(watch, steps, model, optimizer, (x, y.float()), F.binary_cross_entropy_with_logits)


@loop_with("healthy", "converged", also="healthy", harmful=HANDS_OFF)
def linear_regression_at_its_noise_floor(watch: Watching, steps: int) -> None:
    model = nn.Linear(8, 1)
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=0.05), line(noise=0.5), F.mse_loss)


@loop_with("healthy", "converged", also="healthy", harmful=HANDS_OFF)
def few_images_learnt_by_heart(watch: Watching, steps: int) -> None:
    x, y = digits()
    model = ConvNet()
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=1e-2), (x[:64], y[:64]))


@loop_with("healthy", "healthy", also="converged", steps=400, harmful=HANDS_OFF)
def one_cycle_on_digits(watch: Watching, steps: int) -> None:
    """The rate is nearly 0 at the end, as it should be."""
    model = ConvNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
    supervised(watch, steps, model, optimizer, digits(), scheduler=scheduler)


@loop_with("healthy", "healthy", also="converged", harmful=HANDS_OFF)
def autoencoder_with_tied_weights(watch: Watching, steps: int) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.code = nn.Linear(64, 16)
            self.bias = nn.Parameter(torch.zeros(64))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(torch.tanh(self.code(x)), self.code.weight.t(), self.bias)

    model, x = Tied(), digits()[0].flatten(1)
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=3e-3), (x, x), F.mse_loss)


@loop_with("healthy", "healthy", also="converged", harmful=HANDS_OFF)
def two_losses_of_two_heads(watch: Watching, steps: int) -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.kind, self.size = nn.Linear(32, 48), nn.Linear(48, 10), nn.Linear(48, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = F.gelu(self.trunk(x))
            return self.kind(h), self.size(h)

    model, (x, y) = Heads(), blobs()
    size = x.norm(dim=1, keepdim=True) / math.sqrt(32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with watch(model, optimizer) as run:
        for b in batches(len(x), steps):
            kind, length = model(x[b])
            loss = F.cross_entropy(kind, y[b]) + F.mse_loss(length, size[b])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)


@loop_with("healthy", "healthy", also="converged", harmful=HANDS_OFF)
def deep_residual_net_that_starts_as_the_identity(watch: Watching, steps: int) -> None:
    """Twelve branches whose last layers start at 0: their gradients are 0 in the first step, the outputs constant."""

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(32, 32), nn.Linear(32, 32)
            nn.init.zeros_(self.down.weight)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(F.relu(self.up(x)))

    head = nn.Linear(32, 10)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    model = nn.Sequential(nn.Linear(32, 32), *(Branch() for _ in range(12)), head)
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=1e-3), blobs())


@loop_with("healthy", "healthy", also="converged", harmful=HANDS_OFF)
def word_vectors_of_a_bag_of_words(watch: Watching, steps: int) -> None:
    """Most rows of an embedding get no gradient in a step."""
    ids = tokens(symbols=200)
    labels = (ids.sum(1) > ids.sum(1).float().mean()).float()

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.out = nn.EmbeddingBag(200, 16), nn.Linear(16, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.words(x)).squeeze(1)

    model = Bag()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    supervised(watch, steps, model, optimizer, (ids, labels), F.binary_cross_entropy_with_logits)


@loop_with("healthy", "healthy", also="converged, rate at the edge", harmful="lr=*10, init")
def least_squares_that_bounces_between_two_walls(watch: Watching, steps: int) -> None:
    """Just below the largest rate that is stable. Without the curvature nobody has to see that."""
    x, y = line(256)
    x = x * torch.tensor([3.0, 1, 1, 1, 1, 1, 1, 1])
    model = nn.Linear(8, 1)
    largest = 2 * torch.linalg.eigvalsh(x.T @ x / len(x))[-1].item()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.998 / largest)
    with watch(model, optimizer) as run:
        for _ in range(steps):
            loss = F.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)


@loop_with("healthy", "healthy", also="converged", harmful=HANDS_OFF)
def conv_net_with_validation_in_between(watch: Watching, steps: int) -> None:
    model = NormedConvNet()
    with_validation(watch, steps, model, model.train)


@loop_with("healthy", "healthy", also="converged, frozen layers", harmful=HANDS_OFF)
def fine_tuning_with_frozen_batch_norm_in_eval_mode(watch: Watching, steps: int) -> None:
    model = NormedConvNet()
    model.body[1].requires_grad_(False)

    def train() -> None:
        model.train()
        model.body[1].eval()

    with_validation(watch, steps, model, train)


@loop_with("healthy", "healthy", also="converged", harmful=HANDS_OFF)
def adam_with_gradients_clipped_to_a_thousandth(watch: Watching, steps: int) -> None:
    """Adam divides by the size of the gradient, so clipping to any size changes little."""
    model = mlp(32, 64, 64, 10)
    clipped(watch, steps, model, torch.optim.Adam(model.parameters(), lr=1e-3), blobs(), 1e-3)


@loop_with("healthy", "healthy", also="converged", harmful=HANDS_OFF)
def momentum_of_0_99_at_a_small_rate(watch: Watching, steps: int) -> None:
    model = mlp(32, 64, 10)
    supervised(watch, steps, model, torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.99), blobs())


@loop_with("healthy", "healthy", also="converged", harmful=HANDS_OFF)
def regression_of_ages(watch: Watching, steps: int) -> None:
    """Targets around 40: larger than usual, but the net comes near them."""
    x, y = line()
    model = mlp(8, 64, 64, 1)
    supervised(watch, steps, model, torch.optim.Adam(model.parameters(), lr=1e-2), (x, 40 + 15 * y), F.mse_loss)
