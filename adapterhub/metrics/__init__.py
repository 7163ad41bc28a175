"""How good answers are, and whether one system's are better than another's."""

from __future__ import annotations

from .paired import Difference, McNemar, differences, is_right, mcnemar
from .scores import (
    Metric,
    accuracy,
    auroc,
    by_field,
    calibration_error,
    evaluate,
    exact_match,
    field_f1,
    macro_f1,
    multilabel_f1,
    rank_correlation,
    ranks,
    rejection_recall,
    retrieval,
    share,
)

__all__ = [
    "Difference",
    "McNemar",
    "Metric",
    "accuracy",
    "auroc",
    "by_field",
    "calibration_error",
    "differences",
    "evaluate",
    "exact_match",
    "field_f1",
    "is_right",
    "macro_f1",
    "mcnemar",
    "multilabel_f1",
    "rank_correlation",
    "ranks",
    "rejection_recall",
    "retrieval",
    "share",
]
