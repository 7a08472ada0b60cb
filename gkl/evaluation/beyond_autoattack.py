"""The attacks that run after AutoAttack: the repair attack, and examples that were found for other networks."""

from __future__ import annotations

import torch
from torch import Tensor

from gkl.attacks import repair
from gkl.attacks.autoattack import Attack
from gkl.attacks.classifier import Classifier
from gkl.device import is_out_of_memory
from gkl.errors import InvalidInput
from gkl.evaluation.blocks import Block
from gkl.evaluation.run import Run


def repaired(run: Run, x: Tensor, y: Tensor) -> Tensor:
    """Perturb images (B, *) by the repair attack, and attack longer if the first attempt breaks suspiciously many.

    Raises:
        InvalidInput: there is no copy in float64, it raises an error, or it does not fit into the device's memory.
    """
    precise = run.copies.precise
    if precise is None:
        raise InvalidInput(run.copies.reason)
    generator = torch.Generator().manual_seed(run.evaluation.seed)
    found = _repaired_in_parts(run, precise, x, y, generator, longer=False)
    standing = (run.classifier.predict(found) == y).nonzero().squeeze(1)
    if len(standing) and repair.is_suspicious(len(x) - len(standing), len(x)):
        found[standing] = _repaired_in_parts(run, precise, x[standing], y[standing], generator, longer=True)
    return found


def _repaired_in_parts(
    run: Run, precise: Classifier, x: Tensor, y: Tensor, generator: torch.Generator, *, longer: bool
) -> Tensor:
    threat_model, before = run.evaluation.threat_model, precise.largest
    assert threat_model is not None
    at_once = min(run.most_repaired_at_once or len(x), run.classifier.largest or len(x), len(x))
    # Images are split here and not by the copy: the attack finds constant units in the images of one call.
    precise.largest = None
    try:
        while True:
            try:
                parts = zip(x.split(at_once), y.split(at_once), strict=True)
                found = [
                    repair.perturb(run.classifier, precise, *part, threat_model, generator=generator, longer=longer)
                    for part in parts
                ]
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise InvalidInput(f"the mended network raised {type(error).__name__}: {error}") from error
            else:
                return torch.cat(found)
            if at_once == 1:
                raise InvalidInput("the device has too little memory for one image in float64")
            at_once = run.most_repaired_at_once = at_once // 2
            if run.device.type == "cuda":
                torch.cuda.empty_cache()
    finally:
        precise.largest = before


def transferred(run: Run, index: Tensor, earlier: Block | None, x: Tensor, y: Tensor) -> Tensor:
    """Replace images (B, *) by other networks' examples that fool this one, and by those that `earlier` has found."""
    assert run.evaluation.threat_model is not None
    found = run.others.perturb(run.classifier, x, y, index, run.evaluation.threat_model)
    if earlier is not None:
        known = earlier.tensors["index"]
        rows = torch.isin(index, known)
        found[rows] = earlier.tensors["adversarial"][torch.searchsorted(known, index[rows])].to(found)
    return found


def not_run(run: Run, attack: Attack, number: int, reason: str) -> Block:
    """The part of an attack after the protocol's own that could not run: no points, and the reason."""
    nothing = run.points_of(number)[0][:0].cpu()
    none = torch.empty(0, dtype=torch.int64)
    record = run.record(attack.title, number, 0.0)
    record |= {"points": 0, "broken": 0, "discarded": 0, "drift": None, "not_run": reason}
    return Block(
        {"index": none, "adversarial": nothing, "prediction": none, "norm": torch.empty(0, dtype=torch.float64)},
        record,
    )
