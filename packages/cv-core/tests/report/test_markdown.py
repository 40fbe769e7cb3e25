from cv_core.report.markdown import render_markdown


def row(page, *starts):
    wanted = "| " + " | ".join(starts) + " |"
    return next(line for line in page.splitlines() if line.startswith(wanted))


def test_page_holds_verdicts_numbers_and_protocol(make_results):
    page = render_markdown(make_results())
    assert "## Verdict: supported 2 of 6, contradicted 1, inconclusive 2, untested 1" in page
    verdict = row(page, "ICCE above cross entropy in test accuracy", "40 % symmetric")
    assert "✔ supported | +0.1530 \\[+0.1458, +0.1602\\] | 5 |" in verdict
    assert "0.871 against 0.62 (+0.251)" in verdict
    assert "0.8550 ± 0.0080" in row(page, "40 % symmetric", "ICCE (paper)")
    assert "about 17 paired seeds" in page
    assert "- GCE, 40 % pair: failed: ValueError: no (seed 0)" in page
    assert "- GCE, 40 % pair: skipped: GCE has no pair form (seed 1, 2, 3, 4)" in page
    assert "\ncvlab run icce --budget default --seeds 5 --data mnist\n" in page
    assert "0123456789abcdef0123456789abcdef01234567 with uncommitted changes" in page
    assert len(page) < 6000


def test_tables_are_rectangular(make_results):
    blocks = [part for part in render_markdown(make_results()).split("\n\n") if part[0] == "|"]
    assert len(blocks) == 2
    for block in blocks:
        columns = {line.replace("\\|", "").count("|") for line in block.splitlines()}
        assert len(columns) == 1


def test_texts_cannot_act_as_markup(make_results):
    odd = '<script>alert(1)</script> [a](b) | `c` *d* _e_\n# f "><img src=x onerror=y>'
    results = make_results()
    declared = results.declared.model_copy(update={"question": odd, "notes": [odd], "title": odd})
    page = render_markdown(results.model_copy(update={"declared": declared, "command": "a ``` b"}))
    assert "<script" not in page
    assert "<img" not in page
    assert "[a](b)" not in page
    assert "\n# f" not in page
    assert "\\[a\\](b) \\| \\`c\\` \\*d\\* \\_e\\_ \\# f" in page
    assert "````\na ``` b\n````" in page  # a longer fence than any inside


def test_nothing_to_say_leaves_no_empty_sections(make_results):
    results = make_results()
    declared = results.declared.model_copy(update={"notes": [], "claims": []})
    page = render_markdown(results.model_copy(update={"declared": declared}))
    assert "## Notes" not in page
    assert "## Verdict: no claims" in page
    assert "\n\n\n" not in page
