import pytest

from nestquant_cli.pipeline.layer_matrices import divide


def test_everything_is_done_once_and_loads_are_even() -> None:
    costs = {"qkv": 3.0, "o": 1.0, "gate": 6.0, "down": 6.5}
    assert divide(costs, 1) == dict.fromkeys(costs, 0)
    owners = divide(costs, 2)
    loads = [sum(cost for name, cost in costs.items() if owners[name] == rank) for rank in range(2)]
    assert sum(loads) == sum(costs.values()) and max(loads) <= 9.0
    assert divide(dict(reversed(costs.items())), 2) == owners


@pytest.mark.parametrize("size", [4, 9])
def test_more_processes_than_work_leave_some_idle(size: int) -> None:
    assert len(set(divide({"a": 1.0, "b": 1.0, "c": 2.0}, size).values())) == 3
