"""`fluvial doctor`: what is installed, what this machine offers, and what is missing or broken."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from fluvial import __version__
from fluvial.cli.composition import lines
from fluvial.cli.console import size, waiting
from fluvial.engine.matrix import table

EXTRAS = {"av": "video", "pillow_heif": "heic", "matplotlib": "plot"}
NEEDED = {"torch": "torch", "numpy": "numpy", "PIL": "pillow", "cv2": "opencv-python", "tokenizers": "tokenizers"}
NEEDED |= {"safetensors": "safetensors", "jinja2": "jinja2", "einops": "einops", "typer": "typer", "rich": "rich"}


def doctor(
    as_json: Annotated[bool, Option("--json", help="Print one JSON object.")] = False,
    matrix: Annotated[bool, Option("--matrix", help="Print what works together on which architecture.")] = False,
) -> None:
    """Check the installation: versions, chip, kernels, memory.

    It ends with exit code 1 where something is broken.
    """
    if matrix:
        typer.echo(json.dumps({"v": 1, "matrix": table()}) if as_json else "\n".join(lines()))
        return
    with waiting("Looking"):
        about = examine()
    if as_json:
        typer.echo(json.dumps({"v": 1, **about}))
    else:
        _print(about)
    if about["problems"]:
        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """All findings; `problems` lists what is broken. A package that cannot be imported does not end the look."""
    problems: list[str] = []
    versions = {"fluvial": __version__, "python": platform.python_version()}
    for module, package in NEEDED.items():
        try:
            importlib.import_module(module)
            versions[package] = importlib.metadata.version(package)
        except Exception as error:
            versions[package] = "broken"
            problems.append(f"{package}: {_of_cv2(error) if module == 'cv2' else error}")
    extras = {f"{extra} ({module})": importlib.util.find_spec(module) is not None for module, extra in EXTRAS.items()}
    about: dict[str, Any] = {"versions": versions, "extras": extras, "platform": platform.platform()}
    about["cpu"] = {"name": _cpu_name(), "cores": os.cpu_count(), "usable": _usable_cores()}
    about["memory"] = memory()
    with _noted(problems, "torch"):
        about |= _torch()
    with _noted(problems, "models"):
        from fluvial.engine.model import bundled

        about["models"] = bundled()
    return about | {"problems": problems}


def _torch() -> dict[str, Any]:
    import torch

    from fluvial.adapters import chips, native, ops
    from fluvial.models import decoder  # noqa: F401  (its mixers register their ops)

    chips.load()
    status = native.status()
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {
        "chip": {
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "cuda": gpus,
            "mps": torch.backends.mps.is_available(),
        },
        "kernels": {"built": status.loaded, "detail": status.detail, "ops": ops.explain("cpu")},
    }


def memory() -> dict[str, int | None]:
    """Bytes of this machine's memory, and what is available; a container's limit counts where it is lower."""
    total = available = None
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, available = (int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    with contextlib.suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())  # "max" where there is none
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        total = min(total or limit, limit)
        available = min(available or limit, max(0, limit - used))
    if total is None:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # macOS
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"total": total, "available": available}


def _print(about: dict[str, Any]) -> None:
    versions, held, cpu = about["versions"], about["memory"], about["cpu"]
    rows = [("fluvial", versions.pop("fluvial")), ("python", versions.pop("python")), ("platform", about["platform"])]
    rows += [("packages", ", ".join(f"{package} {version}" for package, version in versions.items()))]
    rows += [("extras", ", ".join(f"{name}: {'yes' if there else 'no'}" for name, there in about["extras"].items()))]
    rows += [("cpu", f"{cpu['name']}, {cpu['usable']} of {cpu['cores']} cores usable")]
    if "chip" in about:
        chip, kernels = about["chip"], about["kernels"]
        rows += [("", f"{chip['capability']}, {chip['threads']} threads")]
        rows += [("gpu", ", ".join([*chip["cuda"], *(["MPS"] if chip["mps"] else [])]) or "none that torch sees")]
        rows += [("kernels", kernels["detail"]), *(("", f"{op}: {by}") for op, by in kernels["ops"].items())]
    total, available = (size(n) if n is not None else "unknown" for n in (held["total"], held["available"]))
    rows += [("memory", f"{available} available of {total}"), ("models", ", ".join(about.get("models", [])) or "none")]
    rows += [("network", "only for hub names (org/name), never with --offline")]
    for key, value in rows:
        typer.echo(f"{key:10}{value}")
    for problem in about["problems"]:
        typer.echo(f"{'BROKEN':10}{problem}")
    typer.echo("Something is broken." if about["problems"] else "All is well.")


@contextlib.contextmanager
def _noted(problems: list[str], what: str) -> Any:
    try:
        yield
    except Exception as error:
        problems.append(f"{what}: {error}")


def _of_cv2(error: Exception) -> str:
    """OpenCV's system libraries are what is missing most often; the reader of videos has the words for that."""
    try:
        from fluvial.encoders.video_opencv import import_cv2

        import_cv2()
    except Exception as known:
        return str(known)
    return str(error)


def _usable_cores() -> int | None:
    with contextlib.suppress(AttributeError):  # Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
