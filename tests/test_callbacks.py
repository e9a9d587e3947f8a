"""What listens to a retraining, and what is drawn of it."""

import numpy as np
import pytest

from art_entropic import EntropicTrainer, TensorBoard


@pytest.fixture
def trained(make_classifier, points, tmp_path):
    x, y = points("tensorflow", n=48)
    trainer = EntropicTrainer(make_classifier("tensorflow"), eps=0.05, measure="interval", verbose=False)
    with TensorBoard(tmp_path / "board") as board:
        return trainer.fit(x[:32], y[:32], nb_epochs=3, batch_size=16, validation_data=(x[32:], y[32:]), callbacks=[board])


def test_tensorboard_reads_back_every_epoch(trained, tmp_path):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    (path,) = (tmp_path / "board").iterdir()
    events = [event for event in EventFileLoader(str(path)).Load() if event.summary.value]
    assert [event.step for event in events] == [1, 2, 3]
    for event, epoch in zip(events, trained.epochs, strict=True):
        found = {value.tag: value.tensor.float_val[0] for value in event.summary.value}
        expected = {f"training/{name}": value for name, value in epoch.terms.items()}
        expected |= {f"validation/{name}": value for name, value in epoch.validation.items()}
        expected |= {f"schedule/{name}": getattr(epoch, name) for name in ("eps", "k", "beta", "learning_rate")}
        assert set(found) == {*expected, "cost/seconds"}
        np.testing.assert_allclose([found[name] for name in expected], list(expected.values()), rtol=1e-6)


def test_history_is_drawn_with_its_validation(trained):
    loss, shares = trained.plot().axes
    names = ["loss", "cross entropy", "worst case cross entropy", "information"]
    assert [line.get_label() for line in loss.lines if not line.get_label().startswith("_")] == names
    solid, dashed = (line for line in shares.lines[:2])
    assert (solid.get_linestyle(), dashed.get_linestyle()) == ("-", "--")
    np.testing.assert_allclose(solid.get_ydata(), 100 * np.array(trained.terms("accuracy")))
    np.testing.assert_allclose(dashed.get_ydata(), [100 * epoch.validation["accuracy"] for epoch in trained.epochs])
    assert list(solid.get_xdata()) == [1, 2, 3]


def test_no_epoch_is_no_figure():
    from art_entropic.history import History

    with pytest.raises(ValueError, match="`history` must have at least one finished epoch"):
        History().plot()
