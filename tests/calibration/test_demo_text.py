from nestquant_cli.calibration.demo_text import demo_documents
from nestquant_cli.calibration.text import load_text


def test_the_two_parts_of_the_demo_share_no_paragraph() -> None:
    train, test = load_text("demo", "train"), load_text("demo", "test")
    assert train.text == load_text("demo", "train").text
    parts = [
        {" ".join(part.split()) for document in demo_documents(split) for part in document.split("\n\n")}
        for split in ("train", "test")
    ]
    assert not parts[0] & parts[1]
    assert len(train.text) > 150_000 and len(test.text) > 60_000  # 16 and 4 windows of 2048 tokens, with a margin
