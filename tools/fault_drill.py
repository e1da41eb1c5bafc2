"""Kill a training again and again, and prove that nothing came of it.

python tools/fault_drill.py --kills 20 --seed 0 --out runs/drill.jsonl
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recloom.data_shards.errors import UserError, print_error
from recloom.tools.fault_aim import AIMS, Shot, draw, ranks_below, unfinished, wait_for_shot
from recloom.tools.fault_twin import EPOCHS, RANKS, SAMPLES, Twin, make_twin

END_SECONDS = 600.0  # of a launch whose rank is gone
ODDS = "\n".join(f"  {name:<11} {aim.odds} of 100: {aim.meaning}" for name, aim in AIMS.items())
DESCRIPTION = f"""A small real training (DeepSpeed, {RANKS} gloo ranks on this machine's CPU,
launcher/train.py) is killed with SIGKILL: one rank, drawn, at a moment that is drawn as follows. Then the
same command is started again.
{ODDS}
When the training ends before all kills are done, it is compared and the next one begins.

Proved, against a training that nobody killed:
  after every kill   the steps in metrics.jsonl are 1, 2, ... without a gap or a repetition, each with the
                     same loss, gradient norm, tokens and samples; the launch did not end with code 0
  at every end       all steps are there, the samples add up to each one once an epoch, and the exported
                     weights are the same bytes
"""
EPILOG = """OUT gets a JSON line for each kill and each training that ended; the first difference ends the
drill with code 1. Beside it lies the folder of the trainings, OUT without its ending. Interrupted, the same
command goes on.
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--kills", type=int, default=20, metavar="N", help="kills in all (default: 20)")
    made.add_argument("--seed", type=int, default=0, metavar="S", help="of ranks and moments (default: 0)")
    made.add_argument("--out", type=Path, required=True, metavar="FILE", help="rows, as JSON lines")
    return made


class Drill:
    """The rows so far, and the trainings they tell of."""

    def __init__(self, out: Path, seed: int) -> None:
        self.out, self.seed, self.work = out, seed, out.with_suffix("")
        self.rows = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
        if any(row["seed"] != seed for row in self.rows):
            raise UserError(f"--seed {seed}: {out} is of another seed: take that one, or another --out.")
        self.reference = make_twin(self.work, "reference")

    def kills(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if "kill" in row]

    def ends(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if "round" in row and "kill" not in row]

    def write(self, row: dict[str, Any]) -> None:
        self.rows.append({"seed": self.seed, **row})
        with open(self.out, "a") as file:
            file.write(json.dumps(self.rows[-1]) + "\n")

    def run(self, kills: int) -> None:
        """Go on until so many kills are done and the last training has ended."""
        if not self.reference.is_done():
            finish(self.reference)
            fault = fault_of_end(self.reference, self.reference)
            self.expect(fault is None, f"the training that nobody killed: {fault}")
        with tqdm(total=kills, initial=len(self.kills()), unit="kill", disable=None) as bar:
            while len(self.kills()) < kills:
                self.one_start(draw(self.seed, len(self.kills()), missed(self.rows)))
                bar.update(len(self.kills()) - bar.n)
        if any(row["round"] == len(self.ends()) for row in self.kills()):
            finish(self.twin())
            self.end_round()

    def twin(self) -> Twin:
        return make_twin(self.work, f"round_{len(self.ends())}")

    def one_start(self, shot: Shot) -> None:
        """One start of the command, which ends by the shot, or before."""
        twin = self.twin()
        before, began = len(twin.steps()), time.monotonic()
        process = twin.start()
        try:
            victim = wait_for_shot(process, twin, shot)
            if victim is not None:
                victim.kill()
                fired = time.monotonic() - began
                wait_until_gone(process)
        finally:
            stop(process)
        if twin.is_done():
            self.end_round()
        elif victim is not None:
            self.after_kill(twin, shot, before, fired, process.returncode)
        else:
            raise UserError(f"{twin.log}: the start ended by itself before it was done: the reason is there.")

    def after_kill(self, twin: Twin, shot: Shot, before: int, fired: float, code: int) -> None:
        rows, wanted = twin.rows(), self.reference.rows()
        self.expect(code != 0, f"kill {shot.number}: the launch ended with code 0")
        self.expect(rows == wanted[: len(rows)], f"kill {shot.number}: {twin.tuned}/metrics.jsonl differs")
        told = asdict(shot)
        number, delay = told.pop("number"), told.pop("delay")
        found = {
            "steps_before": before,
            "steps": len(twin.steps()),
            "torn": sorted(unfinished(twin.checkpoints)),
        }
        times = {"delay": round(delay, 3), "seconds": round(fired, 2)}
        self.write({"kill": number, "round": len(self.ends()), **told, **times, **found})

    def end_round(self) -> None:
        twin, number = self.twin(), len(self.ends())
        fault = fault_of_end(twin, self.reference)
        self.expect(fault is None, f"round {number}: {fault}")
        steps = twin.steps()
        kills = sum(row["round"] == number for row in self.kills())
        told = {"kills": kills, "steps": len(steps), "samples": sum(row["samples"] for row in steps)}
        self.write({"round": number, **told, "equal": True})
        shutil.rmtree(twin.folder)

    def expect(self, is_so: bool, otherwise: str) -> None:
        if not is_so:
            raise UserError(f"{otherwise}: {self.work} is left as it is.")

    def summary(self) -> str:
        kills, ends = self.kills(), self.ends()
        aims = Counter(row["aim"] for row in kills)
        torn = sum(bool(row["torn"]) for row in kills if row["aim"] == "checkpoint")
        told = ", ".join(f"{count} at '{aim}'" for aim, count in aims.most_common())
        steps, samples = (sum(row[name] for row in ends) for name in ("steps", "samples"))
        return (
            f"{len(kills)} kills ({told}; {torn} left a torn checkpoint), {len(ends)} trainings ended, "
            f"{steps} steps and {samples} samples in them: all as in the training that nobody killed."
        )


