"""The catalog of a few files in the layout of KTH."""

import dmgal_example_data
import pytest

from dmgal.errors import DmgalError
from dmgal.videos import READERS

LIST = """Sequences are as follows
person01_boxing_d1\t\tframes\t1-95, 96-185
person02_boxing_d1\t\tframes\t1-80
person01_running_d4\t\tframes\t5-20, 30-44
person13_handclapping_d3\t*missing*
person03_walking_d1\t\tframes\t1-50
"""


def test_segments_of_existing_files_are_clips(tmp_path):
    (tmp_path / "00sequences.txt").write_text(LIST)
    for name in ("boxing/person01_boxing_d1", "boxing/person02_boxing_d1", "person01_running_d4"):
        path = tmp_path / f"{name}_uncomp.avi"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    catalog = READERS["kth"](tmp_path)
    assert catalog.videos == (
        "boxing/person01_boxing_d1_uncomp.avi#frames=0,95",
        "boxing/person01_boxing_d1_uncomp.avi#frames=95,185",
        "boxing/person02_boxing_d1_uncomp.avi#frames=0,80",
        "person01_running_d4_uncomp.avi#frames=4,20",
        "person01_running_d4_uncomp.avi#frames=29,44",
    )
    assert catalog.class_names == ("boxing", "running") and catalog.class_splits == ("train", "test")
    assert catalog.labels.tolist() == [0, 0, 0, 1, 1]
    assert catalog.groups == ("person01", "person01", "person02", "person01", "person01")


def test_missing_files_are_one_error(tmp_path):
    with pytest.raises(DmgalError, match="list of KTH"):
        dmgal_example_data.read(tmp_path)
    (tmp_path / "00sequences.txt").write_text(LIST)
    with pytest.raises(DmgalError, match="No video of KTH"):
        dmgal_example_data.read(tmp_path)
