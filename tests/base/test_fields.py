import pytest

from nestquant_cli.base.fields import Fields


def test_fields_have_their_types_and_ranges() -> None:
    fields = Fields({"n": 3, "list": [1], "object": {}, "null": None}, "here")
    assert fields.integer("n", 3, 3) == 3 and fields.sequence("list") == [1] and fields.mapping("object") == {}
    assert fields.optional("null", str) is fields.optional("missing", str) is None
    assert fields.optional("n", str) == "3"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (True, r"here\.n must be an integer from 1 to 4"),
        (5, r"here\.n must be an integer from 1 to 4"),
        (2.0, r"here\.n must be an integer from 1 to 4"),
    ],
)
def test_what_is_no_integer_in_range_is_named(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fields({"n": value}, "here").integer("n", 1, 4)


def test_other_types_are_named() -> None:
    with pytest.raises(ValueError, match="here is not an object"):
        Fields([], "here")
    with pytest.raises(ValueError, match=r"here\.n is not a list"):
        Fields({"n": {}}, "here").sequence("n")
    with pytest.raises(ValueError, match=r"here\.n is not an object"):
        Fields({}, "here").mapping("n")
