"""The doctor's rules on bitsandbytes: which native library it has, which one torch's CUDA needs, what stops it."""

from __future__ import annotations

import re

from qlora_planner.diagnose.facts import Facts, Finding, Status, release, within

BITSANDBYTES_DOCS = "https://huggingface.co/docs/bitsandbytes/main/en/installation"
_ANY = "9999"

# Targets of the Linux x86-64 wheels since 0.50: CUDA tags, lowest and highest compute capability.
_TARGETS = ((118, 127, (6, 0), (9, 0)), (128, 129, (7, 0), (12, 0)), (130, 139, (7, 5), (12, 0)))


def library_tag(host: Facts) -> tuple[str | None, str | None]:
    """The CUDA tag that torch's build asks of bitsandbytes (`130`), and the packaged tag that serves it, or None.

    Since 0.50 bitsandbytes takes the nearest library of the same CUDA major; before, only the exact one.
    """
    if host.torch is None or host.torch.cuda is None:
        return None, None
    wanted = "".join(str(part) for part in release(host.torch.cuda)[:2])
    tags = sorted(_cuda_tags(host), key=int)
    if wanted in tags:
        return wanted, wanted
    if not within(host.version("bitsandbytes"), "0.50", _ANY):
        return wanted, None
    same_major = [tag for tag in tags if tag[:2] == wanted[:2]]
    lower = [tag for tag in same_major if int(tag) < int(wanted)]
    return wanted, (lower[-1] if lower else next(iter(same_major), None))


def _cuda_tags(host: Facts) -> list[str]:
    names = host.bitsandbytes_libraries or ()
    return [match.group(1) for name in names if (match := re.fullmatch(r"libbitsandbytes_cuda(\d{3})\.(so|dll)", name))]


def bitsandbytes_library(host: Facts) -> list[Finding]:
    """Does bitsandbytes ship a library for the CUDA of this torch, and does it load?"""
    if host.packages.get("bitsandbytes") is None:
        return []
    wanted, served = library_tag(host)
    present = ", ".join(sorted(_cuda_tags(host), key=int)) or "none"
    override = host.environment.get("BNB_CUDA_VERSION")
    if override:
        packaged = override in _cuda_tags(host)
        message = f"BNB_CUDA_VERSION={override} forces libbitsandbytes_cuda{override}" + (
            f" where torch is built for CUDA {wanted}" if wanted and wanted != override else ""
        )
        message += "" if packaged else f", which this package does not have (it has {present})"
        status: Status = "ok" if packaged and override == wanted else "warning" if packaged else "problem"
        fix = None if status == "ok" else "unset BNB_CUDA_VERSION"
        return [Finding(code="bitsandbytes-override", status=status, message=message, fix=fix)]
    loaded = host.bitsandbytes
    if loaded is not None and loaded.error and wanted:
        return [_load_fault(host, loaded.error, wanted, served, present)]
    if wanted and served is None:
        return [_no_library(host, wanted, present)]
    if wanted is None or loaded is None or loaded.library is None:
        return []
    message = f"bitsandbytes {host.packages['bitsandbytes']} loads {loaded.library} for torch's CUDA {wanted}"
    if "cpu" in loaded.library and host.devices:
        message = (
            f"bitsandbytes loads {loaded.library}, without the GPU, though torch is built for CUDA {wanted}; seen as "
            "'compiled without GPU support' or 'undefined symbol: cquantize_blockwise'"
        )
        fix = "see torch's line: bitsandbytes follows what torch sees"
        return [Finding(code="bitsandbytes-library", status="problem", message=message, fix=fix)]
    return [Finding(code="bitsandbytes-library", status="ok", message=message)]


