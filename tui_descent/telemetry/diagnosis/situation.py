"""What is known about a run besides its losses and readings, from its events and its scenario."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from tui_descent.protocol.events import Advice, KnobState, KnobTurned, LoopObserved, RatesChanged, RunStarted
from tui_descent.scenario import knobs as commands
from tui_descent.scenario.keys import KEYS
from tui_descent.scenario.optimizers import OPTIMIZERS
from tui_descent.scenario.spec import UNDO

# The loss of a net that has learnt only letter frequencies: the entropy of single letters of the text data, in nats.
LETTER_ENTROPY = 3.24
ADAPTIVE = frozenset({"adam", "adamw", "rmsprop"})
# Losses that are never negative and are small only if the net predicts well. For these, a falling loss means a better
# fit.
KNOWN_LOSSES = frozenset(
    {"cross_entropy", "bce", "bce_with_logits", "mse", "l1", "smooth_l1", "huber", "ctc"}
    | {"multi_margin", "multilabel_margin", "soft_margin"}
)


class RunContext(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a run besides its losses and readings; None where it is not known.

    `classes`: how many, if the loss is a cross-entropy that can come close to 0. `guess`: otherwise the loss of the
    best guess that ignores the input, such as the entropy of single letters for text. `surface`: the loss is a function
    of its parameters alone, without a net or data. `loss_means_fit`: whether a smaller loss means a better fit; it does
    not if several nets play against each other, and it is not known for a loss of the user's own making.
    `norm_where` is the place of the norm layers at a scenario's start. `values` are the knobs' values now. `remedies`
    are what the scenario's author advises, until something is changed. `left_alone` are the modules whose activation
    cannot be changed. `partly_residual`: whether residual connections would leave some blocks without one. `nets` are
    the names of several nets.
    """

    classes: int | None = None
    guess: float | None = None
    optimizer: str | None = None
    activation: str | None = None
    residual: bool | None = None
    norm: bool | None = None
    norm_where: str = ""
    surface: bool = False
    user_loop: bool = False
    loss_means_fit: bool = True
    several_optimizers: bool = False
    values: dict[str, str] = {}
    remedies: tuple[Advice, ...] = ()
    left_alone: tuple[str, ...] = ()
    partly_residual: bool = False
    nets: tuple[str, ...] = ()

    @property
    def adaptive(self) -> bool | None:
        """Whether the optimizer scales its steps by the size of the gradient; None if that is not known."""
        if self.optimizer is None:
            return None
        return self.optimizer in ADAPTIVE

    @property
    def decoupled(self) -> bool:
        """Whether the weight decay acts on the weights directly, not through the gradient."""
        return self.optimizer in OPTIMIZERS and OPTIMIZERS[self.optimizer].decoupled_decay

    @property
    def weight_decay(self) -> float | None:
        """The weight decay, None if it is not known or not the same everywhere."""
        try:
            return float(self.values.get("weight_decay", ""))
        except ValueError:
            return None

    @property
    def momentum(self) -> float | None:
        """The share of its average of gradients that an optimizer keeps at a step, β₁ for Adam; None if not known."""
        text = self.values.get("betas", "").partition("/")[0] or self.values.get("momentum", "")
        try:
            return float(text)
        except ValueError:
            return None

    def with_knobs(self, states: Iterable[KnobState]) -> RunContext:
        """A copy with these values of the knobs, and with what follows from them."""
        states = list(states)
        values = {s.name: s.value for s in states if s.value}
        changed: dict[str, Any] = {"values": self.values | values}
        known = {name: value for name, value in values.items() if value not in ("", "mixed", "own")}
        for name in ("activation", "optimizer"):
            if name in known:
                changed[name] = known[name]
        if values.get("activation") == "mixed":
            changed["activation"] = None
        for name, without in (("residual", "off"), ("norm", "none")):
            if name in known:
                changed[name] = known[name] != without
        if any("adds its input" in reason for s in states if s.name == "residual" for _, reason in s.left_alone):
            changed["residual"] = True  # in the net's own code
        acts = {s.name: len(s.acts_on) for s in states}
        if acts.get("activation"):
            changed["partly_residual"] = 0 < acts.get("residual", 0) < acts["activation"]
        adaptive = [s.name for s in states if s.name in ("momentum", "betas") and s.unavailable is None and s.value]
        if "optimizer" not in known and self.optimizer is None and adaptive:
            # A user loop's own optimizer: two betas mean that it is adaptive.
            momentum = values.get("momentum", "0") not in ("", "0")
            changed["optimizer"] = "adam" if "betas" in adaptive else "momentum" if momentum else "sgd"
        left = [name for s in states if s.name == "activation" for name, _ in s.left_alone]
        if any(s.name == "activation" for s in states):
            changed["left_alone"] = tuple(left)
        return msgspec.structs.replace(self, **changed)

    def with_loop(self, seen: LoopObserved) -> RunContext:
        """A copy with what the graph of a user loop's loss shows."""
        if not self.user_loop:
            return self
        entropy = seen.loss_function == "cross_entropy"
        classes = seen.classes if entropy and seen.classes and seen.classes > 1 else None
        fit = (seen.loss_function or "") in KNOWN_LOSSES and not self.several_optimizers
        return msgspec.structs.replace(self, loss_means_fit=fit, classes=classes)

    def with_rates(self, event: RatesChanged) -> RunContext:
        """A copy with what the learning rates show: if there are several optimizers, several nets may play against each
        other.
        """
        if not self.user_loop or len(event.rates) < 2:
            return self
        return msgspec.structs.replace(self, several_optimizers=True, loss_means_fit=False, classes=None)


