from cdgrad.study import streams


def test_the_streams_are_those_of_the_records_that_exist():
    numbers = (streams.SPLIT, streams.ORDER, streams.AUGMENTATION, streams.PERMUTATION, streams.TEST)
    assert numbers == (1, 2, 3, 5, 5)
    # What was drawn when the first records were made.
    assert streams.generator(7, streams.SPLIT).permutation(8).tolist() == [6, 3, 1, 0, 2, 4, 7, 5]
    assert streams.number(7, streams.AUGMENTATION) == 2530781778362038830
