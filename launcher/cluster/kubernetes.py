"""Kubernetes: a JobSet whose one job has a pod a node, and a ConfigMap with the two YAMLs.

A pod that fails ends the job, and the JobSet makes all pods anew, up to `--restarts` times.
"""

from __future__ import annotations

import shlex
import subprocess
from typing import Any

import yaml
from pydantic import Field

from recloom.data_shards.errors import UserError
from recloom.launcher.cluster.description import SizedCluster
from recloom.launcher.cluster.job import Job, network_environment, write_files

SETTINGS = "/etc/recloom"  # where a pod finds the ConfigMap
LABEL = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"


class Settings(SizedCluster):
    interface: str = Field(default="eth0", pattern=r"^[A-Za-z0-9_.-]{1,15}$")
    namespace: str = Field(default="default", pattern=LABEL)
    image: str = Field(pattern=r"^[A-Za-z0-9_./:@-]+$", description="With RecLoom installed.")
    working_directory: str = Field(
        default="/recloom", pattern=r"^/[A-Za-z0-9_./-]*$", description="The checkout inside the image."
    )
    volume_claim: str = Field(pattern=LABEL, description="Of the shared folder; ReadWriteMany.")
    secret: str | None = Field(
        default=None, pattern=LABEL, description="A Secret whose entries become variables of the pods."
    )
    memory: str | None = Field(default=None, pattern=r"^\d+(\.\d+)?[KMGT]i?$", description="A node's, 512Gi.")
    cpus: int | None = Field(default=None, ge=1, description="A node's.")
    shared_memory: str = Field(default="16Gi", pattern=r"^\d+(\.\d+)?[KMGT]i?$", description="Of /dev/shm.")


def job_name(job: Job) -> str:
    """A name that Kubernetes takes; pods' host names are made of it."""
    name = "".join(c if c.isalnum() else "-" for c in job.config.name.lower()).strip("-")
    return f"r-{name}"[:40].rstrip("-")


def files(job: Job) -> dict[str, str]:
    documents = [config_map(job), job_set(job)]
    return {"jobset.yaml": yaml.safe_dump_all(documents, sort_keys=False, width=1000)}


def commands(job: Job) -> list[str]:
    return [f"kubectl apply -f {shlex.quote(str(local_folder(job) / 'jobset.yaml'))}"]


def local_folder(job: Job) -> Any:
    """Not in the run folder: that is a path inside the pods."""
    return job.directory / f"{job_name(job)}-launch"


def start(job: Job) -> int:
    write_files(local_folder(job), files(job))
    try:
        return subprocess.run(["kubectl", "apply", "-f", str(local_folder(job) / "jobset.yaml")]).returncode
    except FileNotFoundError:
        raise UserError(
            f"kubectl is not installed here: apply {local_folder(job)}/jobset.yaml where it is."
        ) from None


def config_map(job: Job) -> dict[str, Any]:
    given = job.files()
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": job_name(job), "namespace": job.cluster.namespace},
        "data": {name: given[name] for name in ("config.yaml", "cluster.yaml")},
    }


def job_set(job: Job) -> dict[str, Any]:
    count = len(job.cluster.layout.names)
    inner = {
        "parallelism": count,
        "completions": count,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "template": {"spec": pod(job)},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": job_name(job), "namespace": job.cluster.namespace},
        "spec": {
            "failurePolicy": {"maxRestarts": job.restarts},
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "replicatedJobs": [{"name": "node", "replicas": 1, "template": {"spec": inner}}],
        },
    }


def pod(job: Job) -> dict[str, Any]:
    cluster = job.cluster
    volumes = {
        "shared": {"persistentVolumeClaim": {"claimName": cluster.volume_claim}},
        "settings": {"configMap": {"name": job_name(job)}},
        "shm": {"emptyDir": {"medium": "Memory", "sizeLimit": cluster.shared_memory}},
    }
    return {
        "restartPolicy": "Never",
        # SIGTERM comes first: the ranks write a checkpoint, then the node has a moment to end.
        "terminationGracePeriodSeconds": round(cluster.leave_seconds) + 15,
        "containers": [container(job)],
        "volumes": [{"name": name, **volume} for name, volume in volumes.items()],
    }


def container(job: Job) -> dict[str, Any]:
    cluster, mounts = job.cluster, {"shared": job.cluster.shared, "settings": SETTINGS, "shm": "/dev/shm"}
    # `exec`: the node's start is the process that gets the pod's SIGTERM.
    start = f"exec recloom launch {SETTINGS}/config.yaml --cluster {SETTINGS}/cluster.yaml"
    master = f"{job_name(job)}-node-0-0.{job_name(job)}"
    made: dict[str, Any] = {
        "name": "node",
        "image": cluster.image,
        "workingDir": cluster.working_directory,
        "command": ["bash", "-c", f'{start} --node "$JOB_COMPLETION_INDEX" --master {master}'],
        "env": [{"name": n, "value": v} for n, v in sorted(network_environment(cluster).items())],
        "resources": {"limits": limits(cluster)},
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in mounts.items()],
    }
    if cluster.secret is not None:
        made["envFrom"] = [{"secretRef": {"name": cluster.secret}}]
    return made


def limits(cluster: Settings) -> dict[str, Any]:
    asked = {"nvidia.com/gpu": cluster.gpus, "cpu": cluster.cpus, "memory": cluster.memory}
    return {name: value for name, value in asked.items() if value is not None}
