"""What `evaluate` and `plan` found about early exits."""

from typing import Any

from compress.report.facts import Exit, Exits, Front, Plan, Point
from compress.report.numbers import number_text, percent_text
from compress.report.task_files import TaskFiles
from compress.report.values import count_in, list_in, number_in, object_in, text_in

__all__ = ["read_exits", "read_front", "read_plan"]


def read_exits(task: TaskFiles) -> Exits | None:
    """Return where images leave; None where no such figures are."""
    test = object_in(task.figures, "test")
    exits = _exits(test, list_in(task.figures, "calibration"))
    if not exits:
        return None
    return Exits(
        network=task.network,
        threshold=_threshold(test),
        images=sum(each.count for each in exits),
        exits=exits,
        sweep=tuple(
            point for each in list_in(task.figures, "sweep") if (point := _swept(each)) is not None
        ),
        chosen=_swept(test),
        oracle=_oracle(object_in(task.figures, "oracle"), test),
    )


def read_front(task: TaskFiles) -> Front | None:
    """Return the fronts of a plan task; None where it has none."""
    series = []
    for each in list_in(task.figures, "front"):
        points = tuple(p for value in list_in(each, "points") if (p := _point(value)) is not None)
        if points:
            series.append((text_in(each, "method"), points))
    if not series:
        return None
    return Front(
        network=task.network,
        series=tuple(series),
        chosen=_chosen(task),
        held_out=object_in(task.figures, "accuracy").get("held_out") is True,
    )


def read_plan(task: TaskFiles) -> Plan | None:
    """Return the plan of a plan task, from its plan.json; None where there is none."""
    plan = task.read("plan.json")
    accuracy = object_in(plan, "accuracy")
    point = _planned(plan)
    if not plan or point is None:
        return None
    low, high = ([number_in(each) for each in list_in(accuracy, "interval")] + [None, None])[:2]
    return Plan(
        network=task.network,
        exits=_positions(plan) or _refused(plan),
        thresholds=", ".join(_short(each) for each in list_in(plan, "thresholds")),
        objective=f"{text_in(plan, 'objective', 'kind')} {text_in(plan, 'objective', 'value')}",
        cost_share=point.cost_share,
        acc1=point.acc1,
        interval=None if low is None or high is None else (100 * low, 100 * high),
        guarantee=_guarantee(object_in(plan, "guarantee")),
    )


def _positions(value: Any) -> str:
    return ", ".join(text_in(each) for each in list_in(value, "exits"))


def _refused(plan: dict[str, Any]) -> str:
    """Return why a plan has no exits, where some were refused for what they cost."""
    refused, full = object_in(plan, "refused"), number_in(plan, "cost", "full")
    expected = number_in(refused, "expected")
    if expected is None or not full:
        return ""
    share = percent_text(100 * expected / full)
    return f"none: with {_positions(refused)} an image costs {share} of the whole network"


def _exits(test: dict[str, Any], calibration: list[Any]) -> tuple[Exit, ...]:
    positions, counts = list_in(test, "positions"), list_in(test, "counts")
    accuracies = list_in(test, "accuracies")
    whole = [count_in(each) for each in counts]
    total = sum(each or 0 for each in whole)
    if not total or None in whole or not len(positions) == len(counts) == len(accuracies):
        return ()
    found = {text_in(each, "position"): each for each in calibration}
    names = [*map(_place, positions[:-1]), "final head"]
    return tuple(
        Exit(
            place=name,
            count=count or 0,
            share=(count or 0) / total,
            acc1=number_in(accuracy),
            auroc=number_in(found.get(text_in(position)), "auroc"),
            ece_before=number_in(found.get(text_in(position)), "ece_before"),
            ece_after=number_in(found.get(text_in(position)), "ece_after"),
        )
        for name, position, count, accuracy in zip(names, positions, whole, accuracies, strict=True)
    )


def _place(position: Any) -> str:
    """Return where an exit stands, in words: a block by its number, a module by its path."""
    return f"block {text_in(position)}" if number_in(position) is not None else text_in(position)


def _threshold(report: Any) -> str:
    """Return the threshold that all exits have, otherwise one for each."""
    bars = [_short(each) for each in list_in(report, "thresholds")]
    return ", ".join(bars[:1] if len(set(bars)) == 1 else bars)


def _short(value: Any) -> str:
    number = number_in(value)
    return "" if number is None else f"{number:.4g}"


def _swept(report: Any) -> Point | None:
    share, acc1 = number_in(report, "macs_share"), number_in(report, "acc1")
    if share is None or acc1 is None:
        return None
    return Point(cost_share=share, acc1=acc1, label=f"threshold {_threshold(report)}")


def _oracle(oracle: dict[str, Any], test: dict[str, Any]) -> Point | None:
    """Return what leaving at the first exit that is right would give."""
    expected, acc1 = number_in(oracle, "expected_macs"), number_in(oracle, "acc1")
    cost, share = number_in(test, "expected_macs"), number_in(test, "macs_share")
    if expected is None or acc1 is None or not cost or not share:
        return None
    return Point(cost_share=expected * share / cost, acc1=acc1, label="oracle")


def _point(value: Any) -> Point | None:
    share, acc1 = number_in(value, "cost_share"), number_in(value, "acc1")
    if share is None or acc1 is None:
        return None
    return Point(cost_share=share, acc1=acc1, label=text_in(value, "label"))


def _chosen(task: TaskFiles) -> Point | None:
    chosen = object_in(task.figures, "chosen")
    return _point(chosen) or _planned(chosen) or _planned(task.read("plan.json"))


def _planned(plan: dict[str, Any]) -> Point | None:
    """Return the point of a plan file."""
    expected, full = number_in(plan, "cost", "expected"), number_in(plan, "cost", "full")
    images, correct = (count_in(plan, "accuracy", key) for key in ("images", "correct"))
    if expected is None or not full or not images or correct is None:
        return None
    return Point(cost_share=expected / full, acc1=100.0 * correct / images, label="plan")


def _guarantee(value: dict[str, Any]) -> str:
    risk, confidence = number_in(value, "risk"), number_in(value, "confidence")
    if risk is None or confidence is None:
        return ""
    return (
        f"{text_in(value, 'loss')} loss at most {percent_text(100 * risk)}, "
        f"with confidence {number_text(confidence)}"
    )
