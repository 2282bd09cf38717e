from xai_lib import records, statistics
from xai_lib.results import VERDICTS, Estimate, Figure, Verdict


def test_an_estimate_prints_with_its_interval():
    assert str(Estimate(0.8874, 0.8721, 0.9)) == "0.887 [0.872, 0.900]"
    assert str(Estimate(0.5)) == "0.500"


def test_nothing_is_shared_between_figures_or_verdicts():
    assert Figure(Estimate(0.5)).baselines is not Figure(Estimate(0.5)).baselines
    first, second = (Verdict("3.1", VERDICTS[0], "why", "rule") for _ in range(2))
    assert first == second and first.parts is not second.parts


def test_the_older_places_give_the_same_classes():
    assert statistics.Estimate is Estimate
    assert (records.Figure, records.Verdict, records.VERDICTS) == (Figure, Verdict, VERDICTS)
