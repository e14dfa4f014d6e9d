import torch

from nestquant_cli.codecs.row_scale import check_row_scales, row_scale_bits, row_scale_of


def test_row_scales() -> None:
    good = torch.tensor([1.0, 1e-30, 3e38]).to(torch.bfloat16).view(torch.int16).numpy()
    assert check_row_scales(good) is None
    for bad in (0.0, -1.0, float("inf"), float("nan")):
        bits = torch.tensor([1.0, bad]).to(torch.bfloat16).view(torch.int16).numpy()
        assert "row 1" in (check_row_scales(bits) or "")


def test_row_scales_are_bfloat16() -> None:
    scale = torch.tensor([1.0, 3e-5, 1e30, 1.00390625])
    assert torch.equal(row_scale_of(row_scale_bits(scale)), scale.bfloat16().float())
    assert row_scale_bits(scale).dtype == torch.int16
