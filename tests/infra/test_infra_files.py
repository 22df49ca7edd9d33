"""What infra/ holds, held against the code as far as it goes without Docker, Kubernetes, Slurm or Prometheus."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from jobs.cli import app
from pipelines.observe import GAUGES

INFRA = Path(__file__).parents[2] / "infra"
FILES = sorted(path for path in INFRA.rglob("*") if path.is_file() and path.suffix != ".pyc")
TEXTS = [
    path for path in FILES if path.suffix in (".yaml", ".sbatch", ".sh", ".md", "") and path.name != "constraints.txt"
]
COMMAND = re.compile(r"""ov2 [a-z]+(?: |$)(?:[^\n#;`|"]|"\$[A-Za-z]+[^"]*"|"\$\{[^"]*")*""")


def commands(path: Path) -> Iterator[list[str]]:
    """Every `ov2 ...` of a file as words, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", path.read_text())
    text = re.sub(r"(entrypoint: >-\n)((?:    .*\n)+?)(?=  \S)", lambda m: " ".join(m[2].split()) + "\n", text)
    for found in COMMAND.finditer(text):
        words = shlex.split(re.sub(r"[.,;)]?(\s*\[.*)?$", "", found[0].strip()))
        if len(words) > 1:
            yield words


def command_cases() -> list[tuple[str, list[str]]]:
    docs = [INFRA.parent / "docs/operations.md"]
    return [(path.name, words) for path in [*TEXTS, *docs] for words in commands(path)]


def find_command(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the words name, and the rest."""
    command: Any = typer.main.get_command(app)
    rest = words[1:]
    while hasattr(command, "commands"):
        assert set(rest[:1]) & set(command.commands), f"no such command: {words}"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


@pytest.mark.parametrize(("name", "words"), command_cases())
def test_every_command_parses_with_our_own_command_line(name: str, words: list[str]) -> None:
    command, rest = find_command(words)
    rest = [{"RUN": "run", "N": "2", "SECONDS": "2"}.get(word, word) for word in rest]
    command.make_context(words[1], rest)


def test_commands_are_found_where_they_stand() -> None:
    found = {name for name, _ in command_cases()}
    assert {
        "rayjob.yaml",
        "raycluster.yaml",
        "tokenize.sbatch",
        "tokenize.yaml",
        "alerts.yaml",
        "operations.md",
    } <= found
    (job,) = [words for name, words in command_cases() if name == "rayjob.yaml"]
    assert job[-4:] == ["--progress", "plain", "--max-quarantined", "0.05"]


def test_a_command_that_we_do_not_have_is_found_out() -> None:
    with pytest.raises(AssertionError, match="no such command"):
        find_command(["ov2", "tokenise"])
    command, rest = find_command(["ov2", "gc", "run", "--older", "3d"])
    with pytest.raises(Exception, match="No such option"):
        command.make_context("gc", rest)


@pytest.mark.parametrize("path", [p for p in FILES if p.suffix in (".yaml", ".json")], ids=lambda p: p.name)
def test_yaml_and_json_parse(path: Path) -> None:
    if path.suffix == ".json":
        assert json.loads(path.read_text())
    else:
        assert list(yaml.safe_load_all(path.read_text()))


def drawn_metrics(path: Path) -> set[str]:
    return set(re.findall(r"ray_(ov2_\w+)", path.read_text()))


def test_each_metric_drawn_or_watched_is_exported_and_each_exported_is_drawn() -> None:
    dashboard, alerts = (
        drawn_metrics(INFRA / "monitoring/dashboard.json"),
        drawn_metrics(INFRA / "monitoring/alerts.yaml"),
    )
    assert dashboard | alerts <= GAUGES.keys()
    assert dashboard == GAUGES.keys()


def test_labels_in_queries_are_tags_of_their_metric() -> None:
    for path in (INFRA / "monitoring/dashboard.json", INFRA / "monitoring/alerts.yaml"):
        queries = path.read_text().replace('\\"', '"')
        for name, labels in re.findall(r"ray_(ov2_\w+)\{([^}]*)\}", queries):
            assert set(re.findall(r"(\w+)=", labels)) <= set(GAUGES[name][1]), (name, labels)


def test_dashboard_panels_do_not_overlap_and_have_queries() -> None:
    panels = json.loads((INFRA / "monitoring/dashboard.json").read_text())["panels"]
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")")


def test_alert_rules_say_what_and_what_to_do() -> None:
    (group,) = yaml.safe_load((INFRA / "monitoring/alerts.yaml").read_text())["groups"]
    assert len({rule["alert"] for rule in group["rules"]}) == len(group["rules"]) >= 5
    for rule in group["rules"]:
        assert rule["expr"].count("(") == rule["expr"].count(")")
        assert rule["annotations"].keys() == {"summary", "remedy"}
        assert rule["labels"]["severity"] in ("page", "ticket")


@pytest.mark.parametrize("name", ["rayjob.yaml", "raycluster.yaml"])
def test_ray_manifests_are_what_kuberay_expects(name: str) -> None:
    plain = yaml.safe_load((INFRA / "kuberay" / name).read_text())
    assert (plain["apiVersion"], plain["kind"] in ("RayJob", "RayCluster")) == ("ray.io/v1", True)
    cluster = plain["spec"]["rayClusterSpec"] if plain["kind"] == "RayJob" else plain["spec"]
    ray_pin = next(line for line in (INFRA / "constraints.txt").read_text().splitlines() if line.startswith("ray=="))
    assert cluster["rayVersion"] == ray_pin.removeprefix("ray==")
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {one["name"]: one.get("value") for one in container["env"]}["RAY_AUTH_MODE"] == "disabled"
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in pod.get("volumes", [])}
    assert groups[0]["rayStartParams"]["num-cpus"] == "0"
    for group in groups[1:]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert len({group["groupName"] for group in groups[1:]}) == len(groups) - 1


