"""User loops that generate: GANs with two optimizers, autoencoders, diffusion, gradient penalties."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from user_loops.table import STEPS, Watching, user_loop


def generator() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(8, 8, 4), nn.BatchNorm2d(8), nn.ReLU(True), nn.ConvTranspose2d(8, 1, 2, 2), nn.Tanh()
    )


def discriminator() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True), nn.Conv2d(8, 1, 4), nn.Sigmoid(), nn.Flatten(0)
    )


@user_loop
def dcgan_with_two_optimizers(watch: Watching) -> nn.Module:
    net_g, net_d = generator(), discriminator()
    optimizer_g = torch.optim.Adam(net_g.parameters(), lr=2e-4, betas=(0.5, 0.999))
    optimizer_d = torch.optim.Adam(net_d.parameters(), lr=2e-4, betas=(0.5, 0.999))
    data = DataLoader(TensorDataset(torch.randn(8 * STEPS, 1, 8, 8)), batch_size=8, shuffle=True)
    criterion = nn.BCELoss()
    with watch({"g": net_g, "d": net_d}, {"g": optimizer_g, "d": optimizer_d}) as run:
        for (real,) in data:
            net_d.zero_grad()
            loss_real = criterion(net_d(real), torch.ones(len(real)))
            loss_real.backward()
            fake = net_g(torch.randn(len(real), 8, 1, 1))
            loss_fake = criterion(net_d(fake.detach()), torch.zeros(len(real)))
            loss_fake.backward()
            optimizer_d.step()
            net_g.zero_grad()
            loss_g = criterion(net_d(fake), torch.ones(len(real)))
            loss_g.backward()
            optimizer_g.step()
            run.log("loss_d", loss_real + loss_fake)
            run.step(loss_g)
    return nn.ModuleList([net_g, net_d])


@user_loop
def wgan_with_gradient_penalty(watch: Watching) -> nn.Module:
    net_g = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    critic = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
    optimizer_g = torch.optim.RMSprop(net_g.parameters(), lr=1e-3)
    optimizer_c = torch.optim.RMSprop(critic.parameters(), lr=1e-3)
    with watch([critic, net_g], [optimizer_c, optimizer_g]) as run:
        for step in range(STEPS):
            for _ in range(2):  # several critic updates to a step
                real, fake = torch.randn(16, 2), net_g(torch.randn(16, 4)).detach()
                mix = torch.rand(16, 1)
                between = (mix * real + (1 - mix) * fake).requires_grad_()
                (grad,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
                loss = critic(fake).mean() - critic(real).mean() + 10 * (grad.norm(dim=1) - 1).pow(2).mean()
                optimizer_c.zero_grad()
                loss.backward()
                optimizer_c.step()
            if step % 2:  # the generator is updated at every second step only
                optimizer_g.zero_grad()
                (-critic(net_g(torch.randn(16, 4))).mean()).backward()
                optimizer_g.step()
            run.step(loss)
    return nn.ModuleList([critic, net_g])


@user_loop
def variational_autoencoder(watch: Watching) -> nn.Module:
    class Vae(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc21, self.fc22 = nn.Linear(16, 12), nn.Linear(12, 3), nn.Linear(12, 3)
            self.fc3, self.fc4 = nn.Linear(3, 12), nn.Linear(12, 16)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            h = F.relu(self.fc1(x))
            mu, logvar = self.fc21(h), self.fc22(h)
            z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
            return torch.sigmoid(self.fc4(F.relu(self.fc3(z)))), mu, logvar

    model = Vae()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with watch(model, optimizer) as run:
        for _ in range(STEPS):
            x = torch.rand(8, 16)
            optimizer.zero_grad()
            reconstruction, mu, logvar = model(x)
            loss = F.binary_cross_entropy(reconstruction, x, reduction="sum")
            loss = loss - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
            loss.backward()
            optimizer.step()
            run.step(loss)
    return model


@user_loop
def diffusion_with_ema(watch: Watching) -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with watch(model, optimizer) as run:
        ema = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
        for _ in range(STEPS):
            x, t, noise = torch.randn(16, 2), torch.rand(16, 1), torch.randn(16, 2)
            noisy = (1 - t).sqrt() * x + t.sqrt() * noise
            loss = F.mse_loss(model(torch.cat([noisy, t], dim=1)), noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ema.update_parameters(model)
            run.step(loss)
    return nn.ModuleList([model, ema])


@user_loop
def vq_autoencoder_with_two_optimizers_on_one_net(watch: Watching) -> nn.Module:
    class Vq(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Linear(8, 4), nn.Linear(4, 8)
            self.codes = nn.Embedding(16, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            z = self.encoder(x)
            code = self.codes(torch.cdist(z, self.codes.weight).argmin(1))
            commitment = F.mse_loss(z, code.detach()) + F.mse_loss(code, z.detach())
            return self.decoder(z + (code - z).detach()), commitment

    model = Vq()
    weights = torch.optim.Adam([*model.encoder.parameters(), *model.decoder.parameters()], lr=1e-3)
    codes = torch.optim.SGD(model.codes.parameters(), lr=0.1)
    with watch(model, {"weights": weights, "codes": codes}) as run:
        for _ in range(STEPS):
            x = torch.randn(16, 8)
            out, commitment = model(x)
            loss = F.mse_loss(out, x) + commitment
            weights.zero_grad()
            codes.zero_grad()
            loss.backward()
            weights.step()
            codes.step()
            run.step(loss)
    return model
