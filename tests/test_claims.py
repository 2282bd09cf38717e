import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from xai_lib import claims, config, records
from xai_lib.claims import FAILS, HOLDS, UNDECIDED, Claim
from xai_lib.records import Figure, Verdict
from xai_lib.statistics import Estimate, mean_sd

IDS = [
    *("1.1", "1.2", "1.3", "1.4"),
    *("2.1", "2.2", "2.3", "2.4", "2.5", "2.6"),
    *("3.1", "3.2", "3.3", "3.4"),
    *("4.1", "4.2", "4.3", "4.4", "4.5", "4.6", "4.7", "4.8"),
    *("5.1", "5.2", "5.3", "5.4", "5.5", "5.6"),
    *("6.1", "6.2", "6.3", "6.4", "6.5", "6.6", "6.7", "6.8", "6.9"),
]
KINDS = {
    "value": {"2.1", "3.1", "3.2", "5.1", "6.2", "6.8", "6.9"},
    "order": {"1.1", "2.2", "2.5", "3.3", "4.1", "4.2", "4.4", "4.8", "5.2", "5.3", "5.4", "5.5", "6.1", "6.3", "6.5"},
}
NOTEBOOKS = {
    "1": "01_patch_xai",
    "2": "02_whole_mammogram_iou",
    "3": "03_ultrasound_cam_pointing_game",
    "4": "04_knowledge_transfer_densenet",
    "5": "05_inpainting_sdr",
    "6": "06_omig_cdmam",
}
CLAIMS = claims.load()
CLAIM = CLAIMS["3.1"]


def interval(value: float, low: float, high: float) -> Estimate:
    return Estimate(value, low, high, "bootstrap over 50 patient_id, 1000 replicates")


# ------------------------------------------------------------------------------------------------ the file


def test_the_37_claims_are_all_there():
    assert list(CLAIMS) == IDS and len(set(IDS)) == 37
    assert all(claim.id == name for name, claim in CLAIMS.items())


def test_every_kind_is_that_of_the_table():
    for claim in CLAIMS.values():
        expected = next((kind for kind, ids in KINDS.items() if claim.id in ids), "sign")
        assert claim.kind == expected, claim.id


def test_every_claim_has_one_notebook_that_answers_it():
    for claim in CLAIMS.values():
        assert claim.notebook == NOTEBOOKS[claim.id[0]], claim.id


def test_the_answered_claims_are_those_of_the_notebooks_that_there_are():
    there = {path.stem for path in (config.repository_dir() / "notebooks").glob("*.ipynb")}
    assert {claim.id for claim in CLAIMS.values() if claim.status == "answered"} == {
        claim.id for claim in CLAIMS.values() if claim.notebook in there
    }


@pytest.mark.parametrize("name", [claim.id for claim in CLAIMS.values() if claim.status == "answered"])
def test_the_notebook_of_an_answered_claim_names_it(name):
    notebook = config.repository_dir() / "notebooks" / f"{CLAIMS[name].notebook}.ipynb"
    assert notebook.is_file(), f"claim {name} is answered by {notebook.name}, which does not exist"
    cells = json.loads(notebook.read_text())["cells"]
    text = "\n".join("".join(cell["source"]) + json.dumps(cell.get("outputs", "")) for cell in cells)
    assert re.search(rf"(?<![\d.]){re.escape(name)}(?!\d)", text), f"{notebook.name} does not name claim {name}"


def test_committed_records_judge_only_the_claims_of_their_study():
    for path in sorted((config.repository_dir() / "data" / "records").rglob("*.json")):
        record = records.read(path)
        for name in record.verdicts:
            assert CLAIMS[name].notebook[:2] == record.study[:2], f"{path.name} judges claim {name}"


def test_every_claim_has_three_outcomes_in_words():
    for claim in CLAIMS.values():
        assert len(claim.rule) > 40 and len(claim.measured) > 10, claim.id
        if claim.id not in ("4.2", "6.9"):  # 4.2 refers to 4.1; 6.9 cannot be decided at all
            rule = claim.rule.lower()
            assert all(words in rule for words in ("holds when", "does not hold", "not decidable here")), claim.id


