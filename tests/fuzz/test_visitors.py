# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A few seconds of the campaign of `fuzz.visitors`."""

from __future__ import annotations

import pytest
from fuzz.visitors import campaign


@pytest.mark.slow
def test_visitors_get_their_own_frames_and_leave_nothing_behind():
    visits, before, after, freed = campaign(visitors=6, seconds=4, seed=0)
    assert visits.wrong == [] and visits.ends["finish"] > 0, visits
    assert freed < 1
    assert after.threads <= before.threads and after.files <= before.files, (before, after)
    # not memory: in a few seconds an allocator's pools grow more than a leak of some sessions would
    assert not any(after.objects.values()), (before, after)