def context_of(scenario: Mapping[str, Any] | None) -> RunContext:
    """What the diagnosis can learn from the scenario. A user loop has no scenario, so its context is nearly empty."""
    if scenario is None:
        return RunContext(user_loop=True, loss_means_fit=False)
    model, data, optimizer = scenario["model"], scenario.get("data"), scenario["optimizer"]["name"]
    advised = remedies_of(scenario.get("remedy") or ())
    if data is None:
        return RunContext(optimizer=optimizer, surface=model["name"] == "surface", remedies=advised)
    entropy = (scenario.get("loss") or {}).get("name", "cross_entropy") == "cross_entropy"
    return RunContext(
        classes=_class_count(data) if entropy else None,
        guess=LETTER_ENTROPY if entropy and data["name"] == "text" else None,
        optimizer=optimizer,
        activation=model["activation"]["name"],
        residual=model["residual"]["name"] == "on",
        norm=model["norm"]["name"] != "none",
        norm_where=model["norm"].get("where", ""),
        remedies=advised,
    )


def _class_count(data: Mapping[str, Any]) -> int | None:
    """How many classes the data has; None for text, and for images of the user's, whose files are not read here."""
    match data["name"]:
        case "digits":
            return 10
        case "modular-addition":
            return int(data["modulus"])
        case "rare-classes":
            return int(2 ** data["groups"] - 1)
        case "text" | "own-text" | "own-images":
            return None
        case _:
            return 2


def situation_of(event: RunStarted) -> RunContext:
    """What is known at the start of a run."""
    context = msgspec.structs.replace(context_of(event.scenario), nets=event.nets)
    return context.with_knobs(event.knobs)


def after_turn(context: RunContext, turn: KnobTurned) -> RunContext:
    """The situation after an intervention."""
    return context.with_knobs((KnobState(name=turn.knob, value=turn.new), *turn.knobs))


def remedies_of(texts: Sequence[str]) -> tuple[Advice, ...]:
    """Remedies such as `residual=on` as advice, with their keys. A remedy that no knob accepts is left out."""
    found = []
    for text in texts:
        if text == UNDO:
            found.append(Advice(UNDO, "1", "u"))
            continue
        try:
            command = commands.parse(text)
        except ValueError:
            continue
        value = text.partition("=")[2]
        found.append(Advice(command.knob, value.strip(), key_of(command.knob, command.value)))
    return tuple(found)


def key_of(knob: str, value: str) -> str:
    """The key to press for a change of a knob; empty if there is none."""
    rate = {"*": {"*10": "]", "*100": "]", "*1000": "]"}.get(value, "+"), "/": "[" if value == "/10" else "-"}
    if knob == "lr":
        return rate.get(value[:1], "l")
    return next((key.shown for key in KEYS if key.knob == knob), "")
