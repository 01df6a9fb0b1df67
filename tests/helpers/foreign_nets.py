"""Nets as other people write them, each with a loss: in the style of torchvision, Hugging Face, minGPT and papers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SqueezeExcitation(nn.Module):
    """As in MobileNetV3: the gate multiplies the block's activations."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)
        self.activation, self.scale_activation = nn.ReLU(), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))
        return scale * x


class InvertedResidual(nn.Module):
    """MobileNetV3's block: it adds its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.BatchNorm2d(2 * width), nn.Hardswish(inplace=True)),
            SqueezeExcitation(2 * width),
            nn.Sequential(nn.Conv2d(2 * width, width, 1), nn.BatchNorm2d(width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.block(x)
        result += x
        return result


class MobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Hardswish(inplace=True)),
            InvertedResidual(8),
            InvertedResidual(8),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(8, 16), nn.Hardswish(inplace=True), nn.Dropout(0.2), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
        return out


class BasicBlock(nn.Module):
    """torchvision's ResNet block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)  # type: ignore[no-any-return]


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(BasicBlock(8), BasicBlock(8))
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(self.relu(self.bn1(self.conv1(x))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class GELUActivation(nn.Module):
    """As in Hugging Face's `activations.py`: a class of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.act = F.gelu

    def forward(self, input: Tensor) -> Tensor:
        return self.act(input)


class NewGELU(nn.Module):
    """As in minGPT."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class Swish(nn.Module):
    """With a sigmoid of torch's inside."""

    def __init__(self) -> None:
        super().__init__()
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.sigmoid(x)  # type: ignore[no-any-return]


class Snake(nn.Module):
    """Not a function that the program knows."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.sin(3.7 * x) ** 2 / 3.7


class BertSelfAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.softmax, self.dropout = nn.Softmax(dim=-1), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        scores = self.query(x) @ self.key(x).transpose(-1, -2) / math.sqrt(x.shape[-1])
        return (self.dropout(self.softmax(scores)) @ self.value(x),)


class BertLayer(nn.Module):
    """Post-norm; returns a tuple unless `plain`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.dense1 = BertSelfAttention(width), nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.intermediate, self.intermediate_act_fn = nn.Linear(width, 2 * width), GELUActivation()
        self.output, self.dropout = nn.Linear(2 * width, width), nn.Dropout(0.1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        h = self.norm1(self.dropout(self.dense1(self.attention(x)[0])) + x)
        inner = self.intermediate_act_fn(self.intermediate(h))
        return self.norm2(self.dropout(self.output(inner)) + h)  # type: ignore[no-any-return]


class Bert(nn.Module):
    """A classifier with a pooler."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(11, 8)
        self.layer = nn.ModuleList([BertLayer(8), BertLayer(8)])
        self.pooler, self.pooler_activation = nn.Linear(8, 8), nn.Tanh()
        self.classifier = nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        h = self.embeddings(input_ids)
        for layer in self.layer:
            h = layer(h, mask=None)
        logits = self.classifier(self.pooler_activation(self.pooler(h[:, 0])))
        loss = F.cross_entropy(logits, labels) if labels is not None else logits.sum()
        return {"loss": loss, "logits": logits}


class CausalSelfAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.c_attn(x).split(x.shape[-1], dim=2)
        y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], is_causal=True)
        return self.c_proj(y[:, 0])  # type: ignore[no-any-return]


class GPTBlock(nn.Module):
    """minGPT's block: pre-norm, its MLP a function of a ModuleDict."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(width), CausalSelfAttention(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width), "act": NewGELU()}
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        m = self.mlp
        return x + m["c_proj"](m["act"](m["c_fc"](self.ln_2(x))))  # type: ignore[no-any-return]


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {"wte": nn.Embedding(11, 8), "wpe": nn.Embedding(6, 8), "drop": nn.Dropout(0.1)}
        )
        self.transformer["h"] = nn.ModuleList([GPTBlock(8) for _ in range(3)])
        self.transformer["ln_f"] = nn.LayerNorm(8)
        self.lm_head = nn.Linear(8, 11, bias=False)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        t = self.transformer
        x = t["drop"](t["wte"](idx) + t["wpe"](torch.arange(idx.shape[1])))
        for block in t["h"]:  # type: ignore[union-attr]
            x = block(x)
        logits = self.lm_head(t["ln_f"](x))
        loss = F.cross_entropy(logits.view(-1, 11), targets.view(-1)) if targets is not None else None
        return logits, loss


class Generator(nn.Module):
    """DCGAN's generator ends in a Tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(4, 8, 4, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(True),
            nn.ConvTranspose2d(8, 1, 4, 2, 1, bias=False),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.main(z)  # type: ignore[no-any-return]


class Discriminator(nn.Module):
    """DCGAN's discriminator ends in a Sigmoid, followed by `view` and `squeeze`."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(1, 8, 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(8, 8, 4, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(8, 1, 2, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x).view(-1, 1).squeeze(1)  # type: ignore[no-any-return]


class UNet(nn.Module):
    """With concatenations."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.down2 = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.pool, self.up = nn.MaxPool2d(2), nn.ConvTranspose2d(8, 4, 2, 2)
        self.conv = nn.Sequential(nn.Conv2d(8, 4, 3, padding=1), nn.ReLU(inplace=True))
        self.out = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(self.pool(a))
        return self.out(self.conv(torch.cat([a, self.up(b)], dim=1)))  # type: ignore[no-any-return]


class Pinn(nn.Module):
    """A tanh MLP; its loss contains derivatives by the input."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [1, 16, 16, 16]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.act, self.head = nn.Tanh(), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.act(layer(x))
        return self.head(x)  # type: ignore[no-any-return]


class Vae(nn.Module):
    """Its decoder ends in a Sigmoid; its standard deviation is a Softplus."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 12), nn.ReLU())
        self.mu, self.std, self.softplus = nn.Linear(12, 3), nn.Linear(12, 3), nn.Softplus()
        self.decoder = nn.Sequential(nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 16), nn.Sigmoid())

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder(x)
        return self.mu(h), self.softplus(self.std(h)) + 1e-3

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, std = self.encode(x)
        return self.decoder(mu + std * torch.randn_like(std)), mu, std


class HandMadeLstm(nn.Module):
    """An LSTM cell by hand: all its activations are gates."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.head = nn.Linear(3 + 8, 4 * 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
        self.sigmoid, self.tanh = nn.Sigmoid(), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], 8)
        for t in range(x.shape[1]):
            i, f, g, o = self.gates(torch.cat([x[:, t], h], 1)).chunk(4, 1)
            c = self.sigmoid(f) * c + self.sigmoid(i) * self.tanh(g)
            h = self.sigmoid(o) * self.tanh(c)
        return self.head(h)  # type: ignore[no-any-return]


