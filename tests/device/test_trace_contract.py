"""What a localizer's contract says of its scores, on the pretended device."""

from tests.trace.test_contract import (  # noqa: F401
    model,
    task,
    test_a_batch_is_the_mean_of_its_pairs,
    test_bad_input_is_refused_with_the_rule,
    test_scores_are_finite_named_and_the_same_again,
)
