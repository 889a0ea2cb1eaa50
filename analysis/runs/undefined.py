"""Why a share of what zero-ablation costs has no value."""

from __future__ import annotations

from typing import Any


def why_undefined(metrics: dict[str, Any]) -> str:
    """Why CE recovered or KL recovered have no figure, where they were measured: both are shares of what zero costs."""
    if metrics.get("ce_recovered", 0) is None:
        return (
            "CE recovered has no meaning here: with this activation set to zero the model does no worse (cross-entropy "
            f"{metrics['ce_zero']:.4f}) than as it is ({metrics['ce_clean']:.4f})"
        )
    if metrics.get("kl_recovered", 0) is None:
        return "KL recovered has no meaning here: with this activation set to zero the model predicts the same"
    return ""
