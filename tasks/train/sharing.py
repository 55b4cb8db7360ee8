"""What workers may share out of one optimizer's state."""

from __future__ import annotations

from optim.slices import check_slices
from optim.spec import OptimSpec
from tasks.train.regularise import needs_teacher
from tasks.train.regularise_spec import RegulariseSpec
from tasks.train.spec import TrainSpec


def check_sharing(optim: OptimSpec, train: TrainSpec, regularise: RegulariseSpec) -> None:
    """Refuse an optimizer that needs whole weights where DeepSpeed hands out slices of them.

    Raises:
        ValueError: naming the key, the reason and what works.
    """
    if train.backend == "torch" and train.workers > 1 and train.zero_stage > 0:
        check_slices(optim)
        if needs_teacher(regularise):
            raise ValueError(
                "regularise.consistency.kind=mean_teacher needs the whole average of the weights "
                "on every worker, and train.zero_stage >= 1 shares it out. Try "
                "train.zero_stage=0 or train.backend=flax."
            )
