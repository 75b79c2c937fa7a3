"""Where a setting comes from: command line > --config > task defaults > parser; what is unknown is an error."""

import pytest
import tiny_data
import yaml

import train
from common.errors import InputError
from common.session import begin
from common.settings import changed_settings, check_expected, parse_settings, plain_settings, read_config, settings_hash
from common.tasks import TASKS

BIOMASS = TASKS["biomass"]


def settle(argv, layers=()):
    return parse_settings(train.parser_of(BIOMASS), [str(word) for word in argv], list(layers))


def config(tmp_path, **settings):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_the_stronger_source_wins(tmp_path):
    layers = [("[task defaults]", {"epochs": 31, "lr": 0.5, "grid": [4, 4]}), ("[demo defaults]", {"lr": 0.25})]
    path = config(tmp_path, epochs=7, **{"batch-size": 3})
    args = settle(["--config", path, "--batch-size", "5"], layers)
    assert args.batch_size == 5, "the command line over --config"
    assert args.epochs == 7, "--config over the task's defaults"
    assert args.lr == 0.25 and args.grid == [4, 4], "a later layer over an earlier one, both over the parser"
    assert args.weight_decay == 1e-2, "the parser's own where nobody says otherwise"


def test_the_task_and_the_demo_bring_their_defaults(tiny_home, tmp_path, monkeypatch):
    with tiny_data.inside(tiny_home):
        real = begin(train.parser_of(BIOMASS), BIOMASS, ["--data", "data"])
        (tmp_path / "demo.json").write_text("{}")
        for name in ("train.csv", "test.csv"):
            (tmp_path / name).write_text("")
        demo = begin(train.parser_of(BIOMASS), BIOMASS, ["--data", str(tmp_path), "--lr", "0.125"])
    assert {key: real.settings[key] for key in BIOMASS.defaults} == BIOMASS.defaults
    for key, value in BIOMASS.demo_defaults.items():
        assert demo.settings[key] == (0.125 if key == "lr" else value)


def test_a_config_is_checked_as_words_would_be(tmp_path):
    for wrong, said in (({"epochs": "many"}, "epochs"), ({"loss": "l3"}, "not one of"), ({"two_stage": 3}, "true or"),
                        ({"grid": [2]}, "takes 2 values"), ({"lr": [1, 2]}, "takes one value"),
                        ({"augment": ["hflip", "sepia"]}, "sepia")):  # fmt: skip
        with pytest.raises(InputError, match=said) as error:
            settle(["--config", config(tmp_path, **wrong)])
        assert "recipe.yaml" in str(error.value)
    for text, said in (("- a\n- b", "list of"), ("a: [", "cannot be read as YAML"), (b"\xff\xfe\x00", "UTF-16")):
        (tmp_path / "odd.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(InputError, match=said):
            read_config(tmp_path / "odd.yaml")
    with pytest.raises(InputError, match="no such file"):
        read_config(tmp_path / "absent.yaml")


def test_what_is_unknown_is_named_with_its_nearest(tmp_path):
    with pytest.raises(InputError, match=r"--batch-sizes; did you mean --batch-size\?") as error:
        settle(["--batch-sizes", "4"])
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="unknown setting 'batchsize'; did you mean batch_size"):
        settle(["--config", config(tmp_path, batchsize=4)])
    with pytest.raises(InputError, match="unknown option"):
        settle(["--epoch", "4"])  # no abbreviations: it may mean something else tomorrow
    with pytest.raises(InputError, match="unknown option"):
        settle(["stray"])
    with pytest.raises(InputError, match="expected one argument"):
        settle(["--lr"])


def test_values_survive_a_config_as_they_are_on_the_command_line(tmp_path):
    words = ["--grid", "3", "2", "--augment", "hflip=.5", "affine=.3:1.2", "--target-weights", "1", "2", "3", "4", "5",
             "--no-two-stage", "--log-targets", "GDM_g", "--mix-within", "month", "state", "--lr", "3e-4",
             "--drop-ids", "ids.txt", "--fold", "1", "--data", "somewhere"]  # fmt: skip
    said = plain_settings(settle(words))
    path = config(tmp_path, **said)
    assert plain_settings(settle(["--config", path])) == said


