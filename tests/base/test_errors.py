from nestquant_cli.base.errors import NestQuantError, first_line


def test_the_three_parts_make_one_line() -> None:
    error = NestQuantError("bits 4.3 is not a multiple of 1/8", "nothing was quantized", "use 4.25")
    assert str(error) == "bits 4.3 is not a multiple of 1/8; nothing was quantized; use 4.25"
    assert (error.cause, error.consequence, error.remedy) == tuple(str(error).split("; "))


def test_it_is_one_line_whatever_it_names() -> None:
    error = NestQuantError("a\nb\x1b[2J", "c\ud800", "d")
    assert str(error) == "a b\\x1b[2J; c\\ud800; d" and error.cause == "a b\\x1b[2J"


def test_of_another_library_s_error_the_first_line_is_said() -> None:
    assert first_line(ValueError("\n it is wrong.\nand more")) == "it is wrong"
    assert first_line(OSError("none of these: \n(1) this\n(2) that")) == "none of these"
    assert first_line(KeyError()) == "KeyError"
    assert first_line(ValueError("a" * 300)) == "a" * 199 + "…"
