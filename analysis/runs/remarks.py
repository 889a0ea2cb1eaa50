"""What to say beside cross-entropy recovered and KL recovered when they are undefined or above 1."""

from __future__ import annotations

from typing import Any


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
