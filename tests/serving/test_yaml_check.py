from pathlib import Path

import pytest
import yaml

from stillroom.errors import UserError
from stillroom.serving.app import build
from stillroom.serving.config import ServeArgs
from stillroom.serving.yaml_check import validate_serve_yaml
from support.tiny_releases import make_release

SERVE = Path(__file__).parents[2] / "serve"
QUICKSTART = (SERVE / "quickstart.yaml").read_text()


@pytest.mark.parametrize("file", sorted(SERVE.glob("*.yaml")), ids=lambda file: file.name)
def test_every_shipped_deployment_is_valid(file):
    assert validate_serve_yaml(file).applications


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("route_prefix:", "rout_prefix:", "route_prefix"),
        ("http_options:", "http_option:", "http_options"),
        ("policy: auto", "polcy: auto", "policy"),
        ("{replicas: 1, num_cpus: 1}", "{replica: 1}", "replicas"),
        ("policy: auto", "policy: cheapest", "policy"),
        ("port: 8000", "port: many", "port"),
    ],
)
def test_a_key_that_serve_would_ignore_is_an_error(tmp_path, right, wrong, message):
    assert right in QUICKSTART
    (tmp_path / "a.yaml").write_text(QUICKSTART.replace(right, wrong))
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
def test_an_error_in_a_section_is_reported_with_the_section(args, message):
    with pytest.raises(UserError, match=message):
        ServeArgs.read({"releases": ["a"], **yaml.safe_load(args)})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("policies: {quickstart: {spil: {}}}", "policies.quickstart: 'spil'"),
        ("policy: {spill: {limits: 3}}", "policy.spill.limits"),
        (
            "teacher: {autoscale: {min_replicas: 2, max_replicas: 1}}",
            "min_replicas .2. is over max_replicas .1.",
        ),
        ("teacher: {autoscale: {max_replicas: 2, minimum: 1}}", "minimum"),
        ("shadow: {share: 2}", "shadow.share"),
        ("shadow: {shares: 1}", "shares"),
        ("student: {node_labels: {disk: 1}}", "student.node_labels.disk"),
        ("student: {in_router: true, replicas: 0}", "student.in_router: no router would run"),
        (
            "student: {in_router: true, autoscale: {min_replicas: 0, max_replicas: 2}}",
            "no router would run",
        ),
        (
            "student: {in_router: true}, teacher: {in_router: true}",
            "another encoder is in the router",
        ),
        ("student: {in_router: true}, routers: 2", "student.in_router: its `replicas` set"),
        (
            "student: {in_router: true}, router_node_labels: {disk: fast}",
            "student.in_router: its `node_labels` are the routers'",
        ),
        (
            "teacher: {in_router: true}, shadow: {}",
            "teacher.in_router: shadow needs teacher replicas",
        ),
        ("student: {in_router: true}, releases: [a, b]", "several"),
        ("models: {bge: {modl: x}}", "models.bge.unknown field 'modl'. Did you mean 'model'"),
        ("models: {bge: {model: x, pooling: best}}", "models.bge.pooling"),
        ("models: {a b: {model: x}}", "models.a b: cannot be a model's name"),
        ("releases: [], models: {bge: {model: x}}, student: {}", "student: is for releases"),
        ("releases: [], models: {bge: {model: x}}, shadow: {}", "shadow: is for releases"),
        ("releases: []", "Name at least one release or model"),
        (
            "student: {in_router: true}, models: {bge: {model: x, in_router: true}}",
            "another encoder is in the router",
        ),
    ],
)
def test_an_error_deep_in_the_args_is_reported_with_its_path(tmp_path, args, message):
    (tmp_path / "a.yaml").write_text(
        "applications:\n- import_path: stillroom.serving.app:build\n"
        f"  args: {{releases: [release/quickstart], {args}}}\n"
    )
    with pytest.raises(UserError, match=message):
        validate_serve_yaml(tmp_path / "a.yaml")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return str(make_release(tmp_path_factory.mktemp("deploy") / "one", shared_space=True))


@pytest.fixture(scope="module")
def two_spaces(tmp_path_factory):
    return str(make_release(tmp_path_factory.mktemp("deploy") / "two", shared_space=False))


CANARY = {"tiny": {"canary": {"share": 0.1, "to": "next/student", "rest": "student"}}}


def test_two_releases_of_one_name_are_served_under_two_names(release):
    build({"releases": [release, f"next={release}"], "policies": CANARY, "shadow": {}})
    with pytest.raises(UserError, match=f"releases or models are named 'tiny'.*next={release}"):
        build({"releases": [release, release]})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"policies": CANARY}, "policies.tiny: .*spaces differ"),
        ({"policies": {"tinny": "student"}}, "policies.tinny: is not the name of a release"),
        ({"policy": "asymmetric", "teacher": {"replicas": 0}}, "needs tiny/teacher"),
        (
            {"teacher": {"replicas": 0}, "student": {"replicas": 0}},
            "no encoder of 'tiny' is served",
        ),
    ],
)
def test_args_that_cannot_be_served_are_refused_at_deployment(release, two_spaces, args, message):
    with pytest.raises(UserError, match=message):
        build({"releases": [release, f"next={two_spaces}"], **args})


def test_models_and_releases_are_served_side_by_side(release):
    student = {"model": f"{release}/student", "num_gpus": 1}
    build({"releases": [release], "models": {"BAAI/bge-small": student}})
    for name, message in (
        ("tiny", "two releases or models are named 'tiny'"),
        ("tiny/student", "is also the name of a release's encoder"),
    ):
        with pytest.raises(UserError, match=message):
            build({"releases": [release], "models": {name: student}})
    with pytest.raises(UserError, match="policies.bge: is not the name of a release"):
        build({"releases": [release], "models": {"bge": student}, "policies": {"bge": "student"}})


def test_routers_are_on_nodes_with_their_labels(release):
    on_demand = {"ray.io/market-type": "on-demand"}
    router = build({"releases": [release], "router_node_labels": on_demand})
    options = router._bound_deployment.ray_actor_options  # Serve shows it nowhere else
    assert options["label_selector"] == on_demand
