"""The Kubernetes chart: clusters take what it makes, and it agrees with the program it starts."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from typing import Any

import click
import helm_python
import jsonschema
import pytest
import yaml

from hipscore import queue
from hipscore.cli import COMMANDS, group
from hipscore.settings import Settings
from tests import kubernetes
from tests.kubernetes import CHART, HOME, Manifest, container, environment, merged, pods, render

ROOT = HOME.parents[1]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
HOSPITAL = kubernetes.example("hospital")
#: the least that can be said: no autoscaling, no policies, a claim that exists
BARE = {
    "image": {"repository": "registry.example/hipscore"},
    "secret": {"name": "hipscore"},
    "senders": ["*@10.0.0.0/8"],
    "spool": {"existingClaim": "images"},
    "networkPolicy": {"enabled": False},
    "podDisruptionBudget": {"enabled": False},
    "migration": {"enabled": False},
}
#: what the examples leave out
ALL = merged(
    HOSPITAL,
    kubernetes.example("region"),
    {
        "image": {"digest": f"sha256:{'0' * 64}", "pullSecrets": ["registry"]},
        "calledAeTitles": ["HIP", "HIPSCORE"],
        "noCommitment": ["*"],
        "rules": '[[destination]]\nname = "pacs"\naddress = "PACS@10.20.0.5:104"\n',
        "rulesSecret": "hipscore-rules",
        "podLabels": {"team": "radiology"},
        "podAnnotations": {"example.org/scrape": "no"},
        "listener": {
            "service": {
                "type": "NodePort",
                "nodePort": 31112,
                "annotations": {"example.org/pool": "dicom"},
            },
            "affinity": {"nodeAffinity": {}},
        },
        "api": {"tlsSecret": "hipscore-https", "allowedHosts": ["hip.example"]},
        "analysis": {"gpu": {"runtimeClassName": "nvidia", "keda": {"fallbackReplicas": 1}}},
        "keda": {"usernameKey": "broker-user", "tls": True},
    },
)
VALUES = {
    "hospital": HOSPITAL,
    "region": merged(HOSPITAL, kubernetes.example("region")),
    "bare": BARE,
    "all": ALL,
}
RENDERED = {name: render(values) for name, values in VALUES.items()}
OLDEST = re.findall(r"\d+\.\d+", yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"])
PROCESSES = {"listener", "api", "beat", "analysis-cpu", "analysis-gpu", "delivery"}

every_case = pytest.mark.parametrize("case", sorted(RENDERED))


def _of_kind(kind: str, case: str = "all") -> list[Manifest]:
    return [each for each in RENDERED[case] if each["kind"] == kind]


def _pod(component: str, case: str = "all") -> Manifest:
    return dict(pods(RENDERED[case]))[component]


def _strings(node_: object) -> Iterator[str]:
    if isinstance(node_, dict):
        for key, value in node_.items():
            yield str(key)
            yield from _strings(value)
    elif isinstance(node_, list):
        for value in node_:
            yield from _strings(value)
    else:
        yield str(node_)


def _leaves(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key)


@every_case
@pytest.mark.parametrize("release", (OLDEST[0], "1.37"))
def test_a_cluster_takes_every_object(case: str, release: str) -> None:
    for manifest in RENDERED[case]:
        kubernetes.check(manifest, release)


def test_a_cluster_would_refuse_a_key_that_it_does_not_know() -> None:
    wrong = merged(_of_kind("Deployment")[0], {"spec": {"replica": 2}})
    with pytest.raises(jsonschema.ValidationError, match="replica"):
        kubernetes.check(wrong, "1.37")
    scaled = merged(_of_kind("ScaledObject")[0], {"spec": {"minReplicas": 2}})
    with pytest.raises(jsonschema.ValidationError, match="minReplicas"):
        kubernetes.check(scaled, "1.37")


def test_names_are_unique_within_a_kind() -> None:
    for case, manifests in RENDERED.items():
        names = Counter((each["kind"], each["metadata"]["name"]) for each in manifests)
        assert set(names.values()) == {1}, case


def test_the_schema_of_the_values_is_sound_and_knows_every_value() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    given = {"image": {"repository": "r"}, "secret": {"name": "s"}}
    jsonschema.Draft7Validator(SCHEMA).validate(merged(DEFAULTS, given))


def test_every_value_is_used_by_a_template() -> None:
    templates = "".join(path.read_text() for path in (CHART / "templates").iterdir())
    for path in _leaves(DEFAULTS):
        if "settings" in path:
            continue  # names of variables
        known = {"resources", "nodeSelector", "tolerations", "affinity", "annotations"} & set(path)
        name = next(iter(known), path[-1])
        assert re.search(rf"\.{name}\b", templates), ".".join(path)


@pytest.mark.parametrize(
    ("values", "word"),
    (
        ({"image": {"repository": ""}}, "/image/repository"),
        ({"secret": {"name": ""}}, "/secret/name"),
        ({"secret": {"password": "hush"}}, "password"),
        ({"listner": {"replicas": 3}}, "listner"),
        ({"settings": {"HIPSCORE_DATABASE_URL": "postgresql://u:p@h/n"}}, "HIPSCORE_DATABASE_URL"),
        ({"settings": {"QUIET_SECONDS": "5"}}, "QUIET_SECONDS"),
        ({"settings": {"HIPSCORE_QUIET_SECONDS": 5}}, "got number, want string"),
        ({"aeTitle": "LONGER THAN SIXTEEN"}, "/aeTitle"),
        ({"senders": [], "destinations": []}, "nobody may send"),
        ({"spool": {"storageClassName": ""}}, "spool.storageClassName is empty"),
        ({"networkPolicy": {"dicomFrom": []}}, "networkPolicy.dicomFrom is empty"),
        ({"networkPolicy": {"database": {"to": []}}}, "networkPolicy.database.to is empty"),
        ({"networkPolicy": {"pacs": []}}, "networkPolicy.pacs is empty"),
        ({"networkPolicy": {"dicomFrom": ["10.0.0.1"]}}, "/networkPolicy/dicomFrom/0"),
        ({"keda": {"address": ""}}, "keda.address is empty"),
        ({"analysis": {"cpu": {"concurrency": 2}}}, "give threads"),
        ({"serviceMonitor": {"keySecret": ""}}, "serviceMonitor.keySecret is empty"),
    ),
)
def test_values_that_cannot_work_are_refused_by_name(values: dict[str, Any], word: str) -> None:
    with pytest.raises(helm_python.HelmError, match=re.escape(word)):
        render(merged(HOSPITAL, values))


def test_helm_finds_nothing_wrong_with_the_chart() -> None:
    found = helm_python.lint(CHART, values=HOSPITAL)
    assert found["errors"] == []


@every_case
def test_every_setting_exists_and_is_accepted(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "HIPSCORE_DATABASE_URL": "postgresql+psycopg://u:p@database:5432/hipscore",
        "HIPSCORE_BROKER_URL": "redis://:p@broker:6379/0",
        "HIPSCORE_THREADS": "2",
    }
    for component, template in pods(RENDERED[case]):
        given = environment(template, RENDERED[case])
        ours = {name for name in given if name.startswith("HIPSCORE_")}
        unknown = {name.removeprefix("HIPSCORE_").lower() for name in ours}
        assert unknown <= set(Settings.model_fields), component
        assert {"HIPSCORE_DATABASE_URL", "HIPSCORE_BROKER_URL"} <= ours, component
        with monkeypatch.context() as inside:
            for name, value in given.items():
                inside.setenv(name, secrets.get(name, "2") if value == "<elsewhere>" else value)
            settings = Settings()
        if component != "migrate":
            assert settings.lease_seconds == DEFAULTS["leaseSeconds"]
            assert settings.data_dir.as_posix() in DOCKERFILE


def test_values_and_examples_name_settings_that_exist() -> None:
    texts = [path.read_text() for path in (HOME / "examples").iterdir()]
    texts += [(CHART / "values.yaml").read_text(), (HOME / "README.md").read_text()]
    texts.append((CHART / "values.schema.json").read_text())
    named = set(re.findall(r"\bHIPSCORE_([A-Z_]+)\b", "".join(texts))) - {"CONFIG"}
    assert {name.lower() for name in named} <= set(Settings.model_fields)


def _parse(arguments: list[str]) -> str:
    """Parse a command line as ``hipscore`` would, without running it; its command."""
    command: click.Command = group
    context = click.Context(group, info_name="hipscore")
    while isinstance(command, click.Group):
        name, found, arguments = command.resolve_command(context, arguments)
        assert found is not None
        command = found
        if isinstance(command, click.Group):
            context = click.Context(command, info_name=name, parent=context)
    command.make_context(command.name, arguments, parent=context)
    return str(command.name)


def test_every_process_is_started_by_a_command_that_exists() -> None:
    commands = {name: _parse(container(pod)["args"]) for name, pod in pods(RENDERED["all"])}
    assert commands == {
        "listener": "listen",
        "api": "serve",
        "beat": "beat",
        "analysis-cpu": "work",
        "analysis-gpu": "work",
        "delivery": "work",
        "migrate": "upgrade",
    }
    for notes in (
        (CHART / "templates" / "NOTES.txt").read_text(),
        (HOME / "README.md").read_text(),
    ):
        shown = re.findall(r"-- hipscore ([a-z].*)$", notes, re.MULTILINE)
        assert shown
        for line in shown:
            _parse(shlex.split(line))


def test_workers_serve_the_queues_there_are_and_their_heartbeats_are_looked_at() -> None:
    for component, name in (
        ("analysis-cpu", queue.ANALYSIS_QUEUE),
        ("analysis-gpu", queue.ANALYSIS_QUEUE),
        ("delivery", queue.DELIVERY_QUEUE),
    ):
        running = container(_pod(component))
        assert running["args"][:3] == ["work", "--queue", name]
        for probe in ("startupProbe", "livenessProbe"):
            command = running[probe]["exec"]["command"]
            assert command == ["hipscore", "workers", "--queue", name, "--here"]
            _parse(command[1:])


def test_keda_counts_the_list_of_the_analysis_queue_and_scales_its_workers_only() -> None:
    scaled = _of_kind("ScaledObject")
    targets = {each["spec"]["scaleTargetRef"]["name"] for each in scaled}
    assert targets == {f"{_fullname()}-analysis-{pool}" for pool in ("cpu", "gpu")}
    secret = _of_kind("TriggerAuthentication")[0]
    for each in scaled:
        (trigger,) = each["spec"]["triggers"]
        assert trigger["metadata"]["listName"] == queue.ANALYSIS_QUEUE
        assert trigger["authenticationRef"]["name"] == secret["metadata"]["name"]
    for each in _of_kind("Deployment"):
        # whoever is scaled by KEDA must not be set back by every upgrade
        assert ("replicas" in each["spec"]) == (each["metadata"]["name"] not in targets)


def test_a_gpu_pool_may_rest_at_zero_and_the_cpu_pool_may_not() -> None:
    pools = {name: DEFAULTS["analysis"][name]["keda"] for name in ("cpu", "gpu")}
    assert pools["gpu"]["minReplicas"] == 0
    assert pools["cpu"]["minReplicas"] >= 1
    assert pools["gpu"]["activationListLength"] > pools["cpu"]["activationListLength"]


def _fullname() -> str:
    return f"{kubernetes.RELEASE}-hipscore"


@every_case
def test_nothing_runs_as_root_or_can_become_it(case: str) -> None:
    """What the Pod Security Standard "restricted" demands, and a root that cannot be written."""
    uid = re.search(r"useradd --uid (\d+)", DOCKERFILE)
    assert uid is not None
    for component, template in pods(RENDERED[case]):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, component
        assert spec["securityContext"]["runAsUser"] == int(uid[1])
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert not [volume for volume in spec["volumes"] if "hostPath" in volume]
        assert container(template)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@every_case
def test_what_is_secret_comes_from_a_secret_that_exists_already(case: str) -> None:
    assert not _of_kind("Secret", case)
    for each in _of_kind("ConfigMap", case):
        assert not {"HIPSCORE_DATABASE_URL", "HIPSCORE_BROKER_URL"} & set(each["data"])
    for _, template in pods(RENDERED[case]):
        secret = {
            variable["name"]: variable["valueFrom"]["secretKeyRef"]["key"]
            for variable in container(template)["env"]
            if "secretKeyRef" in variable.get("valueFrom", {})
        }
        assert secret == {
            "HIPSCORE_DATABASE_URL": "database-url",
            "HIPSCORE_BROKER_URL": "broker-url",
        }
    assert not re.findall(r"://[^:/]+:[^@]+@", json.dumps(RENDERED[case]))


@every_case
def test_every_process_writes_to_the_one_spool_and_to_tmp_only(case: str) -> None:
    claim = VALUES[case]["spool"].get("existingClaim") or f"{_fullname()}-spool"
    for each in _of_kind("PersistentVolumeClaim", case):
        assert each["metadata"]["name"] == claim
        assert each["spec"]["accessModes"] == ["ReadWriteMany"]
        assert each["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    for component, template in pods(RENDERED[case]):
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        mounts = {mount["name"]: mount for mount in container(template)["volumeMounts"]}
        assert set(volumes) == set(mounts), component
        writable = {name for name, mount in mounts.items() if not mount.get("readOnly")}
        if component == "migrate":  # it runs before the claim exists
            assert writable == {"tmp"}
            continue
        assert writable == {"spool", "tmp"}
        assert volumes["spool"]["persistentVolumeClaim"]["claimName"] == claim
        settings = environment(template, RENDERED[case])
        assert mounts["spool"]["mountPath"] == settings["HIPSCORE_DATA_DIR"]
        engines = settings.get("HIPSCORE_ENGINE_CACHE_DIR")
        assert (engines is not None) == (component == "analysis-gpu")
        assert engines is None or engines.startswith(mounts["spool"]["mountPath"])


def test_there_is_one_beat_and_never_a_second_beside_it() -> None:
    (beat,) = (each for each in _of_kind("Deployment") if each["metadata"]["name"].endswith("beat"))
    assert beat["spec"]["replicas"] == 1
    assert beat["spec"]["strategy"] == {"type": "Recreate"}


def test_a_worker_may_finish_what_it_began_before_it_is_killed() -> None:
    for lease in (180, 600):
        manifests = render(merged(ALL, {"leaseSeconds": lease}))
        for component, template in pods(manifests):
            if component.startswith(("analysis", "delivery")):
                assert template["spec"]["terminationGracePeriodSeconds"] > lease


def test_a_listener_takes_no_new_associations_before_it_ends_the_open_ones() -> None:
    from hipscore.listener.server import DRAIN_SECONDS

    template = _pod("listener")
    pause = float(container(template)["lifecycle"]["preStop"]["exec"]["command"][1])
    assert template["spec"]["terminationGracePeriodSeconds"] > pause + DRAIN_SECONDS


def test_the_sender_is_seen_with_its_own_address() -> None:
    """The listener lets in known addresses only: a proxy's would hide all senders."""
    (service,) = (each for each in _of_kind("Service", "hospital") if "listener" in str(each))
    assert service["spec"]["type"] == "LoadBalancer"
    assert service["spec"]["externalTrafficPolicy"] == "Local"
    assert service["spec"]["loadBalancerSourceRanges"] == HOSPITAL["networkPolicy"]["dicomFrom"]


