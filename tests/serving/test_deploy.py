from pathlib import Path

import pytest
import yaml

from stillroom.errors import UserError
from stillroom.serving.app import ServeArgs
from stillroom.serving.deploy import validate_serve_yaml

SERVE = Path(__file__).parents[2] / "serve"
GOOD = (SERVE / "quickstart.yaml").read_text()


@pytest.mark.parametrize("file", sorted(SERVE.glob("*.yaml")), ids=lambda file: file.name)
def test_every_deployment_that_we_ship_is_valid(file):
    assert validate_serve_yaml(file).applications


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("route_prefix:", "rout_prefix:", "route_prefix"),
        ("http_options:", "http_option:", "http_options"),
        ("max_batch_tokens: 4096", "max_batch_token: 4096", "max_batch_tokens"),
        ("{replicas: 1, num_cpus: 1}", "{replica: 1}", "replicas"),
        ("policy: auto", "policy: cheapest", "policy"),
        ("port: 8000", "port: many", "port"),
    ],
)
def test_what_serve_would_ignore_in_silence_is_an_error(tmp_path, right, wrong, message):
    assert right in GOOD
    (tmp_path / "a.yaml").write_text(GOOD.replace(right, wrong))
    with pytest.raises(UserError, match=message):
        validate_serve_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("limits: {text: 5}", "limits.unknown field 'text'. Did you mean 'texts'"),
        ("limits: {texts: 0}", "limits.texts: Input should be greater than 0"),
        ("student: {replica: 1}", "student.unknown field 'replica'. Did you mean 'replicas'"),
    ],
)
def test_a_fault_in_a_section_is_named_with_the_section(args, message):
    with pytest.raises(UserError, match=message):
        ServeArgs.read({"releases": ["a"], **yaml.safe_load(args)})