def test_the_numbers_of_study_3_are_the_papers():
    assert CLAIMS["3.1"].figures == {"auc": {"paper": 0.887, "tolerance": 0.015, "widest": 0.2}}
    rates = {name: numbers["paper"] for name, numbers in CLAIMS["3.2"].figures.items()}
    assert rates == {"mass": 0.34, "ring": 0.38, "below": 0.30, "any": 0.71}
    for numbers in CLAIMS["3.2"].figures.values():  # one standard error over 68 masses x 2 scans x accuracy 0.835
        error = math.sqrt(numbers["paper"] * (1 - numbers["paper"]) / (68 * 2 * 0.835))
        assert numbers["tolerance"] == pytest.approx(error, abs=0.001)
    assert set(CLAIMS["3.3"].figures) == {"ring - mass", "ring - below"}
    assert CLAIMS["3.4"].figures == {"gap": {"tolerance": 1e-5}}


def changed_file(folder: Path, old: str, new: str) -> Path:
    text = (config.repository_dir() / "data" / "claims.yml").read_text()
    assert old in text
    (folder / "claims.yml").write_text(text.replace(old, new, 1))
    return folder / "claims.yml"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('id: "1.2"', 'id: "1.1"', "claim 1.1 occurs twice"),
        ('id: "1.2"', "id: 1.2", "claim 1.2: id is 1.2, expected text"),
        ("  kind: order\n", "", "claim 1.1: kind is None, expected text"),
        ("kind: order", "kind: guess", "claim 1.1: kind is 'guess', expected one of value, order, sign"),
        ("status: answered", "status: done", r"claim \d\.\d: status is 'done', expected one of answered, planned"),
        ("  test: identity\n", "", "claim 3.4: is answered, but test or figures is missing"),
        ("test: within", "test: judgement", r"claim \d\.\d: test is 'judgement', expected one of within"),
        ("status: answered", "state: answered", r"claim \d\.\d: state is not a known field"),
        ('- id: "1.1"', '- "1.1"\n- id: "1.1"', "'1.1' is not a claim, expected fields"),
        ("- id:", "- id: [", "is not YAML"),
    ],
)
def test_a_faulty_file_is_named(tmp_path, old, new, message):
    with pytest.raises(ValueError, match=rf"claims\.yml: {message}"):
        claims.load(changed_file(tmp_path, old, new))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.yml: not found"):
        claims.load(tmp_path / "none.yml")
    (tmp_path / "text.yml").write_text("only text")
    with pytest.raises(ValueError, match=r"text\.yml: expected a list of claims"):
        claims.load(tmp_path / "text.yml")


# ------------------------------------------------------------------------------------------------ the rules


@pytest.mark.parametrize(
    ("ours", "verdict", "why"),
    [
        (interval(0.89, 0.85, 0.93), HOLDS, "0.890 [0.850, 0.930] meets the paper's 0.872 to 0.902"),
        (interval(0.83, 0.79, 0.872), HOLDS, "meets"),  # the border counts
        (interval(0.83, 0.79, 0.8719), FAILS, "lies wholly below the paper's 0.872 to 0.902"),
        (interval(0.95, 0.9021, 0.99), FAILS, "lies wholly above the paper's"),
        (interval(0.80, 0.67, 0.88), UNDECIDED, "meets the paper's 0.872 to 0.902, but its width 0.210 is above 0.200"),
        (interval(0.60, 0.45, 0.74), FAILS, "wholly below"),  # a wide interval can still contradict
        (Estimate(0.89), UNDECIDED, "has no interval"),
        (interval(math.nan, 0.1, 0.9), UNDECIDED, "not defined"),
        (interval(1.0, 1.0, 1.0), UNDECIDED, "every replicate gave 1.000"),
        (mean_sd([0.88, 0.89, 0.90]), UNDECIDED, "sd over runs, which is not a 95 % interval"),
    ],
)
def test_within(ours, verdict, why):
    got = claims.within(CLAIM, ours, 0.887, 0.015, widest=0.2)
    assert (got.claim, got.verdict, got.rule) == ("3.1", verdict, CLAIM.rule)
    assert why in got.why


@pytest.mark.parametrize(
    ("chance", "clause"),
    [(0.36, "chance level 0.360 lies in our interval"), (0.16, "above the chance level 0.160"), (0.5, "below the ch")],
)
def test_chance_is_named_beside_a_value_and_decides_nothing(chance, clause):
    got = claims.within(CLAIM, interval(0.35, 0.3, 0.4), 0.34, 0.01, baseline=chance)
    assert got.verdict == HOLDS and clause in got.why and got.baseline == Estimate(chance)
    assert "chance" not in claims.within(CLAIM, interval(0.35, 0.3, 0.4), 0.34, 0.01, baseline=math.nan).why


