"""The table of findings about how the loss and the gradients develop, and their sentences for the screen."""

from __future__ import annotations

from collections.abc import Mapping

from tui_descent.telemetry.diagnosis import rules as r
from tui_descent.telemetry.diagnosis.features import FEW, FIRST_STEPS, LONG_WINDOW, NEARLY_ALL, SPOILS, WINDOW
from tui_descent.telemetry.diagnosis.findings import Finding, filled
from tui_descent.telemetry.diagnosis.rate_fall import WITHIN
from tui_descent.telemetry.diagnosis.rule import Rule

TUNED = "set on the tuning pool of random nets"

RULES: tuple[Rule, ...] = (
    Rule(
        finding="vanishing",
        kind="dynamics",
        condition="The loss is stuck, and the product of the backprop factors is small. Where no factors are measured: "
        "the first gradient over the last, of layers of one shape.",
        threshold=f"product below {r.VANISHED:g} ({TUNED}); for sigmoid blocks below {r.SIGMOID_FACTOR}^blocks, since "
        "the slope of a sigmoid is at most 1/4",
        sentence="{layer} gets {first_to_last_grad:.0e} of {last}'s gradient.",
        check="The heat map is dark at the first layers; press 2 for the factors of the chain rule.",
        helps="residual connections, a norm; weights of the right size if they were drawn too small",
        useless="a larger learning rate: many times almost nothing is still almost nothing",
    ),
    Rule(
        finding="exploding",
        kind="dynamics",
        condition="The loss started far above that of a guess, is still high, and the gradient grows on its way back.",
        threshold=f"first loss above {r.HUGE:g} times that of a guess, product above {r.GROWN:g} ({TUNED}); if the "
        f"loss of a guess is not known: loss above {r.FALLEN:.0%} of the first one, product above {r.EXPLODED:g}",
        sentence="Gradient grows ×{product:.1e}.",
        check="The loss starts far above ln(classes); press 2: the factors of the chain rule are above 1.",
        helps="a norm between each layer and its activation; weights drawn with a smaller scale",
        useless="a smaller learning rate, and residual connections, which add a path and leave the first one as it is",
    ),
    Rule(
        finding="dead units",
        kind="dynamics",
        condition="The loss is stuck, and no unit of a layer passes a gradient, or the gradient of every weight is "
        "exactly 0.",
        threshold=f"more than {r.ALL_DEAD:.0%} of a layer's units have slope 0 on every sample (Lu 2019, 1903.06733)",
        sentence="{share:.0%} of {layer}'s units are dead.",
        check="Open the layer (enter): its dead fraction and the histogram of its inputs, left of 0.",
        helps="an activation with a slope below 0, such as leaky_relu; residual connections around deep dead layers; "
        "undo, if updates killed the units",
        useless="waiting: without a gradient nothing changes",
    ),
    Rule(
        finding="saturated",
        kind="dynamics",
        condition="The loss is stuck, the gradient arrives, and most outputs of a layer are in the flat part of its "
        "activation.",
        threshold=f"more than {r.SATURATED:.0%} of a layer's outputs have less than a tenth of the largest slope "
        "(Glorot & Bengio 2010)",
        sentence="{share:.0%} of {layer}'s outputs are saturated.",
        check="Open the layer (enter): its saturated fraction; outputs near the activation's limits.",
        helps="smaller weights, an unbounded activation, residual connections, a norm",
        useless="a larger learning rate, which saturates more units",
    ),
    Rule(
        finding="weights decaying",
        kind="dynamics",
        condition="The loss is stuck or level and not low, and weight decay shrinks the weights, or outweighs the "
        "gradient for so long that it decides how large they are.",
        threshold=f"the median layer's weight norm is below {r.DECAYED:.0%} of the run's first one and falls; or the "
        f"decay's part of a step is above {r.DECAY_RULES:.0%} of the gradient's, over more than 1/(rate × decay) steps "
        f"(for Adam with a decay that is added to the gradient: weights below {r.SHRUNK:.0%})",
        sentence="Weight norms fell to {kept:.0%}; loss {loss:.3g}.",
        check="Open a layer (enter): its weight norm falls while the loss does not. Compare decay × weight norm with "
        "the gradient norm (AdamW: rate × decay × weight norm with the update norm).",
        helps="less weight decay",
        useless="another optimizer, which decays the weights in the same way",
    ),
    Rule(
        finding="plateau",
        kind="dynamics",
        condition="The loss does not fall, and nothing else that was measured explains it.",
        threshold=f"loss above {r.STUCK:.0%} of a guess, and a fall of less than {r.FALLING:.0%} in a third of "
        f"{WINDOW} steps; after {LONG_WINDOW} steps: the extrapolated loss is above {r.EXPECTED_GOOD:.0%} ({TUNED})",
        sentence="Loss stuck at {loss:.3g}; gradients arrive.",
        check="The smooth loss line is level, and the gradients of all layers are of similar size.",
        helps="a larger learning rate, Adam; in deep nets residual connections; larger weights if they are tiny",
        useless="a smaller learning rate. If the labels are random there is nothing to learn.",
    ),
    Rule(
        finding="saddle",
        kind="dynamics",
        condition="The loss does not fall, and the curvature is negative in one direction.",
        threshold="smallest Hessian eigenvalue below −1 % of the largest",
        sentence="Loss stuck at {loss:.3g} on a saddle.",
        check="Press 5: λmin is below 0.",
        helps="a larger learning rate, momentum or Adam; a small push along the negative curvature (k)",
        useless="a smaller learning rate",
    ),
    Rule(
        finding="diverging",
        kind="dynamics",
        condition="The loss has risen far above its first value, and not only by the scatter of its batches.",
        threshold=f"mean of ten losses above {r.RISEN:g} times the first one and {r.ABOVE_GUESS:g} times that of a "
        f"guess, and {NEARLY_ALL:.0%} of the newest {WINDOW} losses above it. The first loss is the mean of the first "
        f"{FIRST_STEPS}; if these move beyond their scatter, the mean of {FEW}, or the first one before a leap",
        sentence="Loss rose from {first:.3g} to {loss:.3g}.",
        check="The loss rises; the update bars are far right of their band.",
        helps="going back, then a smaller learning rate; clipping; in a script of your own a new start with a smaller "
        "rate",
        useless="a smaller learning rate alone, once the updates have spoilt the weights",
    ),
    Rule(
        finding="rate too large",
        kind="dynamics",
        condition="The loss is stuck since updates that were far too large. Dead or saturated units and a gradient "
        "that no longer arrives follow from them.",
        threshold=f"an update above {SPOILS:.0%} of the weights (1e-3 is usual); or one above {r.LARGE_UPDATE:.0%}, "
        f"after which the loss rose to {r.RISEN:g} times the first one, or stays {r.ABOVE_BEST - 1:.0%} above its "
        "best. The median layer counts, with weights at least as large as Xavier's",
        sentence="Updates of {largest} of weights; loss {loss:.3g}.",
        check="The update bars were far right of their band; the loss jumped at the start or lies above its best.",
        helps="a smaller learning rate; if no gradient arrives any more, first going back, or a new start of the "
        "script",
        useless="another activation or residual connections at the same rate",
    ),
    Rule(
        finding="large momentum",
        kind="dynamics",
        condition="The loss does not fall or swings, nothing else explains it, and momentum (Adam: β₁) averages the "
        "gradients over so many steps that it still follows those of the start.",
        threshold=f"momentum from {r.LARGE_MOMENTUM:g} on, whose average, 1/(1 − β) steps, is longer than "
        f"{r.LONG_AVERAGE:.0%} of the steps since the start or the last change; loss above {r.NOT_FALLEN:.0%} of a "
        f"guess or {r.RISEN_AGAIN:g} times its lowest",
        sentence="Momentum {momentum:.6g} averages {memory:,.0f} steps.",
        check="The smooth loss line swings over hundreds of steps. SGD with momentum β steps 1/(1 − β) times as far.",
        helps="the usual 0.9",
        useless="waiting, if the loss swings ever further",
    ),
    Rule(
        finding="rate too small",
        kind="dynamics",
        condition="The loss is stuck or falls very slowly, and the updates are small compared to the weights. Also at "
        "once, if the scheduler of a script takes the rate to almost nothing in a few steps, before the loss is low.",
        threshold=f"update below {r.SMALL_UPDATE:g} of the weights (about 1e-3 is usual: Karpathy, CS231n); for plain "
        f"SGD a step below {r.SMALL_STEP:g} times the gradient ({TUNED}); for Adam not where the gradient vanishes and "
        "the first updates were larger, since its steps shrink with the gradient; a rate that falls to a thousandth "
        f"within {WITHIN} steps, a third of them below a thirtieth: a cosine is so low only at its very end",
        sentence="Updates are {update:.1e} of the weights.",
        check="The update bars are far left of their band.",
        helps="a larger learning rate; if a schedule has made it small, another schedule, or scheduler.step() once an "
        "epoch",
        useless="another optimizer: its rate is converted, so it stays too small",
    ),
    Rule(
        finding="rate at the edge",
        kind="dynamics",
        condition="The curvature was measured and is at the limit above which steps grow. Normal for full batches.",
        threshold=f"λmax at least {r.EDGE:.0%} of the limit, 2/η for plain gradient descent (Cohen 2021, 2103.00065)",
        sentence="λmax is {edge:.0%} of the stability limit; loss {loss:.3g}.",
        check="Press 5: the curvature is at its limit.",
        helps="nothing is wrong while the loss falls; a smaller learning rate moves the limit up",
    ),
    Rule(
        finding="healthy",
        kind="dynamics",
        condition="The loss is below that of a guess and falls, or is expected to; or it is low.",
        threshold=f"loss below {r.STUCK:.0%} of a guess, or falling by {r.FALLING:.0%} in a third of {WINDOW} steps; "
        f"after {LONG_WINDOW} steps: the extrapolated loss is below {r.EXPECTED_GOOD:.0%} of it ({TUNED})",
        sentence="Training well: loss {loss:.3g}, from {run_first:.3g}.",
        check="The loss falls; the gradients of all layers are of similar size.",
        helps="nothing has to be done",
    ),
    Rule(
        finding="converged",
        kind="dynamics",
        condition="The loss is level over the last half of the steps since the last change, and it is tiny or has "
        "fallen far.",
        threshold=f"no significant fall over {LONG_WINDOW} steps (slope above {r.LEVEL_SLOPE:g} standard errors); loss "
        f"below {r.TINY:.0%} of a guess, or below {r.FALLEN:.0%} of the first one and certainly less than "
        f"{r.LEVEL_FALL:.0%} of fall over the last half (a line through ln loss, two standard errors)",
        sentence="Loss level at {loss:.3g}, from {run_first:.3g}.",
        check="The loss is small and its line is level.",
        helps="nothing has to be done; a smaller learning rate lowers the noise",
    ),
    Rule(
        finding="not clear",
        kind="dynamics",
        condition="The numbers do not prove any of the others.",
        threshold=f"the best judgement is less than {r.CLEAR:.0%} sure; or the loss clearly rises; or a smaller loss "
        "need not mean a better fit, as in GANs, with negative losses, or with a loss function that is not known. On a "
        f"test surface: a step moves the point by less than {r.SLOW:g} of its distance from 0, and over {WINDOW} steps "
        f"the gradient keeps {r.KEPT:.0%} of its norm, which it would not close to a minimum",
        sentence="Loss {trend}; {gradients}.",
        check="Look at the loss over the whole run (t) and at the heat map.",
        helps="more steps; the learning-rate range test (f)",
    ),
)

