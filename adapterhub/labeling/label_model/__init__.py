"""Label models: from what several voters say of a row to the probability of each label."""

from __future__ import annotations

from .fit import MODELS, LabelFit, accuracy_intervals, fit_votes
from .multilabel import MultilabelFit, fit_multilabel, split_votes

__all__ = ["MODELS", "LabelFit", "MultilabelFit", "accuracy_intervals", "fit_multilabel", "fit_votes", "split_votes"]
