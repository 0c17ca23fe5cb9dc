"""Job files for five platforms, rendered from the templates in `launch/` and checked before anybody pays for them.

A template names variables as @NAME@. Values are quoted for where they stand (shell or YAML), so no argument, whatever
is in it, is read as anything but itself. A variable that was not given is shown as <NAME>, and is never submitted.
"""

import dataclasses
import pathlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence

import yaml

from imagen_video_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Platform:
    """template: file in `launch/`; submit: the command that takes the rendered file's path."""

    template: str
    submit: tuple[str, ...]


PLATFORMS = {
    "gke": Platform("gke.yaml", ("kubectl", "apply", "-f")),
    "xpk": Platform("xpk.sh", ("bash",)),
    "tpu-vm": Platform("tpu-vm.sh", ("bash",)),
    "slurm": Platform("slurm.sh", ("sbatch",)),
    "skypilot": Platform("skypilot.yaml", ("sky", "jobs", "launch", "--yes")),
}
DEFAULTS = {"NAME": "imagen-video", "NAMESPACE": "default", "RESTARTS": "20", "LOGS": "logs", "HOSTS": "1"}
_NUMBERS = ("RESTARTS", "HOSTS", "CHIPS", "GPUS")
# What templates name, and the variable that it is made of.
_MADE_OF = {
    "COORDINATOR": "NAME",
    "PROCESSES": "HOSTS",
    "SKY_RUN": "RESTARTS",
    "DOCKER_IMAGE": "IMAGE",
    "MOUNT_SOURCE": "MOUNT",
    "MOUNT_PATH": "MOUNT",
    "MOUNT_VOLUMES": "MOUNT",
    "MOUNT_FUSE": "MOUNT",
    "MOUNT_DOCKER": "MOUNT",
}
# SOURCE of --mount SOURCE:PATH.
_SOURCES = {
    "gke": ("the name of a claim, or gs://BUCKET", r"(gs://)?[a-z0-9][-._a-z0-9]*"),
    "xpk": ("the name of an attached storage", r"[a-z0-9][-._a-z0-9]*"),
    "tpu-vm": ("a folder of every host, or HOST:/EXPORT of NFS", r"([-.\w]+:)?/[^:]+"),
    "skypilot": ("a bucket like gs://BUCKET", r"\w+://.+"),
}
_SKY_RUN = """\
export JAX_COORDINATOR_ADDRESS="$(head -n 1 <<< "$SKYPILOT_NODE_IPS"):12355"
export JAX_NUM_PROCESSES="$SKYPILOT_NUM_NODES" JAX_PROCESS_ID="$SKYPILOT_NODE_RANK"
for ((attempt = 0; attempt <= {restarts}; attempt++)); do
  {command} && exit
  code=$?
  case $code in 1 | 75 | 124) ;; *) [ "$code" -gt 128 ] || exit "$code" ;; esac
done
exit "$code"
"""


def render(platform: str, command: Sequence[str], given: dict[str, str]) -> tuple[str, list[str]]:
    """The rendered and checked job file, and the names of the variables that were not given.

    Args: command starts with the imagen-video command's name; given is variable -> value.
    Raises UserError: a value that cannot be, or a rendered file that is not well formed.
    """
    template = PLATFORMS[platform].template
    text = (_folder() / template).read_text()
    known = DEFAULTS | given
    _check_values(known)
    known = _derived(known, ["imagen-video", *command])
    if "MOUNT" in given and platform in _SOURCES:
        known |= _mounted(given["MOUNT"], platform)
    missing = sorted(_variables_of(text) - set(known))
    quote = _yaml if template.endswith(".yaml") else _shell

    def fill(match) -> str:
        name = match[1]
        value = known.get(name, f"<{name}>")
        bare = match.string.rfind("\n#SBATCH", 0, match.start()) == match.string.rfind("\n", 0, match.start())
        return str(value) if bare else quote(value)

    rendered = re.sub(r"@([A-Z_]+)@", fill, text)
    check(platform, rendered)
    return rendered, missing


def unused(platform: str, given: dict[str, str]) -> list[str]:
    """A line for every given variable that the platform's template does not take."""
    taken = _variables_of((_folder() / PLATFORMS[platform].template).read_text())
    return [f"{_flag(name)} does nothing on {platform}; leave it out" for name in sorted(set(given) - taken)]


def _variables_of(template: str) -> set[str]:
    return {_MADE_OF.get(name, name) for name in re.findall(r"@([A-Z_]+)@", template)}


def _folder() -> pathlib.Path:
    """`launch/` of the checkout, or inside the installed package."""
    own = pathlib.Path(__file__).parent
    return next(folder for folder in (own.parent / "launch", own / "launch") if (folder / "gke.yaml").is_file())


def _flag(name: str) -> str:
    return "--" + name.lower().replace("_", "-")


def _check_values(values: dict[str, str]) -> None:
    for name, value in values.items():
        flag = _flag(name)
        if name in _NUMBERS and not (value.isdecimal() and (int(value) > 0 or name == "RESTARTS")):
            raise UserError(f"{flag} must be a whole number above 0, got {value!r}")
        if not value or not value.isprintable() or re.search(r"\s", value):
            raise UserError(f"{flag} must be one word, got {value!r}")
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", values["NAME"]):
        raise UserError(f"--name must be at most 40 small letters, digits and hyphens, got {values['NAME']!r}")


