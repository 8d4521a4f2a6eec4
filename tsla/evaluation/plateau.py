"""Which trivial rule a score is no better than: where training is known to stop for long, or for good."""

from collections.abc import Mapping

# A model on one of these has learnt that rule and no more; most published ListOps figures are on "root operator".
RULES = ("majority", "root operator", "root + digits", "root + digits + child operators")
NEAR = 0.02  # two standard errors of an accuracy on 2,000 rows


def plateau_of(score: float, references: Mapping[str, float]) -> str | None:
    """The name of the rule whose score, among `references`, this one is within `NEAR` of; None where it is of none.

    Only rules that a model can be stuck at count, not those that are merely strong, such as nearest neighbours.
    """
    near = {name: abs(score - references[name]) for name in RULES if name in references}
    name = min(near, key=lambda rule: near[rule], default=None)
    return name if name is not None and near[name] <= NEAR else None
