"""A plain PyTorch training loop that is watched. Run it with `tui-descent exec -- python examples/user_loop.py`."""

import torch
from torch import nn

from tui_descent import watch

torch.manual_seed(0)
x = torch.randn(2048, 20)
y = (x[:, :5].prod(dim=1) > 0).long()
model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

with watch(model, optimizer, name="my run") as run:
    for _ in range(20_000):
        batch = torch.randint(0, len(x), (64,))
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.step(loss)