AS_AT_START = "Loss {loss:.3g}; at the start {run_first:.3g}."
BY_PRODUCT = "Backprop shrinks the gradient to {product:.1e}."
ALL_ZERO = "Every gradient is exactly 0; the loss stays at {loss:.3g}."
ALL_ZERO_IN = "Every gradient is exactly 0: all outputs of {layer} are 0."
ONLY_BIASES = "No weight gets a gradient, only biases do."
SILENT = "{layer}'s gradient is exactly 0: dead units before or after it."
SPOILT = "An update of {largest} spoilt the weights: start again at lr ÷10."
BOUNCES = "Every step jumps over the minimum: loss {loss:.3g}."
CUT_OFF = "Updates have cut off the gradient."
LOST_AGAIN = "Loss {loss:.3g}, best {best:.3g}; updates of {largest}."
RESTART = "Loss rose from {first:.3g} to {loss:.3g}: start again at lr ÷10."
DECAY_RULES = "Decay is {decay:.0%} of gradient; loss {loss:.3g}."
SATURATED_BY = "{share:.0%} of {layer}'s outputs are saturated by {why}."
CUT_WITHIN = "Scheduler cut the rate to {rate:.0e} in {within:.0f} steps: step() per batch?"
AT_GUESS_YET = "Loss that of a guess after {steps:,.0f} steps; some tasks start so."
LEVEL_YET = "Loss still {loss:.3g} after {steps:,.0f} steps; some tasks start so."
BY_SCHEDULE = "The schedule cut the rate to {rate:.2g}: change the schedule."
RISEN_AGAIN = "Loss rose from {before:.3g} to {loss:.3g}."
EXPLODES = "Gradient grows ×{product:.1e}: draw smaller weights or add norms."
NOT_HELPED = "{tried} has not helped; loss {loss:.3g}."
STUCK_AT_GUESS = "Loss stuck at {loss:.3g}, that of a guess: check labels and inputs."
STUCK_CHECK = "Loss stuck at {loss:.3g}; gradients arrive: check data, labels, masks."
STUCK_AT = "Loss stuck at {loss:.3g}."
SLOW = "Slow: a step moves the point by {step_size:.1g}, the gradient is {gradient:.2g}."
FLAT = "Flat at {loss:.3g}: a minimum or a saddle? Press 5 for the curvature."
UNKNOWN = "unknown"  # as evidence: no viewer has asked for the curvature
# If the ratio of first to last gradient is larger than this, the product says more: a layer with large inputs has a
# large weight gradient even if little was propagated back to it.
SMALL_RATIO = 1e-2


