"""Loops in which a loss or a gradient becomes NaN or infinite."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from faulty_loops.data import ConvNet, Gpt, Lstm, batches, blobs, digits, line, mlp, next_token_loss, tokens, wave
from faulty_loops.table import Watching, loop_with
from faulty_loops.wiring import supervised

BEFORE = "healthy, converged"
SLOWER = "lr"


@loop_with("numerics", "non-finite", also=BEFORE, since=None, steps=200, harmful=SLOWER)
def distance_of_two_equal_points(watch: Watching, steps: int) -> None:
    x, _ = line()
    t = x[:, :2].clone()
    model = mlp(8, 32, 2, activation=nn.Tanh)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with watch(model, optimizer) as run:
        for k, b in enumerate(batches(len(x), steps)):
            p, q = model(x[b]), t[b].clone()
            if k >= 140:
                q[0] = p[0].detach()
            loss = (p - q).pow(2).sum(1).sqrt().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)


@loop_with("numerics", "non-finite", also=BEFORE, since=None, harmful=SLOWER)
def logarithm_of_a_probability_of_zero(watch: Watching, steps: int) -> None:
    x, y = blobs()
    x = torch.cat([x, torch.full((1, 32), 1e4)])  # a sample of which the net is far too sure
    y = torch.cat([y, torch.tensor([0])])
    model = mlp(32, 32, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with watch(model, optimizer) as run:
        for k, b in enumerate(batches(len(x) - 1, steps)):
            if k == 60:
                b[0] = len(x) - 1
            p = F.softmax(model(x[b]), dim=1)
            loss = -(F.one_hot(y[b], 10) * p.log()).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)


@loop_with("numerics", "non-finite", also=BEFORE, since=None, harmful=SLOWER)
def cosine_of_a_vector_of_zeros(watch: Watching, steps: int) -> None:
    x, _ = blobs(d=16)
    x[5] = 0.0
    model = nn.Sequential(nn.Linear(16, 32, bias=False), nn.ReLU(), nn.Linear(32, 8, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    target = F.normalize(torch.randn(len(x), 8), dim=1)
    with watch(model, optimizer) as run:
        for k, b in enumerate(batches(len(x), steps)):
            b = torch.where(b == 5, 6, b)
            if k in (70, 71, 90):
                b[3] = 5
            z = model(x[b])
            loss = (1 - (z / z.norm(dim=1, keepdim=True) * target[b]).sum(1)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)


@loop_with("numerics", "non-finite", also=BEFORE, since=None, harmful=SLOWER)
def attention_mask_that_hides_everything(watch: Watching, steps: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tok = nn.Embedding(17, 16)
            self.qkv = nn.Linear(16, 48)
            self.head = nn.Linear(16, 16)

        def forward(self, ids: Tensor) -> Tensor:
            h = self.tok(ids)
            q, k, v = self.qkv(h).chunk(3, dim=-1)
            scores = (q @ k.transpose(1, 2) / 4).masked_fill((ids == 16).unsqueeze(1), -math.inf)
            return self.head((h + scores.softmax(dim=-1) @ v)[:, 0])

    ids = tokens()
    ids[100] = 16  # an empty sequence: only padding
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with watch(model, optimizer) as run:
        for k, b in enumerate(batches(len(ids), steps)):
            b = torch.where(b == 100, 101, b)
            if k == 50:
                b[0] = 100
            loss = F.cross_entropy(model(ids[b]), ids[b, 1].clamp(max=15))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)


@loop_with("numerics", "non-finite", also=BEFORE, since=None, harmful=SLOWER)
def missing_value_in_a_table(watch: Watching, steps: int) -> None:
    x, y = line()
    missing = 300
    x[missing, 2] = math.nan
    model = mlp(8, 32, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with watch(model, optimizer) as run:
        for k, some in enumerate(batches(len(x), steps)):
            some = torch.where(some == missing, 0, some)
            if k in (40, 80):
                some[1] = missing
            loss = F.mse_loss(model(x[some]), y[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)


@loop_with("numerics", "non-finite", also=BEFORE, since=None, harmful=SLOWER)
def infinite_target(watch: Watching, steps: int) -> None:
    x, y = wave()
    model = Lstm(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer) as run:
        for k, b in enumerate(batches(len(x), steps)):
            target = y[b].clone()
            if k == 45:
                target[0] = 1 / torch.zeros(1)
            loss = F.smooth_l1_loss(model(x[b]), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)


@loop_with("numerics", "non-finite", also=BEFORE, since=None, harmful=SLOWER)
def feature_divided_by_its_deviation(watch: Watching, steps: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(64, 32), nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            h = self.fc1((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True))
            return self.fc2(F.gelu(h))

    x, y = digits()
    x = x.flatten(1).clone()
    x[9] = 1.0  # an empty page
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with watch(model, optimizer) as run:
        for k, b in enumerate(batches(len(x), steps)):
            b = torch.where(b == 9, 8, b)
            if k == 66:
                b[2] = 9
            loss = F.cross_entropy(model(x[b]), y[b])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)


@loop_with("numerics", "non-finite", also=BEFORE, since=None, harmful=SLOWER)
def exponential_of_an_outlier(watch: Watching, steps: int) -> None:
    """Counts with a Poisson loss; one row has a feature that is a thousand times too large."""
    x, w = line()
    counts = torch.poisson(torch.exp(0.5 * w))
    model = nn.Sequential(nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with watch(model, optimizer) as run:
        for k, b in enumerate(batches(len(x), steps)):
            some = x[b].clone()
            if k == 75:
                some[0] = 1e4 * model[0].weight[0].detach().sign()
            rate = torch.exp(model(some))
            loss = (rate - counts[b] * torch.log(rate + 1e-8)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)


@loop_with("numerics", "non-finite", since=None, layers="tok", harmful=SLOWER)
def pretrained_vectors_with_a_nan(watch: Watching, steps: int) -> None:
    model, ids = Gpt(), tokens()
    with torch.no_grad():
        model.tok.weight[3, 4] = math.nan
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with watch(model, optimizer) as run:
        for b in batches(len(ids), steps):
            loss = next_token_loss(model, ids[b])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)


@loop_with("numerics", "non-finite", also=BEFORE, since=None, harmful=SLOWER)
def angle_between_equal_directions(watch: Watching, steps: int) -> None:
    x, _ = blobs(d=8)
    model = mlp(8, 24, 3, activation=nn.Tanh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    goal = F.normalize(x[:, :3], dim=1)
    with watch(model, optimizer) as run:
        for k, b in enumerate(batches(len(x), steps)):
            z, target = F.normalize(model(x[b]), dim=1), goal[b].clone()
            cosine = (z * target).sum(1)
            if k >= 55:  # a pair of equal vectors
                cosine = torch.cat([cosine[1:], cosine[:1] / cosine[:1].detach()])
            loss = torch.acos(cosine).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)


@loop_with("numerics", "non-finite", since=None, harmful=SLOWER)
def where_does_not_stop_the_other_branch(watch: Watching, steps: int) -> None:
    """Distances between all pairs of a batch: a sample's distance to itself is masked, its gradient is not."""
    x, y = blobs(d=16, classes=4)
    model = mlp(16, 24, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with watch(model, optimizer) as run:
        for b in batches(len(x), steps, 16):
            z = model(x[b])
            squares = (z[:, None] - z[None]).pow(2).sum(dim=2)
            distances = torch.where(squares > 0, squares.sqrt(), torch.zeros(()))
            same = y[b][:, None] == y[b][None]
            loss = torch.where(same, distances, F.relu(1 - distances)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)


@loop_with("numerics", "non-finite", also=BEFORE, since=None, harmful=SLOWER)
def mean_of_no_samples(watch: Watching, steps: int) -> None:
    x, y = digits()
    model = ConvNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with watch(model, optimizer) as run:
        for k, b in enumerate(batches(len(x), steps)):
            each = F.cross_entropy(model(x[b]), y[b], reduction="none")
            valid = y[b] < (10 if k % 50 != 49 else 0)  # some batches have no labelled sample
            loss = each[valid].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)


