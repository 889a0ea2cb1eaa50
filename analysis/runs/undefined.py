"""Why cross-entropy recovered and KL recovered are sometimes undefined."""

from __future__ import annotations

from typing import Any


def why_undefined(metrics: dict[str, Any]) -> str:
    """Why CE or KL recovered, which are shares of the cost of zero ablation, is undefined; "" if neither is."""
    if metrics.get("ce_recovered", 0) is None:
        return (
            "CE recovered is undefined: with this activation set to zero the model's cross-entropy is no worse "
            f"({metrics['ce_zero']:.4f}) than unchanged ({metrics['ce_clean']:.4f})"
        )
    if metrics.get("kl_recovered", 0) is None:
        return "KL recovered is undefined: with this activation set to zero the model predicts the same"
    return ""
