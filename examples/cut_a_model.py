"""Cut a network of your own in two, and see that the halves are the whole."""

import torch
from torch import nn

import serverlight as sl

torch.manual_seed(0)
model = nn.Sequential(
    nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.ReLU()),
    nn.Sequential(nn.Conv2d(16, 32, 3, stride=2), nn.ReLU()),
    nn.Sequential(nn.Conv2d(32, 64, 3), nn.ReLU()),
    nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
).eval()
parts = sl.partition(model, torch.zeros(2, 3, 64, 64))

for cut in parts.cuts:
    if cut.is_module_exit:
        device = cut.head_macs / (cut.head_macs + cut.tail_macs)
        print(f"{cut.name:8} {cut.elements_per_sample:6} elements cross; {device:4.0%} of the work is on the device")

head, tail = parts.split("1")
print("the device holds", sum(p.numel() for p in head.parameters()), "of the parameters,", end=" ")
print("the server", sum(p.numel() for p in tail.parameters()))

images = torch.rand(5, 3, 64, 64)  # any batch size will do
with torch.inference_mode():
    assert torch.equal(tail(*head(images)), model(images))
print("head and tail give the model's outputs, bit for bit")
