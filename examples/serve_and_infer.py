"""A server and a client in one script: classify the shipped test digits with the network cut in two."""

import serverlight as sl
from serverlight.evaluation import load_images

model = sl.load_model("demo-vision")
parts = sl.partition(model.module, model.example_inputs)
plan = sl.Plan(model=model.name, revision=model.revision, cut="layer3.0", codec=sl.CodecConfig(sparsity=0.94))

digits = load_images("demo-vision").first(50)
right = uplink_bytes = 0
with (
    sl.Server(model, [plan.cut], parts=parts) as server,
    sl.connect(server.address, plan=plan, model=parts) as client,
):
    print("the server listens on", server.address)
    for image, label in zip(digits.images, digits.labels, strict=True):
        result = client.infer_detailed(model.preprocess(image[None]))
        right += int(result.outputs.argmax() == label)
        uplink_bytes += result.uplink_bytes

fp16_bytes = 2 * parts.cut(plan.cut).elements_per_sample
print(f"{right} of {len(digits)} right, {uplink_bytes / len(digits):.0f} bytes up an image;", end=" ")
print(f"plain fp16 features take {fp16_bytes}")