@pytest.mark.parametrize(
    ("ours", "baseline", "verdict"),
    [
        (interval(0.8, 0.7, 0.9), 0.5, HOLDS),
        (interval(0.8, 0.7, 0.9), Estimate(0.69, 0.6, 0.75), HOLDS),
        (interval(0.8, 0.7, 0.9), 0.7, UNDECIDED),
        (interval(0.8, 0.7, 0.9), 0.75, UNDECIDED),
        (interval(0.3, 0.2, 0.4), 0.5, FAILS),
        (interval(0.3, 0.2, 0.4), math.nan, UNDECIDED),
        (Estimate(0.8), 0.5, UNDECIDED),
    ],
)
def test_above(ours, baseline, verdict):
    got = claims.above(CLAIM, ours, baseline)
    assert got.verdict == verdict and got.ours == ours and got.why


UP, DOWN, ACROSS = interval(0.1, 0.02, 0.2), interval(-0.1, -0.2, -0.02), interval(0.05, -0.05, 0.15)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [([UP, UP], HOLDS), ([UP, ACROSS], UNDECIDED), ([UP, DOWN], FAILS), ([ACROSS, DOWN], FAILS), ([UP], HOLDS)],
)
def test_ordered(differences, verdict):
    named = {f"difference {i}": difference for i, difference in enumerate(differences)}
    assert claims.ordered(CLAIM, named).verdict == verdict


def test_ordered_names_the_same_difference_at_chance():
    got = claims.ordered(CLAIM, {"ring - mass": UP, "ring - below": UP}, {"ring - mass": 0.15})
    assert got.verdict == HOLDS and set(got.parts) == {"ring - mass", "ring - below"}
    assert "the chance level 0.150 lies in our interval" in got.parts["ring - mass"].why
    assert got.parts["ring - mass"].baseline == Estimate(0.15) and got.parts["ring - below"].baseline is None


def test_identity():
    assert claims.identity(CLAIM, 1e-5, 1e-5).verdict == HOLDS
    assert claims.identity(CLAIM, 1.1e-5, 1e-5).verdict == FAILS
    assert claims.identity(CLAIM, math.inf, 1e-5).verdict == FAILS
    assert claims.identity(CLAIM, math.nan, 1e-5).verdict == UNDECIDED
    assert claims.identity(CLAIM, 3e-7, 1e-5).why == "largest gap 3.0e-07, at most 1e-05 allowed"


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        ((HOLDS, HOLDS), HOLDS),
        ((HOLDS, UNDECIDED), UNDECIDED),
        ((HOLDS, FAILS), FAILS),
        ((UNDECIDED, FAILS), FAILS),
        ((UNDECIDED,), UNDECIDED),
    ],
)
def test_combine(parts, verdict):
    named = {f"p{i}": Verdict("3.1", outcome, f"why {i}", "rule") for i, outcome in enumerate(parts)}
    got = claims.combine(CLAIM, named)
    assert got.verdict == verdict
    assert all(f"why {i}" in got.why for i in range(len(parts)))
    with pytest.raises(ValueError, match=r"verdicts: claim 3\.1 has no part"):
        claims.combine(CLAIM, {})


# ------------------------------------------------------------------------------------------------ study 3, decided

RATES = {
    "mass": interval(0.33, 0.25, 0.42),
    "ring": interval(0.45, 0.37, 0.53),
    "below": interval(0.30, 0.22, 0.38),
    "any": interval(0.735, 0.66, 0.81),
}


def test_decide_3_1():
    assert claims.decide(CLAIMS["3.1"], {"auc": interval(0.91, 0.89, 0.93), "accuracy": Estimate(0.1)}).verdict == HOLDS
    assert claims.decide(CLAIMS["3.1"], {"auc": interval(0.74, 0.62, 0.84)}).verdict == FAILS


def test_decide_3_2():
    chance = {"mass": Estimate(0.16), "ring": 0.39}
    got = claims.decide(CLAIMS["3.2"], RATES, chance)
    assert got.verdict == HOLDS and list(got.parts) == ["mass", "ring", "below", "any"]
    assert "mass: holds, 0.330 [0.250, 0.420] meets the paper's 0.296 to 0.384; our interval lies above" in got.why
    low = claims.decide(CLAIMS["3.2"], RATES | {"below": interval(0.18, 0.11, 0.25)})
    assert low.verdict == FAILS and "below: does not hold" in low.why
    wide = claims.decide(CLAIMS["3.2"], RATES | {"mass": interval(0.33, 0.2, 0.45)})
    assert wide.verdict == UNDECIDED


