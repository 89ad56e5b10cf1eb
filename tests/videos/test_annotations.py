"""Annotation files as catalogs: CSV, Label Studio, CVAT and ELAN. A file that cannot be used is one error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dmgal.errors import DmgalError
from dmgal.videos import VideoCatalog
from dmgal.videos.catalog.lists import EXPORTS, read_lists

CSV = "video,label,start,end\na.mp4,wave,0.5,1.25\nb.mp4,bend,1:02,1:03.5\na.mp4,bend,2,3\n"
NAMES = ("a.mp4#t=0.5,1.25", "b.mp4#t=62,63.5", "a.mp4#t=2,3")


def result(start, end, *labels):
    ranges = [{"start": start, "end": end}]
    return {"type": "timelinelabels", "value": {"ranges": ranges, "timelinelabels": list(labels)}}


def tasks(video="/data/upload/3/0a1b2c3d-a.mp4", results=(), **more):
    return json.dumps([{"id": 1, "data": {"video": video}, "annotations": [{"result": list(results), **more}]}])


def cvat(tracks: str, meta: str = "<task><id>4</id><source>a.mp4</source></task>") -> str:
    return f"<?xml version='1.0'?><annotations><version>1.1</version><meta>{meta}</meta>{tracks}</annotations>"


def box(frame, outside=0):
    return f'<box frame="{frame}" outside="{outside}" occluded="0" keyframe="1" xtl="0" ytl="0" xbr="9" ybr="9"/>'


def track(label, *boxes, **attributes):
    more = "".join(f' {name}="{value}"' for name, value in attributes.items())
    return f'<track id="0" label="{label}"{more}>{"".join(boxes)}</track>'


def elan(annotations: str, media="file:///home/x/a.mp4") -> str:
    slots = '<TIME_SLOT TIME_SLOT_ID="s1" TIME_VALUE="500"/><TIME_SLOT TIME_SLOT_ID="s2" TIME_VALUE="1250"/>'
    header = f'<HEADER><MEDIA_DESCRIPTOR MEDIA_URL="{media}" MIME_TYPE="video/mp4"/></HEADER>'
    return (
        f"<ANNOTATION_DOCUMENT>{header}<TIME_ORDER>{slots}</TIME_ORDER><TIER>{annotations}</TIER></ANNOTATION_DOCUMENT>"
    )


def aligned(text: str, first="s1", second="s2") -> str:
    value = f"<ANNOTATION_VALUE>{text}</ANNOTATION_VALUE>"
    references = f'TIME_SLOT_REF1="{first}" TIME_SLOT_REF2="{second}"'
    return (
        f'<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a1" {references}>{value}</ALIGNABLE_ANNOTATION></ANNOTATION>'
    )


@pytest.fixture
def root(tmp_path) -> Path:
    for name in ("a.mp4", "b.mp4", "sub/c.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def catalog_of(root: Path, name: str, text: str) -> VideoCatalog:
    (root / name).write_text(text)
    return VideoCatalog.from_split(root / name, root)


def clips(catalog: VideoCatalog) -> list[tuple[str, str]]:
    return [(catalog.class_names[c], video) for c, video in zip(catalog.labels, catalog.videos, strict=True)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv(root, delimiter):
    catalog = catalog_of(root, "segments.csv", CSV.replace(",", delimiter))
    assert catalog.videos == NAMES and catalog.labels.tolist() == [0, 1, 1]
    assert catalog.class_names == ("wave", "bend") and catalog.class_splits is None
    assert catalog.path(0) == root / "a.mp4#t=0.5,1.25"


def test_csv_with_splits_and_groups_reads_back_as_a_split_file(root):
    text = "split,person,video,class_name,start,end\ntrain,ann,a.mp4,wave,0,1\ntest,bob,b,bend,0,1\n"
    (root / "segments.csv").write_text(text)
    catalog = VideoCatalog.from_split(root / "segments.csv", root, group="person")
    assert catalog.class_splits == ("train", "test") and catalog.groups == ("ann", "bob")
    assert catalog.videos[1] == "b.mp4#t=0,1"
    catalog.to_csv(root / "split.csv")
    assert VideoCatalog.from_csv(root / "split.csv", root).videos == catalog.videos
    assert catalog.with_groups("([^/]+)#").groups == ("a.mp4", "b.mp4")


def test_label_studio(root):
    seconds = {"type": "labels", "value": {"start": 0.5, "end": 1.25, "channel": 0, "labels": ["bend"]}}
    boxes = {"type": "videorectangle", "value": {"sequence": [], "labels": ["wave"], "start": 0, "end": 1}}
    relation = {"type": "choices", "value": {"choices": ["good"]}}
    found = clips(catalog_of(root, "export.json", tasks(results=[result(1, 25, "wave"), seconds, boxes, relation])))
    assert found == [("wave", "a.mp4#frames=0,25"), ("bend", "a.mp4#t=0.5,1.25")]


@pytest.mark.parametrize(
    ("url", "video"),
    [
        ("/data/local-files/?d=videos/sub/c.mp4", "sub/c.mp4"),
        ("https://example.org/x/b.mp4?token=1", "b.mp4"),
        ("s3://bucket/sub/c.mp4", "sub/c.mp4"),
        ("b.mp4", "b.mp4"),
    ],
)
def test_label_studio_names_of_videos(root, url, video):
    [(_, clip)] = clips(catalog_of(root, "export.json", tasks(url, [result(2, 2, "wave")])))
    assert clip == f"{video}#frames=1,2"


def test_cancelled_annotations_and_predictions_do_not_count(root):
    task = json.loads(tasks(results=[result(1, 2, "wave")], was_cancelled=True))[0]
    task["predictions"] = [{"result": [result(3, 4, "wave")]}]
    with pytest.raises(DmgalError, match="no labeled segment"):
        catalog_of(root, "export.json", json.dumps([task]))


def test_cvat_tracks(root):
    again = track("wave", box(3), box(5), box(6, 1), box(9), box(12))
    found = clips(catalog_of(root, "annotations.xml", cvat(track("bend", box(0), box(1, 1)) + again)))
    assert found == [("bend", "a.mp4#frames=0,1"), ("wave", "a.mp4#frames=3,6"), ("wave", "a.mp4#frames=9,13")]


def test_cvat_project_with_several_videos(root):
    names = "".join(f"<task><id>{i}</id><source>{name}.mp4</source></task>" for i, name in ((1, "a"), (2, "b")))
    tracks = track("wave", box(0), task_id=2) + track("bend", box(0), task_id=1)
    found = clips(catalog_of(root, "annotations.xml", cvat(tracks, f"<project><tasks>{names}</tasks></project>")))
    assert found == [("wave", "b.mp4#frames=0,1"), ("bend", "a.mp4#frames=0,1")]


def test_elan(root):
    assert clips(catalog_of(root, "a.eaf", elan(aligned("wave")))) == [("wave", "a.mp4#t=0.5,1.25")]


BOMB = """<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><annotations>&b;</annotations>"""
BAD = {
    "video,label,start,end\na.mp4,wave,3,2\n": "Row 2(.|\n)*ends before it begins",
    "video,label,start,end\na.mp4,wave,3,3\n": "is empty",
    "video,label,start,end\na.mp4,wave,-1,3\n": "is not a time",
    "video,label,start,end\na.mp4,wave,nan,3\n": "is not a time",
    "video,label,start,end\na.mp4,,1,3\n": "class name",
    "video,label,start,end\na.mp4,wave,1\n": "4 values",
    "video,label,start\na.mp4,wave,1\n": "Add the column",
    "video,label,start,end\nz.mp4,wave,1,3\n": "z.mp4#t=1,3",
    CSV + "a.mp4,wave,0.5,1.25\n": "listed more than once",
    tasks(results=[result(5, 2, "wave")]): "ends before",
    tasks(results=[result(0, 2, "wave")]): "frames from 1",
    tasks(results=[result(1, 2)]): "without a label",
    tasks(results=[result(1, 2, " ")]): "without a label",
    tasks("z.mp4", [result(1, 2, "wave")]): "z.mp4",
    tasks(7, [result(1, 2, "wave")]): "does not name its video",
    "[{}]": "no labeled segment",
    '[{"annotations": 3}]': "JSON-MIN",
    '{"tasks": []}': "no list of tasks",
    "[" * 100_000: "nested levels",
    "[1": "no JSON",
    cvat(track("", box(0))): "no label",
    cvat(track("wave", "<box/>")): "number of its frame",
    cvat(track("wave", box(0)), "<job/>"): "whose video is unknown",
    cvat(track("wave", box(-2), box(1, 1))): "not between 0",
    cvat("", ""): "no labeled segment",
    "<a>": "no XML",
    "<a/>": "root element",
    "<annotations>&b;</annotations>": "no XML",
    BOMB: "document type",
    '<!DOCTYPE x SYSTEM "file:///etc/passwd"><annotations/>': "document type",
    "<a>" * 50 + "</a>" * 50: "nested levels",
    elan(aligned("")): "no text",
    elan(aligned("wave", "s2", "s1")): "ends before",
    elan(aligned("wave", "s1", "s9")): "no times",
    elan(aligned("wave"), media=""): "MEDIA_DESCRIPTOR",
}


@pytest.mark.parametrize(("text", "message"), BAD.items(), ids=range(len(BAD)))
def test_bad_annotations_are_one_error(root, text, message):
    kinds = {"video": "csv", "[": "json", "{": "json", "<ANNOTATION_DOCUMENT": "eaf", "": "xml"}
    name = f"x.{next(kind for start, kind in kinds.items() if text.startswith(start))}"
    with pytest.raises(DmgalError, match=message) as caught:
        catalog_of(root, name, text)
    assert all(part in str(caught.value) for part in ("received:", "expected:", "what to do:"))


@pytest.mark.parametrize("extension", EXPORTS)
def test_a_broken_file_is_one_error(root, extension):
    for content in (b"", b"\0\1\2", b"\xff\xfe<a/>"):
        (root / f"x{extension}").write_bytes(content)
        with pytest.raises(DmgalError, match="cannot be read"):
            VideoCatalog.from_split(root / f"x{extension}", root)


def places(value):
    """Yield all containers in a JSON value with each key in them."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


@pytest.mark.parametrize("odd", [None, -1, 10**30, 0.5, True, "", "x", [], [[]], {}, {"start": None}], ids=repr)
def test_any_value_in_an_export_gives_rows_or_one_error(tmp_path, odd):
    seconds = {"value": {"start": 0.5, "end": 1.25, "labels": ["bend"]}}
    whole = tasks(results=[result(1, 25, "wave"), seconds])
    for number in range(len(list(places(json.loads(whole))))):
        content = json.loads(whole)
        container, key = list(places(content))[number]
        container[key] = odd
        (tmp_path / "any.json").write_text(json.dumps(content))
        try:
            list(read_lists(tmp_path / "any.json", lambda video: video))
        except DmgalError as error:
            assert "what to do:" in str(error)
