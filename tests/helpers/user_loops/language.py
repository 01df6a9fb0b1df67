"""User loops on sequences: recurrent nets, small transformers, tied and sparse weights, adapters."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from user_loops.table import STEPS, Watching, user_loop

SYMBOLS, LENGTH = 11, 6


def tokens(count: int = 4) -> tuple[Tensor, Tensor]:
    text = torch.randint(0, SYMBOLS, (count, LENGTH + 1))
    return text[:, :-1], text[:, 1:]


@user_loop
def lstm_language_model(watch: Watching) -> nn.Module:
    class Lstm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.lstm = nn.Embedding(SYMBOLS, 12), nn.LSTM(12, 12, num_layers=2, dropout=0.1)
            self.drop, self.decoder = nn.Dropout(0.1), nn.Linear(12, SYMBOLS)

        def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            out, state = self.lstm(self.drop(self.embedding(x)).transpose(0, 1), state)
            return self.decoder(out.transpose(0, 1)), state

    model = Lstm()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    state = None
    with watch(model, optimizer) as run:
        for _ in range(STEPS):
            x, y = tokens()
            if state is not None:
                state = (state[0].detach(), state[1].detach())
            logits, state = model(x, state)
            loss = F.cross_entropy(logits.reshape(-1, SYMBOLS), y.reshape(-1))
            model.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            optimizer.step()
            run.step(loss)
    return model


class CausalBlock(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in self.c_attn(self.ln_1(x)).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.c_proj(y)
        return x + self.mlp(self.ln_2(x))


class Gpt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(SYMBOLS, 16), nn.Embedding(LENGTH, 16)
        self.h = nn.ModuleList([CausalBlock() for _ in range(2)])
        self.ln_f, self.lm_head = nn.LayerNorm(16), nn.Linear(16, SYMBOLS, bias=False)
        self.wte.weight = self.lm_head.weight  # weight tying

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        h = self.wte(x) + self.wpe(torch.arange(x.shape[1]))
        for block in self.h:
            h = block(h)
        logits = self.lm_head(self.ln_f(h))
        return logits, F.cross_entropy(logits.view(-1, SYMBOLS), y.reshape(-1), ignore_index=-1)


@user_loop
def gpt_with_tied_weights_and_groups(watch: Watching) -> nn.Module:
    model = Gpt()
    decay = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0, "lr": 3e-4}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    with watch(model, optimizer) as run:
        for step in range(STEPS):
            for group in optimizer.param_groups:  # the loop's own schedule
                group["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * step / STEPS))
            total = 0.0
            for _ in range(2):
                _, loss = model(*tokens())
                (loss / 2).backward()
                total += loss.item() / 2
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            run.step(total)
    return model


@user_loop
def sparse_embeddings(watch: Watching) -> nn.Module:
    class Skipgram(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.centre = nn.Embedding(50, 8, sparse=True)
            self.context = nn.Embedding(50, 8, sparse=True)

        def forward(self, u: Tensor, v: Tensor) -> Tensor:
            return -F.logsigmoid((self.centre(u) * self.context(v)).sum(1)).mean()

    model = Skipgram()
    optimizer = torch.optim.SparseAdam(model.parameters(), lr=0.01)
    with watch(model, optimizer) as run:
        for _ in range(STEPS):
            loss = model(torch.randint(0, 50, (8,)), torch.randint(0, 50, (8,)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
    return model


class LoraLinear(nn.Module):
    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(0.1 * torch.randn(rank, base.in_features))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.a.T @ self.b.T


@user_loop
def lora_adapters(watch: Watching) -> nn.Module:
    model = Gpt().requires_grad_(False)
    for block in model.h:
        block.c_attn = LoraLinear(block.c_attn)  # type: ignore[assignment,arg-type]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    with watch(model, optimizer) as run:
        for _ in range(STEPS):
            _, loss = model(*tokens())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
    return model


@user_loop
def gru_in_bfloat16(watch: Watching) -> nn.Module:
    class Gru(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.gru, self.out = nn.Embedding(SYMBOLS, 8), nn.GRU(8, 8), nn.Linear(8, SYMBOLS)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.gru(self.embedding(x))[0])

    model = Gru().to(torch.bfloat16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with watch(model, optimizer) as run:
        for _ in range(STEPS):
            x, y = tokens()
            loss = F.cross_entropy(model(x).float().reshape(-1, SYMBOLS), y.reshape(-1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
    return model


@user_loop
def seq2seq_with_multihead_attention(watch: Watching) -> nn.Module:
    class Seq2Seq(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(SYMBOLS, 12)
            self.encoder, self.cell = nn.GRU(12, 12, batch_first=True, bidirectional=True), nn.GRUCell(12, 12)
            self.attention = nn.MultiheadAttention(12, 2, kdim=24, vdim=24, batch_first=True)
            self.out = nn.Bilinear(12, 12, SYMBOLS)

        def forward(self, x: Tensor) -> Tensor:
            memory, last = self.encoder(self.embedding(x))
            h, outs = last[0], []
            for t in range(x.shape[1]):
                h = self.cell(self.embedding(x[:, t]), h)
                context, _ = self.attention(h[:, None], memory, memory)
                outs.append(self.out(h, context[:, 0]))
            return torch.stack(outs, dim=1)

    model = Seq2Seq()
    optimizer = torch.optim.NAdam(model.parameters(), lr=1e-3)
    with watch(model, optimizer) as run:
        for _ in range(STEPS):
            x, y = tokens()
            loss = F.cross_entropy(model(x).transpose(1, 2), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
    return model
