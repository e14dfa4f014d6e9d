"""What a GGUF file is made of is told wherever a model from one is the reference."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer

from nestquant_cli.comparison.report import markdown
from nestquant_cli.comparison.result import Comparison, reference_row
from nestquant_cli.evaluation.perplexity import Totals
from nestquant_cli.files import read_json
from nestquant_cli.models.gguf_types import described, matrix_types
from nestquant_cli.models.source import gguf_types, resolve
from nestquant_cli.sharing.results import read_results
from tests.families import Outcome, in_process

WIDTH, INNER, HEADS = 64, 96, 2
TYPES = ["Q4_1", "Q8_0"]


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path) -> Path:
    """A Llama of one layer with Q4_1 matrices, a Q8_0 embedding and float32 norms."""
    vocabulary = Tokenizer.from_file(str(tiny_tokenizer_folder / "tokenizer.json"))
    words = sorted(vocabulary.get_vocab(), key=vocabulary.token_to_id)
    merges = read_json(tiny_tokenizer_folder / "tokenizer.json")["model"]["merges"]
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3 if word.startswith("<") else 1 for word in words])
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    numbers = np.random.default_rng(0)

    def add(name: str, shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> None:
        values = numbers.standard_normal(shape, np.float32) / 8
        if len(shape) == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    four, eight = gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0
    add("token_embd.weight", (len(words), WIDTH), eight)
    add("output_norm.weight", (WIDTH,), four)
    for part in ("q", "k", "v", "output"):
        add(f"blk.0.attn_{part}.weight", (WIDTH, WIDTH), four)
    for part, shape in (("gate", (INNER, WIDTH)), ("up", (INNER, WIDTH)), ("down", (WIDTH, INNER))):
        add(f"blk.0.ffn_{part}.weight", shape, four)
    for part in ("attn", "ffn"):
        add(f"blk.0.{part}_norm.weight", (WIDTH,), four)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_types_are_those_that_the_library_reads(gguf_file: Path) -> None:
    found = {each.tensor_type.name for each in gguf.GGUFReader(gguf_file).tensors if len(each.shape) > 1}
    assert found == set(TYPES) and matrix_types(gguf_file) == TYPES
    assert gguf_types(resolve(str(gguf_file))) == TYPES


def test_the_demo_model_was_quantized_before() -> None:
    assert gguf_types(resolve("demo")) == TYPES  # as the documentation says of every figure


def test_a_folder_has_none(tiny_model_folder: Path) -> None:
    assert gguf_types(resolve(str(tiny_model_folder))) is None


def test_a_damaged_header_is_a_value_error(gguf_file: Path, tmp_path: Path) -> None:
    whole, cut = gguf_file.read_bytes(), tmp_path / "cut.gguf"
    end = whole.index(b"output_norm")
    for length in range(0, end, 97):
        cut.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"header|version"):
            matrix_types(cut)
    for place in range(0, end, 31):
        cut.write_bytes(whole[:place] + b"\xff" * 8 + whole[place + 8 :])
        try:
            matrix_types(cut)
        except ValueError:
            continue


def test_how_weights_are_told() -> None:
    assert described({"dtype": "float32", "gguf_types": None}) == described({"dtype": "float32"}) == "float32"
    about = {"dtype": "bfloat16", "gguf_types": TYPES}
    assert described(about) == "GGUF file (Q4_1, Q8_0), de-quantized to bfloat16"
    assert described({"dtype": "float32", "gguf_types": ["F16"]}) == "GGUF file (F16), read as float32"


def test_eval_ppl_and_the_card_name_a_reference_from_a_gguf_file(
    gguf_file: Path,
    tiny_text_file: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run: Callable[..., Outcome] = in_process(capfd, monkeypatch)
    text = ["--dataset", tiny_text_file, "--seqlen", 64, "--max-windows", 1, "--output", tmp_path / "ppl.json"]
    code, output, error = run("eval-ppl", gguf_file, "--baseline", gguf_file, *text)
    assert code == 0, error
    told = "GGUF file (Q4_1, Q8_0), de-quantized to bfloat16"
    flat = " ".join(output.split())
    assert f"reference: tiny: {told}" in flat and flat.count(told) == 2
    protocol = read_json(tmp_path / "ppl.json")["protocol"]
    assert protocol["model"]["gguf_types"] == protocol["baseline"]["gguf_types"] == TYPES
    rows, _, _ = read_results([tmp_path / "ppl.json"], protocol["model"]["sha256"])
    assert all(row.protocol.endswith(f"original: {told}") for row in rows)


def test_the_report_of_a_comparison_names_the_reference() -> None:
    row = reference_row([Totals(loss=1.0, baseline_loss=1.0)], 10)
    about = dict.fromkeys(("dataset", "split", "windows", "windows_in_text", "seqlen", "stride", "bos", "dtype"), 1)
    reference = {"name": "tiny", "dtype": "bfloat16", "gguf_types": TYPES}
    protocol = {**about, "device": "cpu", "calibration": {}, "versions": {}, "reference": reference}
    page = markdown(Comparison("tiny", None, [row], protocol), [])
    assert "Reference: tiny, GGUF file (Q4_1, Q8_0), de-quantized to bfloat16." in page and "| reference |" in page
