"""Tests of serverlight.evaluation.tasks."""

from __future__ import annotations

import json
import lzma
import pathlib

import numpy as np
import pytest
import torch

from serverlight.errors import ConfigError, ModelError
from serverlight.evaluation.datasets import load_images
from serverlight.evaluation.tasks import TASK_NAMES, UPLINK_TASKS, CodecTask, available_tasks, load_task
from serverlight.evaluation.tasks.catalogue import _TASKS, HELD_OUT
from serverlight.evaluation.tasks.images import ImageTask
from serverlight.evaluation.tasks.llama import Llama
from serverlight.evaluation.tasks.sentences import ScoredPairs, SentenceTask, load_sts_pairs, spearman
from serverlight.evaluation.tasks.stories import WindowTask, load_windows, spread_windows
from serverlight.evaluation.tasks.task import bootstrap_interval, kl_divergence, percentiles
from serverlight.models import load_model
from serverlight.partition import partition

WORDS = ["[PAD]", "[UNK]", "a", "cat", "dog", "sat", "ran", "far", "home", "fast"]
SENTENCES = ("a cat sat", "a cat ran", "a dog ran far", "home", "cat dog cat dog cat dog", "a dog sat")
PAIRS = ScoredPairs(sentences=SENTENCES, scores=np.array([3.0, 1.0, 2.0]))


@pytest.fixture(scope="module")
def demo() -> CodecTask:
    torch.set_num_threads(1)
    return load_task("demo", limit=80)


def write_tokenizer(folder: pathlib.Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.enable_padding(length=32)  # what a folder may ask for, and a message must not carry
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48
    )
    transformers.BertModel(config).eval().save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, tie_word_embeddings=False, initializer_range=0.3, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).eval().save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def sentence_task(bert_folder: pathlib.Path) -> SentenceTask:
    model = load_model(str(bert_folder))
    return SentenceTask(name="tiny", title="tiny", model=model, folder=bert_folder, layers=1, pairs=PAIRS)


@pytest.fixture(scope="module")
def window_task(llama_folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> WindowTask:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS[2:], n)) for n in (20, 5, 9, 12, 8)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    windows = load_windows(path, llama_folder, length=8)
    return WindowTask(name="tiny", title="tiny", model=Llama.load(llama_folder), layers=2, windows=windows)


# -- what all tasks promise --------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["demo", "sentence_task", "window_task"])
def test_untouched_features_lose_nothing(which: str, request: pytest.FixtureRequest) -> None:
    """With the features as they are, the quality is that of the uncut model."""
    task: CodecTask = request.getfixturevalue(which)
    quality = task.evaluate(task.features())
    assert quality.metric == pytest.approx(task.base_metric)
    assert quality.delta_pp == 0
    assert quality.interval_pp == (0, 0)
    assert quality.kl == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("which", ["demo", "sentence_task", "window_task"])
def test_more_noise_means_more_divergence(which: str, request: pytest.FixtureRequest) -> None:
    """The divergence tells a light touch from a heavy one; the interval holds the difference."""
    task: CodecTask = request.getfixturevalue(which)
    rng = np.random.default_rng(0)
    noise = [rng.normal(size=x.shape).astype(np.float32) * x.std() for x in task.features()]
    light, heavy = (
        task.evaluate([x + scale * e for x, e in zip(task.features(), noise, strict=True)]) for scale in (0.01, 1.0)
    )
    assert 0 < light.kl < heavy.kl
    for quality in (light, heavy):
        assert quality.metric - task.base_metric == pytest.approx(quality.delta_pp)
        assert quality.interval_pp[0] <= quality.delta_pp <= quality.interval_pp[1]


