"""Fits the diagnosis' second opinion to nets of the tuning pool, on which the oracle tries everything out.

    python tests/diagnosis_fit.py 100000 101200 --kept /tmp/tried --jobs 2

Six seconds a net on one core; what was tried is kept in a folder, so that it can be stopped and go on. Needs
scikit-learn (the extra `fit`). The nets the diagnosis is judged by are of the other pool: other depths, widths, rates.
"""

from __future__ import annotations

import argparse
import functools
import lzma
import multiprocessing
import os
import pickle
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from diagnosis_nets import Observed, draw
from diagnosis_oracle import STANDS, Oracle, Tried, Verdict, settled
from diagnosis_score import diagnosis_of, feed

from tui_descent.telemetry.diagnosis import forest as shipped
from tui_descent.telemetry.diagnosis.forest import Forest, numbers

NAMES = ("vanishing", "exploding", "diverging", "dead units", "saturated", "plateau", "rate too small", "healthy")
# As the oracle calls them; `/10` is good whether it is turned now or after an undo.
CURES = (
    "lr*10", "lr*100", "lr*1000", "lr/10", "residual", "init he", "init xavier", "norm pre", "norm mid", "leaky_relu",
    "unbounded", "adam mapped",
)  # fmt: skip
Sample = tuple[dict[str, float], list[bool]]
# A run is asked at any time, and read now more, now less often: steps, steps a reading.
LOOKS = ((190, 10), (210, 20), (225, 5), (STANDS, 5))
TREES, LEAF, FEATURES = 60, 6, 0.8
TOLERANCE = 0.02  # of a share, by which what was written may differ from what was fitted


def tried(seed: int, folder: Path) -> dict[str, Any]:
    """A net's losses and readings, and what the oracle found; from the folder, if it is there."""
    path = folder / f"{seed}.pkl"
    if not path.exists():
        scenario = draw(seed)
        seen = Observed(scenario).run(STANDS, every=5)
        found = Oracle(scenario).tried()
        aside = path.with_suffix(f".{os.getpid()}")
        aside.write_bytes(pickle.dumps({"seen": seen, "broke": found.broke, "rose": found.rose, "gains": found.gains}))
        aside.replace(path)
    kept: dict[str, Any] = pickle.loads(path.read_bytes())
    return kept


def samples(folder: Path, seed: int) -> list[Sample]:
    """What the trees look at, a few times in a run, and what is right of the net. None of one that nothing trains."""
    scenario, kept = draw(seed), tried(seed, folder)
    seen = kept["seen"]
    found = Tried(broke=kept["broke"], rose=kept["rose"], gains=kept["gains"])
    verdict = settled(found.verdicts(scenario))
    if not verdict.findings:
        return []
    made = []
    for stand, every in LOOKS:
        diagnosis = diagnosis_of(scenario, seen)
        feed(diagnosis, seen, range(min(stand, len(seen.losses))), every=every)
        signs = diagnosis.signs()
        if signs is not None and len(seen.losses) >= stand:
            made.append((numbers(signs, diagnosis.situation), right(verdict)))
    return made


def right(verdict: Verdict) -> list[bool]:
    cures = verdict.cures | ({"lr/10"} if "undo lr/10" in verdict.cures else set())
    return [*(name in verdict.findings for name in NAMES), *(cure in cures for cure in CURES)]


def fitted(found: Sequence[Sample], nets: tuple[int, int]) -> Forest:
    """Raises `AssertionError` where what is written would vote otherwise than what was fitted."""
    from sklearn.ensemble import ExtraTreesClassifier

    x, y = [list(seen.values()) for seen, _ in found], [told for _, told in found]
    model = ExtraTreesClassifier(TREES, min_samples_leaf=LEAF, max_features=FEATURES, random_state=0)
    model.fit(x, y)
    made = Forest(
        nets=nets,
        features=tuple(found[0][0]),
        names=NAMES,
        cures=CURES,
        trees=tuple(_node(tree.tree_, 0) for tree in model.estimators_),
    )
    for n in random.Random(0).sample(range(len(x)), 50):
        told = [float(p[0, 1]) if p.shape[1] > 1 else 0.0 for p in model.predict_proba([x[n]])]
        assert max(abs(a - b) for a, b in zip(made.shares(x[n]), told, strict=True)) < TOLERANCE
    return made


def _node(tree: Any, n: int) -> Any:
    if tree.children_left[n] < 0:
        shares = {output: round(100 * value[-1] / sum(value)) for output, value in enumerate(tree.value[n])}
        return {str(output): share for output, share in shares.items() if share}
    branches = (_node(tree, tree.children_left[n]), _node(tree, tree.children_right[n]))
    return [int(tree.feature[n]), float(f"{tree.threshold[n]:.9g}"), *branches]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("end", type=int)
    parser.add_argument("--kept", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.kept.mkdir(exist_ok=True, parents=True)
    seeds = range(given.first, given.end)
    with multiprocessing.Pool(given.jobs) as pool:
        found: list[Sample] = []
        for n, made in enumerate(pool.imap(functools.partial(samples, given.kept), seeds), 1):
            found += made
            if n % 50 == 0:
                print(f"{n} of {len(seeds)} nets", flush=True)
    forest = fitted(found, (given.first, given.end))
    path = Path(shipped.__file__).with_name(shipped.FILE)
    path.write_bytes(lzma.compress(msgspec.json.encode(forest), preset=9))
    print(f"{len(found)} samples; {path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
