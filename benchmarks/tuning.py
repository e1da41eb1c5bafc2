"""Tokens a second of full-parameter tuning: RecLoom against Hugging Face's Trainer on the same engine.

    python benchmarks/tuning.py                          SmolLM2-135M on two CPU ranks, ML-100K's instructions
    python benchmarks/tuning.py --compile                also RecLoom with `model.compile: true`
    python benchmarks/tuning.py --model DIR              another model, on the GPUs that are there

All sides train on the same instructions (Llama4Rec's, token by token the same) with the same model, DeepSpeed
ZeRO-3 and number of ranks: the Trainer as its documentation has it (batches padded to their longest sample),
the same with samples laid end to end, and RecLoom. They take turns, each in processes of its own.
The first steps of each are not counted; the last one tells where the time goes. Steps have about as many
tokens on all sides: 8 samples, or 2 rows of 1,024. Tokens are real ones: padding counts
nothing. Before training, each side's loss of the same samples must agree. The ratios come last, and a row a
peer goes to tuning.csv.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from csv_rows import append, command_line, machine

from recloom.data_shards.artifacts import cache_dir
from recloom.launcher.ranks import deepspeed_command, rank_environment
from recloom.trainer.models import resolve_model

HERE = Path(__file__).resolve().parent
ROWS = HERE / "tuning.csv"
CONFIG = HERE.parent / "configs" / "llama4rec_quickstart.yaml"
OURS = {"RecLoom": False, "RecLoom, compiled": True}  # the latter where asked for
PEERS = {"Trainer": False, "Trainer, packed": True}
TOLERANCE = {"bfloat16": 0.02, "float32": 1e-4}  # of a sample's mean loss, as a share of it where above 1


@dataclass(frozen=True)
class Side:
    """What a side measured, all turns together.

    rates: real tokens a second, one a step. padding: share of all positions. parts: a step's seconds, a turn.
    """

    rates: list[float]
    example_losses: list[float]
    gib_a_rank: float
    padding: float
    parts: list[dict[str, float]]

    @property
    def median(self) -> float:
        return statistics.median(self.rates)

    @property
    def where(self) -> str:
        """Where the time of a step goes, in shares."""
        seconds = {part: sum(turn[part] for turn in self.parts) for part in self.parts[0]}
        whole = sum(seconds.values())
        return " ".join(f"{part}:{taken / whole:.0%}" for part, taken in seconds.items())


def make_corpus(folder: Path, model: str) -> Path:
    """Llama4Rec's instructions of ML-100K, written once; the conventional models may be poor here."""
    corpus = folder / "instructions" / "llama4rec" / "train"
    command = [sys.executable, "-m", "recloom.launcher.cli", "run", str(CONFIG), "--until", "instructions"]
    command += ["--run_dir", str(folder), "--model.path", model]
    command += [word for task in ("direct", "sequential") for word in (f"--backbones.{task}.max_epochs", "1")]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return corpus


