import torch

from nestquant_cli.calibration.current_window import choose


def test_choose_takes_different_indices() -> None:
    generator = torch.Generator().manual_seed(0)
    chosen = choose(10, 4, generator)
    assert len(set(chosen.tolist())) == 4 and int(chosen.max()) < 10
    assert len(choose(3, 100, generator)) == 3
