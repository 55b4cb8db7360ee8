"""How fast a run is: model FLOPs utilisation, the peak it is a share of, and the time left."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Peak:
    """What a run could do at most.

    Attributes:
        flops_per_s: of all workers' devices together.
        flops_per_token: that the model needs, ``6 N + 12 L H Q T``; what an implementation computes
            twice counts once (`models.weights.flops_per_token`).
    """

    flops_per_s: float
    flops_per_token: int

    def utilisation(self, tokens_per_s: float) -> float:
        """Model FLOPs utilisation, MFU: observed throughput over the throughput at the peak.

        Args:
            tokens_per_s: positions that all workers train on in a second.

        Source: Chowdhery et al. 2022 (PaLM, arXiv:2204.02311), appendix B. Its figure for 540
        billion weights on 6,144 chips:

        >>> flops = 6 * 540_350_000_000 + 12 * 118 * 48 * 256 * 2048
        >>> round(Peak(6144 * 275e12, flops).utilisation(238.3e3), 3)
        0.462
        """
        return tokens_per_s * self.flops_per_token / self.flops_per_s


def spelled(seconds: float) -> str:
    """A length of time for people.

    >>> spelled(42.4), spelled(754), spelled(9000)
    ('42 s', '13 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
