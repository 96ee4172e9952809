"""The command ``serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headkit.adapters.files import is_file

from .terminal import Remap, Weights


def serve(
    root: Annotated[
        str, typer.Argument(help="Store: a directory or a URL (s3://, gs://, az://, …).")
    ],
    backbone: Annotated[
        str,
        typer.Option(
            help="ONNX file exported with --form backbone, or an architecture. An architecture is "
            "exported first, which needs torch."
        ),
    ],
    weights: Weights = None,
    remap: Remap = False,
    host: Annotated[str, typer.Option(help="Address on which the server listens.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port on which the server listens. 0 picks a free port.")
    ] = 8000,
    provider: Annotated[
        str,
        typer.Option(
            help="Execution provider: cpu, cuda, tensorrt, openvino, or ONNX Runtime's own name, "
            "such as CUDAExecutionProvider."
        ),
    ] = "cpu",
    threads: Annotated[
        int | None, typer.Option(help="Number of CPU threads. Default: one per core.")
    ] = None,
    max_batch: Annotated[
        int, typer.Option(help="Maximum number of images per run of the backbone.")
    ] = 16,
    verify_with: Annotated[
        list[Path] | None,
        typer.Option(
            help="Public key (Ed25519, PEM or OpenSSH) that must have signed a version before it "
            "is served; repeatable: one of the keys is enough. Default: $HEADKIT_VERIFY_WITH."
        ),
    ] = None,
    store_name: Annotated[
        str | None,
        typer.Option(
            help="Name of the store in signatures. Default: $HEADKIT_STORE_NAME, or the store's "
            "URL, for a directory its absolute path."
        ),
    ] = None,
    refresh: Annotated[
        float,
        typer.Option(help="Seconds to cache the names and tags that are read from the store."),
    ] = 1.0,
    max_upload_mb: Annotated[float, typer.Option(help="Maximum size of a request in MiB.")] = 20,
    max_megapixels: Annotated[
        float, typer.Option(help="Maximum size of an image in megapixels.")
    ] = 25,
    timeout: Annotated[
        float, typer.Option(help="Time limit in seconds for answering a request.")
    ] = 30,
    max_waiting: Annotated[
        int, typer.Option(help="Maximum number of images that may wait for the backbone.")
    ] = 1000,
    max_connections: Annotated[
        int, typer.Option(help="Maximum number of open connections.")
    ] = 1000,
    max_connections_per_client: Annotated[
        int,
        typer.Option(
            help="Maximum number of open connections from one address. Raise it behind a proxy, "
            "where all clients have one address."
        ),
    ] = 500,
) -> None:
    """Serve all heads in a store over HTTP, with one shared backbone. Needs headkit[serve]."""
    from headkit.adapters.errors import DependencyMissing

    for module in ("fastapi", "uvicorn", "prometheus_client"):
        DependencyMissing.check(module, "serving", "headkit[serve]")
    for name, value in (("max-batch", max_batch), ("refresh", refresh), ("timeout", timeout)):
        if value <= 0:
            raise ValueError(f"{name} is {value}, expected more than 0")
    import uvicorn

    from headkit.export.serving.connections import limited_protocol
    from headkit.export.serving.http import application
    from headkit.export.serving.limits import Limits
    from headkit.export.serving.service import Service
    from headkit.registry.store.store import HeadStore

    store = HeadStore(root, verify_with=verify_with, name=store_name)
    store.list()  # a missing store is an error before the model is loaded
    path = (
        Path(backbone) if backbone.endswith(".onnx") else _export_backbone(backbone, weights, remap)
    )
    limits = Limits(
        upload_bytes=int(max_upload_mb * 2**20),
        pixels=int(max_megapixels * 1e6),
        seconds=timeout,
        waiting=max_waiting,
        connections=max_connections,
        connections_per_client=max_connections_per_client,
    )
    service = Service(
        store,
        path,
        provider=provider,
        threads=threads,
        max_batch=max_batch,
        refresh_seconds=refresh,
        limits=limits,
    )
    uvicorn.run(
        application(service),
        host=host,
        port=port,
        http=limited_protocol(limits),
        ws="none",
        log_level="info",
        access_log=False,
    )


def _export_backbone(architecture: str, weights: Path | None, remap: bool) -> Path:
    """Return the backbone's ONNX file in the cache; export it first if it is missing or damaged."""
    from headkit.adapters.backbone.fingerprint import backbone_info
    from headkit.adapters.backbone.load import load_backbone
    from headkit.adapters.backbone.preprocessing import timm_cfg
    from headkit.adapters.files import cache_folder, make_folder
    from headkit.export.exporter import export
    from headkit.export.graph.checksums import is_intact

    model = load_backbone(architecture, weights, remap=remap)
    folder = make_folder(cache_folder() / "backbones")
    name = timm_cfg(model)["architecture"]  # the argument may be a folder or a repository
    path = folder / f"{name}-{backbone_info(model).fingerprint[:16]}.onnx"
    if not (is_file(path) and is_intact(path)):
        export(model, path, "backbone")
    return path