def work_of(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What sides are asked to do, but whether they pack or compile."""
    return {
        "model": resolve_model(options.model, cache_dir()),
        "corpus": str(options.corpus or make_corpus(folder / "run", options.model)),
        "steps": options.steps,
        "rows": options.rows,
        "pack_length": options.pack_length,
        "samples": options.samples,
        "checked": 4,
        "dtype": options.dtype,
        "liger": options.liger,
    }


def measure(script: str, ranks: int, work: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One turn of one side, in ranks of its own."""
    out = folder / "measured.json"
    out.unlink(missing_ok=True)
    command = deepspeed_command(ranks, [])[:-1] + [str(HERE / "tuning_sides" / script)]
    command.append(json.dumps({**work, "out": str(out)}))
    log = folder / "log.txt"
    with log.open("w") as stream:
        subprocess.run(command, env=rank_environment(ranks), stdout=stream, stderr=subprocess.STDOUT)
    if not out.is_file():
        sys.exit(f"{script} did not finish:\n{log.read_text()[-3000:]}")
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def merged(turns: list[dict[str, Any]]) -> Side:
    rates = [n / s for turn in turns for n, s in zip(turn["tokens"], turn["seconds"], strict=True)]
    gib, padding = (max(turn[name] for turn in turns) for name in ("gib_a_rank", "padding"))
    return Side(rates, turns[0]["example_losses"], gib, padding, [turn["parts"] for turn in turns])


def pairs_of(sides: dict[str, Side]) -> list[tuple[str, str]]:
    """Each of ours with each peer."""
    return [(ours, peer) for ours, peer in product(OURS, PEERS) if ours in sides]


def check_losses(sides: dict[str, Side], tolerance: float) -> float:
    """The largest difference of a sample's loss between ours and a peer's, as a share of losses above 1.

    Above tolerance all ends.
    """
    pairs = [(sides[ours].example_losses, sides[peer].example_losses) for ours, peer in pairs_of(sides)]
    worst = max(abs(a - b) / max(1, b) for ours, peer in pairs for a, b in zip(ours, peer, strict=True))
    if worst > tolerance:
        sys.exit(f"The sides do not compute the same: losses of a sample differ by {worst:.2%}.")
    return worst


def rows_of(
    sides: dict[str, Side], options: argparse.Namespace, ranks: int, worst: float
) -> list[dict[str, Any]]:
    return [
        {
            "date": datetime.date.today().isoformat(),
            "model": options.model,
            "ours": ours,
            "peer": peer,
            "dtype": options.dtype,
            "ranks": ranks,
            "ours_tokens_s": round(sides[ours].median, 1),
            "peer_tokens_s": round(sides[peer].median, 1),
            "ratio": round(sides[ours].median / sides[peer].median, 2),
            "steps": len(sides[ours].rates),
            "step_samples": options.samples,
            "pack_length": options.pack_length,
            "ours_gib_a_rank": round(sides[ours].gib_a_rank, 2),
            "peer_gib_a_rank": round(sides[peer].gib_a_rank, 2),
            "peer_padding": round(sides[peer].padding, 3),
            "ours_time": sides[ours].where,
            "peer_time": sides[peer].where,
            "loss_difference": f"{worst:.1e}",
            "machine": machine(),
            "torch": torch.__version__,
            "command": command_line(),
        }
        for ours, peer in pairs_of(sides)
    ]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    made.add_argument("--model", default="smollm2-135m-instruct", help="a name, or a Hugging Face folder")
    made.add_argument("--dtype", default="bfloat16", choices=sorted(TOLERANCE))
    made.add_argument("--ranks", type=int, default=2, help="on a machine without a GPU")
    made.add_argument("--steps", type=int, default=2, help="counted steps a turn")
    made.add_argument("--turns", type=int, default=2, help="turns of each side")
    made.add_argument("--rows", type=int, default=2, help="packed rows a step of ours, all ranks")
    made.add_argument("--pack-length", type=int, default=1024, help="tokens of a packed row")
    made.add_argument("--samples", type=int, default=8, help="samples a step of the peers, all ranks")
    made.add_argument("--compile", action="store_true", help="also ours with compiled regions")
    made.add_argument("--liger", action="store_true", help="all sides with Liger's kernels (GPU)")
    made.add_argument("--corpus", type=Path, help="a folder of shards; made from ML-100K when left out")
    made.add_argument("--no-row", action="store_true", help="print only")
    return made


def main() -> None:
    options = parser().parse_args()
    ranks = torch.cuda.device_count() or options.ranks
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = work_of(options, folder)
        ours = [side for side, is_compiled in OURS.items() if options.compile or not is_compiled]
        turns: dict[str, list[dict[str, Any]]] = {side: [] for side in (*ours, *PEERS)}
        for turn in range(options.turns):
            for side, found in turns.items():
                script = "ours.py" if side in OURS else "hf_trainer.py"
                how: dict[str, Any] = {"packed": PEERS.get(side, True), "compile": OURS.get(side, False)}
                how |= {"checked": 0} if turn else {}  # once is enough
                found.append(measure(script, ranks, {**work, **how}, folder))
                rate = merged(found[-1:]).median
                print(f"turn {turn + 1}, {side}: {rate:,.0f} tokens/s", file=sys.stderr, flush=True)
    sides = {side: merged(found) for side, found in turns.items()}
    worst = check_losses(sides, TOLERANCE[options.dtype])
    rows = rows_of(sides, options, ranks, worst)
    if not options.no_row:
        append(ROWS, rows)
    for name, measured in sides.items():
        print(f"{name}: {measured.where}, {measured.padding:.0%} padding")
    print(f"losses of {work['checked']} samples agree within {worst:.2%}")
    for row in rows:
        print(
            f"{row['ours']} {row['ours_tokens_s']:,.0f}, {row['peer']} {row['peer_tokens_s']:,.0f} "
            f"real tokens/s: ratio {row['ratio']}"
        )


if __name__ == "__main__":
    main()
