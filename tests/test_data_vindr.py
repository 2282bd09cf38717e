import pytest
from mammogram_files import ENCODINGS, grey, truncate, write_dicom

from xai_lib.data.case import DataError, hashed_id, summary
from xai_lib.data.vindr import check_vindr, load_vindr

BREAST_HEAD = "study_id,series_id,laterality,view_position,image_id,height,width,breast_birads,breast_density,split"
FINDING_HEAD = (
    "image_id,study_id,series_id,laterality,view_position,height,width,breast_birads,breast_density,"
    "finding_categories,finding_birads,xmin,ymin,xmax,ymax,split"
)
BREASTS = [
    "s1,e1,L,CC,aaa,40,30,BI-RADS 4,DENSITY C,training",
    "s1,e1,R,MLO,bbb,40,30,BI-RADS 1,DENSITY C,training",
    "s2,e2,L,MLO,ccc,40,30,BI-RADS 3,DENSITY B,test",
    "s2,e2,R,CC,ddd,40,30,BI-RADS 2,DENSITY B,test",
]
FINDINGS = [
    """aaa,s1,e1,L,CC,40,30,BI-RADS 4,DENSITY C,"['Mass', 'Skin Retraction']",BI-RADS 4,5.2,10.9,14.5,20.0,training""",
    "aaa,s1,e1,L,CC,40,30,BI-RADS 4,DENSITY C,['Suspicious Calcification'],BI-RADS 4,20,30,45,38,training",
    "bbb,s1,e1,R,MLO,40,30,BI-RADS 1,DENSITY C,['No Finding'],,,,,,training",
    "ccc,s2,e2,L,MLO,40,30,BI-RADS 3,DENSITY B,['Mass'],BI-RADS 3,1,2,3,4,test",
]


def write_tables(root, breasts=BREASTS, findings=FINDINGS, heads=(BREAST_HEAD, FINDING_HEAD), encoding="utf-8"):
    for name, head, lines in zip(("breast-level", "finding"), heads, (breasts, findings), strict=True):
        (root / f"{name}_annotations.csv").write_bytes("\n".join([head, *lines, ""]).encode(encoding))


@pytest.fixture
def root(tmp_path):
    write_tables(tmp_path)
    for study, image in (("s1", "aaa"), ("s1", "bbb"), ("s2", "ccc")):
        write_dicom(tmp_path / "images" / study / f"{image}.dicom", grey(), ImagerPixelSpacing=[0.085, 0.085])
    return tmp_path


def test_cases(root):
    cases = load_vindr(root)
    assert list(cases.table["source"]) == ["vindr/aaa", "vindr/bbb", "vindr/ccc"]
    assert list(cases.table["class"]) == ["malignant", "normal", "benign"] and cases.labels.tolist() == [1, 0, 0]
    assert cases.patient_ids.tolist() == [hashed_id(f"vindr/{study}") for study in ("s1", "s1", "s2")]
    assert list(cases.table["birads"]) == [4, 1, 3] and list(cases.table["density"]) == ["C", "C", "B"]
    assert list(cases.table["part"]) == ["training", "training", "test"]
    assert summary(cases.skipped) == "1 x image file is missing"


def test_boxes_are_whole_half_open_and_clipped(root):
    cases = load_vindr(root)
    assert cases[0].boxes.tolist() == [[10, 5, 20, 15], [30, 20, 38, 30]]  # the second crosses the right edge
    assert cases.table["lesions"][0] == ("Mass+Skin Retraction", "Suspicious Calcification")
    assert cases[1].boxes.shape == (0, 4) and cases[0].mask is None and cases[0].pixel_mm == 0.085


def test_options(root):
    mass = load_vindr(root, findings=["Mass"])
    assert mass.table["boxes"].map(len).tolist() == [1, 0, 1] and mass.labels.tolist() == [1, 0, 0]
    assert list(load_vindr(root, part="test").table["source"]) == ["vindr/ccc"]
    assert load_vindr(root, classes=["malignant"]).labels.tolist() == [1]
    with pytest.raises(ValueError, match="part: 'train' is unknown, expected None, 'training' or 'test'"):
        load_vindr(root, part="train")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_tables_in_another_encoding(root, encoding):
    write_tables(root, encoding=encoding)
    assert len(load_vindr(root)) == 3


def test_missing_columns_are_named(root):
    write_tables(root, heads=(BREAST_HEAD, FINDING_HEAD.replace("xmin", "left")))
    with pytest.raises(DataError, match=r"finding_annotations\.csv: lacks the columns xmin; it has"):
        load_vindr(root)
    write_tables(root, heads=(BREAST_HEAD.replace("breast_birads", "birads"), FINDING_HEAD))
    with pytest.raises(DataError, match=r"breast-level_annotations\.csv: lacks the columns breast_birads"):
        load_vindr(root)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("5.2,10.9,14.5,20.0", "50,10,60,20", "box outside the image"),
        ("5.2,10.9,14.5,20.0", "14,10,5,20", "not a box: rows 10 to 20, columns 14 to 5"),
        ("5.2,10.9,14.5,20.0", ",10,5,20", "not a box: xmin ''"),
        ("['Mass', 'Skin Retraction']", "Mass", "finding_categories 'Mass' is not a list"),
    ],
)
def test_faulty_finding_is_skipped_and_counted_or_refused(root, old, new, why):
    write_tables(root, findings=[FINDINGS[0].replace(old, new), *FINDINGS[1:]])
    cases = load_vindr(root)
    assert list(cases.table["source"]) == ["vindr/bbb", "vindr/ccc"] and cases.skipped[0].why.startswith(why)
    with pytest.raises(DataError, match=f"vindr/aaa: {why[:12]}"):
        load_vindr(root, strict=True)


@pytest.mark.parametrize(
    ("old", "new"),
    [("BI-RADS 4", "BI-RADS 7"), ("BI-RADS 4", ""), (",L,", ",X,"), (",CC,", ",AT,"), ("40,30", "4m,30")],
)
def test_faulty_breast(root, old, new):
    write_tables(root, breasts=[BREASTS[0].replace(old, new), *BREASTS[1:]])
    cases = load_vindr(root)
    assert len(cases) == 2 and cases.skipped[0].source == "vindr/aaa"


def test_image_of_another_size_than_the_table_says(root):
    write_dicom(root / "images" / "s1" / "aaa.dicom", grey(20, 30))
    with pytest.raises(DataError, match=r"aaa\.dicom: image has another size than the table says: it is 20 x 30"):
        load_vindr(root)[0]


def test_damaged_image(root):
    truncate(root / "images" / "s2" / "ccc.dicom")
    with pytest.raises(DataError, match=r"ccc\.dicom"):
        load_vindr(root)[2]
    report = check_vindr(root, verify=True)
    assert [item.source for item in report.faulty] == ["vindr/ccc"] and report.missing == ["vindr/ddd"]


def test_missing_image_with_strict(root):
    with pytest.raises(DataError, match=r"^vindr: vindr/ddd: image file is missing$"):
        load_vindr(root, strict=True)
