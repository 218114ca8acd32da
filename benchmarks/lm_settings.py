"""Chooses the settings of the demo for `demo-lm`: the fewest bits, in frames of one token, that keep a divergence on training text.

    python benchmarks/lm_settings.py            # some minutes on one core

By `serverlight.calibrate`, which splits as it is told to: a head that gives out one tensor a token is charged a frame for each.
Prints the settings and what they cost; `src/serverlight/apps/demo/settings.py` has them. No held-out text is looked at.
"""

from __future__ import annotations

import argparse
import lzma
import os
import pathlib

import torch
from tokenizers import Tokenizer

from serverlight.calibration import PRESETS, Calibration, calibrate
from serverlight.codec import CodecConfig
from serverlight.evaluation.drift import CutModel
from serverlight.huggingface import find_folder

HERE = pathlib.Path(__file__).parent
TEXT = "text_corpora/fairytaleqa_train.txt.xz"
WINDOWS, TOKENS, EVERY = 8, 256, 40
GRID = [(groups, distortion) for groups in (1, 2) for distortion in (0.03, 0.06, 0.12, 0.25)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = os.environ.get("SERVERLIGHT_SHARED", HERE.parents[1] / "shared" / "data")
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(shared), help="folder of the shared data")
    parser.add_argument("--model", default="demo-lm")
    parser.add_argument("--cut", default="layers.4")
    parser.add_argument("--max-loss", default="balanced", choices=PRESETS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = CutModel.load(args.model, args.cut)
    windows = load_windows(args.data / TEXT, args.model)
    bases = {
        "serverlight": [CodecConfig(profile="serverlight")],
        "slicer": [CodecConfig(profile="slicer", num_groups=m, distortion=d) for m, d in GRID],
    }
    for profile, tried in bases.items():
        found = [choose(model, windows, base, args.max_loss) for base in tried]
        kept = [one for one in found if one.chosen.loss <= PRESETS[args.max_loss]]
        best = min(kept, key=lambda one: one.chosen.bits_per_element)
        config, trial = best.config, best.chosen
        knobs = f"sparsity={config.sparsity}, num_groups={config.num_groups}, distortion={config.distortion}"
        print(f"{profile}: {knobs}; {trial.bits_per_element:.2f} bits an element, KL {trial.loss:.4f}")


def load_windows(path: pathlib.Path, spec: str) -> list[torch.Tensor]:
    """Some windows of a text, far apart: int64 [1, tokens] each."""
    tokenizer = Tokenizer.from_file(str(find_folder(spec, ["tokenizer.json"]) / "tokenizer.json"))
    ids = torch.tensor(tokenizer.encode(lzma.decompress(path.read_bytes()).decode()).ids)
    every = ids[: len(ids) // TOKENS * TOKENS].view(-1, 1, TOKENS)
    return list(every[::EVERY][:WINDOWS])


def choose(model: CutModel, windows: list[torch.Tensor], base: CodecConfig, max_loss: str) -> Calibration:
    return calibrate(
        lambda ids: torch.split(model.states(ids), 1, 1),
        lambda *states: model.logits(torch.cat(states, 1)),
        windows,
        max_loss=max_loss,
        base=base,
    )


if __name__ == "__main__":
    main()
