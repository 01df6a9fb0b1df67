"""Four training loops of the kind users write, for `fingerprint.py`: `python user_loops.py NAME LOSSES [--wait]`.

The loss of every pass goes to the file LOSSES as hexadecimal doubles. With `--wait` the loop stops twice until a line
comes on stdin: before it begins, and in step 5, so that another process can steer it at a known step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tui_descent import watch

STEPS = 200
WAITS_IN_STEP = 5
BATCH = 32


class Recorder:
    """Writes losses, and waits for the other process where it should."""

    def __init__(self, losses: TextIO, *, waits: bool) -> None:
        self._losses = losses
        self._waits = waits

    def wait(self) -> None:
        """Say so on stdout, and go on at the next line on stdin."""
        if self._waits:
            print("waiting", flush=True)
            sys.stdin.readline()

    def record(self, step: int, loss: Tensor) -> None:
        """Between the update of `step` and `run.step()`."""
        self._losses.write(loss.item().hex() + "\n")
        if step == WAITS_IN_STEP:
            self.wait()


class Block(nn.Module):
    """A linear layer and its activation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, width), the same out."""
        out: Tensor = self.act(self.linear(x))
        return out


class ConvBlock(nn.Module):
    """A convolution, its activation and dropout."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = nn.ReLU()
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), the same out."""
        out: Tensor = self.drop(self.act(self.conv(x)))
        return out


class Transformer(nn.Module):
    """Two pre-norm layers of width 16 over 32 characters, context 16."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.place = nn.Parameter(torch.randn(16, 16) * 0.02)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 32)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(16))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, 16) → (B, 16, 32)."""
        out: Tensor = self.head(self.blocks(self.embed(tokens) + self.place, mask=self.mask, is_causal=True))
        return out


def images() -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches (B, 64) of ten classes, each a fixed pattern with noise."""
    draw = torch.Generator().manual_seed(1)
    patterns = torch.randn(10, 64, generator=draw)
    while True:
        y = torch.randint(0, 10, (BATCH,), generator=draw)
        yield patterns[y] + torch.randn(BATCH, 64, generator=draw), y


def plain_sgd(recorder: Recorder) -> None:
    """An MLP and SGD."""
    model = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), *(Block(24) for _ in range(4)), nn.Linear(24, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    average = {"loss": torch.zeros(())}
    with watch(model, optimizer, name="plain", watch_every=7, state={"average": average}) as run:
        recorder.wait()
        for step, (x, y) in zip(range(STEPS), images(), strict=False):
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average["loss"].lerp_(loss.detach(), 0.1)
            recorder.record(step, loss)
            run.step(loss)
            if step % 20 == 0:
                run.log("average", average["loss"])


def adam_scheduler(recorder: Recorder) -> None:
    """An MLP, fused Adam, and a scheduler that an undo puts back."""
    model = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), *(Block(24) for _ in range(3)), nn.Linear(24, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)
    with watch(model, optimizer, name="adam", watch_every=7, state={"scheduler": scheduler}) as run:
        recorder.wait()
        for step, (x, y) in zip(range(STEPS), images(), strict=False):
            loss = F.cross_entropy(model(x), y)
            if not run.loss(loss):
                continue
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            recorder.record(step, loss)
            run.step(loss)


def conv_accumulation(recorder: Recorder) -> None:
    """A convolutional net with dropout and batch norm, momentum, two passes an update."""
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(6), *(ConvBlock(6) for _ in range(3)),
        nn.Flatten(), nn.Linear(384, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True)
    counters = {"passes": torch.zeros((), dtype=torch.int64)}
    batches = images()
    with watch(model, optimizer, name="conv", watch_every=7, state={"counters": counters}) as run:
        recorder.wait()
        for step in range(STEPS):
            optimizer.zero_grad()
            for half in range(2):
                x, y = next(batches)
                loss = F.cross_entropy(model(x.reshape(-1, 1, 8, 8)), y) / 2
                loss.backward()
                counters["passes"] += 1
                if half == 0:
                    recorder.record(-1, loss)
                    run.step(loss)
            optimizer.step()
            recorder.record(step, loss)
            run.step(loss)


def transformer_clipping(recorder: Recorder) -> None:
    """A transformer, AdamW in two groups, the loop's own clipping and warm-up."""
    model = Transformer()
    decayed = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 20))
    draw = torch.Generator().manual_seed(2)
    text = torch.randint(0, 32, (64,), generator=draw).repeat(40)
    with watch(model, optimizer, name="transformer", watch_every=7, state={"scheduler": scheduler}) as run:
        recorder.wait()
        for step in range(STEPS):
            at = torch.randint(0, len(text) - 17, (8,), generator=draw)
            tokens = torch.stack([text[n : n + 17] for n in at.tolist()])
            loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            recorder.record(step, loss)
            run.step(loss)


LOOPS: dict[str, Callable[[Recorder], None]] = {
    "plain-sgd": plain_sgd,
    "adam-scheduler": adam_scheduler,
    "conv-accumulation": conv_accumulation,
    "transformer-clipping": transformer_clipping,
}


def main(name: str, losses: str, *options: str) -> None:
    """Run one loop."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with Path(losses).open("w") as file:
        LOOPS[name](Recorder(file, waits="--wait" in options))


if __name__ == "__main__":
    main(*sys.argv[1:])
