"""Trains ``demo-vision`` on scikit-learn's handwritten digits and writes the files that the package ships.

    python training/train_vision.py             # a few minutes on one core
    python training/train_vision.py --out trial --epochs 2

The quarter of the digits that is shipped as the test set takes no part in training or in any choice: the number of
epochs and all other settings are fixed, and the test images are looked at once, at the end, with the weights as stored.
"""

from __future__ import annotations

import argparse
import pathlib
import time

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from serverlight.models.cifar_resnet import CifarResNet
from serverlight.models.demo_vision import NORMALIZE, enlarge_digits, new_network

SEED = 20251114
NUM_CALIBRATION = 200
BATCH = 64
PEAK_LEARNING_RATE = 0.1
WEIGHT_DECAY = 5e-4
DATA = pathlib.Path(__file__).parents[1] / "src" / "serverlight" / "models" / "data"

Split = tuple[NDArray[np.uint8], NDArray[np.int64]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=DATA, help="folder for the three files")
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    train, test = split_digits()
    network = fit(new_network(), train, args.epochs)
    args.out.mkdir(parents=True, exist_ok=True)
    save_images(args.out / "demo_vision_test.npz", test)
    save_images(args.out / "demo_vision_calibration.npz", (train[0][:NUM_CALIBRATION], train[1][:NUM_CALIBRATION]))
    save_weights(args.out / "demo_vision.safetensors", network)
    stored = CifarResNet.from_state_dict(load_file(args.out / "demo_vision.safetensors"))
    print(f"train accuracy {accuracy(stored, train):.2%} of {len(train[1])}")
    print(f"test accuracy  {accuracy(stored, test):.2%} of {len(test[1])}")


def split_digits() -> tuple[Split, Split]:
    """Training and test digits, uint8 (N, 8, 8) with labels; a quarter of each class is for testing."""
    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.int64)
    train_i, test_i = train_test_split(np.arange(len(labels)), test_size=0.25, stratify=labels, random_state=SEED)
    return (images[train_i], labels[train_i]), (images[test_i], labels[test_i])


def fit(network: CifarResNet, train: Split, epochs: int) -> CifarResNet:
    """Stochastic gradient descent with a one-cycle schedule."""
    inputs, labels = NORMALIZE(enlarge_digits(train[0])), torch.from_numpy(train[1])
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=WEIGHT_DECAY, nesterov=True)
    steps = len(labels) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, epochs * steps, pct_start=0.2)
    started = time.perf_counter()
    for epoch in range(epochs):
        losses = []
        for batch in torch.randperm(len(labels))[: steps * BATCH].split(BATCH):
            loss = F.cross_entropy(network(augment(inputs[batch])), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1:2d}  loss {np.mean(losses):.3f}  {time.perf_counter() - started:.0f} s", flush=True)
    return network.eval()


def augment(inputs: Tensor) -> Tensor:
    """Each image (N, 1, 32, 32) turned by up to 12 degrees, scaled by up to 12 % and shifted by up to 3 pixels."""
    num = len(inputs)
    angle = torch.empty(num).uniform_(-12, 12).deg2rad()
    scale = torch.empty(num).uniform_(0.88, 1.12)
    shift = torch.empty(num, 2, 1).uniform_(-3, 3) / 16  # the grid spans 2 over 32 pixels
    rows = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(num, 2, 2)
    grid = F.affine_grid(torch.cat([rows * scale.view(-1, 1, 1), shift], 2), list(inputs.shape), align_corners=False)
    background = -NORMALIZE.mean[0] / NORMALIZE.std[0]
    return F.grid_sample(inputs - background, grid, align_corners=False) + background


def save_images(path: pathlib.Path, split: Split) -> None:
    np.savez_compressed(path, images=split[0], labels=split[1].astype(np.uint8))


def save_weights(path: pathlib.Path, network: CifarResNet) -> None:
    """Convolutions and the classifier in half precision, the norms in single."""
    state = {name: t for name, t in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    save_file({name: (t.half() if t.dim() > 1 else t).contiguous() for name, t in state.items()}, path)


def accuracy(network: CifarResNet, split: Split) -> float:
    with torch.inference_mode():
        predicted = network(NORMALIZE(enlarge_digits(split[0]))).argmax(1).numpy()
    return float((predicted == split[1]).mean())


if __name__ == "__main__":
    main()