@pytest.mark.parametrize(
    "path",
    [INFRA / "slurm/tokenize.sbatch", INFRA / "ray_nodes.sh", INFRA / "skypilot/tokenize.yaml"],
    ids=lambda p: p.name,
)
def test_scripts_pass_bash_n(path: Path, tmp_path: Path) -> None:
    scripts = [path.read_text()]
    if path.suffix == ".yaml":
        task = yaml.safe_load(scripts[0])
        scripts = [task["setup"], task["run"]]
        assert all(isinstance(value, str) for value in task["envs"].values())
    for text in scripts:
        done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, timeout=20)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""


def test_dockerfile_has_both_targets_and_copies_what_the_package_needs() -> None:
    text = (INFRA / "docker/Dockerfile").read_text()
    assert re.findall(r"^FROM \S+ AS (\w+)$", text, re.M) == ["base", "kernels", "cpu", "gpu"]
    pins = dict(line.split("==") for line in (INFRA / "constraints.txt").read_text().splitlines() if "==" in line)
    assert f"torch=={pins['torch']}" in text
    sent = {
        line[1:] for line in (INFRA / "docker/Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert {"pyproject.toml", "README.md", "infra/constraints.txt", "schemas", "ov2_core", "pipelines", "jobs"} == sent
    assert all((INFRA.parent / name).exists() for name in sent)


def test_s3_policies_allow_what_the_store_does_and_nothing_on_all_buckets() -> None:
    role = json.loads((INFRA / "s3/policy.json").read_text())["Statement"]
    actions = {action for statement in role for action in statement["Action"]}
    assert {"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket", "s3:AbortMultipartUpload"} <= actions
    for statement in role:
        assert "*" not in statement["Action"]
        assert all(re.match(r"arn:aws:s3:::[A-Z]+", resource) for resource in statement["Resource"])
    (deny,) = json.loads((INFRA / "s3/bucket-policy.json").read_text())["Statement"]
    assert (deny["Effect"], deny["Resource"].rpartition("runs/")[2]) == ("Deny", "*/commits/*")