class GatedLinearUnits(nn.Module):
    """GLU, SwiGLU and a highway layer."""

    def __init__(self) -> None:
        super().__init__()
        self.glu, self.glu_gate = nn.Linear(8, 32), nn.Sigmoid()
        self.w1, self.w2, self.silu = nn.Linear(16, 16), nn.Linear(16, 16), nn.SiLU()
        self.h, self.t, self.carry = nn.Linear(16, 16), nn.Linear(16, 16), nn.Sigmoid()
        self.act, self.head = nn.ELU(), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.glu(x).chunk(2, dim=-1)
        y = a * self.glu_gate(b)
        y = self.silu(self.w1(y)) * self.w2(y)
        t = self.carry(self.t(y))
        y = t * self.h(y) + (1 - t) * y
        return self.head(self.act(y))  # type: ignore[no-any-return]


class Functional(nn.Module):
    """Calls functions between its modules."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 1)
        self.act, self.final = nn.LeakyReLU(), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        h = F.dropout(self.act(self.a(x)), 0.1, self.training).unsqueeze(0)
        h = F.relu(self.b(h)).squeeze(0)
        return 0.5 * self.final(self.c(h)).clamp(1e-6, 1 - 1e-6).reshape(-1)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Case:
    """A net, its batches, its loss, and what should be found in it."""

    make: Callable[[], nn.Module]
    batch: Callable[[], Any]
    loss: Callable[[nn.Module, Any], Tensor]
    hidden: tuple[str, ...]
    left: tuple[str, ...]
    own: tuple[str, ...] = ()
    off: tuple[str, ...] = ()


def _images(size: int = 8) -> tuple[Tensor, Tensor]:
    return torch.randn(4, 1, size, size), torch.randint(0, 3, (4,))


def _classified(net: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(net(batch[0]), batch[1])


def _tokens() -> tuple[Tensor, Tensor]:
    return torch.randint(0, 11, (4, 6)), torch.randint(0, 3, (4,))


def _pinn(net: nn.Module, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    u = net(x)
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    return (slope - torch.cos(x)).square().mean() + net(torch.zeros(1, 1)).square().sum()


def _vae(net: nn.Module, x: Tensor) -> Tensor:
    out, mu, std = net(x)
    return F.binary_cross_entropy(out, x) + 0.01 * (mu.square() + std.square() - 2 * std.log() - 1).mean()


CASES: dict[str, Case] = {
    "mobilenet": Case(
        MobileNet,
        _images,
        _classified,
        hidden=(
            "features.0.2",
            *(f"features.{n}.block.{m}" for n in (1, 2) for m in ("0.2", "1.activation")),
            "classifier.1",
        ),
        left=tuple(f"features.{n}.block.1.scale_activation" for n in (1, 2)),
        own=("features.1", "features.2"),
    ),
    "resnet": Case(
        ResNet,
        _images,
        _classified,
        hidden=("relu", "layer1.0.relu", "layer1.1.relu"),
        left=(),
        own=("layer1.0", "layer1.1"),
    ),
    "bert": Case(
        Bert,
        _tokens,
        lambda net, batch: net(batch[0], labels=batch[1])["loss"],  # type: ignore[no-any-return]
        hidden=("layer.0.intermediate_act_fn", "layer.1.intermediate_act_fn", "pooler_activation"),
        left=(),
        own=("layer.0", "layer.1"),
    ),
    "gpt": Case(
        GPT,
        lambda: (torch.randint(0, 11, (4, 6)), torch.randint(0, 11, (4, 6))),
        lambda net, batch: net(*batch)[1],  # type: ignore[no-any-return]
        hidden=tuple(f"transformer.h.{n}.mlp.act" for n in range(3)),
        left=(),
        own=tuple(f"transformer.h.{n}" for n in range(3)),
    ),
    "generator": Case(
        Generator,
        lambda: torch.randn(4, 4, 1, 1),
        lambda net, z: (net(z) - 0.1).square().mean(),  # type: ignore[no-any-return]
        hidden=("main.2",),
        left=("main.4",),
    ),
    "discriminator": Case(
        Discriminator,
        lambda: torch.randn(4, 1, 8, 8),
        lambda net, x: F.binary_cross_entropy(net(x), torch.ones(4)),
        hidden=("main.1", "main.4"),
        left=("main.6",),
    ),
    "unet": Case(
        UNet,
        lambda: torch.randn(2, 1, 8, 8),
        lambda net, x: F.binary_cross_entropy_with_logits(net(x), (x > 0).float()),
        hidden=("down1.2", "down2.2", "conv.1"),
        left=(),
    ),
    "pinn": Case(Pinn, lambda: torch.rand(16, 1), _pinn, hidden=("act",), left=(), off=("layers.1", "layers.2")),
    "vae": Case(
        Vae,
        lambda: torch.rand(8, 16),
        _vae,
        hidden=("encoder.1", "decoder.1"),
        left=("softplus", "decoder.3"),
    ),
    "lstm": Case(
        HandMadeLstm,
        lambda: torch.randn(4, 5, 3),
        lambda net, x: (net(x) - x.sum((1, 2))[:, None]).square().mean(),  # type: ignore[no-any-return]
        hidden=("head.1",),
        left=("sigmoid", "tanh"),
        off=("head.0",),
    ),
    "glu": Case(
        GatedLinearUnits,
        lambda: torch.randn(4, 8),
        lambda net, x: (net(x) - x.sum(1, keepdim=True)).square().mean(),  # type: ignore[no-any-return]
        hidden=("act",),
        left=("glu_gate", "silu", "carry"),
    ),
    "functional": Case(
        Functional,
        lambda: torch.randn(4, 8),
        lambda net, x: F.binary_cross_entropy(net(x), (x[:, 0] > 0).float()),
        hidden=("act",),
        left=("final",),
    ),
}
