import gc
from collections.abc import Callable

import pytest
import torch
from torch import nn

from compress.errors import UserInputError
from compress.measure import latency as latency_module
from compress.measure.latency import Latency, measure_latency, pinned_threads


class FakeClock:
    """Nanoseconds that pass only when a subject says so."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.order: list[str] = []

    def __call__(self) -> int:
        return self.now_ns

    def subject(self, name: str, *steps_ms: float) -> Callable[[], None]:
        def run() -> None:
            self.now_ns += int(steps_ms[self.order.count(name) % len(steps_ms)] * 1e6)
            self.order.append(name)

        return run


def test_subjects_take_turns_after_the_warmup() -> None:
    clock = FakeClock()
    subjects = {"a": clock.subject("a", 1), "b": clock.subject("b", 2)}
    result = measure_latency(
        subjects, warmup=2, min_iterations=3, max_iterations=3, progress=False, clock=clock
    )
    assert clock.order == ["a", "b"] * 5
    assert [result[name].median_ms for name in ("a", "b")] == [1, 2]
    assert result["a"].iterations == 3


def test_warmup_is_not_timed() -> None:
    clock = FakeClock()
    subjects = {"a": clock.subject("a", 900, *[1] * 9)}
    result = measure_latency(
        subjects, warmup=1, min_iterations=9, max_iterations=9, progress=False, clock=clock
    )
    assert result["a"].p99_ms == 1


def test_percentiles_are_those_of_the_samples() -> None:
    clock = FakeClock()
    subjects = {"a": clock.subject("a", *range(1, 12))}  # 1 … 11 ms
    result = measure_latency(
        subjects, warmup=0, min_iterations=11, max_iterations=11, progress=False, clock=clock
    )["a"]
    assert (result.p10_ms, result.median_ms, result.p90_ms) == (2, 6, 10)
    assert result.p99_ms == pytest.approx(10.9)
    threads = torch.get_num_threads()
    assert result.to_dict() == {
        "median": 6.0,
        "p10": 2.0,
        "p90": 10.0,
        "p99": pytest.approx(10.9),
        "mean": 6.0,
        "iterations": 11,
        "threads": threads,
    }


@pytest.mark.parametrize(
    ("step_ms", "expected"),
    [pytest.param(100, 10, id="budget"), pytest.param(900, 4, id="floor"), (1, 50)],
)
def test_the_budget_ends_measuring_between_floor_and_ceiling(step_ms: int, expected: int) -> None:
    clock = FakeClock()
    result = measure_latency(
        {"a": clock.subject("a", step_ms)},
        warmup=0,
        min_iterations=4,
        max_iterations=50,
        max_seconds=1,
        progress=False,
        clock=clock,
    )
    assert result["a"].iterations == expected


def test_modules_run_in_eval_mode_and_get_their_mode_back() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    module[0].eval()
    seen: list[tuple[bool, bool, bool]] = []
    module.register_forward_hook(
        lambda m, _, out: seen.append((m.training, torch.is_inference(out), gc.isenabled()))
    )
    mean = module[1].running_mean.clone()
    measure_latency(
        {"a": (module, torch.ones(1, 1, 2, 2))},
        warmup=0,
        min_iterations=2,
        max_iterations=2,
        progress=False,
    )
    assert seen == [(False, True, False)] * 2
    assert (module.training, module[0].training, module[1].training) == (True, False, True)
    assert torch.equal(module[1].running_mean, mean)
    assert gc.isenabled()


def test_a_failing_subject_leaves_everything_as_it_was() -> None:
    module = nn.Linear(2, 2).train()
    with pytest.raises(RuntimeError):
        measure_latency({"a": (module, torch.ones(1, 3))}, warmup=0, progress=False)
    assert module.training
    assert gc.isenabled()


def test_several_arguments_are_passed_on() -> None:
    result = measure_latency(
        {"a": (nn.Bilinear(2, 3, 1), (torch.ones(1, 2), torch.ones(1, 3)))},
        warmup=0,
        min_iterations=1,
        max_iterations=1,
        progress=False,
    )
    assert isinstance(result["a"], Latency)


def test_a_bar_is_shown_only_when_it_takes_long(capfd: pytest.CaptureFixture[str]) -> None:
    clock = FakeClock()
    measure_latency({"a": clock.subject("a", 1)}, min_iterations=3, max_iterations=3, clock=clock)
    assert capfd.readouterr() == ("", "")


def test_the_bar_shows_what_is_going_on(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency_module, "PROGRESS_DELAY_S", 0)
    clock = FakeClock()
    measure_latency({"a": clock.subject("a", 1)}, min_iterations=3, max_iterations=3, clock=clock)
    out, err = capfd.readouterr()
    assert out == ""
    assert "latency:" in err


def test_pinned_threads_are_given_back() -> None:
    former = torch.get_num_threads()
    seen = []

    def fail() -> None:
        with pinned_threads(former + 1):
            seen.append(torch.get_num_threads())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [former + 1]
    assert torch.get_num_threads() == former
    with pinned_threads(None):
        assert torch.get_num_threads() == former


@pytest.mark.parametrize(
    "wrong",
    [
        {"warmup": -1},
        {"min_iterations": 0},
        {"min_iterations": 5, "max_iterations": 4},
        {"max_seconds": float("nan")},
    ],
)
def test_counts_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserInputError, match="expected warmup"):
        measure_latency({"a": lambda: None}, **wrong)  # type: ignore[arg-type]


def test_no_subject_and_no_thread_are_refused() -> None:
    with pytest.raises(UserInputError, match="at least one"):
        measure_latency({})
    with pytest.raises(UserInputError, match="threads is 0"), pinned_threads(0):
        pass


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_work_is_waited_for() -> None:
    big = torch.randn(4096, 4096, device="cuda")
    module = nn.Linear(4096, 4096, bias=False, device="cuda")

    def without_waiting() -> None:
        module(big)

    result = measure_latency(
        {"waits": (module, big), "queues": without_waiting}, min_iterations=10, max_iterations=10
    )
    assert result["waits"].median_ms > 2 * result["queues"].median_ms
