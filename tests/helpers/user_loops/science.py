"""User loops of physics and reinforcement learning: double backward, complex weights, policies, target nets."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal
from torch.nn import functional as F

from user_loops.table import STEPS, Watching, user_loop


@user_loop
def pinn_with_double_backward(watch: Watching) -> nn.Module:
    model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with watch(model, optimizer) as run:
        for _ in range(STEPS):
            x = torch.rand(16, 1, dtype=torch.float64, requires_grad=True)
            u = model(x)
            (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
            (ddu,) = torch.autograd.grad(du.sum(), x, create_graph=True)
            edges = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
            loss = (ddu + math.pi**2 * torch.sin(math.pi * x)).pow(2).mean() + model(edges).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
    return model


@user_loop
def fourier_layer_with_complex_weights(watch: Watching) -> nn.Module:
    class SpectralConv(nn.Module):
        def __init__(self, width: int, modes: int) -> None:
            super().__init__()
            self.modes = modes
            self.weights = nn.Parameter(torch.randn(width, width, modes, dtype=torch.cfloat) / width)

        def forward(self, x: Tensor) -> Tensor:
            spectrum = torch.fft.rfft(x)
            out = torch.zeros_like(spectrum)
            out[..., : self.modes] = torch.einsum("bim,iom->bom", spectrum[..., : self.modes], self.weights)
            return torch.fft.irfft(out, n=x.shape[-1])

    class Fno(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.spectral, self.skip = nn.Linear(1, 8), SpectralConv(8, 4), nn.Conv1d(8, 8, 1)
            self.project = nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.lift(x).transpose(1, 2)
            h = F.gelu(self.spectral(h) + self.skip(h))
            return self.project(h.transpose(1, 2))

    model = Fno()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with watch(model, optimizer) as run:
        for _ in range(STEPS):
            x = torch.randn(4, 16, 1)
            loss = F.mse_loss(model(x), x.cumsum(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
    return model


@user_loop
def reinforce(watch: Watching) -> nn.Module:
    policy = nn.Sequential(nn.Linear(4, 16), nn.Dropout(p=0.2), nn.ReLU(), nn.Linear(16, 2), nn.Softmax(dim=-1))
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    with watch(policy, optimizer) as run:
        for _ in range(STEPS):
            state, log_probs, rewards = torch.randn(4), [], []
            for _ in range(5):  # the policy runs once per action, not once per update
                action = Categorical(policy(state))
                choice = action.sample()
                log_probs.append(action.log_prob(choice))
                rewards.append(float(choice) - state[0].item())
                state = torch.randn(4)
            returns = torch.tensor(rewards).flip(0).cumsum(0).flip(0)
            returns = (returns - returns.mean()) / (returns.std() + 1e-6)
            loss = -(torch.stack(log_probs) * returns).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
    return policy


@user_loop
def ppo_with_several_updates_to_a_rollout(watch: Watching) -> nn.Module:
    class Agent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
            self.mean, self.value = nn.Linear(16, 1), nn.Linear(16, 1)
            self.log_std = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> tuple[Normal, Tensor]:
            h = self.body(x)
            return Normal(self.mean(h), self.log_std.exp()), self.value(h)

    agent = Agent()
    optimizer = torch.optim.Adam(agent.parameters(), lr=3e-4, eps=1e-5)
    with watch(agent, optimizer) as run:
        for _ in range(STEPS // 2):
            with torch.no_grad():
                states = torch.randn(16, 3)
                policy, values = agent(states)
                actions = policy.sample()
                old = policy.log_prob(actions)
                advantage = -(actions - states[:, :1]).pow(2) - values
            for batch in torch.randperm(16).split(8):
                policy, values = agent(states[batch])
                ratio = (policy.log_prob(actions[batch]) - old[batch]).exp()
                gain = torch.min(ratio * advantage[batch], ratio.clamp(0.8, 1.2) * advantage[batch])
                loss = -gain.mean() + 0.5 * values.pow(2).mean() - 0.01 * policy.entropy().mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
                run.step(loss)
    return agent


@user_loop
def dqn_with_a_target_net(watch: Watching) -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    target = copy.deepcopy(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, amsgrad=True)
    with watch(net, optimizer) as run:
        for step in range(STEPS):
            state, action, following = torch.randn(8, 4), torch.randint(0, 2, (8, 1)), torch.randn(8, 4)
            with torch.no_grad():
                wanted = 1 + 0.99 * target(following).max(1).values
                net(following)  # as in double Q-learning
            loss = F.smooth_l1_loss(net(state).gather(1, action).squeeze(1), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
            if step % 2:
                target.load_state_dict(net.state_dict())
    return nn.ModuleList([net, target])
