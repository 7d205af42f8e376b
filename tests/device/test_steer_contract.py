"""What a steerer's contract says of runs, files and copies, on the pretended device."""

from tests.steer.test_contract import (  # noqa: F401
    fitted,
    model,
    test_a_saved_file_steers_the_same,
    test_copies_steer_the_same,
    test_each_row_has_its_own_strength,
    test_fit_returns_itself_and_leaves_the_network,
    test_it_steers_every_step_of_generate,
    test_strength_zero_changes_no_bit,
)