def test_the_probes_of_the_listener_come_from_inside_and_use_a_title_it_answers_to() -> None:
    for case, called in (("hospital", "HIPSCORE"), ("all", "HIP")):
        running = container(_pod("listener", case))
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert "127.0.0.1" in " ".join(running[probe]["exec"]["command"])
        assert running["readinessProbe"]["exec"]["command"][-1] == called


def test_the_programs_of_the_probes_are_in_the_image() -> None:
    lock = (ROOT / "requirements" / "run.lock").read_text()
    programs = set()
    for _, template in pods(RENDERED["all"]):
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            command = container(template).get(probe, {}).get("exec", {}).get("command")
            if command is None:
                continue
            programs.add(command[0])
            if command[:2] == ["python", "-c"]:
                compile(command[2], probe, "exec")
            if command[:2] == ["python", "-m"]:
                assert re.search(rf"^{command[2]}==", lock, re.MULTILINE)
            if command[0] == "hipscore":
                assert command[1] in COMMANDS
    assert programs == {"python", "hipscore"}
    assert 'ENTRYPOINT ["hipscore"]' in DOCKERFILE
    assert "PATH=/opt/hipscore/bin:" in DOCKERFILE


def test_a_worker_knows_how_many_threads_its_limit_allows() -> None:
    """A CPU limit is not seen by sched_getaffinity(2)."""
    for component in ("analysis-cpu", "analysis-gpu"):
        running = container(_pod(component))
        (threads,) = (each for each in running["env"] if each["name"] == "HIPSCORE_THREADS")
        if component == "analysis-cpu":
            assert threads["valueFrom"]["resourceFieldRef"]["resource"] == "limits.cpu"
            assert running["resources"]["limits"]["cpu"]
        else:
            (concurrency,) = running["args"][running["args"].index("--concurrency") + 1 :]
            shares = int(threads["value"]) * int(concurrency)
            assert shares <= int(running["resources"]["requests"]["cpu"])


