"""Remarks on metrics that are undefined, above 1, or far better on training rows than on held-out ones."""

from __future__ import annotations

from typing import Any

OVERFITTING = 0.1  # explained variance on training rows minus that on held-out rows, from which a warning is given


def remarks_on(metrics: dict[str, Any]) -> str:
    """All remarks on the metrics of a member after training; "" if there are none."""
    return "; ".join(filter(None, (remark_on_overfitting(metrics), remark_on_loss_recovered(metrics))))


def remark_on_overfitting(metrics: dict[str, Any]) -> str:
    """A warning about a member that explains far more variance of training rows than of held-out rows."""
    held_out, train = metrics.get("explained_variance"), metrics.get("explained_variance_train")
    if held_out is None or train is None or train - held_out < OVERFITTING:
        return ""
    return (
        f"explains {train:.3f} of the variance of training rows, but {held_out:.3f} of that of held-out rows: it has "
        "memorized its rows, so train on more of them, or use fewer --epochs or a smaller --hidden-dim"
    )


def remark_on_loss_recovered(metrics: dict[str, Any]) -> str:
    """Why CE or KL recovered is undefined, or why CE recovered is above 1; "" if neither is the case."""
    ce_recovered = metrics.get("ce_recovered", 0)
    if ce_recovered is None:
        return (
            "CE recovered is undefined: with this activation set to zero the model's cross-entropy is no worse "
            f"({metrics['ce_zero']:.4f}) than unchanged ({metrics['ce_clean']:.4f})"
        )
    if metrics.get("kl_recovered", 0) is None:
        return "KL recovered is undefined: with this activation set to zero the model predicts the same"
    if ce_recovered > 1:
        return (
            "CE recovered is above 1: with the reconstruction the model's cross-entropy is lower "
            f"({metrics['ce_sae']:.4f}) than unchanged ({metrics['ce_clean']:.4f})"
        )
    return ""
