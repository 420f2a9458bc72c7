"""Anybody's model, from outside: what every language model must hold to, whatever it is made of.

Each is handed an `Adapter`. Weights are redrawn for the while (`Adapter.awake`), since first weights hide errors;
bounds are rounding's (`Adapter.rounding`), since how somebody else's kernels cut a sum is not known.
"""

from __future__ import annotations

import torch

from groundup.verify.adapter import Adapter
from groundup.verify.check import Measurement, NotApplicable, also, check, violations
from groundup.verify.rig import largest

LENGTH = 24  # tokens in a row, at most what the smallest context holds


@also("causality", "model")
def causality(adapter: Adapter) -> Measurement:
    """Largest change of a logit before place t when only the tokens from t on change, t = 1, 7, 12, 23.

    Rounding alone (`Adapter.rounding`): a masked score has weight 0, but another batch may be summed in another order.
    Places whose own token changes nothing are counted as infinite: a model deaf to its input would pass.
    """
    with adapter.awake():
        tokens = adapter.tokens(3, LENGTH, seed=3)
        before, other, worst = adapter.ask(tokens), adapter.other(tokens), 0.0
        for cut in (1, 7, 12, 23):
            after = adapter.ask(torch.where(torch.arange(LENGTH) < cut, tokens, other))
            worst = max(worst, largest(after[:, :cut] - before[:, :cut]))
            if torch.equal(after[:, cut], before[:, cut]):
                return Measurement(float("inf"), 0.0, f"token {cut} changes nothing")
        return Measurement(worst, adapter.rounding(largest(before)))


@check(
    "rows-do-not-mix",
    "locality",
    "model",
    bug="What a row says depends on the other rows of its batch: a softmax, a norm or a reshape over the wrong axis.",
    remedy="Look for dim=0, batch norms, and view() where transpose() was meant.",
    looks_at="model",
)
def rows_do_not_mix(adapter: Adapter) -> Measurement:
    """Largest change of a row's logits when it is read alone, behind other rows, and in another order.

    The same numbers summed in another order: rounding (`Adapter.rounding`).
    """
    with adapter.awake():
        tokens = adapter.tokens(4, LENGTH, seed=5)
        together = adapter.ask(tokens)
        worst = max(largest(adapter.ask(tokens[r : r + 1])[0] - together[r]) for r in range(4))
        order = torch.tensor([2, 0, 3, 1])
        worst = max(worst, largest(adapter.ask(tokens[order]) - together[order]))
        return Measurement(worst, adapter.rounding(largest(together)))


@also("documents-isolated", "model")
def documents_isolated(adapter: Adapter) -> Measurement:
    """Largest change of a logit in documents B and C when only document A does (A, B, C packed in a row): rounding."""
    if adapter.documents is None:
        raise NotApplicable("the adapter has no `documents`: this model reads a row as one text")
    with adapter.awake():
        tokens = adapter.tokens(2, LENGTH, seed=6)
        documents = torch.tensor([0] * 8 + [1] * 9 + [2] * 7).expand(2, -1)
        changed = torch.where(documents == 0, adapter.other(tokens), tokens)
        with torch.no_grad():
            before = adapter.checked(adapter.documents(tokens, documents), tokens)
            after = adapter.checked(adapter.documents(changed, documents), tokens)
        if torch.equal(before[:, :8], after[:, :8]):
            return violations(["document A does not see itself"], 1)
        return Measurement(largest(after[:, 8:] - before[:, 8:]), adapter.rounding(largest(before)))