def _derived(values: dict, command: list[str]) -> dict:
    """With the forms in which templates take the command, and addresses made of other values."""
    joined = shlex.join(command)
    numbers = {name: int(values[name]) for name in _NUMBERS if name in values}
    return values | numbers | {
        # Kubernetes expands $(NAME) in commands; $$ is a dollar.
        "COMMAND": [word.replace("$", "$$") for word in command],
        "QUOTED_COMMAND": joined,
        "SKY_RUN": _SKY_RUN.format(restarts=numbers["RESTARTS"], command=joined),
        "COORDINATOR": f"{values['NAME']}-workers-0-0.{values['NAME']}:12355",
        "PROCESSES": values["HOSTS"],
        # Until --mount is given: a placeholder of the right form.
        "MOUNT_VOLUMES": [{"name": "shared", "persistentVolumeClaim": {"claimName": "<MOUNT_SOURCE>"}}],
        "MOUNT_FUSE": "false",
        **({"DOCKER_IMAGE": f"docker:{values['IMAGE']}"} if "IMAGE" in values else {}),
    }  # fmt: skip


def _mounted(mount: str, platform: str) -> dict:
    """The forms in which templates take SOURCE:PATH, the storage that outlives containers."""
    found = re.fullmatch(r"([^,]+):(/[^/,:][^,:]*)", mount)
    what, pattern = _SOURCES[platform]
    if not (found and re.fullmatch(pattern, found[1])):
        raise UserError(f"--mount must be SOURCE:PATH, SOURCE {what}, PATH starting with /, got {mount!r}")
    source, path = found.groups()
    bucket = source.removeprefix("gs://")
    volume = (
        {"persistentVolumeClaim": {"claimName": source}}
        if bucket == source
        else {"csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": {"bucketName": bucket}}}
    )
    # Not -v, for which docker makes a folder that is not there.
    docker = f"type=bind,source={source},target={path}"
    host, _, folder = source.rpartition(":")
    if host:
        nfs = f"volume-opt=type=nfs,volume-opt=device=:{folder},volume-opt=o=addr={host}"
        docker = f"type=volume,volume-driver=local,target={path},{nfs}"
    return {
        "MOUNT_SOURCE": source,
        "MOUNT_PATH": path,
        "MOUNT_VOLUMES": [{"name": "shared", **volume}],
        "MOUNT_FUSE": "false" if bucket == source else "true",
        "MOUNT_DOCKER": docker,
    }


def _yaml(value) -> str:
    if isinstance(value, int):
        return str(value)
    return yaml.safe_dump(value, default_style='"', default_flow_style=True, width=10**9).strip()


def _shell(value) -> str:
    return shlex.quote(str(value))


def check(platform: str, rendered: str) -> None:
    """UserError where a rendered file is no well-formed script or job."""
    if PLATFORMS[platform].template.endswith(".sh"):
        if bash := shutil.which("bash"):
            found = subprocess.run([bash, "-n"], input=rendered, capture_output=True, text=True, check=False)
            if found.returncode:
                raise UserError(f"the rendered script is not well formed: {found.stderr.splitlines()[0]}")
        return
    try:
        job = yaml.safe_load(rendered)
        (_check_jobset if platform == "gke" else _check_sky)(job)
    except (yaml.YAMLError, KeyError, TypeError, AssertionError) as error:
        raise UserError(f"the rendered job is not well formed: {type(error).__name__} {error}") from None


def _require(value, kind, where: str) -> None:
    shown_unset = isinstance(value, str) and value.startswith("<")
    if not (isinstance(value, kind) or shown_unset):
        raise TypeError(f"{where} must be {kind.__name__}, got {value!r}")


def _check_jobset(job: dict) -> None:
    """The fields of jobset.x-k8s.io/v1alpha2 that are used here, and their types."""
    if (job["apiVersion"], job["kind"]) != ("jobset.x-k8s.io/v1alpha2", "JobSet"):
        raise TypeError("apiVersion and kind are not those of a JobSet")
    _require(job["spec"]["failurePolicy"]["maxRestarts"], int, "maxRestarts")
    (workers,) = job["spec"]["replicatedJobs"]
    spec = workers["template"]["spec"]
    for name in ("completions", "parallelism"):
        _require(spec[name], int, name)
    (container,) = spec["template"]["spec"]["containers"]
    _require(container["command"], list, "command")
    for word in container["command"]:
        _require(word, str, "a word of the command")
    for entry in container["env"]:
        if "value" in entry:
            _require(entry["value"], str, entry["name"])
    _require(container["resources"]["limits"]["google.com/tpu"], int, "google.com/tpu")
    (mount,) = container["volumeMounts"]
    _require(mount["mountPath"], str, "mountPath")
    volumes = spec["template"]["spec"]["volumes"]
    _require(volumes, list, "volumes")
    if isinstance(volumes, list) and [volume["name"] for volume in volumes] != [mount["name"]]:
        raise TypeError(f"no volume is named {mount['name']}")


def _check_sky(job: dict) -> None:
    _require(job["num_nodes"], int, "num_nodes")
    _require(job["run"], str, "run")
    _require(job["resources"]["accelerators"], str, "accelerators")
    ((path, mount),) = job["file_mounts"].items()
    _require(path, str, "a path of file_mounts")
    _require(mount["source"], str, "source")


def submit(platform: str, rendered: str, missing: Sequence[str], folder: pathlib.Path, logs: pathlib.Path) -> int:
    """Writes the job file to `folder` and hands it to the platform; the platform's exit code."""
    if missing:
        flags = ", ".join(map(_flag, missing))
        raise UserError(f"cannot submit, these are not given: {flags} (--dry-run shows where they stand)")
    command = PLATFORMS[platform].submit
    if shutil.which(command[0]) is None:
        raise UserError(f"{command[0]} is not installed here; --dry-run prints the job file")
    if platform == "slurm":  # which makes no folder for a job's log, and ends the job instead
        logs.mkdir(parents=True, exist_ok=True)
    file = folder / PLATFORMS[platform].template
    file.write_text(rendered)
    return subprocess.run([*command, str(file)], check=False).returncode
