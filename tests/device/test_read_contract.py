"""What a reading's contract says of updates, merges and copies, on the pretended device."""

from tests.read.test_contract import (  # noqa: F401
    test_copies_say_the_same,
    test_merge_of_random_splits_equals_one_update,
    test_no_hook_stays_whatever_happens,
    test_padding_does_not_count,
    test_result_is_finite_and_the_same_again,
    test_rows_that_are_not_finite_are_counted_and_left_out,
    test_without_rows_there_is_a_result_that_says_so,
)
