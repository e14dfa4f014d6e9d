import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.base.names import nearest, refuse_unknown

BITS = ["weight_bits", "act_bits", "kv_bits"]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("kv_bit", "did you mean 'kv_bits'?"),
        ("KV-Bits", "did you mean 'kv_bits'?"),
        ("colour", "use one of weight_bits, act_bits, kv_bits"),
        (4, "use one of weight_bits, act_bits, kv_bits"),
    ],
)
def test_the_nearest_name_or_all(name: object, remedy: str) -> None:
    assert nearest(name, BITS).startswith(remedy.rstrip("?"))
    assert nearest("colour", BITS, otherwise="see the list") == "see the list"


def test_the_first_unknown_name_is_refused() -> None:
    refuse_unknown(BITS, BITS, "a.yaml", "nothing was done")
    with pytest.raises(NestQuantError, match=r"a.yaml has an unknown setting 'act_bit'; .*; did you mean"):
        refuse_unknown(["kv_bits", "act_bit"], BITS, "a.yaml", "nothing was done")