def _no_library(host: Facts, wanted: str, present: str) -> Finding:
    message = (
        f"bitsandbytes {host.packages['bitsandbytes']} has no library for torch's CUDA: it needs "
        f"libbitsandbytes_cuda{wanted}, and has {present}; seen as 'CUDA Setup failed despite GPU being available' or "
        f"'Required library version not found: libbitsandbytes_cuda{wanted}.so'"
    )
    same = [tag for tag in _cuda_tags(host) if tag[:2] == wanted[:2]]
    fix = "pip install -U bitsandbytes" + (f"   (or export BNB_CUDA_VERSION={max(same, key=int)})" if same else "")
    return Finding(code="bitsandbytes-library", status="problem", message=message, fix=fix, source=BITSANDBYTES_DOCS)


def _load_fault(host: Facts, error: str, wanted: str, served: str | None, present: str) -> Finding:
    """A library that is there but does not load is mostly one that misses another."""
    missing = re.search(r"(lib[\w.+-]+\.so[.\d]*): cannot open shared object", error)
    if missing is None or missing.group(1).startswith("libbitsandbytes"):
        if served is None:
            return _no_library(host, wanted, present)
        message = f"bitsandbytes cannot load libbitsandbytes_cuda{served}: {error}"
        fix = "pip install --force-reinstall bitsandbytes; python -m bitsandbytes shows more"
        return Finding(code="bitsandbytes-library", status="problem", message=message, fix=fix)
    name = missing.group(1)
    folders = [path.rpartition("/")[0] for path in host.cuda_libraries if path.endswith(f"/{name}")]
    fix = (
        f"export LD_LIBRARY_PATH={folders[0]}:$LD_LIBRARY_PATH"
        if folders
        else f"pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu{wanted}"
    )
    message = f"bitsandbytes does not find {name}; seen as 'CUDA Setup failed despite GPU being available'"
    source = "https://github.com/bitsandbytes-foundation/bitsandbytes/issues/1905"
    return Finding(code="bitsandbytes-library", status="problem", message=message, fix=fix, source=source)


def cuda_runtime(host: Facts) -> list[Finding]:
    """Is there a libcudart of the CUDA major that torch is built for? (Windows' torch carries its own.)"""
    if host.torch is None or host.torch.cuda is None or host.system != "Linux" or host.torch.available:
        return []
    major = release(host.torch.cuda)[0]
    if any(f".so.{major}" in path for path in host.cuda_libraries):
        return []
    runtimes = ", ".join(sorted({path.rpartition("/")[2] for path in host.cuda_libraries})) or "none"
    message = (
        f"no libcudart.so.{major} for torch's CUDA {host.torch.cuda} (found: {runtimes}); seen as 'libcudart.so not "
        "found'"
    )
    fix = "pip install --force-reinstall torch   (its nvidia packages bring it), or add CUDA's lib64 to LD_LIBRARY_PATH"
    source = "https://github.com/bitsandbytes-foundation/bitsandbytes/issues/741"
    return [Finding(code="libcudart", status="problem", message=message, fix=fix, source=source)]


def bitsandbytes_kernels(host: Facts) -> list[Finding]:
    """Was the chosen bitsandbytes library compiled for this card?"""
    _, served = library_tag(host)
    if served is None or not within(host.version("bitsandbytes"), "0.50", _ANY):
        return []
    rows = [row for row in _TARGETS if row[0] <= int(served) <= row[1]]
    outside = [
        f"{major}.{minor}"
        for _, _, lowest, highest in rows
        for major, minor in host.capabilities
        if (major, minor) < lowest or major > highest[0]
    ]
    if not outside:
        return []
    message = (
        f"libbitsandbytes_cuda{served} is not compiled for compute capability {', '.join(outside)}; seen as 'Error "
        "named symbol not found' or 'no kernel image is available'"
    )
    fix = "install torch for another CUDA (12.6 for older cards, 13.0 for newer), or compile bitsandbytes from source"
    return [Finding(code="bitsandbytes-kernels", status="problem", message=message, fix=fix, source=BITSANDBYTES_DOCS)]
