"""Snorkel's LabelModel on votes from a file, run by label_models.py with the Python of an environment that has Snorkel.

    python snorkel_worker.py VOTES.npz OUT.npz EPOCHS SEEDS

VOTES.npz holds `matrix` (int [rows, voters], -1 an abstain) and `balance` (float [labels]); OUT.npz gets `probs`
[seeds, rows, labels], SEEDS being a number.
"""

from __future__ import annotations

import sys
import warnings

import numpy as np
import torch

warnings.filterwarnings("ignore")
torch.set_num_threads(1)

from snorkel.labeling.model import LabelModel  # noqa: E402

if __name__ == "__main__":
    source, target, epochs, seeds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    given = np.load(source)
    balance = [float(p) for p in given["balance"]]
    probs = []
    for seed in range(seeds):
        model = LabelModel(cardinality=len(balance), verbose=False)
        model.fit(given["matrix"], n_epochs=epochs, seed=seed, class_balance=balance, progress_bar=False)
        probs.append(model.predict_proba(given["matrix"]))
    np.savez(target, probs=np.array(probs))