def test_decide_3_3_and_3_4():
    assert claims.decide(CLAIMS["3.3"], {"ring - mass": UP, "ring - below": UP, "mass - below": DOWN}).verdict == HOLDS
    assert claims.decide(CLAIMS["3.3"], {"ring - mass": DOWN, "ring - below": UP}).verdict == FAILS
    assert claims.decide(CLAIMS["3.4"], {"gap": Estimate(2e-6)}).verdict == HOLDS
    assert claims.decide(CLAIMS["3.4"], {"gap": Estimate(2e-3)}).verdict == FAILS


def test_decide_above():
    claim = replace(CLAIM, test="above", figures={"auc": {}})
    assert claims.decide(claim, {"auc": interval(0.8, 0.7, 0.9)}, {"auc": 0.5}).verdict == HOLDS
    assert claims.decide(claim, {"auc": interval(0.8, 0.7, 0.9)}).verdict == UNDECIDED


def test_decide_errors():
    with pytest.raises(ValueError, match=r"claim 3\.1: is planned, no test"):
        claims.decide(replace(CLAIMS["3.1"], status="planned", test=""), {})
    with pytest.raises(ValueError, match=r"ours: claim 3\.3 needs 'ring - below', got ring - mass"):
        claims.decide(CLAIMS["3.3"], {"ring - mass": UP})


# ------------------------------------------------------------------------------------------------ the ledger


def record(name: str, **verdicts: Verdict) -> records.Record:
    return records.make(
        study="03_ultrasound_cam_pointing_game",
        title="t",
        profile="lab",
        parameters={},
        seed=0,
        data={"name": name, "fingerprint": "ab"},
        figures={"auc": Figure(Estimate(0.9))},
        verdicts={v.claim: v for v in verdicts.values()},
        started=time.perf_counter(),
    )


def test_the_ledger_without_records_lists_every_claim():
    table = claims.ledger([])
    assert list(table["id"]) == IDS
    assert list(table.columns) == "id claim paper ours interval baseline verdict why data profile".split()
    answered = np.array([CLAIMS[name].status == "answered" for name in table["id"]])
    assert set(table.loc[answered, "verdict"]) == {"not measured"}
    assert set(table.loc[~answered, "verdict"]) <= {"planned"}
    assert not table.isna().any(axis=None)


def test_the_ledger_has_one_row_per_claim_and_record(tmp_path):
    auc = claims.decide(CLAIMS["3.1"], {"auc": interval(0.91, 0.89, 0.93)}, {"auc": 0.5})
    rates = claims.decide(CLAIMS["3.2"], RATES, {"mass": 0.16})
    gap = claims.decide(CLAIMS["3.4"], {"gap": Estimate(2e-6)})
    written = [record("busi", a=auc, b=rates), record("breast", a=auc, c=gap)]
    read = [records.read(records.write(r, tmp_path / f"{i}.json")) for i, r in enumerate(written)]
    table = claims.ledger(read)
    assert len(table) == 38 and list(table["id"].unique()) == IDS
    first = table[table["id"] == "3.1"]
    assert list(first["data"]) == ["busi", "breast"] and set(first["profile"]) == {"lab"}
    row = first.iloc[0]
    assert (row["ours"], row["interval"], row["baseline"], row["verdict"]) == (
        "0.910",
        "[0.890, 0.930]",
        "0.500",
        HOLDS,
    )
    assert row["paper"].startswith("AUC 0.887") and "meets the paper's" in row["why"]
    row = table[table["id"] == "3.2"].iloc[0]
    assert row["ours"] == "mass 0.330; ring 0.450; below 0.300; any 0.735"
    assert row["interval"] == "[0.250, 0.420]; [0.370, 0.530]; [0.220, 0.380]; [0.660, 0.810]"
    assert row["baseline"] == "mass 0.160"
    assert table[table["id"] == "3.4"].iloc[0]["ours"] == "2.0e-06"


def test_the_ledger_refuses_an_unknown_claim():
    stray = Verdict("9.9", HOLDS, "", "")
    with pytest.raises(ValueError, match=r"records: 03_.* on busi judges the unknown claim 9\.9"):
        claims.ledger([record("busi", a=stray)])


def test_a_claim_is_a_plain_frozen_value():
    assert isinstance(CLAIM, Claim)
    with pytest.raises(AttributeError):
        CLAIM.rule = "another"  # type: ignore[misc]