def test_the_gpu_pool_has_the_gpu_image_one_gpu_and_says_what_it_computes_with() -> None:
    template = _pod("analysis-gpu", "region")
    running = container(template)
    override = yaml.safe_load((ROOT / "deploy" / "docker-compose.gpu.yml").read_text())
    suffix = override["services"]["worker"]["image"].rpartition("-")[2]
    assert running["image"].endswith(f"-{suffix}")
    assert running["resources"]["limits"]["nvidia.com/gpu"] == 1
    (toleration,) = template["spec"]["tolerations"]
    assert toleration["key"] == "nvidia.com/gpu"
    # "auto" would compute on the processor of a GPU node in silence
    assert environment(template, RENDERED["region"])["HIPSCORE_PROVIDER"] == "cuda"
    assert not container(_pod("analysis-cpu", "region"))["image"].endswith(suffix)


def test_nobody_comes_in_but_those_who_are_listed() -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in _of_kind("NetworkPolicy")}
    nobody = policies[f"{_fullname()}-default"]
    assert nobody["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in nobody
    for _, template in pods(RENDERED["all"]):
        labels = template["metadata"]["labels"]
        assert nobody["podSelector"]["matchLabels"].items() <= labels.items()
    (dicom,) = policies[f"{_fullname()}-listener"]["ingress"]
    assert [peer["ipBlock"]["cidr"] for peer in dicom["from"]] == ["10.20.0.0/24"]
    (http,) = policies[f"{_fullname()}-api"]["ingress"]
    assert http["from"] == HOSPITAL["networkPolicy"]["httpFrom"]
    outward = policies[f"{_fullname()}-pacs"]
    (who,) = outward["podSelector"]["matchExpressions"]
    assert set(who["values"]) == PROCESSES - {"api"}
    assert outward["egress"] == [
        {
            "to": [{"ipBlock": {"cidr": "10.20.0.5/32"}}],
            "ports": [{"protocol": "TCP", "port": 104}],
        }
    ]


def test_a_drained_node_takes_one_pod_of_a_kind_and_beat_holds_up_no_drain() -> None:
    budgets = {
        each["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"]: each["spec"]
        for each in _of_kind("PodDisruptionBudget")
    }
    assert set(budgets) == PROCESSES - {"beat"}
    assert all(each["maxUnavailable"] == 1 for each in budgets.values())


@every_case
def test_whatever_is_selected_or_referred_to_exists(case: str) -> None:
    templates = [template for _, template in pods(RENDERED[case])]
    names = {(each["kind"], each["metadata"]["name"]) for each in RENDERED[case]}
    for each in RENDERED[case]:
        if each["kind"] in {"Service", "PodDisruptionBudget"}:
            chosen = each["spec"]["selector"]
            chosen = chosen.get("matchLabels", chosen)
            found = [
                one for one in templates if chosen.items() <= one["metadata"]["labels"].items()
            ]
            assert len(found) == 1, each["metadata"]["name"]
        if each["kind"] == "Service":
            ports = {port["name"] for port in container(found[0])["ports"]}
            assert {port["targetPort"] for port in each["spec"]["ports"]} <= ports
        if each["kind"] == "ScaledObject":
            assert ("Deployment", each["spec"]["scaleTargetRef"]["name"]) in names
        if each["kind"] == "Deployment":
            template = each["spec"]["template"]
            labels = template["metadata"]["labels"]
            assert each["spec"]["selector"]["matchLabels"].items() <= labels.items()
            assert ("ServiceAccount", template["spec"]["serviceAccountName"]) in names


def test_the_migration_comes_first_and_needs_nothing_that_is_not_there_yet() -> None:
    (job,) = _of_kind("Job")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    spec = job["spec"]["template"]["spec"]
    assert "serviceAccountName" not in spec
    assert "envFrom" not in container(job["spec"]["template"])


def test_the_probe_asks_the_api_by_https_where_it_speaks_https() -> None:
    for case, scheme in (("hospital", "HTTP"), ("all", "HTTPS")):
        running = container(_pod("api", case))
        assert running["livenessProbe"]["httpGet"]["scheme"] == scheme
        assert ("HIPSCORE_HTTP_CERTIFICATE" in str(running["env"])) == (scheme == "HTTPS")


def test_the_names_of_the_service_and_the_ingress_are_answered_to() -> None:
    hosts = environment(_pod("api", "hospital"), RENDERED["hospital"])[
        "HIPSCORE_HTTP_ALLOWED_HOSTS"
    ].split(",")
    assert {f"{_fullname()}-api", HOSPITAL["api"]["ingress"]["host"]} <= set(hosts)


def test_pods_are_replaced_when_the_rules_change() -> None:
    def checksum(rules: str) -> str:
        template = dict(pods(render(merged(ALL, {"rules": rules}))))["listener"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    assert checksum("# one") != checksum("# two")


def test_the_chart_is_of_the_version_of_the_program() -> None:
    from hipscore import __version__

    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__
