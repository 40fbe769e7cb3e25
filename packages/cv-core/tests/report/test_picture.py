import re
import xml.etree.ElementTree as ET

from cv_core.report.picture import render_picture


def test_picture_stands_alone(make_results):
    text = render_picture(make_results())
    root = ET.fromstring(text)  # noqa: S314 - we wrote it
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert float(root.attrib["width"]) > 100
    assert text.count("http") == 1, "no address but the name space"
    for name in set(re.findall(r"var\((--[\w-]+)\)", text)):
        assert f"{name}:" in text, f"{name} has no value inside the file"
    assert "inconclusive" in text
    assert "supported" in text


def test_picture_of_an_untested_run_is_empty(make_results):
    nothing = make_results().model_copy(update={"trials": []})
    assert render_picture(nothing) == ""
