import json

import torch
from tests.support.command import limelight

from limelight import __version__


def test_info_names_versions_devices_and_why_a_backend_cannot_run():
    found = json.loads(limelight("info", "--json").out)
    assert found["versions"]["limelight"] == __version__
    assert found["versions"]["torch"] == torch.__version__
    assert "cpu" in found["machine"]["devices"]
    assert found["machine"]["threads"] == torch.get_num_threads()
    for answers in found["backends"].values():
        assert {"reference", "streaming", "torch"} <= set(answers)
        assert list(answers.values()).count("auto takes it") == 1
    assert found["backends"]["additive, padded"]["torch"] == "the score is not a plain dot product"


def test_info_prints_the_same_as_tables():
    ran = limelight("info")
    assert (ran.code, ran.err) == (0, "")
    for text in (torch.__version__, "additive, padded", "streaming", "auto takes it", "not a plain dot product"):
        assert text in ran.out
