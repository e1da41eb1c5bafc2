"""What a callback may do; each hook runs on every rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recloom.trainer.loop import Loop, StepRecord


class Callback:
    """Hooks around the loop. `close` always runs, also after an error."""

    def on_start(self, loop: Loop) -> None:
        """Before the first step of this process; `loop.step` is 0 or where training resumes."""

    def on_epoch(self, loop: Loop) -> None:
        """Before the first step of an epoch, or before the next one where training resumes."""

    def on_epoch_end(self, loop: Loop) -> None:
        """After the last step of an epoch; `loop.closed` counts it already."""

    def on_step(self, loop: Loop, record: StepRecord) -> None:
        """After an optimizer step."""

    def on_end(self, loop: Loop) -> None:
        """After the last step."""

    def close(self) -> None:
        """Let go of files."""
