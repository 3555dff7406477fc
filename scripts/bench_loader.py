"""Images a second that the loader makes, beside a PyTorch DataLoader: `python scripts/bench_loader.py --data=DIR [--from=records|folder]`.

DIR holds CamVid (train.txt with "image label" lines, 480x360). Both sides decode, scale by 0.5 to 1.5, crop to 256x384, flip and batch by
8, in turn, each pinned to the same one core (with --workers=N: N processes a side on all cores). `records` first writes ArrayRecord files
to a temporary folder. Ratios are medians over the rounds, of wall-clock time and of processor time (which other jobs disturb less).
--elements=20000 then reads on and prints the resident memory. Writes one JSON object.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version

from peers.turns import measure

from segjax.data import record_builder
from segjax.data.folders import FolderDataset
from segjax.data.pipeline import training_batches
from segjax.data.records import RecordDataset

ROOT = pathlib.Path(__file__).resolve().parent
CROP, SCALE, BATCH = (256, 384), (0.5, 1.5), 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--from", dest="form", choices=("records", "folder"), default="records")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, default=25, help="a round")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--elements", type=int, default=0, help="then read so many and print the memory")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "results" / "loader-cpu.jsonl")
    args = parser.parse_args()
    if not args.workers and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # the other process inherits it
    with tempfile.TemporaryDirectory() as scratch:
        dataset = open_dataset(args, pathlib.Path(scratch))
        with open_peer(args) as peer:
            ours = open_ours(dataset, args.workers)
            rounds = {"segjax": [], "torch": []}
            for turn in range(args.rounds + 1):
                mine = measure(ours, args.batches, args.workers, lambda batch: len(batch["source_image"]))
                found = {"segjax": mine, "torch": ask(peer, args.batches)}
                for name, result in found.items():
                    if turn:  # the first round warms both up
                        rounds[name].append(result)
            ours.close()
            peer.stdin.close()
        row = summary(args, rounds)
        if args.elements:
            row["resident_mb"] = memory(dataset, args)
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(row) + "\n")
    print(f"wrote {args.out}")


def open_dataset(args, scratch: pathlib.Path):
    raw = FolderDataset(file_list=str(args.data / "train.txt"), label_space="camvid11")
    if args.form == "folder":
        return raw
    record_builder.build({"train": raw}, scratch / "records")
    return RecordDataset(str(scratch / "records"), split="train")


def open_ours(dataset, workers: int):
    return training_batches(dataset, batch_size=BATCH, crop=CROP, scale=SCALE, seed=0, steps=10**9, workers=workers)


def open_peer(args) -> subprocess.Popen:
    numbers = [str(number) for number in (*CROP, *SCALE, BATCH, args.workers)]
    command = [sys.executable, str(ROOT / "peers" / "loader_torch.py"), str(args.data / "train.txt"), *numbers]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(peer: subprocess.Popen, count: int) -> dict:
    peer.stdin.write(f"{count}\n")
    peer.stdin.flush()
    return json.loads(peer.stdout.readline())


def summary(args, rounds: dict) -> dict:
    """Medians of images a second, and the median over rounds of the ratio of the two measurements beside each other."""
    row = {"case": f"CamVid 480x360 from {args.form}, scale {SCALE}, crop {CROP}, flip, batch {BATCH}, workers {args.workers}"}
    for clock in ("wall", "cpu"):
        rates = {name: [result["images"] / result[f"{clock}_s"] for result in results] for name, results in rounds.items()}
        ratios = [ours / theirs for ours, theirs in zip(rates["segjax"], rates["torch"], strict=True)]
        row |= {f"images_per_{clock}_s": {name: round(statistics.median(values), 1) for name, values in rates.items()}}
        row |= {f"times_torch_{clock}": round(statistics.median(ratios), 3)}
        ours, theirs = row[f"images_per_{clock}_s"].values()
        ratio, low, high = row[f"times_torch_{clock}"], min(ratios), max(ratios)
        print(f"{clock}: segjax {ours:.0f} images/s, torch {theirs:.0f} images/s: {ratio:.2f}x torch ({low:.2f} to {high:.2f})")
    packages = {name: version(name) for name in ("torch", "grain", "pillow", "numpy")}
    return row | {"rounds": args.rounds, **packages, "python": platform.python_version(), "cores": os.cpu_count()}


def memory(dataset, args) -> list[float]:
    """Resident memory in MB at ten places of a run over `elements` elements."""
    batches, found, steps = open_ours(dataset, args.workers), [], args.elements // BATCH
    for step in range(1, steps + 1):
        next(batches)
        if step % max(steps // 10, 1) == 0:
            resident = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
            found.append(round(resident, 1))
            print(f"{step * BATCH} elements: {resident:.1f} MB resident", flush=True)
    batches.close()
    return found


if __name__ == "__main__":
    main()
