"""Which of two students is the better one."""

from amp.distillation import Validation
from amp.evaluation.student import Metric


def test_the_metric_decides_and_higher_is_better() -> None:
    by_loss, by_metric = Validation(), Validation(metric=Metric("val_x", lambda tower: 0.0))
    worse, better = {"val_loss": 1.0, "val_x": 0.3}, {"val_loss": 2.0, "val_x": 0.4}
    assert by_metric.improves(better, worse)
    assert not by_metric.improves(worse, better)
    assert not by_metric.improves(worse, worse)
    assert by_loss.improves(worse, better)
    assert not by_loss.improves(better, worse)
    assert by_metric.improves(worse, {"val_loss": 0.1})
    assert not by_loss.improves({}, {})