def words(finding: Finding) -> str:
    """The finding as one sentence."""
    name, evidence = finding.finding, finding.evidence
    template = next((rule.sentence for rule in RULES if rule.finding == name), "")
    ratio, product = evidence.get("first_to_last_grad"), evidence.get("product")
    if evidence.get("curvature") == UNKNOWN:
        template = FLAT
    elif name == "healthy" and _has_not_fallen(evidence):
        template = AS_AT_START
    elif name == "vanishing" and not (isinstance(ratio, float) and ratio < SMALL_RATIO):
        template = BY_PRODUCT
    elif name == "exploding" and not isinstance(product, float):
        template = STUCK_AT
    elif name == "exploding" and not finding.advice:
        template = EXPLODES
    elif name == "dead units" and evidence.get("all_zero"):
        template = ALL_ZERO if finding.layer is None else ALL_ZERO_IN
    elif name == "dead units" and evidence.get("only_biases"):
        template = ONLY_BIASES
    elif name == "dead units" and evidence.get("no_gradient"):
        template = SILENT
    elif name == "dead units" and "share" not in evidence:
        template = STUCK_AT
    elif name in ("diverging", "rate too large") and evidence.get("restart"):
        template = RESTART if name == "diverging" else SPOILT
    elif name == "rate too large" and "best" in evidence:
        template = LOST_AGAIN
    elif name == "rate too large" and "largest" not in evidence:
        template = CUT_OFF if isinstance(product, float) else BOUNCES
    elif name == "weights decaying" and "decay" in evidence:
        template = DECAY_RULES
    elif name == "saturated" and not finding.advice and "why" in evidence:
        template = SATURATED_BY
    elif name == "rate too small" and "within" in evidence:
        template = CUT_WITHIN
    elif name == "rate too small" and "rate" in evidence:
        template = BY_SCHEDULE
    elif name == "not clear" and "step_size" in evidence:
        template = SLOW
    elif name == "not clear" and "before" in evidence:
        template = RISEN_AGAIN
    elif name == "plateau" and not finding.advice and "steps" in evidence:
        template = AT_GUESS_YET if evidence.get("guess") else LEVEL_YET
    elif name == "plateau" and not finding.advice and evidence.get("guess"):
        template = STUCK_AT_GUESS
    elif name == "plateau" and not evidence.get("arrives"):
        template = STUCK_AT
    elif name == "plateau" and not finding.advice:
        template = STUCK_CHECK
    if "tried" in evidence:
        template = NOT_HELPED
    return filled(template, finding)


def _has_not_fallen(evidence: Mapping[str, float | str]) -> bool:
    """Whether the loss is about what it was at the run's start, as in fine-tuning of a net that knows its data."""
    loss, first = evidence.get("loss"), evidence.get("run_first")
    return isinstance(loss, float) and isinstance(first, float) and loss > r.NOT_FALLEN * abs(first)