@loop_with("numerics", "diverged", also="diverging, exploding", since=None, harmful="init")
def regression_with_a_rate_far_too_large(watch: Watching, steps: int) -> None:
    x, y = line()
    model = mlp(8, 32, 32, 1)
    supervised(watch, steps, model, torch.optim.SGD(model.parameters(), lr=3.0), (x, y), F.mse_loss)


@loop_with("numerics", "diverged", also="diverging, exploding, input scale", since=None)
def least_squares_on_raw_features(watch: Watching, steps: int) -> None:
    x, y = line()
    model = nn.Linear(8, 1)
    supervised(watch, steps, model, torch.optim.SGD(model.parameters(), lr=0.01), (50 * x, y), F.mse_loss)


@loop_with("numerics", "diverged", also="diverging, exploding", since=None)
def conv_net_with_momentum_and_a_rate_of_thirty(watch: Watching, steps: int) -> None:
    model = ConvNet()
    x, y = digits()
    supervised(watch, steps, model, torch.optim.SGD(model.parameters(), lr=30.0, momentum=0.99), (x, y))


@loop_with("numerics", "diverged", also="diverging, exploding", since=None)
def deep_linear_autoencoder_that_overshoots(watch: Watching, steps: int) -> None:
    x = digits()[0].flatten(1)
    model = nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 16), nn.Linear(16, 48), nn.Linear(48, 64))
    supervised(watch, steps, model, torch.optim.SGD(model.parameters(), lr=4.0), (x, x), F.mse_loss)