def test_expected_settings():
    settings = {"lr": 2e-4, "grid": [3, 3], "two_stage": True, "run": "x", "augment": []}
    check_expected(settings, ["lr=2e-4", "grid=[3, 3]", "two-stage=true", "--run=x", "augment=[]"])
    check_expected(settings, ["lr=.0002", "grid=3 3", "two_stage=True"])
    with pytest.raises(InputError, match="lr is 0.0002, not 1e-3; two_stage is True, not false") as error:
        check_expected(settings, ["lr=1e-3", "two_stage=false", "run=x"])
    assert "\n" not in str(error.value)
    for wrong in ("grid=3 4", "lr=fast", "lr=[", "run=[", "two_stage=maybe"):
        with pytest.raises(InputError, match="--expect"):
            check_expected(settings, [wrong])
    with pytest.raises(InputError, match="no such setting; did you mean two_stage"):
        check_expected(settings, ["two_stages=true"])


def test_a_hash_of_what_changes_a_result():
    one, other = {"lr": 1, "workers": 2}, {"lr": 1, "workers": 8}
    assert settings_hash(one, {"workers"}) == settings_hash(other, {"workers"})
    assert settings_hash(one, set()) != settings_hash(other, set())
    assert changed_settings(one, other, {"workers"}) == []
    assert changed_settings({"lr": 1}, {"lr": 2, "new": 3}, set()) == ["lr: 1 -> 2", "new: None -> 3"]


def test_args_yaml_is_a_config_that_trains_the_same(tiny_copy):
    run = tiny_copy / "runs" / "biomass-1x1-s42"
    code = tiny_data.call("train", "--config", run / "fold0" / "args.yaml", "--run", "again", "--fold", "0",
                          cwd=tiny_copy)  # fmt: skip
    assert code == 0
    again = tiny_copy / "runs" / "again" / "fold0"
    assert (again / "oof.csv").read_bytes() == (run / "fold0" / "oof.csv").read_bytes()
    known = yaml.safe_load((again / "args.yaml").read_text())
    assert not {"force", "resume", "check", "expect"} & set(known), "options of one call are no recipe"


def test_a_fold_with_other_settings_is_refused(tiny_copy, capsys):
    before = {path: path.read_bytes() for path in (tiny_copy / "runs").rglob("*.pt")}
    words = ("--data", "data", *tiny_data.QUICK, "--fold", "0")
    assert tiny_data.call("train", *words, "--dropout", ".3", cwd=tiny_copy) == 2
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0 and "dropout: 0.2 -> 0.3" in said and "--force" in said
    assert tiny_data.call("train", *words, "--resume", "--dropout", ".3", cwd=tiny_copy) == 2
    assert before == {path: path.read_bytes() for path in (tiny_copy / "runs").rglob("*.pt")}
    assert tiny_data.call("train", *words, "--workers", "1", "--samples-every", "7", cwd=tiny_copy) == 0, (
        "free to differ"
    )
    assert "finished before" in capsys.readouterr().out
    assert tiny_data.call("train", *words, "--dropout", ".3", "--epochs", "1", "--force", cwd=tiny_copy) == 0
    assert len((tiny_copy / "runs/biomass-1x1-s42/fold0/log.jsonl").read_text().splitlines()) == 1


def test_resume_takes_the_settings_that_the_fold_began_with(tiny_copy, capsys):
    folder = tiny_copy / "runs" / "biomass-1x1-s42" / "fold0"
    (folder / "finished.json").unlink()
    assert tiny_data.call("train", "--data", "data", *tiny_data.QUICK, "--fold", "0", cwd=tiny_copy) == 2
    assert "--resume goes on, --force starts over" in capsys.readouterr().err
    # where the data lies is one of them, if no other is named
    code = tiny_data.call("train", "--run", "biomass-1x1-s42", "--fold", "0", "--resume", cwd=tiny_copy)
    assert code == 0 and (folder / "finished.json").is_file()
    assert tiny_data.call("train", "--data", "data", "--run", "other", "--resume", cwd=tiny_copy) == 2


def test_every_recipe_of_the_repository_is_understood():
    from pathlib import Path

    found = sorted((Path(train.__file__).parent / "recipes").glob("biomass*.yaml"))
    assert found
    for path in found:
        settle(["--config", path], [("[task defaults]", BIOMASS.defaults)])