def missed(rows: list[dict[str, Any]]) -> int:
    """Trainings that ended since the last kill: what was aimed at them came too late."""
    return sum(1 for _ in itertools.takewhile(lambda row: "kill" not in row, reversed(rows)))


def finish(twin: Twin) -> None:
    """Start the command and let it end. Raises UserError when it does not reach the end."""
    process = twin.start()
    try:
        process.wait()
    finally:
        stop(process)
    if not twin.is_done():
        raise UserError(f"{twin.log}: the training did not end well: the reason is there.")


def fault_of_end(twin: Twin, reference: Twin) -> str | None:
    """What is not as it should be of a training that ended."""
    steps = twin.steps()
    if [row["step"] for row in steps] != list(range(1, len(steps) + 1)):
        return f"{twin.tuned}/metrics.jsonl: a step is missing, or there twice"
    if sum(row["samples"] for row in steps) != EPOCHS * SAMPLES:
        return f"{twin.tuned}/metrics.jsonl: the samples are not each one once an epoch"
    if twin.rows() != reference.rows():
        return f"{twin.tuned}/metrics.jsonl differs from {reference.tuned}/metrics.jsonl"
    if twin.model_digest() != reference.model_digest():
        return f"{twin.tuned}/model differs from {reference.tuned}/model"
    return None


def wait_until_gone(process: subprocess.Popen[bytes]) -> None:
    """The launch must end by itself when a rank is gone. Raises UserError when it does not."""
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        raise UserError(f"a rank was killed, and {END_SECONDS:.0f} s later the launch goes on.") from None


def stop(process: subprocess.Popen[bytes]) -> None:
    """Nothing of a launch is left behind, whatever happened here."""
    ranks = ranks_below(process)
    if process.poll() is None:
        os.killpg(process.pid, 9)
    process.wait()
    for rank in ranks.values():
        if rank.is_running():
            rank.kill()


def main() -> int:
    arguments = parser().parse_args()
    try:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        drill = Drill(arguments.out, arguments.seed)
        drill.run(arguments.kills)
    except UserError as error:
        print_error(error)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command goes on")
        return 130
    print(drill.summary())
    return 0


if __name__ == "__main__":
    sys.exit(main())
