"""Facts about how loop, net and optimizer are connected: what each means, and its sentence.

`training/watch/wiring.py` finds them. A fact is not a guess: it does not depend on thresholds for losses or readings,
unless its row says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from tui_descent.protocol.events import Advice, WiringFound
from tui_descent.protocol.layer_names import in_words
from tui_descent.telemetry.diagnosis.findings import Finding, Name, sentence_case
from tui_descent.telemetry.diagnosis.rule import Rule

NAME_WIDTH = 16  # longer names of layers are shortened at the front
# If updates are rounded away and the rate is between these limits, a rate 1,000 times as large is advised. Only a
# schedule makes smaller rates.
SMALLEST_RATE, SMALL_RATE = 1e-15, 1e-5
QUESTION = "The net ends in a {gets}. Does the loss apply it too?"
QUESTION_SURE = 0.6
SMALL_TARGETS = "The targets have an rms below 0.01: normalise them?"
MAYBE_EVAL = "{layer} trains in eval mode. Is that meant?"
LACKS = "Optimizer lacks {absent}."  # for a name that leaves no room for more
SHORT_NAME = 15
# The longest two names with which a sentence about them may say more.
PAIR_AND_BEFORE, PAIR_AND_QUESTION = 27, 17
RATE_ZERO = "The learning rate has been 0 for {updates:.0f} updates: set it in the script."
NO_GRADIENT_OF = "No weight of optimizer {optimizer} gets a gradient: is it detached?"
PLAIN_CONTAINER = "{layer} is a plain {container}: use nn.{mends}."
ROOM = 65  # characters for the sentence about it
NO_GRAPH = "The loss has no graph: argmax, item() or detach() before it?"
NOT_REACHED = "The loss's graph does not reach the net: detach() or item()?"
RATE_FELL = "The rate fell from {fell_from:.2g} to {rate:.2g}: updates change nothing."
NO_INPUT = "All inputs of {layer} are 0: check the data and masks."
NO_EFFECT = "Nothing changes at lr {rate:.0e} in {dtype}."  # with advice there is less space
TAKEN_BACK = "Each update of {layer} is taken back before the next one."

RULES: tuple[Rule, ...] = (
    Rule(
        finding="no optimizer step",
        kind="wiring",
        condition="run.step() got 20 losses and no watched optimizer made a step",
        threshold="20 losses without an update; if gradients are accumulated, 10 times the longest series so far",
        sentence="{losses:.0f} losses; the watched {optimizer} made no step{other}.",
        check="Is optimizer.step() called, and on the object that was passed to watch()?",
        helps="pass the optimizer to watch() that the loop steps",
        useless="any knob",
    ),
    Rule(
        finding="every update skipped",
        kind="wiring",
        condition="the GradScaler, or the check for NaN, has dropped the last 20 updates",
        threshold="20 steps in a row; a scaler that starts too high finds its scale within about 15",
        sentence="The gradients of the last {steps:.0f} steps were not finite.",
        check="Print scaler.get_scale(): it halves at each skipped update.",
        helps="find the operation that overflows; keep the loss in float32 or bfloat16",
        useless="waiting",
    ),
    Rule(
        finding="foreign parameters",
        kind="wiring",
        condition="the optimizers hold tensors that are not the net's, and weights that get a gradient are in none; "
        "nothing else changes these weights in 3 updates",
        threshold="none: parameters are compared as objects",
        sentence="Optimizer lacks {absent}; has another net's tensors.",
        check="The update of these layers is empty. Was the net copied, wrapped or given a new head after the "
        "optimizer was made?",
        helps="make the optimizer after the last change of the net, from its parameters()",
        useless="any knob: these weights never change",
    ),
    Rule(
        finding="untrained parameters",
        kind="wiring",
        condition="weights with requires_grad=True get a gradient and are in no watched optimizer; nothing else "
        "changes them in 3 updates",
        threshold="none: parameters are compared as objects",
        sentence="No watched optimizer holds {absent}: no updates.",
        check="The update of these layers is empty. Compare len(list(model.parameters())) with the optimizer's groups.",
        helps="optimizer.add_param_group, or requires_grad_(False) if they shall not train",
        useless="any knob: these weights never change",
    ),
    Rule(
        finding="unregistered",
        kind="wiring",
        condition="an attribute of the net is a plain list, tuple, dict or set of layers or parameters that get a "
        "gradient and are in no optimizer, and nothing else changes them in 3 updates",
        threshold="none: attributes are read, and parameters compared as objects",
        sentence="{layer} is a plain {what}: use nn.{mends}.",
        check="print(model) does not show these layers; model.parameters() does not have their weights.",
        helps="nn.ModuleList, nn.ModuleDict or nn.ParameterList; requires_grad_(False) for a helper net that shall not "
        "train",
        useless="any knob: these weights never change",
    ),
    Rule(
        finding="no gradient",
        kind="wiring",
        condition="no parameter of the net has a gradient at the first 3 updates; or, with several optimizers, no "
        "weight of one of them at its first 5",
        threshold="3 updates; 5 with several optimizers; 1 if the loss has no graph and requires a gradient",
        sentence="No parameter has a gradient when the optimizer makes its step.",
        check="Is backward() called on the loss of this net? Is zero_grad() called between backward() and step()? Was "
        "the loss rebuilt from a number, as by torch.tensor(loss.item())? Is it computed from argmax, item(), detach() "
        "or numpy? loss.requires_grad_() then only silences the error.",
        helps="call loss.backward() on the loss that the net's output went into",
        useless="any knob",
    ),
    Rule(
        finding="gradient cut",
        kind="wiring",
        condition="the first layers of one optimizer, in forward order, get no gradient at the first 5 updates, while "
        "all later ones do; only layers that were called",
        threshold="5 updates",
        sentence="No gradient {place}; {after} gets one.{asks}",
        check="Look between the two layers for detach(), .data, torch.no_grad(), .item(), argmax or numpy.",
        helps="remove what cuts the graph; requires_grad_(False) if intended, as for the target net of BYOL or DQN",
        useless="residual connections, another activation or rate",
    ),
    Rule(
        finding="rate zero",
        kind="wiring",
        condition="the learning rate of a group of parameters was exactly 0 in 10 updates in a row",
        threshold="10 updates: a warm-up starts with one at 0",
        sentence="The learning rate {of}has been 0 for {updates:.0f} updates.",
        check="The top line shows lr 0. Is scheduler.step() called at each update, and does its schedule end at 0?",
        helps="the schedule (key s in a scenario run)",
        useless="keys + and ]: a multiple of 0 is 0",
    ),
    Rule(
        finding="no update",
        kind="wiring",
        condition="every update so far, or since the rate fell to a thousandth of its largest, was exactly 0, in 3 "
        "readings or 4 of the first updates, although the gradients and the rate are not 0; or each update is taken "
        "back before the next one",
        threshold="3 readings with gradients above 1e-6 (below, a run is so close to a minimum that this is normal); "
        "less than 5 % of 3 measured updates in a row is left at the next one",
        sentence="Gradients arrive, but updates change nothing: lr {rate:.2g} in {dtype}.",
        check="The update column shows 0 in every layer.",
        helps="a larger rate; float32 weights, whose steps are 65,536 times as fine as those of bfloat16; not loading "
        "averaged or older weights into the net that is trained",
        useless="another initialisation",
    ),
    Rule(
        finding="equal weights",
        kind="wiring",
        condition="all weights of a hidden layer start at the same value, such as 0, and its units are still equal "
        "after 10 updates (multiples of each other, if all layers start at 0). Not checked on a GPU",
        threshold="a difference of 1e-4 of the largest weight (1e-2, if all layers start at 0)",
        sentence="Weights of {layer} start {start}: its units learn the same.",
        check="Print layer.weight: all rows are equal. Equal units get the same gradient, so they learn the same.",
        helps="weights drawn at random, as torch.nn does by default; only the last layer, and the last one of a "
        "residual branch, may start at 0. In a scenario run key i",
        useless="residual connections, another activation or rate",
    ),
    Rule(
        finding="gradients not cleared",
        kind="wiring",
        condition="the gradient of an update is still in .grad, unchanged, when the next backward pass adds to it, "
        "3 updates in a row, and run.step() is called at each update",
        threshold="3 updates in a row",
        sentence="Gradients add up over the steps: is zero_grad() called?",
        check="The gradient norm grows from step to step, and the cosine of successive gradients is close to 1.",
        helps="optimizer.zero_grad() before backward(); run.step(loss) at each batch, if accumulation is meant",
        useless="a smaller rate",
    ),
    Rule(
        finding="gradients cut",
        kind="wiring",
        condition="what the optimizer gets of a gradient is less than a hundredth of what the backward pass has left, "
        "in 3 of the first updates in a row, as after clipping; shown if the loss does not fall and the optimizer is "
        "SGD, with or without momentum. Not checked on a GPU or with a GradScaler",
        threshold="1e-2; clipping usually cuts single gradients to a tenth",
        sentence="Gradients are cut to {left:.0e} of their size: clip limit too low?",
        check="The gradient norm has the same value at each reading: the limit. Print what clip_grad_norm_ returns, "
        "the norm before.",
        helps="a limit near the usual norm of the gradient, as 1 or 10",
        useless="another net. Adam scales its updates itself, so there clipping is rarely the cause",
    ),
    Rule(
        finding="softmax twice",
        kind="wiring",
        condition="the graph of the loss shows a softmax or sigmoid directly before an operation that takes logits; if "
        "the loss is passed as a number, the net ends in one and the first loss is that of a guess (a question)",
        threshold="none; for the question a first loss within 10 % of ln(classes), or 0.70 to 0.98 for one sigmoid",
        sentence="{takes} gets {gets} outputs; it {wants}.",
        check="Each row of the output adds up to 1. With C classes such a loss cannot fall below ln(1 + (C − 1)/e).",
        helps="pass the logits to the loss; apply softmax or sigmoid only to read probabilities",
        useless="another optimizer or rate",
    ),
    Rule(
        finding="no log-softmax",
        kind="wiring",
        condition="nll_loss, whose input comes from no log-softmax, gives a negative loss; a log-probability is never "
        "above 0, so the input is none",
        threshold="a loss below 0",
        sentence="nll_loss gives {loss:.3g}: pass it log-probabilities.",
        check="Print the net's output: the numbers of a row are not the logarithms of probabilities.",
        helps="log_softmax before nll_loss, or cross_entropy on the logits",
        useless="any knob: the loss falls without limit",
    ),
    Rule(
        finding="all pairs",
        kind="wiring",
        condition="the loss is a distance such as mse, and broadcasting has paired N outputs of shape (N, 1) with N "
        "targets of shape (N), or the reverse",
        threshold="none: the shapes are read from the graph of the first loss",
        sentence="Outputs {outputs} and targets {targets} are broadcast: reshape one.",
        check="Print the shapes. torch warns of it (view 7): the loss is the mean over all N × N pairs, so the best "
        "outputs are all equal to the mean target.",
        helps="targets of the outputs' shape: y.unsqueeze(1), or model(x).squeeze(1)",
        useless="any knob: the net learns the mean target",
    ),
    Rule(
        finding="batch norm of one sample",
        kind="wiring",
        condition="a batch norm in training mode gets a batch of one sample, in 2 measured steps in a row",
        threshold="N = 1",
        sentence="{layer}, a batch norm, gets a batch of one sample.",
        check="The held-out loss is far from the training loss: the running statistics are those of single samples.",
        helps="a larger batch; group or layer norm; eval() for pretrained batch norms",
        useless="a smaller rate",
    ),
    Rule(
        finding="eval mode",
        kind="wiring",
        condition="updates are made from passes in which the net, or a part of it with trainable weights, is in eval "
        "mode with its dropouts or batch norms, in 2 measured steps in a row. A question if only the running "
        "statistics of a net that came with them are kept. Modules put into eval mode one by one, and frozen batch "
        "norms, do not count",
        threshold="none: module.training is read",
        sentence="{layer} trains in eval mode: call train() after validation.",
        check="Print model.training before backward().",
        helps="model.train() at the start of each epoch, and after each validation",
        useless="another rate or activation: batch norms use statistics that do not fit, dropout is off",
    ),
    Rule(
        finding="input scale",
        kind="wiring",
        condition="the rms of the non-zero inputs of the first layer is below 1e-2 or above 1e2, or all of them are 0, "
        "in 2 measured steps in a row; not if this layer is an embedding or a norm",
        threshold="1e-2 and 1e2; weights are initialised for an rms of 1 (Glorot & Bengio 2010, He et al. 2015)",
        sentence="The inputs of {layer} have rms {rms:.3g}: normalise them.",
        check="Print x.square().mean().sqrt() of a batch; images in 0…255 have about 100.",
        helps="(x − mean) / std, with the mean and std of the training data",
        useless="another activation",
    ),
    Rule(
        finding="target scale",
        kind="wiring",
        condition="the loss is the mean distance (mse, L1, Huber) of the net's outputs to targets whose rms is beyond "
        "1e-2…1e2, and the outputs have not come near them, in 2 measured steps in a row from step 10 on. Not checked "
        "on a GPU",
        threshold="1e-2 and 1e2: a net starts with outputs of about 1. The distance is more than 4 times the rms of "
        "the outputs, so it is the rms of the targets within a quarter",
        sentence="The targets have an rms of about {rms:.2g}: normalise them.",
        check="Print y.square().mean().sqrt() of a batch, and the same of the outputs.",
        helps="(y − mean) / std, with the mean and std of the training targets; undo this for predictions",
        useless="waiting: with Adam, outputs grow by about the learning rate in a step",
    ),
    Rule(
        finding="constant output",
        kind="wiring",
        condition="the output is the same for all samples of a batch whose samples differ, in 3 measured steps after "
        "at least 10 updates; with at least 2 samples and 2 output numbers; gives way to vanishing and dead units",
        threshold="standard deviation over the samples at most 1e-6 of the rms",
        sentence="The net's output is the same for all {samples:.0f} samples.",
        check="Print the output of a batch: all rows are equal. Look for dead units in the layers before.",
        helps="what the layers before need: see dead units and vanishing",
        useless="a larger rate",
    ),
    Rule(
        finding="zero output",
        kind="wiring",
        condition="the net ends in a relu, or another operation that cuts off negative numbers, and its output is 0 "
        "for every sample, in 3 measured steps after at least 10 updates; gives way to updates that were too large",
        threshold="none: the rms of the outputs is exactly 0",
        sentence="The last {gets} gives 0 for all samples: targets below 0? Drop it.",
        check="Print the output and the smallest target: the output is never below 0, and where it is 0 "
        "no gradient passes.",
        helps="no activation after the last layer; softplus, if outputs must not be negative",
        useless="waiting: without a gradient nothing changes",
    ),
    Rule(
        finding="frozen layers",
        kind="wiring",
        condition="weights have requires_grad=False, perhaps without their biases; whole numbers, as of quantised "
        "layers, do not count",
        threshold="none",
        sentence="{frozen:.0f} of {layers:.0f} layers {are} frozen{biases}.",
        check="Their rows in the layer list are marked as frozen.",
        helps="key x, if they are in the optimizer; nothing, if this is meant, as when only a new head is trained",
    ),
)
# Facts that a judgement of the gradients, such as vanishing or dead units, may explain. The judgement then has
# priority.
SYMPTOMS = frozenset({"constant output"})
# Facts that updates that were too large may have caused.
OF_SPOILT_WEIGHTS = frozenset({"zero output"})
# Facts that explain a loss that does not fall, if the optimizer is SGD.
SLOWS_SGD = frozenset({"gradients cut"})
ORDER = [rule.finding for rule in RULES]  # the first fact that holds is shown
_SENTENCES = {rule.finding: rule.sentence for rule in RULES}


def wiring_finding(event: WiringFound, available: frozenset[str], user_loop: bool) -> Finding:
    """The finding of a fact that is present. `available` are the knobs that can act in this run."""
    evidence = dict(event.evidence)
    return Finding(
        finding=cast(Name, event.fault),
        kind="wiring",
        layer=event.layer,
        sure=QUESTION_SURE if evidence.get("question") else 1.0,
        evidence=evidence,
        advice=tuple(a for a in _advice(event, user_loop=user_loop) if a.knob in available),
    )


def words(finding: Finding) -> str:
    """One line for the screen, without advice."""
    evidence, layer = finding.evidence, layer_words(finding.layer or "the net")
    parts: dict[str, str] = {"layer": layer}
    match str(finding.finding):
        case "foreign parameters" | "untrained parameters":
            count, of = f"{evidence['absent']:.0f}", f"{evidence['layers']:.0f}"
            parts["absent"] = (
                layer if count == "1" else f"all {of} layers" if count == of else f"{count} of {of} layers"
            )
            if finding.finding == "foreign parameters" and len(parts["absent"]) > SHORT_NAME:
                return LACKS.format_map(parts)
        case "no optimizer step":
            parts["other"] = f", another {evidence['other']} did" if "other" in evidence else ""
        case "no gradient" if "optimizer" in evidence:
            return NO_GRADIENT_OF.format_map(evidence)
        case "no gradient" if "no_graph" in evidence:
            return NO_GRAPH
        case "no gradient" if "not_reached" in evidence:
            return NOT_REACHED
        case "unregistered":
            parts |= _container_words(evidence)
            text = _SENTENCES["unregistered"].format_map(parts)
            return sentence_case(text if len(text) <= ROOM else PLAIN_CONTAINER.format_map(parts))
        case "gradient cut":
            parts["layer"], parts["after"] = _pair_words(finding.layer or "the net", str(evidence["after"]))
            cut, size = parts["layer"], len(parts["layer"] + parts["after"])
            first = f"in {cut} and before" if size <= PAIR_AND_BEFORE else f"up to {cut}"
            parts["place"] = f"in {cut}" if evidence["without"] == 1 else first
            parts["asks"] = " Intended?" if size <= PAIR_AND_QUESTION else ""
        case "rate zero":
            all_layers = evidence["layers"] == evidence["of"]
            parts["of"] = "" if all_layers else f"of {evidence['layers']:.0f} of {evidence['of']:.0f} layers "
            if all_layers and not finding.advice:
                return RATE_ZERO.format_map({**evidence, **parts})
        case "no update" if "left" in evidence:
            return sentence_case(TAKEN_BACK.format_map(parts))
        case "no update" if "fell_from" in evidence:
            return RATE_FELL.format_map(evidence)
        case "no update" if finding.advice:
            return NO_EFFECT.format_map(evidence)
        case "eval mode" if evidence.get("question"):
            return sentence_case(MAYBE_EVAL.format_map(parts))
        case "input scale" if evidence["rms"] == 0:
            return sentence_case(NO_INPUT.format_map(parts))
        case "target scale" if evidence.get("question"):
            return SMALL_TARGETS
        case "frozen layers":
            parts["are"] = "is" if evidence["frozen"] == 1 else "are"
            parts["biases"] = ", biases train" if evidence.get("biases") else ""
        case "softmax twice" if evidence.get("question"):
            return QUESTION.format_map(evidence)
        case "softmax twice":
            own = {"cross_entropy": "softmax", "bce_with_logits": "sigmoid"}.get(str(evidence["takes"]))
            itself = f"applies {own} itself" if own == evidence["gets"] else "takes logits"
            parts["wants"] = "takes log-probabilities" if own is None else itself
        case _:
            pass
    return sentence_case(_SENTENCES[finding.finding].format_map({**evidence, **parts}))


def layer_words(name: str) -> str:
    """A layer in a sentence. A long module path is shortened to its end, which names the layer itself."""
    return in_words(name) if len(name) <= NAME_WIDTH else f"…{name[1 - NAME_WIDTH :]}"


def _container_words(evidence: Mapping[str, float | str]) -> dict[str, str]:
    count, layers, container = int(float(evidence["count"])), bool(evidence["layers"]), str(evidence["container"])
    noun, kind = ("layer", "Module") if layers else ("parameter", "Parameter")
    mends = f"{kind}{'Dict' if container == 'dict' else 'List'}"
    return {"container": container, "what": f"{container} of {count} {noun}{'s' if count > 1 else ''}", "mends": mends}


def _pair_words(name: str, other: str) -> tuple[str, str]:
    """Two layers in one sentence. Long paths that end alike are shown without their common end."""
    pair = layer_words(name), layer_words(other)
    first, last = name.split("."), other.split(".")
    while pair[0] == pair[1] and first[-1] == last[-1] and len(first) > 1 and len(last) > 1:
        first, last = first[:-1], last[:-1]
        pair = layer_words(".".join(first)), layer_words(".".join(last))
    return pair


def _advice(event: WiringFound, *, user_loop: bool) -> list[Advice]:
    """What a knob can do about a fact. Most need a change of the script."""
    evidence = event.evidence
    match event.fault:
        case "frozen layers" if evidence["in_optimizer"]:
            return [Advice("freeze", "off", "x")]
        case "rate zero" if not user_loop and event.layer is None:
            return [Advice("schedule", "constant", "s")]
        case "no update" if "fell_from" in evidence:  # a larger rate would fall again
            return [] if user_loop else [Advice("schedule", "constant", "s")]
        case "no update" if SMALLEST_RATE < float(evidence.get("rate", SMALL_RATE)) < SMALL_RATE:
            return [Advice("lr", "*1000", "]")]
        case "equal weights" if not user_loop:
            return [Advice("init", "he", "i")]
        case "batch norm of one sample" if not user_loop:
            return [Advice("batch_size", "32", "b")]
        case _:
            return []
