"""What a verification or a training would lack on this machine, said before it is started. torch is not imported."""

from __future__ import annotations

from qlora_planner.errors import MissingError
from qlora_planner.installing import install_packages
from qlora_planner.record import record
from qlora_planner.spec.run import RunConfig


@record
class Readiness:
    """`packages` are missing; `card` is the label of the card here, None where there is none, which `no_card` tells."""

    packages: tuple[str, ...]
    card: str | None
    no_card: str

    @classmethod
    def of(cls, run: RunConfig) -> Readiness:
        """Look at packages and driver."""
        from qlora_planner.measure.nvml import local_gpu
        from qlora_planner.session import missing_for

        packages = tuple(missing_for(run))
        try:
            return cls(packages=packages, card=local_gpu().spec.label, no_card="")
        except MissingError as error:
            return cls(packages=packages, card=None, no_card=str(error))

    def lacks(self, device: str) -> str | None:
        """One line of what is missing to run on `device`, and how to get it; None: nothing."""
        if self.packages:
            return f"missing here: {', '.join(self.packages)}; {install_packages(self.packages)}"
        if device == "cuda" and self.card is None:
            return f"no card to run on: {self.no_card}"
        return None
