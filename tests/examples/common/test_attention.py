"""Attention by name: what a name makes, and what is refused."""

import pytest

import ndgpa
from examples.common.attention import folder_name, operator_of
from examples.common.untrusted import BadInput
from ndgpa.operators import Neighborhood, NoAttention


@pytest.mark.parametrize(
    ("name", "operator"),
    [
        ("GPA(12)", ndgpa.GPA(12)),
        ("GPA(12, far=block)", ndgpa.GPA(12, far="block")),
        ("GPA(12, far='site')", ndgpa.GPA(12, far="site")),
        ("GPA(8, far=Bundles(32))", ndgpa.GPA(8, far=ndgpa.Bundles(32))),
        ("GPA(Refine(TopK(48), 12))", ndgpa.GPA(ndgpa.Refine(ndgpa.TopK(48), keep=12))),
        (
            "GPA(TopK(4, relevance=logit, force=Own()), read=Strided(2))",
            ndgpa.GPA(
                ndgpa.TopK(4, relevance="logit", force=ndgpa.Own()),
                read=ndgpa.structures.Strided(2),
            ),
        ),
        ("Full", ndgpa.Full()),
        ("NoAttention()", NoAttention()),
    ],
)
def test_a_name_is_the_call_it_spells(name: str, operator: object) -> None:
    assert operator_of(name) == operator


def test_options_are_set_where_an_operator_has_them_and_the_name_says_nothing() -> None:
    set_here = {"scale": 4.0, "affinity": "euclidean"}
    assert operator_of("GPA(3)", **set_here) == ndgpa.GPA(3, scale=4.0, affinity="euclidean")
    assert operator_of("GPA(3, scale=2.0)", scale=4.0) == ndgpa.GPA(3, scale=2.0)
    assert operator_of("GPA(3, 2.0)", scale=4.0) == ndgpa.GPA(3, scale=2.0)
    assert operator_of("NoAttention", **set_here) == NoAttention()
    window = operator_of("Neighborhood(7)", **set_here)
    assert isinstance(window, Neighborhood)
    assert window.scale == 4.0


def test_short_names_stand_for_calls() -> None:
    assert operator_of("mine", {"mine": "GPA(3, far=site)"}) == ndgpa.GPA(3, far="site")
    assert operator_of("GPA(5)", {"mine": "GPA(3)"}) == ndgpa.GPA(5)


def test_a_folder_is_named_without_marks() -> None:
    assert folder_name("GPA(Refine(TopK(48), 12), far=block)") == "GPA_Refine_TopK_48_12_far_block"
    assert folder_name("GPA(12, backend='../../x')") == "GPA_12_backend_x"
    assert folder_name("gpa") == "gpa"


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "name",
    [
        "GAP(12)",
        "GPA(",
        "print(1)",
        "GPA(print(1))",
        "GPA(12).backend()",
        "GPA(1 + 2)",
        "GPA(*(12,))",
        "../gpa",
        "",
        "GPA(12, far=" + "(" * 300,
    ],
)
def test_what_is_no_call_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match=r"unknown attention .*; expected a call of GPA, Full"):
        operator_of(name)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("GPA(12, far=nowhere)", "unknown far"),
        ("GPA()", "missing 1 required"),
        ("GPA(TopK(0))", "at least 1"),
        ("GPA(12, far=Bundles(0))", "at least 1"),
        ("Full(12, 13, 14, 15)", "positional arguments"),
    ],
)
def test_what_an_operator_refuses_is_told(name: str, text: str) -> None:
    with pytest.raises(BadInput, match=rf"attention .*: .*{text}"):
        operator_of(name)


@pytest.mark.bad_input
def test_short_names_are_among_what_is_expected() -> None:
    with pytest.raises(BadInput, match="expected one of gpa, full, or a call of GPA"):
        operator_of("gap", {"gpa": "GPA(3)", "full": "Full()"})
