"""Fisher's tables, in the shapes that the corpus' readme and public loaders describe."""

from data_pipelines.recordings.fisher.call_tables import (
    parse_calldata,
    parse_pindata,
    parse_sexes,
    parse_topics,
    read_tables,
)
from tests.data_pipelines.recordings.fisher.calls import CALLDATA, TOPICS


def test_calldata_gives_topic_sexes_and_speakers_without_pins() -> None:
    calls = parse_calldata([CALLDATA], {}, parse_pindata("2637,F,54\n"))
    assert sorted(calls) == ["00001", "00002", "00003"]
    assert calls["00001"].topic == "ENG01" and calls["00001"].sexes == ("f", "m")
    assert calls["00001"].speakers[1] == calls["00002"].speakers[1] != calls["00001"].speakers[0]
    # One PIN with two sexes stands for two people.
    assert calls["00003"].sexes == ("f", "m") and calls["00003"].speakers[0] != calls["00003"].speakers[1]
    assert "2602" not in str(calls) and "1790" not in str(calls)


def test_a_pin_whose_sex_is_not_known_in_each_call_has_one_key() -> None:
    header = CALLDATA.splitlines()[0]
    one = f"{header}\n00001,,ENG01,3,3,2602,f.a,,,,1790,m.o,,,\n00002,,ENG01,3,3,2602,.,,,,4242,.,,,\n"
    two = f"{header}\n05851,,ENG01,3,3,1790,.,,,,4242,.,,,\n05852,,ENG01,3,3,1790,f.a,,,,7777,m.a,,,\n"
    calls = parse_calldata([one, two])
    first, second = calls["00001"].speakers, calls["00002"].speakers
    assert second[0] == first[0] and calls["00002"].sexes == ("f", "")
    assert calls["05851"].speakers[1] == second[1]
    # Both sexes are heard on 1790, and nobody knows which one in 05851.
    assert first[1] == calls["05851"].speakers[0] == calls["05852"].speakers[0]
    assert len({*first, *second, calls["05852"].speakers[1]}) == 4


def test_grades_and_nativeness_come_from_the_auditors_or_the_speaker() -> None:
    pins = parse_pindata("PIN,S_SEX,S_AGE\n4242,M,40,12,English,WA,1,x\n1790,M,40,12,Polish,NA,1,x\nNA,F\n")
    calls = parse_calldata([CALLDATA], {}, pins)
    assert (calls["00001"].signal, calls["00001"].talk) == (3.0, 3.0)
    assert (calls["00002"].signal, calls["00002"].talk) == (3.5, None)
    assert calls["00001"].natives == (True, False)
    assert calls["00002"].natives == (True, False)  # 1790 has no dialect here, so the speaker's own statement counts.
    assert sorted(pins) == ["1790", "4242"] and pins["1790"].is_native is False


def test_an_open_quotation_mark_costs_one_row_of_a_table() -> None:
    broken = CALLDATA.replace('2602,f.a,"5405513275"', '"2602,f.a,5405513275') + "x" * 200_000 + "\0\n"
    assert sorted(parse_calldata([broken])) == ["00002", "00003"]
    assert sorted(parse_pindata('"1,F\n2,F\n"' + "x" * 200_000)) == ["2"]


def test_sexes_are_found_whatever_the_order_of_columns() -> None:
    expected = {"05852": ("f", "f")}
    assert parse_sexes("fe_03_p2_sph1 fe_03_05852.sph ff\nsome title\n") == expected
    assert parse_sexes("05852\tfe_03_p2_sph1\tff\tBBN\n") == parse_sexes("fe_03_p2_sph1\t05852\tff\tLDC\n") == expected


def test_topics_are_read_from_markup_that_is_not_well_formed() -> None:
    topics = parse_topics(TOPICS)
    assert topics["ENG01"] == "Professional Sports on TV." and len(topics) == 2


def test_tables_may_all_be_missing() -> None:
    tables = read_tables({name: [] for name in ("calldata", "pindata", "filelist", "topics", "filetable")})
    assert tables.missing == ["calldata", "topics", "filetable"]
    facts = tables.call("00007")
    assert facts.topic == "" and facts.speakers[0] != facts.speakers[1]