@pytest.mark.parametrize("which", ["demo", "sentence_task", "window_task"])
def test_a_part_of_the_messages_will_do(which: str, request: pytest.FixtureRequest) -> None:
    """The first messages alone are judged against the uncut model on the same samples."""
    task: CodecTask = request.getfixturevalue(which)
    part = task.features()[: 2 * (len(task.features()) // 3)]
    quality = task.evaluate(part)
    assert (quality.delta_pp, quality.interval_pp) == (0, (0, 0))


@pytest.mark.parametrize("which", ["demo", "sentence_task", "window_task"])
def test_features_are_messages(which: str, request: pytest.FixtureRequest) -> None:
    """Each message is one sample with its batch side, float32, and kept from call to call."""
    task: CodecTask = request.getfixturevalue(which)
    assert all(x.shape[0] == 1 and x.dtype == np.float32 and x.flags["C_CONTIGUOUS"] for x in task.features())
    assert task.features()[0] is task.features()[0]


# -- other samples, for a basis ----------------------------------------------------------------------


def test_there_is_a_basis_only_where_there_are_other_samples(
    demo: CodecTask, sentence_task: SentenceTask, window_task: WindowTask
) -> None:
    """Neither feature maps nor tasks without other samples have any."""
    assert [task.calibration for task in (demo, sentence_task, window_task)] == [None, None, None]


def test_sentences_to_calibrate_with(bert_folder: pathlib.Path) -> None:
    """They are features of the other sentences; a step along the gradient moves the embedding, and a longer one further."""
    others, model = ("a dog sat far", "a cat"), load_model(str(bert_folder))
    task = SentenceTask(
        name="tiny", title="tiny", model=model, folder=bert_folder, layers=1, pairs=PAIRS, others=lambda: others
    )
    plain = SentenceTask(
        name="tiny", title="tiny", model=model, folder=bert_folder, layers=1,
        pairs=ScoredPairs(sentences=others, scores=np.ones(1)),
    )  # fmt: skip
    found = task.calibration
    assert found is not None
    assert [x.tolist() for x in found.features] == [x.tolist() for x in plain.features()]
    assert [g.shape for g in found.gradients] == [x.shape for x in found.features]
    assert all(g.any() for g in found.gradients)
    for x, g in zip(found.features, found.gradients, strict=True):
        near, far = (task._embed([x + scale * g]) for scale in (1e-2, 2e-2))
        moved = np.abs(near - task._embed([x])).max()
        assert 0 < moved < np.abs(far - task._embed([x])).max() < 3 * moved


def test_windows_to_calibrate_with(llama_folder: pathlib.Path, window_task: WindowTask) -> None:
    """Gradients are those of the log-probability of drawn tokens, which is zero in the mean over draws."""
    rng = np.random.default_rng(1)
    others = rng.integers(2, len(WORDS), (120, 9))
    task = WindowTask(
        name="tiny", title="tiny", model=Llama.load(llama_folder), layers=2, windows=others[:3], others=lambda: others
    )
    found = task.calibration
    assert found is not None
    assert [x.tolist() for x in found.features[:3]] == [x.tolist() for x in task.features()]
    gradients = np.concatenate(found.gradients)
    assert gradients.shape == (120, 8, 32)
    assert (np.square(gradients).mean((0, 1)) > 0).all()
    assert np.abs(gradients.mean((0, 1))).max() < 4 * (gradients.std((0, 1)) / np.sqrt(120 * 8)).max()


# -- images ------------------------------------------------------------------------------------------


def test_base_is_the_uncut_model(demo: CodecTask) -> None:
    """Head and tail together answer as the model does, and the labels are those of the images."""
    model, data = load_model("demo-vision"), load_images("demo-vision").first(80)
    assert model.preprocess is not None
    with torch.inference_mode():
        answers = model.module(model.preprocess(data.images)).argmax(1).numpy()
    assert demo.base_metric == 100 * (answers == data.labels).mean()
    assert (demo.model, demo.cut, len(demo.features())) == ("demo-vision", "layer2.2", 80)


def test_image_task_needs_one_tensor() -> None:
    """A cut that several tensors cross has no single feature to code."""

    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = x.sin(), x.cos()
            return (a * b).mean((1, 2))

    model = load_model("demo-vision")
    parts = partition(Two(), torch.zeros(2, 3, 4))
    crossed_by_two = next(cut.name for cut in parts.cuts if len(cut.tensors) == 2)
    with pytest.raises(ConfigError, match="several tensors"):
        ImageTask(
            name="x",
            title="x",
            model=model,
            parts=parts,
            cut=crossed_by_two,
            images=load_images("demo-vision").first(2),
        )


def test_inputs_as_jpeg(demo: CodecTask) -> None:
    """A fine JPEG is longer and harms less than a coarse one; there is a size for each image, and a feature of its shape."""
    found = {}
    for quality in (5, 95):
        sent = demo.as_jpeg(quality)
        assert sent is not None
        assert len(sent.sizes) == len(sent.features) == 80
        assert sent.features[0].shape == demo.features()[0].shape
        found[quality] = (int(sent.sizes.sum()), demo.evaluate(sent.features).kl)
    assert found[5][0] < found[95][0]
    assert found[5][1] > found[95][1]
    assert demo.raw_input.sizes.shape == (80,)
    assert demo.raw_input.num_bytes == demo.raw_input.sizes.sum()


@pytest.mark.parametrize("which", ["sentence_task", "window_task"])
def test_texts_are_token_ids(which: str, request: pytest.FixtureRequest) -> None:
    """The raw input of a text is two bytes a token, message by message, and there is no JPEG of it."""
    task: CodecTask = request.getfixturevalue(which)
    assert task.raw_input.sizes.tolist() == [2 * x.shape[1] for x in task.features()]
    assert task.as_jpeg(50) is None


@pytest.mark.parametrize("which", ["demo", "sentence_task", "window_task"])
def test_differences_are_kept_by_resample(which: str, request: pytest.FixtureRequest) -> None:
    """The interval is that of the differences in the resamples, of as many samples as are said, which divide the messages."""
    task: CodecTask = request.getfixturevalue(which)
    quality = task.evaluate([np.round(x, 1) for x in task.features()])
    assert quality.deltas_pp is not None
    assert quality.interval_pp == percentiles(quality.deltas_pp)
    assert len(task.features()) % quality.num_samples == 0


# -- sentences ---------------------------------------------------------------------------------------


def test_embeddings_are_those_of_the_whole_encoder(sentence_task: SentenceTask, bert_folder: pathlib.Path) -> None:
    """Layers run half by half, in batches with padding, give what the model gives for each sentence alone."""
    encoder = load_model(str(bert_folder)).module
    for sentence, embedding in zip(SENTENCES, sentence_task._base, strict=True):
        ids = torch.tensor([[WORDS.index(word) for word in sentence.split()]])
        mean = encoder(input_ids=ids).last_hidden_state[0].mean(0).double().numpy()
        assert embedding == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)


def test_sentence_messages_have_no_padding(sentence_task: SentenceTask) -> None:
    """A message is as long as its sentence, whatever padding the tokenizer's file asks for."""
    assert [x.shape for x in sentence_task.features()] == [(1, len(s.split()), 32) for s in SENTENCES]


def test_sts_file(tmp_path: pathlib.Path) -> None:
    """Quotes in a sentence are just characters; every other line is taken when asked for."""
    lines = [f'a\tb\tc\td\t{score}\tone "{score}\ttwo {score}' for score in (1.5, 2.5, 3.5, 4.5)]
    (tmp_path / "sts.csv").write_text("\n".join(lines) + "\n")
    pairs = load_sts_pairs(tmp_path / "sts.csv", every=2, count=5)
    assert pairs.scores.tolist() == [1.5, 3.5]
    assert pairs.sentences == ('one "1.5', "two 1.5", 'one "3.5', "two 3.5")


def test_spearman_with_ties() -> None:
    """Equal values share their mean rank, as in the usual definition."""
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for size in (2, 5, 50):
        a, b = rng.integers(0, 6, size).astype(float), rng.normal(size=size)
        if len(set(a)) > 1:
            assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert spearman(np.ones(4), np.arange(4.0)) == 0


# -- language models ---------------------------------------------------------------------------------


def test_llama_is_that_of_transformers(llama_folder: pathlib.Path) -> None:
    """The layers, run in two parts, give the logits of the reference implementation."""
    transformers = pytest.importorskip("transformers")
    reference = transformers.LlamaForCausalLM.from_pretrained(llama_folder).eval()
    ids = torch.randint(0, len(WORDS), (3, 17), generator=torch.Generator().manual_seed(0))
    llama = Llama.load(llama_folder)
    with torch.inference_mode():
        ours = llama.logits(llama.run(llama.run(llama.embed(ids), range(2)), range(2, 3)))
        theirs = reference(ids).logits
    assert ours.numpy() == pytest.approx(theirs.numpy(), abs=1e-4)


def test_windows(window_task: WindowTask) -> None:
    """Texts that are too short are left out; a window is cut after the tokens wanted, and one more to predict."""
    assert len(window_task.features()) == 3
    assert {x.shape for x in window_task.features()} == {(1, 8, 32)}


def test_windows_from_all_over_a_text(llama_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Windows of a long text lie evenly apart, do not overlap, and are no more than there are."""
    words = [WORDS[2 + i % 8] for i in range(100)]
    (tmp_path / "text.txt.xz").write_bytes(lzma.compress(" ".join(words).encode()))
    windows = spread_windows(tmp_path / "text.txt.xz", llama_folder, length=4, count=3)
    assert windows.shape == (3, 5)
    starts = [0, 30, 65]  # windows 0, 6 and 13 of 20
    assert windows.tolist() == [[WORDS.index(word) for word in words[at : at + 5]] for at in starts]
    assert len(spread_windows(tmp_path / "text.txt.xz", llama_folder, length=4, count=99)) == 20


def test_other_models_are_refused(tmp_path: pathlib.Path, bert_folder: pathlib.Path) -> None:
    """A folder without a model, or of another one, is a ModelError."""
    with pytest.raises(ModelError, match="no model in"):
        Llama.load(tmp_path)
    with pytest.raises(ModelError, match="not a plain Llama"):
        Llama.load(bert_folder)


@pytest.mark.parametrize("form", ["old", "new", "scaled"])
def test_rope_settings(llama_folder: pathlib.Path, tmp_path: pathlib.Path, form: str) -> None:
    """The base of the rotation is found in old and new configs; a scaled one is refused, not taken for plain."""
    config = json.loads((llama_folder / "config.json").read_text())
    del config["rope_parameters"]
    forms = {
        "old": {"rope_theta": 5.0},
        "new": {"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}},
        "scaled": {"rope_parameters": {"rope_theta": 5.0, "rope_type": "llama3", "factor": 8.0}},
    }
    (tmp_path / "config.json").write_text(json.dumps({**config, **forms[form]}))
    (tmp_path / "model.safetensors").write_bytes((llama_folder / "model.safetensors").read_bytes())
    if form == "scaled":
        with pytest.raises(ModelError, match="not a plain Llama"):
            Llama.load(tmp_path)
    else:
        assert Llama.load(tmp_path).rope_theta == 5.0


# -- helpers -----------------------------------------------------------------------------------------


def test_kl_divergence_by_hand() -> None:
    """The divergence is that of the base from ours, in nats, and large logits do not overflow."""
    base, ours = np.log([[0.5, 0.5]]), np.log([[0.9, 0.1]])
    expected = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    assert kl_divergence(ours, base) == pytest.approx(expected)
    assert kl_divergence(ours + 1e4, base - 1e4) == pytest.approx(expected, rel=1e-6)


def test_bootstrap_of_a_mean() -> None:
    """For many samples the interval is the normal one, and it is the same every time."""
    values = np.random.default_rng(1).normal(size=2000)
    interval = bootstrap_interval(len(values), lambda chosen: values[chosen].mean(1))
    margin = 1.96 * values.std() / np.sqrt(len(values))
    assert interval == pytest.approx((values.mean() - margin, values.mean() + margin), abs=0.1 * margin)
    assert interval == bootstrap_interval(len(values), lambda chosen: values[chosen].mean(1))


# -- the catalogue -----------------------------------------------------------------------------------


def test_without_data_only_the_demo_runs() -> None:
    """What is there is told without loading anything, and what is missing by name."""
    assert available_tasks() == ("demo",)
    with pytest.raises(ConfigError, match=r"task: R56-mid needs vision_cifar10/resnet56.safetensors"):
        load_task("R56-mid")
    with pytest.raises(ConfigError, match=r"unknown task 'R57'; choose from demo, R56-early"):
        load_task("R57")


def test_held_out_tasks_are_asked_for_by_name(shared_data: pathlib.Path) -> None:
    """What nothing may be tuned on is not among the tasks that run by themselves."""
    assert set(HELD_OUT) < set(TASK_NAMES)
    assert not set(HELD_OUT) & set(available_tasks(shared_data))


def test_six_models_at_three_places() -> None:
    """The table of uplink reductions has an early, a middle and a late cut of each model, in this order."""
    assert len(UPLINK_TASKS) == 18
    assert [_TASKS[name].position for name in UPLINK_TASKS] == ["early", "middle", "late"] * 6
    assert {name for name, task in _TASKS.items() if not task.position} == set(TASK_NAMES) - set(UPLINK_TASKS)


@pytest.mark.parametrize("name", UPLINK_TASKS[::3])
def test_the_three_tasks_of_a_model(shared_data: pathlib.Path, name: str) -> None:
    """They have one model and one set of samples, three cuts, and know their places."""
    three = UPLINK_TASKS[UPLINK_TASKS.index(name) :][:3]
    for package in _TASKS[name].packages:
        pytest.importorskip(package)
    torch.set_num_threads(1)
    tasks = [load_task(one, shared_data, limit=4) for one in three]
    assert len({task.model for task in tasks}) == 1
    assert len({task.cut for task in tasks}) == 3
    assert [task.position for task in tasks] == ["early", "middle", "late"]
    assert len({task.base_metric for task in tasks}) == 1
    assert len({len(task.features()) for task in tasks}) == 1


BASES = {"R56-late": 100.0, "LM-0.26M": 59.6875, "ST-5": None, "MBv2-13": None}
"""Uncut figures on the first ten samples, measured once, where they do not depend on rounding."""


@pytest.mark.parametrize("name", [name for name in TASK_NAMES if name in BASES])
def test_real_tasks(shared_data: pathlib.Path, name: str) -> None:
    """One task of each kind runs on the real models and data."""
    if name not in available_tasks(shared_data):
        pytest.skip(f"{name} is not available here")
    torch.set_num_threads(1)
    task = load_task(name, shared_data, limit=10)
    quality = task.evaluate([np.float16(x).astype(np.float32) for x in task.features()])
    assert quality.kl < 1e-3
    assert abs(quality.delta_pp) < 1.0
    if BASES[name] is not None:
        assert task.base_metric == pytest.approx(BASES[name])
