import csv
import io
import json
import re

import pytest

from pointpeft.escapes import csv_text, figure_text, fill, json_in_script, latex_text, markdown_text

HOSTILE = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_cell_of_csv_is_never_a_formula(name):
    rows = list(csv.reader(io.StringIO(csv_text(("name", "value"), [(name, -0.5)]), newline="")))
    assert rows == [["name", "value"], [f"'{name}", "-0.5"]]
    head, row = csv.reader(io.StringIO(csv_text((name,), [{name: name}]), newline=""))
    assert head == row == [f"'{name}"]


def test_csv_keeps_text_with_commas_quotes_and_lines_as_it_is():
    name = 'a,"b"\nc'
    assert list(csv.reader(io.StringIO(csv_text(("x", "y"), [{"x": name}]), newline="")))[1] == [name, ""]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a\\b", r"a\textbackslash{}b"),
        ("^~", r"\textasciicircum{}\textasciitilde{}"),
        ("{a}_%&#$", r"\{a\}\_\%\&\#\$"),
        ("a\nb", "a b"),
        ("50 ± 1", r"50 $\pm$ 1"),
    ],
)
def test_latex_prints_every_sign(name, expected):
    assert latex_text(name) == expected


def test_markdown_holds_no_tag_no_link_and_no_further_column():
    text = markdown_text("a|b<img src=x onerror=alert(1)>![p](http://x)`c`\n# d")
    assert "<" not in text
    assert text.count("|") == text.count(r"\|") == 1
    assert "\n" not in text
    assert not re.search(r"(?<!\\)[\[\]`]", text)
    assert markdown_text("point_mae_tiny") == "point_mae_tiny"


def test_a_value_that_looks_like_a_place_is_left_alone():
    values = {"A": "@B@", "B": "@A@ @DATA@"}
    assert fill("<@A@|@B@>", values) == "<@B@|@A@ @DATA@>"
    with pytest.raises(KeyError):
        fill("@MISSING@", values)


def test_json_in_a_script_cannot_end_it():
    value = {"</script><!--": "a & b > c"}
    text = json_in_script(value)
    assert not set("<>&") & set(text)
    assert json.loads(text) == value


@pytest.mark.parametrize("name", [r"$\frac$", "a$b$c", "$", "caf\udce9"])
def test_any_name_can_be_drawn(name):
    from matplotlib.figure import Figure

    figure = Figure()
    figure.suptitle(figure_text(name))
    figure.savefig(io.BytesIO(), format="png")
