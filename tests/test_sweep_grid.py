import pytest
from sweep_notebooks import PARAMETERS

from xai_lib import config
from xai_lib.sweep_grid import GridError, read_grid


@pytest.fixture
def read(tmp_path, monkeypatch, write_notebook):
    """Read a grid from its text, with two notebooks in the repository."""
    (tmp_path / "notebooks").mkdir()
    write_notebook(tmp_path / "notebooks" / "03_tiny.ipynb", parameters=PARAMETERS)
    write_notebook(tmp_path / "notebooks" / "05_other.ipynb", parameters=PARAMETERS.replace("beta", "rate"))
    monkeypatch.setattr(config, "repository_dir", lambda: tmp_path)
    monkeypatch.delenv("XAI_DATA_DIR", raising=False)

    def run(text, data_dir=None):
        (tmp_path / "grid.yml").write_text(text)
        return read_grid(tmp_path / "grid.yml", tmp_path / "out", data_dir)

    return run


def test_a_block_is_the_product_of_what_it_lists(read, tmp_path):
    runs = read("notebooks: [03]\nprofile: smoke\nparameters: {beta: [0.1, 1], do: [a, b]}\nseeds: [7, 8]")
    found = [(r.parameters["beta"], r.parameters["do"], r.seed) for r in runs]
    assert found == [(b, d, s) for b in (0.1, 1.0) for d in "ab" for s in (7, 8)]
    assert {r.parameters["profile"] for r in runs} == {"smoke"}
    assert runs[0].job.parameters == {"beta": 0.1, "do": "a", "seed": 7, "profile": "smoke"}
    assert runs[0].label == "03 beta=0.1 do=a profile=smoke"
    assert runs[0].cell == runs[1].cell and len({r.cell for r in runs}) == 4
    assert runs[1].folder == tmp_path / "out" / runs[1].cell / "seed-8" / "03_tiny"
    assert runs[0].cell.startswith("03-beta=0.1-do=a-profile=smoke-")


def test_several_blocks_follow_one_another(read):
    runs = read("- {notebooks: [03, 05_other], seeds: [0]}\n- {notebooks: [5], parameters: {rate: [2]}, seeds: [0]}")
    assert [(r.notebook, r.parameters) for r in runs] == [
        ("03_tiny", {}),
        ("05_other", {}),
        ("05_other", {"rate": 2.0}),
    ]


def test_a_cell_is_known_by_its_parameters_and_its_data(read, tmp_path, monkeypatch):
    text = "notebooks: [03]\nparameters: {beta: [%s]}\nseeds: [0]"
    one, same, other = (read(text % value)[0].cell for value in ("1", "1.0", "2"))
    assert one == same != other
    (tmp_path / "data").mkdir()
    named = read(text % 1, tmp_path / "data")[0]
    monkeypatch.setenv("XAI_DATA_DIR", str(tmp_path / "data"))
    assert read(text % 1)[0].cell == named.cell != one and named.job.data_dir == tmp_path / "data"


def test_the_name_of_a_cell_can_be_a_folder_anywhere(read):
    (run,) = read(f"notebooks: [03]\nparameters: {{do: ['../a b: {'x' * 200}']}}\nseeds: [0]")
    assert "/" not in run.cell and " " not in run.cell and len(run.cell) < 100
    (other,) = read(f"notebooks: [03]\nparameters: {{do: ['../a b: {'x' * 201}']}}\nseeds: [0]")
    assert run.cell != other.cell


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "grid.yml: is None, expected the keys notebooks, profile, parameters, seeds"),
        ("[]", "grid.yml: holds no block"),
        ("notebooks: [03", "grid.yml: is not YAML"),
        ("notebooks: [03]\nseeds: [0]\nseed: 1", "unknown key 'seed'; there are notebooks, profile, parameters, seeds"),
        ("notebooks: [03]\nseeds: [0]\nseeds: [1]", "grid.yml: 'seeds' stands twice"),
        ("notebooks: [03]", "seeds: is None, expected a list of values"),
        ("seeds: [0]", "notebooks: is None, expected a list of values"),
        ("notebooks: [03]\nseeds: 3", "seeds: is 3, expected a list of values"),
        ("notebooks: [03]\nseeds: []", r"seeds: is \[\], expected a list of values"),
        ("notebooks: [03]\nseeds: [a]", "seeds: 'a' is not int"),
        ("notebooks: [03]\nseeds: [true]", "seeds: True is not int"),
        ("notebooks: [03]\nseeds: [0, 1, 0]", "03 with seed 0 is twice in the grid"),
        ("notebooks: [09]\nseeds: [0]", "notebook '09' not found; there are 03_tiny, 05_other"),
        ("notebooks: [03, 05]\nparameters: {beta: [1]}\nseeds: [0]", "05_other has no parameter 'beta'"),
        ("notebooks: [03]\nparameters: {beta: 1}\nseeds: [0]", "parameters.beta: is 1, expected a list of values"),
        ("notebooks: [03]\nparameters: {beta: [x]}\nseeds: [0]", "03_tiny: parameter beta: 'x' is not of type float"),
        ("notebooks: [03]\nparameters: {do: [no]}\nseeds: [0]", "parameters.do: False is not text; put it in quotes"),
        ("notebooks: [03]\nparameters: [beta]\nseeds: [0]", r"parameters: is \['beta'\], expected `name: "),
        ("notebooks: [03]\nparameters: {seed: [1]}\nseeds: [0]", "parameters.seed: is set by seeds"),
        ("notebooks: [03]\nparameters: {profile: [lab]}\nseeds: [0]", "parameters.profile: is set by profile"),
        ("notebooks: [03]\nparameters: {output_dir: [x]}\nseeds: [0]", "output_dir .* is set by the runner"),
        ("notebooks: [03]\nprofile: huge\nseeds: [0]", "profile: 'huge' is unknown"),
        ("notebooks: [03]\nprofile: [lab]\nseeds: [0]", r"profile: is \['lab'\], expected a name"),
        ("- {notebooks: [03], seeds: [0]}\n- {notebooks: [03], seeds: [0]}", "block 2: 03 with seed 0 is twice"),
        ("- {notebooks: [03], seeds: [0]}\n- 7", "block 2: is 7, expected the keys"),
    ],
)
def test_every_mistake_is_found_before_anything_starts(read, tmp_path, text, message):
    with pytest.raises(GridError, match=message):
        read(text)
    assert not list(tmp_path.glob("out/*"))


def test_a_missing_grid_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.yml"):
        read_grid(tmp_path / "nothing.yml", tmp_path / "out")
