from dataclasses import replace

import torch

import cdgrad
from cdgrad.study import data, streams
from cdgrad.study.data.splits import with_label_noise
from cdgrad.study.train.arms import channel_orders
from cdgrad.study.train.ranks import ALONE
from cdgrad.study.train.state import TrainingState


def test_the_streams_are_those_of_the_records_that_exist():
    numbers = (streams.SPLIT, streams.ORDER, streams.AUGMENTATION, streams.PERMUTATION, streams.TEST)
    assert numbers == (1, 2, 3, 5, 5)
    assert (streams.LABEL_NOISE, streams.MEASUREMENT) == (6, 7)
    # What was drawn when the first records were made.
    assert streams.generator(7, streams.SPLIT).permutation(8).tolist() == [6, 3, 1, 0, 2, 4, 7, 5]
    assert streams.number(7, streams.AUGMENTATION) == 2530781778362038830


def test_each_draw_of_a_run_is_from_its_own_stream(tiny):
    setting = tiny.setting("", "sgd")
    clean = data.load(setting.task, 7).train
    noisy = replace(setting, task=replace(setting.task, label_noise=0.25))
    state = TrainingState(noisy, 7, torch.device("cpu"), ALONE)
    assert (
        state.data.train.rows.tolist() == streams.generator(7, streams.SPLIT).permutation(400)[:48].tolist()
    )
    wrong = with_label_noise(clean, 0.25, state.data.classes, streams.generator(7, streams.LABEL_NOISE))
    assert torch.equal(state.data.train.labels, wrong.labels)
    assert state.order.bit_generator.state == streams.generator(7, streams.ORDER).bit_generator.state
    assert state.augmentation.initial_seed() == streams.number(7, streams.AUGMENTATION)
    selection = cdgrad.select(state.model)
    permutation, orders = streams.generator(7, streams.PERMUTATION), channel_orders(selection, 7)
    for target in selection.targets:
        n = target.param.shape[target.dim]
        assert orders[target.param].tolist() == permutation.permutation(n).tolist()
