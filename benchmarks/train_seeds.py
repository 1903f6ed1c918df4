"""Train one configuration with several seeds and write every run, with its certificate, to a JSON file.

    python benchmarks/train_seeds.py mnist --data-root DIR --seeds 5 --out benchmarks/results/mnist.json
    python benchmarks/train_seeds.py mnist --data-root DIR --seeds 3 --set normalize=inf --out ...

Accuracy is that of the last epoch; nothing is selected on the test part.
"""

import argparse
import json
import platform
import tempfile
from dataclasses import fields
from pathlib import Path
from statistics import mean, stdev

import torch

import subdeq_plugin as sd
from subdeq_plugin.data import load
from subdeq_plugin.training import TrainConfig, guaranteed_error, train


def parse_setting(text: str) -> tuple[str, object]:
    name, _, value = text.partition("=")
    kinds = {entry.name: str(entry.type) for entry in fields(TrainConfig)}
    if kinds.get(name) == "int":
        return name, int(value)
    if kinds.get(name) == "float":
        return name, float(value)
    return name, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    data = load(args.dataset, args.data_root)
    settings = dict(parse_setting(text) for text in args.settings)
    runs = []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            result = train(TrainConfig.for_dataset(args.dataset, seed=seed, **settings), data, Path(folder))
        run = result.to_dict()
        run.pop("checkpoint"), run.pop("history")
        if result.certificate.unique:
            run["largest_guaranteed_error"] = float(guaranteed_error(result.model, data.test_x).max())
        runs.append(run)
        print(
            f"seed {seed}: test error {100 * (1 - run['test_accuracy']):.2f} %, {run['seconds_per_epoch']:.2f} s/epoch"
        )
    errors = [100 * (1 - run["test_accuracy"]) for run in runs]
    summary = {
        "mean_test_error_percent": round(mean(errors), 3),
        "stdev_test_error_percent": round(stdev(errors), 3) if len(errors) > 1 else None,
        "proven_unique": all(run["certificate"]["unique"] for run in runs),
        "torch": torch.__version__,
        "subdeq_plugin": sd.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "runs": runs,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(summary, indent=1) + "\n")
    print({key: value for key, value in summary.items() if key != "runs"})


if __name__ == "__main__":
    main()
